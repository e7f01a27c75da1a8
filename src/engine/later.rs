//! A model over several machines: an engine with the first stage of a model computes its own layers, and hands the hidden states to what
//! computes the later ones. Sessions, samplers and servers see one engine: only [`Engine::forward`] knows of it.
//!
//! Later stages are engines in this process, or far away: then requests and answers cross by a channel, and whoever knows the way carries
//! them, so that nothing here knows of networks.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use futures_channel::{mpsc, oneshot};
use futures_core::Stream;

use super::Engine;
use crate::error::{Error, Result};
use crate::stream::{Batch, Cancelled, Logits, LogitsRequest, MAX_TOKENS_TOGETHER};

/// The logits of a batch, as they come of later stages.
pub type LaterLogits<'a> = Pin<Box<dyn Future<Output = Result<Vec<Logits>>> + 'a>>;

/// What computes the layers behind those of an engine.
pub trait LaterStages: Send {
    /// The logits of a batch, of whose tokens `hidden` is the residual stream before the first of its layers: `[n_tokens, hidden_size]`.
    fn forward<'a>(&'a mut self, batch: &'a Batch, hidden: Vec<f32>) -> LaterLogits<'a>;

    /// Positions whose logits one forward gives at most.
    fn n_logit_rows(&self) -> usize;

    /// Which layers it computes.
    fn layers(&self) -> Range<usize>;
}

impl LaterStages for Engine {
    fn forward<'a>(&'a mut self, batch: &'a Batch, hidden: Vec<f32>) -> LaterLogits<'a> {
        Box::pin(async move { self.forward_hidden(batch, &hidden).await })
    }

    fn n_logit_rows(&self) -> usize {
        self.forward_size().n_logit_rows
    }

    fn layers(&self) -> Range<usize> {
        let own = self.prepared().model.layers();
        own.start..self.later.as_ref().map_or(own.end, |later| later.layers().end)
    }
}

impl Engine {
    /// Lets `later` compute the layers behind those of this engine, which was opened [for the layers](super::EngineBuilder::layers) before
    /// them: from now on its forwards give logits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the layers of both are not those of the model, one behind the other; where `later` gives the logits
    /// of fewer positions than may be asked for; and where sequences choose the scales of LoRA adapters.
    pub fn continue_with(mut self, later: Box<dyn LaterStages>) -> Result<Engine> {
        let invalid = |reason: String| Err(Error::InvalidArgument { option: "later stages".into(), reason });
        let (own, behind, n_layers) = (self.prepared().model.layers(), later.layers(), self.config().n_layers);
        if behind.start != own.end || behind.end != n_layers {
            let (first, last) = (behind.start, behind.end);
            return invalid(format!("have layers {first} to {last}, where layers {} to {n_layers} are needed", own.end));
        }
        let (rows, least) = (later.n_logit_rows(), MAX_TOKENS_TOGETHER.min(self.plan().forward.n_tokens));
        if rows < least {
            return invalid(format!("give the logits of {rows} positions at once, where {least} are needed; raise their logit_rows"));
        }
        if !self.lora_scales.is_empty() {
            return invalid("know nothing of scales of LoRA adapters that sequences choose; fix them".into());
        }
        let model = Arc::get_mut(&mut self.model);
        model.ok_or_else(|| Error::internal("an engine whose model is used elsewhere was to be continued"))?.later_rows = Some(rows);
        self.later = Some(later);
        Ok(self)
    }

    /// One forward of an engine that does not begin with the first layer: `hidden` is the residual stream before its layers,
    /// `[n_tokens, hidden_size]`, in place of the batch's tokens. It gives what the batch asks for: logits or, before the last layer, hidden
    /// states as [`Logits::All`].
    ///
    /// # Errors
    /// As of [`Engine::forward`], and [`Error::InvalidArgument`] where the engine begins with tokens, or `hidden` has another size.
    pub async fn forward_hidden(&mut self, batch: &Batch, hidden: &[f32]) -> Result<Vec<Logits>> {
        let invalid = |reason: String| Err(Error::InvalidArgument { option: "hidden states".into(), reason });
        if self.prepared().model.embedding().is_some() {
            return invalid("are given to an engine that begins with tokens".into());
        }
        let expected = batch.tokens.len() * self.config().hidden_size;
        if hidden.len() != expected {
            return invalid(format!("have {} values, where the batch needs {expected}", hidden.len()));
        }
        self.forward_from(batch, Some(hidden), &|| false).await
    }

    /// # Errors
    /// [`Error::InvalidArgument`] where it takes hidden states.
    pub(super) fn check_begins_with_tokens(&self) -> Result<()> {
        if self.prepared().model.embedding().is_some() {
            return Ok(());
        }
        let first = self.prepared().model.layers().start;
        let reason = format!("begins at layer {first} and takes hidden states in place of tokens: see Engine::forward_hidden");
        Err(Error::InvalidArgument { option: "engine".into(), reason })
    }

