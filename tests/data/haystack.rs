//! Haystack's device vocabulary: every recorded outcome of Haystack's own code is ours too, or stands in a list of
//! differences; the cases of its test suite; and what is written is read back.

use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert_eq, proptest};
use serde_json::{Map, Value, json};
use tierflow::DeviceChoice;
use tierflow::device::haystack::{Available, ComponentDevice, Device, DeviceMap, DeviceType, Existing};
use tierflow::error::Result;

/// Outcomes that differ from Haystack's, each with a part of ours. The reasons stand in the table of the module.
const DIFFERENCES: [(&str, &str); 24] = [
    ("Device.from_str/cuda:007", "Device id must be an integer, got 007"),
    ("Device.from_str/cuda: 1", "Device id must be an integer, got  1"),
    ("Device.from_str/cuda:+1", "Device id must be an integer, got +1"),
    ("Device.from_str/cuda:1_0", "Device id must be an integer, got 1_0"),
    ("Device.from_str/cuda:1:2", "Device id must be an integer, got 1:2"),
    ("ComponentDevice.from_str/cuda/to_spacy", "`cuda` has none; write cuda:0"),
    ("ComponentDevice.from_str/cuda:007", "Device id must be an integer, got 007"),
    ("ComponentDevice.from_str/cuda: 1", "Device id must be an integer, got  1"),
    ("ComponentDevice.from_str/cuda:+1", "Device id must be an integer, got +1"),
    ("ComponentDevice.from_str/cuda:1_0", "Device id must be an integer, got 1_0"),
    ("ComponentDevice.from_str/cuda:1:2", "Device id must be an integer, got 1:2"),
    ("DeviceMap.from_hf/{\"a\":true}", "unexpected device 'true' for 'a'"),
    ("DeviceMap.from_hf/{\"a\":null}", "unexpected device 'null' for 'a'"),
    ("multi/empty first", "the map is empty"),
    ("multi/gpu without id to_hf", "`a`: HuggingFace's maps want the number of a GPU"),
    ("validate/empty", RULED_OUT),
    ("validate/both", RULED_OUT),
    ("validate/empty to_dict", RULED_OUT),
    ("validate/resolve str", RULED_OUT),
    ("validate/from_dict missing", "serialized data without `type`"),
    ("validate/gpu(-1)", RULED_OUT),
    ("validate/frozen", RULED_OUT),
    ("validate/hash Device", "hashed"),
    ("validate/hash CD", RULED_OUT),
];

/// The outcome of what does not compile.
const RULED_OUT: &str = "ruled out by the types";

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/haystack_device.json")).unwrap()
}

#[test]
fn every_outcome_is_haystacks_or_a_listed_difference() {
    let golden = golden();
    let ours = json!({
        "haystack": golden["haystack"],
        "Device.from_str": each(&golden["Device.from_str"], device_from_str),
        "ComponentDevice.from_str": each(&golden["ComponentDevice.from_str"], component_from_str),
        "DeviceMap.from_hf": each(&golden["DeviceMap.from_hf"], |map| map_from_hf(map.clone())),
        // PyTorch's devices come as their texts.
        "DeviceMap.from_hf torch.device": each(&golden["DeviceMap.from_hf torch.device"], |device| map_from_hf(json!({"x": device}))),
        "multi": multi(),
        "update_hf_kwargs": each(&golden["update_hf_kwargs"], update_hf_kwargs),
        "validate": validate(),
    });
    let mut found = Vec::new();
    compare(String::new(), &golden, &ours, &mut found);
    for (path, ours) in &found {
        let listed = DIFFERENCES.iter().any(|(difference, part)| difference == path && ours.contains(part));
        assert!(listed, "{path} differs from Haystack and does not stand in the list: {ours}");
    }
    for (path, _) in DIFFERENCES {
        assert!(found.iter().any(|(difference, _)| difference == path), "{path} stands in the list and does not differ");
    }
}

/// Walks both trees; what differs goes into `found`, with our side as text.
fn compare(path: String, golden: &Value, ours: &Value, found: &mut Vec<(String, String)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}/{key}") };
    match (golden, ours) {
        (Value::Object(outcome), _) if outcome.contains_key("err") => {
            // An error of these classes is a refusal with a text; any other is an accident.
            let is_refusal = outcome["err"] == "ValueError" || outcome["err"] == "TypeError";
            let text = outcome["msg"].as_str().unwrap();
            if !(is_refusal && !text.is_empty() && ours["err"].as_str().is_some_and(|err| err.contains(text))) {
                found.push((path, ours.to_string()));
            }
        }
        (Value::Object(outcome), _) if outcome.contains_key("ok") => match ours.get("ok") {
            Some(ours) => compare(path, &outcome["ok"], ours, found),
            None => found.push((path, ours.to_string())),
        },
        (Value::Object(golden), Value::Object(ours)) if golden.keys().eq(ours.keys()) => {
            golden.iter().for_each(|(key, value)| compare(below(key), value, &ours[key], found));
        }
        (Value::Array(golden), Value::Array(ours)) if golden.len() == ours.len() => {
            for (golden, ours) in golden.iter().zip(ours) {
                let name = golden[0].as_str().map_or_else(|| golden[0].to_string(), str::to_owned);
                compare(below(&name), &golden[1], &ours[1], found);
            }
        }
        _ if golden == ours => {}
        _ => found.push((path, ours.to_string())),
    }
}

