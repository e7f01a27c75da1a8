//! Models with adapters: as peft answers (`tests/golden/lora.py`), wherever the weights are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tierflow::device::{Device, DeviceChoice, KernelChoice};
use tierflow::engine::{Engine, EngineBuilder, TextFiles};
use tierflow::lora::{Adapter, LowRank, Scales};
use tierflow::model::Op;
use tierflow::plan::{KvDType, PlacementRule, PlanOptions, ResidentLayers};
use tierflow::stream::{Batch, BatchToken, Logits, LogitsRequest};
use tierflow::units::Bytes;

use crate::common;
use crate::models::{LOGITS_TOLERANCE, families};
use crate::stream::{GPU, executor_sets};

#[derive(Deserialize)]
struct Expected {
    /// The family's model that it is for.
    base: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    last_logits: Vec<f32>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora").join(name)
}

fn expected(folder: &Path) -> Expected {
    serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

fn builder(model: &Path) -> EngineBuilder {
    // Bits of several engines are compared: the fastest kernels may be others once more of them have been measured.
    Engine::builder(model).text(TextFiles::Skip).kernels(KernelChoice::Portable).virtual_gpus(2)
}

fn options() -> PlanOptions {
    // Keys that differ in their last bit would differ in f16's, where a rounding tips over.
    PlanOptions { ctx_size: Some(48), kv_dtype: KvDType::F32, ..PlanOptions::default() }
}

/// The same, of which several executors have parts that do not depend on their rates: an adapter would change what is predicted, and so the division.
fn options_on(executors: &[Device]) -> PlanOptions {
    let resident_layers = if executors.len() > 1 { ResidentLayers::AtMost(2) } else { ResidentLayers::Auto };
    PlanOptions { placement: PlacementRule::FrontToBack, resident_layers, ..options() }
}

/// What follows each prompt.
fn answers(builder: EngineBuilder, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut engine = pollster::block_on(builder.open()).unwrap_or_else(|error| panic!("{error}"));
    let answer = |prompt: &&[u32]| {
        let Logits::All(logits) = pollster::block_on(engine.session().append(prompt, LogitsRequest::All)).unwrap() else { panic!("all") };
        logits
    };
    let answers = prompts.iter().map(answer).collect();
    for memory in engine.memory_use() {
        assert!(memory.budget.is_none_or(|budget| memory.peak <= budget), "{}: {} of {:?}", memory.device, memory.peak, memory.budget);
    }
    answers
}

/// Every golden adapter, on the folder of its model and, where there is one, the GGUF file: on the host, on an adapter, streamed from disk.
#[test]
fn models_with_adapters_answer_as_peft_does() {
    let root = tempfile::tempdir().unwrap();
    let mut n_models = 0;
    for entry in std::fs::read_dir(golden("")).unwrap() {
        let folder = entry.unwrap().path();
        let Expected { base, cases } = expected(&folder);
        let adapter = Arc::new(Adapter::open(&folder).unwrap());
        families::written(root.path(), &base);
        let prompts: Vec<&[u32]> = cases.iter().map(|case| &case.prompt[..]).collect();
        for model in [root.path().join(&base), root.path().join(format!("{base}-gguf"))] {
            let is_tiled = base == "qwen3_5" && model.ends_with("qwen3_5-gguf");
            if !model.exists() || is_tiled {
                continue;
            }
            n_models += 1;
            // Several executors divide all models alike.
            let is_divided = ["llama", "phi3"].contains(&base.as_str());
            for executors in executor_sets().into_iter().filter(|executors| executors.len() == 1 || is_divided) {
                let builder = builder(&model).compute_on(executors.iter().copied()).lora(Arc::clone(&adapter), 1.0);
                let what = format!("{} on {executors:?} with {}", model.display(), folder.display());
                let found = answers(builder.clone().plan_options(options_on(executors)), &prompts);
                for (found, case) in found.iter().zip(&cases) {
                    common::assert_close(found, &case.last_logits, LOGITS_TOLERANCE, &what);
                }
                if executors != [GPU] {
                    continue;
                }
                let streamed =
                    builder.plan_options(options()).max_memory(GPU, least(&model, &adapter)).max_memory(Device::Cpu, Bytes::ZERO);
                let prepared = pollster::block_on(streamed.clone().prepare()).unwrap();
                assert!(prepared.plan.streamed_chunks().next().is_some(), "{what}: nothing streams");
                assert!(answers(streamed, &prompts) == found, "{what}: streamed, bits differ");
            }
        }
    }
    assert!(n_models > 15, "{n_models} models were checked");
}

/// The least that the model with the adapter needs of an adapter.
fn least(model: &Path, adapter: &Arc<Adapter>) -> Bytes {
    let nothing = builder(model).compute_on([GPU]).plan_options(options()).lora(Arc::clone(adapter), 1.0).max_memory(GPU, Bytes(1));
    match pollster::block_on(nothing.prepare()) {
        Err(tierflow::Error::DoesNotFit { needed, .. }) => needed,
        other => panic!("{:?}", other.err()),
    }
}

/// Rows of zeros add nothing, not even a rounding; and neither does any adapter at scale 0.
#[test]
fn an_adapter_of_zeros_gives_the_bits_of_the_model() {
    let root = tempfile::tempdir().unwrap();
    for name in ["llama-patterns", "phi3"] {
        let folder = golden(name);
        let Expected { base, cases } = expected(&folder);
        let model = families::written(root.path(), &base);
        let prompts: Vec<&[u32]> = cases.iter().map(|case| &case.prompt[..]).collect();
        let adapter = Adapter::open(&folder).unwrap();
        let mut zeros = adapter.clone();
        zeros.linears.values_mut().for_each(|linear| linear.up.fill(0.0));
        for executors in executor_sets() {
            let builder = builder(&model).compute_on(executors.iter().copied()).plan_options(options_on(executors));
            let plain = answers(builder.clone(), &prompts);
            assert!(answers(builder.clone().lora(Arc::new(zeros.clone()), 1.0), &prompts) == plain, "{name} on {executors:?}");
            assert!(answers(builder.clone().lora(Arc::new(adapter.clone()), 0.0), &prompts) == plain, "{name} on {executors:?}, scale 0");
            assert!(answers(builder.lora(Arc::new(adapter.clone()), 1.0), &prompts) != plain, "{name} on {executors:?}: it does something");
        }
    }
}

/// Half an adapter and its other half are the whole; several that adapt the same linears stand side by side.
#[test]
fn several_adapters_are_added_up() {
    let root = tempfile::tempdir().unwrap();
    let (one, other) = (Adapter::open(&golden("llama")).unwrap(), Adapter::open(&golden("llama-patterns")).unwrap());
    let model = families::written(root.path(), "llama");
    let prompt: &[u32] = &[3, 77, 200, 5, 118];
    let [one, other] = [one, other].map(Arc::new);
    for executors in executor_sets() {
        let builder = builder(&model).compute_on(executors.iter().copied()).plan_options(options());
        let with = |adapters: &[(&Arc<Adapter>, f32)]| {
            let builder = adapters.iter().fold(builder.clone(), |builder, (adapter, scale)| builder.lora(Arc::clone(adapter), *scale));
            answers(builder, &[prompt]).remove(0)
        };
        let both = with(&[(&one, 1.0), (&other, 1.0)]);
        let halves = with(&[(&one, 0.5), (&other, 1.0), (&one, 0.5)]);
        common::assert_close(&halves, &both, 1e-4, &format!("{executors:?}"));
        assert_ne!(both, with(&[(&one, 1.0)]));
    }
}

/// Adapters stay where their units are computed, and are counted; a plan that has no room for them is refused.
#[test]
fn adapters_are_counted_in_the_plan() {
    let root = tempfile::tempdir().unwrap();
    let model = families::written(root.path(), "llama");
    let adapter = Arc::new(Adapter::open(&golden("llama")).unwrap());
    let of_device = |builder: EngineBuilder| {
        let prepared = pollster::block_on(builder.plan_options(options()).prepare()).unwrap();
        let device = prepared.plan.executors()[0];
        (prepared.plan.device(device).unwrap().used.weights, prepared)
    };
    for executors in executor_sets().into_iter().filter(|executors| executors.len() == 1) {
        let builder = builder(&model).compute_on(executors.iter().copied());
        let ((plain, _), (adapted, prepared)) = (of_device(builder.clone()), of_device(builder.lora(Arc::clone(&adapter), 1.0)));
        assert!(adapted.0 - plain.0 >= adapter.n_values() * 4, "{plain} and {adapted}");
        let ops = prepared.model.units.iter().flat_map(|unit| &unit.ops);
        assert_eq!(ops.filter(|op| matches!(op, Op::LoraMatMul(_))).count(), 2 * adapter.linears.len());
    }
}

#[test]
fn adapters_of_other_models_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let refusal = |base: &str, adapter: Adapter| {
        let model = families::written(root.path(), base);
        let builder = Engine::builder(model).device(DeviceChoice::Cpu).text(TextFiles::Skip).lora(Arc::new(adapter), 1.0);
        pollster::block_on(builder.prepare()).err().expect("a refusal").to_string()
    };
    let llama = || Adapter::open(&golden("llama")).unwrap();
    let text = refusal("phi3", llama());
    assert!(text.contains("golden/lora/llama: ") && text.contains("it was trained on a model of another size"), "{text}");
    assert!(refusal("gpt2", llama()).contains("which is no linear of"));
    assert!(refusal("qwen2", llama()).contains("it was trained on a model of another size"));
    let renamed = |name: &str| {
        let mut adapter = llama();
        let linear: LowRank = adapter.linears.pop_first().unwrap().1;
        adapter.linears = [(name.to_owned(), linear)].into();
        adapter
    };
    assert!(refusal("mixtral", renamed("model.layers.0.mlp.experts.3.w1")).contains("experts with adapters are not supported"));
    assert!(refusal("llama", renamed("model.layers.4.self_attn.q_proj")).contains("4 layers"));
    let mut wide = llama();
    wide.linears.values_mut().for_each(|linear| linear.n_outputs += 1);
    assert!(refusal("llama", wide).contains("lora_B.weight` gives"));
}

