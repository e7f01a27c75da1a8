//! What devices kept of sequences that made room for others, in host memory: a conversation that comes back later goes on there, and is not
//! computed again.

use std::collections::VecDeque;

use super::Engine;
use crate::error::{Error, Result};
use crate::session::n_known;
use crate::units::Bytes;

/// The cache of one sequence, as its devices store it.
pub(crate) struct History {
    tokens: Vec<u32>,
    /// What the sequence multiplied LoRA adapters by.
    lora_scales: Vec<f32>,
    /// By layer.
    layers: Vec<(usize, Vec<u8>)>,
}

impl History {
    /// What it takes, but for its tokens' numbers.
    fn size(&self) -> Bytes {
        self.layers.iter().map(|(_, kept)| Bytes(kept.len() as u64)).sum()
    }
}

impl Engine {
    /// Bytes that [`Engine::kept_of`] reads of so many tokens.
    pub(crate) fn bytes_kept_of(&self, n_tokens: usize) -> Bytes {
        self.executors.kept_of_layers(self.config().n_layers, n_tokens).into_iter().map(|(.., n_bytes)| Bytes(n_bytes)).sum()
    }

    /// What is kept of `tokens`, which are cached as `sequence`.
    ///
    /// # Errors
    /// Those of the devices; [`Error::Internal`] where the tokens are not cached.
    pub(crate) async fn kept_of(&mut self, sequence: u32, tokens: &[u32]) -> Result<History> {
        self.check_whole()?;
        if self.n_reusable(sequence, tokens.len()) < tokens.len() {
            return Err(Error::internal("a sequence was to be kept that is not cached"));
        }
        let mut layers = Vec::new();
        for (layer, ..) in self.executors.kept_of_layers(self.config().n_layers, tokens.len()) {
            layers.push((layer, self.kept_of_layer(layer, sequence, tokens.len()).await?));
        }
        Ok(History { tokens: tokens.to_vec(), lora_scales: self.lora_scales(sequence).to_vec(), layers })
    }

    /// What is kept of the first `n_tokens` of a sequence in one layer.
    pub(super) async fn kept_of_layer(&mut self, layer: usize, sequence: u32, n_tokens: usize) -> Result<Vec<u8>> {
        let kept = self.executors.read_layer(layer, sequence, n_tokens).await;
        kept.map_err(|error| self.executors.cause_of(error))
    }

    /// Gives it back to `sequence`, in place of its own; the tokens that are cached then.
    ///
    /// # Errors
    /// Those of the devices. Nothing of the sequence is cached then.
    pub(crate) fn give_back(&mut self, sequence: u32, history: &History) -> Result<Vec<u32>> {
        self.cached.set(sequence, 0);
        for (layer, kept) in &history.layers {
            let written = self.executors.write_layer(*layer, sequence, history.tokens.len(), kept);
            written.map_err(|error| self.executors.cause_of(error))?;
        }
        self.cached.set(sequence, history.tokens.len());
        Ok(history.tokens.clone())
    }
}

/// As many of them as there is room for; those that were used longest ago go first.
#[derive(Default)]
pub(crate) struct Histories {
    /// Bytes that they may take.
    limit: Bytes,
    /// The latest one comes last.
    all: VecDeque<History>,
}

impl Histories {
    /// None, with room for so many bytes of them.
    pub(crate) fn new(limit: Bytes) -> Histories {
        Histories { limit, all: VecDeque::new() }
    }

    /// Bytes that they may take.
    pub(crate) fn limit(&self) -> Bytes {
        self.limit
    }

    /// Bytes that they take.
    pub(crate) fn size(&self) -> Bytes {
        self.all.iter().map(History::size).sum()
    }

    /// Keeps one more. Those that it goes on from go, and as many others as it takes the room of.
    pub(crate) fn keep(&mut self, history: History) {
        self.all.retain(|other| other.lora_scales != history.lora_scales || !history.tokens.starts_with(&other.tokens));
        let Some(rest) = self.limit.0.checked_sub(history.size().0) else { return };
        while self.size().0 > rest {
            self.all.pop_front();
        }
        self.all.push_back(history);
    }

    /// The one with the most of `prompt`, and how many tokens that are. Where states are recurrent, those after all of its tokens count alone.
    pub(crate) fn best(&self, lora_scales: &[f32], prompt: &[u32], is_recurrent: bool) -> Option<(usize, usize)> {
        let n_alike = |history: &History| {
            let n_alike = if history.lora_scales == lora_scales { n_known(&history.tokens, prompt) } else { 0 };
            if is_recurrent && n_alike < history.tokens.len() { 0 } else { n_alike }
        };
        self.all.iter().map(n_alike).enumerate().max_by_key(|(_, n_alike)| *n_alike)
    }

    /// Takes one out.
    pub(crate) fn take(&mut self, index: usize) -> Option<History> {
        self.all.remove(index)
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(tokens: &[u32], scale: f32) -> History {
        History { tokens: tokens.to_vec(), lora_scales: vec![scale], layers: vec![(0, vec![0; tokens.len()]), (2, vec![0; tokens.len()])] }
    }

    #[test]
    fn the_latest_ones_stay_that_have_room() {
        let mut histories = Histories::new(Bytes(20));
        histories.keep(history(&[1, 2, 3], 1.0));
        histories.keep(history(&[4, 5], 1.0));
        assert_eq!(histories.size(), Bytes(10));
        assert_eq!(histories.best(&[1.0], &[1, 2, 9], false), Some((0, 2)));
        assert_eq!(histories.best(&[1.0], &[1, 2, 9], true).map(|(_, n_alike)| n_alike), Some(0));
        assert_eq!(histories.best(&[1.0], &[4, 5, 6], true), Some((1, 2)));
        assert_eq!(histories.best(&[2.0], &[1, 2, 9], false).map(|(_, n_alike)| n_alike), Some(0));
        // One that goes on from another takes its place; adapters in other strengths compute another one.
        histories.keep(history(&[4, 5, 6], 1.0));
        histories.keep(history(&[4, 5, 6, 7], 2.0));
        assert_eq!(histories.size(), Bytes(20));
        histories.keep(history(&[8], 1.0));
        assert_eq!(histories.best(&[1.0], &[1, 2, 3], false).map(|(_, n_alike)| n_alike), Some(0), "the first one went");
        histories.keep(history(&[0; 11], 1.0));
        assert_eq!(histories.size(), Bytes(16), "what has no room at all changes nothing");
        assert!(histories.take(0).is_some_and(|history| history.tokens == [4, 5, 6]));
    }
}
