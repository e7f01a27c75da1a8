//! Pipelining: a batch of several sequences over several devices is split in two micro-batches, so that one device computes the first
//! while another computes the second. Only where every weight is resident: what streams would have to stream twice.

use crate::error::Result;
use crate::plan::{Plan, Stage};
use crate::stream::{Batch, Cancelled, Executors, Logits, check_cancelled};

/// Some of a batch's sequences, on their way through the stages.
pub(super) struct Half {
    batch: Batch,
    /// The rows of logits of the whole batch that are its own.
    rows: Vec<usize>,
    /// The residual stream before its next stage. `[n_tokens, hidden_size]`
    hidden: Vec<f32>,
}

/// The two halves of a batch; `None` where there is nothing to gain: one device, one sequence, or weights that stream.
pub(super) fn halves(plan: &Plan, batch: &Batch) -> Option<[Half; 2]> {
    // Checked first: it is so when one sequence is decoded, and the check is cheap.
    if batch.tokens.iter().all(|token| Some(token.sequence) == batch.tokens.first().map(|first| first.sequence)) {
        return None;
    }
    if plan.stages().len() < 2 || plan.streamed_chunks().next().is_some() {
        return None;
    }
    let mut sequences: Vec<u32> = batch.tokens.iter().map(|token| token.sequence).collect();
    sequences.sort_unstable();
    sequences.dedup();
    let first_of_second = *sequences.get(sequences.len().div_ceil(2))?;
    let half = |is_own: &dyn Fn(u32) -> bool| {
        let own: Vec<usize> = (0..batch.tokens.len()).filter(|&index| is_own(batch.tokens[index].sequence)).collect();
        let place = |row: u32| own.binary_search(&(row as usize)).ok();
        let asked = batch.logits_for.iter().enumerate().filter_map(|(row, &token)| Some((row, place(token)? as u32)));
        let (rows, logits_for) = asked.unzip();
        let tokens = own.iter().map(|&index| batch.tokens[index]).collect();
        Half { batch: Batch { tokens, logits_for, logits_request: batch.logits_request }, rows, hidden: Vec::new() }
    };
    Some([half(&|sequence| sequence < first_of_second), half(&|sequence| sequence >= first_of_second)])
}

/// One forward of both halves, the second a stage behind the first.
pub(super) async fn forward(executors: &mut Executors, mut halves: [Half; 2], cancelled: &Cancelled<'_>) -> Result<Vec<Logits>> {
    let stages = executors.plan().stages();
    for half in &mut halves {
        half.hidden = executors.embedded(&half.batch)?;
    }
    let mut logits: Vec<(usize, Logits)> = Vec::new();
    for tick in 0..=stages.len() {
        check_cancelled(cancelled)?;
        // Neighbouring stages are on different devices, so no device has two jobs at a time.
        let stage_of = |half: usize| tick.checked_sub(half).and_then(|stage| stages.get(stage).map(|own| (stage, own)));
        let mut jobs: Vec<(usize, usize, &Stage)> =
            (0..2).filter_map(|half| stage_of(half).map(|(stage, own)| (half, stage, own))).collect();
        // Adapters first: they compute on their own, and the host's turn takes this thread.
        jobs.sort_by_key(|(_, _, stage)| stage.device);
        for (half, _, stage) in &jobs {
            let Half { batch, hidden, .. } = &halves[*half];
            executors.start_stage(stage, batch, hidden)?;
        }
        for (half, index, stage) in jobs {
            let own = &mut halves[half];
            if index + 1 < stages.len() {
                own.hidden = executors.finish_stage(stage).await?;
            } else if !own.rows.is_empty() {
                let found = executors.finish_last_stage(stage, &own.batch).await?;
                logits.extend(own.rows.iter().copied().zip(found));
            }
        }
    }
    logits.sort_by_key(|(row, _)| *row);
    Ok(logits.into_iter().map(|(_, logits)| logits).collect())
}
