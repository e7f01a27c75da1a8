//! A device map: which device each module is on, by name.

use std::collections::HashMap;

use crate::accelerate::tree::{NodeKind, parent_name};
use crate::accelerate::{DeviceKey, ModuleTree, Notice};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Model, Op, UnitKind};
use crate::weights::{Catalog, TensorId};

/// How many tensors without a device are reported by name.
const N_NAMED: usize = 6;

/// Names of modules or tensors and their devices, in order. The empty name covers the whole model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceMap {
    entries: Vec<(String, DeviceKey)>,
    places: HashMap<String, usize>,
}

/// Where a map stores one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixPlacement {
    /// Which of the model's units uses it.
    pub unit: usize,
    /// The matrix. That of a tied head is the embedding's, and may be stored elsewhere as the head.
    pub tensor: TensorId,
    /// Where it is stored.
    pub stored_on: Device,
}

impl DeviceMap {
    /// Names and devices, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, DeviceKey)> {
        self.entries.iter().map(|(name, device)| (name.as_str(), *device))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The device of exactly this entry.
    pub fn get(&self, name: &str) -> Option<DeviceKey> {
        self.places.get(name).and_then(|place| self.entries.get(*place)).map(|(_, device)| *device)
    }

    /// Gives `name` a device. A name that is there already keeps its place.
    pub fn insert(&mut self, name: String, device: DeviceKey) {
        match self.places.get(&name).and_then(|place| self.entries.get_mut(*place)) {
            Some(entry) => entry.1 = device,
            None => {
                self.places.insert(name.clone(), self.entries.len());
                self.entries.push((name, device));
            }
        }
    }

    /// The device of a module or tensor, as Accelerate's loader finds it: that of the longest entry which is `name` or a prefix of it
    /// that ends before a dot, the empty one last.
    pub fn device_of(&self, name: &str) -> Option<DeviceKey> {
        let mut prefix = name;
        loop {
            match self.get(prefix) {
                None if prefix.is_empty() => return None,
                None => prefix = parent_name(prefix),
                device => return device,
            }
        }
    }

    /// The same entries in the order of the model's modules; names that are not in the tree come last.
    #[must_use]
    pub fn in_order_of(mut self, tree: &ModuleTree) -> DeviceMap {
        self.entries.sort_by_cached_key(|(name, _)| tree.find(name).map_or((1, None), |id| (0, Some(id))));
        self.entries.into_iter().collect()
    }

    /// Says whether it covers a model (`check_device_map`): every parameter and every buffer that checkpoints hold has a device. Returns
    /// a notice of the names that are no modules; they still cover what they name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] in Accelerate's words with the names of all tensors without a device.
    pub fn check(&self, tree: &ModuleTree) -> Result<Option<Notice>> {
        let is_module = |name: &str| tree.find(name).is_some_and(|id| tree.is_module(id));
        let keys: Vec<String> = self.iter().map(|(name, _)| name).filter(|name| !is_module(name)).map(str::to_owned).collect();
        let is_stored = |kind: &NodeKind| matches!(kind, NodeKind::Parameter { .. } | NodeKind::Buffer { persistent: true, .. });
        let stored = tree.nodes().filter(|id| is_stored(tree.kind(*id))).map(|id| tree.name(id));
        uncovered(stored.filter(|name| self.device_of(name).is_none()))?;
        Ok((!keys.is_empty()).then_some(Notice::NoModules { keys }))
    }

    /// Why the names of a map may fit none of a model's modules: they have another prefix, or are GGUF's names. `None` where they are
    /// neither.
    pub fn misnaming(&self, tree: &ModuleTree) -> Option<String> {
        let unknown = || self.iter().map(|(name, _)| name).filter(|name| tree.find(name).is_none());
        if unknown().any(|name| name.starts_with("blk.")) {
            let names = "model.layers.N, model.embed_tokens, model.norm and lm_head";
            return Some(format!("its names are those of GGUF tensors; a device map has {names}"));
        }
        unknown().find_map(|name| {
            let own = |id| tree.name(id);
            let too_long =
                tree.nodes().map(own).find_map(|own| name.strip_suffix(own).filter(|rest| !own.is_empty() && rest.ends_with('.')));
            let too_short = tree.nodes().map(own).find_map(|own| own.strip_suffix(name).filter(|rest| rest.ends_with('.')));
            match (too_long, too_short) {
                (Some(prefix), _) => Some(format!("its names begin with `{prefix}`, and the model's do not")),
                (None, Some(prefix)) => Some(format!("its names lack the `{prefix}` with which the model's begin")),
                (None, None) => None,
            }
        })
    }

    /// Where every matrix of `model` is stored, in the order of their use: the embedding's table and what is multiplied. Norms and biases are
    /// stored where their unit is computed, whatever a map says. A tied head's matrix is looked for under the head's name first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the names of all matrices without a device, and where a device's number is negative.
    pub fn placements(&self, catalog: &Catalog, model: &Model) -> Result<Vec<MatrixPlacement>> {
        let mut placements = Vec::new();
        let mut without = Vec::new();
        for (index, unit) in model.units.iter().enumerate() {
            let matrices = unit.ops.iter().filter_map(|op| match op {
                Op::Embed { table, .. } => Some(*table),
                other => other.matrix(),
            });
            for tensor in matrices {
                let name = &catalog[tensor].name;
                let of_head = if unit.kind == UnitKind::Head { self.device_of(&format!("{}.weight", unit.name)) } else { None };
                match of_head.or_else(|| self.device_of(name)) {
                    Some(device) => placements.push(MatrixPlacement { unit: index, tensor, stored_on: device.try_into()? }),
                    None => without.push(name.as_str()),
                }
            }
        }
        uncovered(without.into_iter())?;
        Ok(placements)
    }
}

/// Fails where there is any name, in Accelerate's words; of many names, the first are reported.
fn uncovered<'a>(names: impl Iterator<Item = &'a str>) -> Result<()> {
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return Ok(());
    }
    let n_more = names.len().saturating_sub(N_NAMED);
    let more = if n_more > 0 { format!(" and {n_more} more") } else { String::new() };
    let names = names[..names.len() - n_more].join(", ") + &more;
    Err(Error::InvalidArgument {
        option: "device_map".into(),
        reason: format!("The device_map provided does not give any device for the following parameters: {names}"),
    })
}

impl FromIterator<(String, DeviceKey)> for DeviceMap {
    fn from_iter<I: IntoIterator<Item = (String, DeviceKey)>>(entries: I) -> DeviceMap {
        let mut map = DeviceMap::default();
        for (name, device) in entries {
            map.insert(name, device);
        }
        map
    }
}
