//! Devices as plain data: what they are called, what they can hold and how fast they are. Knows no wgpu.

mod choice;
mod correction;
pub mod haystack;
mod max_memory;
mod rates;
mod spec;
mod variants;
pub mod vendor;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use choice::DeviceChoice;
pub use correction::{Aspect, Correction, Corrections, Sample};
pub use max_memory::MaxMemory;
pub use rates::{Origin, Rates};
pub use spec::{AdapterKind, DeviceSpec, GpuLimits, no_gpu};
pub use variants::{KernelChoice, MatMulVariant, MatMulVariants, Phase, RowShape, TileShape};

/// The kind of a device, fast to slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Memory of an adapter.
    Gpu,
    /// Host memory.
    Host,
    /// The model's files.
    Disk,
}

/// A place that holds weights or computes. Written `gpu:0`, `cpu`, `disk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The N-th adapter, in the order of `tierflow devices`.
    Gpu(u32),
    /// Host memory and its cores.
    Cpu,
    /// The model's files.
    Disk,
}

impl Device {
    /// The kind of this device.
    pub fn tier(self) -> Tier {
        match self {
            Device::Gpu(_) => Tier::Gpu,
            Device::Cpu => Tier::Host,
            Device::Disk => Tier::Disk,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Device::Gpu(index) => format!("gpu:{index}"),
            Device::Cpu => "cpu".to_owned(),
            Device::Disk => "disk".to_owned(),
        })
    }
}

/// Reads `gpu`, `gpu:N`, Accelerate's bare `N`, `cpu` or `disk`.
impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Device> {
        let index = match text {
            "cpu" => return Ok(Device::Cpu),
            "disk" => return Ok(Device::Disk),
            "gpu" => "0",
            _ => text.strip_prefix("gpu:").unwrap_or(text),
        };
        if index.is_empty() || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unknown_device(text));
        }
        index.parse().map(Device::Gpu).map_err(|_| unknown_device(text))
    }
}

fn unknown_device(text: &str) -> Error {
    Error::InvalidArgument { option: "device".into(), reason: format!("`{text}` is no device; write gpu, gpu:N, cpu or disk") }
}

impl Serialize for Device {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Device, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_strings_round_trip() {
        for (text, device) in [("gpu:0", Device::Gpu(0)), ("gpu:12", Device::Gpu(12)), ("cpu", Device::Cpu), ("disk", Device::Disk)] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("gpu".parse::<Device>().unwrap(), Device::Gpu(0));
        assert_eq!("3".parse::<Device>().unwrap(), Device::Gpu(3));
        for text in ["", "gpu:", "gpu:-1", "gpu:+1", "GPU", "tpu", "gpu:1:2", "gpu:99999999999"] {
            assert!(text.parse::<Device>().is_err(), "{text} must be refused");
        }
    }
}
