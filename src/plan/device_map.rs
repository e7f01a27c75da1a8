//! Accelerate's device maps as placements, and back. A map says only where weights are stored; who computes is decided here: a unit
//! that has weights on an adapter is computed there, and one whose weights are all in host memory or on disk is computed by the host or
//! streams to the first adapter, whichever a dry run finds faster.

use std::collections::BTreeSet;

use crate::accelerate::{
    Amount, Budgets, DeviceKey, DeviceMap, DeviceMapMode, InferOptions, MatrixPlacement, ModuleTree, NodeKind, clean_device_map,
};
use crate::device::Device;
use crate::error::{Error, Result, Setting};
use crate::model::{Model, Unit, UnitKind};
use crate::plan::refusal::Refusal;
use crate::plan::site::Site;
use crate::plan::{Placement, Plan, UnitPlan};
use crate::units::Bytes;
use crate::weights::{Catalog, TensorId};

/// How many smaller and smaller budgets Accelerate is given, until its map leaves room for caches, activations and slots, which it does not
/// count.
const N_TRIES: u64 = 16;

/// Who computes what a map leaves to the host or the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offloaded {
    /// It is brought to the first adapter, as Accelerate does.
    Streams,
    /// The host computes it.
    ComputedByHost,
}

impl Offloaded {
    pub(super) const ALL: [Offloaded; 2] = [Offloaded::Streams, Offloaded::ComputedByHost];
}

/// The placements of a map. Where parts of a unit are on several adapters, all go to the one that has most of it.
pub(super) fn placements(site: &Site<'_>, map: &DeviceMap, offloaded: Offloaded) -> Result<Option<Vec<Placement>>> {
    let matrices = map.placements(site.catalog, site.model)?;
    for matrix in &matrices {
        check_is_there(site, matrix.stored_on)?;
    }
    let first_gpu = site.workers.iter().find(|own| own.is_gpu()).map(|own| own.device);
    let host = site.worker(Device::Cpu).map(|_| Device::Cpu);
    let of_rest = match offloaded {
        Offloaded::Streams => first_gpu.or(host),
        Offloaded::ComputedByHost if first_gpu.is_none() => return Ok(None),
        Offloaded::ComputedByHost => host,
    };
    let Some(of_rest) = of_rest else { return Ok(None) };
    let placements = site.model.units.iter().enumerate().map(|(index, unit)| {
        if unit.kind == UnitKind::Embedding {
            return Placement::new(Device::Cpu, Vec::new());
        }
        let own: Vec<&MatrixPlacement> = matrices.iter().filter(|matrix| matrix.unit == index).collect();
        let execute_on = adapter_with_most(site.catalog, &own).unwrap_or(of_rest);
        let stored_on = |matrix: &&MatrixPlacement| match matrix.stored_on {
            Device::Gpu(_) => execute_on,
            // A host that computes streams from disk only.
            other => other,
        };
        Placement::new(execute_on, own.iter().map(stored_on).collect())
    });
    Ok(Some(placements.collect()))
}

/// The adapter that stores most of a unit, if any.
fn adapter_with_most(catalog: &Catalog, matrices: &[&MatrixPlacement]) -> Option<Device> {
    let mut adapters: Vec<(Device, Bytes)> = Vec::new();
    for matrix in matrices.iter().filter(|matrix| matches!(matrix.stored_on, Device::Gpu(_))) {
        let bytes = catalog[matrix.tensor].size_bytes;
        match adapters.iter_mut().find(|(device, _)| *device == matrix.stored_on) {
            Some((_, sum)) => *sum += bytes,
            None => adapters.push((matrix.stored_on, bytes)),
        }
    }
    adapters.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most }).map(|(device, _)| device)
}

fn check_is_there(site: &Site<'_>, device: Device) -> Result<()> {
    if !matches!(device, Device::Gpu(_)) || site.worker(device).is_some() {
        return Ok(());
    }
    let there_is: Vec<String> = site.workers.iter().map(|own| format!("{} ({})", own.device, own.spec.name)).collect();
    Err(Error::InvalidArgument {
        option: Setting::Placement.into(),
        reason: format!("it names {device}, which does not compute here; there is {}", there_is.join(", ")),
    })
}

/// The first of Accelerate's maps that `realise` can make a plan of: its budgets are lowered until what it does not count fits.
pub(super) fn along_mode<T>(
    site: &Site<'_>,
    mode: DeviceMapMode,
    mut realise: impl FnMut(&DeviceMap) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let tree = ModuleTree::of_model(site.catalog, site.model)?;
    let options = InferOptions { no_split_module_classes: no_split(site, &tree)?, ..InferOptions::default() };
    let mut before = None;
    let mut refusal = None;
    for lowered in 0..N_TRIES {
        let map = mode.device_map(&tree, &budgets(site, lowered), &options)?.map;
        if before.as_ref() == Some(&map) {
            continue;
        }
        match realise(&map) {
            Ok(made) => return Ok(made),
            Err(other) => refusal = Some(other),
        }
        before = Some(map);
    }
    Err(refusal.unwrap_or(Refusal::Budget))
}

