//! The description of a machine as a file: what `tierflow devices --json` prints, read back for plans of a machine that is
//! not here. Checked strictly, since plans rely on it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::{Device, DeviceSpec, GpuLimits, Rates};
use crate::error::{Error, Remedy, Result, Setting};
use crate::platform;
use crate::units::Bytes;

/// Version of the format. Other versions are refused: their figures could mean something else.
const SCHEMA: &str = "tierflow.devices/1";
/// No description is longer.
const MAX_BYTES: u64 = 4 << 20;

/// A machine as `tierflow devices --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicesFile {
    schema: String,
    /// Adapters, host, disk.
    pub devices: Vec<DeviceSpec>,
    /// Features of the adapters, for people.
    #[serde(default)]
    pub features: BTreeMap<Device, Vec<String>>,
}

impl DevicesFile {
    /// The description of these devices.
    pub fn new(devices: Vec<DeviceSpec>, features: BTreeMap<Device, Vec<String>>) -> DevicesFile {
        DevicesFile { schema: SCHEMA.into(), devices, features }
    }
}

/// Reads the devices of a machine: adapters in the order of their numbers, then the host, then the disk, which is added without
/// rates where the file has none.
///
/// # Errors
/// [`Error::Io`], or [`Error::InvalidFile`] naming the device and what is wrong: another version of the format, an unknown name,
/// a rate or size that is no positive number, no or two hosts, a gap in the numbers of the adapters.
pub fn read_devices_file(path: &Path) -> Result<Vec<DeviceSpec>> {
    let text = platform::read_text(path, MAX_BYTES)?;
    parse_devices(text.as_bytes(), &path.display().to_string())
}

/// As [`read_devices_file`], of the file's text; `path` is for messages.
///
/// # Errors
/// As there.
pub fn parse_devices(bytes: &[u8], path: &str) -> Result<Vec<DeviceSpec>> {
    let text = platform::decode_text(bytes).map_err(|reason| Error::invalid_file(path, reason))?;
    check_schema(text.as_bytes(), path)?;
    parse(text.as_bytes()).map_err(|reason| Error::invalid_file(path, reason))
}

fn check_schema(bytes: &[u8], path: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Head {
        schema: Option<String>,
    }
    let none = |error| Error::invalid_file(path, format!("is no description of a machine: {error}"));
    let head: Head = serde_json::from_slice(bytes).map_err(none)?;
    if head.schema.as_deref() == Some(SCHEMA) {
        return Ok(());
    }
    let found = head.schema.map_or_else(|| "no schema".into(), |schema| format!("the schema `{schema}`"));
    let reason = format!("has {found} where `{SCHEMA}` is read");
    Err(Error::InvalidFile { path: path.to_owned(), reason, advice: [Remedy::Write(Setting::Machine)].into() })
}

fn parse(bytes: &[u8]) -> Result<Vec<DeviceSpec>, String> {
    let file: DevicesFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut devices = file.devices.into_iter().map(checked).collect::<Result<Vec<_>, _>>()?;
    devices.sort_by_key(|spec| spec.device);
    if let Some(pair) = devices.windows(2).find(|pair| pair[0].device == pair[1].device) {
        return Err(format!("{} is described twice", pair[0].device));
    }
    let gpus = devices.iter().filter(|spec| matches!(spec.device, Device::Gpu(_)));
    if let Some((index, spec)) = gpus.enumerate().find(|(index, spec)| spec.device != Device::Gpu(*index as u32)) {
        return Err(format!("{} follows where gpu:{index} is missing; number the adapters from 0 without gaps", spec.device));
    }
    if !devices.iter().any(|spec| spec.device == Device::Cpu) {
        return Err("has no cpu; every machine has one: add it with its capacity".into());
    }
    if !devices.iter().any(|spec| spec.device == Device::Disk) {
        devices.push(super::disk_with(Rates::default()));
    }
    Ok(devices)
}

/// The spec with its defaults, if its figures make sense.
fn checked(mut spec: DeviceSpec) -> Result<DeviceSpec, String> {
    let device = spec.device;
    let is_gpu = matches!(device, Device::Gpu(_));
    if is_gpu != spec.kind.is_some() {
        let advice = if is_gpu { "needs a kind: discrete, integrated, virtual, software or other" } else { "has no kind: leave it out" };
        return Err(format!("{device} {advice}"));
    }
    match (device, spec.capacity) {
        (Device::Disk, Some(_)) => return Err("disk has no capacity: leave it out, since the model's files are there".into()),
        (Device::Disk, None) => {}
        (_, None | Some(Bytes::ZERO)) => return Err(format!("{device} needs a capacity of more than 0 bytes")),
        (_, Some(_)) if spec.capacity_source.is_empty() => spec.capacity_source = "given in the devices file".into(),
        (_, Some(_)) => {}
    }
    match spec.limits {
        Some(_) if !is_gpu => return Err(format!("{device} has no limits: leave them out")),
        Some(limits) => check_limits(&limits).map_err(|reason| format!("{device}: {reason}"))?,
        None => spec.limits = is_gpu.then(GpuLimits::default),
    }
    match spec.rates.figures().into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
        Some((name, value)) => Err(format!("{device}: {name} is {value}; leave it out where it is not known")),
        None => Ok(spec),
    }
}

fn check_limits(limits: &GpuLimits) -> Result<(), String> {
    let sizes = [("max_buffer_bytes", limits.max_buffer_bytes.0), ("max_binding_bytes", limits.max_binding_bytes.0)];
    let numbers = sizes.into_iter().chain([("max_workgroups", u64::from(limits.max_workgroups))]);
    if let Some((name, _)) = numbers.into_iter().find(|(_, value)| *value == 0) {
        return Err(format!("{name} is 0; leave it out for WebGPU's default"));
    }
    // More than this no adapter demands, and weights are cut for no more.
    if !limits.storage_alignment.is_power_of_two() || limits.storage_alignment > GpuLimits::default().storage_alignment {
        return Err(format!("storage_alignment is {}; it is a power of two up to 256", limits.storage_alignment));
    }
    Ok(())
}
