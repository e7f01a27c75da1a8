//! What holds of every size string, budget and map.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use tierflow::accelerate::{
    Amount, Budgets, DeviceKey, DeviceMap, DeviceMapMode, InferOptions, ModuleSizes, ModuleTree, NodeKind, Retype, clean_device_map,
    convert_file_size_to_int,
};

use super::form::golden;

/// Small trees of many kinds: ties, buffers, parameters beside modules.
static TREES: LazyLock<Vec<ModuleTree>> = LazyLock::new(|| {
    let golden = golden();
    golden.models.iter().filter(|model| model.tree.modules.len() < 100).map(|model| model.tree()).collect()
});

fn budgets() -> impl Strategy<Value = Budgets> {
    let device = prop_oneof![
        6 => (0i64..4).prop_map(DeviceKey::Accelerator),
        1 => Just(DeviceKey::Mps),
        3 => Just(DeviceKey::Cpu),
        1 => Just(DeviceKey::Disk),
    ];
    let budget = prop_oneof![6 => 0i128..3000, 6 => 0i128..1_000_000, 1 => any::<i64>().prop_map(i128::from)];
    proptest::collection::vec((device, budget.prop_map(Amount::Int)), 0..6).prop_map(|pairs| pairs.into_iter().collect())
}

fn options() -> impl Strategy<Value = InferOptions> {
    let classes = proptest::sample::subsequence(vec!["LlamaDecoderLayer", "ModelForTest", "WithParam", "Linear"], 0..4);
    let dtype = proptest::sample::select(vec![None, Some("float16"), Some("custom_int4"), Some("int8")]);
    (classes, dtype, any::<[bool; 2]>()).prop_map(|(classes, dtype, flags)| InferOptions {
        no_split_module_classes: classes.into_iter().map(str::to_owned).collect(),
        retype: Retype { dtype: dtype.map(|dtype| dtype.parse().unwrap()), special_dtypes: BTreeMap::new() },
        clean_result: false,
        offload_buffers: flags[0],
        fallback_allocation: flags[1],
    })
}

/// Names of one to four components, so that prefixes collide.
fn maps() -> impl Strategy<Value = DeviceMap> {
    let device = prop_oneof![Just(DeviceKey::Accelerator(0)), Just(DeviceKey::Cpu)];
    proptest::collection::vec(("[ab]{1,2}(\\.[ab]{0,2}){0,3}", device), 0..12).prop_map(|entries| entries.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn size_strings_never_panic(text in prop_oneof![
        any::<String>(),
        "[ +-]?[0-9_.einfaEINFA]{0,12} ?([kKmMgGtTıſ][iI]?[bB])?[ b]?",
    ]) {
        if let Ok(bytes) = convert_file_size_to_int(&text) {
            prop_assert!(bytes >= 0, "{text} reads as {bytes}");
        }
    }

    #[test]
    fn every_tensor_gets_one_device_within_its_budget(
        tree in proptest::sample::select(&TREES[..]),
        budgets in budgets(),
        options in options(),
        mode in proptest::sample::select(vec![DeviceMapMode::Auto, DeviceMapMode::Sequential]),
    ) {
        let raw = mode.device_map(&tree, &budgets, &options).unwrap().map;
        // Upstream gives own buffers of split modules no device; parameters all have one.
        for id in tree.nodes().filter(|id| matches!(tree.kind(*id), NodeKind::Parameter { .. })) {
            prop_assert!(raw.device_of(tree.name(id)).is_some(), "{} has no device", tree.name(id));
        }
        for (device, bytes) in ModuleSizes::new(&tree, &options.retype).by_device(&tree, &raw) {
            prop_assert!(device == DeviceKey::Disk || bytes == Amount::ZERO || budgets.get(device) >= Some(bytes), "{device} holds {bytes}");
        }
        let cleaned = mode.device_map(&tree, &budgets, &InferOptions { clean_result: true, ..options.clone() }).unwrap().map;
        prop_assert!(cleaned.len() <= raw.len());
        for id in tree.nodes() {
            if let Some(device) = raw.device_of(tree.name(id)) {
                prop_assert_eq!(cleaned.device_of(tree.name(id)), Some(device), "{}", tree.name(id));
            }
        }
        prop_assert_eq!(clean_device_map(&cleaned).in_order_of(&tree), cleaned);
    }

    #[test]
    fn cleaning_is_what_the_recursion_of_its_definition_does(map in maps()) {
        let mut expected: BTreeMap<String, DeviceKey> = map.iter().map(|(name, device)| (name.to_owned(), device)).collect();
        clean_by_definition(&mut expected, "");
        let cleaned = clean_device_map(&map);
        prop_assert_eq!(cleaned.iter().map(|(name, device)| (name.to_owned(), device)).collect::<BTreeMap<_, _>>(), expected);
    }
}

/// The definition, word for word: slow, and plain to see.
fn clean_by_definition(map: &mut BTreeMap<String, DeviceKey>, name: &str) {
    let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
    let below: Vec<(String, DeviceKey)> =
        map.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(key, device)| (key.clone(), *device)).collect();
    if let [(_, device), _, ..] = below[..]
        && below.iter().all(|(_, other)| *other == device)
    {
        map.retain(|key, _| !key.starts_with(&prefix));
        map.insert(name.to_owned(), device);
    }
    let depth = if name.is_empty() { 1 } else { name.split('.').count() + 1 };
    let children: std::collections::BTreeSet<String> = map
        .keys()
        .filter(|key| key.starts_with(&prefix) && key.len() > name.len())
        .map(|key| key.split('.').take(depth).collect::<Vec<_>>().join("."))
        .collect();
    for child in children {
        clean_by_definition(map, &child);
    }
}
