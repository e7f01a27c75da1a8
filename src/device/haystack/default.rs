//! Which device a component gets when it names none.

use std::collections::BTreeSet;

use super::{Device, DeviceType};
use crate::device::DeviceSpec;

/// Types that can be switched off, and the environment variable that does so when it reads `false`.
const SWITCHES: [(DeviceType, &str); 2] = [(DeviceType::Mps, "HAYSTACK_MPS_ENABLED"), (DeviceType::Xpu, "HAYSTACK_XPU_ENABLED")];

/// The types of device from which a default is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Available(BTreeSet<DeviceType>);

impl Available {
    /// These types, as they are.
    pub fn new(types: impl IntoIterator<Item = DeviceType>) -> Available {
        Available(types.into_iter().collect())
    }

    /// What this machine has and its environment allows: `specs` are its devices.
    pub fn on_this_machine<'a>(specs: impl IntoIterator<Item = &'a DeviceSpec>) -> Available {
        Available::of(specs).without_switched_off(|name| std::env::var(name).ok())
    }

    /// The types that name at least one of `specs`.
    pub fn of<'a>(specs: impl IntoIterator<Item = &'a DeviceSpec>) -> Available {
        Available::new(specs.into_iter().flat_map(|spec| DeviceType::ALL.into_iter().filter(|device_type| device_type.names(spec))))
    }

    /// These types without those that the environment switches off: `HAYSTACK_MPS_ENABLED=false` and
    /// `HAYSTACK_XPU_ENABLED=false`, in just this spelling. `variable` gives the value of an environment variable.
    #[must_use]
    pub fn without_switched_off(mut self, variable: impl Fn(&str) -> Option<String>) -> Available {
        for (device_type, name) in SWITCHES {
            if variable(name).as_deref() == Some("false") {
                self.0.remove(&device_type);
            }
        }
        self
    }

    /// The best of these: `cuda:0`, then `xpu`, then `mps`, then `cpu`, which is always there.
    pub fn default_device(&self) -> Device {
        let by_preference = [(DeviceType::Gpu, Device::gpu(0)), (DeviceType::Xpu, Device::xpu()), (DeviceType::Mps, Device::mps())];
        by_preference.into_iter().find(|(device_type, _)| self.0.contains(device_type)).map_or(Device::cpu(), |(_, device)| device)
    }
}
