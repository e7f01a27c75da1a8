//! `tierflow devices`: every adapter, host memory and disk, with the limits that matter and the rates that were measured.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::args::DevicesArgs;
use crate::cli::terminal::{Align, print_json, print_report, table};
use crate::device::{AdapterKind, Aspect, Correction, Device, DeviceSpec, Phase, Rates};
use crate::dtype::DType;
use crate::error::Result;
use crate::machine::{self, DevicesFile, Measure};
use crate::units::{BytesPerSec, millis, three_digits};

/// How much of the rates is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// A line per device.
    Summary,
    /// The products of each dtype as well.
    PerDType,
}

/// Prints a table with advice, or the JSON that `--devices` reads.
///
/// # Errors
/// Those of asking the drivers and of measuring.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let measure = match (args.tune, args.measure) {
        (true, _) => Measure::Tune,
        (false, true) => Measure::Full,
        (false, false) => Measure::Never,
    };
    let found = pollster::block_on(machine::list(measure))?;
    if args.json {
        return print_json(&found);
    }
    let detail = if measure != Measure::Never || args.verbose { Detail::PerDType } else { Detail::Summary };
    print_report(&report(&found, detail))
}

/// Table, what each device is and how fast, and advice.
pub(super) fn report(found: &DevicesFile, detail: Detail) -> String {
    let columns = [
        ("DEVICE", Align::Left),
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("USABLE", Align::Right),
        ("MAX BUFFER", Align::Right),
        ("MAX BINDING", Align::Right),
    ];
    let mut text = table(&columns, &found.devices.iter().map(row).collect::<Vec<_>>());
    for spec in &found.devices {
        let mut lines = Vec::new();
        if !spec.capacity_source.is_empty() {
            lines.push(format!("{}; usable is {}", spec.driver, spec.capacity_source));
        }
        if let Some(features) = found.features.get(&spec.device).filter(|features| !features.is_empty()) {
            lines.push(format!("features {}", features.join(", ")));
        }
        lines.push(rates_in_words(&spec.rates));
        for (index, line) in lines.iter().enumerate() {
            let device = if index == 0 { spec.device.to_string() } else { String::new() };
            text.push_str(&format!("{device:<6}  {line}\n"));
        }
    }
    if detail == Detail::PerDType {
        text.push_str(&products(&found.devices));
    }
    text.push_str(advice(&found.devices));
    text
}

