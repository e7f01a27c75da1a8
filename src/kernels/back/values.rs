//! Back through what treats each value alike, and through gathered rows.

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{Binding, GLU_BACK, MAP_BACK, SCATTER_ROWS, dispatch, f32_bytes, fold_items, glu, map, require};
use crate::model::{Activation, Function};

/// Buffers of `glu_back`, each `[n_values]`.
#[derive(Debug, Clone, Copy)]
pub struct GluBindings<'a> {
    /// The gate.
    pub gate: Binding<'a>,
    /// What the activated gate was multiplied by.
    pub up: Binding<'a>,
    /// The gradient of the product.
    pub upward: Binding<'a>,
    /// The gradient of the gate, added to.
    pub of_gate: Binding<'a>,
    /// That of the other factor, added to.
    pub of_up: Binding<'a>,
}

/// Makes the dispatch back through a gated activation.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or the activation has no slope here.
pub fn prepare_glu(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &glu::Params,
    activation: Activation,
    bindings: GluBindings<'_>,
) -> Result<Dispatch> {
    require(gpu, GLU_BACK.stem, activation != Activation::ClampedSilu, "its activation has no slope here")?;
    let size = f32_bytes(&[params.n_values]);
    let GluBindings { gate, up, upward, of_gate, of_up } = bindings;
    let needed = [gate, up, upward, of_gate, of_up].map(|binding| (binding, size));
    let workgroups = fold_items(gpu, GLU_BACK.stem, &[params.n_values])?;
    dispatch(gpu, &GLU_BACK, &[("ACTIVATION", glu::code(activation))], params_buffer, &needed, workgroups)
}

/// Makes the dispatch back through a softcap or an activation: `gradient` becomes that of `input`, both `[n_values]`. A scale is its own way back
/// ([`map::prepare`]).
///
/// # Errors
/// As [`prepare_glu`].
pub fn prepare_map(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &map::Params,
    function: Function,
    [input, gradient]: [Binding<'_>; 2],
) -> Result<Dispatch> {
    let (code, activation) = match function {
        Function::Softcap(_) => (1.0, 0.0),
        Function::Activation(activation) if activation != Activation::ClampedSilu => (2.0, glu::code(activation)),
        _ => return Err(gpu.error(format!("kernel {}: {function:?} has no slope here", MAP_BACK.stem))),
    };
    let size = f32_bytes(&[params.n_values]);
    let workgroups = fold_items(gpu, MAP_BACK.stem, &[params.n_values])?;
    let constants = [("FUNCTION", code), ("ACTIVATION", activation)];
    dispatch(gpu, &MAP_BACK, &constants, params_buffer, &[(input, size), (gradient, size)], workgroups)
}

/// Params of `scatter_rows`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct ScatterParams {
    /// Rows that are added.
    pub n_rows: u32,
    /// Rows to add to.
    pub n_output_rows: u32,
    /// Values of a row.
    pub width: u32,
}

/// Makes the dispatch that adds each row of `input`, `[n_rows, width]`, to the row of `into`, `[n_output_rows, width]`, that `row_indices`, `[n_rows]`,
/// has for it; none stands twice.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare_scatter(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &ScatterParams,
    [input, row_indices, into]: [Binding<'_>; 3],
) -> Result<Dispatch> {
    let ScatterParams { n_rows, n_output_rows, width } = *params;
    let needed = [(input, f32_bytes(&[n_rows, width])), (row_indices, f32_bytes(&[n_rows])), (into, f32_bytes(&[n_output_rows, width]))];
    let workgroups = fold_items(gpu, SCATTER_ROWS.stem, &[n_rows, width])?;
    dispatch(gpu, &SCATTER_ROWS, &[], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/scatter_rows.wgsl`.
pub fn reference_scatter(params: &ScatterParams, input: &[f32], row_indices: &[u32], into: &mut [f32]) {
    let width = params.width as usize;
    for (row, input) in row_indices.iter().zip(input.chunks_exact(width)) {
        if *row < params.n_output_rows {
            into[*row as usize * width..][..width].iter_mut().zip(input).for_each(|(into, input)| *into += input);
        }
    }
}
