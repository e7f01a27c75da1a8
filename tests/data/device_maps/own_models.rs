//! Trees of our own models, and what maps say of their matrices.

use std::collections::{BTreeMap, BTreeSet};

use tierflow::accelerate::{
    Amount, BudgetSource, Budgets, DeviceKey, DeviceMap, DeviceMapMode, InferOptions, ModuleSizes, ModuleTree, NodeId, NodeKind, Retype,
    calculate_maximum_sizes,
};
use tierflow::device::{Device, MaxMemory};
use tierflow::dtype::DType;
use tierflow::model::{Model, ModelConfig, UnitKind};
use tierflow::units::Bytes;
use tierflow::weights::{Catalog, TensorId};

use super::form::{GoldenModel, golden};
use crate::models;

/// Our config of a Llama whose config file the golden file quotes.
fn config_of(model: &GoldenModel) -> ModelConfig {
    let config = model.config.as_ref().unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    ModelConfig {
        vocab_size: size("vocab_size"),
        hidden_size: size("hidden_size"),
        ffn_size: size("intermediate_size"),
        n_layers: size("num_hidden_layers"),
        n_heads: size("num_attention_heads"),
        n_kv_heads: size("num_key_value_heads"),
        head_size: size("hidden_size") / size("num_attention_heads"),
        tied_embeddings: config["tie_word_embeddings"].as_bool().unwrap(),
        ..models::config()
    }
}

fn shown(tree: &ModuleTree, id: NodeId) -> String {
    let kind = match tree.kind(id) {
        NodeKind::Parameter { tensor, tied_to } => {
            format!("parameter of {} {}, tied to {:?}", tensor.n_values, tensor.dtype, tied_to.map(|id| tree.name(id)))
        }
        kind => format!("{kind:?}"),
    };
    format!("{}: {kind}", tree.name(id))
}

#[test]
fn our_llamas_have_the_trees_that_transformers_gives_them() {
    let golden = golden();
    let mut n_compared = 0;
    for theirs in golden.models.iter().filter(|model| model.class == "LlamaForCausalLM") {
        let (catalog, model) = models::model(&config_of(theirs), |_| DType::F32);
        let (ours, theirs) = (ModuleTree::of_model(&catalog, &model).unwrap(), theirs.tree());
        let list = |tree: &ModuleTree| -> Vec<String> { tree.nodes().map(|id| shown(tree, id)).collect() };
        assert_eq!(list(&ours), list(&theirs));
        assert_eq!(calculate_maximum_sizes(&ours), calculate_maximum_sizes(&theirs));
        assert_eq!((ours.no_split_modules(), ours.config_ties_weights()), (theirs.no_split_modules(), theirs.config_ties_weights()));
        n_compared += 1;
    }
    assert!(n_compared > 0, "no Llama in the golden file");
}

fn small(tied_embeddings: bool, dtype: DType) -> (Catalog, Model) {
    let config = ModelConfig { tied_embeddings, attention_bias: true, ..models::config() };
    models::model(&config, |_| dtype)
}

#[test]
fn quantised_weights_count_as_they_are_stored() {
    let (catalog, model) = small(false, DType::Q4_1);
    let tree = ModuleTree::of_model(&catalog, &model).unwrap();
    let rotary = ModuleSizes::new(&tree, &Retype::default()).of(tree.find("model.rotary_emb").unwrap());
    let total = calculate_maximum_sizes(&tree).total;
    assert_eq!(total, rotary + Amount::from(catalog.size_bytes()));
    // Loaded as float16, quantised blocks stay as they are: they are narrower.
    let half = ModuleSizes::new(&tree, &Retype { dtype: Some("float16".parse().unwrap()), ..Retype::default() });
    let projection = tree.find("model.layers.0.mlp.gate_proj").unwrap();
    assert_eq!(half.of(projection), ModuleSizes::new(&tree, &Retype::default()).of(projection));
    assert!(half.total() < total);
}

