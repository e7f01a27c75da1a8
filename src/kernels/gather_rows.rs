//! Copies chosen rows one after the other: `output[r, :] = input[row_indices[r], :]`.

use bytemuck::{Pod, Zeroable};

use super::{BatchShape, Binding, GATHER_ROWS, dispatch, f32_bytes, fold_items, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::Value;

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Rows to copy.
    pub n_rows: u32,
    /// Rows to choose from; an index past the end counts as the last row.
    pub n_input_rows: u32,
    /// Values of a row.
    pub width: u32,
}

impl Params {
    /// Those of the rows of `input` whose logits are asked for.
    pub fn of(input: &Value, batch: &BatchShape) -> Params {
        Params { n_rows: batch.n_logit_rows, n_input_rows: batch.n_tokens, width: input.width as u32 }
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_input_rows, width]`.
    pub input: Binding<'a>,
    /// `[n_rows]`, u32.
    pub row_indices: Binding<'a>,
    /// `[n_rows, width]`.
    pub output: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_rows, n_input_rows, width } = *params;
    require(gpu, GATHER_ROWS.stem, n_input_rows > 0, "there is no row to copy")?;
    let needed = [
        (bindings.input, f32_bytes(&[n_input_rows, width])),
        (bindings.row_indices, f32_bytes(&[n_rows])),
        (bindings.output, f32_bytes(&[n_rows, width])),
    ];
    let workgroups = fold_items(gpu, GATHER_ROWS.stem, &[n_rows, width])?;
    dispatch(gpu, &GATHER_ROWS, &[], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/gather_rows.wgsl`.
pub fn reference(params: &Params, input: &[f32], row_indices: &[u32], output: &mut [f32]) {
    let width = params.width as usize;
    for index in 0..params.n_rows as usize * width {
        let row = row_indices[index / width].min(params.n_input_rows - 1) as usize;
        output[index] = input[row * width + index % width];
    }
}
