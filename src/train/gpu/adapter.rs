//! What is trained, beside the frozen matrices, and its gradients. Ranks are rounded up to multiples of 4, with zeros, since the faster kernels
//! read rows as quads.

use std::collections::HashMap;

use super::MostTokens;
use super::dropout::{self, GpuDropout};
use super::recorder::Recorder;
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{self, Buffer, Gpu, Purpose};
use crate::kernels::back::products::{self, OuterBindings, OuterParams};
use crate::kernels::{Binding, matmul};
use crate::model::Model;
use crate::train::adapter::{Adapter, Layer};
use crate::units::Bytes;
use crate::weights::TensorId;

/// One layer: A `[rank, n_inputs]` and B `[n_outputs, rank]`, B times the scale of the product, and their gradients.
struct GpuLayer {
    a: Buffer,
    b: Buffer,
    of_a: Buffer,
    of_b: Buffer,
    n_inputs: u32,
    n_outputs: u32,
}

fn padded_rank(trained: &Adapter) -> usize {
    trained.rank.next_multiple_of(4)
}

/// Bytes of A and of B of a layer.
fn matrices(trained: &Adapter, layer: &Layer) -> [Bytes; 2] {
    [layer.n_inputs, layer.n_outputs].map(|n| Bytes((padded_rank(trained) * n * 4) as u64).align_up(256))
}

fn inner_bytes(trained: &Adapter, most: MostTokens) -> Bytes {
    Bytes((most.0 * padded_rank(trained) * 4) as u64).align_up(256)
}

/// Bytes of the largest matrix, which is read back as a whole.
pub(super) fn largest_matrix(trained: &Adapter) -> Bytes {
    trained.linears().iter().flat_map(|layer| matrices(trained, layer)).max().unwrap_or_default()
}

/// Bytes of all buffers.
pub(super) fn size_bytes(model: &Model, trained: &Adapter, most: MostTokens) -> Bytes {
    let layers: Bytes = trained.linears().iter().flat_map(|layer| matrices(trained, layer)).sum();
    layers.times(2) + inner_bytes(trained, most).times(2) + dropout::size_bytes(model, trained, most)
}

/// All layers.
pub(super) struct GpuAdapter {
    layers: Vec<GpuLayer>,
    by_weight: HashMap<TensorId, usize>,
    /// As the buffers have it.
    rank: u32,
    /// `A·x`, and the gradient of it: `[n_tokens, rank]`.
    inner: Buffer,
    of_inner: Buffer,
    dropout: Option<GpuDropout>,
}

