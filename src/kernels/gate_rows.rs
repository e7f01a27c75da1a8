//! Each row times the sigmoid of a number of its own, in place: `target_values[t, i] *= 1 / (1 + exp(−gate[t]))`.

use super::{Binding, GATE_ROWS, dispatch, f32_bytes, fold_items};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

pub use super::params::RowParams as Params;

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_tokens]`.
    pub gate: Binding<'a>,
    /// `[n_tokens, width]`, read and written.
    pub target_values: Binding<'a>,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_tokens, width } = *params;
    let needed = [(bindings.gate, f32_bytes(&[n_tokens])), (bindings.target_values, f32_bytes(&[n_tokens, width]))];
    dispatch(gpu, &GATE_ROWS, &[], params_buffer, &needed, fold_items(gpu, GATE_ROWS.stem, &[n_tokens, width])?)
}

/// CPU twin of `shaders/gate_rows.wgsl`.
pub fn reference(params: &Params, gate: &[f32], target_values: &mut [f32]) {
    for (gate, row) in gate.iter().zip(target_values.chunks_exact_mut(params.width as usize)) {
        let factor = 1.0 / (1.0 + (-gate).exp());
        row.iter_mut().for_each(|value| *value *= factor);
    }
}
