//! Placements of models with experts: one adapter has attention and all else that every token needs, the experts are elsewhere.

use crate::device::Device;
use crate::model::{Op, Unit};
use crate::plan::chunks::SLICE_ALIGNMENT;
use crate::plan::site::Site;
use crate::plan::{ExpertMisses, HostLayers, Placement};
use crate::units::Bytes;

/// Placements by which `worker` computes everything and has all but the experts, which pass through its cache. These are in host memory as
/// far as `host_room` goes, and on disk. `None` of a model without experts.
pub(super) fn cached(site: &Site<'_>, worker: usize, host_room: Bytes) -> Option<Vec<Placement>> {
    let device = site.workers[worker].device;
    let misses = ExpertMisses::of(site, worker);
    let mut host = HostRoom { site, left: host_room };
    let placement = |unit: &Unit| {
        let stored = host.store(unit, is_of_experts);
        let stored_on = matrices(unit).map(|op| if is_of_experts(op) { stored } else { device });
        Placement { execute_on: device, stored_on: stored_on.collect(), expert_misses: Some(misses) }
    };
    has_experts(site).then(|| with_embedding(site, placement))
}

/// Placements by which the host computes the feed-forward parts of `layers` that have experts, and `worker` all else, which stays there.
/// What the host computes is in host memory as far as `host_room` goes, and on disk. `None` of a model without experts.
pub(super) fn on_host(site: &Site<'_>, worker: usize, layers: &HostLayers, host_room: Bytes) -> Option<Vec<Placement>> {
    let device = site.workers[worker].device;
    let mut host = HostRoom { site, left: host_room };
    let mut n_before = 0;
    let placement = |unit: &Unit| {
        let has_experts = unit.ops.iter().any(is_of_experts);
        let is_meant = match layers {
            HostLayers::First(n_layers) => n_before < *n_layers,
            HostLayers::Listed(layers) => unit.kind.layer().is_some_and(|layer| layers.contains(&layer)),
        };
        n_before += usize::from(has_experts);
        let is_on_host = has_experts && is_meant;
        let (execute_on, stored) = if is_on_host { (Device::Cpu, host.store(unit, |_| true)) } else { (device, device) };
        Placement::new(execute_on, vec![stored; unit.matrices().count()])
    };
    has_experts(site).then(|| with_embedding(site, placement))
}

fn is_of_experts(op: &Op) -> bool {
    op.experts().is_some()
}

fn has_experts(site: &Site<'_>) -> bool {
    site.model.units.iter().flat_map(|unit| &unit.ops).any(is_of_experts)
}

fn matrices(unit: &Unit) -> impl Iterator<Item = &Op> {
    unit.ops.iter().filter(|op| op.matrix().is_some())
}

/// The placement of each unit; the embedding's rows are gathered by the host.
fn with_embedding(site: &Site<'_>, placement: impl FnMut(&Unit) -> Placement) -> Vec<Placement> {
    let embedding = Placement::new(Device::Cpu, Vec::new());
    std::iter::once(embedding).chain(site.model.units.iter().skip(1).map(placement)).collect()
}

/// Host memory that is filled unit by unit.
struct HostRoom<'a> {
    site: &'a Site<'a>,
    left: Bytes,
}

impl HostRoom<'_> {
    /// Where the matrices of a unit that are wanted are stored: in host memory while there is room, then on disk.
    fn store(&mut self, unit: &Unit, is_wanted: impl Fn(&Op) -> bool) -> Device {
        let wanted = unit.ops.iter().filter(|op| is_wanted(op)).filter_map(Op::matrix);
        let size: Bytes = wanted.map(|id| self.site.catalog[id].size_bytes.align_up(SLICE_ALIGNMENT)).sum();
        if size > self.left || !self.site.may_hold(Device::Cpu) {
            return Device::Disk;
        }
        self.left = self.left.saturating_sub(size);
        Device::Cpu
    }
}
