//! Steps of a loop that is the caller's own: losses and gradients of token ids, sums of gradients, and steps at any learning rate.

use std::path::Path;

use super::adapter::Layer;
use super::data::{Sequence, n_targets};
use super::optim::{Gradients, Optimizer, OptimizerKind};
use super::saved;
use super::trainer::{Progress, Trainer};
use crate::error::{Error, Result};

/// How a loss is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LossOptions {
    /// The number of the dropout's draw within the next step; `None` is without dropout. As many follow as there are parts of
    /// [`TrainOptions::batch`](super::TrainOptions::batch) sequences.
    pub draw: Option<u64>,
    /// What the sum of losses is divided by; `None` is the number of targets.
    pub n_items: Option<usize>,
}

impl Trainer {
    /// Zeros, which gradients are added to.
    pub fn no_gradients(&self) -> Gradients {
        Gradients { layers: self.adapter.zeros() }
    }

    /// An optimiser of this adapter, before its first step; what else it has may be changed.
    pub fn new_optimizer(&self, kind: OptimizerKind, weight_decay: f32) -> Optimizer {
        Optimizer::new(kind, weight_decay, self.adapter.zeros())
    }

    /// The loss of sequences. Nothing that is trained changes.
    ///
    /// # Errors
    /// [`Error::TokenOutOfVocabulary`], [`Error::InvalidArgument`] where there is nothing to predict or a sequence is too long; those of
    /// reading weights.
    pub async fn loss(&mut self, sequences: &[Sequence], options: LossOptions) -> Result<f64> {
        let n_items = self.check_sequences(sequences, options)?;
        let draw = options.draw.map(|index| self.draw(index));
        Ok(self.pass_over(sequences, draw, None).await? / n_items as f64)
    }

    /// The loss of sequences; the gradients of `factor` times the loss are added to `into`, which stays as it is where this fails.
    ///
    /// # Errors
    /// As of [`Trainer::loss`]; [`Error::LossNotFinite`].
    pub async fn add_gradients(&mut self, sequences: &[Sequence], options: LossOptions, factor: f64, into: &mut Gradients) -> Result<f64> {
        let n_items = self.check_sequences(sequences, options)?;
        let before = into.clone();
        let of_each = (factor / n_items as f64) as f32;
        let draw = options.draw.map(|index| self.draw(index));
        let loss = self.pass_over(sequences, draw, Some((of_each, into))).await;
        let loss = loss.and_then(|loss| if loss.is_finite() { Ok(loss) } else { Err(Error::LossNotFinite { loss }) });
        if loss.is_err() {
            *into = before;
        }
        Ok(loss? / n_items as f64)
    }

    /// One step of the adapter against `gradients`.
    ///
    /// # Errors
    /// [`Error::GradientNotFinite`], and [`Error::InvalidArgument`] where the optimiser or the gradients are of another adapter; then
    /// nothing is changed.
    pub fn apply(&mut self, optimizer: &mut Optimizer, gradients: &Gradients, rate: f64) -> Result<()> {
        self.check_layers(&optimizer.first)?;
        self.check_layers(&gradients.layers)?;
        if !gradients.norm().is_finite() {
            return Err(Error::GradientNotFinite);
        }
        optimizer.step(&mut self.adapter.layers, &gradients.layers, rate);
        self.progress.n_done += 1;
        Ok(())
    }

    /// Sets all values of the adapter: of each layer A, then B.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there are more or fewer.
    pub fn set_values(&mut self, values: &[f32]) -> Result<()> {
        let n_values = self.adapter.n_values();
        if values.len() != n_values {
            let reason = format!("are {}; this adapter has {n_values}", values.len());
            return Err(Error::InvalidArgument { option: "values of the adapter".into(), reason });
        }
        self.adapter.layers.iter_mut().flat_map(|layer| layer.values_mut()).zip(values).for_each(|(own, value)| *own = *value);
        Ok(())
    }

    /// Tokens that the model knows.
    pub fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
    }

    /// Values of the model itself, trained or not.
    pub fn n_parameters(&self) -> u64 {
        self.weights.checkpoint().catalog.n_values()
    }

    /// Says how far training has come, which draws of the dropout depend on.
    pub fn set_progress(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// Writes what an optimiser keeps from step to step into a folder, which is made where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn save_optimizer(&self, optimizer: &Optimizer, folder: &Path) -> Result<()> {
        saved::write_optimizer(optimizer, &self.adapter, self.weights.checkpoint(), folder)
    }

    /// Reads what [`Trainer::save_optimizer`] wrote.
    ///
    /// # Errors
    /// Those of reading; [`Error::InvalidFile`] where it is of another adapter or another kind, [`Error::InvalidArgument`] where the optimiser
    /// is. Then it stays as it is.
    pub fn load_optimizer(&self, optimizer: &mut Optimizer, folder: &Path) -> Result<()> {
        self.check_layers(&optimizer.first)?;
        saved::read_optimizer(optimizer, &self.adapter, folder)
    }

    /// Refuses what an optimiser keeps, or gradients, of another adapter.
    fn check_layers(&self, layers: &[Layer]) -> Result<()> {
        let shape = |layer: &Layer| (layer.module.clone(), layer.a.len(), layer.b.len());
        if layers.iter().map(shape).eq(self.adapter.layers.iter().map(shape)) {
            return Ok(());
        }
        Err(Error::InvalidArgument { option: "the optimiser".into(), reason: "is of another adapter".into() })
    }

    /// What the sum of the losses of `sequences` is divided by, where they can be trained.
    fn check_sequences(&self, sequences: &[Sequence], options: LossOptions) -> Result<usize> {
        let invalid = |option: &str, reason: String| Err(Error::InvalidArgument { option: option.into(), reason });
        let (vocab_size, longest) = (self.model.config.vocab_size, self.options().seq_len);
        for (index, Sequence { tokens, targets }) in sequences.iter().enumerate() {
            if tokens.len() != targets.len() {
                return invalid("targets", format!("of sequence {index} are {}, its tokens {}", targets.len(), tokens.len()));
            }
            if tokens.len() > longest {
                return invalid("the length of sequences", format!("is {longest}; sequence {index} has {} tokens", tokens.len()));
            }
            if let Some(&token) = tokens.iter().chain(targets.iter().flatten()).find(|token| **token as usize >= vocab_size) {
                return Err(Error::TokenOutOfVocabulary { token, vocab_size });
            }
        }
        match (n_targets(sequences), options.n_items) {
            (0, _) => invalid("targets", "are none; no token would be trained".into()),
            (_, Some(0)) => invalid("what the sum of losses is divided by", "is 0".into()),
            (n_targets, n_items) => Ok(n_items.unwrap_or(n_targets)),
        }
    }
}
