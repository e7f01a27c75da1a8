//! Assignments: plans as the search sees them. For every unit, an assignment says which worker computes it and where its matrices are
//! stored; it has neither chunks nor exact bytes, so that one is scored in microseconds. `build.rs` makes a plan of it.

use crate::device::Device;
use crate::plan::Placement;
use crate::plan::site::Site;

/// Which worker computes a unit, and where its matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct UnitAssignment {
    /// Index of the worker that computes it.
    pub(super) worker: usize,
    pub(super) residency: Residency,
}

/// Where the matrices of a unit are stored, as seen from the worker that computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Residency {
    /// On the worker's own device.
    Resident,
    /// In host memory; it streams to the worker.
    Host,
    /// On disk; it streams to the worker.
    Disk,
}

/// How many of them there are.
const N_RESIDENCIES: usize = 3;

impl Residency {
    /// The device that stores a unit computed by `executor`.
    pub(super) fn device(self, executor: Device) -> Device {
        match self {
            Residency::Resident => executor,
            Residency::Host => Device::Cpu,
            Residency::Disk => Device::Disk,
        }
    }
}

/// One entry for every unit after the embedding, and the number of slots of each ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) units: Vec<UnitAssignment>,
    pub(super) n_slots: usize,
}

impl Assignment {
    /// The same in little memory, to look up what is known of it: equal for equal assignments only.
    pub(super) fn key(&self) -> Vec<u16> {
        let of_unit = |unit: &UnitAssignment| unit.worker * N_RESIDENCIES + unit.residency as usize;
        // There are far fewer workers, and slots, than numbers of 16 bits.
        self.units.iter().map(of_unit).chain([self.n_slots]).map(|number| number as u16).collect()
    }

    /// The same as placements, for a build.
    pub(super) fn placements(&self, site: &Site<'_>) -> Vec<Placement> {
        let placement = |(index, unit): (usize, &UnitAssignment)| {
            let device = site.workers[unit.worker].device;
            let n_matrices = site.model.units[index + 1].matrices().count();
            Placement::new(device, vec![unit.residency.device(device); n_matrices])
        };
        let embedding = Placement::new(Device::Cpu, Vec::new());
        std::iter::once(embedding).chain(self.units.iter().enumerate().map(placement)).collect()
    }

    /// The assignment of these placements; `None` where the matrices of one unit are stored in several places.
    pub(super) fn of(site: &Site<'_>, placements: &[Placement], n_slots: usize) -> Option<Assignment> {
        let unit = |placement: &Placement| {
            // What has no matrices is where it is computed.
            let residency = match *placement.stored_on.first().unwrap_or(&placement.execute_on) {
                stored_on if stored_on == placement.execute_on => Residency::Resident,
                Device::Cpu => Residency::Host,
                Device::Disk => Residency::Disk,
                Device::Gpu(_) => return None,
            };
            let is_whole = placement.stored_on.iter().all(|other| *other == placement.stored_on[0]);
            is_whole.then_some(UnitAssignment { worker: site.worker(placement.execute_on)?, residency })
        };
        Some(Assignment { units: placements.iter().skip(1).map(unit).collect::<Option<_>>()?, n_slots })
    }
}
