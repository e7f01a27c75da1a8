//! Norms whose own weights are trained: their gradients are sums over rows, which are products with a row of ones. What a norm gives without its weights
//! is computed again.

use std::collections::HashMap;

use super::MostTokens;
use super::memory::{Holds, Memory};
use super::recorder::Recorder;
use crate::error::Result;
use crate::gpu::{self, Buffer, Gpu, Purpose};
use crate::kernels::back::products::{self, OuterBindings, OuterParams};
use crate::kernels::{Binding, glu, layer_norm, rms_norm};
use crate::model::{Activation, Model, Op};
use crate::train::adapter::{Adapter, Layer};
use crate::units::Bytes;
use crate::weights::TensorId;

/// What their ways back need.
pub(super) struct GpuNorms {
    /// Of each vector that is trained.
    gradients: HashMap<TensorId, Buffer>,
    scratch: Option<Scratch>,
}

struct Scratch {
    ones: Buffer,
    /// What a norm gives without its weights.
    normed: Buffer,
    /// That times the gradient of what it gives with them.
    product: Buffer,
}

/// The weights and the bias of a norm; nothing of other operations.
fn vectors_of(op: &Op) -> [Option<TensorId>; 2] {
    match op {
        Op::RmsNorm(norm) => [norm.weight, None],
        Op::LayerNorm(norm) => [Some(norm.weight), norm.bias],
        _ => [None, None],
    }
}

/// How many values the rows of a norm have, and its groups.
fn widths_of(model: &Model, op: &Op) -> Option<[usize; 2]> {
    let (input, group_size) = match op {
        Op::RmsNorm(norm) => (norm.input, norm.group_size),
        Op::LayerNorm(norm) => (norm.input, norm.group_size),
        _ => return None,
    };
    Some([model.value(input).width, group_size])
}

/// Bytes of the ones, and of each of the other two.
fn scratch_bytes(model: &Model, trained: &Adapter, most: MostTokens) -> [Bytes; 2] {
    let is_trained = |op: &&Op| vectors_of(op).iter().flatten().any(|id| trained.trains(*id));
    let norms = model.units.iter().flat_map(|unit| &unit.ops).filter(is_trained).filter_map(|op| widths_of(model, op));
    let sizes = norms.map(|[width, group]| [(most.0 * width / group).max(group), most.0 * width]);
    let most = sizes.fold([0, 0], |[ones, values], [own_ones, own_values]| [ones.max(own_ones), values.max(own_values)]);
    most.map(|n| Bytes(n as u64 * 4).align_up(256))
}

fn gradient_bytes(len: usize) -> Bytes {
    Bytes(len as u64 * 4).align_up(256)
}

/// Bytes of all buffers.
pub(super) fn size_bytes(model: &Model, trained: &Adapter, most: MostTokens) -> Bytes {
    let [ones, values] = scratch_bytes(model, trained, most);
    trained.stored_vectors().map(|(_, values)| gradient_bytes(values.len())).sum::<Bytes>() + ones + values.times(2)
}

