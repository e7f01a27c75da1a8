//! A function of single values, in place: `target_values[i] = function(target_values[i])`.

use bytemuck::{Pod, Zeroable};

use super::{BatchShape, Binding, MAP, dispatch, f32_bytes, fold_items, glu};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::{Function, Value};

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Values in all.
    pub n_values: u32,
    /// The number that the function has: a factor, or a cap; 0 of one that has none.
    pub number: f32,
}

impl Params {
    /// Those of `function` of `target`.
    pub fn of(function: Function, target: &Value, batch: &BatchShape) -> Params {
        let number = match function {
            Function::Scale(number) | Function::Softcap(number) => number,
            Function::Activation(_) => 0.0,
        };
        Params { n_values: batch.n_values(target), number }
    }
}

/// Makes the dispatch; `target_values` is `[n_values]`, read and written.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    function: Function,
    target_values: Binding<'_>,
) -> Result<Dispatch> {
    let (code, activation) = match function {
        Function::Scale(_) => (0.0, 0.0),
        Function::Softcap(_) => (1.0, 0.0),
        Function::Activation(activation) => (2.0, glu::code(activation)),
    };
    let constants = [("FUNCTION", code), ("ACTIVATION", activation)];
    let workgroups = fold_items(gpu, MAP.stem, &[params.n_values])?;
    dispatch(gpu, &MAP, &constants, params_buffer, &[(target_values, f32_bytes(&[params.n_values]))], workgroups)
}

/// CPU twin of `shaders/map.wgsl`, of all `values`.
pub fn reference(function: Function, values: &mut [f32]) {
    match function {
        Function::Scale(factor) => values.iter_mut().for_each(|value| *value *= factor),
        Function::Softcap(cap) => values.iter_mut().for_each(|value| *value = cap * (*value / cap).tanh()),
        Function::Activation(activation) => values.iter_mut().for_each(|value| *value = glu::activated(activation, *value)),
    }
}
