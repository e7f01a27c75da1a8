//! Matrices of 4-bit codes as bitsandbytes stores them (NF4), in the dtype that they had: [`coded`](crate::weights::coded) says how.
//!
//! `X.weight` holds the codes, `X.weight.quant_map` what they stand for, `X.weight.absmax` a scale for each block, and
//! `X.weight.quant_state.bitsandbytes__nf4` the shape and sizes as JSON. Scales may be codes of eight bits themselves, with
//! `X.weight.nested_absmax` and `X.weight.nested_quant_map`.

use std::sync::Arc;

use serde::Deserialize;

use super::scaled_weights::{Beside, Derived};
use crate::dtype::{DType, Floats};
use crate::error::{Error, Result};
use crate::weights::coded::{CodeScales, CodedMatrix, Nested};
use crate::weights::safetensors::{MAX_DIMENSION, Unreadable};

/// Longest description of a matrix.
const MAX_STATE_BYTES: u64 = 64 << 10;

/// What is said of a matrix.
#[derive(Deserialize)]
struct State {
    blocksize: u64,
    dtype: String,
    shape: [u64; 2],
    nested_blocksize: Option<u64>,
    nested_offset: Option<f32>,
}

impl Derived {
    /// The matrix whose codes are in `tensor`; `false` where nothing says that there are any.
    pub(super) fn decode_codes(&mut self, tensor: &Unreadable, beside: &Beside<'_>) -> Result<bool> {
        let name = |suffix: &str| format!("{}.{suffix}", tensor.name);
        let Some(state) = beside.other(&name("quant_state.bitsandbytes__nf4")) else { return Ok(false) };
        let state = read_state(state, beside)?;
        let (dtype, floats) = match state.dtype.as_str() {
            "bfloat16" => (DType::BF16, Floats::BF16),
            "float16" => (DType::F16, Floats::F16),
            "float32" => (DType::F32, Floats::F32),
            other => return Err(invalid(tensor, beside, format!("has values in the unknown dtype `{other}`"))),
        };
        let n_values = state.shape[0] * state.shape[1];
        if tensor.size_bytes.0 != n_values.div_ceil(2) {
            let reason = format!("has {} bytes, but {:?} takes {} in four bits", tensor.size_bytes.0, state.shape, n_values.div_ceil(2));
            return Err(invalid(tensor, beside, reason));
        }
        let table = read_table(&name("quant_map"), 16, tensor, beside)?;
        let scales = read_scales(&state, n_values.div_ceil(state.blocksize), tensor, beside)?;
        let matrix = CodedMatrix {
            source: Arc::clone(beside.source(tensor.shard)),
            stored: tensor.offset,
            n_values,
            table: std::array::from_fn(|code| table[code]),
            block: state.blocksize,
            scales,
            floats,
        };
        let place = self.file.push(matrix);
        self.add(tensor.name.clone(), dtype, state.shape, place);
        Ok(true)
    }
}

fn invalid(tensor: &Unreadable, beside: &Beside<'_>, what: String) -> Error {
    Error::invalid_file(beside.path(tensor.shard), format!("tensor `{}` {what}", tensor.name))
}

fn read_state(tensor: &Unreadable, beside: &Beside<'_>) -> Result<State> {
    if tensor.size_bytes.0 > MAX_STATE_BYTES {
        return Err(invalid(
            tensor,
            beside,
            format!("has {} bytes, more than the {MAX_STATE_BYTES} that are allowed", tensor.size_bytes.0),
        ));
    }
    let state: State = serde_json::from_slice(&beside.bytes(tensor)?)
        .map_err(|error| invalid(tensor, beside, format!("does not describe a matrix: {error}")))?;
    let is_absurd = state.blocksize == 0
        || state.nested_blocksize == Some(0)
        || state.shape.iter().any(|size| *size > MAX_DIMENSION)
        || state.shape[0].checked_mul(state.shape[1]).is_none()
        || state.nested_offset.is_some_and(|offset| !offset.is_finite());
    if is_absurd { Err(invalid(tensor, beside, "describes a matrix of absurd sizes".into())) } else { Ok(state) }
}

/// The tensor `name` of so many numbers.
fn read_table(name: &str, len: u64, tensor: &Unreadable, beside: &Beside<'_>) -> Result<Vec<f32>> {
    let table = beside.floats(name).ok_or_else(|| beside.missing(tensor.shard, name))?;
    if table.shape != [len] {
        return Err(beside.wrong_shape((table.shard, name), vec![len], &table.shape));
    }
    beside.numbers(table)
}

/// Where the scales of so many blocks are; all are numbers.
fn read_scales(state: &State, n_blocks: u64, tensor: &Unreadable, beside: &Beside<'_>) -> Result<CodeScales> {
    let name = format!("{}.absmax", tensor.name);
    if let Some(block) = state.nested_blocksize {
        let codes = beside.other(&name).filter(|codes| codes.dtype == "U8").ok_or_else(|| beside.missing(tensor.shard, &name))?;
        if codes.shape != [n_blocks] {
            return Err(beside.wrong_shape((codes.shard, &name), vec![n_blocks], &codes.shape));
        }
        let table = read_table(&format!("{}.nested_quant_map", tensor.name), 256, tensor, beside)?;
        let scales = read_table(&format!("{}.nested_absmax", tensor.name), n_blocks.div_ceil(block), tensor, beside)?;
        let nested = Nested { table, block, scales, offset: state.nested_offset.unwrap_or(0.0) };
        return Ok(CodeScales { source: Arc::clone(beside.source(codes.shard)), stored: codes.offset, nested: Some(nested) });
    }
    read_table(&name, n_blocks, tensor, beside)?;
    let scales = beside.floats(&name).filter(|scales| scales.dtype == DType::F32).ok_or_else(|| beside.missing(tensor.shard, &name))?;
    Ok(CodeScales { source: Arc::clone(beside.source(scales.shard)), stored: scales.offset, nested: None })
}
