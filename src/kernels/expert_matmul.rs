//! Products with the matrices of the experts that tokens have chosen: `output[t, j, r] = Σ_k weight[e·expert_rows + r, k] · input[t, j, k]`,
//! e the `j`th expert of token t; where there is no choice, it is j, so that each head is multiplied by a matrix of its own. The matrices of all experts are one; a slice of its rows gives what belongs to them and leaves the rest.

use bytemuck::{Pod, Zeroable};

use super::matmul::subgroup;
use super::{
    BatchShape, Binding, EXPERT_MATMUL, EXPERT_MATMUL_SUBGROUP, EXPERT_MATMUL_TILE, dispatch_of_matrix, f32_bytes, fold, is_software,
    matmul, require,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};
use crate::model::{ExpertMatMul, HeadMatMul, Value, share_experts};

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Params {
    /// Rows of the weight: of this slice of all experts'.
    pub n_rows: u32,
    /// Columns of the weight.
    pub n_columns: u32,
    /// Tokens.
    pub n_tokens: u32,
    /// Experts of a token.
    pub n_used: u32,
    /// Rows of one expert's matrix.
    pub expert_rows: u32,
    /// The slice's first row among those of all experts.
    pub first_row: u32,
    /// 1: all experts of a token read the same input; 0: each has its own.
    pub shares_input: u32,
    /// Bytes of a slot, where the experts are in slots.
    pub slot_bytes: u32,
    /// Where the matrix begins in a slot, in bytes.
    pub matrix_begin: u32,
    /// Experts of all slices.
    pub n_experts: u32,
}

impl Params {
    /// Those of the rows from `first_row` on, `n_rows` of them; `input` is the operation's.
    pub fn of(op: &ExpertMatMul, input: &Value, rows: [u64; 2], batch: &BatchShape) -> Params {
        let [first_row, n_rows] = rows.map(|n| n as u32);
        Params {
            n_rows,
            n_columns: op.n_columns as u32,
            n_tokens: batch.rows_of(input),
            n_used: op.n_used as u32,
            expert_rows: op.n_rows as u32,
            first_row,
            shares_input: (input.width == op.n_columns).into(),
            slot_bytes: 0,
            matrix_begin: 0,
            n_experts: op.n_experts as u32,
        }
    }

    /// Those of the rows from `first_row` on, `n_rows` of them, of all heads' matrices.
    pub fn of_heads(op: &HeadMatMul, [first_row, n_rows]: [u64; 2], batch: &BatchShape) -> Params {
        Params {
            n_rows: n_rows as u32,
            n_columns: op.n_columns as u32,
            n_tokens: batch.n_tokens,
            n_used: op.n_heads as u32,
            expert_rows: op.n_rows as u32,
            first_row: first_row as u32,
            shares_input: 0,
            slot_bytes: 0,
            matrix_begin: 0,
            n_experts: op.n_heads as u32,
        }
    }

    /// The same with experts in slots of `slot_bytes`, in each of which the matrix begins at `matrix_begin`; both are multiples of 256.
    #[must_use]
    pub fn in_slots(self, slot_bytes: u32, matrix_begin: u32) -> Params {
        Params { slot_bytes, matrix_begin, ..self }
    }

    /// Rows of inputs.
    fn n_inputs(&self) -> u32 {
        if self.shares_input != 0 { self.n_tokens } else { self.n_tokens.saturating_mul(self.n_used) }
    }

