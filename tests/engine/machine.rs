//! The machine as data: what is measured, what is kept, and the description of a machine that is not here.

use std::path::{Path, PathBuf};

use crate::common::program::{Home, has_gpu};
use serde_json::{Value, json};
use tierflow::device::{AdapterKind, Aspect, Device, DeviceSpec, GpuLimits, Origin, Rates};
use tierflow::dtype::DType;
use tierflow::error::Error;
use tierflow::machine::{DevicesFile, read_devices_file};
use tierflow::units::{Bytes, BytesPerSec};
use xtask::models::GgufType;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/devices/rx7600-16gb.json")
}

#[test]
fn every_example_is_read_and_describes_its_machine() {
    let folder = std::fs::read_dir(example().parent().unwrap()).unwrap();
    let files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("json".as_ref())).collect();
    assert!(!files.is_empty());
    for file in files {
        let devices = read_devices_file(&file).unwrap();
        assert!(devices.iter().all(|spec| !spec.rates.is_empty() && spec.rates.origin == Origin::Measured), "{}", file.display());
    }
    let devices = read_devices_file(&example()).unwrap();
    assert_eq!(devices.iter().map(|spec| spec.device).collect::<Vec<_>>(), [Device::Gpu(0), Device::Cpu, Device::Disk]);
    let gpu = &devices[0];
    assert_eq!((gpu.kind, gpu.capacity), (Some(AdapterKind::Discrete), Some(Bytes::gib(7))));
    assert_eq!(gpu.rates.matvec_of(DType::F16), Some(BytesPerSec(230e9)));
    let limits = gpu.limits.unwrap();
    assert_eq!((limits.max_binding_bytes, limits.max_workgroups), (Bytes::gib(2), GpuLimits::default().max_workgroups));
}

#[test]
fn a_written_file_is_read_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("devices.json");
    let mut devices = read_devices_file(&example()).unwrap();
    devices.push(DeviceSpec { device: Device::Gpu(1), limits: Some(GpuLimits::default()), rates: Rates::default(), ..devices[0].clone() });
    devices.sort_by_key(|spec| spec.device);
    let features = [(Device::Gpu(0), vec!["SHADER_F16".to_owned()])].into();
    std::fs::write(&path, serde_json::to_vec(&DevicesFile::new(devices.clone(), features)).unwrap()).unwrap();
    assert_eq!(read_devices_file(&path).unwrap(), devices);
}

/// What is said of the example after `change`.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut value: Value = serde_json::from_slice(&std::fs::read(example()).unwrap()).unwrap();
    change(&mut value);
    refusal_of_text(&value.to_string())
}

fn refusal_of_text(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let error = read_devices_file(file.path()).expect_err(text);
    assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
    error.to_string()
}

#[test]
fn descriptions_that_make_no_sense_are_refused_by_name() {
    let set = |pointer: &'static str, value: Value| {
        move |file: &mut Value| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            file.pointer_mut(parent).unwrap()[key] = value;
        }
    };
    let cases: [(&'static str, Value, &str); 17] = [
        ("/schema", json!("tierflow.devices/2"), "tierflow.devices/1"),
        ("/schema", Value::Null, "write it anew"),
        ("/more", json!(1), "unknown field `more`"),
        ("/devices/0/speed", json!(1), "unknown field `speed`"),
        ("/devices/0/rates/matvec_f16", json!(1), "unknown field `matvec_f16`"),
        ("/devices/0/rates/matvec", json!({ "NVFP4": 1 }), "NVFP4"),
        ("/devices/0/rates/matvec", json!({ "Q4_0": 0 }), "gpu:0: matvec.Q4_0 is 0"),
        ("/devices/0/rates/dispatch_secs", json!(-1e-6), "gpu:0: dispatch_secs is -0.000001"),
        ("/devices/2/rates/disk_read", json!("fast"), "invalid type"),
        ("/devices/0/capacity", json!("plenty"), "`plenty` is not a size"),
        ("/devices/0/capacity", json!(0), "gpu:0 needs a capacity"),
        ("/devices/1/capacity", Value::Null, "cpu needs a capacity"),
        ("/devices/2/capacity", json!("1TB"), "disk has no capacity"),
        ("/devices/0/kind", Value::Null, "gpu:0 needs a kind"),
        ("/devices/1/kind", json!("discrete"), "cpu has no kind"),
        ("/devices/0/device", json!("gpu:1"), "gpu:0 is missing"),
        ("/devices/0/limits/storage_alignment", json!(48), "storage_alignment is 48"),
    ];
    for (pointer, value, part) in cases {
        let said = refusal(set(pointer, value.clone()));
        assert!(said.contains(part), "{pointer} = {value}: {said}");
    }
    let duplicate =
        |index: usize| move |file: &mut Value| file["devices"].as_array_mut().map(|list| list.push(list[index].clone())).unwrap();
    for (index, name) in [(0, "gpu:0"), (1, "cpu"), (2, "disk")] {
        assert!(refusal(duplicate(index)).contains(&format!("{name} is described twice")));
    }
    assert!(refusal(|file| drop(file["devices"].as_array_mut().unwrap().remove(1))).contains("has no cpu"));
    assert!(refusal_of_text("{").contains("no description of a machine"));
    assert!(
        refusal_of_text(r#"{"schema": "tierflow.devices/1", "devices": [{"device": "disk", "name": "d", "rates": {"disk_read": 1e999}}]}"#)
            .contains("number")
    );
    assert!(matches!(read_devices_file(Path::new("/nonexistent/devices.json")), Err(Error::Io { .. })));
}

#[test]
fn a_machine_without_a_gpu_or_disk_can_be_described() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{"schema": "tierflow.devices/1", "devices": [{"device": "cpu", "name": "c", "capacity": "8GiB"}]}"#)
        .unwrap();
    let devices = read_devices_file(file.path()).unwrap();
    assert_eq!(devices.iter().map(|spec| spec.device).collect::<Vec<_>>(), [Device::Cpu, Device::Disk]);
    assert_eq!(devices[0].capacity, Some(Bytes::gib(8)));
    assert!(devices.iter().all(|spec| spec.rates.is_empty()));
}