/// Sequences that choose their adapters are, side by side, what engines with those adapters alone give; those that choose none have the
/// bits of the model.
#[test]
fn sequences_choose_their_adapters() {
    let root = tempfile::tempdir().unwrap();
    let model = families::written(root.path(), "llama");
    let adapters = ["llama", "llama-patterns"].map(|name| Arc::new(Adapter::open(&golden(name)).unwrap()));
    let prompt: Vec<u32> = vec![3, 77, 200, 5, 118, 9, 41];
    let choices = [[1.0, 0.0], [0.0, 0.5], [1.0, 0.5]];
    for executors in executor_sets().into_iter().filter(|executors| executors.len() == 1 || executors.contains(&Device::Cpu)) {
        let builder = builder(&model).compute_on(executors.iter().copied());
        let with = |builder: EngineBuilder, scales: [f32; 2]| {
            adapters.iter().zip(scales).fold(builder, |builder, (adapter, scale)| builder.lora(Arc::clone(adapter), scale))
        };
        let alone = choices.map(|scales| answers(with(builder.clone().plan_options(options_on(executors)), scales), &[&prompt]).remove(0));
        let plain = answers(builder.clone().plan_options(options_on(executors)), &[&prompt]).remove(0);
        let several = PlanOptions { n_seqs: 4, logit_rows: 4, ..options_on(executors) };
        let chosen = with(builder.plan_options(several).lora_scales(Scales::Chosen), [1.0, 0.5]);
        let mut engine = pollster::block_on(chosen.open()).unwrap();
        assert_eq!(engine.lora_scales(2), [1.0, 0.5], "as they were given");
        for (sequence, scales) in (0..).zip(&choices) {
            assert_eq!(engine.set_lora_scales(sequence, scales).unwrap(), sequence != 2);
        }
        assert!(engine.set_lora_scales(3, &[0.0, 0.0]).unwrap());
        let n_tokens = prompt.len() as u32;
        let of = |sequence: u32| (0..).zip(&prompt).map(move |(position, &token)| BatchToken { token, sequence, position });
        let logits_for = (1..=3).map(|sequence| sequence * n_tokens - 1).collect();
        let batch = Batch { tokens: (0..3).flat_map(of).collect(), logits_for, logits_request: LogitsRequest::All };
        let together = pollster::block_on(engine.forward(&batch)).unwrap();
        for (index, (found, expected)) in together.iter().zip(&alone).enumerate() {
            let Logits::All(found) = found else { panic!("all logits") };
            common::assert_close(found, expected, 1e-4, &format!("sequence {index} on {executors:?}"));
        }
        let mut answer = |sequence: u32| {
            let mut session = engine.session_of(sequence, Vec::new()).unwrap();
            let Logits::All(logits) = pollster::block_on(session.append(&prompt, LogitsRequest::All)).unwrap() else { panic!("all") };
            logits
        };
        assert!(answer(3) == plain, "none on {executors:?}");
        // What one computes is nothing for another that chose otherwise, nor for itself once it has chosen anew.
        assert!(engine.copy_sequence(0, 1, 4).is_err() && engine.copy_sequence(0, 0, 4).is_ok());
        assert!(engine.set_lora_scales(0, &choices[1]).unwrap());
        assert!(engine.copy_sequence(0, 1, 4).is_err(), "nothing is cached any more");
        assert!(engine.copy_sequence(1, 0, 4).is_ok());
        // A file of a sequence is one for sequences that chose alike.
        let (file, [read, other]) = (root.path().join("sequence"), [0, 2]);
        let mut session = engine.session_of(1, prompt.clone()).unwrap();
        pollster::block_on(session.save(&file)).unwrap();
        let mut load = |sequence: u32| pollster::block_on(engine.session_of(sequence, Vec::new()).unwrap().load(&file));
        assert!(load(other).unwrap_err().to_string().contains("was saved with other weights"));
        load(read).unwrap();
        for wrong in [&[1.0][..], &[1.0, f32::NAN], &[]] {
            assert!(engine.set_lora_scales(0, wrong).is_err(), "{wrong:?}");
        }
        assert!(engine.set_lora_scales(4, &[1.0, 1.0]).is_err());
        for memory in engine.memory_use() {
            assert!(memory.budget.is_none_or(|budget| memory.peak <= budget), "{}", memory.device);
        }
    }
}
