//! Batches in two halves: where several devices compute and every weight is resident, one device computes half of the sequences while
//! another computes the others. The steps are those of [`Schedule::in_halves`](crate::plan::Schedule::in_halves); here is what they carry.

use crate::error::{Error, Result};
use crate::plan::Workload;
use crate::stream::{Batch, Executors, Logits};

/// The two micro-batches of a batch on their way through the stages.
#[derive(Debug)]
pub struct Halves {
    halves: [Half; 2],
    /// Logits that are there, each with its row in the whole batch.
    logits: Vec<(usize, Logits)>,
}

/// Some of a batch's sequences.
#[derive(Debug)]
struct Half {
    batch: Batch,
    /// The rows of logits of the whole batch that are its own.
    rows: Vec<usize>,
    /// The residual stream before its next stage. `[n_tokens, hidden_size]`
    hidden: Vec<f32>,
}

impl Halves {
    /// The two halves of a batch, each with whole sequences; `None` of one sequence.
    pub fn of(batch: &Batch) -> Option<Halves> {
        // Checked first: it is so when one sequence is decoded, and the check is cheap.
        if batch.tokens.iter().all(|token| Some(token.sequence) == batch.tokens.first().map(|first| first.sequence)) {
            return None;
        }
        let sequences = batch.sequences();
        let first_of_second = *sequences.get(sequences.len().div_ceil(2))?;
        let half = |is_own: &dyn Fn(u32) -> bool| {
            let own: Vec<usize> = (0..batch.tokens.len()).filter(|&index| is_own(batch.tokens[index].sequence)).collect();
            let place = |row: u32| own.binary_search(&(row as usize)).ok();
            let asked = batch.logits_for.iter().enumerate().filter_map(|(row, &token)| Some((row, place(token)? as u32)));
            let (rows, logits_for) = asked.unzip();
            let tokens = own.iter().map(|&index| batch.tokens[index]).collect();
            Half { batch: Batch { tokens, logits_for, logits_request: batch.logits_request }, rows, hidden: Vec::new() }
        };
        let halves = [half(&|sequence| sequence < first_of_second), half(&|sequence| sequence >= first_of_second)];
        Some(Halves { halves, logits: Vec::new() })
    }

    /// What each of them asks for.
    pub fn workloads(&self) -> [Workload; 2] {
        self.halves.each_ref().map(|half| half.batch.workload())
    }

    /// The tokens of both as vectors.
    pub(super) fn embed(&mut self, executors: &mut Executors) -> Result<()> {
        self.halves.iter_mut().try_for_each(|half| {
            half.hidden = executors.embedded(&half.batch)?;
            Ok(())
        })
    }

    pub(super) fn start_stage(&self, executors: &mut Executors, half: usize, first: usize, last: usize) -> Result<()> {
        let Half { batch, hidden, .. } = self.halves.get(half).ok_or_else(no_such_half)?;
        executors.start_stage(first..=last, batch, hidden)
    }

    pub(super) async fn finish_stage(&mut self, executors: &mut Executors, half: usize, last: usize) -> Result<()> {
        let Half { batch, rows, hidden } = self.halves.get_mut(half).ok_or_else(no_such_half)?;
        if !executors.is_last(last) {
            *hidden = executors.finish_stage(last).await?;
        } else if !rows.is_empty() {
            let found = executors.finish_last_stage(last, batch).await?;
            self.logits.extend(rows.iter().copied().zip(found));
        }
        Ok(())
    }

    /// The logits of both, in the order in which the whole batch asks for them.
    pub(super) fn into_logits(mut self) -> Vec<Logits> {
        self.logits.sort_by_key(|(row, _)| *row);
        self.logits.into_iter().map(|(_, logits)| logits).collect()
    }
}

/// A schedule whose steps are those of halves, for a batch that is whole.
pub(super) fn no_such_half() -> Error {
    Error::internal("a step of half a batch, in a forward without halves")
}