/// The rates of `device` in what `tierflow devices --json` prints.
fn rates(described: &Value, device: &str) -> Rates {
    let devices = described["devices"].as_array().unwrap();
    let spec = devices.iter().find(|spec| spec["device"] == device).unwrap_or_else(|| panic!("no {device} in {described}"));
    serde_json::from_value(spec["rates"].clone()).unwrap()
}

#[test]
fn what_is_printed_is_read_back_and_measured_rates_are_kept() {
    let home = Home::new();
    let unmeasured = home.json("tierflow.devices/1", &["devices", "--json"]);
    assert!(rates(&unmeasured, "cpu").is_empty() && rates(&unmeasured, "disk").is_empty());
    assert!(home.stdout(&["devices"]).contains("  rates not measured yet: run `tierflow devices --measure`\n"));

    // Measures what is not known, quickly.
    home.stdout(&["doctor"]);
    let printed = home.stdout(&["devices", "--json"]);
    let described: Value = serde_json::from_str(&printed).unwrap();
    let (host, disk) = (rates(&described, "cpu"), rates(&described, "disk"));
    assert_eq!([host.matvec.len(), host.matmul.len()], [DType::ALL.len(); 2]);
    assert!(disk.disk_read.is_some() && host.host_copy.is_some() && host.measured_at.is_some());
    let table = home.stdout(&["devices", "-v"]);
    assert!(table.contains("measured ") && table.contains("MATRIX × VECTOR") && table.contains("GFLOP/s"), "{table}");

    let file = home.path("devices.json");
    std::fs::write(&file, &printed).unwrap();
    let read = read_devices_file(&file).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), described["devices"]);

    // A cache of another version is measured anew, not believed and not refused.
    let cache = home.path("cache").join("rates.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&cache).unwrap()).unwrap();
    kept["version"] = 1.into();
    std::fs::write(&cache, kept.to_string()).unwrap();
    assert!(rates(&home.json("tierflow.devices/1", &["devices", "--json"]), "cpu").is_empty());
}

#[test]
fn the_first_plan_for_an_adapter_measures_it_and_the_second_does_not() {
    if !has_gpu() {
        return;
    }
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q4_1);
    home.stdout(&["plan", &model, "--device", "gpu", "--no-measure=no"]);

    let kept = || rates(&home.json("tierflow.devices/1", &["devices", "--json"]), "gpu:0");
    let rates = kept();
    for (name, value) in rates.figures() {
        assert!(value.is_finite() && value > 0.0, "{name} is {value}");
    }
    // Attention computes in single precision.
    let of_model = [DType::F32, DType::Q4_1];
    assert!(rates.matvec.keys().eq(&of_model) && rates.matmul.keys().eq(&of_model), "{rates:?}");
    assert!(rates.expert_matvec.keys().eq(&of_model), "{rates:?}");
    assert!(rates.upload().is_some() && rates.readback.is_some() && rates.dispatch_secs.is_some());
    assert!(rates.submit_secs.is_some() && rates.round_trip_secs.is_some() && rates.shader_compile_secs.is_some());

    // A search for the fastest kernels that its time did not suffice for goes on with the next plan; nothing else is measured again.
    let mut rates = rates;
    for _ in 0..4 {
        home.stdout(&["plan", &model, "--device", "gpu", "--no-measure=no"]);
        let next = kept();
        assert_eq!(Rates { variants: rates.variants.clone(), ..next.clone() }, rates, "the second plan measures nothing");
        if std::mem::replace(&mut rates, next) == rates {
            break;
        }
    }

    let other = home.gguf_model(GgufType::Q8_0);
    home.stdout(&["plan", &other, "--device", "gpu", "--no-measure=no"]);
    let with_other = kept();
    assert!(with_other.matvec.keys().eq(&[DType::F32, DType::Q8_0, DType::Q4_1]), "{with_other:?}");
    let mut others = with_other.clone();
    assert!(others.matvec.remove(&DType::Q8_0).is_some() && others.matmul.remove(&DType::Q8_0).is_some());
    assert!(others.expert_matvec.remove(&DType::Q8_0).is_some());
    assert_eq!(Rates { variants: rates.variants.clone(), ..others }, rates, "what is known is not measured again");
    assert!(rates.variants.decode.iter().all(|(dtype, variant)| with_other.variants.decode.get(dtype) == Some(variant)), "{with_other:?}");
}