impl GpuAdapter {
    pub(super) async fn new(gpu: &Gpu, model: &Model, trained: &Adapter, most: MostTokens) -> Result<GpuAdapter> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let make = |what: &'static str, size: Bytes| gpu.buffer(what, size, usage, Purpose::Activations);
        let mut layers = Vec::new();
        for layer in trained.linears() {
            let [of_a, of_b] = matrices(trained, layer);
            layers.push(GpuLayer {
                a: make("A", of_a).await?,
                b: make("B", of_b).await?,
                of_a: make("gradient of A", of_a).await?,
                of_b: make("gradient of B", of_b).await?,
                n_inputs: layer.n_inputs as u32,
                n_outputs: layer.n_outputs as u32,
            });
        }
        let inner_bytes = inner_bytes(trained, most);
        let (inner, of_inner) = (make("A·x", inner_bytes).await?, make("gradient of A·x", inner_bytes).await?);
        let (by_weight, rank) = (trained.by_weight().clone(), padded_rank(trained) as u32);
        let dropout = GpuDropout::new(gpu, model, trained, most).await?;
        Ok(GpuAdapter { layers, by_weight, rank, inner, of_inner, dropout })
    }

    /// Takes the values of `trained`; gradients are zero then.
    pub(super) fn begin(&mut self, gpu: &Gpu, trained: &Adapter, recorder: &mut Recorder) {
        recorder.submit(gpu);
        let scale = trained.scale();
        for (own, layer) in self.layers.iter().zip(trained.linears()) {
            gpu.queue.write_buffer(&own.a, 0, bytemuck::cast_slice(&layer.a));
            let mut b = vec![0.0f32; own.n_outputs as usize * self.rank as usize];
            for (wide, row) in b.chunks_exact_mut(self.rank as usize).zip(layer.b.chunks_exact(trained.rank)) {
                wide.iter_mut().zip(row).for_each(|(to, from)| *to = scale * from);
            }
            gpu.queue.write_buffer(&own.b, 0, bytemuck::cast_slice(&b));
            recorder.clear(&own.of_a);
            recorder.clear(&own.of_b);
        }
    }

    /// Draws what is dropped in a unit, which is computed next; `draw` names the draw, none is without.
    pub(super) fn draw(&mut self, gpu: &Gpu, recorder: &mut Recorder, unit: usize, n_tokens: u32, draw: Option<u64>) {
        if let Some(dropout) = &mut self.dropout {
            dropout.draw(gpu, recorder, unit, n_tokens, draw);
        }
    }

    /// Records what the layer beside `weight`, if there is one, adds to the output of its product.
    pub(super) fn add(
        &self,
        gpu: &Gpu,
        recorder: &mut Recorder,
        weight: TensorId,
        n_tokens: u32,
        [input, output]: [Binding<'_>; 2],
    ) -> Result<()> {
        let Some(index) = self.by_weight.get(&weight).copied() else { return Ok(()) };
        let layer = &self.layers[index];
        let input = self.dropped(gpu, recorder, index, n_tokens, input)?;
        self.record_inner(gpu, recorder, layer, n_tokens, input)?;
        let params = self.of_b(layer, n_tokens).accumulating();
        let bindings = matmul::Bindings { weight: Binding::whole(&layer.b), input: Binding::whole(&self.inner), output };
        recorder.dispatch(gpu, &matmul::padded(&[params]), |arena| matmul::prepare(gpu, arena, &params, bindings))
    }

    /// What a layer reads of `input`.
    fn dropped<'a>(&'a self, gpu: &Gpu, recorder: &mut Recorder, layer: usize, n_tokens: u32, input: Binding<'a>) -> Result<Binding<'a>> {
        self.dropout.as_ref().map_or(Ok(input), |dropout| dropout.apply(gpu, recorder, layer, n_tokens, input))
    }

    fn record_inner(&self, gpu: &Gpu, recorder: &mut Recorder, layer: &GpuLayer, n_tokens: u32, input: Binding<'_>) -> Result<()> {
        let params = self.of_a(layer, n_tokens);
        let bindings = matmul::Bindings { weight: Binding::whole(&layer.a), input, output: Binding::whole(&self.inner) };
        recorder.dispatch(gpu, &matmul::padded(&[params]), |arena| matmul::prepare(gpu, arena, &params, bindings))
    }

    fn of_a(&self, layer: &GpuLayer, n_tokens: u32) -> matmul::Params {
        matmul::Params::new(DType::F32, self.rank, layer.n_inputs, n_tokens)
    }

    fn of_b(&self, layer: &GpuLayer, n_tokens: u32) -> matmul::Params {
        matmul::Params::new(DType::F32, layer.n_outputs, self.rank, n_tokens)
    }

    /// Records the way back through the layer beside `weight`, if there is one: from the gradient of the output, `upward`, to those of both matrices and
    /// that of what was read, `into`. `A·x` is computed again.
    pub(super) fn backward(
        &self,
        gpu: &Gpu,
        recorder: &mut Recorder,
        weight: TensorId,
        n_tokens: u32,
        read: Binding<'_>,
        [upward, into]: [Binding<'_>; 2],
    ) -> Result<()> {
        let Some(index) = self.by_weight.get(&weight).copied() else { return Ok(()) };
        let layer = &self.layers[index];
        let read = self.dropped(gpu, recorder, index, n_tokens, read)?;
        self.record_inner(gpu, recorder, layer, n_tokens, read)?;
        let (inner, of_inner) = (Binding::whole(&self.inner), Binding::whole(&self.of_inner));
        let params = OuterParams { n_tokens, n_rows: layer.n_outputs, n_columns: self.rank };
        let bindings = OuterBindings { left: upward, right: inner, into: Binding::whole(&layer.of_b) };
        recorder.dispatch(gpu, &params, |arena| products::prepare_outer(gpu, arena, &params, bindings))?;

        recorder.clear(&self.of_inner);
        let params = self.of_b(layer, n_tokens);
        let bindings = products::Bindings { weight: Binding::whole(&layer.b), upward, into: of_inner };
        recorder.dispatch(gpu, &params, |arena| products::prepare(gpu, arena, &params, bindings))?;

        let params = OuterParams { n_tokens, n_rows: self.rank, n_columns: layer.n_inputs };
        let bindings = OuterBindings { left: of_inner, right: read, into: Binding::whole(&layer.of_a) };
        recorder.dispatch(gpu, &params, |arena| products::prepare_outer(gpu, arena, &params, bindings))?;

        let params = self.of_a(layer, n_tokens);
        let of_read = self.dropout.as_ref().map_or(into, |dropout| dropout.gradient(recorder, index, into));
        let bindings = products::Bindings { weight: Binding::whole(&layer.a), upward: of_inner, into: of_read };
        recorder.dispatch(gpu, &params, |arena| products::prepare(gpu, arena, &params, bindings))?;
        self.dropout.as_ref().map_or(Ok(()), |dropout| dropout.end(gpu, recorder, index, n_tokens, into))
    }

    /// Adds the gradients that were summed up since [`GpuAdapter::begin`] to `into`.
    pub(super) async fn add_gradients(&self, gpu: &Gpu, trained: &Adapter, into: &mut [Layer]) -> Result<()> {
        let (scale, rank) = (trained.scale(), trained.rank);
        for (own, layer) in self.layers.iter().zip(into) {
            let of_a = gpu::read(gpu, &own.of_a, 0, layer.a.len() as u64 * 4).await?;
            let of_a: Vec<f32> = bytemuck::pod_collect_to_vec(&of_a);
            layer.a.iter_mut().zip(&of_a).for_each(|(into, own)| *into += own);
            let of_b = gpu::read(gpu, &own.of_b, 0, u64::from(own.n_outputs) * u64::from(self.rank) * 4).await?;
            let of_b: Vec<f32> = bytemuck::pod_collect_to_vec(&of_b);
            for (row, wide) in layer.b.chunks_exact_mut(rank).zip(of_b.chunks_exact(self.rank as usize)) {
                row.iter_mut().zip(wide).for_each(|(into, own)| *into += scale * own);
            }
        }
        Ok(())
    }
}
