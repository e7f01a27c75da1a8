//! Some values of each head to some of another value's: `output[t, h, to + i] = input[t, h, from + i]`. What lies beside them stays as it is.

use bytemuck::{Pod, Zeroable};

use super::{BatchShape, Binding, COPY_PART, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::{CopyPart, Value};

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Params {
    /// Heads of all tokens.
    pub n_heads: u32,
    /// Values that are copied of each.
    pub len: u32,
    /// Values of an input's head.
    pub input_size: u32,
    /// The first of them that is read.
    pub input_begin: u32,
    /// Values of an output's head.
    pub output_size: u32,
    /// The first of them that is written.
    pub output_begin: u32,
}

impl Params {
    /// Those of `op`, whose values are these.
    pub fn of(op: &CopyPart, [input, output]: [&Value; 2], batch: &BatchShape) -> Params {
        let n_heads = op.n_heads.max(1);
        Params {
            n_heads: batch.rows_of(input) * n_heads as u32,
            len: op.len as u32,
            input_size: (input.width / n_heads) as u32,
            input_begin: op.from as u32,
            output_size: (output.width / n_heads) as u32,
            output_begin: op.to as u32,
        }
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_heads, input_size]`.
    pub input: Binding<'a>,
    /// `[n_heads, output_size]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or a head has fewer values than are copied.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_heads, len, input_size, input_begin, output_size, output_begin } = *params;
    let fits = input_begin.saturating_add(len) <= input_size && output_begin.saturating_add(len) <= output_size;
    require(gpu, COPY_PART.stem, fits, "a head has fewer values than are copied")?;
    let needed = [(bindings.input, f32_bytes(&[n_heads, input_size])), (bindings.output, f32_bytes(&[n_heads, output_size]))];
    dispatch(gpu, &COPY_PART, &[], params_buffer, &needed, fold_items(gpu, COPY_PART.stem, &[n_heads, len])?)
}

/// CPU twin of `shaders/copy_part.wgsl`.
///
/// # Panics
/// Where the slices are shorter than `params` say: a bug of the caller.
pub fn reference(params: &Params, input: &[f32], output: &mut [f32]) {
    let [len, input_size, from, output_size, to] =
        [params.len, params.input_size, params.input_begin, params.output_size, params.output_begin].map(|n| n as usize);
    let heads = input.chunks_exact(input_size).zip(output.chunks_exact_mut(output_size));
    for (input, output) in heads.take(params.n_heads as usize) {
        output[to..to + len].copy_from_slice(&input[from..from + len]);
    }
}