fn row(spec: &DeviceSpec) -> Vec<String> {
    let kind = match (spec.device, spec.kind) {
        (_, Some(AdapterKind::Discrete)) => "discrete GPU",
        (_, Some(AdapterKind::Integrated)) => "integrated GPU",
        (_, Some(AdapterKind::Virtual)) => "virtual GPU",
        (_, Some(AdapterKind::Software)) => "software",
        (Device::Cpu, _) => "host",
        (Device::Disk, _) => "disk",
        _ => "GPU",
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    vec![
        spec.device.to_string(),
        spec.name.clone(),
        kind.into(),
        or_dash(spec.capacity.map(|bytes| bytes.to_string())),
        or_dash(spec.limits.map(|limits| limits.max_buffer_bytes.to_string())),
        or_dash(spec.limits.map(|limits| limits.max_binding_bytes.to_string())),
    ]
}

/// The rates in a line, with the products of one dtype for all: F16, or the first that was measured.
fn rates_in_words(rates: &Rates) -> String {
    if rates.is_empty() {
        return "rates not measured yet: run `tierflow devices --measure`".into();
    }
    let rate = |name: &str, rate: Option<BytesPerSec>| rate.map(|rate| format!("{name} {rate}"));
    let micros = |name: &str, secs: Option<f64>| secs.map(|secs| format!("{name} {} µs", three_digits(secs * 1e6)));
    let shown = if rates.matvec.contains_key(&DType::F16) { Some(DType::F16) } else { rates.matvec.keys().next().copied() };
    let shown = shown.unwrap_or(DType::F16);
    let parts = [
        rate("upload mapped", rates.upload_mapped),
        rate("upload staged", rates.upload_staged),
        rate("upload written", rates.upload_written),
        rate("readback", rates.readback),
        rate("copy", rates.host_copy),
        rate("read", rates.disk_read),
        rate("matrix × vector", rates.matvec_of(shown)),
        rates.matmul_of(shown).map(|flops| format!("matrix × matrix {} (both {shown})", flops_text(flops))),
        micros("request", rates.disk_request_secs),
        micros("operation", rates.dispatch_secs),
        micros("submission", rates.submit_secs),
        micros("round trip", rates.round_trip_secs),
        rates.shader_compile_secs.map(|secs| format!("shader {}", millis(secs))),
    ];
    let since = rates.measured_at.map(|at| format!(" {}", age(at))).unwrap_or_default();
    let busy = if rates.n_disturbed > 0 { " on a busy machine" } else { "" };
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("{}; {}{since}{busy}{}", parts.join(", "), rates.origin, corrections(rates))
}

/// By how much runs have corrected the rates, how many of them count, how far half of these lie from that, and when the last one was.
fn corrections(rates: &Rates) -> String {
    let in_words = |(aspect, correction): (&Aspect, &Correction)| {
        let runs = match correction.n_runs() {
            1 => "1 run".to_owned(),
            n_runs => format!("{n_runs} runs ± {:.0} %", correction.spread() * 100.0),
        };
        let since = correction.last_at().map(|at| format!(", {}", age(at))).unwrap_or_default();
        format!("{aspect} × {} ({runs}{since})", three_digits(correction.factor()))
    };
    let all: Vec<String> = rates.corrections.iter().map(in_words).collect();
    if all.is_empty() { String::new() } else { format!("; corrected by runs: {}", all.join(", ")) }
}

fn flops_text(flops: f64) -> String {
    format!("{} GFLOP/s", three_digits(flops / 1e9))
}

/// How long ago a time was, in its largest unit.
fn age(at: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(at, |since| since.as_secs());
    let secs = now.saturating_sub(at);
    match [(86_400, "day"), (3600, "hour"), (60, "minute")].into_iter().find(|(unit, _)| secs >= *unit) {
        Some((unit, name)) => format!("{} {name}{} ago", secs / unit, if secs / unit == 1 { "" } else { "s" }),
        None => "just now".into(),
    }
}

/// The products of each dtype on each device that was measured, with the kernels that adapters take for them.
fn products(devices: &[DeviceSpec]) -> String {
    let mut rows = Vec::new();
    for spec in devices {
        for dtype in DType::ALL {
            let (matvec, matmul) = (spec.rates.matvec.get(&dtype), spec.rates.matmul.get(&dtype));
            if matvec.is_some() || matmul.is_some() {
                let matvec = matvec.map_or_else(|| "–".into(), ToString::to_string);
                let matmul = matmul.map_or_else(|| "–".into(), |flops| flops_text(*flops));
                let variant = |phase| spec.rates.variants.of(dtype, phase).map_or_else(|| "–".into(), |variant| variant.to_string());
                let [decode, prefill] = [Phase::Decode, Phase::Prefill].map(variant);
                let experts = spec.rates.expert_matvec.get(&dtype).map_or_else(|| "–".into(), ToString::to_string);
                rows.push(vec![spec.device.to_string(), dtype.to_string(), matvec, decode, experts, matmul, prefill]);
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let columns = [
        ("DEVICE", Align::Left),
        ("WEIGHTS", Align::Left),
        ("MATRIX × VECTOR", Align::Right),
        ("KERNEL", Align::Left),
        ("EXPERTS", Align::Right),
        ("MATRIX × MATRIX", Align::Right),
        ("KERNEL", Align::Left),
    ];
    table(&columns, &rows)
}

fn advice(devices: &[DeviceSpec]) -> &'static str {
    let adapters = || devices.iter().filter_map(|spec| spec.kind);
    if adapters().next().is_none() {
        "No adapter was found. Models run on the host (--device cpu). For a GPU, install its Vulkan driver \
         (on Debian: mesa-vulkan-drivers; it also brings a software adapter).\n"
    } else if adapters().all(|kind| kind == AdapterKind::Software) {
        "Only a software adapter was found: it runs on the host's cores and is used only by name (--device gpu, or a budget for gpu:0).\n"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Sample;

    #[test]
    fn corrections_stand_behind_the_rates_with_what_they_rest_on() {
        let mut correction = Correction::by(1.25);
        let mut rates = Rates { disk_read: Some(BytesPerSec(1e9)), ..Rates::default() };
        assert_eq!(corrections(&rates), "");
        rates.corrections.insert(Aspect::Read, correction.clone());
        assert!(rates_in_words(&rates).ends_with("; measured; corrected by runs: read × 1.25 (1 run)"), "{}", rates_in_words(&rates));
        correction.add(Sample { factor: 1.25, waited: 0.0, at: Some(1) });
        rates.corrections.insert(Aspect::Read, correction);
        rates.n_disturbed = 1;
        let words = rates_in_words(&rates);
        assert!(words.contains("measured on a busy machine; corrected by runs: read × 1.25 (2 runs ± 0 %, "), "{words}");
    }

    #[test]
    fn ages_are_reported_in_their_largest_unit() {
        let ago = |secs: u64| age(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - secs);
        assert_eq!([ago(1), ago(60), ago(7300), ago(259_300)], ["just now", "1 minute ago", "2 hours ago", "3 days ago"]);
    }
}
