//! Which experts each token takes, and by which weights: the best of its scores, of equal ones the first. A token's row of `routing` has the
//! numbers of its experts as f32, the best first, and behind them their weights.

use bytemuck::{Pod, Zeroable};

use super::{BatchShape, Binding, ROUTE, dispatch, f32_bytes, fold, is_software, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::{Route, Scores, Value};

/// Most experts; the shader's bound.
pub const MAX_EXPERTS: u32 = 1024;

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Tokens.
    pub n_tokens: u32,
    /// Experts, 1 to [`MAX_EXPERTS`].
    pub n_experts: u32,
    /// Experts of a token.
    pub n_used: u32,
    /// [`Scores`] as a number.
    pub scores: u32,
    /// Groups of experts; 1: experts are chosen from all.
    pub n_groups: u32,
    /// Groups that experts are chosen from.
    pub n_groups_used: u32,
    /// Experts whose scores make that of their group: 1 or 2.
    pub n_best: u32,
    /// Whether the weights are divided by their sum.
    pub normalises: u32,
    /// What weights are multiplied by.
    pub scale: f32,
}

impl Params {
    /// Those of `route`, whose logits are `logits`.
    pub fn of(route: &Route, logits: &Value, batch: &BatchShape) -> Params {
        let groups = route.groups.map(|groups| [groups.n_groups, groups.n_used, groups.n_best].map(|n| n as u32));
        let [n_groups, n_groups_used, n_best] = groups.unwrap_or([1, 1, 1]);
        Params {
            n_tokens: batch.rows_of(logits),
            n_experts: route.n_experts as u32,
            n_used: route.n_used as u32,
            scores: route.scores as u32,
            n_groups,
            n_groups_used,
            n_best,
            normalises: route.normalises.into(),
            scale: route.scale,
        }
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens, n_experts]`.
    pub logits: Binding<'a>,
    /// `[n_experts]`, added to what experts are chosen by; `None` adds nothing.
    pub bias: Option<Binding<'a>>,
    /// `[n_experts]`, what weights are multiplied by besides; `None`: nothing.
    pub factors: Option<Binding<'a>>,
    /// `[n_tokens, 2, n_used]`.
    pub routing: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or there are too many experts.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, n_experts, n_used, n_groups, .. } = *params;
    require(gpu, ROUTE.stem, (1..=MAX_EXPERTS).contains(&n_experts) && n_tokens > 0, "it is empty, or has more than 1024 experts")?;
    require(gpu, ROUTE.stem, (1..=n_experts).contains(&n_used), "a token takes no expert, or more than there are")?;
    require(gpu, ROUTE.stem, n_groups > 0 && n_experts.is_multiple_of(n_groups), "its groups are of different sizes")?;
    let logits_bytes = f32_bytes(&[n_tokens, n_experts]);
    // Without a bias or factors, something must be bound that is not read.
    let [bias, factors] =
        [bindings.bias, bindings.factors].map(|each| each.map_or((bindings.logits, logits_bytes), |each| (each, f32_bytes(&[n_experts]))));
    let needed = [(bindings.logits, logits_bytes), bias, factors, (bindings.routing, f32_bytes(&[n_tokens, 2, n_used]))];
    let flag = |is_there: bool| f64::from(u8::from(is_there));
    let constants = [
        ("LANES", if is_software(gpu) { 1.0 } else { 64.0 }),
        ("HAS_BIAS", flag(bindings.bias.is_some())),
        ("HAS_FACTORS", flag(bindings.factors.is_some())),
    ];
    dispatch(gpu, &ROUTE, &constants, params_buffer, &needed, fold(gpu, ROUTE.stem, n_tokens.into(), 1)?)
}

/// CPU twin of `shaders/route.wgsl`.
pub fn reference(params: &Params, logits: &[f32], [bias, factors]: [Option<&[f32]>; 2], routing: &mut [f32]) {
    let [n_experts, n_used] = [params.n_experts, params.n_used].map(|n| n as usize);
    let rows = logits.chunks_exact(n_experts).zip(routing.chunks_exact_mut(2 * n_used));
    for (logits, routing) in rows.take(params.n_tokens as usize) {
        let scores = scores_of(params, logits);
        let biased = scores.iter().enumerate().map(|(expert, score)| score + bias.map_or(0.0, |bias| bias[expert]));
        let mut keys: Vec<Option<f32>> = biased.map(Some).collect();
        keep_best_groups(params, &mut keys);
        let (chosen, weights) = routing.split_at_mut(n_used);
        for (chosen, weight) in chosen.iter_mut().zip(&mut *weights) {
            let best = best_of(&keys);
            keys[best] = None;
            (*chosen, *weight) = (best as f32, scores[best]);
        }
        let sum: f32 = weights.iter().sum();
        let factor = if params.normalises != 0 { params.scale / (sum + SMALL) } else { params.scale };
        for (weight, expert) in weights.iter_mut().zip(chosen) {
            *weight *= factor * factors.map_or(1.0, |factors| factors[*expert as usize]);
        }
    }
}

/// Added to sums that weights are divided by, as transformers does: sigmoids may all be 0.
const SMALL: f32 = 1e-20;

fn scores_of(params: &Params, logits: &[f32]) -> Vec<f32> {
    if params.scores == Scores::Sigmoid as u32 {
        return logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    }
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Experts of other groups than the best cannot be chosen any more.
fn keep_best_groups(params: &Params, keys: &mut [Option<f32>]) {
    if params.n_groups_used >= params.n_groups {
        return;
    }
    let size = keys.len() / params.n_groups as usize;
    let score_of = |group: &[Option<f32>]| {
        let mut left = group.to_vec();
        let best = (0..(params.n_best as usize).min(size)).filter_map(|_| {
            let best = best_of(&left);
            left[best].take()
        });
        best.sum::<f32>()
    };
    let mut groups: Vec<Option<f32>> = keys.chunks(size).map(|group| Some(score_of(group))).collect();
    for _ in 0..params.n_groups_used {
        let best = best_of(&groups);
        groups[best] = None;
    }
    for (group, keys) in groups.iter().zip(keys.chunks_mut(size)) {
        if group.is_some() {
            keys.fill(None);
        }
    }
}

/// The place of the largest that is left, of equal ones the first; of none but NaN, the first that is left, and else 0.
fn best_of(keys: &[Option<f32>]) -> usize {
    let left = keys.iter().enumerate().filter_map(|(place, key)| Some((place, (*key)?)));
    left.reduce(|best, next| if next.1 > best.1 { next } else { best }).map_or(0, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Params = Params {
        n_tokens: 1,
        n_experts: 6,
        n_used: 2,
        scores: Scores::Softmax as u32,
        n_groups: 1,
        n_groups_used: 1,
        n_best: 1,
        normalises: 1,
        scale: 1.0,
    };

    fn routed(params: &Params, logits: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut routing = vec![0.0; 2 * params.n_used as usize];
        reference(params, logits, [bias, None], &mut routing);
        routing
    }

    #[test]
    fn factors_of_experts_weigh_and_do_not_choose() {
        let mut routing = [0.0; 4];
        reference(&PLAIN, &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0], [None, Some(&[9.0, 9.0, 0.5, 9.0, 9.0, 9.0])], &mut routing);
        assert_eq!(routing, [1.0, 2.0, 4.5, 0.25]);
    }

    #[test]
    fn the_first_of_equal_experts_is_chosen() {
        assert_eq!(routed(&PLAIN, &[0.0, 1.0, 1.0, 1.0, 0.0, 0.0], None), [1.0, 2.0, 0.5, 0.5]);
    }

    #[test]
    fn a_bias_chooses_and_does_not_weigh() {
        let params = Params { scores: Scores::Sigmoid as u32, normalises: 0, scale: 2.0, ..PLAIN };
        let bias = [0.0, 0.0, 0.0, 0.0, 5.0, 4.0];
        assert_eq!(routed(&params, &[9.0, 9.0, 9.0, 9.0, 0.0, 0.0], Some(&bias)), [4.0, 5.0, 1.0, 1.0]);
    }

    #[test]
    fn experts_are_of_the_best_groups() {
        // Alone, expert 0 is the best; two others make a better group.
        let params = Params { n_groups: 3, n_groups_used: 1, n_best: 2, ..PLAIN };
        let routing = routed(&params, &[2.0, -9.0, 1.9, 1.8, 0.0, 0.0], None);
        assert_eq!(routing[..2], [2.0, 3.0]);
    }

    #[test]
    fn what_is_not_a_number_chooses_experts_that_there_are() {
        let routing = routed(&PLAIN, &[f32::NAN; 6], None);
        assert!(routing[..2].iter().all(|expert| (0.0..6.0).contains(expert)), "{routing:?}");
    }
}
