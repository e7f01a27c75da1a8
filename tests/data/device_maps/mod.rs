//! Device maps against those that Accelerate 1.15.0 itself made (`golden/device_maps.json`), through the public interface. The variable
//! `TIERFLOW_DEVICE_MAPS` names another file of the same format.

mod form;
mod own_models;
mod properties;

use std::collections::{BTreeMap, BTreeSet};

use form::{Case, device_map, golden};
use serde_json::Value;
use tierflow::accelerate::{
    Amount, DeviceKey, DeviceMap, DeviceMapMode, ElementType, InferOptions, LowZero, ModuleSizes, ModuleTree, NodeKind, NoticeLevel,
    Retype, SizeSpec, calculate_maximum_sizes, clean_device_map, get_balanced_memory, get_max_memory, infer_auto_device_map,
};
use tierflow::error::Error;

fn entries(map: &DeviceMap) -> Vec<(&str, DeviceKey)> {
    map.iter().collect()
}

/// Upstream's order of a cleaned map differs from run to run.
fn sorted(map: &DeviceMap) -> BTreeMap<&str, DeviceKey> {
    map.iter().collect()
}

/// The error alone, which is in upstream's words.
fn words(error: &Error) -> &str {
    match error {
        Error::InvalidArgument { reason, .. } => reason,
        other => panic!("{other} is no error of an argument"),
    }
}

#[test]
fn every_case_comes_out_as_accelerate_has_it() {
    let golden = golden();
    let trees: BTreeMap<&str, ModuleTree> = golden.models.iter().map(|model| (model.id.as_str(), model.tree())).collect();
    let differing = golden.cases.iter().filter_map(|case| match differences(case, &trees[case.model.as_str()]).join(", ") {
        differences if differences.is_empty() => None,
        differences => Some(format!("{}: {differences}", case.id)),
    });
    let differing: Vec<String> = differing.collect();
    assert!(!golden.cases.is_empty(), "no cases");
    assert!(differing.is_empty(), "{} of {} cases differ:\n{}", differing.len(), golden.cases.len(), differing.join("\n"));
}

/// Compares everything that a case says; returns what differs.
fn differences(case: &Case, tree: &ModuleTree) -> Vec<&'static str> {
    let mut differences = Vec::new();
    let mut compare = |what: &'static str, is_equal: bool| {
        if !is_equal {
            differences.push(what);
        }
    };
    let mode: DeviceMapMode = case.mode.parse().unwrap();
    let given = get_max_memory(&case.max_memory).unwrap();
    let raw_options = case.options(false);
    if let Some(expected) = &case.balanced_max_memory {
        let low_zero = if mode == DeviceMapMode::BalancedLow0 { LowZero::Yes } else { LowZero::No };
        let InferOptions { no_split_module_classes, retype, .. } = &raw_options;
        let (balanced, _) = get_balanced_memory(tree, &given, no_split_module_classes, retype, low_zero).unwrap();
        compare("balanced_max_memory", balanced == get_max_memory(expected).unwrap());
    }
    let raw = mode.device_map(tree, &given, &raw_options).unwrap();
    compare("raw map", entries(&raw.map) == entries(&device_map(&case.device_map_unclean_in_assignment_order)));
    let clean = mode.device_map(tree, &given, &case.options(true)).unwrap();
    compare("cleaned map", sorted(&clean.map) == sorted(&device_map(&case.device_map)));
    let sizes = ModuleSizes::new(tree, &raw_options.retype).by_device(tree, &raw.map);
    let expected = case.bytes_per_device.iter().map(|(device, bytes)| (device.to_key().unwrap(), Amount::Float(*bytes)));
    compare("bytes per device", sizes == expected.collect());
    let said = |levels: &[NoticeLevel]| -> Vec<(String, String)> {
        let notices = clean.notices.iter().filter(|notice| levels.contains(&notice.level()));
        notices.map(|notice| (level_name(notice.level()).to_owned(), notice.to_string())).collect()
    };
    compare("warnings", said(&[NoticeLevel::UserWarning]) == case.warnings);
    compare("logs", said(&[NoticeLevel::Info, NoticeLevel::Warning]) == case.logs);
    compare("notices of the raw run", raw.notices == clean.notices);
    differences
}