impl GpuNorms {
    pub(super) async fn new(gpu: &Gpu, model: &Model, trained: &Adapter, most: MostTokens) -> Result<GpuNorms> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let make = |what: &'static str, size: Bytes| gpu.buffer(what, size, usage, Purpose::Activations);
        if !trained.trains_norms() {
            return Ok(GpuNorms { gradients: HashMap::new(), scratch: None });
        }
        let mut gradients = HashMap::new();
        for (id, values) in trained.stored_vectors() {
            gradients.insert(id, make("gradient of a norm", gradient_bytes(values.len())).await?);
        }
        let [n_ones, n_values] = scratch_bytes(model, trained, most);
        let ones = make("ones", n_ones).await?;
        gpu.queue.write_buffer(&ones, 0, bytemuck::cast_slice(&vec![1.0f32; n_ones.0 as usize / 4]));
        let (normed, product) = (make("normed", n_values).await?, make("product with normed", n_values).await?);
        Ok(GpuNorms { gradients, scratch: Some(Scratch { ones, normed, product }) })
    }

    /// Takes the values of `trained`; gradients are zero then. What was recorded is submitted.
    pub(super) fn begin(&self, gpu: &Gpu, trained: &Adapter, memory: &Memory, recorder: &mut Recorder) -> Result<()> {
        recorder.submit(gpu);
        for (id, values) in trained.stored_vectors() {
            gpu.queue.write_buffer(memory.buffer(gpu, Holds::Vector(id))?, 0, bytemuck::cast_slice(&values));
        }
        self.gradients.values().for_each(|gradient| recorder.clear(gradient));
        Ok(())
    }

    /// Records the gradients of the weights and the bias of the norm `op`, as far as they are trained, from what it has read and the gradient of what it
    /// gives.
    pub(super) fn undo(
        &self,
        gpu: &Gpu,
        recorder: &mut Recorder,
        op: &Op,
        params: &rms_norm::Params,
        [read, upward]: [Binding<'_>; 2],
    ) -> Result<()> {
        let Some(scratch) = &self.scratch else { return Ok(()) };
        let [weight, bias] = vectors_of(op).map(|id| id.and_then(|id| self.gradients.get(&id)));
        if let Some(into) = weight {
            scratch.norm(gpu, recorder, op, params, read)?;
            let values = glu::Params { n_values: params.n_rows * params.hidden_size };
            let (gate, output) = (Binding::whole(&scratch.normed), Binding::whole(&scratch.product));
            let bindings = glu::Bindings { gate, up: upward, output };
            recorder.dispatch(gpu, &values, |arena| glu::prepare(gpu, arena, &values, Activation::Identity, bindings))?;
            scratch.add_rows(gpu, recorder, params, output, into)?;
        }
        bias.map_or(Ok(()), |into| scratch.add_rows(gpu, recorder, params, upward, into))
    }

    /// Adds the gradients that were summed up since [`GpuNorms::begin`] to `into`.
    pub(super) async fn add_gradients(&self, gpu: &Gpu, trained: &Adapter, into: &mut [Layer]) -> Result<()> {
        for (id, buffer) in &self.gradients {
            let Some(into) = trained.gradient_of(*id, into) else { continue };
            let found: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu::read(gpu, buffer, 0, into.len() as u64 * 4).await?);
            into.iter_mut().zip(&found).for_each(|(into, own)| *into += own);
        }
        Ok(())
    }
}

impl Scratch {
    /// Records what a norm gives without its weights.
    fn norm(&self, gpu: &Gpu, recorder: &mut Recorder, op: &Op, params: &rms_norm::Params, input: Binding<'_>) -> Result<()> {
        let (params, output) = (rms_norm::Params { weight_offset: 0.0, ..*params }, Binding::whole(&self.normed));
        if let Op::LayerNorm(_) = op {
            let bindings = layer_norm::Bindings { input, weight: Binding::whole(&self.ones), bias: None, output };
            return recorder.dispatch(gpu, &params, |arena| layer_norm::prepare(gpu, arena, &params, bindings));
        }
        let bindings = rms_norm::Bindings { input, weight: None, output };
        recorder.dispatch(gpu, &params, |arena| rms_norm::prepare(gpu, arena, &params, bindings))
    }

    /// Records the sum of rows.
    fn add_rows(&self, gpu: &Gpu, recorder: &mut Recorder, params: &rms_norm::Params, rows: Binding<'_>, into: &Buffer) -> Result<()> {
        let params = OuterParams { n_tokens: params.n_rows, n_rows: 1, n_columns: params.hidden_size };
        let bindings = OuterBindings { left: Binding::whole(&self.ones), right: rows, into: Binding::whole(into) };
        recorder.dispatch(gpu, &params, |arena| products::prepare_outer(gpu, arena, &params, bindings))
    }
}
