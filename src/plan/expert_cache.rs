//! The expert cache: slots on an adapter for single experts of any layer, filled with those that tokens take and that are not there. Here are
//! its size, and what a forward is expected to find in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::{Device, GpuLimits};
use crate::error::{Error, Result, Setting};
use crate::model::{ExpertMatMul, Model, Op};
use crate::plan::chunks::{Chunk, SLICE_ALIGNMENT, Slice, Work};
use crate::plan::{ExpertMisses, ExpertProfile, Plan};
use crate::units::Bytes;

/// How much more often than by chance experts are found, before it is known of a model: hits of a cache that has a share `f` of all experts
/// are taken as 1 − (1 − f) to this power, 0.87 of a third. Tokens of published models find 0.85 to 0.93 with a third.
const REUSE: i32 = 5;

/// Splits of a cache between whole layers and single experts that are compared, besides that with no whole layer.
const N_SPLITS: usize = 8;

/// Whether experts may pass through a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpertCacheRule {
    /// Where that is predicted to be the fastest.
    #[default]
    Auto,
    /// Wherever the model has experts and an adapter computes.
    Always,
    /// Never.
    Never,
}

impl fmt::Display for ExpertCacheRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ExpertCacheRule::Auto => "auto",
            ExpertCacheRule::Always => "on",
            ExpertCacheRule::Never => "off",
        })
    }
}

impl FromStr for ExpertCacheRule {
    type Err = Error;
    fn from_str(text: &str) -> Result<ExpertCacheRule> {
        match text {
            "auto" => Ok(ExpertCacheRule::Auto),
            "on" => Ok(ExpertCacheRule::Always),
            "off" => Ok(ExpertCacheRule::Never),
            _ => {
                Err(Error::InvalidArgument { option: Setting::ExpertCache.into(), reason: format!("`{text}` is none of auto, on and off") })
            }
        }
    }
}

/// The expert cache of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertCachePlan {
    /// Experts that it has room for.
    pub n_slots: usize,
    /// Bytes of a slot: those of the largest expert.
    pub slot_bytes: Bytes,
    /// Slots that share a buffer, at most: as many as one binding shows.
    pub block_slots: usize,
    /// Bytes of the tables that say which experts are in one buffer, one of each layer: one u32 for each expert.
    pub table_bytes: Bytes,
    /// Layers whose experts pass through it.
    pub n_layers: usize,
    /// Experts of a layer, the most of all of them.
    pub layer_experts: usize,
    /// Experts of all these layers.
    pub n_experts: usize,
    /// Of them, those that a token takes.
    pub n_used: usize,
    /// Who computes with experts that are not in it.
    pub misses: ExpertMisses,
}

/// One buffer of an expert cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertCacheBlock {
    /// Its first slot.
    pub first_slot: usize,
    /// Its slots.
    pub n_slots: usize,
}

impl ExpertCachePlan {
    /// The largest cache in `room` bytes for the experts of these chunks; `None` where it cannot have all experts of one token at once, or
    /// where the limits do not allow a slot.
    pub(super) fn fitted(
        shapes: &[ExpertShape],
        limits: &GpuLimits,
        room: Bytes,
        misses: ExpertMisses,
        profile: Option<&ExpertProfile>,
    ) -> Option<ExpertCachePlan> {
        let slot_bytes = shapes.iter().map(|shape| shape.size_bytes).max()?;
        let most = limits.max_binding_bytes.min(limits.max_buffer_bytes).min(Bytes(u64::from(u32::MAX)));
        let block_slots = usize::try_from(most.0.checked_div(slot_bytes.0)?).ok()?;
        let n_experts = shapes.iter().map(|shape| shape.n_experts).sum();
        let layer_experts = shapes.iter().map(|shape| shape.n_experts).max()?;
        let (n_layers, table_bytes) = (shapes.len(), shapes.iter().map(ExpertShape::table_bytes).sum());
        let n_used = shapes.iter().map(|shape| shape.n_used).sum();
        let of = |n_slots: usize| ExpertCachePlan {
            n_slots,
            slot_bytes,
            block_slots,
            table_bytes,
            n_layers,
            layer_experts,
            n_experts,
            n_used,
            misses,
        };
        let block = of(block_slots).size_bytes();
        let (n_full, rest) = (room.0.checked_div(block.0)?, room.0 % block.0);
        let n_more = rest.saturating_sub(table_bytes.0) / slot_bytes.0;
        let n_slots = usize::try_from(n_full).ok()?.saturating_mul(block_slots).saturating_add(n_more as usize).min(n_experts);
        let least = shapes.iter().map(|shape| shape.n_used).max()?;
        let made = of(n_slots);
        let made = (block_slots > 0 && made.has_room_for(least)).then_some(made)?;
        Some(match profile {
            Some(profile) if misses.hit_percent.is_none() => made.as_seen(profile),
            _ => made,
        })
    }

