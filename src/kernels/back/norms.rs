//! Back through norms of rows: root-mean-square and layer norms, with the params of [`crate::kernels::rms_norm`] and [`crate::kernels::layer_norm`].

use crate::error::Result;
use crate::gpu::{Dispatch, Gpu, KernelSource};
use crate::kernels::params::NormParams;
use crate::kernels::{Binding, LAYER_NORM_BACK, RMS_NORM_BACK, dispatch, f32_bytes, fold, lanes_of_row, require};

/// Buffers of both shaders.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_rows, hidden_size]`: what was normed.
    pub input: Binding<'a>,
    /// `[hidden_size]`, f32; root-mean-square norms may have none.
    pub weight: Option<Binding<'a>>,
    /// `[n_rows, hidden_size]`: the gradient of the result.
    pub upward: Binding<'a>,
    /// `[n_rows, hidden_size]`, added to.
    pub into: Binding<'a>,
}

/// Makes the dispatch back through a root-mean-square norm.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare_rms(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &NormParams, bindings: Bindings<'_>) -> Result<Dispatch> {
    let has_weight = f64::from(u8::from(bindings.weight.is_some()));
    prepare(gpu, &RMS_NORM_BACK, &[("LANES", lanes_of_row(gpu)), ("HAS_WEIGHT", has_weight)], params_buffer, params, bindings)
}

/// Makes the dispatch back through a layer norm.
///
/// # Errors
/// As [`prepare_rms`]; where there is no weight.
pub fn prepare_layer(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &NormParams, bindings: Bindings<'_>) -> Result<Dispatch> {
    require(gpu, LAYER_NORM_BACK.stem, bindings.weight.is_some(), "it has no weight")?;
    prepare(gpu, &LAYER_NORM_BACK, &[("LANES", lanes_of_row(gpu))], params_buffer, params, bindings)
}

fn prepare(
    gpu: &Gpu,
    kernel: &'static KernelSource,
    constants: &[(&'static str, f64)],
    params_buffer: &wgpu::Buffer,
    params: &NormParams,
    bindings: Bindings<'_>,
) -> Result<Dispatch> {
    require(gpu, kernel.stem, params.n_rows > 0 && params.hidden_size > 0, "it is empty")?;
    let rows = f32_bytes(&[params.n_rows, params.hidden_size]);
    // Without a weight, something must be bound all the same.
    let weight = bindings.weight.map_or((bindings.input, 0), |weight| (weight, f32_bytes(&[params.hidden_size])));
    let needed = [(bindings.input, rows), weight, (bindings.upward, rows), (bindings.into, rows)];
    let workgroups = fold(gpu, kernel.stem, u64::from(params.n_rows), 1)?;
    dispatch(gpu, kernel, constants, params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/rms_norm_back.wgsl`.
pub fn reference_rms(params: &NormParams, input: &[f32], weight: Option<&[f32]>, upward: &[f32], into: &mut [f32]) {
    let n = params.hidden_size as usize;
    for ((input, upward), into) in input.chunks_exact(n).zip(upward.chunks_exact(n)).zip(into.chunks_exact_mut(n)) {
        let gradient = weighted(params, weight, upward);
        let scale = 1.0 / (mean(input.iter().map(|x| x * x), n) + f64::from(params.epsilon)).sqrt();
        let along = scale.powi(3) * mean(input.iter().zip(&gradient).map(|(x, g)| x * g), n);
        for i in 0..n {
            into[i] += (scale * f64::from(gradient[i]) - along * f64::from(input[i])) as f32;
        }
    }
}

/// CPU twin of `shaders/layer_norm_back.wgsl`.
pub fn reference_layer(params: &NormParams, input: &[f32], weight: &[f32], upward: &[f32], into: &mut [f32]) {
    let n = params.hidden_size as usize;
    for ((input, upward), into) in input.chunks_exact(n).zip(upward.chunks_exact(n)).zip(into.chunks_exact_mut(n)) {
        let gradient = weighted(params, Some(weight), upward);
        let (middle, level) = (mean(input.iter().copied(), n) as f32, mean(gradient.iter().copied(), n));
        let scale = 1.0 / (mean(input.iter().map(|x| (x - middle) * (x - middle)), n) + f64::from(params.epsilon)).sqrt();
        let along = scale * scale * mean(input.iter().zip(&gradient).map(|(x, g)| (x - middle) * g), n);
        for i in 0..n {
            into[i] += (scale * (f64::from(gradient[i]) - level - f64::from(input[i] - middle) * along)) as f32;
        }
    }
}

fn weighted(params: &NormParams, weight: Option<&[f32]>, upward: &[f32]) -> Vec<f32> {
    let factor = |i: usize| weight.map_or(1.0, |weight| weight[i] + params.weight_offset);
    upward.iter().enumerate().map(|(i, upward)| upward * factor(i)).collect()
}

fn mean(values: impl Iterator<Item = f32>, n: usize) -> f64 {
    values.map(f64::from).sum::<f64>() / n as f64
}
