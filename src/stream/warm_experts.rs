//! What expert caches begin with: all experts of the layers that are whole, and of the others those that a profile says tokens take most often.

use std::collections::BTreeMap;

use crate::device::Device;
use crate::model::Model;
use crate::plan::{ExpertCachePlan, ExpertProfile, Plan, expert_shape, most_even};
use crate::stream::expert_cache::Key;
use crate::units::Bytes;

/// By chunk that passes through the cache of one device: how often tokens took each expert.
pub(super) type ExpertTimes = BTreeMap<usize, Vec<f64>>;

/// The experts that the cache of one device begins with.
#[derive(Debug)]
pub struct WarmExperts {
    pub(super) times: ExpertTimes,
    /// Chunks that are whole.
    pub(super) whole: Vec<usize>,
    /// Other chunks, with numbers of their experts.
    pub(super) taken: Vec<(usize, Vec<usize>)>,
}

impl WarmExperts {
    /// Those of each device that has an expert cache, as many as that has room for, by what `profile` says.
    pub fn of_plan(plan: &Plan, model: &Model, profile: Option<&ExpertProfile>) -> BTreeMap<Device, WarmExperts> {
        let caches = plan.devices.iter().filter_map(|of_device| Some((of_device.device, of_device.expert_cache.as_ref()?)));
        let warm = |(device, cache): (Device, &ExpertCachePlan)| {
            let times = times_of(plan, model, device, profile);
            (device, WarmExperts::of(times, cache.n_slots, cache.misses.n_whole))
        };
        caches.map(warm).collect()
    }

    fn of(times: ExpertTimes, n_slots: usize, n_whole: usize) -> WarmExperts {
        let whole = whole_chunks(&times, n_slots, n_whole);
        let n_pinned: usize = whole.iter().filter_map(|chunk| times.get(chunk)).map(Vec::len).sum();
        let mut asked: Vec<(Key, f64)> = taken(&times).filter(|((chunk, _), _)| !whole.contains(chunk)).collect();
        asked.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
        asked.truncate(n_slots.saturating_sub(n_pinned));
        let mut by_chunk = BTreeMap::<usize, Vec<usize>>::new();
        for ((chunk, expert), _) in asked {
            by_chunk.entry(chunk).or_default().push(expert);
        }
        by_chunk.values_mut().for_each(|experts| experts.sort_unstable());
        WarmExperts { times, whole, taken: by_chunk.into_iter().collect() }
    }

    /// The bytes that they take.
    pub fn size(&self, plan: &Plan, model: &Model) -> Bytes {
        let whole = self.whole.iter().map(|chunk| (*chunk, None));
        let some = self.taken.iter().map(|(chunk, experts)| (*chunk, Some(experts.len())));
        let of_chunk = |(chunk, n_experts): (usize, Option<usize>)| {
            let shape = expert_shape(&plan.chunks[chunk], model)?;
            Some(shape.stored_bytes().times(n_experts.unwrap_or(shape.n_experts) as u64))
        };
        whole.chain(some).filter_map(of_chunk).sum()
    }
}

/// The experts that were taken at all, and how often.
pub(super) fn taken(times: &ExpertTimes) -> impl Iterator<Item = (Key, f64)> {
    let each = times.iter().flat_map(|(chunk, of_chunk)| of_chunk.iter().enumerate().map(|(expert, times)| ((*chunk, expert), *times)));
    each.filter(|(_, times)| *times > 0.0)
}

/// The `n_whole` chunks that are whole in a cache of so many slots: those in which the others would find the least there, as far as it is known
/// what tokens take.
pub(super) fn whole_chunks(times: &ExpertTimes, n_slots: usize, n_whole: usize) -> Vec<usize> {
    let chunks: Vec<usize> = times.keys().copied().collect();
    let layers: Vec<&[f64]> = times.values().map(Vec::as_slice).collect();
    most_even(&layers, n_slots, n_whole).into_iter().filter_map(|layer| chunks.get(layer).copied()).collect()
}

/// What `profile` says of the chunks that pass through the cache of `device`; never taken where it says nothing.
pub(super) fn times_of(plan: &Plan, model: &Model, device: Device, profile: Option<&ExpertProfile>) -> ExpertTimes {
    let of_chunk = |chunk: usize| {
        let n_experts = expert_shape(&plan.chunks[chunk], model)?.n_experts;
        let known = profile.map(|profile| profile.times(&plan.units[plan.chunks[chunk].unit()].name)).unwrap_or_default();
        let times = known.iter().copied().chain(std::iter::repeat(0.0));
        Some((chunk, times.take(n_experts).collect()))
    };
    plan.cached_on(device).filter_map(of_chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_begins_with_whole_layers_and_what_is_taken_most_of_the_others() {
        let times = ExpertTimes::from([(3, vec![9.0, 0.0, 4.0]), (5, vec![2.0, 2.0, 2.0]), (8, vec![0.0, 5.0, 1.0])]);
        let warm = |n_slots: usize, n_whole: usize| {
            let WarmExperts { whole, taken, .. } = WarmExperts::of(times.clone(), n_slots, n_whole);
            (whole, taken)
        };
        assert_eq!(warm(0, 0), (vec![], vec![]));
        assert_eq!(warm(2, 0), (vec![], vec![(3, vec![0]), (8, vec![1])]));
        assert_eq!(warm(5, 1), (vec![3], vec![(5, vec![0]), (8, vec![1])]), "the layer that takes most of what there is no room for");
        assert_eq!(warm(9, 0), (vec![], vec![(3, vec![0, 2]), (5, vec![0, 1, 2]), (8, vec![1, 2])]), "what nobody took stays away");
        assert_eq!(warm(9, 3), (vec![3, 5, 8], vec![]));
    }
}
