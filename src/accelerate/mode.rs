//! The words that Accelerate takes for a device map, and what they stand for.

use std::fmt;
use std::str::FromStr;

use crate::accelerate::{Budgets, InferOptions, Inferred, LowZero, ModuleTree, get_balanced_memory, infer_auto_device_map};
use crate::error::{Error, Result};

/// A way to make a device map (`device_map="auto"`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceMapMode {
    /// The same as `Balanced`, as upstream, which keeps the right to change it.
    #[default]
    Auto,
    /// An even share for every accelerator.
    Balanced,
    /// An even share for every accelerator but the first, which gets what is left over.
    BalancedLow0,
    /// One accelerator after the other, each filled.
    Sequential,
}

impl DeviceMapMode {
    /// Every way that differs from the others.
    pub const DISTINCT: [DeviceMapMode; 3] = [DeviceMapMode::Balanced, DeviceMapMode::BalancedLow0, DeviceMapMode::Sequential];

    /// Makes a map: balances the budgets where the mode says so, then infers.
    ///
    /// # Errors
    /// Those of [`get_balanced_memory`].
    pub fn device_map(self, tree: &ModuleTree, max_memory: &Budgets, options: &InferOptions) -> Result<Inferred> {
        let low_zero = match self {
            DeviceMapMode::Sequential => return Ok(infer_auto_device_map(tree, max_memory, options)),
            DeviceMapMode::Auto | DeviceMapMode::Balanced => LowZero::No,
            DeviceMapMode::BalancedLow0 => LowZero::Yes,
        };
        let (budgets, mut notices) = get_balanced_memory(tree, max_memory, &options.no_split_module_classes, &options.retype, low_zero)?;
        let inferred = infer_auto_device_map(tree, &budgets, options);
        notices.extend(inferred.notices);
        Ok(Inferred { map: inferred.map, notices })
    }
}

impl fmt::Display for DeviceMapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DeviceMapMode::Auto => "auto",
            DeviceMapMode::Balanced => "balanced",
            DeviceMapMode::BalancedLow0 => "balanced_low_0",
            DeviceMapMode::Sequential => "sequential",
        })
    }
}

impl FromStr for DeviceMapMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceMapMode> {
        match text {
            "auto" => Ok(DeviceMapMode::Auto),
            "balanced" => Ok(DeviceMapMode::Balanced),
            "balanced_low_0" => Ok(DeviceMapMode::BalancedLow0),
            "sequential" => Ok(DeviceMapMode::Sequential),
            _ => Err(Error::InvalidArgument {
                option: "device_map".into(),
                reason: "If passing a string for `device_map`, please choose 'auto', 'balanced', 'balanced_low_0' or 'sequential'.".into(),
            }),
        }
    }
}
