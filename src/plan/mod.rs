//! Planning: a catalog, a model, devices and options become a [`Plan`]. Pure: the same input gives the same plan,
//! byte for byte; no files, no clocks, no GPU.

pub mod accelerate;
mod homes;
mod options;
mod pieces;
mod placement;
mod report;
mod schedule;
pub mod sizes;

use serde::Serialize;

use crate::device::{Device, DeviceSpec};
use crate::error::Result;
use crate::model::Model;
use crate::units::Bytes;
use crate::weights::Catalog;
pub use options::{KvDType, PlanOptions, ResidentLayers, UploadPath};
pub use pieces::{Piece, SLICE_ALIGNMENT, Slice, Work, cut};
pub use schedule::{Schedule, Step};
pub use sizes::{ForwardSize, WorkingBuffer};

/// Where every weight lives, who computes, and what memory that takes. An executor that allocates its vectors, KV
/// caches, [`sizes::working_set`], parameters of [`Plan::n_dispatches`], resident pieces and ring takes exactly
/// [`DevicePlan::used`] of the executing device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Version of this form, for programs that read it.
    pub schema: &'static str,
    /// Who computes.
    pub execute_on: Device,
    /// Every device that takes part: the executing one first, then host memory and disk.
    pub devices: Vec<DevicePlan>,
    /// Every unit with its home, in the model's order.
    pub units: Vec<UnitPlan>,
    /// The pieces that units are cut into, in the order of the computation.
    pub pieces: Vec<Piece>,
    /// The ring of slots; `None` where nothing streams.
    pub ring: Option<RingPlan>,
    /// Positions per sequence.
    pub ctx_size: usize,
    /// Positions that the model was trained for.
    pub ctx_size_model: usize,
    /// Sequences side by side.
    pub n_seqs: usize,
    /// What one forward may ask for at most.
    pub forward: ForwardSize,
    /// How the KV cache stores its numbers.
    pub kv_dtype: KvDType,
}

/// What a plan puts on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DevicePlan {
    /// Which device.
    pub device: Device,
    /// What it is called.
    pub name: String,
    /// What the plan may use; `None` for a disk.
    pub budget: Option<Bytes>,
    /// Where the budget comes from.
    pub budget_source: String,
    /// What it holds.
    pub used: Usage,
    /// Units whose home it is.
    pub n_units: usize,
    /// Bytes that leave it, per forward, to reach the executing device.
    pub streamed_bytes: Bytes,
}

/// Bytes on one device, by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Weights that stay.
    pub weights: Bytes,
    /// The KV cache.
    pub kv_cache: Bytes,
    /// Activations, tables and parameters of a forward.
    pub activations: Bytes,
    /// Slots that streamed weights pass through.
    pub slots: Bytes,
    /// Staging in front of the slots.
    pub staging: Bytes,
}

impl Usage {
    /// All of it.
    pub fn total(&self) -> Bytes {
        self.weights + self.kv_cache + self.activations + self.slots + self.staging
    }
}

/// Where one unit lives. Homes go front to back: the executing device, then host memory, then disk; only the embedding,
/// whose rows the host gathers, lies in host memory or on disk whatever the others do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnitPlan {
    /// The unit's name, as device maps write it.
    pub name: String,
    /// Where its matrices live.
    pub home: Device,
    /// Bytes of its matrices as stored (0 for a head that is the embedding and was counted there).
    pub size_bytes: Bytes,
    /// Its pieces: a range of [`Plan::pieces`].
    pub pieces: std::ops::Range<usize>,
}

/// The ring that streamed pieces pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RingPlan {
    /// How many slots.
    pub n_slots: usize,
    /// Bytes of each.
    pub slot_bytes: Bytes,
    /// How many pieces ahead of the computation uploads are started.
    pub lookahead: usize,
    /// How bytes reach a slot.
    pub upload: UploadPath,
}

/// Makes a plan: greedy, front to back, fastest device first.
///
/// # Errors
/// [`crate::error::Error::DoesNotFit`] with the least budget that works, found by trying, or with the adapter limit in
/// the way; [`crate::error::Error::UnsupportedModel`] for heads too large for a GPU;
/// [`crate::error::Error::InvalidArgument`] for a device that is not there.
pub fn plan(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Result<Plan> {
    placement::place(catalog, model, devices, options)
}

impl Plan {
    /// Where the unit of `piece` lives.
    pub fn home(&self, piece: usize) -> Device {
        self.units[self.pieces[piece].unit].home
    }

    /// Whether `piece` stays on the executing device.
    pub fn is_resident(&self, piece: usize) -> bool {
        self.home(piece) == self.execute_on
    }

    /// The pieces that pass through the ring at every forward, in order.
    pub fn streamed_pieces(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.pieces.len()).filter(|&piece| !self.is_resident(piece))
    }

    /// Bytes that pass through the ring at every forward.
    pub fn streamed_bytes(&self) -> Bytes {
        self.streamed_pieces().map(|piece| self.pieces[piece].size_bytes).sum()
    }

    /// Dispatches of one forward at most; each needs a set of parameters.
    pub fn n_dispatches(&self) -> usize {
        placement::n_dispatches_of(&self.pieces)
    }

    /// What is planned for `device`.
    pub fn device(&self, device: Device) -> Option<&DevicePlan> {
        self.devices.iter().find(|plan| plan.device == device)
    }
}