/// Pairs of input and outcome, for the inputs of `golden`.
fn each(golden: &Value, outcome: impl Fn(&Value) -> Value) -> Value {
    golden.as_array().unwrap().iter().map(|pair| json!([pair[0], outcome(&pair[0])])).collect()
}

fn outcome<T: Into<Value>>(result: Result<T>) -> Value {
    match result {
        Ok(value) => json!({"ok": value.into()}),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{error}");
            json!({"err": error.to_string()})
        }
    }
}

fn device_from_str(text: &Value) -> Value {
    let device = text.as_str().unwrap().parse::<Device>();
    outcome(device.map(|device| json!({"type": device.device_type, "id": device.id, "str": device.to_string()})))
}

fn component_from_str(text: &Value) -> Value {
    let forms = |device: ComponentDevice| {
        json!({
            "to_dict": device,
            "to_torch_str": outcome(device.to_torch_str()),
            "to_hf": outcome(device.to_hf()),
            "to_spacy": outcome(device.to_spacy()),
            "to_torch": outcome(device.to_torch_str()),
            "has_multiple": device.has_multiple_devices(),
        })
    };
    outcome(text.as_str().unwrap().parse().map(forms))
}

fn map_from_hf(map: Value) -> Value {
    outcome(DeviceMap::from_hf(map.as_object().unwrap()).map(|map| map.to_dict()))
}

fn layers() -> ComponentDevice {
    let layers = [("layer1", Device::cpu()), ("layer2", Device::gpu(1)), ("layer3", Device::disk())];
    ComponentDevice::from_multiple(layers.into_iter().collect())
}

fn on(device: &str) -> ComponentDevice {
    ComponentDevice::from_multiple([("a", device.parse().unwrap())].into_iter().collect())
}

fn multi() -> Value {
    let empty = ComponentDevice::from_multiple(DeviceMap::default());
    json!({
        "to_dict": layers(),
        "to_hf": layers().to_hf().unwrap(),
        "first_device": layers().first_device().unwrap(),
        "first_is_disk": outcome(on("disk").first_device().map(Map::from)),
        "empty first": outcome(empty.first_device().map(Map::from)),
        "empty to_hf": outcome(empty.to_hf()),
        "gpu without id to_hf": outcome(on("cuda").to_hf()),
        "to_torch": outcome(layers().to_torch_str()),
        "to_torch_str": outcome(layers().to_torch_str()),
        "to_spacy": outcome(layers().to_spacy()),
    })
}

fn update_hf_kwargs(case: &Value) -> Value {
    let single = || ComponentDevice::from_single(Device::gpu(1)).unwrap();
    let (device, kwargs, existing) = match case.as_str().unwrap() {
        "single,{} ,False" => (single(), json!({}), Existing::Keep),
        "single,{device:0},False" => (single(), json!({"device": 0}), Existing::Keep),
        "single,{device:0},True" => (single(), json!({"device": 0}), Existing::Overwrite),
        "single,{device_map:auto},False" => (single(), json!({"device_map": "auto"}), Existing::Keep),
        "single,{device_map:auto},True (both keys stay)" => (single(), json!({"device_map": "auto"}), Existing::Overwrite),
        "multi,{},False" => (layers(), json!({}), Existing::Keep),
        other => panic!("no such case: {other}"),
    };
    let mut kwargs = kwargs.as_object().unwrap().clone();
    outcome(device.update_hf_kwargs(&mut kwargs, existing).map(|()| kwargs))
}

