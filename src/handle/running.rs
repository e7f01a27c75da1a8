//! Generations under way, as the engine's thread keeps them, and those who get their steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_channel::mpsc as tokens;

use super::{MAX_UNREAD, Request, Step, Unread};
use crate::engine::LoadedModel;
use crate::error::Result;
use crate::session::{GenerationState, Offer};
use crate::stream::LogitsRequest;

/// A generation under way.
pub(super) struct Running {
    pub(super) sequence: u32,
    pub(super) progress: Progress,
    pub(super) listener: Listener,
}

/// The progress of a generation.
pub(super) enum Progress {
    /// Nothing was done yet.
    Requested(Box<Request>),
    Begun(Box<Begun>),
}

pub(super) struct Begun {
    pub(super) state: GenerationState,
    /// Tokens to be computed before the next one is chosen: what is left of the prompt, or the last token. At least one.
    pub(super) due: Vec<u32>,
    /// Tokens that are computed behind what is due, since they may be next.
    pub(super) draft: Vec<u32>,
    /// Whether the listener knows that the prompt was read.
    pub(super) prompt_is_reported: bool,
    /// Blocks of the cache that it may come to have.
    pub(super) n_reserved: usize,
}

/// Who gets the steps.
pub(super) struct Listener {
    pub(super) steps: tokens::UnboundedSender<Result<Step>>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) unread: Arc<Unread>,
}

impl Listener {
    pub(super) fn send(&self, step: Result<Step>) {
        self.unread.n_steps.fetch_add(1, Ordering::SeqCst);
        // Nobody may listen any more.
        let _ = self.steps.unbounded_send(step);
    }

    /// Whether nobody wants more steps.
    pub(super) fn is_gone(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.steps.is_closed()
    }

    /// Whether it may get more steps. If not, it wakes the engine's thread once it may.
    pub(super) fn has_room(&self) -> bool {
        if self.room() > 0 {
            return true;
        }
        self.unread.is_awaited.store(true, Ordering::SeqCst);
        self.room() > 0
    }

    /// How many more steps it may get.
    fn room(&self) -> usize {
        MAX_UNREAD.saturating_sub(self.unread.n_steps.load(Ordering::SeqCst))
    }
}

impl Running {
    /// The tokens to be computed next; none before it has begun.
    pub(super) fn due(&self) -> &[u32] {
        match &self.progress {
            Progress::Requested(_) => &[],
            Progress::Begun(begun) => &begun.due,
        }
    }

    /// The tokens to be computed behind them.
    pub(super) fn draft(&self) -> &[u32] {
        match &self.progress {
            Progress::Requested(_) => &[],
            Progress::Begun(begun) => &begun.draft,
        }
    }

    /// The draft that may be computed behind what is due, where `cached` are the tokens in its cache.
    pub(super) fn offer(&self, cached: &[u32], model: &LoadedModel) -> Offer {
        let Progress::Begun(begun) = &self.progress else { return Offer::default() };
        let mut offer = begun.state.offer(cached, model);
        // The token that is due gives a step as well.
        offer.truncate(self.listener.room().saturating_sub(1));
        offer
    }
}

/// The logits that a generation needs.
pub(super) fn logits_request(running: &Running) -> LogitsRequest {
    match &running.progress {
        Progress::Requested(_) => LogitsRequest::TopK(1),
        Progress::Begun(begun) => begun.state.logits_request(),
    }
}
