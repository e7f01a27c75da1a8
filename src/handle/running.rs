//! Generations under way, as the engine's thread keeps them, and those who get their steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_channel::mpsc as tokens;

use super::histories::History;
use super::{MAX_UNREAD, Request, Step, Unread};
use crate::engine::LoadedModel;
use crate::error::Result;
use crate::session::{GenerationState, Offer};
use crate::stream::LogitsRequest;
use crate::units::Bytes;

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
    /// It has begun, and others have its room in the cache.
    Paused {
        begun: Box<Begun>,
        /// What it had there; `None` where that is to be read from its beginning.
        history: Option<History>,
    },
}

pub(super) struct Begun {
    /// Which of all generations it is, by their beginnings.
    pub(super) number: u64,
    pub(super) state: GenerationState,
    /// Tokens to be computed before the next one is chosen: what is left of the prompt, or the last token. At least one.
    pub(super) due: Vec<u32>,
    /// Tokens that are computed behind what is due, since they may be next.
    pub(super) draft: Vec<u32>,
    /// Whether the listener knows that the prompt was read.
    pub(super) prompt_is_reported: bool,
    /// Blocks of the cache that it may come to have.
    pub(super) n_most: usize,
    /// Whether it is left out of this turn: the cache has no room for its next tokens, or nobody reads them.
    pub(super) is_left_out: bool,
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

    /// Whether it may get so many more steps. If not, it wakes the engine's thread with the next one that is read.
    fn has_room(&self, n_steps: usize) -> bool {
        if self.room() >= n_steps {
            return true;
        }
        self.unread.is_awaited.store(true, Ordering::SeqCst);
        self.room() >= n_steps
    }

    /// How many more steps it may get.
    fn room(&self) -> usize {
        MAX_UNREAD.saturating_sub(self.unread.n_steps.load(Ordering::SeqCst))
    }
}

impl Running {
    /// Whether somebody reads its steps. One that is paused comes back for many of them only.
    pub(super) fn is_read(&self) -> bool {
        let is_paused = matches!(self.progress, Progress::Paused { .. });
        self.listener.has_room(if is_paused { MAX_UNREAD / 2 } else { 1 })
    }

    /// Whether it may be computed in this turn.
    pub(super) fn is_in_turn(&self) -> bool {
        matches!(&self.progress, Progress::Begun(begun) if !begun.is_left_out) && self.is_read()
    }

    /// Bytes in host memory of what it had in the cache.
    pub(super) fn kept_bytes(&self) -> Bytes {
        match &self.progress {
            Progress::Paused { history: Some(history), .. } => history.size(),
            _ => Bytes::ZERO,
        }
    }

    /// Lets it read all of its text again, of which `cached` was in the cache of an engine that is gone.
    pub(super) fn read_again(&mut self, cached: Vec<u32>) {
        let (begun, cached) = match &mut self.progress {
            Progress::Requested(_) => return,
            Progress::Begun(begun) => (begun, cached),
            Progress::Paused { begun, history } => (begun, history.take().map(|history| history.tokens().to_vec()).unwrap_or_default()),
        };
        begun.due.splice(0..0, cached);
        begun.draft.clear();
    }

    /// The tokens to be computed next; none before it has begun.
    pub(super) fn due(&self) -> &[u32] {
        match &self.progress {
            Progress::Requested(_) | Progress::Paused { .. } => &[],
            Progress::Begun(begun) => &begun.due,
        }
    }

    /// The tokens to be computed behind them.
    pub(super) fn draft(&self) -> &[u32] {
        match &self.progress {
            Progress::Requested(_) | Progress::Paused { .. } => &[],
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
        Progress::Requested(_) | Progress::Paused { .. } => LogitsRequest::TopK(1),
        Progress::Begun(begun) => begun.state.logits_request(),
    }
}