    /// The same with so many whole layers, and with hits as `profile` has them; `None` where it has no room for them.
    pub(crate) fn split(&self, n_whole: usize, profile: Option<&ExpertProfile>) -> Option<ExpertCachePlan> {
        let split = ExpertCachePlan { misses: ExpertMisses { n_whole, ..self.misses }, ..*self };
        let has_room = split.has_room_for(self.n_used.div_ceil(self.n_layers.max(1)));
        has_room.then(|| profile.map_or(split, |profile| split.as_seen(profile)))
    }

    /// The split that takes the fewest seconds, with these, of no whole layer and of more and more until there is no room. Of those that
    /// take the same the one with the fewest whole layers.
    pub(crate) fn fastest_split(
        &self,
        profile: Option<&ExpertProfile>,
        secs: impl Fn(&ExpertCachePlan) -> f64,
    ) -> Option<(ExpertCachePlan, f64)> {
        let most = self.n_slots.checked_div(self.layer_experts).unwrap_or(0).min(self.n_layers);
        let n_splits = most.min(N_SPLITS);
        let splits = (0..=n_splits).map(|part| most * part / n_splits.max(1)).filter_map(|n_whole| self.split(n_whole, profile));
        let faster = |best: (ExpertCachePlan, f64), next: (ExpertCachePlan, f64)| if next.1 < best.1 * (1.0 - 1e-6) { next } else { best };
        splits.map(|split| (split, secs(&split))).reduce(faster)
    }

    /// Whether its whole layers leave slots for `least` experts of another one at once, or there is no other.
    fn has_room_for(&self, least: usize) -> bool {
        self.misses.n_whole <= self.n_layers && self.n_shared_slots() >= least.min(self.n_shared_experts())
    }

    /// The same with hits as `profile` has them.
    fn as_seen(self, profile: &ExpertProfile) -> ExpertCachePlan {
        let hit_percent = profile.hit_percent(self.misses.n_whole, self.n_shared_slots()).or(self.misses.hit_percent);
        ExpertCachePlan { misses: ExpertMisses { hit_percent, ..self.misses }, ..self }
    }

    /// Slots for the experts of layers that are not whole.
    pub fn n_shared_slots(&self) -> usize {
        self.n_slots.saturating_sub(self.misses.n_whole.saturating_mul(self.layer_experts))
    }

    /// Experts of layers that are not whole.
    fn n_shared_experts(&self) -> usize {
        self.n_experts.saturating_sub(self.misses.n_whole.saturating_mul(self.layer_experts))
    }

    /// Bytes of all of it.
    pub fn size_bytes(&self) -> Bytes {
        self.slot_bytes.times(self.n_slots as u64) + self.table_bytes.times(self.n_blocks() as u64)
    }

    /// Its buffers.
    pub fn n_blocks(&self) -> usize {
        self.n_slots.div_ceil(self.block_slots.max(1))
    }

    /// Its buffers, in order.
    pub fn blocks(&self) -> impl Iterator<Item = ExpertCacheBlock> + '_ {
        (0..self.n_blocks()).map(|block| {
            let first_slot = block * self.block_slots;
            ExpertCacheBlock { first_slot, n_slots: self.block_slots.min(self.n_slots - first_slot) }
        })
    }

    /// The share of a forward's experts that is expected to be in it, of layers that are not whole, where the forward takes `n_taken`
    /// experts of all layers together.
    pub(super) fn hit_rate(&self, n_taken: f64) -> f64 {
        let (n_slots, n_experts) = (self.n_shared_slots(), self.n_shared_experts());
        if n_slots >= n_experts {
            return 1.0;
        }
        let n_taken = n_taken * self.n_layers.saturating_sub(self.misses.n_whole) as f64 / self.n_layers.max(1) as f64;
        // What takes more than there is room for has replaced all before it comes back to the first layer.
        if n_taken > n_slots as f64 + 0.5 {
            return 0.0;
        }
        match self.misses.hit_percent {
            Some(percent) => f64::from(percent) / 100.0,
            None => 1.0 - (1.0 - n_slots as f64 / n_experts as f64).powi(REUSE),
        }
    }

    /// The share of a token's experts that is expected to be in it, of layers that are not whole, as runs before have shown it or as is
    /// assumed.
    pub fn expected_hit_rate(&self) -> f64 {
        self.hit_rate(self.n_used as f64)
    }
}

