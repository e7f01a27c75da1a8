//! An assignment of a plan: for every unit, who computes it and where it lives. Plans are searched as assignments, since whole units are
//! compared in microseconds; chunks and exact bytes come later.

use crate::device::Device;
use crate::plan::Placement;
use crate::plan::site::Site;

/// Where a unit lives, and who computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct UnitAssignment {
    /// Index of the worker that computes it.
    pub(super) worker: usize,
    pub(super) stored_on: Residency,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Residency {
    /// With the worker.
    Resident,
    /// Held in host memory.
    Host,
    /// On disk.
    Disk,
}

impl Residency {
    /// The device that it is for a unit computed by `executor`.
    pub(super) fn of(self, executor: Device) -> Device {
        match self {
            Residency::Resident => executor,
            Residency::Host => Device::Cpu,
            Residency::Disk => Device::Disk,
        }
    }
}

/// A unit assignment for every unit after the embedding, and the number of slots of each ring.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Assignment {
    pub(super) unit_assignments: Vec<UnitAssignment>,
    pub(super) n_slots: usize,
}

impl Assignment {
    /// The same as placements, for a build.
    pub(super) fn placements(&self, site: &Site<'_>) -> Vec<Placement> {
        let of = |(index, unit_assignment): (usize, &UnitAssignment)| {
            let device = site.workers[unit_assignment.worker].device;
            Placement {
                execute_on: device,
                stored_on: vec![unit_assignment.stored_on.of(device); site.model.units[index + 1].matrices().count()],
            }
        };
        let embedding = Placement { execute_on: Device::Cpu, stored_on: Vec::new() };
        std::iter::once(embedding).chain(self.unit_assignments.iter().enumerate().map(of)).collect()
    }

    /// The assignment of placements whose units are whole.
    pub(super) fn of(site: &Site<'_>, placements: &[Placement], n_slots: usize) -> Option<Assignment> {
        let unit_assignment = |placement: &Placement| {
            let stored_on = match *placement.stored_on.first()? {
                stored_on if stored_on == placement.execute_on => Residency::Resident,
                Device::Cpu => Residency::Host,
                Device::Disk => Residency::Disk,
                Device::Gpu(_) => return None,
            };
            let is_whole = placement.stored_on.iter().all(|other| *other == placement.stored_on[0]);
            is_whole.then_some(UnitAssignment { worker: site.worker(placement.execute_on)?, stored_on })
        };
        Some(Assignment { unit_assignments: placements.iter().skip(1).map(unit_assignment).collect::<Option<_>>()?, n_slots })
    }
}
