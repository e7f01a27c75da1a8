//! Which device is to compute, as the user writes it: `auto`, `gpu`, `gpu:1`, `cpu`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result};

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
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.pad("auto"),
            DeviceChoice::Gpu => f.pad("gpu"),
            DeviceChoice::GpuAt(index) => f.pad(&Device::Gpu(*index).to_string()),
            DeviceChoice::Cpu => f.pad("cpu"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceChoice> {
        match text {
            "auto" => return Ok(DeviceChoice::Auto),
            "gpu" => return Ok(DeviceChoice::Gpu),
            _ => {}
        }
        match text.parse() {
            Ok(Device::Gpu(index)) => Ok(DeviceChoice::GpuAt(index)),
            Ok(Device::Cpu) => Ok(DeviceChoice::Cpu),
            Ok(Device::Disk) | Err(_) => Err(Error::InvalidArgument {
                option: "--device".into(),
                fault: format!("`{text}` computes nothing; write auto, gpu, gpu:N or cpu"),
            }),
        }
    }
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
        for text in ["auto", "gpu", "gpu:0", "gpu:7", "cpu"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("1".parse::<DeviceChoice>().unwrap(), DeviceChoice::GpuAt(1));
        for text in ["", "disk", "AUTO", "gpu:x"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text} must be refused");
        }
    }
}
