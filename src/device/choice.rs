//! Which device is to compute, as the user writes it: `auto`, `gpu`, `gpu:1`, `cpu`, or in Haystack's words `cuda:1`, `mps`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::{Device, haystack};
use crate::error::{Error, Result, Setting};

/// Which device is to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceChoice {
    /// Every adapter that has a budget; without budgets the best adapter that is hardware, else the host.
    #[default]
    Auto,
    /// Every adapter that has a budget, else the first; without one, an error.
    Gpu,
    /// This adapter; without it, an error.
    GpuAt(u32),
    /// The host, whatever adapters there are.
    Cpu,
    /// The adapter that this word means once the adapters are known ([`haystack::Device::resolve`]); without it, an error.
    Named(haystack::Device),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.pad("auto"),
            DeviceChoice::Gpu => f.pad("gpu"),
            DeviceChoice::GpuAt(index) => f.pad(&Device::Gpu(*index).to_string()),
            DeviceChoice::Cpu => f.pad("cpu"),
            DeviceChoice::Named(word) => word.fmt(f),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceChoice> {
        match text {
            "auto" => return Ok(DeviceChoice::Auto),
            "gpu" => return Ok(DeviceChoice::Gpu),
            // llama.cpp's word for no GPU at all.
            "none" => return Ok(DeviceChoice::Cpu),
            _ => {}
        }
        if let Ok(device) = text.parse::<Device>() {
            return device.try_into();
        }
        match text.parse::<haystack::Device>() {
            Ok(word) => word.try_into(),
            Err(_) => Err(computes_nothing(text)),
        }
    }
}

impl TryFrom<Device> for DeviceChoice {
    type Error = Error;

    fn try_from(device: Device) -> Result<DeviceChoice> {
        match device {
            Device::Gpu(index) => Ok(DeviceChoice::GpuAt(index)),
            Device::Cpu => Ok(DeviceChoice::Cpu),
            Device::Disk => Err(computes_nothing(device)),
        }
    }
}

impl TryFrom<haystack::Device> for DeviceChoice {
    type Error = Error;

    fn try_from(word: haystack::Device) -> Result<DeviceChoice> {
        match word.device_type {
            haystack::DeviceType::Cpu => Ok(DeviceChoice::Cpu),
            haystack::DeviceType::Disk => Err(computes_nothing(word)),
            haystack::DeviceType::Gpu | haystack::DeviceType::Mps | haystack::DeviceType::Xpu => Ok(DeviceChoice::Named(word)),
        }
    }
}

fn computes_nothing(text: impl fmt::Display) -> Error {
    let reason = format!("`{text}` computes nothing; write auto, gpu, gpu:N, cpu, cuda, cuda:N, xpu or mps");
    Error::InvalidArgument { option: Setting::Device.into(), reason }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<DeviceChoice> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_round_trip() {
        for text in ["auto", "gpu", "gpu:0", "gpu:7", "cpu", "cuda", "cuda:0", "xpu:1", "mps"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("1".parse::<DeviceChoice>().unwrap(), DeviceChoice::GpuAt(1));
        assert_eq!("cpu:0".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cpu);
        assert_eq!("none".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cpu);
        for text in ["", "disk", "disk:0", "AUTO", "gpu:x", "cuda:x", "CUDA", "tpu"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text} must be refused");
        }
    }
}
