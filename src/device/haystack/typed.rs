//! One device in Haystack's words: its type, and its number where it has one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::invalid_device;
use crate::error::{Error, Result};

/// A device, written `cuda:1`, `mps`, `cpu`. Any type may have an id; `cuda` and `cuda:0` are not equal, as in Haystack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Device {
    /// What kind of device it is.
    pub device_type: DeviceType,
    /// Which one of its type, counted from 0; `None` where the text names no number.
    pub id: Option<u32>,
}

/// The types of device that Haystack knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceType {
    /// `cpu`: the host.
    Cpu,
    /// `cuda`: a GPU of NVIDIA, or of AMD, which answers to the same word in PyTorch.
    Gpu,
    /// `disk`: the model's files; part of device maps only.
    Disk,
    /// `mps`: a GPU under Apple's Metal.
    Mps,
    /// `xpu`: a GPU of Intel.
    Xpu,
}

impl Device {
    /// The host.
    pub const fn cpu() -> Device {
        Device { device_type: DeviceType::Cpu, id: None }
    }

    /// The `id`-th GPU.
    pub const fn gpu(id: u32) -> Device {
        Device { device_type: DeviceType::Gpu, id: Some(id) }
    }

    /// The model's files.
    pub const fn disk() -> Device {
        Device { device_type: DeviceType::Disk, id: None }
    }

    /// The GPU under Apple's Metal.
    pub const fn mps() -> Device {
        Device { device_type: DeviceType::Mps, id: None }
    }

    /// Intel's GPU.
    pub const fn xpu() -> Device {
        Device { device_type: DeviceType::Xpu, id: None }
    }

    /// Reads a device; the error is Haystack's text, and what to write instead.
    pub(super) fn read(text: &str) -> Result<Device, String> {
        let Some((device_type, id)) = text.split_once(':') else {
            return Ok(Device { device_type: DeviceType::read(text)?, id: None });
        };
        // As in Haystack, something that is no integer is reported before the type, and a negative number after it.
        let id = Id::read(id)?;
        Ok(Device { device_type: DeviceType::read(device_type)?, id: Some(id.counted()?) })
    }

    /// This type with the number `id`, which comes from a file and may be anything.
    pub(super) fn numbered(device_type: DeviceType, id: &str) -> Result<Device, String> {
        Ok(Device { device_type, id: Some(Id::read(id)?.counted()?) })
    }
}

/// An integer as it is written: plain digits without leading zeros, perhaps negative.
struct Id<'a>(&'a str);

impl Id<'_> {
    fn read(text: &str) -> Result<Id<'_>, String> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
        if is_plain || text == "0" {
            return Ok(Id(text));
        }
        Err(format!("Device id must be an integer, got {text}; write it in plain digits, as in cuda:1"))
    }

    fn counted(&self) -> Result<u32, String> {
        if self.0.starts_with('-') {
            return Err(format!("Device id must be >= 0, got {}; devices are counted from 0", self.0));
        }
        self.0.parse().map_err(|_| format!("Device id must be an integer, got {}, which is above {}", self.0, u32::MAX))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => f.pad(&format!("{}:{id}", self.device_type)),
            None => self.device_type.fmt(f),
        }
    }
}

/// Reads a type, or a type and an id: `cuda`, `cuda:1`.
impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Device> {
        Device::read(text).map_err(invalid_device)
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = Error;

    fn try_from(text: String) -> Result<Device> {
        text.parse()
    }
}

impl DeviceType {
    /// All types.
    pub const ALL: [DeviceType; 5] = [DeviceType::Cpu, DeviceType::Gpu, DeviceType::Disk, DeviceType::Mps, DeviceType::Xpu];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            DeviceType::Cpu => "cpu",
            DeviceType::Gpu => "cuda",
            DeviceType::Disk => "disk",
            DeviceType::Mps => "mps",
            DeviceType::Xpu => "xpu",
        }
    }

    fn read(text: &str) -> Result<DeviceType, String> {
        DeviceType::ALL
            .into_iter()
            .find(|device_type| device_type.as_str() == text)
            .ok_or_else(|| format!("Unknown device type string '{text}'; write cpu, cuda, xpu, mps or disk"))
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Reads the word exactly: no capitals, no spaces.
impl FromStr for DeviceType {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceType> {
        DeviceType::read(text).map_err(invalid_device)
    }
}

impl From<DeviceType> for String {
    fn from(device_type: DeviceType) -> String {
        device_type.to_string()
    }
}

impl TryFrom<String> for DeviceType {
    type Error = Error;

    fn try_from(text: String) -> Result<DeviceType> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_in_one_way() {
        for (text, part) in [
            ("cuda:-0", "must be an integer, got -0"),
            ("cuda:00", "must be an integer, got 00"),
            ("cuda:-01", "must be an integer, got -01"),
            ("cuda:\u{661}", "must be an integer"),
            ("cuda:4294967296", "above 4294967295"),
            ("tpu:x", "must be an integer, got x"),
            ("tpu:-1", "Unknown device type string 'tpu'"),
        ] {
            let error = text.parse::<Device>().unwrap_err();
            assert!(error.to_string().contains(part) && error.exit_code() == 2, "{text}: {error}");
        }
        assert_eq!("cuda:4294967295".parse::<Device>().unwrap(), Device::gpu(u32::MAX));
    }

    #[test]
    fn devices_fill_columns() {
        assert_eq!(format!("{:<8}|{:<8}|", Device::gpu(1), Device::cpu()), "cuda:1  |cpu     |");
    }
}