fn validate() -> Value {
    let from_dict = |dict: Value| outcome(ComponentDevice::from_dict(dict.as_object().unwrap()).map(Map::from));
    let devices: std::collections::HashSet<Device> = [Device::gpu(0), Device::gpu(0)].into();
    assert_eq!(devices.len(), 1);
    json!({
        "empty": RULED_OUT,
        "both": RULED_OUT,
        "empty to_dict": RULED_OUT,
        "disk single": outcome(ComponentDevice::from_single(Device::disk()).map(Map::from)),
        "resolve str": RULED_OUT,
        "resolve None": {"ok": ComponentDevice::resolve_device(None, &Available::default())},
        "from_dict bad": from_dict(json!({"type": "x"})),
        "from_dict missing": from_dict(json!({})),
        "from_dict single": from_dict(json!({"type": "single", "device": "cuda:0"})),
        "from_dict multi": from_dict(json!({"type": "multiple", "device_map": {"a": "cuda:0", "b": "disk"}})),
        "gpu(-1)": RULED_OUT,
        "DeviceType tpu": outcome("tpu".parse::<DeviceType>().map(String::from)),
        "frozen": RULED_OUT,
        "hash Device": "hashed",
        "hash CD": RULED_OUT,
        "eq gpu() == gpu(0)": Device::gpu(0) == "cuda:0".parse().unwrap(),
        "eq cuda == cuda:0": "cuda".parse::<Device>().unwrap() == Device::gpu(0),
    })
}

/// The cases of Haystack's own test suite.
mod cases {
    use super::*;

    fn invalid<T>(result: Result<T>) -> String {
        result.err().expect("a refusal").to_string()
    }

    #[test]
    fn device_types_round_trip() {
        for device_type in DeviceType::ALL {
            assert_eq!(device_type.to_string().parse::<DeviceType>().unwrap(), device_type);
        }
        assert!(invalid("tpu".parse::<DeviceType>()).contains("Unknown device type string"));
    }

    #[test]
    fn constructors_have_the_types_of_their_names() {
        let numbered = |device_type| Device { device_type, id: Some(0) };
        for (text, device, device_type) in [
            ("cpu", Device::cpu(), DeviceType::Cpu),
            ("cuda:1", Device::gpu(1), DeviceType::Gpu),
            ("disk", Device::disk(), DeviceType::Disk),
            ("mps", Device::mps(), DeviceType::Mps),
            ("xpu", Device::xpu(), DeviceType::Xpu),
            ("mps:0", numbered(DeviceType::Mps), DeviceType::Mps),
            ("xpu:0", numbered(DeviceType::Xpu), DeviceType::Xpu),
        ] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.device_type, device_type);
        }
        assert!(invalid("cuda:-1".parse::<Device>()).contains("Device id must be >= 0"));
    }

    #[test]
    fn device_maps_are_dictionaries_with_an_order() {
        let mut map: DeviceMap = [("layer1", Device::gpu(0)), ("layer2", Device::cpu()), ("layer3", Device::disk())].into_iter().collect();
        assert!(map.contains("layer1") && !map.contains("layer4"));
        assert_eq!((map.len(), map.get("layer2"), map.get("layer4")), (3, Some(Device::cpu()), None));
        assert_eq!(map.iter().map(|(name, device)| format!("{name}={device}")).collect::<String>(), "layer1=cuda:0layer2=cpulayer3=disk");
        let hf = json!({"layer1": 0, "layer2": "cpu", "layer3": "disk"});
        assert_eq!(DeviceMap::from_hf(hf.as_object().unwrap()).unwrap(), map);
        assert!(invalid(DeviceMap::from_hf(json!({"layer1": 0.1}).as_object().unwrap())).contains("unexpected device"));
        assert_eq!(map.first_device(), Some(Device::gpu(0)));
        map.insert("layer0", Device::cpu());
        assert_eq!(map.first_device(), Some(Device::gpu(0)));
        map.insert("layer1", Device::gpu(2));
        assert_eq!((map.first_device(), map.len()), (Some(Device::gpu(2)), 4));
        assert_eq!(DeviceMap::default().first_device(), None);
    }

    #[test]
    fn serialised_data_can_be_neither_empty_nor_ambiguous() {
        assert!(serde_json::from_value::<ComponentDevice>(json!({})).is_err());
        assert!(serde_json::from_value::<ComponentDevice>(Value::Null).is_err());
        // As in Haystack, the type decides which of two keys is read.
        let both = json!({"type": "single", "device": "cpu", "device_map": {}});
        assert_eq!(serde_json::from_value::<ComponentDevice>(both).unwrap(), "cpu".parse().unwrap());
    }

    #[test]
    fn a_single_device_converts_to_every_form() {
        let device = ComponentDevice::from_single(Device::gpu(1)).unwrap();
        assert!(!device.has_multiple_devices());
        assert_eq!(device.to_torch_str().unwrap(), "cuda:1");
        assert_eq!(device.to_spacy().unwrap(), 1);
        assert_eq!(device.to_hf().unwrap(), "cuda:1");
        assert_eq!(device.first_device().unwrap(), device);
        for (kwargs, existing) in [(json!({}), Existing::Keep), (json!({"device": 0}), Existing::Overwrite)] {
            let mut kwargs = kwargs.as_object().unwrap().clone();
            device.update_hf_kwargs(&mut kwargs, existing).unwrap();
            assert_eq!(Value::Object(kwargs), json!({"device": "cuda:1"}));
        }
        assert!(invalid(ComponentDevice::from_single(Device::disk())).contains("disk device can only be used"));
    }

    #[test]
    fn a_device_map_converts_to_huggingfaces_form_only() {
        let device = layers();
        assert!(device.has_multiple_devices());
        assert!(invalid(device.to_torch_str()).contains("Only single devices can be converted to PyTorch format"));
        assert!(invalid(device.to_spacy()).contains("Only single devices can be converted to spaCy format"));
        let hf = json!({"layer1": "cpu", "layer2": 1, "layer3": "disk"});
        assert_eq!(device.to_hf().unwrap(), hf);
        for (kwargs, existing) in [(json!({}), Existing::Keep), (json!({"device_map": "auto"}), Existing::Overwrite)] {
            let mut kwargs = kwargs.as_object().unwrap().clone();
            device.update_hf_kwargs(&mut kwargs, existing).unwrap();
            assert_eq!(Value::Object(kwargs), json!({"device_map": hf}));
        }
        assert_eq!(device.first_device().unwrap(), ComponentDevice::from_single(Device::cpu()).unwrap());
    }

    #[test]
    fn the_default_is_the_best_device_that_is_there_and_not_switched_off() {
        use DeviceType::{Cpu, Gpu, Mps, Xpu};
        let all = [Cpu, Gpu, Mps, Xpu];
        for (types, switched_off, expected) in [
            (&all[..], "", Device::gpu(0)),
            (&[Gpu], "", Device::gpu(0)),
            (&[Xpu], "", Device::xpu()),
            (&[Xpu, Mps], "", Device::xpu()),
            (&[Mps], "", Device::mps()),
            (&[], "", Device::cpu()),
            (&[Mps], "HAYSTACK_MPS_ENABLED=false", Device::cpu()),
            (&[Xpu], "HAYSTACK_XPU_ENABLED=false", Device::cpu()),
            (&[Xpu, Mps], "HAYSTACK_XPU_ENABLED=false", Device::mps()),
            (&[Mps], "HAYSTACK_XPU_ENABLED=false", Device::mps()),
            (&[Mps], "HAYSTACK_MPS_ENABLED=False", Device::mps()),
            (&[Mps], "HAYSTACK_MPS_ENABLED=0", Device::mps()),
            (&all, "HAYSTACK_CUDA_ENABLED=false", Device::gpu(0)),
        ] {
            let variable = |name: &str| switched_off.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            let available = Available::new(types.iter().copied()).without_switched_off(variable);
            let resolved = ComponentDevice::resolve_device(None, &available);
            assert_eq!(resolved.single(), Some(expected), "{types:?} {switched_off}");
            assert_eq!(ComponentDevice::resolve_device(Some(layers()), &available), layers());
        }
    }
}

