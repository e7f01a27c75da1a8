//! Sequences that are kept in files, and contexts that are full.

use std::path::Path;

use tierflow::Sequence;
use tierflow::device::Device;
use tierflow::engine::Engine;
use tierflow::error::Error;
use tierflow::plan::{CacheDType, KvDType, PlanOptions, ResidentLayers};
use tierflow::session::{FinishReason, GenerateOptions, Session};
use tierflow::stream::{Logits, LogitsRequest};
use tierflow::text::{Sampler, SamplingSettings};
use tierflow::units::Bytes;
use xtask::models::LlamaShape;

use crate::common::{Random, bits};
use crate::stream::{GPU, at_most, executor_sets, model_of, open, options, test_model, tokens};

fn ids(sequence: u32, n_tokens: u32) -> Vec<u32> {
    tokens(sequence, n_tokens).into_iter().map(|token| token.token).collect()
}

fn append(session: &mut Session<'_>, tokens: &[u32]) -> Vec<u32> {
    let Logits::All(logits) = pollster::block_on(session.append(tokens, LogitsRequest::All)).unwrap() else { panic!("all were asked for") };
    bits(&logits)
}

fn greedy() -> Sampler {
    Sampler::new(SamplingSettings { temperature: 0.0, ..SamplingSettings::default() }, 1)
}

fn load(engine: &mut Engine, file: &Path) -> Result<Vec<u32>, Error> {
    let mut session = engine.session();
    pollster::block_on(session.load(file)).map(|()| session.tokens().to_vec())
}

#[test]
fn a_sequence_that_was_saved_goes_on_with_the_same_bits_and_nothing_is_computed_twice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sequence");
    let wide = LlamaShape { head_size: 96, n_heads: 3, n_kv_heads: 1, ..LlamaShape::tiny() };
    let mixed = KvDType { keys: CacheDType::Q8_0, values: CacheDType::F16 };
    for (shape, kv_dtypes) in [(LlamaShape::tiny(), vec![KvDType::F32, KvDType::F16]), (wide, vec![KvDType::Q8_0, KvDType::Q4_0, mixed])] {
        let model = model_of(&shape);
        for executors in executor_sets() {
            for &kv_dtype in &kv_dtypes {
                let options = PlanOptions { kv_dtype, ubatch_size: Some(16), ..options() };
                let (before, after) = (ids(0, 37), ids(1, 9));
                let mut engine = open(&model, executors, options.clone()).unwrap();
                let mut session = engine.session_of(1, Vec::new()).unwrap();
                append(&mut session, &before);
                pollster::block_on(session.save(&file)).unwrap();
                let expected = append(&mut session, &after);
                drop(session);

                // Another sequence of another engine, whose weights stream where no other device would take them.
                let resident_layers = if executors.len() == 1 { ResidentLayers::AtMost(0) } else { options.resident_layers };
                let mut engine = open(&model, executors, PlanOptions { resident_layers, ..options }).unwrap();
                let mut session = engine.session_of(2, Vec::new()).unwrap();
                pollster::block_on(session.load(&file)).unwrap();
                assert_eq!(session.tokens(), before);
                assert_eq!(append(&mut session, &after), expected, "{kv_dtype:?} on {executors:?}");
                pollster::block_on(session.load(&file)).unwrap();
                let prompt = [before.clone(), after.clone()].concat();
                let generation = pollster::block_on(session.generate(&prompt, greedy(), GenerateOptions::default())).unwrap();
                assert_eq!(generation.n_prompt(), after.len(), "what was loaded is not computed again");
            }
        }
    }
}

