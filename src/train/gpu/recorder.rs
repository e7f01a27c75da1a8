//! Commands in their order, which are encoded and submitted together.

use bytemuck::Pod;

use crate::error::Result;
use crate::gpu::{Dispatch, Gpu, PARAMS_STRIDE, ParamsArena};
use crate::kernels::matmul;
use crate::units::Bytes;

/// Dispatches of a submission.
const MOST_DISPATCHES: usize = 256;

/// Products and sums of a submission, about: 40 ms of an adapter that computes half of 10¹² in a second, so that no watchdog takes it for hung.
const MOST_PRODUCTS: u64 = 10 << 30;

/// Bytes of the recorder's own buffer.
pub(super) fn size_bytes() -> Bytes {
    Bytes(PARAMS_STRIDE).times(MOST_DISPATCHES as u64)
}

/// What an adapter is asked to do.
enum Command {
    Dispatch(Dispatch, u32),
    /// The first bytes of one buffer to the other.
    Copy(wgpu::Buffer, wgpu::Buffer, u64),
    /// Zeros.
    Clear(wgpu::Buffer),
}

/// Commands that are not submitted yet.
pub(super) struct Recorder {
    arena: ParamsArena,
    commands: Vec<Command>,
    n_products: u64,
    last: Option<wgpu::SubmissionIndex>,
}

impl Recorder {
    pub(super) async fn new(gpu: &Gpu) -> Result<Recorder> {
        Ok(Recorder { arena: ParamsArena::new(gpu, MOST_DISPATCHES).await?, commands: Vec::new(), n_products: 0, last: None })
    }

    /// Records a dispatch, which `prepare` makes for the buffer of its params.
    pub(super) fn dispatch<P: Pod>(
        &mut self,
        gpu: &Gpu,
        params: &P,
        prepare: impl FnOnce(&wgpu::Buffer) -> Result<Dispatch>,
    ) -> Result<()> {
        if self.arena.len() == MOST_DISPATCHES {
            self.submit(gpu);
        }
        let dispatch = prepare(self.arena.buffer())?;
        let params_offset = self.arena.push(gpu, params)?;
        self.commands.push(Command::Dispatch(dispatch, params_offset));
        Ok(())
    }

    /// Counts a matrix product that was recorded, and submits once there is much to do.
    pub(super) fn count(&mut self, gpu: &Gpu, params: &matmul::Params) {
        self.n_products += u64::from(params.n_rows) * u64::from(params.n_columns) * u64::from(params.n_tokens);
        if self.n_products >= MOST_PRODUCTS {
            self.submit(gpu);
        }
    }

    /// Records the copy of the first `len` bytes.
    pub(super) fn copy(&mut self, from: &wgpu::Buffer, to: &wgpu::Buffer, len: u64) {
        self.commands.push(Command::Copy(from.clone(), to.clone(), len));
    }

    /// Records zeros for all of a buffer.
    pub(super) fn clear(&mut self, buffer: &wgpu::Buffer) {
        self.commands.push(Command::Clear(buffer.clone()));
    }

    /// Submits what is recorded. What the queue writes from here on comes behind it.
    pub(super) fn submit(&mut self, gpu: &Gpu) {
        if self.commands.is_empty() {
            return;
        }
        self.n_products = 0;
        self.arena.upload(gpu);
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("training") });
        let mut commands = self.commands.drain(..).peekable();
        while let Some(command) = commands.next() {
            match command {
                Command::Copy(from, to, len) => encoder.copy_buffer_to_buffer(&from, 0, &to, 0, len),
                Command::Clear(buffer) => encoder.clear_buffer(&buffer, 0, None),
                Command::Dispatch(dispatch, params_offset) => {
                    let mut pass =
                        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("training"), ..Default::default() });
                    dispatch.encode(&mut pass, params_offset);
                    while let Some(Command::Dispatch(dispatch, params_offset)) =
                        commands.next_if(|command| matches!(command, Command::Dispatch(..)))
                    {
                        dispatch.encode(&mut pass, params_offset);
                    }
                }
            }
        }
        drop(commands);
        self.last = Some(gpu.queue.submit([encoder.finish()]));
        self.arena.clear();
    }

    /// The latest submission.
    pub(super) fn last(&self) -> Option<wgpu::SubmissionIndex> {
        self.last.clone()
    }
}
