//! Budgets as the user writes them: `gpu:0=40MiB,cpu=64MiB`. The planner applies them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result, Setting};
use crate::units::Bytes;

/// What a plan may use of each device; a device that is not named may be used as far as its capacity goes.
///
/// Written `gpu:0=40MiB,cpu=64MiB`; Accelerate's bare device numbers are read as well (`0=10GiB,cpu=30GiB`). Ordered by
/// device, so that it prints the same whatever the order it was written in. The disk takes what is left and has no budget.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaxMemory(BTreeMap<Device, Bytes>);

impl MaxMemory {
    /// The budget of `device`, where one was given.
    pub fn get(&self, device: Device) -> Option<Bytes> {
        self.0.get(&device).copied()
    }

    /// Gives `device` a budget; returns the one it had.
    pub fn insert(&mut self, device: Device, budget: Bytes) -> Option<Bytes> {
        self.0.insert(device, budget)
    }

    /// Devices and budgets, in the devices' order.
    pub fn iter(&self) -> impl Iterator<Item = (Device, Bytes)> {
        self.0.iter().map(|(device, budget)| (*device, *budget))
    }

    /// Whether no device has a budget.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for MaxMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (device, budget)) in self.iter().enumerate() {
            write!(f, "{}{device}={}", if index > 0 { "," } else { "" }, budget.exact())?;
        }
        Ok(())
    }
}

impl FromStr for MaxMemory {
    type Err = Error;

    fn from_str(text: &str) -> Result<MaxMemory> {
        let invalid = |reason: String| Error::InvalidArgument { option: Setting::MaxMemory.into(), reason };
        let mut budgets = MaxMemory::default();
        for entry in text.split(',') {
            let (device, amount) = entry
                .split_once('=')
                .ok_or_else(|| invalid(format!("`{entry}` is no budget; write DEVICE=SIZE, as in gpu:0=40MiB,cpu=64MiB")))?;
            let device: Device = device
                .trim()
                .parse()
                .map_err(|_| invalid(format!("`{}` is no device with a budget; write gpu, gpu:N or cpu", device.trim())))?;
            if device == Device::Disk {
                return Err(invalid("the disk takes what fits nowhere else and has no budget; name gpu:N and cpu only".into()));
            }
            let size: Bytes = amount
                .parse()
                .map_err(|_| invalid(format!("`{}` is no size for {device}; write 40MiB, 1.5GB or plain bytes", amount.trim())))?;
            // A budget of so few bytes is a mistake.
            if (Bytes(1)..Bytes(1024)).contains(&size) {
                return Err(invalid(format!("{device}={} is {size}; write a unit, as in {device}=4GiB", amount.trim())));
            }
            if budgets.insert(device, size).is_some() {
                return Err(invalid(format!("{device} is named twice")));
            }
        }
        Ok(budgets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_in_any_order_and_print_in_one() {
        let budgets: MaxMemory = "cpu=64MiB, gpu:1=2GB,gpu:0=40MiB".parse().unwrap();
        assert_eq!(budgets.get(Device::Gpu(0)), Some(Bytes::mib(40)));
        assert_eq!(budgets.get(Device::Cpu), Some(Bytes::mib(64)));
        assert_eq!(budgets.get(Device::Gpu(2)), None);
        assert_eq!(budgets.to_string(), "gpu:0=40MiB,gpu:1=2000000000,cpu=64MiB");
        assert_eq!(budgets.to_string().parse::<MaxMemory>().unwrap(), budgets);
    }

    #[test]
    fn accelerates_device_numbers_are_read() {
        let budgets: MaxMemory = "0=10GiB,cpu=0".parse().unwrap();
        assert_eq!(budgets.iter().collect::<Vec<_>>(), [(Device::Gpu(0), Bytes::gib(10)), (Device::Cpu, Bytes::ZERO)]);
        assert_eq!(serde_json::to_string(&budgets).unwrap(), r#"{"gpu:0":10737418240,"cpu":0}"#);
    }

    #[test]
    fn errors_name_the_entry() {
        for (text, part) in [
            ("", "DEVICE=SIZE"),
            ("40MiB", "DEVICE=SIZE"),
            ("gpu:0=1GiB,", "DEVICE=SIZE"),
            ("tpu=1GiB", "`tpu` is no device"),
            ("disk=1GiB", "disk"),
            ("gpu=1GiB,gpu:0=2GiB", "gpu:0 is named twice"),
            ("cpu=lots", "`lots` is no size for cpu"),
            ("cpu=-1", "`-1`"),
            ("gpu:0=1GiB,cpu= 16", "cpu=16 is 16 B; write a unit"),
        ] {
            let error = text.parse::<MaxMemory>().unwrap_err();
            assert!(error.to_string().starts_with("max_memory: ") && error.to_string().contains(part), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
