//! A cache that has no room for all that is under way: generations are paused and come back, and each gives what it gives alone.

use std::path::Path;
use std::time::Duration;

use tierflow::device::Device;
use tierflow::engine::{Engine, TextFiles};
use tierflow::handle::{EngineHandle, MAX_UNREAD, Positions};
use tierflow::plan::PlanOptions;
use tierflow::session::GenerateOptions;
use tierflow::units::Bytes;
use tierflow::{Sequence, TokenStream};

use crate::common::Random;
use crate::stream::{GPU, at_most, executor_sets, greedy, has_gpu, ids, options, rest_of, test_model, tokens};

/// Three sequences with contexts of 6 blocks, and a cache of 15: all of them begin, and cannot stay.
fn small() -> PlanOptions {
    PlanOptions { ctx_size: Some(192), kv_size: Some(480), ubatch_size: Some(16), ..options() }
}

/// Two sequences with contexts of 8 blocks, and a cache of 10: one that nobody reads, of 3 blocks, cannot stay beside another one.
fn of_two() -> PlanOptions {
    PlanOptions { ctx_size: Some(256), kv_size: Some(320), n_seqs: 2, ..small() }
}

fn open(path: &Path, executors: &[Device], options: PlanOptions) -> Engine {
    let builder = Engine::builder(path).compute_on(executors.iter().copied()).virtual_gpus(2).text(TextFiles::Skip);
    pollster::block_on(builder.plan_options(options).open()).unwrap()
}

fn sequences(handle: &EngineHandle) -> Vec<Sequence> {
    (0..handle.plan().n_seqs).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect()
}

/// Tokens that all models know.
fn prompts(n: u32) -> Vec<Vec<u32>> {
    (0..n).map(|sequence| ids(&tokens(sequence, 8 + sequence)).into_iter().map(|token| token % 256).collect()).collect()
}

/// Begins all of them without a limit of tokens.
fn begin_all(sequences: &mut [Sequence], prompts: &[Vec<u32>]) -> Vec<TokenStream> {
    let begin = |(sequence, prompt): (&mut Sequence, &Vec<u32>)| sequence.generate(prompt.clone(), greedy(), GenerateOptions::default());
    sequences.iter_mut().zip(prompts).map(|pair| begin(pair).unwrap()).collect()
}

