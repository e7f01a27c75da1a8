//! Matrices of packed 4-bit integers with scales for groups of columns, as Q4_0 or Q5_0 with the same integers and scales:
//! [`packed`](crate::weights::packed) says how.
//!
//! - compressed-tensors (`pack-quantized`): `X.weight_packed` holds the integers, `X.weight_shape` rows and columns, `X.weight_scale` the
//!   scales `[rows, groups]`, `X.weight_zero_point` zeros, where they are not all 8: words of eight rows, `[rows / 8, groups]`.
//! - GPTQ and AWQ: `X.qweight`, `X.scales` `[groups, rows]`, and `X.qzeros`, whose words have eight rows each, `[groups, rows / 8]`. GPTQ's
//!   first format has one less in place of each zero, and `X.g_idx` the group of each column.

use std::sync::Arc;

use half::f16;
use serde_json::Value;

use super::scaled_weights::{Beside, Derived, text};
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::weights::TensorInfo;
use crate::weights::packed::{self, PLACES_OF_ROWS, PackedMatrix, Packing, WORD_LEN};
use crate::weights::safetensors::{MAX_DIMENSION, Unreadable};

/// What a zero is where none is stored.
const MIDDLE: u8 = 8;

/// Folders that have integers, scales and zeros of groups in tensors of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupedIntegers {
    /// GPTQ's.
    Gptq {
        /// Whether one less than each zero is stored.
        adds_one: bool,
    },
    /// AWQ's.
    Awq,
}

impl GroupedIntegers {
    /// What `quantization_config` says of this `method`, or what of it is not supported.
    pub(super) fn of(method: &str, quantization: &Value) -> std::result::Result<GroupedIntegers, String> {
        match quantization.get("bits").and_then(Value::as_u64) {
            Some(4) => {}
            Some(bits) => return Err(format!("`{method}` in {bits} bits")),
            None => return Err(format!("`{method}` in an unknown number of bits")),
        }
        let stated = |key: &str| text(quantization, key).to_lowercase();
        match (method, stated("checkpoint_format").as_str(), stated("version").as_str()) {
            ("gptq", "gptq" | "unknown", _) => Ok(GroupedIntegers::Gptq { adds_one: true }),
            ("gptq", "gptq_v2", _) => Ok(GroupedIntegers::Gptq { adds_one: false }),
            ("gptq", other, _) => Err(format!("`gptq` in the format `{other}`")),
            (_, _, "gemm" | "unknown") => Ok(GroupedIntegers::Awq),
            (_, _, other) => Err(format!("`awq` in the version `{other}`")),
        }
    }

    /// A zero as it is meant. One that was 0 before one was taken from it is 15.
    fn zero(self, stored: u8) -> u8 {
        match self {
            GroupedIntegers::Gptq { adds_one: true } => (stored + 1) & 15,
            _ => stored,
        }
    }
}

/// The shape of a matrix and how it is packed.
struct Shape {
    packing: Packing,
    n_rows: u64,
    n_columns: u64,
    n_groups: u64,
}

