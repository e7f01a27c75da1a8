//! The tensor list of a GGUF file, checked: every tensor aligned, inside the file and apart from the others.

use std::collections::HashSet;

use super::reader::Reader;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::units::Bytes;
use crate::weights::catalog::TensorInfo;
use crate::weights::safetensors::count_values;

/// As in ggml: `GGML_MAX_NAME` counts the closing zero.
const MAX_NAME_BYTES: u64 = 63;
const MAX_DIMENSIONS: u32 = 4;
/// Least bytes of an entry: name length, number of dimensions, type, offset.
pub(super) const LEAST_ENTRY_BYTES: u64 = 8 + 4 + 4 + 8;

/// Host memory of an entry, generously.
const HELD_BYTES: u64 = 256;

/// Reads `n` entries of the shard `shard`; the reader stands after them then. Offsets are still relative to the data part, and names are
/// the file's own.
pub(super) fn read_entries(reader: &mut Reader<'_>, n: u64, shard: u32) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::new();
    let mut tensors = Vec::new();
    for index in 0..n {
        let tensor = TensorInfo { shard, ..read_entry(reader, index)? };
        if !names.insert(tensor.name.clone()) {
            return Err(reader.error(format!("two tensors are named `{}`", tensor.name)));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_entry(reader: &mut Reader<'_>, index: u64) -> Result<TensorInfo> {
    let what = format!("the entry of tensor {index}");
    reader.hold(HELD_BYTES, &what)?;
    let name = reader.string(MAX_NAME_BYTES, &format!("the name of tensor {index}"))?;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(reader.error(format!("tensor {index} has the unusable name `{}`", name.escape_debug())));
    }
    let n_dimensions = reader.u32(&what)?;
    if n_dimensions > MAX_DIMENSIONS {
        return Err(reader.error(format!("tensor `{name}` has {n_dimensions} dimensions, more than {MAX_DIMENSIONS}")));
    }
    let mut shape = (0..n_dimensions).map(|_| reader.u64(&what)).collect::<Result<Vec<u64>>>()?;
    // GGUF lists the innermost dimension first.
    shape.reverse();
    let dtype = dtype_of(reader, &name)?;
    let offset = reader.u64(&what)?;
    let n_values = count_values(&shape).map_err(|reason| reader.error(format!("tensor `{name}` has {reason}")))?;
    let row_len = shape.last().copied().unwrap_or(1);
    if !row_len.is_multiple_of(dtype.block_len()) {
        let reason = format!("tensor `{name}` has rows of {row_len} values, which are no whole blocks of {dtype}");
        return Err(reader.error(reason));
    }
    let size = dtype.size_bytes(n_values).ok_or_else(|| reader.error(format!("tensor `{name}` has the absurd shape {shape:?}")))?;
    Ok(TensorInfo { name, dtype, shape, shard: 0, offset, size_bytes: Bytes(size) })
}

fn dtype_of(reader: &mut Reader<'_>, tensor: &str) -> Result<DType> {
    let code = reader.u32("the type of a tensor")?;
    DType::of_gguf(code).ok_or_else(|| {
        let name = unsupported_name(code).map_or_else(|| format!("the unknown type {code}"), |name| format!("the type {name}"));
        let reason = format!("tensor `{tensor}` has {name}; supported are {}", DType::names());
        Error::UnsupportedModel { path: reader.path().to_owned(), reason }
    })
}

/// `enum ggml_type` of ggml.h, without the rows of [`DType`].
fn unsupported_name(code: u32) -> Option<&'static str> {
    Some(match code {
        9 => "Q8_1",
        15 => "Q8_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}

/// Where the tensors' bytes are.
pub(super) struct Data {
    /// Of the first one.
    pub(super) start: u64,
    /// Each begins at a multiple of so many bytes.
    pub(super) alignment: u64,
}

/// Makes offsets absolute, puts the tensors in the order of their bytes and renames them.
pub(super) fn place(reader: &Reader<'_>, tensors: &mut [TensorInfo], data: Data, rename: &dyn Fn(&str) -> String) -> Result<()> {
    let Data { start, alignment } = data;
    let file_size = reader.file_size();
    for tensor in tensors.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(reader.error(format!("tensor `{}` begins at {}, no multiple of {alignment}", tensor.name, tensor.offset)));
        }
        let begin = start.checked_add(tensor.offset);
        let end = begin.and_then(|begin| begin.checked_add(tensor.size_bytes.0));
        match begin.zip(end) {
            Some((begin, end)) if end <= file_size => tensor.offset = begin,
            _ => {
                let reason = format!(
                    "is cut short: tensor `{}` ({} bytes at {} of the data part) ends beyond the file's {file_size} bytes",
                    tensor.name, tensor.size_bytes.0, tensor.offset
                );
                return Err(reader.error(reason));
            }
        }
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.size_bytes));
    for (earlier, later) in tensors.iter().zip(tensors.iter().skip(1)) {
        // Cannot overflow: both ends are inside the file.
        if earlier.offset + earlier.size_bytes.0 > later.offset {
            return Err(reader.error(format!("tensors `{}` and `{}` overlap", earlier.name, later.name)));
        }
    }
    let mut names = HashSet::new();
    for tensor in tensors {
        tensor.name = rename(&tensor.name);
        if !names.insert(tensor.name.as_str()) {
            return Err(reader.error(format!("two tensors are named `{}`", tensor.name)));
        }
    }
    Ok(())
}