#[test]
fn recurrent_states_are_saved_with_their_sequence() {
    let (folder, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("sequence");
    for name in ["lfm2", "qwen3_5"] {
        let path = crate::models::families::written(root.path(), name);
        for device in executor_sets().into_iter().filter(|executors| executors.len() == 1) {
            let open = || {
                let builder = Engine::builder(&path).compute_on(device.iter().copied()).text(tierflow::engine::TextFiles::Skip);
                pollster::block_on(builder.plan_options(PlanOptions { ctx_size: Some(64), n_seqs: 2, ..PlanOptions::default() }).open())
                    .unwrap()
            };
            let mut engine = open();
            let mut session = engine.session_of(1, Vec::new()).unwrap();
            append(&mut session, &[3, 1, 4, 1, 5, 9, 2, 6]);
            pollster::block_on(session.save(&file)).unwrap();
            let expected = append(&mut session, &[5, 3]);
            let mut engine = open();
            let mut session = engine.session();
            pollster::block_on(session.load(&file)).unwrap();
            assert_eq!(append(&mut session, &[5, 3]), expected, "{name} on {device:?}");
        }
    }
}

#[test]
fn a_text_whose_sequence_another_took_goes_on_where_it_was() {
    let root = tempfile::tempdir().unwrap();
    let tiny = model_of(&LlamaShape { sliding_window: Some(9), ..LlamaShape::tiny() });
    let recurrent = crate::models::families::written(root.path(), "lfm2");
    for (path, executors) in executor_sets().into_iter().flat_map(|executors| [(tiny.path(), executors), (&*recurrent, executors)]) {
        if path == recurrent && executors.len() > 1 {
            continue;
        }
        let handle = |limit: Bytes| {
            let options = PlanOptions { ctx_size: Some(128), n_seqs: 1, ubatch_size: Some(16), ..options() };
            let builder = Engine::builder(path).compute_on(executors.iter().copied()).text(tierflow::engine::TextFiles::Skip);
            let handle = pollster::block_on(builder.virtual_gpus(2).plan_options(options).open()).unwrap().spawn().unwrap();
            handle.keep_histories(limit).unwrap();
            handle
        };
        // The tokens of an answer, and how many of its prompt were computed.
        let answer = |sequence: &mut Sequence, prompt: &[u32]| {
            let mut stream = sequence.generate(prompt.to_vec(), greedy(), at_most(6)).unwrap();
            let mut found = Vec::new();
            while let Some(step) = pollster::block_on(stream.next()).unwrap() {
                found.push(step.token);
            }
            (found, stream.n_prompt())
        };
        // Both models know these.
        let ids = |sequence, n_tokens| ids(sequence, n_tokens).into_iter().map(|token| token % 256).collect::<Vec<u32>>();
        let (one, other) = (ids(0, 40), ids(1, 50));
        let (keeping, small, fresh) = (handle(Bytes::mib(16)), handle(Bytes(100)), handle(Bytes::ZERO));
        let mut sequence = pollster::block_on(keeping.sequence()).unwrap();
        let first = answer(&mut sequence, &one).0;
        answer(&mut sequence, &other);
        assert!(keeping.history_bytes() > Bytes::ZERO);
        let next = [&one[..], &first, &ids(2, 7)].concat();
        let (again, n_computed) = answer(&mut sequence, &next);
        let mut alone = pollster::block_on(fresh.sequence()).unwrap();
        assert_eq!((again, n_computed), (answer(&mut alone, &next).0, 8), "{path:?} on {executors:?}");
        // The other one comes back, too; where nothing has room, all is computed.
        let back = [&other[..], &ids(3, 9)].concat();
        let n_of_other = if path == recurrent { 59 } else { 9 };
        assert_eq!(answer(&mut sequence, &back), (answer(&mut alone, &back).0, n_of_other), "{path:?} on {executors:?}");
        let mut sequence = pollster::block_on(small.sequence()).unwrap();
        let n_computed = [&one, &other, &one].map(|prompt| answer(&mut sequence, prompt).1);
        assert_eq!(n_computed, [40, 50, 40]);
    }
}

#[test]
fn files_of_another_model_dtype_or_context_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sequence");
    let model = test_model(None);
    let mut engine = open(&model, &[Device::Cpu], options()).unwrap();
    let mut session = engine.session();
    append(&mut session, &ids(0, 40));
    pollster::block_on(session.save(&file)).unwrap();
    let refused = |engine: &mut Engine, expected: &str| {
        let refused = load(engine, &file).unwrap_err().to_string();
        assert!(refused.contains(expected) && refused.contains("sequence"), "{refused}");
    };
    let mut shorter = open(&model, &[Device::Cpu], PlanOptions { ctx_size: Some(32), ..options() }).unwrap();
    refused(&mut shorter, "holds 40 tokens, and the context has 32 positions");
    let other = model_of(&LlamaShape { rope_theta: 20_000.0, ffn_size: 192, ..LlamaShape::tiny() });
    refused(&mut open(&other, &[Device::Cpu], options()).unwrap(), "was saved with other weights");
    if crate::stream::has_gpu() {
        let halves = PlanOptions { kv_dtype: KvDType::F16, ..options() };
        refused(&mut open(&model, &[GPU], halves).unwrap(), "here are stored keys and values in f16 on a GPU");
    }
    let wide = model_of(&LlamaShape { head_size: 32, ..LlamaShape::tiny() });
    let of_both = PlanOptions { kv_dtype: KvDType::Q8_0, ..options() };
    let mut engine_of_both = open(&wide, &[Device::Cpu], of_both.clone()).unwrap();
    let mut session = engine_of_both.session();
    append(&mut session, &ids(0, 40));
    pollster::block_on(session.save(&file)).unwrap();
    let kv_dtype = KvDType { values: CacheDType::F16, ..KvDType::Q8_0 };
    let expected =
        "has keys and values in q8_0 on the host of layer 0, and here are stored keys in q8_0 and values in f32 on the host of layer 0";
    refused(&mut open(&wide, &[Device::Cpu], PlanOptions { kv_dtype, ..of_both }).unwrap(), expected);
    for (bytes, expected) in [(&b"GGUF and more than eight bytes"[..], "is no cache that tierflow wrote"), (b"tfca", "ends at byte 4")] {
        std::fs::write(&file, bytes).unwrap();
        refused(&mut engine, expected);
    }
}

