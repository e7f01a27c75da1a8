//! Dropout of the adapter's inputs. The host draws what it draws for its own passes, and brings a unit's masks before the unit is computed; kernels
//! multiply by them, forward and back.

use std::collections::HashMap;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::MostTokens;
use super::recorder::Recorder;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Purpose};
use crate::kernels::{Binding, add, glu};
use crate::model::{Activation, Model};
use crate::train::adapter::{Adapter, mask};
use crate::units::Bytes;

/// The masks of a unit's layers, and what they are multiplied with.
pub(super) struct GpuDropout {
    dropout: f32,
    /// Of each layer, how many inputs it has.
    n_inputs: Vec<usize>,
    /// By unit: which layers it has.
    layers: Vec<Vec<usize>>,
    /// Those of one unit, in the order of its layers, `[n_tokens, n_inputs]` each.
    masks: Vec<Buffer>,
    /// By layer: which mask is its own now. None is, where nothing is dropped.
    own: HashMap<usize, usize>,
    /// What a layer reads behind its mask.
    dropped: Buffer,
    /// The gradient of that.
    of_dropped: Buffer,
}

/// By unit: the layers beside its matrices.
fn layers_of(model: &Model, trained: &Adapter) -> Vec<Vec<usize>> {
    let of_unit = |matrices: &mut dyn Iterator<Item = usize>| {
        let mut layers: Vec<usize> = matrices.collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    };
    model.units.iter().map(|unit| of_unit(&mut unit.matrices().filter_map(|weight| trained.beside(weight)))).collect()
}

fn bytes_of(n_inputs: usize, most: MostTokens) -> Bytes {
    Bytes((most.0 * n_inputs * 4) as u64).align_up(256)
}

/// Bytes of the masks of any unit, then of one of the two buffers of products with them.
fn sizes(model: &Model, trained: &Adapter, most: MostTokens) -> (Vec<Bytes>, Bytes) {
    let mut masks: Vec<Bytes> = Vec::new();
    for layers in layers_of(model, trained) {
        masks.resize(masks.len().max(layers.len()), Bytes::ZERO);
        for (mask, layer) in masks.iter_mut().zip(layers) {
            *mask = (*mask).max(bytes_of(trained.layers[layer].n_inputs, most));
        }
    }
    let largest = masks.iter().copied().max().unwrap_or_default();
    (masks, largest)
}

/// Bytes of the masks of a unit, which the host draws.
pub(in crate::train) fn mask_bytes(model: &Model, trained: &Adapter, most: MostTokens) -> Bytes {
    if trained.dropout > 0.0 { sizes(model, trained, most).0.into_iter().sum() } else { Bytes::ZERO }
}

/// Bytes of all buffers.
pub(super) fn size_bytes(model: &Model, trained: &Adapter, most: MostTokens) -> Bytes {
    let products = if trained.dropout > 0.0 { sizes(model, trained, most).1.times(2) } else { Bytes::ZERO };
    mask_bytes(model, trained, most) + products
}

impl GpuDropout {
    /// `None` where nothing is ever dropped.
    pub(super) async fn new(gpu: &Gpu, model: &Model, trained: &Adapter, most: MostTokens) -> Result<Option<GpuDropout>> {
        if trained.dropout == 0.0 {
            return Ok(None);
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let make = |what: &'static str, size: Bytes| gpu.buffer(what, size, usage, Purpose::Activations);
        let (sizes, largest) = sizes(model, trained, most);
        let mut masks = Vec::new();
        for size in sizes {
            masks.push(make("mask", size).await?);
        }
        let (dropped, of_dropped) = (make("dropped", largest).await?, make("gradient of dropped", largest).await?);
        let n_inputs = trained.layers.iter().map(|layer| layer.n_inputs).collect();
        let layers = layers_of(model, trained);
        Ok(Some(GpuDropout { dropout: trained.dropout, n_inputs, layers, masks, own: HashMap::new(), dropped, of_dropped }))
    }

    /// Brings the masks of a unit. What was recorded before is submitted, since it may read former ones.
    pub(super) fn draw(&mut self, gpu: &Gpu, recorder: &mut Recorder, unit: usize, n_tokens: u32, draw: Option<u64>) {
        self.own.clear();
        let Some(draw) = draw else { return };
        recorder.submit(gpu);
        let layers = &self.layers[unit];
        let of_layer = |layer: &usize| mask(self.dropout, *layer, draw).take(n_tokens as usize * self.n_inputs[*layer]).collect();
        let masks: Vec<Vec<f32>> = layers.par_iter().map(of_layer).collect();
        for (index, ((layer, values), buffer)) in layers.iter().zip(masks).zip(&self.masks).enumerate() {
            gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&values));
            self.own.insert(*layer, index);
        }
    }

    /// What is behind the mask of `layer`: `input`, where it has none.
    pub(super) fn apply<'a>(
        &'a self,
        gpu: &Gpu,
        recorder: &mut Recorder,
        layer: usize,
        n_tokens: u32,
        input: Binding<'a>,
    ) -> Result<Binding<'a>> {
        let Some(mask) = self.own.get(&layer) else { return Ok(input) };
        self.multiply(gpu, recorder, layer, n_tokens, [input, Binding::whole(&self.masks[*mask]), Binding::whole(&self.dropped)])?;
        Ok(Binding::whole(&self.dropped))
    }

    /// Where the gradient of what is behind the mask of `layer` is summed up, zeros at first: `into`, where it has none.
    pub(super) fn gradient<'a>(&'a self, recorder: &mut Recorder, layer: usize, into: Binding<'a>) -> Binding<'a> {
        if !self.own.contains_key(&layer) {
            return into;
        }
        recorder.clear(&self.of_dropped);
        Binding::whole(&self.of_dropped)
    }

    /// Adds what [`GpuDropout::gradient`] has then to `into`, behind the mask.
    pub(super) fn end(&self, gpu: &Gpu, recorder: &mut Recorder, layer: usize, n_tokens: u32, into: Binding<'_>) -> Result<()> {
        let Some(mask) = self.own.get(&layer) else { return Ok(()) };
        let [of_dropped, mask, product] = [&self.of_dropped, &self.masks[*mask], &self.dropped].map(|buffer| Binding::whole(buffer));
        self.multiply(gpu, recorder, layer, n_tokens, [of_dropped, mask, product])?;
        let params = self.params(layer, n_tokens);
        let bindings = add::Bindings { input: product, target_values: into };
        recorder.dispatch(gpu, &params, |arena| add::prepare(gpu, arena, &params, bindings))
    }

    fn params(&self, layer: usize, n_tokens: u32) -> add::Params {
        add::Params { n_values: n_tokens * self.n_inputs[layer] as u32 }
    }

    fn multiply(
        &self,
        gpu: &Gpu,
        recorder: &mut Recorder,
        layer: usize,
        n_tokens: u32,
        [gate, up, output]: [Binding<'_>; 3],
    ) -> Result<()> {
        let (params, bindings) = (self.params(layer, n_tokens), glu::Bindings { gate, up, output });
        recorder.dispatch(gpu, &params, |arena| glu::prepare(gpu, arena, &params, Activation::Identity, bindings))
    }
}