impl Derived {
    /// The matrix whose integers are in `tensor`, as compressed-tensors has them.
    pub(super) fn unpack_rows(&mut self, tensor: &Unreadable, beside: &Beside<'_>) -> Result<bool> {
        let name = tensor.name.trim_end_matches("_packed");
        let unsupported = |reason: String| Err(Error::UnsupportedModel { path: beside.path(tensor.shard), reason });
        let [shape_name, scale_name, zeros_name, order_name] =
            ["_shape", "_scale", "_zero_point", "_g_idx"].map(|suffix| format!("{name}{suffix}"));
        if beside.other(&order_name).is_some() || beside.floats(&order_name).is_some() {
            return unsupported(format!("integers with `{order_name}` are not supported; use the original, or a GGUF file"));
        }
        let shape = beside.other(&shape_name).ok_or_else(|| beside.missing(tensor.shard, &shape_name))?;
        let [n_rows, n_columns] = read_shape(shape, beside.source(shape.shard).as_ref())?;
        let scale = beside.floats(&scale_name).ok_or_else(|| beside.missing(tensor.shard, &scale_name))?;
        expect_shape(beside, tensor, &[n_rows, n_columns.div_ceil(WORD_LEN)])?;
        let n_groups = scale.shape.get(1).copied().unwrap_or(1);
        if scale.shape.first() != Some(&n_rows) || scale.shape.len() > 2 {
            return Err(beside.wrong_shape((scale.shard, &scale.name), vec![n_rows, n_groups.max(1)], &scale.shape));
        }
        let zeros = match beside.other(&zeros_name) {
            None if beside.floats(&zeros_name).is_some() => return unsupported(format!("`{zeros_name}` is not stored as integers")),
            None => Vec::new(),
            Some(zeros) => {
                expect_shape(beside, zeros, &[n_rows.div_ceil(WORD_LEN), n_groups])?;
                let words = read_words(zeros, beside)?;
                let zero = |row: u64, group: u64| nibble(&words, row / WORD_LEN * n_groups + group, row % WORD_LEN);
                (0..n_rows).flat_map(|row| (0..n_groups).map(move |group| (row, group))).map(|(row, group)| zero(row, group)).collect()
            }
        };
        let scales = beside.numbers(scale)?;
        let shape = Shape { packing: Packing::Rows, n_rows, n_columns, n_groups };
        self.add_packed(name.to_owned(), tensor, (&shape, scale), scales, zeros, beside)
    }

    /// The matrix whose integers are in `tensor`, as GPTQ or AWQ has them.
    pub(super) fn unpack_grouped(&mut self, way: GroupedIntegers, tensor: &Unreadable, beside: &Beside<'_>) -> Result<bool> {
        let name = tensor.name.trim_end_matches("qweight");
        let [scale_name, zeros_name] = ["scales", "qzeros"].map(|suffix| format!("{name}{suffix}"));
        let scale = beside.floats(&scale_name).ok_or_else(|| beside.missing(tensor.shard, &scale_name))?;
        let zeros = beside.other(&zeros_name).ok_or_else(|| beside.missing(tensor.shard, &zeros_name))?;
        let &[n_lines, n_words] = tensor.shape.as_slice() else {
            return Err(Error::invalid_file(beside.path(tensor.shard), format!("tensor `{}` is no matrix", tensor.name)));
        };
        let (packing, n_rows, n_columns) = match way {
            GroupedIntegers::Gptq { .. } => (Packing::EightColumns, n_words, n_lines * WORD_LEN),
            GroupedIntegers::Awq => (Packing::EightRows, n_words * WORD_LEN, n_lines),
        };
        let n_groups = scale.shape.first().copied().unwrap_or(1);
        if scale.shape != [n_groups, n_rows] {
            return Err(beside.wrong_shape((scale.shard, &scale.name), vec![n_groups, n_rows], &scale.shape));
        }
        expect_shape(beside, zeros, &[n_groups, n_rows.div_ceil(WORD_LEN)])?;
        let shape = Shape { packing, n_rows, n_columns, n_groups };
        if let Some(order) = beside.other(&format!("{name}g_idx")) {
            expect_in_order(beside, order, &shape)?;
        }
        let (words, wide) = (read_words(zeros, beside)?, beside.numbers(scale)?);
        let n_words = n_rows.div_ceil(WORD_LEN);
        let place =
            |row: u64| if packing == Packing::EightRows { u64::from(PLACES_OF_ROWS[(row % WORD_LEN) as usize]) } else { row % WORD_LEN };
        let zero = |row: u64, group: u64| way.zero(nibble(&words, group * n_words + row / WORD_LEN, place(row)));
        // Row by row, as they are looked for.
        let each = || (0..n_rows).flat_map(|row| (0..n_groups).map(move |group| (row, group)));
        let zeros = each().map(|(row, group)| zero(row, group)).collect();
        let scales = each().map(|(row, group)| wide[(group * n_rows + row) as usize]).collect();
        self.add_packed(format!("{name}weight"), tensor, (&shape, scale), scales, zeros, beside)
    }

