//! How many tokens may be drafted ahead, and what forwards with them should take.

use super::{LoadedModel, Prepared};
use crate::plan::Workload;
use crate::stream::MAX_TOKENS_TOGETHER;

impl Prepared {
    /// Most tokens of a forward in which each is computed as if it were alone, and has its logits.
    pub(crate) fn n_together(&self) -> usize {
        let forward = self.plan.forward;
        MAX_TOKENS_TOGETHER.min(forward.n_tokens).min(forward.n_logit_rows).max(1)
    }

    /// Most tokens of a [draft](crate::session::Speculation), or why there are none.
    ///
    /// # Errors
    /// The reason, for a user.
    pub fn most_drafted(&self) -> std::result::Result<usize, &'static str> {
        match self.n_together() - 1 {
            _ if self.model.is_recurrent() => Err("the model has recurrent states, which cannot go back to before a wrong draft"),
            0 => Err("the plan has room for the logits of one token"),
            most => Ok(most),
        }
    }
}

impl LoadedModel {
    /// Predicted seconds of forwards by which one sequence goes on by 1, 2, … tokens, as many as go [together](Prepared::n_together).
    pub(crate) fn decode_secs(&self) -> &[f64] {
        self.decode_secs.get_or_init(|| {
            let prepared = &self.prepared;
            let position = prepared.forecast.decode.workload.position;
            let workload = |n_tokens| Workload { n_tokens, n_logit_rows: n_tokens, position, n_seqs: 1 };
            (1..=prepared.n_together()).map(|n_tokens| prepared.predict(workload(n_tokens)).secs).collect()
        })
    }
}
