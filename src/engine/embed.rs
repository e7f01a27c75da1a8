//! Texts as vectors, made of the hidden states that a model without its head gives.

use super::{Engine, Prepared};
use crate::error::{Error, Result};
use crate::stream::{Logits, LogitsRequest};
use crate::text::Pooling;

impl Engine {
    /// The embedding of `tokens`, `[hidden_size]`: the normed last hidden states of all of them, pooled. Not normalised. The engine was
    /// opened [without the head](super::EngineBuilder::without_head).
    ///
    /// # Errors
    /// Those of [`Engine::forward`]; [`Error::InvalidArgument`] where there are no tokens, or the engine has its head.
    pub async fn embed(&mut self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>> {
        let invalid = |option: &str, reason: &str| Err(Error::InvalidArgument { option: option.into(), reason: reason.into() });
        self.check_whole()?;
        if self.gives_logits() {
            return invalid("engine", "computes logits; open it with EngineBuilder::without_head");
        }
        if tokens.is_empty() {
            return invalid("text", "has no tokens to embed");
        }
        let mut session = self.session();
        if pooling == Pooling::Last {
            return match session.append(tokens, LogitsRequest::All).await? {
                Logits::All(hidden) => Ok(hidden),
                Logits::Top(_) => Err(Error::internal("an embedding was asked for, best tokens were given")),
            };
        }
        let mut sums: Vec<f64> = Vec::new();
        session
            .append_scoring_all(tokens, |hidden| match sums.is_empty() {
                true => sums.extend(hidden.iter().map(|value| f64::from(*value))),
                false if pooling == Pooling::Cls => {}
                false => sums.iter_mut().zip(&hidden).for_each(|(sum, value)| *sum += f64::from(*value)),
            })
            .await?;
        let n_pooled = if pooling == Pooling::Cls { 1 } else { tokens.len() };
        Ok(sums.iter().map(|sum| (sum / n_pooled as f64) as f32).collect())
    }
}

impl Prepared {
    /// An embedding as it is given away: of numbers, and scaled to the length 1 where it is to be.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where a value is no number.
    pub fn finished_embedding(&self, embedding: Vec<f32>, is_normalized: bool) -> Result<Vec<f32>> {
        if let Some(value) = embedding.iter().find(|value| !value.is_finite()) {
            let reason = format!("gives {value} in an embedding; its weights (or the GPU driver) are broken");
            return Err(Error::invalid_file(&self.checkpoint.path, reason));
        }
        Ok(if is_normalized { normalized(embedding) } else { embedding })
    }
}

/// `embedding` scaled to the length 1, as sentence-transformers' `Normalize` does; zeros stay zeros.
pub fn normalized(mut embedding: Vec<f32>) -> Vec<f32> {
    let length = embedding.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        embedding.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    embedding
}
