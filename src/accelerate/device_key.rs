//! Devices as Accelerate names them: numbers for accelerators, `mps`, `cpu`, `disk`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result};

/// A device, as Accelerate names it. Ordered as its planner fills them: accelerators by number, `mps`, `cpu`, `disk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKey {
    /// An accelerator; one process of Accelerate sees only one kind. A negative number is let through, as Accelerate does.
    Accelerator(i64),
    /// Apple's GPU.
    Mps,
    /// Host memory.
    Cpu,
    /// The offload folder.
    Disk,
}

/// A device as a caller of Accelerate writes it, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum DeviceName {
    /// An accelerator's number.
    Index(i64),
    /// `mps`, `cpu`, `disk`, or something else.
    Name(String),
}

impl DeviceKey {
    /// Whether it is an accelerator: neither `cpu` nor `disk`.
    pub fn is_accelerator(self) -> bool {
        matches!(self, DeviceKey::Accelerator(_) | DeviceKey::Mps)
    }
}

impl DeviceName {
    /// The device that `max_memory` means by it: a number, `mps`, `cpu` or `disk`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] in Accelerate's words for any other name.
    pub fn to_key(&self) -> Result<DeviceKey> {
        match self {
            DeviceName::Index(index) => Ok(DeviceKey::Accelerator(*index)),
            DeviceName::Name(name) => match name.as_str() {
                "mps" => Ok(DeviceKey::Mps),
                "cpu" => Ok(DeviceKey::Cpu),
                "disk" => Ok(DeviceKey::Disk),
                _ => Err(Error::InvalidArgument {
                    option: "max_memory".into(),
                    reason: format!(
                        "Device {name} is not recognized, available devices are integers(for GPU/XPU), 'mps', 'cpu' and 'disk'"
                    ),
                }),
            },
        }
    }
}

/// `mps` is the first adapter: Apple's machines have no second one.
impl TryFrom<DeviceKey> for Device {
    type Error = Error;

    fn try_from(key: DeviceKey) -> Result<Device> {
        match key {
            DeviceKey::Accelerator(index) => u32::try_from(index).map(Device::Gpu).map_err(|_| Error::InvalidArgument {
                option: "device_map".into(),
                reason: format!("accelerator {index} is no device here; number adapters from 0"),
            }),
            DeviceKey::Mps => Ok(Device::Gpu(0)),
            DeviceKey::Cpu => Ok(Device::Cpu),
            DeviceKey::Disk => Ok(Device::Disk),
        }
    }
}

impl From<Device> for DeviceKey {
    fn from(device: Device) -> DeviceKey {
        match device {
            Device::Gpu(index) => DeviceKey::Accelerator(i64::from(index)),
            Device::Cpu => DeviceKey::Cpu,
            Device::Disk => DeviceKey::Disk,
        }
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKey::Accelerator(index) => f.pad(&index.to_string()),
            DeviceKey::Mps => f.pad("mps"),
            DeviceKey::Cpu => f.pad("cpu"),
            DeviceKey::Disk => f.pad("disk"),
        }
    }
}

/// A number for an accelerator, a string for the others.
impl Serialize for DeviceKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            DeviceKey::Accelerator(index) => serializer.serialize_i64(*index),
            _ => serializer.collect_str(self),
        }
    }
}