fn level_name(level: NoticeLevel) -> &'static str {
    match level {
        NoticeLevel::Info => "INFO",
        NoticeLevel::Warning => "WARNING",
        NoticeLevel::UserWarning => "UserWarning",
    }
}

#[test]
fn trees_and_their_sizes_are_accelerates() {
    for model in &golden().models {
        let tree = model.tree();
        let groups: BTreeSet<Vec<&str>> = tree.tied_groups().iter().map(|group| group.iter().map(|id| tree.name(*id)).collect()).collect();
        let expected = model.tied_groups.iter().map(|group| group.iter().map(String::as_str).collect());
        assert_eq!(groups, expected.collect(), "{}: tied groups", model.id);
        let n_params: i128 = tree
            .nodes()
            .map(|id| if let NodeKind::Parameter { tensor, tied_to: None } = tree.kind(id) { tensor.n_values } else { 0 })
            .sum();
        assert_eq!(n_params, model.n_params, "{}: parameters", model.id);
        let maximum = calculate_maximum_sizes(&tree);
        assert_eq!(maximum.total, Amount::Float(model.calculate_maximum_sizes.total), "{}: total", model.id);
        assert_eq!(
            maximum.largest_layer.size,
            Amount::Float(model.calculate_maximum_sizes.largest_layer_bytes),
            "{}: largest layer",
            model.id
        );
        let layers: Vec<&str> = maximum.largest_layer.layers.iter().map(|id| tree.name(*id)).collect();
        assert_eq!(layers, model.calculate_maximum_sizes.largest_layer_names, "{}: largest layers", model.id);
        for (dtype, expected) in &model.module_sizes {
            let sizes = ModuleSizes::new(&tree, &Retype { dtype: Some(dtype.parse().unwrap()), ..Retype::default() });
            for (name, bytes) in expected {
                let id = tree.find(name).unwrap_or_else(|| panic!("{}: no module {name}", model.id));
                assert_eq!(sizes.of(id), Amount::Float(*bytes), "{}: {name} as {dtype}", model.id);
            }
        }
    }
}

#[test]
fn size_strings_are_accelerates() {
    for (given, expected) in golden().helpers.convert_file_size_to_int {
        let size = match &given {
            // The label of a Python float, which JSON keeps apart from a string no better.
            Value::String(text) if text.ends_with("(float)") => continue,
            // Python's True is the integer 1, and equals it.
            Value::Bool(truth) => SizeSpec::Bytes(i64::from(*truth)),
            given => serde_json::from_value(given.clone()).unwrap(),
        };
        match (size.to_int(), expected["ok"].as_i64().or_else(|| expected["ok"].as_bool().map(i64::from))) {
            (Ok(bytes), Some(expected)) => assert_eq!(bytes, i128::from(expected), "{given}"),
            (Err(error), None) => assert!(words(&error).starts_with(expected["msg"].as_str().unwrap()), "{given}: {error}"),
            (found, _) => panic!("{given}: {found:?} where {expected} is expected"),
        }
    }
}

#[test]
fn budgets_are_read_and_ordered_as_accelerate_does() {
    for helper in golden().helpers.get_max_memory_with_input {
        match (get_max_memory(&helper.given), helper.out.get("ok")) {
            (Ok(budgets), Some(expected)) => {
                let found: Vec<Value> = budgets.iter().map(|(device, budget)| serde_json::json!([device, budget.to_bytes()])).collect();
                assert_eq!(&Value::from(found), expected, "{:?}", helper.given);
            }
            (Err(error), None) => assert_eq!(words(&error), helper.out["msg"], "{:?}", helper.given),
            (found, _) => panic!("{:?}: {found:?} where {} is expected", helper.given, helper.out),
        }
    }
}

