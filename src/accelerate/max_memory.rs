//! Budgets in Accelerate's order (`get_max_memory`).

use std::collections::BTreeMap;

use crate::accelerate::{Amount, DeviceKey, DeviceName, SizeSpec};
use crate::device::{Device, MaxMemory};
use crate::error::Result;
use crate::units::Bytes;

/// What Accelerate's planner may use of each device, in the order in which it fills them. A device that is not named is not used, host
/// memory included, except the disk, which is always there and has no limit (a budget for it is ignored).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budgets {
    by_device: BTreeMap<DeviceKey, Amount>,
    source: BudgetSource,
}

/// Where budgets come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BudgetSource {
    /// The user gave them.
    #[default]
    Given,
    /// The memory that is free; on a lone accelerator, the balanced modes leave a tenth of it.
    Measured,
}

/// Reads a `max_memory` dictionary as Accelerate does: sizes first, then the devices' names; whatever their order, the planner fills
/// accelerators by number, then `mps`, `cpu`, `disk`. A device that is named twice counts as named last.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) in Accelerate's words for a size or a device that it does not know.
pub fn get_max_memory(given: &[(DeviceName, SizeSpec)]) -> Result<Budgets> {
    let sizes = given.iter().map(|(_, size)| size.to_budget()).collect::<Result<Vec<_>>>()?;
    let devices = given.iter().map(|(device, _)| device.to_key()).collect::<Result<Vec<_>>>()?;
    Ok(devices.into_iter().zip(sizes).collect())
}

impl Budgets {
    /// The same budgets, said to come from `source`.
    #[must_use]
    pub fn from_source(self, source: BudgetSource) -> Budgets {
        Budgets { source, ..self }
    }

    /// Where they come from.
    pub fn source(&self) -> BudgetSource {
        self.source
    }

    /// The budget of `device`, where it has one.
    pub fn get(&self, device: DeviceKey) -> Option<Amount> {
        self.by_device.get(&device).copied()
    }

    /// Gives `device` a budget.
    pub fn insert(&mut self, device: DeviceKey, budget: Amount) {
        self.by_device.insert(device, budget);
    }

    /// Devices and budgets, in the order in which they are filled.
    pub fn iter(&self) -> impl Iterator<Item = (DeviceKey, Amount)> {
        self.by_device.iter().map(|(device, budget)| (*device, *budget))
    }
}

impl<D: Into<DeviceKey>, A: Into<Amount>> FromIterator<(D, A)> for Budgets {
    fn from_iter<I: IntoIterator<Item = (D, A)>>(budgets: I) -> Budgets {
        let by_device = budgets.into_iter().map(|(device, budget)| (device.into(), budget.into())).collect();
        Budgets { by_device, source: BudgetSource::Given }
    }
}

impl From<&MaxMemory> for Budgets {
    fn from(max_memory: &MaxMemory) -> Budgets {
        max_memory.iter().collect()
    }
}

impl From<&BTreeMap<Device, Bytes>> for Budgets {
    fn from(max_memory: &BTreeMap<Device, Bytes>) -> Budgets {
        max_memory.iter().map(|(device, budget)| (*device, *budget)).collect()
    }
}
