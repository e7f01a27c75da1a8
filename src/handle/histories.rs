//! What devices kept of sequences that made room for others, in host memory: a conversation that comes back later goes on there, and is not
//! computed again.

use std::collections::VecDeque;

use crate::engine::Engine;
use crate::error::Result;
use crate::session::n_known;
use crate::stream::KvBlocks;
use crate::units::Bytes;

/// The cache of one sequence, as its devices store it.
pub(super) struct History {
    tokens: Vec<u32>,
    /// What the sequence multiplied LoRA adapters by.
    lora_scales: Vec<f32>,
    /// By layer.
    layers: Vec<(usize, Vec<u8>)>,
    /// What these take.
    size: Bytes,
}

impl History {
    /// Blocks of the cache that it takes there.
    pub(super) fn n_blocks(&self) -> usize {
        self.tokens.len().div_ceil(KvBlocks::BLOCK_LEN)
    }

    /// The tokens whose cache it is.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The bytes that it takes.
    pub(super) fn size(&self) -> Bytes {
        self.size
    }

    /// What is kept of `tokens` as `sequence`; `None` where not all of them are cached, or that is more than `most`.
    ///
    /// # Errors
    /// Those of the devices.
    pub(super) async fn of(engine: &mut Engine, sequence: u32, tokens: &[u32], most: Bytes) -> Result<Option<History>> {
        let of_layers = engine.kept_of_layers(tokens.len());
        let size: Bytes = of_layers.iter().map(|(.., n_bytes)| Bytes(*n_bytes)).sum();
        if size > most || engine.n_reusable(sequence, tokens.len()) < tokens.len() {
            return Ok(None);
        }
        let mut layers = Vec::with_capacity(of_layers.len());
        for (layer, ..) in of_layers {
            layers.push((layer, engine.read_layer(layer, sequence, tokens.len()).await?));
        }
        Ok(Some(History { tokens: tokens.to_vec(), lora_scales: engine.lora_scales(sequence).to_vec(), layers, size }))
    }

    /// Goes back to `sequence`, in place of its own; the tokens that are cached then.
    ///
    /// # Errors
    /// Those of the devices. Nothing of the sequence is cached then.
    pub(super) fn give_back(self, engine: &mut Engine, sequence: u32) -> Result<Vec<u32>> {
        let layers = self.layers.into_iter().map(Ok);
        engine.write_layers(sequence, self.tokens.len(), layers)?;
        engine.note_cached(sequence, self.tokens.len());
        Ok(self.tokens)
    }
}

/// As many of them as there is room for; those that were used longest ago go first.
#[derive(Default)]
pub(super) struct Histories {
    /// Bytes that they may take.
    limit: Bytes,
    /// The latest one comes last.
    all: VecDeque<History>,
}

impl Histories {
    /// None, with room for so many bytes of them.
    pub(super) fn new(limit: Bytes) -> Histories {
        Histories { limit, all: VecDeque::new() }
    }

    /// Bytes that they may take.
    pub(super) fn limit(&self) -> Bytes {
        self.limit
    }

    /// Bytes that they take.
    pub(super) fn size(&self) -> Bytes {
        self.all.iter().map(|history| history.size).sum()
    }

    /// Keeps one more where it has room beside `others`, which are kept elsewhere. Those that it goes on from go, and as many others as it
    /// takes the room of.
    pub(super) fn keep(&mut self, history: History, others: Bytes) {
        self.all.retain(|other| other.lora_scales != history.lora_scales || !history.tokens.starts_with(&other.tokens));
        if self.make_room(history.size + others) {
            self.all.push_back(history);
        }
    }

    /// Makes room for so many bytes of what is kept elsewhere or comes; whether there is so much. If not, nothing goes.
    pub(super) fn make_room(&mut self, others: Bytes) -> bool {
        let Some(rest) = self.limit.0.checked_sub(others.0) else { return false };
        while self.size().0 > rest {
            self.all.pop_front();
        }
        true
    }

    /// The one with the most of `prompt`, and how many tokens that are. Where states are recurrent, those after all of its tokens count alone.
    pub(super) fn best(&self, lora_scales: &[f32], prompt: &[u32], is_recurrent: bool) -> Option<(usize, usize)> {
        let n_alike = |history: &History| {
            let n_alike = if history.lora_scales == lora_scales { n_known(&history.tokens, prompt) } else { 0 };
            if is_recurrent && n_alike < history.tokens.len() { 0 } else { n_alike }
        };
        self.all.iter().map(n_alike).enumerate().max_by_key(|(_, n_alike)| *n_alike)
    }

    /// Takes one out.
    pub(super) fn take(&mut self, index: usize) -> Option<History> {
        self.all.remove(index)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(tokens: &[u32], scale: f32) -> History {
        let layers = [0, 2].map(|layer| (layer, vec![0; tokens.len()])).into();
        History { tokens: tokens.to_vec(), lora_scales: vec![scale], layers, size: Bytes(2 * tokens.len() as u64) }
    }

    #[test]
    fn the_latest_ones_stay_that_have_room() {
        let mut histories = Histories::new(Bytes(20));
        histories.keep(history(&[1, 2, 3], 1.0), Bytes::ZERO);
        histories.keep(history(&[4, 5], 1.0), Bytes::ZERO);
        assert_eq!(histories.size(), Bytes(10));
        assert_eq!(histories.best(&[1.0], &[1, 2, 9], false), Some((0, 2)));
        assert_eq!(histories.best(&[1.0], &[1, 2, 9], true).map(|(_, n_alike)| n_alike), Some(0));
        assert_eq!(histories.best(&[1.0], &[4, 5, 6], true), Some((1, 2)));
        assert_eq!(histories.best(&[2.0], &[1, 2, 9], false).map(|(_, n_alike)| n_alike), Some(0));
        // One that goes on from another takes its place; adapters in other strengths compute another one.
        histories.keep(history(&[4, 5, 6], 1.0), Bytes::ZERO);
        histories.keep(history(&[4, 5, 6, 7], 2.0), Bytes::ZERO);
        assert_eq!(histories.size(), Bytes(20));
        histories.keep(history(&[8], 1.0), Bytes::ZERO);
        assert_eq!(histories.best(&[1.0], &[1, 2, 3], false).map(|(_, n_alike)| n_alike), Some(0), "the first one went");
        histories.keep(history(&[0; 11], 1.0), Bytes::ZERO);
        assert_eq!(histories.size(), Bytes(16), "what has no room at all changes nothing");
        assert!(histories.take(0).is_some_and(|history| history.tokens == [4, 5, 6]));
    }

    #[test]
    fn they_make_room_for_what_is_kept_elsewhere() {
        let mut histories = Histories::new(Bytes(20));
        histories.keep(history(&[1, 2, 3], 1.0), Bytes::ZERO);
        histories.keep(history(&[4, 5], 1.0), Bytes::ZERO);
        assert!(!histories.make_room(Bytes(21)));
        assert_eq!(histories.size(), Bytes(10), "nothing goes in vain");
        assert!(histories.make_room(Bytes(15)));
        assert_eq!(histories.size(), Bytes(4), "the latest one stays");
        histories.keep(history(&[6], 1.0), Bytes(15));
        assert_eq!(histories.best(&[1.0], &[6], false), Some((0, 1)), "it took the room of the other one");
        histories.keep(history(&[7, 8, 9], 1.0), Bytes(15));
        assert_eq!(histories.size(), Bytes(2));
    }
}