fn devices() -> impl Strategy<Value = Device> {
    (proptest::sample::select(DeviceType::ALL.to_vec()), any::<Option<u32>>()).prop_map(|(device_type, id)| Device { device_type, id })
}

fn maps() -> impl Strategy<Value = DeviceMap> {
    let name = proptest::string::string_regex("[a-z.\"\\\\ ü]{0,3}").unwrap();
    proptest::collection::vec((name, devices()), 0..8).prop_map(|pairs| pairs.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn devices_are_read_as_they_are_written(device in devices()) {
        prop_assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        prop_assert_eq!(serde_json::from_value::<Device>(json!(device)).unwrap(), device);
        if let Ok(component) = ComponentDevice::from_single(device) {
            prop_assert_eq!(serde_json::from_value::<ComponentDevice>(json!(component)).unwrap(), component.clone());
            prop_assert_eq!(component.to_string().parse::<ComponentDevice>().unwrap(), component);
        }
        if let Ok(choice) = DeviceChoice::try_from(device) {
            prop_assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
    }

    #[test]
    fn maps_are_read_as_they_are_written(map in maps()) {
        let read: DeviceMap = serde_json::from_str(&serde_json::to_string(&map).unwrap()).unwrap();
        prop_assert_eq!(read.iter().collect::<Vec<_>>(), map.iter().collect::<Vec<_>>());
        let component = ComponentDevice::from_multiple(map.clone());
        prop_assert_eq!(serde_json::from_str::<ComponentDevice>(&serde_json::to_string(&component).unwrap()).unwrap(), component.clone());
        if let Ok(hf) = component.to_hf() {
            prop_assert_eq!(DeviceMap::from_hf(hf.as_object().unwrap()).unwrap(), map);
        }
    }

    #[test]
    fn what_is_read_is_written_the_same(text in "(cpu|cuda|gpu|disk|mps|xpu|tpu|)(:|)[-+0-9_ :a]{0,4}") {
        if let Ok(device) = text.parse::<Device>() {
            prop_assert_eq!(device.to_string(), text);
        }
    }
}