    /// The row of inputs that the `choice`th expert of a token reads.
    pub(crate) fn input_row(&self, token: usize, choice: usize) -> usize {
        if self.shares_input != 0 { token } else { token * self.n_used as usize + choice }
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_rows, n_columns]` as stored; or slots.
    pub weight: Binding<'a>,
    /// `[n_tokens, n_used, n_columns]`, or `[n_tokens, n_columns]` where experts share it.
    pub input: Binding<'a>,
    /// `[n_tokens, 2, n_used]`: numbers of experts, then their weights; `None`: there is no choice.
    pub routing: Option<Binding<'a>>,
    /// Which slot has which expert, where they are in slots: `[n_experts]` u32, [`NO_SLOT`] of those that are elsewhere. What belongs to
    /// these is left as it is.
    pub slots: Option<Binding<'a>>,
    /// `[n_tokens, n_used, expert_rows]`.
    pub output: Binding<'a>,
}

/// The slot of an expert that is in none.
pub const NO_SLOT: u32 = u32::MAX;

/// Makes the dispatch, for a weight of this dtype.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or a row is no whole number of blocks.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, dtype: DType, bindings: Bindings<'_>) -> Result<Dispatch> {
    let Params { n_rows, n_columns, n_tokens, n_used, expert_rows, .. } = *params;
    let of_dtype = matmul::Params::new(dtype, n_rows, n_columns, n_tokens);
    let is_software = is_software(gpu);
    let is_tiled = share_experts(n_tokens as usize, n_used as usize, params.n_experts as usize, is_software);
    // Every choice of a token, or every expert of which the slice has rows, once for so many rows.
    let n_choices = u64::from(n_tokens) * u64::from(n_used);
    let (source, of_kernel) = if is_tiled {
        (&EXPERT_MATMUL_TILE, tile_constants(is_software))
    } else if is_software && subgroup::is_possible(gpu, &of_dtype) {
        (&EXPERT_MATMUL_SUBGROUP, subgroup_constants(n_choices, expert_rows))
    } else {
        (&EXPERT_MATMUL, few_constants(is_software))
    };
    let stem = source.stem;
    let row_bytes = of_dtype.row_bytes().unwrap_or(0);
    require(gpu, stem, row_bytes > 0 && n_rows > 0, "its rows are no whole number of blocks, or there are none")?;
    require(gpu, stem, n_tokens > 0 && n_used > 0 && expert_rows > 0, "it is empty")?;
    // In slots, as many rows are needed as the table names, which nobody knows yet: it is up to who writes it.
    let in_slots = bindings.slots.is_some();
    require(gpu, stem, !in_slots || params.slot_bytes > 0, "slots have no size")?;
    let weight_bytes = if in_slots { params.slot_bytes.into() } else { row_bytes.saturating_mul(n_rows.into()) };
    let n_experts = n_rows / expert_rows;
    let needed = [
        (bindings.weight, weight_bytes),
        (bindings.input, f32_bytes(&[params.n_inputs(), n_columns])),
        // Where there is no choice, or there are no slots, something must be bound all the same.
        bindings.routing.map_or((bindings.input, 0), |routing| (routing, f32_bytes(&[n_tokens, 2, n_used]))),
        bindings.slots.map_or((bindings.input, 0), |slots| (slots, f32_bytes(&[n_experts]))),
        (bindings.output, f32_bytes(&[n_tokens, n_used, expert_rows])),
    ];
    let switch = |is_on: bool| f64::from(u8::from(is_on));
    let bound = [("IN_SLOTS", switch(in_slots)), ("IS_CHOSEN", switch(bindings.routing.is_some()))];
    let constants = [&of_dtype.dtype_constants()[..], &bound, &of_kernel.constants].concat();
    let last_row = u64::from(params.first_row) + u64::from(n_rows) - 1;
    let n_experts_here = last_row / u64::from(expert_rows) - u64::from(params.first_row / expert_rows) + 1;
    let count = if is_tiled { n_experts_here } else { n_choices } * u64::from(expert_rows.div_ceil(of_kernel.rows));
    require(gpu, stem, count.max(n_choices) <= u64::from(u32::MAX), "it has more workgroups than u32 counts")?;
    dispatch_of_matrix(gpu, source, &constants, params_buffer, (Some(dtype), &needed), fold(gpu, stem, count, 1)?)
}

/// How a kernel is cut.
struct Shape {
    constants: Vec<(&'static str, f64)>,
    /// Rows of a workgroup.
    rows: u32,
}

/// Lanes that share a row read it side by side; a software adapter loads for each lane alone.
fn few_constants(is_software: bool) -> Shape {
    let [lanes, workgroup] = if is_software { [1, 8] } else { [32, 64] };
    Shape { constants: vec![("LANES", f64::from(lanes)), ("WORKGROUP", f64::from(workgroup))], rows: workgroup / lanes }
}

/// Lanes that have rows of their own.
fn subgroup_constants(n_choices: u64, expert_rows: u32) -> Shape {
    let rows = subgroup::rows_of_lane(|rows| n_choices * u64::from(expert_rows.div_ceil(rows)));
    Shape { constants: vec![("ROWS", f64::from(rows))], rows: rows * subgroup::LANES }
}

/// A software adapter computes eight lanes as one vector, for which barriers cost nothing.
fn tile_constants(is_software: bool) -> Shape {
    let [rows, tokens, lane_rows, lane_tokens] = if is_software { [8, 16, 4, 4] } else { [32, 32, 4, 4] };
    let workgroup = rows / lane_rows * (tokens / lane_tokens);
    let names = ["ROWS", "TOKENS", "LANE_ROWS", "LANE_TOKENS", "WORKGROUP"];
    let values = [rows, tokens, lane_rows, lane_tokens, workgroup].map(f64::from);
    Shape { constants: names.into_iter().zip(values).collect(), rows }
}

/// CPU twin of `shaders/expert_matmul.wgsl` and its variants.
///
/// # Panics
/// Where the slices are shorter than `params` say: a bug of the caller.
pub fn reference(params: &Params, dtype: DType, weight: &[u8], input: &[f32], routing: Option<&[f32]>, output: &mut [f32]) {
    let [n_rows, n_columns, n_used, expert_rows, first_row] =
        [params.n_rows, params.n_columns, params.n_used, params.expert_rows, params.first_row].map(|n| n as usize);
    let row_bytes = dtype.size_bytes(n_columns as u64).expect("whole blocks") as usize;
    let mut scratch = vec![0.0; n_columns];
    for (token, choice) in (0..params.n_tokens as usize).flat_map(|token| (0..n_used).map(move |choice| (token, choice))) {
        let expert = routing.map_or(choice, |routing| routing[token * 2 * n_used + choice] as usize);
        let input = &input[params.input_row(token, choice) * n_columns..][..n_columns];
        let output = &mut output[(token * n_used + choice) * expert_rows..][..expert_rows];
        for (row, value) in (expert * expert_rows..).zip(output) {
            let Some(row) = row.checked_sub(first_row).filter(|row| *row < n_rows) else { continue };
            *value = matmul::reference_row(dtype, &weight[row * row_bytes..][..row_bytes], input, &mut scratch);
        }
    }
}
