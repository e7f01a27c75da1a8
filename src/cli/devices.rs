//! `tierflow devices`: every adapter, host memory and disk, with the limits that matter and the measured rates.

use serde::Serialize;

use crate::cli::args::DevicesArgs;
use crate::cli::terminal::{Align, print, print_json, table};
use crate::device::{AdapterKind, Device, DeviceSpec};
use crate::dtype::DType;
use crate::error::Result;
use crate::machine;
use crate::units::BytesPerSec;

/// A device with what only adapters have.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    /// The planner's view.
    #[serde(flatten)]
    pub spec: DeviceSpec,
    /// Features that the adapter offers.
    pub features: Vec<String>,
}

/// Prints a table with advice, or JSON.
///
/// # Errors
/// Those of asking the drivers.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let devices = pollster::block_on(list(args.measure))?;
    if args.json {
        return print_json(&serde_json::json!({ "schema": "tierflow.devices/1", "devices": devices }));
    }
    print(&report(&devices))
}

/// Every device of this machine; `measure` measures the rates now, otherwise those known are shown.
///
/// # Errors
/// Those of asking the drivers.
pub async fn list(measure: bool) -> Result<Vec<DeviceReport>> {
    let mut devices = Vec::new();
    for mut found in machine::adapters().await? {
        found.spec.rates = if measure { machine::measure(&found).await? } else { machine::known_rates(&found) };
        devices.push(DeviceReport { spec: found.spec, features: found.features });
    }
    let mut host = machine::host_spec();
    if measure {
        host.rates = machine::measure_host();
    }
    devices.push(DeviceReport { spec: host, features: Vec::new() });
    let mut disk = machine::disk_spec();
    if measure {
        disk.rates.disk_read = Some(machine::measure_disk()?);
    }
    devices.push(DeviceReport { spec: disk, features: Vec::new() });
    Ok(devices)
}

/// Table and advice.
pub(super) fn report(devices: &[DeviceReport]) -> String {
    let rows: Vec<Vec<String>> = devices.iter().map(row).collect();
    let columns = [
        ("DEVICE", Align::Left),
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("USABLE", Align::Right),
        ("MAX BUFFER", Align::Right),
        ("MAX BINDING", Align::Right),
        ("RATES", Align::Left),
    ];
    let mut text = table(&columns, &rows);
    for DeviceReport { spec, features } in devices {
        if !spec.capacity_source.is_empty() {
            text.push_str(&format!("{}: {}; usable is {}\n", spec.device, spec.driver, spec.capacity_source));
        }
        if !features.is_empty() {
            text.push_str(&format!("{}: features {}\n", spec.device, features.join(", ")));
        }
    }
    text.push_str(advice(devices));
    text
}

fn row(report: &DeviceReport) -> Vec<String> {
    let spec = &report.spec;
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
    let rate = |name: &str, rate: Option<BytesPerSec>| rate.map(|rate| format!("{name} {rate}"));
    let rates = &spec.rates;
    let rates: Vec<String> = [
        rate("upload mapped", rates.upload_mapped),
        rate("upload staged", rates.upload_staged),
        rate("readback", rates.readback),
        rate("matvec", rates.matvec_of(DType::F16)),
        rate("copy", rates.host_copy),
        rate("read", rates.disk_read),
        rates.submit_secs.map(|secs| format!("submit {:.0} µs", secs * 1e6)),
    ]
    .into_iter()
    .flatten()
    .collect();
    vec![
        spec.device.to_string(),
        spec.name.clone(),
        kind.into(),
        or_dash(spec.capacity.map(|bytes| bytes.to_string())),
        or_dash(spec.limits.map(|limits| limits.max_buffer_bytes.to_string())),
        or_dash(spec.limits.map(|limits| limits.max_binding_bytes.to_string())),
        if rates.is_empty() { "–".into() } else { rates.join(", ") },
    ]
}

fn advice(devices: &[DeviceReport]) -> &'static str {
    let adapters = || devices.iter().filter_map(|report| report.spec.kind);
    if adapters().next().is_none() {
        "No adapter was found. Models run on the host (--device cpu). For a GPU, install its Vulkan driver \
         (on Debian: mesa-vulkan-drivers; it also brings a software adapter).\n"
    } else if adapters().all(|kind| kind == AdapterKind::Software) {
        "Only a software adapter was found: it runs on the host's cores and is used only by name (--device gpu, or a budget for gpu:0).\n"
    } else {
        ""
    }
}
