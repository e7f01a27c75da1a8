//! One model in several stages, as several machines compute it: the bits of the whole model, and refusals.

use std::ops::Range;
use std::path::Path;

use tierflow::device::{Device, DeviceChoice};
use tierflow::engine::{Engine, EngineBuilder, Link, Machine, TextFiles, batch_of_hidden, requests_to_later_stages, split};
use tierflow::error::Error;
use tierflow::machine::Measure;
use tierflow::model::{Checkpoint, Model};
use tierflow::plan::PlanOptions;
use tierflow::platform::IoMode;
use tierflow::session::GenerateOptions;
use tierflow::stream::{Batch, BatchToken, Logits, MAX_TOKENS_TOGETHER};
use tierflow::text::{Sampler, SamplingSettings};
use tierflow::units::Bytes;

use crate::common::{bits, gpus};
use crate::models::families::{Golden, written};

fn builder(folder: &Path, device: DeviceChoice) -> EngineBuilder {
    let options =
        PlanOptions { n_seqs: 2, ctx_size: Some(48), ubatch_size: Some(16), logit_rows: MAX_TOKENS_TOGETHER, ..PlanOptions::default() };
    Engine::builder(folder).plan_options(options).device(device).text(TextFiles::Skip)
}

fn greedy() -> Sampler {
    Sampler::new(SamplingSettings::greedy(), 1)
}

fn open(builder: EngineBuilder) -> Engine {
    pollster::block_on(builder.open()).unwrap()
}

/// Engines of stages that begin at these layers, each continued with the next.
fn chain(folder: &Path, device: DeviceChoice, starts: &[usize], n_layers: usize) -> Engine {
    let ends = starts.iter().skip(1).copied().chain([n_layers]);
    let stages: Vec<Range<usize>> = starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect();
    let open = |layers: &Range<usize>| open(builder(folder, device).layers(layers.clone()));
    let engines = stages.iter().rev().map(open);
    engines.reduce(|later, engine| engine.continue_with(Box::new(later)).unwrap()).unwrap()
}

/// All logits after a prompt in two forwards, beside another sequence, and after three tokens more.
fn logits(engine: &mut Engine) -> Vec<u32> {
    let vocab_size = engine.config().vocab_size as u32;
    let token = |sequence: u32, position: u32| BatchToken { token: (position * 37 + sequence * 5 + 3) % vocab_size, sequence, position };
    let beside = |range: Range<u32>| range.flat_map(|position| [token(0, position), token(1, position)]).collect::<Vec<_>>();
    let prompts = [beside(0..4), beside(4..7)].into_iter().chain((7..10).map(|position| vec![token(0, position)]));
    let mut found = Vec::new();
    for tokens in prompts {
        let batch = Batch { logits_for: (0..tokens.len() as u32).collect(), tokens, ..Batch::default() };
        for row in pollster::block_on(engine.forward(&batch)).unwrap() {
            let Logits::All(row) = row else { panic!("all were asked for") };
            found.extend(bits(&row));
        }
    }
    found
}

/// Whether the layers of a model read nothing of one another but the residual stream.
fn can_be_divided(folder: &Path) -> bool {
    let checkpoint = Checkpoint::open(folder, IoMode::Pread).unwrap();
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape)).unwrap();
    model.has_head() && model.carried.is_empty()
}

#[test]
fn stages_of_every_family_give_the_bits_of_the_whole_on_the_host() {
    let root = tempfile::tempdir().unwrap();
    let mut refused = Vec::new();
    let mut n_divided = 0;
    for (name, golden) in Golden::all() {
        golden.write(root.path(), &name);
        let folder = root.path().join(&name);
        let n_layers = Checkpoint::open(&folder, IoMode::Pread).unwrap().config.n_layers;
        if !can_be_divided(&folder) {
            let error = pollster::block_on(builder(&folder, DeviceChoice::Cpu).layers(0..1).prepare()).err().expect(&name);
            assert!(error.to_string().contains("cannot be divided among machines"), "{name}: {error}");
            refused.push(name);
            continue;
        }
        let expected = logits(&mut open(builder(&folder, DeviceChoice::Cpu)));
        let starts: Vec<usize> = (0..n_layers).collect();
        assert_eq!(logits(&mut chain(&folder, DeviceChoice::Cpu, &starts, n_layers)), expected, "{name}");
        n_divided += 1;
    }
    assert!(n_divided > 50, "{n_divided} were divided");
    for name in ["bert", "nomic_bert", "gemma4", "gemma4-small"] {
        let is_refused = refused.iter().any(|other| other == name);
        assert_eq!(is_refused, name != "gemma4", "{name}");
    }
}

