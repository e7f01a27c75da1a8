//! A sketch of a plan: for every unit, who computes it and where it lives. Plans are searched as sketches, since whole units are
//! compared in microseconds; pieces and exact bytes come later.

use crate::device::Device;
use crate::plan::Placement;
use crate::plan::site::Site;

/// Where a unit lives, and who computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    /// Index of the worker that computes it.
    pub(super) worker: usize,
    pub(super) home: SpotHome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SpotHome {
    /// With the worker.
    Resident,
    /// Held in host memory.
    Host,
    /// On disk.
    Disk,
}

impl SpotHome {
    /// The device that it is for a unit computed by `executor`.
    pub(super) fn of(self, executor: Device) -> Device {
        match self {
            SpotHome::Resident => executor,
            SpotHome::Host => Device::Cpu,
            SpotHome::Disk => Device::Disk,
        }
    }
}

/// A spot for every unit after the embedding, and the number of slots of each ring.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Sketch {
    pub(super) spots: Vec<Spot>,
    pub(super) n_slots: usize,
}

impl Sketch {
    /// The same as placements, for a build.
    pub(super) fn placements(&self, site: &Site<'_>) -> Vec<Placement> {
        let of = |(index, spot): (usize, &Spot)| {
            let device = site.workers[spot.worker].device;
            Placement { execute_on: device, homes: vec![spot.home.of(device); site.model.units[index + 1].matrices().count()] }
        };
        let embedding = Placement { execute_on: Device::Cpu, homes: Vec::new() };
        std::iter::once(embedding).chain(self.spots.iter().enumerate().map(of)).collect()
    }

    /// The sketch of placements whose units are whole.
    pub(super) fn of(site: &Site<'_>, placements: &[Placement], n_slots: usize) -> Option<Sketch> {
        let spot = |placement: &Placement| {
            let home = match *placement.homes.first()? {
                home if home == placement.execute_on => SpotHome::Resident,
                Device::Cpu => SpotHome::Host,
                Device::Disk => SpotHome::Disk,
                Device::Gpu(_) => return None,
            };
            let is_whole = placement.homes.iter().all(|other| *other == placement.homes[0]);
            is_whole.then_some(Spot { worker: site.worker(placement.execute_on)?, home })
        };
        Some(Sketch { spots: placements.iter().skip(1).map(spot).collect::<Option<_>>()?, n_slots })
    }
}