#[test]
fn an_inferred_map_gives_every_matrix_a_device() {
    let (catalog, model) = small(true, DType::Q8_0);
    let tree = ModuleTree::of_model(&catalog, &model).unwrap();
    let budgets: MaxMemory = "gpu:0=100KiB,cpu=25KiB".parse().unwrap();
    let map = DeviceMapMode::Auto.device_map(&tree, &Budgets::from(&budgets), &InferOptions::default()).unwrap().map;
    assert_eq!(map.check(&tree).unwrap(), None, "every tensor has a device, and every name is a module");
    let placements = map.placements(&catalog, &model).unwrap();
    assert_eq!(placements.len(), 1 + model.units.iter().map(|unit| unit.matrices().count()).sum::<usize>());
    // A tied head shares its matrix with the embedding.
    let matrices: BTreeSet<(TensorId, Device)> = placements.iter().map(|placed| (placed.tensor, placed.stored_on)).collect();
    let bytes =
        |device| -> Bytes { matrices.iter().filter(|(_, stored_on)| *stored_on == device).map(|(id, _)| catalog[*id].size_bytes).sum() };
    let used = [Device::Gpu(0), Device::Cpu, Device::Disk].map(bytes);
    assert!(used.iter().all(|used| *used > Bytes::ZERO), "{}", map.to_json());
    assert!(used[0] <= Bytes::kib(100) && used[1] <= Bytes::kib(25), "{used:?}");
    assert_eq!(DeviceMap::from_json(&map.to_json(), "map.json").unwrap().placements(&catalog, &model).unwrap(), placements);
}

#[test]
fn a_tied_head_may_live_apart_from_its_embedding() {
    let (catalog, model) = small(true, DType::F16);
    let read = |json: &str| DeviceMap::from_json(json, "map.json").unwrap();
    let embedding_and_head = |json: &str| {
        let placements = read(json).placements(&catalog, &model).unwrap();
        let of = |kind: UnitKind| placements.iter().find(|placed| model.units[placed.unit].kind == kind).unwrap();
        assert_eq!(of(UnitKind::Embedding).tensor, of(UnitKind::Head).tensor);
        (of(UnitKind::Embedding).stored_on, of(UnitKind::Head).stored_on)
    };
    assert_eq!(embedding_and_head(r#"{"model": "cpu", "lm_head": 1}"#), (Device::Cpu, Device::Gpu(1)));
    assert_eq!(embedding_and_head(r#"{"model": "disk"}"#), (Device::Disk, Device::Disk));
    assert_eq!(embedding_and_head(r#"{"": "mps"}"#), (Device::Gpu(0), Device::Gpu(0)));
    let error = read(r#"{"lm_head": 0, "model.layers.0": 0, "model.layers.1.self_attn": 0, "model.layers.1.mlp.up_proj": 0}"#)
        .placements(&catalog, &model)
        .unwrap_err();
    let names = "model.embed_tokens.weight, model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.down_proj.weight";
    assert!(error.to_string().ends_with(names), "{error}");
}

#[test]
fn a_lone_accelerator_keeps_a_tenth_of_what_was_measured() {
    let (catalog, model) = small(false, DType::F32);
    let tree = ModuleTree::of_model(&catalog, &model).unwrap();
    let budgets: Budgets = [(DeviceKey::Accelerator(0), Bytes(1_000_000))].into_iter().collect();
    let used = |budgets: &Budgets| {
        let inferred = DeviceMapMode::Auto.device_map(&tree, budgets, &InferOptions::default()).unwrap();
        let sums = ModuleSizes::new(&tree, &Retype::default()).by_device(&tree, &inferred.map);
        (sums.get(&DeviceKey::Accelerator(0)).copied(), inferred.notices.iter().any(|notice| notice.to_string().contains("90%")))
    };
    let total = calculate_maximum_sizes(&tree).total;
    let exactly = |budget: Amount| -> Budgets { BTreeMap::from([(DeviceKey::Accelerator(0), budget)]).into_iter().collect() };
    assert!(total < Amount::from(Bytes(1_000_000)) && used(&budgets) == (Some(total), false));
    assert_eq!(used(&exactly(total)), (Some(total), false));
    let (measured, is_said) = used(&exactly(total).from_source(BudgetSource::Measured));
    assert!(measured < Some(total) && is_said);
}

#[test]
fn low_zero_needs_accelerators_without_gaps() {
    let (catalog, model) = small(false, DType::F32);
    let tree = ModuleTree::of_model(&catalog, &model).unwrap();
    let budgets: Budgets = [0, 2].map(|index| (DeviceKey::Accelerator(index), Bytes::mib(1))).into_iter().collect();
    let error = DeviceMapMode::BalancedLow0.device_map(&tree, &budgets, &InferOptions::default()).unwrap_err();
    assert!(error.to_string().contains("1 has no budget"), "{error}");
    assert!(DeviceMapMode::Balanced.device_map(&tree, &budgets, &InferOptions::default()).is_ok());
    assert!(Device::try_from(DeviceKey::Accelerator(-1)).unwrap_err().to_string().contains("accelerator -1"));
}
