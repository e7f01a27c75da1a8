//! The loss of predicted tokens: minus the logarithm of the target's share of the softmax, and its gradient. Logits come for some of the vocabulary at a
//! time, first for the totals of their rows, then once more for the gradient.

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{Binding, SOFTMAX_BACK, SOFTMAX_TOTALS, dispatch, f32_bytes, fold, fold_items, lanes_of_row, require};

/// Params of both shaders.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Params {
    /// Rows.
    pub n_rows: u32,
    /// Logits of a row that are here.
    pub width: u32,
    /// The token of the first of them; 0 begins the totals anew.
    pub first: u32,
    /// What the loss is multiplied by.
    pub factor: f32,
    /// What products were multiplied by to become logits.
    pub slope: f32,
    /// The cap that they then went through; 0 for none.
    pub cap: f32,
}

/// What a row's totals are: the greatest logit, the sum of the exponentials of the distances from it, the logit of its target, 0.
pub type Totals = [f32; 4];

/// Makes the dispatch that merges `logits`, `[n_rows, width]`, into `totals`, `[n_rows]` of [`Totals`]; `targets` is `[n_rows]`.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned.
pub fn prepare_totals(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    [logits, targets, totals]: [Binding<'_>; 3],
) -> Result<Dispatch> {
    require(gpu, SOFTMAX_TOTALS.stem, params.n_rows > 0 && params.width > 0, "it is empty")?;
    let Params { n_rows, width, .. } = *params;
    let needed = [(logits, f32_bytes(&[n_rows, width])), (targets, f32_bytes(&[n_rows])), (totals, f32_bytes(&[n_rows, 4]))];
    let lanes = lanes_of_row(gpu);
    let workgroups = fold(gpu, SOFTMAX_TOTALS.stem, u64::from(n_rows), 1)?;
    dispatch(gpu, &SOFTMAX_TOTALS, &[("LANES", lanes)], params_buffer, &needed, workgroups)
}

/// Makes the dispatch that puts the gradients of the products in place of `logits`.
///
/// # Errors
/// As [`prepare_totals`].
pub fn prepare_back(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    [targets, totals, logits]: [Binding<'_>; 3],
) -> Result<Dispatch> {
    let Params { n_rows, width, .. } = *params;
    let needed = [(targets, f32_bytes(&[n_rows])), (totals, f32_bytes(&[n_rows, 4])), (logits, f32_bytes(&[n_rows, width]))];
    let workgroups = fold_items(gpu, SOFTMAX_BACK.stem, &[n_rows, width])?;
    dispatch(gpu, &SOFTMAX_BACK, &[], params_buffer, &needed, workgroups)
}

/// CPU twin of `shaders/softmax_totals.wgsl`.
pub fn reference_totals(params: &Params, logits: &[f32], targets: &[u32], totals: &mut [Totals]) {
    let width = params.width as usize;
    for ((logits, target), totals) in logits.chunks_exact(width).zip(targets).zip(totals) {
        let before = if params.first > 0 { *totals } else { [f32::NEG_INFINITY, 0.0, 0.0, 0.0] };
        let greatest = logits.iter().fold(before[0], |most, logit| most.max(*logit));
        let sum: f32 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
        let former = if before[1] > 0.0 { before[1] * (before[0] - greatest).exp() } else { 0.0 };
        let own = target.checked_sub(params.first).and_then(|at| logits.get(at as usize));
        *totals = [greatest, former + sum, own.copied().unwrap_or(before[2]), 0.0];
    }
}

/// CPU twin of `shaders/softmax_back.wgsl`.
pub fn reference_back(params: &Params, targets: &[u32], totals: &[Totals], logits: &mut [f32]) {
    let width = params.width as usize;
    for ((logits, target), [greatest, sum, ..]) in logits.chunks_exact_mut(width).zip(targets).zip(totals) {
        for (token, logit) in (params.first..).zip(logits) {
            let share = (*logit - greatest).exp() / sum;
            let slope = if params.cap > 0.0 { params.slope * (1.0 - (*logit / params.cap).powi(2)) } else { params.slope };
            *logit = (share - if token == *target { 1.0 } else { 0.0 }) * slope * params.factor;
        }
    }
}
