//! Plans as files: what is written comes back, byte for byte, or is refused.

use std::sync::Arc;

use serde_json::{Value, json};
use tierflow::error::Result;
use tierflow::plan::SavedPlan;

use super::*;
use crate::models;

impl Case {
    /// The plan that `json` holds, within `max_memory`.
    fn replayed(&self, json: &str, max_memory: &BTreeMap<Device, Bytes>) -> Result<Plan> {
        let (catalog, model) = self.model();
        let saved = Some(Arc::new(SavedPlan::from_json(json, "plan.json")?));
        plan(&catalog, &model, &self.devices, &PlanOptions { saved, max_memory: max_memory.clone(), ..PlanOptions::default() })
    }

    fn saved_json(&self, made: &Plan) -> Value {
        let (catalog, model) = self.model();
        made.to_saved_json(&catalog, &model, &self.devices)
    }
}

fn written(made: &Plan) -> String {
    serde_json::to_string(made).expect("plain data")
}

/// Some of everything: an adapter that keeps and streams, from host and disk, and a host that computes.
fn example() -> (Case, Value) {
    let config = ModelConfig { n_layers: 3, ..models::config() };
    let (catalog, model) = models::model(&config, |_| DType::F16);
    let devices = models::devices(Bytes::mib(64), AdapterKind::Discrete, GpuLimits::default(), Bytes::mib(64));
    let assignments =
        [(Device::Gpu(0), Device::Gpu(0)), (Device::Gpu(0), Device::Cpu), (Device::Cpu, Device::Disk), (Device::Gpu(0), Device::Disk)];
    let placement = |(index, unit): (usize, &tierflow::model::Unit)| {
        let (execute_on, stored_on) = if index == 0 { (Device::Cpu, Device::Cpu) } else { assignments[index % assignments.len()] };
        Placement::new(execute_on, vec![stored_on; unit.matrices().count()])
    };
    let placements = model.units.iter().enumerate().map(placement).collect();
    let options = PlanOptions {
        compute_on: vec![Device::Gpu(0), Device::Cpu],
        placement: PlacementRule::Placed(placements),
        ctx_size: Some(64),
        n_seqs: 2,
        ..PlanOptions::default()
    };
    let case = Case { config, dtypes: vec![DType::F16], devices, options };
    let made = plan(&catalog, &model, &case.devices, &case.options).expect("room enough");
    let json = case.saved_json(&made);
    (case, json)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_saved_plan_comes_back_where_its_memory_is_there_and_only_there(case in cases()) {
        let (catalog, model) = case.model();
        let Ok(made) = plan(&catalog, &model, &case.devices, &case.options) else { return Ok(()) };
        let json = case.saved_json(&made).to_string();
        let again = case.replayed(&json, &case.options.max_memory).expect("on the same machine");
        prop_assert_eq!(written(&again), written(&made));
        let with_budget = made.devices.iter().filter(|row| row.budget.is_some());
        let used: BTreeMap<Device, Bytes> = with_budget.map(|row| (row.device, row.used.total())).collect();
        prop_assert_eq!(written(&case.replayed(&json, &used).expect("what it uses is enough")), written(&made));
        for (&own, &bytes) in used.iter().filter(|(_, bytes)| **bytes > Bytes::ZERO) {
            let mut less = used.clone();
            less.insert(own, Bytes(bytes.0 - 1));
            match case.replayed(&json, &less) {
                Err(Error::DoesNotFit { device, needed, available, .. }) => {
                    prop_assert_eq!((device, needed, available), (own.to_string(), bytes, Bytes(bytes.0 - 1)));
                }
                other => prop_assert!(false, "a byte less on {own}: {other:?}"),
            }
        }
    }
}

/// Pointers to every value within `value`.
fn places(value: &Value, place: String, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| places(value, format!("{place}/{key}"), all)),
        Value::Array(list) => list.iter().enumerate().for_each(|(index, value)| places(value, format!("{place}/{index}"), all)),
        _ => {}
    }
    all.push(place);
}