#[test]
fn stages_give_the_bits_of_the_whole_on_an_adapter() {
    if gpus().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for name in ["llama", "gpt2", "gemma2", "qwen3_moe", "qwen3_next"] {
        let folder = written(root.path(), name);
        let n_layers = Checkpoint::open(&folder, IoMode::Pread).unwrap().config.n_layers;
        let expected = logits(&mut open(builder(&folder, DeviceChoice::Gpu)));
        let found = logits(&mut chain(&folder, DeviceChoice::Gpu, &[0, n_layers / 2], n_layers));
        assert_eq!(found, expected, "{name}");
    }
}

/// Sessions and many callers use an engine whose later stages are far away as any other; a stage that fails leaves it usable.
#[test]
fn an_engine_generates_with_stages_that_are_far_away() {
    let root = tempfile::tempdir().unwrap();
    let folder = written(root.path(), "llama");
    let n_layers = Checkpoint::open(&folder, IoMode::Pread).unwrap().config.n_layers;
    let (later, mut requests) = requests_to_later_stages(1..n_layers, MAX_TOKENS_TOGETHER);
    let first = open(builder(&folder, DeviceChoice::Cpu).layers(0..1)).continue_with(later).unwrap();
    let mut last = open(builder(&folder, DeviceChoice::Cpu).layers(1..n_layers));
    let carrier = std::thread::spawn(move || {
        let mut n_carried = 0;
        while let Some(mut request) = pollster::block_on(requests.next()) {
            n_carried += 1;
            let hidden = std::mem::take(&mut request.hidden);
            let answer = match n_carried {
                2 => Err(Error::StageFailed { reason: "layers 1 to 3 are gone".into() }),
                // A row too few.
                9 => Ok(Vec::new()),
                _ => pollster::block_on(last.forward_hidden(&request.batch, &hidden)),
            };
            request.answer(answer);
        }
        n_carried
    });
    let generated = |engine: Engine| {
        let handle = engine.spawn().unwrap();
        let mut texts = Vec::new();
        for prompt in [vec![1u32, 2, 3], vec![5, 4, 3, 2], (0..30).collect()] {
            let mut sequence = pollster::block_on(handle.sequence()).unwrap();
            let mut answer = || {
                let options = GenerateOptions { max_tokens: Some(6), ..GenerateOptions::default() };
                let mut stream = sequence.generate(prompt.clone(), greedy(), options)?;
                let mut tokens = Vec::new();
                while let Some(next) = pollster::block_on(stream.next())? {
                    tokens.push(next.token);
                }
                Ok::<_, Error>(tokens)
            };
            texts.push(answer().unwrap_or_else(|error| {
                let error = error.to_string();
                assert!(error.contains("layers 1 to 3 are gone") || error.contains("gave 0 rows of logits"), "{error}");
                answer().unwrap()
            }));
        }
        texts
    };
    let expected = generated(open(builder(&folder, DeviceChoice::Cpu)));
    assert_eq!(generated(first), expected);
    let n_carried = carrier.join().unwrap();
    assert!(n_carried > 18, "{n_carried} forwards");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = written(root.path(), "llama");
    let n_layers = Checkpoint::open(&folder, IoMode::Pread).unwrap().config.n_layers;
    let host = |layers: Range<usize>| builder(&folder, DeviceChoice::Cpu).layers(layers);
    for layers in [1..1, 0..n_layers + 1, n_layers..n_layers] {
        let error = pollster::block_on(host(layers).prepare()).err().unwrap().to_string();
        assert!(error.contains(&format!("the model has {n_layers}")), "{error}");
    }
    let batch = Batch { tokens: vec![BatchToken { token: 1, sequence: 0, position: 0 }], logits_for: vec![0], ..Batch::default() };
    let refusal = |outcome: Result<Vec<Logits>, Error>| outcome.unwrap_err().to_string();
    let mut last = open(host(1..n_layers));
    let size = last.config().hidden_size;
    assert!(refusal(pollster::block_on(last.forward(&batch))).contains("begins at layer 1"));
    assert!(refusal(pollster::block_on(last.forward_hidden(&batch, &vec![0.5; size + 1]))).contains(&format!("the batch needs {size}")));
    let mut first = open(host(0..1));
    assert!(refusal(pollster::block_on(first.forward_hidden(&batch, &vec![0.5; size]))).contains("begins with tokens"));
    // What a stage gives of a batch are its hidden states.
    let hidden = pollster::block_on(first.forward(&batch_of_hidden(&batch))).unwrap();
    assert!(matches!(&hidden[..], [Logits::All(row)] if row.len() == size), "{hidden:?}");
    assert!(pollster::block_on(first.session().generate(&[1], greedy(), GenerateOptions::default())).is_err());

    let refusal = |engine: Result<Engine, Error>| engine.err().unwrap().to_string();
    let few = PlanOptions { ctx_size: Some(64), logit_rows: 1, ..PlanOptions::default() };
    let last_of = |layers: Range<usize>| open(host(layers));
    assert!(refusal(first.continue_with(Box::new(last_of(2..n_layers)))).contains("layers 1 to"));
    assert!(refusal(open(host(0..1)).continue_with(Box::new(last_of(1..2)))).contains("have layers 1 to 2"));
    let one_row = open(host(1..n_layers).plan_options(few));
    assert!(refusal(open(host(0..1)).continue_with(Box::new(one_row))).contains("logits of 1 positions"));
}

