//! Optimisers and learning rates, by torch's and transformers' formulas.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};
use serde::{Deserialize, Serialize};

use super::adapter::Layer;

/// How gradients become steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov, Hutter 2019).
    Adamw,
    /// Stochastic gradient descent with momentum, its weight decay added to the gradient.
    Sgd,
}

/// The learning rate over a run, behind its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Falls to zero in a line.
    Linear,
    /// Falls to zero as half a cosine.
    Cosine,
    /// Stays.
    Constant,
}

/// Decay rates of AdamW's means, and what is added to its denominator: torch's defaults.
const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;
/// Values that a thread takes at once.
const AT_ONCE: usize = 256 << 10;
/// Share of SGD's former step that goes into the next.
const MOMENTUM: f32 = 0.9;

impl Scheduler {
    /// What the learning rate is multiplied by at step `step`, from 0 on, of `n_steps`, the first `n_warmup` of which rise from 0.
    pub fn factor(self, step: u64, n_warmup: u64, n_steps: u64) -> f64 {
        if step < n_warmup {
            return step as f64 / n_warmup as f64;
        }
        let n_rest = n_steps.saturating_sub(n_warmup).max(1) as f64;
        let done = (step - n_warmup) as f64 / n_rest;
        match self {
            Scheduler::Constant => 1.0,
            Scheduler::Linear => (1.0 - done).max(0.0),
            Scheduler::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * done).cos())).max(0.0),
        }
    }
}

/// Takes steps, and keeps what it needs from one to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// Its formula.
    pub kind: OptimizerKind,
    /// Share of each value that is taken away at a learning rate of 1; nothing is of norms and biases, as in transformers' Trainer.
    pub weight_decay: f32,
    /// How much of the means stays at each step of AdamW: of gradients, of their squares. At first 0.9 and 0.999.
    pub betas: [f32; 2],
    /// What AdamW adds to its denominator, at first 1e-8.
    pub epsilon: f32,
    /// How much of the former step goes into the next one of SGD, at first 0.9.
    pub momentum: f32,
    /// Steps that were taken.
    pub n_taken: u64,
    /// Running means of gradients, or their momentum.
    pub first: Vec<Layer>,
    /// Running means of squared gradients; empty for [`OptimizerKind::Sgd`].
    pub second: Vec<Layer>,
}

impl Optimizer {
    /// One before its first step; `zeros` has the shape of what is trained.
    pub(super) fn new(kind: OptimizerKind, weight_decay: f32, zeros: Vec<Layer>) -> Optimizer {
        let second = if kind == OptimizerKind::Adamw { zeros.clone() } else { Vec::new() };
        Optimizer { kind, weight_decay, betas: BETAS, epsilon: EPSILON, momentum: MOMENTUM, n_taken: 0, first: zeros, second }
    }

    /// One step of `layers` against `gradients`.
    pub(super) fn step(&mut self, layers: &mut [Layer], gradients: &[Layer], rate: f64) {
        self.n_taken += 1;
        let Optimizer { kind, weight_decay: decay, betas, epsilon, momentum, n_taken, .. } = *self;
        let with_decay = Step { kind, decay, betas, epsilon, momentum, n_taken, rate };
        let without_decay = Step { decay: 0.0, ..with_decay };
        for (index, (layer, gradient)) in layers.iter_mut().zip(gradients).enumerate() {
            let (first, second) = (&mut self.first[index], self.second.get_mut(index));
            let step = if layer.is_norm() { &without_decay } else { &with_decay };
            let second = second.map_or((&mut [][..], &mut [][..]), |second| (&mut second.a[..], &mut second.b[..]));
            step.take_all(&mut layer.a, &gradient.a, &mut first.a, second.0);
            step.take_all(&mut layer.b, &gradient.b, &mut first.b, second.1);
        }
    }
}

/// One step of some values.
#[derive(Clone, Copy)]
struct Step {
    kind: OptimizerKind,
    decay: f32,
    betas: [f32; 2],
    epsilon: f32,
    momentum: f32,
    n_taken: u64,
    rate: f64,
}

impl Step {
    /// On all threads, each with values of its own.
    fn take_all(&self, values: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
        let parts = values.par_chunks_mut(AT_ONCE).zip(gradients.par_chunks(AT_ONCE)).zip(first.par_chunks_mut(AT_ONCE));
        if second.is_empty() {
            parts.for_each(|((values, gradients), first)| self.take(values, gradients, first, &mut []));
        } else {
            parts.zip(second.par_chunks_mut(AT_ONCE)).for_each(|(((values, gradients), first), second)| {
                self.take(values, gradients, first, second);
            });
        }
    }

