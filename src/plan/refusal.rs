//! Refusals: why there is no plan, and exactly what would be enough.

use crate::error::Error;
use crate::plan::candidates;
use crate::plan::site::Site;
use crate::plan::{Context, Placement, ResidentLayers, Spill};
use crate::units::Bytes;

/// Rounds in which a refusal's advice is tried as it would be followed.
const N_NAMED_ROUNDS: usize = 8;

/// Why a plan cannot be made.
pub(super) enum Refusal {
    /// A device's budget is too small.
    Budget,
    /// Something that no budget changes.
    Limit(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Limit(error)
    }
}

impl Site<'_> {
    /// The refusal of placements that are not the planner's to change.
    pub(super) fn placements_too_large(&self, placements: &[Placement]) -> Error {
        let available = self.chain_of(placements).iter().map(|&worker| self.workers[worker].budget).sum();
        let advice = "raise --max-memory, lower --ctx-size, or let the planner choose the homes (--device-map auto)".into();
        Error::DoesNotFit { device: "these homes".into(), needed: self.needed(placements), available, advice }
    }

    /// Bytes of the matrices that placements keep with those who compute them, for a refusal.
    fn needed(&self, placements: &[Placement]) -> Bytes {
        let of_unit = |(unit, placement): (usize, &Placement)| -> Bytes {
            let matrices = self.model.units[unit].matrices().zip(&placement.homes);
            matrices.filter(|(_, home)| **home == placement.execute_on).map(|(id, _)| self.catalog[id].size_bytes).sum()
        };
        placements.iter().enumerate().map(of_unit).sum()
    }

    /// The refusal, with the least budget that works.
    pub(super) fn too_small(&self) -> Error {
        let tried = self.workers.len() - 1;
        let (device, available) = (self.workers[tried].device, self.workers[tried].budget);
        let mut advice = format!("raise --max-memory {device}=…");
        match (self.options.context, self.options.resident_layers) {
            (Context::Fit, _) => advice.push_str(", or drop --fit so that a part streams"),
            (_, ResidentLayers::All) => advice.push_str(", or drop `-ngl all` so that a part streams"),
            _ => {}
        }
        if self.options.spill == Spill::Refused {
            advice.push_str(", or drop --strict so that weights may live elsewhere");
        }
        if let Some(ctx_size) = self.options.ctx_size {
            advice.push_str(&format!(", or lower --ctx-size ({ctx_size})"));
        }
        if let Some(ubatch_size) = self.options.ubatch_size.filter(|&size| size > 1) {
            advice.push_str(&format!(", or lower --ubatch-size ({ubatch_size})"));
        }
        let needed = match self.least_named_budget(tried) {
            Ok(needed) => needed,
            Err(Refusal::Limit(error)) => return error,
            Err(Refusal::Budget) => Bytes(u64::MAX),
        };
        Error::DoesNotFit { device: device.to_string(), needed, available, advice }
    }

    /// As [`Site::least_budget`], but enough too where it is named: then others that share the memory may get less.
    fn least_named_budget(&self, worker: usize) -> Result<Bytes, Refusal> {
        let mut needed = self.least_budget(worker)?;
        if self.workers.len() == 1 {
            return Ok(needed);
        }
        let mut options = self.options.clone();
        for _ in 0..N_NAMED_ROUNDS {
            options.max_memory.insert(self.workers[worker].device, needed);
            let named = Site::new(self.catalog, self.model, self.devices, &options)?;
            if candidates::is_possible(&named) {
                return Ok(needed);
            }
            needed = named.least_budget(worker)?.max(Bytes(needed.0.saturating_add(needed.0 / 8)));
        }
        Err(Refusal::Budget)
    }

    /// The least budget of `worker` above the present one, which is too small: found by trying, so that it is true.
    fn least_budget(&self, worker: usize) -> Result<Bytes, Refusal> {
        let mut budgets = self.budgets();
        let chain: Vec<usize> = (0..self.workers.len()).collect();
        let mut place = |budget: Bytes| {
            budgets[worker] = budget;
            self.greedy(&chain, &budgets).map(drop)
        };
        let (mut too_small, mut enough) = (self.workers[worker].budget, self.workers[worker].budget.max(Bytes::kib(64)));
        while let Err(refusal) = place(enough) {
            if enough == Bytes(u64::MAX) || matches!(refusal, Refusal::Limit(_)) {
                return Err(refusal);
            }
            (too_small, enough) = (enough, enough.times(2));
        }
        while enough.0 - too_small.0 > 1 {
            let middle = Bytes(too_small.0 + (enough.0 - too_small.0) / 2);
            match place(middle) {
                Ok(()) => enough = middle,
                Err(_) => too_small = middle,
            }
        }
        Ok(enough)
    }
}
