//! Which experts tokens take: how often each was asked for in runs before, kept in a file. A plan that knows it says what a cache will find
//! instead of assuming it, and a run that knows it begins with the experts in the cache that are most likely asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Setting};
use crate::model::{Model, Op};

/// What identifies the format.
const SCHEMA: &str = "tierflow.experts/1";

/// How often tokens took each expert of each layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpertProfile {
    schema: String,
    /// By the name of the unit that has them, as device maps write it: times of each expert, where those of long ago count less.
    layers: BTreeMap<String, Vec<f64>>,
}

impl ExpertProfile {
    /// Of `layers`, by the names of their units.
    pub(crate) fn new(layers: BTreeMap<String, Vec<f64>>) -> ExpertProfile {
        ExpertProfile { schema: SCHEMA.into(), layers }
    }

    /// Reads what [`ExpertProfile::to_json`] wrote; `path` is what errors call it.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for what is no such file.
    pub fn from_json(json: &str, path: &str) -> Result<ExpertProfile> {
        let invalid = |reason: String| Error::invalid_file(path, reason);
        let read: ExpertProfile = serde_json::from_str(json).map_err(|error| invalid(format!("is no profile of experts: {error}")))?;
        if read.schema != SCHEMA {
            return Err(invalid(format!("has another schema than {SCHEMA}")));
        }
        match read.layers.iter().find(|(_, times)| !times.iter().all(|times| times.is_finite() && *times >= 0.0)) {
            Some((layer, _)) => Err(invalid(format!("an expert of {layer:?} was taken a number of times that is none"))),
            None => Ok(read),
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// How often each expert of a unit was taken; nothing of one that it does not know.
    pub(crate) fn times(&self, unit: &str) -> &[f64] {
        self.layers.get(unit).map(Vec::as_slice).unwrap_or_default()
    }

    /// Percent of what tokens took that the `n_slots` experts make up that they took most often, without the `n_whole` layers in which
    /// that is the least; `None` where nothing was counted.
    pub(super) fn hit_percent(&self, n_whole: usize, n_slots: usize) -> Option<u8> {
        let layers: Vec<&[f64]> = self.layers.values().map(Vec::as_slice).collect();
        let whole = most_even(&layers, n_slots, n_whole);
        let others = layers.iter().enumerate().filter(|(layer, _)| !whole.contains(layer));
        let mut shares: Vec<f64> = others.flat_map(|(_, layer)| shares(layer)).collect();
        shares.sort_by(|one, other| other.total_cmp(one));
        let all: f64 = shares.iter().sum();
        let found: f64 = shares.iter().take(n_slots).sum();
        (all > 0.0).then(|| (100.0 * found / all).round() as u8)
    }

    /// # Errors
    /// [`Error::InvalidArgument`] where it is of a model with other layers.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
        let of_model = |name: &str| {
            let unit = model.units.iter().find(|unit| unit.name == name)?;
            unit.ops.iter().find_map(Op::experts).map(|op| op.n_experts)
        };
        match self.layers.iter().find(|(name, times)| of_model(name) != Some(times.len())) {
            Some((name, times)) => {
                let reason = format!("is of another model: {name:?} has {} experts there; leave it out, or name a new file", times.len());
                Err(Error::InvalidArgument { option: Setting::ExpertProfile.into(), reason })
            }
            None => Ok(()),
        }
    }
}

/// How much of what a layer's tokens took each of its experts makes up; nothing where nothing was counted.
fn shares(layer: &[f64]) -> impl Iterator<Item = f64> {
    let all: f64 = layer.iter().sum();
    layer.iter().map(move |times| if all > 0.0 { times / all } else { 0.0 })
}

/// The `n_wanted` of these layers in which the most is missing where there is room for the `n_slots` experts of all that make up most of
/// what their layers take, in order; `layers` has the times of each expert. Layers of which nothing was counted come first, since tokens are
/// not asked about those that are whole; of equal ones the first.
pub(crate) fn most_even(layers: &[&[f64]], n_slots: usize, n_wanted: usize) -> Vec<usize> {
    let mut all: Vec<f64> = layers.iter().flat_map(|layer| shares(layer)).collect();
    all.sort_by(|one, other| other.total_cmp(one));
    let least = all.get(n_slots.saturating_sub(1)).copied().unwrap_or(0.0);
    let missing = |layer: &usize| match layers[*layer].iter().any(|times| *times > 0.0) {
        true => shares(layers[*layer]).filter(|share| *share < least).sum(),
        false => f64::INFINITY,
    };
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by(|one, other| missing(other).total_cmp(&missing(one)).then(one.cmp(other)));
    order.truncate(n_wanted);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_take_all_their_experts_alike_are_the_first_to_be_whole() {
        let layers: [&[f64]; 3] = [&[9.0, 0.0, 0.0, 0.0], &[2.0, 2.0, 2.0, 2.0], &[5.0, 1.0, 1.0, 0.0]];
        assert_eq!([0, 1, 2, 3].map(|n_wanted| most_even(&layers, 2, n_wanted)), [vec![], vec![1], vec![1, 2], vec![0, 1, 2]]);
        assert_eq!(most_even(&[&[0.0; 4], &[0.0; 4]], 3, 1), [0]);
    }

    #[test]
    fn the_experts_taken_most_often_are_those_found() {
        let of =
            |layers: &[(&str, &[f64])]| ExpertProfile::new(layers.iter().map(|(name, times)| ((*name).into(), times.to_vec())).collect());
        let profile = of(&[("a", &[1.0, 0.0, 5.0]), ("b", &[2.0, 2.0, 0.0])]);
        assert_eq!([0, 1, 3, 6, 9].map(|n_slots| profile.hit_percent(0, n_slots)), [0, 42, 92, 100, 100].map(Some));
        assert_eq!([0, 1, 3].map(|n_slots| profile.hit_percent(1, n_slots)), [0, 83, 100].map(Some), "without the second layer");
        assert_eq!(of(&[("a", &[0.0])]).hit_percent(0, 1), None);
        assert_eq!(ExpertProfile::from_json(&profile.to_json(), "p.json").unwrap(), profile);
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for (json, expected) in [
            ("{", "is no profile of experts"),
            (r#"{"schema":"tierflow.plan/5","layers":{}}"#, "has another schema"),
            (r#"{"schema":"tierflow.experts/1","layers":{"a":[-1.0]}}"#, "an expert of \"a\""),
            (r#"{"schema":"tierflow.experts/1","layers":{"a":[1e999]}}"#, "p.json"),
        ] {
            let refused = ExpertProfile::from_json(json, "p.json").unwrap_err().to_string();
            assert!(refused.contains(expected) && refused.contains("p.json"), "{refused}");
        }
    }
}
