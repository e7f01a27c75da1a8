//! Matrix × few vectors: reads each weight once for up to four tokens. Params, bindings and reference are in `matmul`.

use super::matmul::Products;
use super::{MATMUL_VEC, dispatch, fold, require};
use crate::device::MatMulForm;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Most tokens that one invocation serves.
const MAX_TOKENS: u32 = 4;

/// How the work is spread; the tunables of the shader.
#[derive(Debug, Clone, Copy)]
struct Shape {
    lanes: u32,
    workgroup: u32,
    rows: u32,
}

/// One lane per row and no barrier. A software adapter loads for each lane alone and pays for each load, so neighbours gain
/// nothing, and a lane uses what it loads for as many rows and tokens as its registers hold. Eight lanes are one of its vectors.
const LANE: Shape = Shape { lanes: 1, workgroup: 8, rows: 8 };

/// A row's blocks are read side by side by the lanes of half a hardware wave or more.
const WORKGROUP: Shape = Shape { lanes: 32, workgroup: 64, rows: 4 };

/// Makes the dispatch of [`MatMulForm::Lane`] or, for every other `form`, of [`MatMulForm::Workgroup`]; each row is whole quads
/// of words, or of blocks.
///
/// # Errors
/// As [`super::matmul::prepare_products`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>, form: MatMulForm) -> Result<Dispatch> {
    let (kernel, params) = (products.kernel(&MATMUL_VEC), products.common());
    let needed = products.needed(gpu, kernel.stem)?;
    require(gpu, kernel.stem, params.has_whole_quads(), "its rows are no whole quads of words")?;
    let shape = if form == MatMulForm::Lane { LANE } else { WORKGROUP };
    let tokens = params.n_tokens.next_power_of_two().min(MAX_TOKENS);
    let constants = [
        ("DTYPE", f64::from(params.dtype)),
        ("LANES", f64::from(shape.lanes)),
        ("WORKGROUP", f64::from(shape.workgroup)),
        ("ROWS", f64::from(shape.rows)),
        ("TOKENS", f64::from(tokens)),
    ];
    let rows_per_workgroup = shape.workgroup / shape.lanes * shape.rows;
    let workgroups = fold(gpu, kernel.stem, products.n_groups(rows_per_workgroup), params.n_tokens.div_ceil(tokens))?;
    dispatch(gpu, kernel, &constants, params_buffer, &needed, workgroups)
}
