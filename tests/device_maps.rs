//! Device maps against those that Accelerate 1.15.0 itself made (`golden/device_maps.json`), through the public interface. The variable
//! `TIERFLOW_DEVICE_MAPS` names another file of the same form.

#[path = "common/models.rs"]
mod models;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use serde::Deserialize;
use serde_json::Value;
use tierflow::device::Device;
use tierflow::dtype::DType;
use tierflow::error::{Error, Result};
use tierflow::plan::accelerate::{
    Amount, Budgets, DeviceKey, DeviceMap, DeviceMapMode, DeviceName, ElementType, InferOptions, LowZero, ModuleSizes, ModuleTree, Notice,
    NoticeLevel, Retype, SizeSpec, TreeForm, calculate_maximum_sizes, clean_device_map, convert_file_size_to_int, get_balanced_memory,
    get_max_memory, infer_auto_device_map,
};
use tierflow::weights::ModelConfig;

#[derive(Deserialize)]
struct Golden {
    seed_case: SeedCase,
    helpers: Helpers,
    models: Vec<GoldenModel>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct SeedCase {
    #[serde(rename = "inclusive_GPU0_byte_budgets")]
    inclusive_budgets: BTreeMap<String, (i64, i64)>,
    both_hold_for: (i64, i64),
    cases: Vec<String>,
}

#[derive(Deserialize)]
struct Helpers {
    convert_file_size_to_int: Vec<(Value, Value)>,
    clean_device_map: Vec<CleanHelper>,
    get_max_memory_with_input: Vec<MaxMemoryHelper>,
    check_device_map: Vec<CheckHelper>,
    dtype_byte_size: Vec<(String, f64)>,
}

#[derive(Deserialize)]
struct CleanHelper {
    #[serde(rename = "in")]
    given: Pairs,
    out: Pairs,
}

#[derive(Deserialize)]
struct MaxMemoryHelper {
    #[serde(rename = "in")]
    given: BudgetPairs,
    out: Value,
}

#[derive(Deserialize)]
struct CheckHelper {
    model: String,
    #[serde(rename = "in")]
    given: Pairs,
    out: Value,
}

#[derive(Deserialize)]
struct GoldenModel {
    id: String,
    config: Option<Value>,
    no_split_modules: Vec<String>,
    tied_groups: Vec<Vec<String>>,
    n_params: i128,
    calculate_maximum_sizes: GoldenMaximum,
    #[serde(default, rename = "module_sizes_layer0_and_top")]
    module_sizes: BTreeMap<String, BTreeMap<String, f64>>,
    tree: TreeForm,
}

#[derive(Deserialize)]
struct GoldenMaximum {
    total: f64,
    largest_layer_bytes: f64,
    largest_layer_names: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    model: String,
    mode: String,
    max_memory: BudgetPairs,
    no_split_module_classes: Option<Names>,
    dtype: Option<ElementType>,
    #[serde(default)]
    special_dtypes: Vec<(String, ElementType)>,
    #[serde(default)]
    offload_buffers: bool,
    #[serde(default)]
    fallback_allocation: bool,
    device_map: Pairs,
    device_map_unclean_in_assignment_order: Pairs,
    bytes_per_device: Vec<(DeviceName, f64)>,
    balanced_max_memory: Option<BudgetPairs>,
    #[serde(default)]
    warnings: Vec<(String, String)>,
    #[serde(default)]
    logs: Vec<(String, String)>,
}

/// Classes, of which upstream takes one without a list.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

type Pairs = Vec<(String, DeviceName)>;
type BudgetPairs = Vec<(DeviceName, SizeSpec)>;

fn golden() -> Golden {
    let path = std::env::var("TIERFLOW_DEVICE_MAPS")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/device_maps.json").into());
    let json = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&json).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn device_map(pairs: &Pairs) -> DeviceMap {
    pairs.iter().map(|(name, device)| (name.clone(), device.to_key().unwrap())).collect()
}

fn entries(map: &DeviceMap) -> Vec<(&str, DeviceKey)> {
    map.iter().collect()
}

/// Upstream's order of a cleaned map differs from run to run.
fn sorted(map: &DeviceMap) -> BTreeMap<&str, DeviceKey> {
    map.iter().collect()
}

/// The words of the fault alone, which are upstream's.
fn words(error: &Error) -> &str {
    match error {
        Error::InvalidArgument { fault, .. } => fault,
        other => panic!("{other} is no fault of an argument"),
    }
}

impl GoldenModel {
    fn tree(&self) -> ModuleTree {
        // transformers ties the embedding and the head where a config does not say otherwise; what has no config is no model of theirs.
        let config_ties_weights = self.config.as_ref().is_some_and(|config| config["tie_word_embeddings"].as_bool().unwrap_or(true));
        let no_split_modules = self.no_split_modules.clone();
        ModuleTree::new(TreeForm { no_split_modules, config_ties_weights, ..self.tree.clone() }).unwrap()
    }
}

impl Case {
    fn options(&self, clean_result: bool) -> InferOptions {
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

    /// Compares everything that the case says; returns what differs.
    fn differences(&self, tree: &ModuleTree) -> Vec<&'static str> {
        let mut differences = Vec::new();
        let mut compare = |what: &'static str, is_equal: bool| {
            if !is_equal {
                differences.push(what);
            }
        };
        let mode: DeviceMapMode = self.mode.parse().unwrap();
        let given = get_max_memory(&self.max_memory).unwrap();
        let raw_options = self.options(false);
        if let Some(expected) = &self.balanced_max_memory {
            let low_zero = if mode == DeviceMapMode::BalancedLow0 { LowZero::Yes } else { LowZero::No };
            let InferOptions { no_split_module_classes, retype, .. } = &raw_options;
            let (balanced, _) = get_balanced_memory(tree, &given, no_split_module_classes, retype, low_zero).unwrap();
            compare("balanced_max_memory", balanced == get_max_memory(expected).unwrap());
        }
        let raw = mode.device_map(tree, &given, &raw_options).unwrap();
        compare("raw map", entries(&raw.map) == entries(&device_map(&self.device_map_unclean_in_assignment_order)));
        let clean = mode.device_map(tree, &given, &self.options(true)).unwrap();
        compare("cleaned map", sorted(&clean.map) == sorted(&device_map(&self.device_map)));
        let sizes = ModuleSizes::new(tree, &raw_options.retype).by_device(tree, &raw.map);
        let expected = self.bytes_per_device.iter().map(|(device, bytes)| (device.to_key().unwrap(), Amount::Float(*bytes)));
        compare("bytes per device", sizes == expected.collect());
        let said = |levels: &[NoticeLevel]| -> Vec<(String, String)> {
            let notices = clean.notices.iter().filter(|notice| levels.contains(&notice.level()));
            notices.map(|notice| (level_name(notice.level()).to_owned(), notice.to_string())).collect()
        };
        compare("warnings", said(&[NoticeLevel::UserWarning]) == self.warnings);
        compare("logs", said(&[NoticeLevel::Info, NoticeLevel::Warning]) == self.logs);
        compare("notices of the raw run", raw.notices == clean.notices);
        differences
    }
}

fn level_name(level: NoticeLevel) -> &'static str {
    match level {
        NoticeLevel::Info => "INFO",
        NoticeLevel::Warning => "WARNING",
        NoticeLevel::UserWarning => "UserWarning",
    }
}

#[test]
fn every_case_comes_out_as_accelerate_has_it() {
    let golden = golden();
    let trees: BTreeMap<&str, ModuleTree> = golden.models.iter().map(|model| (model.id.as_str(), model.tree())).collect();
    let failed: Vec<String> = golden
        .cases
        .iter()
        .map(|case| (case, case.differences(&trees[case.model.as_str()])))
        .filter(|(_, differences)| !differences.is_empty())
        .map(|(case, differences)| format!("{}: {}", case.id, differences.join(", ")))
        .collect();
    assert!(!golden.cases.is_empty(), "no cases");
    assert!(failed.is_empty(), "{} of {} cases differ:\n{}", failed.len(), golden.cases.len(), failed.join("\n"));
}