#[test]
fn maps_are_cleaned_as_accelerate_does() {
    for helper in golden().helpers.clean_device_map {
        let cleaned = clean_device_map(&device_map(&helper.given));
        assert_eq!(sorted(&cleaned), sorted(&device_map(&helper.out)), "{:?}", helper.given);
    }
}

#[test]
fn maps_are_checked_as_accelerate_does() {
    let golden = golden();
    for helper in &golden.helpers.check_device_map {
        match (device_map(&helper.given).check(&golden.model(&helper.model).tree()), helper.out.get("ok")) {
            (Ok(notice), Some(_)) => {
                let said: Vec<Value> = notice.iter().map(|notice| notice.to_string().into()).collect();
                assert_eq!(said, helper.out.get("warnings").and_then(Value::as_array).cloned().unwrap_or_default(), "{:?}", helper.given);
            }
            (Err(error), None) => assert_eq!(words(&error), helper.out["msg"], "{:?}", helper.given),
            (found, _) => panic!("{:?}: {found:?} where {} is expected", helper.given, helper.out),
        }
    }
}

#[test]
fn widths_are_accelerates() {
    for (dtype, bytes) in golden().helpers.dtype_byte_size {
        let name = dtype.strip_prefix("CustomDtype.").map_or(dtype.clone(), |custom| format!("custom_{}", custom.to_lowercase()));
        assert_eq!(name.parse::<ElementType>().unwrap().size(1), Amount::Float(bytes), "{dtype}");
    }
}

/// A layer is split just where Accelerate splits it, to the byte.
#[test]
fn the_seed_case_holds_between_its_budgets() {
    let golden = golden();
    let seed = &golden.seed_case;
    let case = golden.cases.iter().find(|case| case.id == seed.cases[0]).expect("the seed case is among the cases");
    let tree = golden.model(&case.model).tree();
    let holds = |what: &str, budget: i64| {
        let mut budgets = get_max_memory(&case.max_memory).unwrap();
        budgets.insert(DeviceKey::Accelerator(0), Amount::Int(budget.into()));
        let dtype = if what.starts_with("fp16") { "float16" } else { "float32" };
        let retype = Retype { dtype: Some(dtype.parse().unwrap()), ..Retype::default() };
        let map = infer_auto_device_map(&tree, &budgets, &InferOptions { retype, ..InferOptions::default() }).map;
        let layer = |number: u32| format!("model.layers.{number}");
        let halves = |layer: String| {
            map.get(&format!("{layer}.self_attn")) == Some(DeviceKey::Accelerator(0))
                && map.get(&format!("{layer}.mlp")) == Some(DeviceKey::Cpu)
        };
        match what.split_once(": ").unwrap().1 {
            "layer 8 self_attn on 0, whole mlp on cpu" => halves(layer(8)),
            "layer 21 self_attn on 0, whole mlp on cpu" => halves(layer(21)),
            "the split is inside layer 21" => {
                map.get(&layer(21)).is_none()
                    && map.get(&layer(20)).is_some_and(DeviceKey::is_accelerator)
                    && map.get(&layer(22)) == Some(DeviceKey::Cpu)
            }
            other => panic!("unknown claim {other}"),
        }
    };
    assert_eq!(seed.inclusive_budgets.len(), 3);
    for (what, (lowest, highest)) in &seed.inclusive_budgets {
        assert!(holds(what, *lowest) && holds(what, *highest), "{what}");
        assert!(!holds(what, lowest - 1) && !holds(what, highest + 1), "{what}: beyond its budgets");
    }
    let (lowest, highest) = seed.both_hold_for;
    assert!(seed.inclusive_budgets.keys().filter(|what| !what.contains("whole mlp") || what.starts_with("fp32")).all(|what| holds(
        what, lowest
    ) && holds(
        what, highest
    )));
}