/// What all streams give to readers of their own.
fn read_all(streams: Vec<TokenStream>) -> Vec<Vec<u32>> {
    std::thread::scope(|scope| {
        let readers: Vec<_> = streams.into_iter().map(|mut stream| scope.spawn(move || rest_of(&mut stream))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}

/// What each prompt gives where the cache has room for all.
fn expected(path: &Path, executors: &[Device], options: PlanOptions, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let handle = open(path, executors, PlanOptions { kv_size: None, ..options }).spawn().unwrap();
    let found = prompts.iter().map(|prompt| rest_of(&mut begin_all(&mut sequences(&handle)[..1], std::slice::from_ref(prompt))[0]));
    found.collect()
}

#[test]
fn generations_that_are_paused_give_what_they_give_alone() {
    let root = tempfile::tempdir().unwrap();
    let tiny = test_model(Some(9));
    let [lfm2, qwen3_5] = ["lfm2", "qwen3_5"].map(|name| crate::models::families::written(root.path(), name));
    let mut all: Vec<(&Path, &[Device])> = vec![(tiny.path(), &[Device::Cpu]), (&qwen3_5, &[Device::Cpu])];
    if has_gpu() {
        all.extend([(tiny.path(), &[GPU, Device::Cpu][..]), (&*lfm2, &[GPU])]);
    }
    let prompts = prompts(3);
    for (path, executors) in all {
        let expected = expected(path, executors, small(), &prompts);
        let limits = [(Bytes::mib(64), true), (Bytes(1000), false)];
        let n_limits = if path == tiny.path() && executors == [Device::Cpu] { 2 } else { 1 };
        for (limit, is_paused) in &limits[..n_limits] {
            let handle = open(path, executors, small()).spawn().unwrap();
            handle.keep_histories(*limit).unwrap();
            let found = read_all(begin_all(&mut sequences(&handle), &prompts));
            assert!(found == expected, "{path:?} on {executors:?} with {limit}");
            assert_eq!(handle.n_preemptions() > 0, *is_paused, "{path:?} on {executors:?} with {limit}");
        }
    }
}

/// Two generations of which the first one is read to its end; the other one, which nobody reads, made room for it.
struct Paused {
    handle: EngineHandle,
    sequences: Vec<Sequence>,
    /// Taken where it ends.
    stream: Option<TokenStream>,
    /// What the first one gave.
    first: Vec<u32>,
}

impl Paused {
    fn of(handle: EngineHandle, prompts: &[Vec<u32>]) -> Paused {
        handle.keep_histories(Bytes::mib(64)).unwrap();
        let mut sequences = sequences(&handle);
        let mut streams = begin_all(&mut sequences, prompts);
        let first = rest_of(&mut streams[0]);
        let stream = streams.pop();
        wait_until(|| handle.paused_sequences() == [false, true]);
        Paused { handle, sequences, stream, first }
    }
}

#[track_caller]
fn wait_until(is_so: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it does not come to be");
}

#[test]
fn one_that_nobody_reads_makes_room_and_comes_back_where_somebody_does() {
    let (model, prompts) = (test_model(None), prompts(2));
    for executors in executor_sets().into_iter().filter(|executors| executors.len() == 1) {
        let expected = expected(model.path(), executors, of_two(), &prompts);
        let handle = open(model.path(), executors, of_two()).spawn().unwrap();
        let Paused { handle, sequences: _sequences, stream, first } = Paused::of(handle, &prompts);
        let second = rest_of(&mut stream.unwrap());
        assert!([first, second] == expected[..], "{executors:?}");
        assert!(handle.n_preemptions() > 0);
        wait_until(|| handle.paused_sequences() == [false; 2]);
    }
}

#[test]
fn a_request_does_not_wait_for_one_that_nobody_reads() {
    let (model, prompts) = (test_model(None), prompts(2));
    let expected = expected(model.path(), &[Device::Cpu], of_two(), &prompts);
    let handle = open(model.path(), &[Device::Cpu], of_two()).spawn().unwrap();
    handle.keep_histories(Bytes::mib(64)).unwrap();
    let mut sequences = sequences(&handle);
    let mut first = begin_all(&mut sequences[..1], &prompts[..1]).remove(0);
    wait_until(|| first.n_unread() == MAX_UNREAD);
    let mut second = begin_all(&mut sequences[1..], &prompts[1..]).remove(0);
    wait_until(|| handle.paused_sequences() == [true, false]);
    assert!([rest_of(&mut second), rest_of(&mut first)] == [expected[1].clone(), expected[0].clone()]);
}

#[test]
fn a_paused_generation_that_is_cancelled_is_gone_with_what_was_kept_of_it() {
    let (model, prompts) = (test_model(None), prompts(2));
    let expected = expected(model.path(), &[Device::Cpu], of_two(), &prompts);
    type End = fn(&mut Paused);
    let ways: [(&str, End); 3] = [
        ("dropped", |paused| drop(paused.stream.take())),
        ("closed", |paused| drop(paused.sequences.pop())),
        ("scored", |paused| pollster::block_on(paused.sequences[1].logits(vec![1, 2], Positions::Last, drop)).unwrap()),
    ];
    for (way, end) in ways {
        let mut paused = Paused::of(open(model.path(), &[Device::Cpu], of_two()).spawn().unwrap(), &prompts);
        assert!(paused.first == expected[0], "{way}");
        // Its prompt is a step as well, and the last token is not computed yet.
        let (plan, n_cached) = (paused.handle.plan(), prompts[1].len() + MAX_UNREAD - 2);
        assert_eq!(paused.handle.history_bytes(), plan.sequence_bytes(&paused.handle.prepared().model, n_cached), "{way}");
        end(&mut paused);
        wait_until(|| paused.handle.history_bytes() == Bytes::ZERO && paused.handle.paused_sequences() == [false; 2]);
        paused.sequences.truncate(1);
        let mut again = pollster::block_on(paused.handle.sequence()).unwrap();
        let found = rest_of(&mut again.generate(prompts[1].clone(), greedy(), at_most(8)).unwrap());
        assert_eq!(found, expected[1][..8], "{way}");
    }
}

#[test]
fn what_was_kept_of_an_engine_that_is_lost_is_read_again() {
    if !has_gpu() {
        return;
    }
    let (model, prompts) = (test_model(None), prompts(2));
    let expected = expected(model.path(), &[GPU], of_two(), &prompts);
    let engine = open(model.path(), &[GPU], of_two());
    let lose = engine.loss_of(GPU).expect("it computes");
    let path = model.path().to_owned();
    let handle = engine.spawn_reopening(move || Ok(open(&path, &[GPU], of_two()))).unwrap();
    let Paused { handle: _handle, sequences: _sequences, stream, first } = Paused::of(handle, &prompts);
    lose();
    let second = rest_of(&mut stream.unwrap());
    assert!([first, second] == expected[..]);
}

/// Texts of many lengths on five sequences, with host memory for all that is paused or for little of it, and readers that leave or are slow: all that
/// is read to its end is what it is alone.
#[test]
fn whatever_is_asked_for_together_ends_and_is_what_it_is_alone() {
    let model = test_model(None);
    let ctx_size = 320;
    let sizes = || PlanOptions { ctx_size: Some(ctx_size), n_seqs: 5, ..small() };
    let prompts = prompts(5);
    let expected = expected(model.path(), &[Device::Cpu], sizes(), &prompts);
    let mut random = Random(3);
    let mut n_preemptions = Vec::new();
    for round in 0..2 {
        let engine = open(model.path(), &[Device::Cpu], sizes());
        let of_context = engine.plan().sequence_bytes(&engine.prepared().model, ctx_size);
        let handle = engine.spawn().unwrap();
        handle.keep_histories(if round == 1 { of_context } else { Bytes::mib(64) }).unwrap();
        let seeds: Vec<u64> = (0..5).map(|_| u64::from(random.word())).collect();
        std::thread::scope(|scope| {
            for (index, mut sequence) in sequences(&handle).into_iter().enumerate() {
                let (prompt, whole, mut random) = (&prompts[index], &expected[index], Random(seeds[index]));
                scope.spawn(move || {
                    for is_whole in [true, false] {
                        let most = [None, Some(20), Some(150)][random.word() as usize % 3].filter(|_| !is_whole);
                        let leaves_after = if !is_whole && random.word() % 3 == 0 { 100 } else { usize::MAX };
                        let is_slow = random.word() % 3 == 0;
                        let options = GenerateOptions { max_tokens: most, ..GenerateOptions::default() };
                        let mut stream = sequence.generate(prompt.clone(), greedy(), options).unwrap();
                        let mut found = Vec::new();
                        while found.len() < leaves_after
                            && let Some(step) = pollster::block_on(stream.next()).unwrap()
                        {
                            found.push(step.token);
                            if is_slow && found.len() % 50 == 0 {
                                std::thread::sleep(Duration::from_millis(20));
                            }
                        }
                        let n_expected = whole.len().min(most.unwrap_or(usize::MAX)).min(leaves_after);
                        assert!(found == whole[..n_expected], "round {round}, sequence {index}: {} of {n_expected}", found.len());
                    }
                });
            }
        });
        n_preemptions.push(handle.n_preemptions());
    }
    assert!(n_preemptions.iter().all(|n| *n > 0), "{n_preemptions:?}");
}