/// The classes that are kept whole: those asked for, or whole layers, as transformers does.
fn no_split(site: &Site<'_>, tree: &ModuleTree) -> Result<Vec<String>> {
    let Some(asked) = &site.options.no_split else { return Ok(tree.no_split_modules().to_vec()) };
    let class = |id| match tree.kind(id) {
        NodeKind::Module { class } => Some(class.as_str()),
        _ => None,
    };
    let classes: BTreeSet<&str> = tree.nodes().filter_map(class).collect();
    match asked.iter().find(|class| !classes.contains(class.as_str())) {
        Some(unknown) => {
            let classes: Vec<&str> = classes.into_iter().collect();
            let reason = format!("`{unknown}` is no class of this model, which has {}", classes.join(", "));
            Err(Error::InvalidArgument { option: Setting::NoSplit.into(), reason })
        }
        None => Ok(asked.clone()),
    }
}

/// The budgets that Accelerate is given: every adapter's less so many sixteenths of it, and the host's.
fn budgets(site: &Site<'_>, lowered: u64) -> Budgets {
    let adapters = site.workers.iter().filter(|own| own.is_gpu());
    let of_adapter = |budget: Bytes| Amount::Int(i128::from(budget.0 - budget.0 / N_TRIES * lowered));
    let host = Amount::Int(i128::from(site.host_budget(Bytes::ZERO).0));
    adapters.map(|own| (DeviceKey::from(own.device), of_adapter(own.budget))).chain([(DeviceKey::Cpu, host)]).collect()
}

/// The placements of a plan as Accelerate and transformers write them. Norms are where their unit is computed.
pub(super) fn export(plan: &Plan, catalog: &Catalog, model: &Model) -> DeviceMap {
    let mut map = DeviceMap::default();
    let names = &model.config.family.names;
    for (unit, planned) in model.units.iter().zip(&plan.units) {
        let (stored_on, executor) = (DeviceKey::from(planned.stored_on), DeviceKey::from(planned.execute_on));
        match unit.kind {
            UnitKind::Head => [names.norm].into_iter().chain(names.rotary).for_each(|name| map.insert(name.into(), executor)),
            UnitKind::Embedding => {
                let others = model.embeddings().skip(1).map(|(table, _)| module_of(catalog, table));
                names.positions.into_iter().chain(others).for_each(|name| map.insert(name.into(), stored_on));
            }
            UnitKind::Attention { .. } | UnitKind::FeedForward { .. } | UnitKind::Layer { .. } => {}
        }
        let is_whole = plan.chunks[planned.chunks.clone()].iter().all(|chunk| chunk.stored_on == planned.stored_on);
        let parts = if is_whole { parts_of(unit, model) } else { Vec::new() };
        parts.iter().for_each(|part| map.insert(part.clone(), stored_on));
        insert_rest(&mut map, (unit, &parts), plan, catalog, planned);
    }
    match ModuleTree::of_model(catalog, model) {
        Ok(tree) => clean_device_map(&map.in_order_of(&tree)),
        Err(_) => map,
    }
}

/// The module of a tensor; of one that is called otherwise than `weight` or `bias`, the tensor itself.
fn module_of(catalog: &Catalog, tensor: TensorId) -> &str {
    // `name:part` is a part of a tensor.
    let name = catalog[tensor].name.split(':').next().unwrap_or_default();
    name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(name)
}

/// The modules of a unit: itself, or the parts of a whole layer, whose norms are placed for themselves.
fn parts_of(unit: &Unit, model: &Model) -> Vec<String> {
    let names = &model.config.family.names;
    match unit.kind {
        UnitKind::Layer { .. } => [names.attention, names.ffn].map(|part| format!("{}.{part}", unit.name)).into(),
        _ => vec![unit.name.clone()],
    }
}

/// One entry for each tensor of a layer, or of a unit that is cut, that is in none of these modules; norms and biases are where the unit is computed.
fn insert_rest(map: &mut DeviceMap, (unit, parts): (&Unit, &[String]), plan: &Plan, catalog: &Catalog, planned: &UnitPlan) {
    let is_outside = |module: &str| {
        let is_in = |part: &String| module.strip_prefix(part.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        (unit.kind.layer().is_some() || parts.is_empty()) && !parts.iter().any(is_in)
    };
    for id in unit.matrices().filter(|id| is_outside(module_of(catalog, *id))) {
        let chunk = plan.chunks[planned.chunks.clone()].iter().find(|chunk| chunk.slices.iter().any(|slice| slice.tensor == id));
        map.insert(module_of(catalog, id).to_owned(), chunk.map_or(DeviceKey::Disk, |chunk| DeviceKey::from(chunk.stored_on)));
    }
    for id in unit.vectors().filter(|id| is_outside(module_of(catalog, *id))) {
        map.insert(module_of(catalog, id).to_owned(), DeviceKey::from(planned.execute_on));
    }
}
