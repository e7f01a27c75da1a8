//! What an engine knows of the experts that its tokens take, and what it makes of that.

use std::collections::BTreeMap;

use crate::device::Device;
use crate::engine::Engine;
use crate::error::Result;
use crate::plan::{ExpertCachePlan, ExpertProfile, HOST_MISS_TOKENS, Workload, predict};
use crate::stream::{ExpertStatistics, GpuExecutor};

/// Forwards of few tokens after which a cache is split anew, where what they took tells of a split that is clearly faster.
const FORWARDS_TO_SEE: usize = 256;
/// By how much it must be faster.
const LEAST_GAIN: f64 = 0.1;

impl Engine {
    /// What the expert caches of all adapters were asked for so far.
    pub fn expert_statistics(&self) -> ExpertStatistics {
        self.expert_statistics_of_layers().into_iter().map(|(_, statistics)| statistics).sum()
    }

    /// The same of each layer whose experts pass through a cache, by the name of its unit, in order.
    pub fn expert_statistics_of_layers(&self) -> Vec<(&str, ExpertStatistics)> {
        let plan = self.plan();
        let of_caches = self.executors.devices().iter().filter_map(|(_, executor)| executor.gpu());
        let of_chunks: BTreeMap<usize, ExpertStatistics> = of_caches.flat_map(GpuExecutor::expert_statistics).collect();
        let name = |chunk: usize| plan.units[plan.chunks[chunk].unit()].name.as_str();
        of_chunks.into_iter().map(|(chunk, statistics)| (name(chunk), statistics)).collect()
    }

    /// Which experts tokens took so far, here and in the profile that it began with, of layers whose experts pass through a cache; `None`
    /// where none do.
    pub fn expert_profile(&self) -> Option<ExpertProfile> {
        let plan = self.plan();
        let name = |chunk: usize| plan.units[plan.chunks[chunk].unit()].name.clone();
        let layers = self.executors.devices().iter().filter_map(|(_, executor)| executor.gpu()).flat_map(GpuExecutor::expert_times);
        let named: BTreeMap<String, Vec<f64>> = layers.map(|(chunk, times)| (name(chunk), times)).collect();
        (!named.is_empty()).then(|| ExpertProfile::new(named))
    }

    /// The expert caches as they are now: with the hits that tokens have shown instead of what the plan assumed, and with as many whole
    /// layers as these make worth it. Until enough tokens have shown anything, they are those of the plan.
    pub fn expert_caches(&self) -> impl Iterator<Item = (Device, &ExpertCachePlan)> {
        self.executors.devices().iter().filter_map(|(device, executor)| Some((*device, executor.gpu()?.expert_cache()?)))
    }

    /// Counts a forward, and after some splits the expert caches anew by what tokens took: weights move, answers do not.
    ///
    /// # Errors
    /// Those of reading and of the adapter.
    pub(super) fn adapt_experts(&mut self, workload: Workload) -> Result<()> {
        if workload.n_tokens > HOST_MISS_TOKENS {
            return Ok(());
        }
        self.n_since_adapted += 1;
        if self.n_since_adapted < FORWARDS_TO_SEE {
            return Ok(());
        }
        self.n_since_adapted = 0;
        let caches: Vec<(Device, ExpertCachePlan)> = self.expert_caches().map(|(device, cache)| (device, *cache)).collect();
        let Some(profile) = self.expert_profile() else { return Ok(()) };
        for (device, cache) in caches {
            let seen = self.split_as_seen((device, &cache), &profile, workload);
            let found = seen.expected_hit_rate() * 100.0;
            tracing::info!(
                "{device}: {found:.0} % of experts found in the cache; {} of {} layers stay whole",
                seen.misses.n_whole,
                seen.n_layers
            );
            self.executors.split_experts(device, seen)?;
        }
        Ok(())
    }

    /// A cache as `profile` has seen it, split anew where that is predicted to be clearly faster.
    fn split_as_seen(&self, (device, cache): (Device, &ExpertCachePlan), profile: &ExpertProfile, workload: Workload) -> ExpertCachePlan {
        let prepared = &self.model.prepared;
        let secs = |cache: &ExpertCachePlan| {
            let plan = prepared.plan.with_expert_cache(device, *cache);
            predict(&plan, &prepared.checkpoint.catalog, &prepared.model, &prepared.devices, workload).secs
        };
        let now = cache.split(cache.misses.n_whole, Some(profile)).unwrap_or(*cache);
        match cache.fastest_split(Some(profile), secs) {
            Some((split, best_secs)) if best_secs < secs(&now) * (1.0 - LEAST_GAIN) => split,
            _ => now,
        }
    }
}