#[test]
fn whatever_stands_in_a_file_it_is_refused_or_a_plan_that_keeps_its_promises() {
    let (case, json) = example();
    let (catalog, model) = case.model();
    let mut all = Vec::new();
    places(&json, String::new(), &mut all);
    let strange = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(1.5),
        json!(1e300),
        json!(255),
        json!(4096),
        json!(u32::MAX),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(""),
        json!("cpu"),
        json!("disk"),
        json!("gpu:0"),
        json!("gpu:4294967295"),
        json!("mapped"),
        json!("\u{1b}[2J"),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"start": 5, "end": 1}),
    ];
    let mut n_refused = 0;
    for place in &all {
        for value in &strange {
            let mut changed = json.clone();
            let there = changed.pointer_mut(place).expect("a place of it");
            if there == value {
                continue;
            }
            *there = value.clone();
            match case.replayed(&changed.to_string(), &BTreeMap::new()) {
                Ok(made) => check(&case, &catalog, &model, &made),
                Err(error) => {
                    assert!(!error.to_string().chars().any(char::is_control), "{place} = {value}: {error}");
                    n_refused += 1;
                }
            }
        }
    }
    // What is left to the writer is what budgets were and where they came from.
    assert!(n_refused * 100 > all.len() * strange.len() * 95, "{n_refused} of {} are refused", all.len() * strange.len());
    let text = json.to_string();
    for n_bytes in (0..text.len()).step_by(97) {
        assert!(case.replayed(&text[..n_bytes], &BTreeMap::new()).is_err(), "cut after {n_bytes} bytes");
    }
    assert!(case.replayed(&"[".repeat(100_000), &BTreeMap::new()).is_err());
}

#[test]
fn a_plan_for_another_model_or_device_is_refused_with_what_differs() {
    let (case, json) = example();
    let text = json.to_string();
    let refusal = |other: &Case| other.replayed(&text, &BTreeMap::new()).unwrap_err().to_string();
    let model = |config: ModelConfig| refusal(&Case { config, ..case.clone() });
    for (config, part) in [
        (ModelConfig { name: "other".into(), ..case.config.clone() }, "`test`, this one `other`"),
        (ModelConfig { n_layers: 4, ..case.config.clone() }, "number of layers `3`, this one `4`"),
        (ModelConfig { tied_embeddings: true, ..case.config.clone() }, "number of tensors"),
        (ModelConfig { ffn_size: 192, ..case.config.clone() }, "size in bytes"),
    ] {
        let refusal = model(config);
        assert!(refusal.contains("was made for another model") && refusal.contains(part), "{refusal}");
    }
    // Of the same size, and yet another.
    let wider = model(ModelConfig { n_heads: 2, n_kv_heads: 1, head_size: 32, ..case.config.clone() });
    assert!(wider.contains("differs at /"), "{wider}");
    let device = |change: fn(&mut DeviceSpec)| {
        let mut other = case.clone();
        change(&mut other.devices[0]);
        refusal(&other)
    };
    for (refusal, part) in [
        (device(|gpu| gpu.name = "other".into()), "gpu:0 was `test gpu:0` and is `other`"),
        (device(|gpu| gpu.kind = Some(AdapterKind::Integrated)), "Integrated"),
        (device(|gpu| gpu.limits = Some(GpuLimits { max_binding_bytes: Bytes::mib(64), ..GpuLimits::default() })), "bindings of 64.0 MiB"),
    ] {
        assert!(refusal.contains("was made for other devices") && refusal.contains(part), "{refusal}");
    }
    let gone = Case { devices: case.devices[1..].to_vec(), ..case.clone() };
    let error = gone.replayed(&text, &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, Error::NoGpu { .. }) && error.to_string().contains("gpu:0 (`test gpu:0`)"), "{error}");
    let mut slow = case.clone();
    slow.devices[0].rates.upload_staged = Some(BytesPerSec(1e9));
    let mapped = text.replace("\"staged\"", "\"mapped\"");
    let refused = slow.replayed(&mapped, &BTreeMap::new()).unwrap_err().to_string();
    assert!(refused.contains("cannot map"), "{refused}");
}

#[test]
fn rates_and_free_memory_of_another_day_do_not_change_a_saved_plan() {
    let (case, json) = example();
    let mut other = case.clone();
    for spec in &mut other.devices {
        spec.rates = Rates { disk_read: Some(BytesPerSec(1e6)), host_copy: Some(BytesPerSec(1e12)), ..Rates::default() };
        spec.rates.matvec = [(DType::F16, BytesPerSec(3e7))].into();
        spec.rates.upload_mapped = Some(BytesPerSec(1e12));
        spec.capacity = spec.capacity.map(|bytes| Bytes(bytes.0 / 2));
        spec.capacity_source = "another day".into();
    }
    let again = other.replayed(&json.to_string(), &BTreeMap::new()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), json["plan"]);
}