    /// Adds the matrix `name`, whose scales and zeros stand row by row.
    fn add_packed(
        &mut self,
        name: String,
        tensor: &Unreadable,
        (shape, scale): (&Shape, &TensorInfo),
        scales: Vec<f32>,
        zeros: Vec<u8>,
        beside: &Beside<'_>,
    ) -> Result<bool> {
        let &Shape { packing, n_rows, n_columns, n_groups } = shape;
        let unsupported = |reason: String| Err(Error::UnsupportedModel { path: beside.path(tensor.shard), reason });
        let group = n_columns.checked_div(n_groups).unwrap_or(0);
        if group == 0 || group * n_groups != n_columns || !group.is_multiple_of(packed::BLOCK_LEN) {
            let reason =
                format!("tensor `{}` has {n_columns} columns in {n_groups} groups; groups of a multiple of 32 are supported", tensor.name);
            return unsupported(reason);
        }
        let halves: Vec<f16> = scales.iter().map(|scale| f16::from_f32(*scale)).collect();
        if let Some(at) = halves.iter().zip(&scales).position(|(half, scale)| half.to_f32() != *scale) {
            return unsupported(format!(
                "scale {at} of tensor `{}` is {}, which F16 cannot hold exactly; use the original",
                scale.name, scales[at]
            ));
        }
        let zeros = if zeros.iter().all(|zero| *zero == MIDDLE) { Vec::new() } else { zeros };
        let source = Arc::clone(beside.source(tensor.shard));
        let matrix = PackedMatrix { source, stored: tensor.offset, packing, n_rows, n_columns, group, scales: halves, zeros };
        let dtype = matrix.dtype();
        let place = self.file.push(matrix);
        self.add(name, dtype, [n_rows, n_columns], place);
        Ok(true)
    }
}

/// Four bits of word `index`, which are beyond no end: shapes were compared.
fn nibble(words: &[u8], index: u64, place: u64) -> u8 {
    let word = u32::from_le_bytes(words.as_chunks().0[index as usize]);
    (word >> (4 * place) & 15) as u8
}

/// The words of a tensor that has nothing else.
fn read_words(tensor: &Unreadable, beside: &Beside<'_>) -> Result<Vec<u8>> {
    if tensor.dtype != "I32" {
        return Err(Error::invalid_file(
            beside.path(tensor.shard),
            format!("tensor `{}` is stored as {}, not I32", tensor.name, tensor.dtype),
        ));
    }
    beside.bytes(tensor)
}

fn expect_shape(beside: &Beside<'_>, tensor: &Unreadable, expected: &[u64]) -> Result<()> {
    if tensor.shape == expected { Ok(()) } else { Err(beside.wrong_shape((tensor.shard, &tensor.name), expected.into(), &tensor.shape)) }
}

/// Refuses columns whose groups do not follow each other.
fn expect_in_order(beside: &Beside<'_>, order: &Unreadable, shape: &Shape) -> Result<()> {
    expect_shape(beside, order, &[shape.n_columns])?;
    let words = read_words(order, beside)?;
    let group = shape.n_columns.checked_div(shape.n_groups).unwrap_or(0).max(1);
    let is_in_order = (0..).zip(words.as_chunks().0).all(|(column, word): (u64, _)| u64::from(u32::from_le_bytes(*word)) == column / group);
    if is_in_order {
        return Ok(());
    }
    let reason = format!(
        "`{}` puts columns into groups out of order (`desc_act`), which is not supported; use the original, or a GGUF file",
        order.name
    );
    Err(Error::UnsupportedModel { path: beside.path(order.shard), reason })
}

/// Rows and columns, which a tensor of two integers says.
fn read_shape(tensor: &Unreadable, source: &dyn ByteSource) -> Result<[u64; 2]> {
    let invalid = |what: &str| Error::invalid_file(source.path(), format!("tensor `{}` {what}", tensor.name));
    let width = match tensor.dtype.as_str() {
        "I64" => 8,
        "I32" => 4,
        _ => return Err(invalid("is not stored as integers")),
    };
    if tensor.shape != [2] {
        return Err(invalid("is no pair of sizes"));
    }
    let mut sizes = [0; 2];
    for (at, size) in (0..).zip(&mut sizes) {
        let mut bytes = [0; 8];
        source.read_at(tensor.offset + at * width, &mut bytes[..width as usize])?;
        *size = u64::from_le_bytes(bytes);
        // A negative one is as absurd as one that is too large.
        if *size > MAX_DIMENSION {
            return Err(invalid(&format!("says the absurd size {size}")));
        }
    }
    Ok(sizes)
}
