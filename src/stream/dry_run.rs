//! The dry run: the same schedule on a virtual clock. What the planner predicts is what this executor computes.

use std::collections::VecDeque;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use serde::Serialize;

use crate::device::{Device, Rates};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Plan, Schedule, UploadPath};
use crate::stream::{Batch, Executor, forward, prologue};
use crate::units::Bytes;

/// What a decode step is predicted to cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Prediction {
    /// Seconds of one forward of one token, in the steady state.
    pub forward_secs: f64,
    /// Seconds of it in which the executing device waits for an upload.
    pub stall_secs: f64,
    /// Bytes that stream in it.
    pub streamed_bytes: Bytes,
}

/// A virtual machine: three resources, each busy until some time.
pub struct DryRun<'a> {
    plan: &'a Plan,
    rates: Costs,
    disk_free: f64,
    upload_free: f64,
    compute_free: f64,
    stalled: f64,
    /// When each uploaded piece is ready, oldest first.
    ready: VecDeque<f64>,
    /// When each free slot became so.
    free_slots: VecDeque<f64>,
}

/// Rates that a dry run needs.
#[derive(Debug, Clone, Copy)]
struct Costs {
    disk_read: f64,
    upload: f64,
    matvec: f64,
    submit_secs: f64,
}

/// Predicts the decode of one token, or `None` where a rate that matters is not measured.
///
/// # Errors
/// None at present; the signature is the executor's.
pub fn predict(plan: &Plan, schedule: &Schedule, executor: &Rates, disk: &Rates) -> Result<Option<Prediction>> {
    let Some(costs) = costs(plan, executor, disk) else { return Ok(None) };
    let mut run = DryRun {
        plan,
        rates: costs,
        disk_free: 0.0,
        upload_free: 0.0,
        compute_free: 0.0,
        stalled: 0.0,
        ready: VecDeque::new(),
        free_slots: plan.ring.map(|ring| vec![0.0; ring.n_slots].into()).unwrap_or_default(),
    };
    prologue(schedule, &mut run)?;
    let batch = Batch::default();
    let mut before = (0.0, 0.0);
    // The first forwards fill the ring; the last one stands for the steady state.
    for _ in 0..3 {
        before = (run.compute_free, run.stalled);
        // A dry run never waits, so one poll finishes it.
        let Poll::Ready(done) = pin!(forward(schedule, &mut run, &batch)).poll(&mut Context::from_waker(Waker::noop())) else {
            return Ok(None);
        };
        done?;
    }
    Ok(Some(Prediction {
        forward_secs: run.compute_free - before.0,
        stall_secs: run.stalled - before.1,
        streamed_bytes: plan.streamed_bytes(),
    }))
}

fn costs(plan: &Plan, executor: &Rates, disk: &Rates) -> Option<Costs> {
    let upload = match plan.ring.map(|ring| ring.upload) {
        _ if plan.execute_on == Device::Cpu => f64::INFINITY,
        Some(UploadPath::Mapped) => executor.upload_mapped?.0,
        Some(UploadPath::Staged) => executor.upload_staged?.0,
        None => f64::INFINITY,
    };
    let reads_disk = plan.streamed_pieces().any(|piece| plan.home(piece) == Device::Disk);
    let disk_read = if reads_disk { disk.disk_read?.0 } else { f64::INFINITY };
    Some(Costs { disk_read, upload, matvec: executor.matvec_of(DType::F16)?.0, submit_secs: executor.submit_secs.unwrap_or(0.0) })
}

impl DryRun<'_> {
    fn bytes(&self, piece: usize) -> f64 {
        self.plan.pieces[piece].size_bytes.0 as f64
    }

    fn compute(&mut self, piece: usize, earliest: f64) {
        let begin = self.compute_free.max(earliest);
        self.compute_free = begin + self.bytes(piece) / self.rates.matvec + self.rates.submit_secs;
    }
}

impl Executor for DryRun<'_> {
    type Output = ();

    fn embed(&mut self, _batch: &Batch) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, piece: usize) -> Result<()> {
        let mut at = self.free_slots.pop_front().unwrap_or(self.compute_free);
        if self.plan.home(piece) == Device::Disk {
            self.disk_free = self.disk_free.max(at) + self.bytes(piece) / self.rates.disk_read;
            at = self.disk_free;
        }
        self.upload_free = self.upload_free.max(at) + self.bytes(piece) / self.rates.upload;
        self.ready.push_back(self.upload_free);
        Ok(())
    }

    fn compute_resident(&mut self, piece: usize) -> Result<()> {
        self.compute(piece, 0.0);
        Ok(())
    }

    async fn compute_streamed(&mut self, piece: usize) -> Result<()> {
        let ready = self.ready.pop_front().unwrap_or(0.0);
        self.stalled += (ready - self.compute_free).max(0.0);
        self.compute(piece, ready);
        self.free_slots.push_back(self.compute_free);
        Ok(())
    }

    async fn readback(&mut self, _batch: &Batch) -> Result<()> {
        Ok(())
    }
}