/// Cut, changed and extended at random: no panic, always a refusal, and an engine that goes on.
#[test]
fn broken_files_are_refused_and_leave_the_engine_usable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sequence");
    let model = test_model(None);
    let mut engine = open(&model, &[Device::Cpu], options()).unwrap();
    let (before, after) = (ids(0, 5), ids(1, 3));
    let mut session = engine.session();
    append(&mut session, &before);
    pollster::block_on(session.save(&file)).unwrap();
    let expected = append(&mut session, &after);
    let whole = std::fs::read(&file).unwrap();
    let mut random = Random(11);
    let mut below = |n: usize| (random.floats(1)[0].abs() * n as f32) as usize % n;
    for round in 0..600 {
        let mut bytes = whole.clone();
        match round % 4 {
            0 => bytes.truncate(below(whole.len())),
            // The head of the file, where sizes are, and anywhere.
            1 => bytes[below(900)] ^= 1 << below(8),
            2 => bytes[below(whole.len())] ^= 1 << below(8),
            _ => bytes.extend(vec![0; 1 + below(100)]),
        }
        std::fs::write(&file, &bytes).unwrap();
        if bytes != whole {
            let refused = load(&mut engine, &file).expect_err("a refusal");
            assert!(matches!(refused, Error::InvalidFile { .. } | Error::Io { .. }), "{refused}");
        }
    }
    // Numbers that no file can have, in a header that can be read.
    let header = String::from_utf8(whole[16..16 + u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize].to_vec()).unwrap();
    for (part, changed) in [
        ("\"n_tokens\":5", "\"n_tokens\":18446744073709551615"),
        ("\"n_tokens\":5", "\"n_tokens\":0"),
        ("\"ctx_size\":64", "\"ctx_size\":18446744073709551615"),
        ("\"n_bytes\":", "\"n_bytes\":1844674407370955161"),
        ("\"layer\":0", "\"layer\":99"),
    ] {
        assert!(header.contains(part), "{header}");
        let changed = header.replace(part, changed);
        let bytes = [&whole[..8], &(changed.len() as u64).to_le_bytes(), changed.as_bytes(), &whole[16 + header.len()..]].concat();
        std::fs::write(&file, &bytes).unwrap();
        load(&mut engine, &file).expect_err(&changed);
    }
    let mut session = engine.session();
    append(&mut session, &before);
    assert_eq!(append(&mut session, &after), expected);
    drop(session);
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(load(&mut engine, &file).unwrap(), before);
}

#[test]
fn where_a_context_is_full_half_of_what_may_leave_leaves_and_the_rest_stands_as_if_it_were_all() {
    let model = test_model(None);
    for executors in executor_sets().into_iter().filter(|executors| executors.len() == 1) {
        let kept: &[usize] = if executors == [GPU] { &[6] } else { &[0, 6] };
        for &n_keep in kept {
            let prompt = ids(0, 20);
            let going_on = || GenerateOptions { ignore_eos: true, ..GenerateOptions::default() };
            let mut engine = open(&model, executors, options()).unwrap();
            let mut session = engine.session();
            let mut generation = pollster::block_on(session.generate(&prompt, greedy(), going_on())).unwrap();
            let mut found = Vec::new();
            let mut shifts = 0;
            while found.len() < 110 {
                if generation.is_context_full() {
                    shifts += 1;
                    let n_left = pollster::block_on(generation.drop_half(n_keep)).unwrap();
                    assert_eq!(n_left, (63 - n_keep) / 2);
                }
                found.push(pollster::block_on(generation.next()).unwrap().expect("it goes on").token);
            }
            assert!(shifts >= 2, "{shifts}");
            drop(generation);

            // The same from the texts alone, each computed from its beginning.
            let mut engine = open(&model, executors, options()).unwrap();
            let (mut all, mut expected) = (prompt.clone(), Vec::new());
            while expected.len() < 110 {
                let mut session = engine.session();
                if !expected.is_empty() {
                    // What stays was computed with the prompt.
                    append(&mut session, &prompt);
                    session.truncate(n_keep);
                    append(&mut session, &all[n_keep..all.len() - 1]);
                }
                let mut generation = pollster::block_on(session.generate(&all, greedy(), going_on())).unwrap();
                while all.len() < 64 && expected.len() < 110 {
                    let token = pollster::block_on(generation.next()).unwrap().expect("a token").token;
                    expected.push(token);
                    all.push(token);
                }
                // The last one is due, and not in the cache yet.
                let n_left = (63 - n_keep) / 2;
                all.drain(n_keep..n_keep + n_left);
            }
            assert_eq!(found, expected, "{n_keep} kept on {executors:?}");
        }
    }
    // Without it, a clear end.
    let mut engine = open(&model, &[Device::Cpu], options()).unwrap();
    let mut session = engine.session();
    let going_on = GenerateOptions { ignore_eos: true, ..GenerateOptions::default() };
    let mut generation = pollster::block_on(session.generate(&ids(0, 20), greedy(), going_on)).unwrap();
    while pollster::block_on(generation.next()).unwrap().is_some() {}
    assert_eq!((generation.finish_reason(), generation.n_generated()), (Some(FinishReason::Length), 45));
    // Nothing can leave where all is kept.
    let refused = pollster::block_on(generation.drop_half(usize::MAX)).unwrap_err();
    assert!(matches!(refused, Error::ContextFull { .. }), "{refused}");
}