#[test]
fn an_adapter_that_seems_slow_is_given_less_at_a_time_and_answers_the_same() {
    if !has_gpu() {
        return;
    }
    let home = Home::new();
    let model = home.larger_model();
    home.stdout(&["plan", &model, "--device", "gpu", "--no-measure=no"]);
    let tokens: Vec<String> = (0..200).map(|index| (index * 7 % 250 + 3).to_string()).collect();
    let tokens = tokens.join(",");
    let scores = |name: &str| {
        let out = home.path(name);
        let sizes = ["-c", "1024", "--ubatch-size", "256"];
        home.stdout(&[&["logits", &model, "--device", "gpu", "--tokens", &tokens, "--out", out.to_str().unwrap()], &sizes[..]].concat());
        std::fs::read(out).unwrap()
    };
    let n_submissions = |name: &str| {
        let trace = home.path(name);
        let sizes = ["-p", "200", "-n", "0", "-r", "1", "-c", "1024", "--ubatch-size", "256"];
        home.stdout(&[&["bench", &model, "--device", "gpu", "--trace", trace.to_str().unwrap()], &sizes[..]].concat());
        let trace: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap().iter();
        events.filter(|event| event["ph"] == "X" && event["args"]["lane"] == "compute").count()
    };
    let (at_once, n_at_once) = (scores("at_once.safetensors"), n_submissions("at_once.json"));

    let cache = home.path("cache").join("rates.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&cache).unwrap()).unwrap();
    for rates in kept["rates"].as_object_mut().unwrap().values_mut() {
        rates["matmul"]["F32"] = json!(1e6);
    }
    std::fs::write(&cache, kept.to_string()).unwrap();
    let (cut, n_cut) = (scores("cut.safetensors"), n_submissions("cut.json"));
    assert!(at_once == cut, "the bits differ");
    // Each of the seven products of six layers is submitted by itself. What attention makes of it depends on rates that were measured.
    assert!(n_at_once < n_cut && n_cut >= 6 * 7, "{n_at_once} submissions, then {n_cut}");
}

#[test]
fn runs_correct_the_rates_of_the_threads_that_compute_and_unusual_ones_do_not() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q4_1);
    let answer = |options: &[&str]| {
        let run =
            ["run", &model, "--raw", "-p", "to be or not to be, that is what is asked for here", "-n", "12", "--ignore-eos", "--json"];
        home.json("tierflow.run/1", &[&run[..], &["--device", "cpu"], options].concat())
    };
    let kept = || -> Value { serde_json::from_slice(&std::fs::read(home.path("cache").join("rates.json")).unwrap()).unwrap() };
    let of_threads = |kept: &Value, n_threads: usize| {
        let host = kept["rates"]
            .as_object()
            .unwrap()
            .iter()
            .find(|(key, _)| key.starts_with("cpu ") && key.contains(&format!(" {n_threads} thread")));
        host.map(|(_, rates)| serde_json::from_value::<Rates>(rates.clone()).unwrap())
    };
    home.stdout(&["plan", &model, "--device", "cpu", "--no-measure=no", "-t", "1"]);
    let measured = of_threads(&kept(), 1).expect("one thread was measured");
    assert!(measured.corrections.is_empty() && !measured.matvec.is_empty());

    answer(&["-t", "1", "--no-measure=no", "--kernels", "portable"]);
    answer(&["-t", "1"]);
    assert_eq!(of_threads(&kept(), 1), Some(measured.clone()), "neither forbidden kernels nor --no-measure correct anything");

    for n_runs in 1..=2 {
        let statistics = answer(&["-t", "1", "--no-measure=no"])["statistics"].clone();
        assert!(statistics["predicted"]["decode_rate"].as_f64().unwrap() > 0.0, "{statistics}");
        let corrected = of_threads(&kept(), 1).unwrap();
        let decode = &corrected.corrections[&Aspect::Decode(DType::Q4_1)];
        assert!((1..=n_runs).contains(&decode.n_runs()) && (1.0 / 16.0..=16.0).contains(&decode.factor()), "{decode:?}");
        assert_eq!(Rates { corrections: Default::default(), ..corrected }, measured, "what was measured stays as it is");
    }
    assert!(home.stdout(&["devices", "-v"]).contains("measured"));
    if std::thread::available_parallelism().is_ok_and(|n_threads| n_threads.get() == 2) {
        assert_eq!(of_threads(&kept(), 2), None, "two threads were not measured");
    }
}