/// The experts of one chunk: how many there are, and how one lies in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpertShape {
    /// Experts.
    pub n_experts: usize,
    /// Experts of a token.
    pub n_used: usize,
    /// Per slice of the chunk: where the expert's rows of it begin in the slot, and their bytes.
    pub matrices: Vec<(u64, u64)>,
    /// Bytes of the slot that it takes.
    pub size_bytes: Bytes,
}

impl ExpertShape {
    /// Bytes of one expert as stored, without gaps.
    pub(crate) fn stored_bytes(&self) -> Bytes {
        Bytes(self.matrices.iter().map(|(_, len)| *len).sum())
    }

    /// Bytes of the table that says which of its experts are in a buffer.
    pub(crate) fn table_bytes(&self) -> Bytes {
        Bytes(self.n_experts as u64 * 4).align_up(SLICE_ALIGNMENT)
    }

    /// Experts that a forward of `n_tokens` takes, of tokens that choose independently.
    pub(super) fn n_taken(&self, n_tokens: usize) -> f64 {
        let (n_experts, share) = (self.n_experts as f64, self.n_used as f64 / self.n_experts.max(1) as f64);
        n_experts * (1.0 - (1.0 - share).powf(n_tokens as f64))
    }
}

/// The products with experts of a chunk, each with its slice.
pub(crate) fn expert_products<'a>(chunk: &'a Chunk, model: &'a Model) -> impl Iterator<Item = (&'a ExpertMatMul, &'a Slice)> {
    let steps = chunk.work.iter().flat_map(|of_unit| of_unit.steps.iter().map(|step| (of_unit.unit, step)));
    steps.filter_map(|(unit, step)| match *step {
        Work::Rows { op, slice } => model.units.get(unit)?.ops.get(op)?.experts().zip(chunk.slices.get(slice)),
        Work::Op(_) => None,
    })
}

/// The experts of a chunk that passes through an expert cache; `None` of one that has none.
pub(crate) fn expert_shape(chunk: &Chunk, model: &Model) -> Option<ExpertShape> {
    let (first, _) = expert_products(chunk, model).next()?;
    let (n_experts, n_used) = (first.n_experts, first.n_used);
    let mut end = 0;
    let mut matrix = |(op, slice): (&ExpertMatMul, &Slice)| {
        let size_bytes = slice.size_bytes.checked_div(op.n_experts as u64).unwrap_or(0);
        let begin = end;
        end = (begin + size_bytes).next_multiple_of(SLICE_ALIGNMENT);
        (begin, size_bytes)
    };
    let matrices = expert_products(chunk, model).map(&mut matrix).collect();
    Some(ExpertShape { n_experts, n_used, matrices, size_bytes: Bytes(end) })
}

/// The experts of all chunks that pass through the expert cache of `device`.
pub(super) fn cached_shapes(plan: &Plan, model: &Model, device: Device) -> Vec<ExpertShape> {
    plan.cached_on(device).filter_map(|chunk| expert_shape(&plan.chunks[chunk], model)).collect()
}

/// Bytes of the numbers by which the host knows which experts tokens take; zero of a model without experts.
pub(super) fn routing_bytes(model: &Model, n_tokens: usize) -> Bytes {
    let routing = model.units.iter().flat_map(|unit| &unit.ops).filter_map(|op| match op {
        Op::Route(route) => Some(model.value(route.routing).width as u64 * 4),
        _ => None,
    });
    Bytes(routing.max().unwrap_or(0)).times(n_tokens as u64)
}

/// Bytes of a chunk's experts that a forward of `n_tokens` is expected to miss in the cache, with this share of hits.
pub(super) fn missed_bytes(chunk: &Chunk, model: &Model, n_tokens: usize, hit_rate: f64) -> Bytes {
    let Some(shape) = expert_shape(chunk, model) else { return Bytes::ZERO };
    let of_one: u64 = shape.matrices.iter().map(|(_, size_bytes)| size_bytes).sum();
    Bytes((shape.n_taken(n_tokens) * (1.0 - hit_rate) * of_one as f64) as u64)
}