    fn take(&self, values: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
        let rate = self.rate as f32;
        match self.kind {
            OptimizerKind::Sgd => {
                for ((value, gradient), momentum) in values.iter_mut().zip(gradients).zip(first) {
                    let gradient = gradient + self.decay * *value;
                    *momentum = if self.n_taken == 1 { gradient } else { self.momentum * *momentum + gradient };
                    *value -= rate * *momentum;
                }
            }
            OptimizerKind::Adamw => {
                // A power beyond i32 is zero all the same.
                let power = i32::try_from(self.n_taken).unwrap_or(i32::MAX);
                let corrections = self.betas.map(|beta| 1.0 - f64::from(beta).powi(power));
                let (step, root) = ((self.rate / corrections[0]) as f32, corrections[1].sqrt() as f32);
                for (((value, gradient), first), second) in values.iter_mut().zip(gradients).zip(first).zip(second) {
                    *value *= 1.0 - rate * self.decay;
                    *first += (gradient - *first) * (1.0 - self.betas[0]);
                    *second = *second * self.betas[1] + (1.0 - self.betas[1]) * gradient * gradient;
                    *value -= step * *first / (second.sqrt() / root + self.epsilon);
                }
            }
        }
    }
}

/// The gradients of what is trained, or sums of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// By layers, in the shape of the adapter's.
    pub layers: Vec<Layer>,
}

impl Gradients {
    /// The length of all of them together.
    pub fn norm(&self) -> f64 {
        self.values().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
    }

    /// Shortens gradients of length `norm` to `most` where they are longer.
    pub fn clip(&mut self, norm: f64, most: f64) {
        let factor = (most / (norm + 1e-6)).min(1.0) as f32;
        if factor < 1.0 {
            self.values_mut().for_each(|value| *value *= factor);
        }
    }

    /// All values: of each layer A, then B.
    pub fn values(&self) -> impl Iterator<Item = &f32> {
        self.layers.iter().flat_map(Layer::values)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut f32> {
        self.layers.iter_mut().flat_map(Layer::values_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_transformers() {
        // get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, 2 of 10 steps.
        let factors = |scheduler: Scheduler| [0, 1, 2, 6, 9].map(|step| scheduler.factor(step, 2, 10));
        assert_eq!(factors(Scheduler::Constant), [0.0, 0.5, 1.0, 1.0, 1.0]);
        assert_eq!(factors(Scheduler::Linear), [0.0, 0.5, 1.0, 0.5, 0.125]);
        let found = factors(Scheduler::Cosine);
        let expected = [0.0, 0.5, 1.0, 0.5, 0.038_060_233_744_356_62];
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
        assert_eq!(Scheduler::Linear.factor(0, 0, 1), 1.0);
    }

    #[test]
    fn steps_are_those_of_torch() {
        let layer = |a: [f32; 2]| Layer { module: String::new(), n_inputs: 2, n_outputs: 1, a: a.to_vec(), b: Vec::new() };
        // torch.optim.AdamW([1.0, -2.0], lr=0.1, weight_decay=0.01), SGD with momentum 0.9 likewise; gradients [0.5, -0.25], then [0.1, 0.3].
        for (kind, expected) in [
            (OptimizerKind::Adamw, [[0.899, -1.898], [0.817_796_95, -1.910_396_6]]),
            (OptimizerKind::Sgd, [[0.949, -1.973], [0.892_151, -1.976_727]]),
        ] {
            let mut values = vec![layer([1.0, -2.0])];
            let mut optimizer = Optimizer::new(kind, 0.01, vec![layer([0.0; 2])]);
            for (gradient, expected) in [[0.5, -0.25], [0.1, 0.3]].into_iter().zip(expected) {
                optimizer.step(&mut values, &[layer(gradient)], 0.1);
                for (found, expected) in values[0].a.iter().zip(expected) {
                    assert!((found - expected as f32).abs() < 2e-6, "{kind:?}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn norms_are_not_decayed() {
        let layer = |a: f32, n_outputs: usize| vec![Layer { module: String::new(), n_inputs: 1, n_outputs, a: vec![a], b: Vec::new() }];
        for (n_outputs, expected) in [(1, 0.95), (0, 1.0)] {
            let (mut values, zeros) = (layer(1.0, n_outputs), layer(0.0, n_outputs));
            Optimizer::new(OptimizerKind::Adamw, 0.5, zeros.clone()).step(&mut values, &zeros, 0.1);
            assert_eq!(values[0].a, [expected]);
        }
    }

    #[test]
    fn long_gradients_are_shortened() {
        let layer = Layer { module: String::new(), n_inputs: 1, n_outputs: 1, a: vec![3.0], b: vec![-4.0] };
        let mut gradients = Gradients { layers: vec![layer] };
        assert_eq!(gradients.norm(), 5.0);
        gradients.clip(5.0, 10.0);
        assert!(gradients.values().eq(&[3.0, -4.0]));
        gradients.clip(5.0, 1.0);
        assert!((gradients.norm() - 1.0).abs() < 1e-6);
    }
}
