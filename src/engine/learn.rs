//! Learning from runs: measured against predicted times correct the rates of the devices that are kept.

use crate::device::Correction;
use crate::engine::{Engine, Prepared};
use crate::machine;
use crate::plan::{self, Forwards, Totals};

/// Forwards of a run and what they took.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Which.
    pub forwards: Forwards,
    /// Seconds of all of them.
    pub secs: f64,
    /// The share of the time in which threads that could have run waited for a core (see [`crate::platform::waited_since`]); `None`
    /// where the system does not tell.
    pub waited: Option<f64>,
}

/// Least tokens of a run that it is learnt from: decoded one by one, and of a prompt.
const LEAST_ANSWER: usize = 8;
const LEAST_PROMPT: usize = 16;

impl Observed {
    fn tells(&self) -> bool {
        // Rates are kept for one token and for many.
        !self.forwards.is_drafted()
            && self.secs > 0.0
            && self.forwards.n_tokens() >= if self.forwards.is_prompt() { LEAST_PROMPT } else { LEAST_ANSWER }
    }
}

impl Prepared {
    /// What these forwards should take, on a machine that does nothing else.
    pub fn predict_all(&self, forwards: &Forwards) -> Totals {
        forwards.predict(&self.plan, &self.checkpoint.catalog, &self.model, &self.devices)
    }
}

impl Engine {
    /// Corrects the rates that are kept of this machine by what forwards of this engine took. Nothing happens where the plan was made
    /// for another machine, with typical rates, or with kernels or limits that it would not choose by itself.
    pub fn learn(&self, observed: &[Observed]) {
        let prepared = &self.prepared;
        // What an expert cache finds is assumed, so that forwards with one do not tell rates.
        if !prepared.means.learns || prepared.plan.devices.iter().any(|device| device.expert_cache.is_some()) {
            return;
        }
        let mut measured = prepared.means.measured.clone();
        for observed in observed.iter().filter(|observed| observed.tells()) {
            let waited = observed.waited.unwrap_or(0.0);
            let times = [observed.secs, waited];
            let Some(shown) =
                plan::observe(&prepared.plan, &prepared.checkpoint.catalog, &prepared.model, &measured, &observed.forwards, times)
            else {
                continue;
            };
            tracing::debug!("{}: {} × {:.3}, waited {:.0} %", shown.device, shown.aspect, shown.factor, waited * 100.0);
            let Some(spec) = measured.iter_mut().find(|spec| spec.device == shown.device) else { continue };
            machine::correct(spec, &prepared.means.adapters, prepared.means.path.as_deref(), shown.aspect, shown.factor, waited);
            // What comes next rests on it.
            spec.rates.corrections.insert(shown.aspect, Correction::by(shown.factor));
        }
    }
}
