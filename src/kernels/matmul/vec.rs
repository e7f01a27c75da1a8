//! Matrix × few vectors: reads each weight once for up to four tokens. Params, bindings and reference are in `matmul`.

use super::Products;
use crate::device::RowShape;
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::kernels::{MATMUL_VEC, dispatch_of_matrix, fold, require};

/// Most tokens that one invocation serves.
const MAX_TOKENS: u32 = 4;

/// One lane per row and no barrier. A software adapter loads for each lane alone and pays for each load, so neighbours gain
/// nothing, and a lane uses what it loads for as many rows and tokens as its registers hold. Eight lanes are one of its vectors.
const LANE: RowShape = RowShape { lanes: 1, workgroup: 8, rows: 8 };

/// The same for one token and a matrix of blocks. A lane loads the token for four rows at a time in any case, and twice as many
/// workgroups are shared out more evenly: a matrix of 576 rows has nine of the other shape, and of two threads one gets five.
/// Lavapipe takes 0.84 to 0.97 of the time for Q4_0 and Q4_1, as long as before for Q8_0, and 1.05 for unquantised weights.
const LANE_OF_BLOCKS: RowShape = RowShape { rows: 4, ..LANE };

/// Makes the dispatch in this shape, where the lanes of a workgroup share rows, or else with rows of its own for each lane; each row is
/// whole quads of words, or of blocks.
///
/// # Errors
/// As [`crate::kernels::matmul::prepare_products`].
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>, shared: Option<RowShape>) -> Result<Dispatch> {
    let (kernel, params) = (products.kernel(&MATMUL_VEC), products.common());
    let needed = products.needed(gpu, kernel.stem)?;
    require(gpu, kernel.stem, params.has_whole_quads(), "its rows are no whole quads of words")?;
    let has_blocks = params.dtype().is_some_and(DType::has_blocks);
    require(gpu, kernel.stem, shared.is_none_or(|shape| shape.is_valid()), "its shape is none of those that it computes")?;
    let shape = match shared {
        Some(shape) => shape,
        None if has_blocks && params.n_tokens == 1 => LANE_OF_BLOCKS,
        None => LANE,
    };
    let tokens = params.n_tokens.next_power_of_two().min(MAX_TOKENS);
    let shape_constants = [
        ("LANES", f64::from(shape.lanes)),
        ("WORKGROUP", f64::from(shape.workgroup)),
        ("ROWS", f64::from(shape.rows)),
        ("TOKENS", f64::from(tokens)),
    ];
    let constants = [&params.dtype_constants()[..], &shape_constants].concat();
    let rows_per_workgroup = shape.workgroup / shape.lanes * shape.rows;
    let workgroups = fold(gpu, kernel.stem, products.n_groups(rows_per_workgroup), params.n_tokens.div_ceil(tokens))?;
    dispatch_of_matrix(gpu, kernel, &constants, params_buffer, (params.dtype(), &needed), workgroups)
}