#[test]
fn layers_are_divided_by_what_machines_hold() {
    let root = tempfile::tempdir().unwrap();
    let folder = written(root.path(), "llama");
    let whole = pollster::block_on(builder(&folder, DeviceChoice::Cpu).measure(Measure::Never).prepare()).unwrap();
    let n_layers = whole.model.config.n_layers;
    let used = whole.plan.device(Device::Cpu).unwrap().used.total();
    let machine = |name: &str, host: Bytes| {
        let mut devices = whole.devices.clone();
        devices.iter_mut().filter(|spec| spec.device == Device::Cpu).for_each(|spec| spec.capacity = Some(host));
        let options = PlanOptions { ctx_size: Some(64), ..PlanOptions::default() };
        let builder = Engine::builder(&folder).plan_options(options).device(DeviceChoice::Cpu).machine(devices).text(TextFiles::Skip);
        Machine { name: name.into(), builder }
    };
    let link = Link { latency_secs: 1e-3, bytes_per_sec: 1e9 };
    let made = pollster::block_on(split(vec![machine("a", used), machine("b", used)], &[link])).unwrap();
    let layers: Vec<Range<usize>> = made.stages.iter().map(|stage| stage.layers.clone()).collect();
    assert_eq!(layers.len(), 2);
    assert!(layers[0].start == 0 && layers[0].end == layers[1].start && layers[1].end == n_layers && !layers[0].is_empty(), "{layers:?}");
    assert_eq!(made.ctx_size, 64);
    let stages: f64 = made.stages.iter().map(|stage| stage.forecast.decode.secs).sum();
    let row = whole.model.config.hidden_size * 4;
    assert!((made.decode_secs - stages - link.secs(row)).abs() < 1e-12, "{} of {stages}", made.decode_secs);

    let refusal = |machines: Vec<Machine>, links: &[Link]| pollster::block_on(split(machines, links)).err().unwrap().to_string();
    let refused = refusal(vec![machine("a", used), machine("b", Bytes(64))], &[link]);
    assert!(refused.contains("of b with layers"), "{refused}");
    let many: Vec<Machine> = (0..=n_layers).map(|index| machine(&index.to_string(), used)).collect();
    assert!(refusal(many, &vec![link; n_layers]).contains(&format!("the model has {n_layers} layers")));
    assert!(refusal(vec![machine("a", used), machine("b", used)], &[]).contains("0 ways between them"));
    assert!(refusal(Vec::new(), &[]).contains("are none"));
}