    /// # Errors
    /// [`Error::InvalidArgument`] where other machines compute a part of the model.
    pub(crate) fn check_whole(&self) -> Result<()> {
        if self.later.is_none() && self.prepared().model.is_whole() {
            return Ok(());
        }
        let reason = "has a part of the model's layers; this needs all of them on one machine".into();
        Err(Error::InvalidArgument { option: "engine".into(), reason })
    }

    /// The logits of a batch by its own layers and the later ones.
    pub(super) async fn forward_through(&mut self, batch: &Batch, given: Option<&[f32]>, cancelled: &Cancelled<'_>) -> Result<Vec<Logits>> {
        let hidden = self.compute(&batch_of_hidden(batch), given, cancelled).await?;
        let hidden = flat(hidden, batch.tokens.len() * self.config().hidden_size)?;
        let later = self.later.as_mut().ok_or_else(|| Error::internal("there are no later stages"))?;
        let logits = later.forward(batch, hidden).await?;
        check_logits(&logits, batch, self.config().vocab_size)?;
        Ok(logits)
    }
}

/// What comes of another machine is what was asked for.
fn check_logits(logits: &[Logits], batch: &Batch, vocab_size: usize) -> Result<()> {
    let is_asked = |row: &Logits| match (row, batch.logits_request) {
        (Logits::All(row), LogitsRequest::All) => row.len() == vocab_size,
        (Logits::Top(best), LogitsRequest::TopK(k)) => best.len() <= k && best.iter().all(|(token, _)| (*token as usize) < vocab_size),
        _ => false,
    };
    if logits.len() == batch.logits_for.len() && logits.iter().all(is_asked) {
        return Ok(());
    }
    let reason = format!("it gave {} rows of logits that are not the {} that were asked for", logits.len(), batch.logits_for.len());
    Err(Error::StageFailed { reason })
}

/// The same tokens, of which a stage is asked for all hidden states.
pub fn batch_of_hidden(batch: &Batch) -> Batch {
    let logits_for = (0..batch.tokens.len() as u32).collect();
    Batch { tokens: batch.tokens.clone(), logits_for, logits_request: LogitsRequest::All }
}

/// Rows, one behind the other.
fn flat(rows: Vec<Logits>, expected: usize) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(expected);
    for row in rows {
        match row {
            Logits::All(row) => values.extend(row),
            Logits::Top(_) => return Err(Error::internal("hidden states were asked for, best tokens were given")),
        }
    }
    if values.len() == expected { Ok(values) } else { Err(Error::internal("a stage gives too few hidden states")) }
}

/// A forward that later stages are asked for.
pub struct StageRequest {
    /// Its tokens and what is asked of them.
    pub batch: Batch,
    /// Their hidden states, `[n_tokens, hidden_size]`.
    pub hidden: Vec<f32>,
    answer: oneshot::Sender<Result<Vec<Logits>>>,
}

impl StageRequest {
    /// Answers it; in vain where nobody waits any more.
    pub fn answer(self, logits: Result<Vec<Logits>>) {
        drop(self.answer.send(logits));
    }
}

/// The forwards that an engine asks later stages for, in order.
pub struct StageRequests(mpsc::UnboundedReceiver<StageRequest>);

impl StageRequests {
    /// The next one; `None` where there will be no more, since the engine is gone.
    pub async fn next(&mut self) -> Option<StageRequest> {
        poll_fn(|context| Pin::new(&mut self.0).poll_next(context)).await
    }
}

/// Later stages that are far away, with these layers: they give the logits of `n_logit_rows` positions at once. What an engine asks them
/// for comes out at the other end.
pub fn requests_to_later_stages(layers: Range<usize>, n_logit_rows: usize) -> (Box<dyn LaterStages>, StageRequests) {
    let (requests, receiver) = mpsc::unbounded();
    (Box::new(FarStages { layers, n_logit_rows, requests }), StageRequests(receiver))
}

/// Stages whose answers come through a channel.
struct FarStages {
    layers: Range<usize>,
    n_logit_rows: usize,
    requests: mpsc::UnboundedSender<StageRequest>,
}

impl LaterStages for FarStages {
    fn forward<'a>(&'a mut self, batch: &'a Batch, hidden: Vec<f32>) -> LaterLogits<'a> {
        Box::pin(async move {
            let (answer, logits) = oneshot::channel();
            let gone = || Error::StageFailed { reason: "nobody carries requests to them any more".into() };
            let request = StageRequest { batch: batch.clone(), hidden, answer };
            self.requests.unbounded_send(request).map_err(|_| gone())?;
            logits.await.map_err(|_| gone())?
        })
    }

    fn n_logit_rows(&self) -> usize {
        self.n_logit_rows
    }

    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }
}
