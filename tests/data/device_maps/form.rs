//! The format of `golden/device_maps.json`: what Accelerate 1.15.0 itself made of module trees and budgets.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tierflow::accelerate::{DeviceMap, DeviceName, ElementType, InferOptions, ModuleTree, Retype, SizeSpec, TreeForm};

#[derive(Deserialize)]
pub struct Golden {
    pub seed_case: SeedCase,
    pub helpers: Helpers,
    pub models: Vec<GoldenModel>,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct SeedCase {
    #[serde(rename = "inclusive_GPU0_byte_budgets")]
    pub inclusive_budgets: BTreeMap<String, (i64, i64)>,
    pub both_hold_for: (i64, i64),
    pub cases: Vec<String>,
}

#[derive(Deserialize)]
pub struct Helpers {
    pub convert_file_size_to_int: Vec<(Value, Value)>,
    pub clean_device_map: Vec<CleanHelper>,
    pub get_max_memory_with_input: Vec<MaxMemoryHelper>,
    pub check_device_map: Vec<CheckHelper>,
    pub dtype_byte_size: Vec<(String, f64)>,
}

#[derive(Deserialize)]
pub struct CleanHelper {
    #[serde(rename = "in")]
    pub given: Pairs,
    pub out: Pairs,
}

#[derive(Deserialize)]
pub struct MaxMemoryHelper {
    #[serde(rename = "in")]
    pub given: BudgetPairs,
    pub out: Value,
}

#[derive(Deserialize)]
pub struct CheckHelper {
    pub model: String,
    #[serde(rename = "in")]
    pub given: Pairs,
    pub out: Value,
}

#[derive(Deserialize)]
pub struct GoldenModel {
    pub id: String,
    pub class: String,
    pub config: Option<Value>,
    pub no_split_modules: Vec<String>,
    pub tied_groups: Vec<Vec<String>>,
    pub n_params: i128,
    pub calculate_maximum_sizes: GoldenMaximum,
    #[serde(default, rename = "module_sizes_layer0_and_top")]
    pub module_sizes: BTreeMap<String, BTreeMap<String, f64>>,
    pub tree: TreeForm,
}

#[derive(Deserialize)]
pub struct GoldenMaximum {
    pub total: f64,
    pub largest_layer_bytes: f64,
    pub largest_layer_names: Vec<String>,
}

#[derive(Deserialize)]
pub struct Case {
    pub id: String,
    pub model: String,
    pub mode: String,
    pub max_memory: BudgetPairs,
    pub no_split_module_classes: Option<Names>,
    pub dtype: Option<ElementType>,
    #[serde(default)]
    pub special_dtypes: Vec<(String, ElementType)>,
    #[serde(default)]
    pub offload_buffers: bool,
    #[serde(default)]
    pub fallback_allocation: bool,
    pub device_map: Pairs,
    pub device_map_unclean_in_assignment_order: Pairs,
    pub bytes_per_device: Vec<(DeviceName, f64)>,
    pub balanced_max_memory: Option<BudgetPairs>,
    #[serde(default)]
    pub warnings: Vec<(String, String)>,
    #[serde(default)]
    pub logs: Vec<(String, String)>,
}

/// Classes, of which upstream takes one without a list.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
pub enum Names {
    One(String),
    Many(Vec<String>),
}

pub type Pairs = Vec<(String, DeviceName)>;
pub type BudgetPairs = Vec<(DeviceName, SizeSpec)>;

pub fn golden() -> Golden {
    let path = std::env::var("TIERFLOW_DEVICE_MAPS")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/device_maps.json").into());
    let json = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&json).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn device_map(pairs: &Pairs) -> DeviceMap {
    pairs.iter().map(|(name, device)| (name.clone(), device.to_key().unwrap())).collect()
}

impl Golden {
    pub fn model(&self, id: &str) -> &GoldenModel {
        self.models.iter().find(|model| model.id == id).unwrap_or_else(|| panic!("no model {id}"))
    }
}

impl GoldenModel {
    pub fn tree(&self) -> ModuleTree {
        // transformers ties the embedding and the head where a config does not say otherwise; what has no config is no model of theirs.
        let config_ties_weights = self.config.as_ref().is_some_and(|config| config["tie_word_embeddings"].as_bool().unwrap_or(true));
        let no_split_modules = self.no_split_modules.clone();
        ModuleTree::new(TreeForm { no_split_modules, config_ties_weights, ..self.tree.clone() }).unwrap()
    }
}

impl Case {
    pub fn options(&self, clean_result: bool) -> InferOptions {
        InferOptions {
            no_split_module_classes: match self.no_split_module_classes.clone() {
                None => Vec::new(),
                Some(Names::One(name)) => vec![name],
                Some(Names::Many(names)) => names,
            },
            retype: Retype { dtype: self.dtype, special_dtypes: self.special_dtypes.iter().cloned().collect() },
            clean_result,
            offload_buffers: self.offload_buffers,
            fallback_allocation: self.fallback_allocation,
        }
    }
}
