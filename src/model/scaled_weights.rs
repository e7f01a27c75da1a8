//! Folders whose matrices are 8-bit floats or packed 4-bit integers with scales beside them: what config.json says of that, and the
//! catalog as if the floats were BF16 and the integers Q4_0.
//!
//! `X.weight` is stored in F8_E4M3 or F8_E5M2, and `X.weight_scale_inv` (DeepSeek's and Qwen's `fp8`) or `X.weight_scale`
//! (compressed-tensors' `float-quantized`, `fbgemm_fp8`) holds what its values are multiplied by: one number, one for each row, or one for
//! each block of rows and columns. Scales of activations are not used: products here keep activations in more bits.
//!
//! `X.weight_packed` holds 4-bit integers (compressed-tensors' `pack-quantized`), `X.weight_shape` rows and columns, and `X.weight_scale`
//! what the integers of a group of columns are multiplied by.

use std::sync::Arc;

use half::f16;
use serde_json::Value;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::{self, ByteSource};
use crate::units::Bytes;
use crate::weights::derived::DerivedFile;
use crate::weights::packed::{self, PackedMatrix};
use crate::weights::safetensors::{MAX_DIMENSION, Unreadable};
use crate::weights::scaled::{Float8, ScaledMatrix};
use crate::weights::{Catalog, TensorInfo, add_file};

/// What the name of a scale has behind that of its matrix.
const SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];

/// Rows and columns that share a scale; `None` where a tensor's scales themselves say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ScaleBlock(Option<[u64; 2]>);

impl ScaleBlock {
    /// What `quantization_config` says, or why its weights cannot be read.
    pub(super) fn of(quantization: &Value) -> std::result::Result<ScaleBlock, String> {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        let method = text(quantization, "quant_method");
        let unsupported = |what: &str| {
            Err(format!("weights quantised by {what} are not supported; use the original in F32, F16 or BF16, or a GGUF file"))
        };
        match method.as_str() {
            "fp8" => ScaleBlock::listed(quantization, "weight_block_size"),
            "fbgemm_fp8" => Ok(ScaleBlock(None)),
            "compressed-tensors" => {
                let groups = quantization.get("config_groups").and_then(Value::as_object);
                let mut weights = groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("weights"));
                let Some(first) = weights.next() else { return unsupported("`compressed-tensors` without groups of weights") };
                let number = |weights: &Value| weights.get("num_bits").and_then(Value::as_u64);
                let is_float8 = |weights: &Value| number(weights) == Some(8) && text(weights, "type") == "float";
                let is_symmetric = |weights: &Value| weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
                let is_packed = |weights: &Value| number(weights) == Some(4) && text(weights, "type") == "int" && is_symmetric(weights);
                let is_read = |weights: &Value| is_float8(weights) || is_packed(weights);
                if !is_read(first) || !weights.all(is_read) {
                    let what = "as 8-bit floats or symmetric 4-bit integers";
                    return unsupported(&format!("`compressed-tensors` in another way than {what} (`{}`)", text(quantization, "format")));
                }
                ScaleBlock::listed(first, "block_structure")
            }
            other => unsupported(&format!("`{other}`")),
        }
    }

    fn listed(value: &Value, key: &str) -> std::result::Result<ScaleBlock, String> {
        let sizes = match value.get(key) {
            None | Some(Value::Null) => return Ok(ScaleBlock(None)),
            Some(sizes) => {
                sizes.as_array().map(|sizes| sizes.iter().map(|size| size.as_u64().filter(|size| *size > 0)).collect::<Vec<_>>())
            }
        };
        match sizes.as_deref() {
            Some([Some(rows), Some(columns)]) => Ok(ScaleBlock(Some([*rows, *columns]))),
            _ => Err(format!("`{key}` of quantization_config is no pair of sizes")),
        }
    }

    /// Rows and columns of a matrix that share one of the scales in a tensor of this shape; `None` where the shapes do not fit.
    fn of_shape(self, scales: &[u64], [rows, columns]: [u64; 2]) -> Option<[u64; 2]> {
        let grid = match scales {
            [] | [1] => [1, 1],
            [n] => [*n, 1],
            [n_rows, n_columns] => [*n_rows, *n_columns],
            _ => return None,
        };
        let fits = |block: &[u64; 2]| [rows.div_ceil(block[0]), columns.div_ceil(block[1])] == grid;
        let even = || {
            let is_even = grid.iter().all(|n| *n > 0) && rows.is_multiple_of(grid[0]) && columns.is_multiple_of(grid[1]);
            is_even.then(|| [rows / grid[0], columns / grid[1]])
        };
        let block =
            self.0.filter(fits).or_else(|| even().filter(|block| self.0.is_none() || grid[1] == 1 && (grid[0] == 1 || block[0] == 1)));
        block.filter(|[rows, columns]| *rows > 0 && *columns > 0)
    }
}

/// Behind the name of a matrix whose integers are packed.
const PACKED: &str = "_packed";

/// The catalog with the matrices of 8-bit floats and of packed integers that are among `unreadable`, in a file of their own that is read from those of `sources`.
/// One that has no scale stays unreadable.
///
/// # Errors
/// [`Error::WrongShape`] for scales that do not fit their matrix, [`Error::MissingTensor`] where integers have none, [`Error::InvalidFile`]
/// for one that is no number, [`Error::UnsupportedModel`] for integers that no Q4_0 can hold; those of reading.
pub(super) fn with_scales(
    block: ScaleBlock,
    catalog: Catalog,
    unreadable: &mut Vec<Unreadable>,
    sources: &mut Vec<Arc<dyn ByteSource>>,
) -> Result<Catalog> {
    let mut derived = Derived { file: DerivedFile::default(), tensors: Vec::new(), shard: sources.len() as u32 };
    let tensors = std::mem::take(unreadable);
    let mut others = Vec::new();
    for tensor in &tensors {
        let is_made = match tensor.name.strip_suffix(PACKED) {
            Some(name) if tensor.dtype == "I32" => derived.unpack(name, tensor, &catalog, (&tensors, sources))?,
            _ => derived.scale(block, tensor, &catalog, sources)?,
        };
        if !is_made {
            let lacks = if Float8::named(&tensor.dtype).is_some() { " without a scale" } else { "" };
            others.push(Unreadable { dtype: format!("{}{lacks}", tensor.dtype), ..tensor.clone() });
        }
    }
    *unreadable = others;
    let Derived { file, tensors: made, .. } = derived;
    if file.is_empty() {
        return Ok(catalog);
    }
    let Catalog { mut shards, mut tensors, .. } = catalog;
    tensors.extend(made);
    add_file(file, &mut shards, sources);
    Ok(Catalog::new(shards, tensors))
}

/// The matrices that are made, and their file.
struct Derived {
    file: DerivedFile,
    tensors: Vec<TensorInfo>,
    /// Its number.
    shard: u32,
}

impl Derived {
    /// Makes BF16 of 8-bit floats; `false` where they are none, or have no scale.
    fn scale(&mut self, block: ScaleBlock, tensor: &Unreadable, catalog: &Catalog, sources: &[Arc<dyn ByteSource>]) -> Result<bool> {
        let scale = SUFFIXES.iter().find_map(|suffix| catalog.find(&format!("{}{suffix}", tensor.name)));
        let (Some(float), Some(scale), &[n_rows, n_columns]) = (Float8::named(&tensor.dtype), scale, tensor.shape.as_slice()) else {
            return Ok(false);
        };
        let scale = &catalog[scale];
        let Some(block) = block.of_shape(&scale.shape, [n_rows, n_columns]) else {
            let [rows, columns] = block.0.unwrap_or([1, n_columns]);
            let expected = vec![n_rows.div_ceil(rows.max(1)), n_columns.div_ceil(columns.max(1))];
            return Err(wrong_shape(scale, catalog, expected));
        };
        let scales = read_scales(scale, sources[scale.shard as usize].as_ref())?;
        let source = Arc::clone(&sources[tensor.shard as usize]);
        let place = self.file.push(ScaledMatrix { source, stored: tensor.offset, n_rows, n_columns, float, block, scales });
        self.add(tensor.name.clone(), DType::BF16, [n_rows, n_columns], place);
        Ok(true)
    }

    /// Makes Q4_0 of the integers of the matrix `name`; `beside` are the other tensors that are not read as they are, and the files.
    fn unpack(
        &mut self,
        name: &str,
        tensor: &Unreadable,
        catalog: &Catalog,
        (beside, sources): (&[Unreadable], &[Arc<dyn ByteSource>]),
    ) -> Result<bool> {
        let path = catalog.shards[tensor.shard as usize].path.clone();
        let unsupported = |reason: String| Err(Error::UnsupportedModel { path: path.clone(), reason });
        let find = |suffix: &str| beside.iter().find(|other| other.name.strip_prefix(name) == Some(suffix));
        let missing = |suffix: &str| Error::MissingTensor { path: path.clone(), tensor: format!("{name}{suffix}") };
        for suffix in ["_zero_point", "_g_idx"] {
            if find(suffix).is_some() || catalog.find(&format!("{name}{suffix}")).is_some() {
                return unsupported(format!("integers with `{name}{suffix}` are not supported; use the original, or a GGUF file"));
            }
        }
        let shape = find("_shape").ok_or_else(|| missing("_shape"))?;
        let [n_rows, n_columns] = read_shape(shape, sources[shape.shard as usize].as_ref())?;
        let scale = &catalog[catalog.find(&format!("{name}_scale")).ok_or_else(|| missing("_scale"))?];
        if tensor.shape != [n_rows, n_columns.div_ceil(8)] {
            let expected = vec![n_rows, n_columns.div_ceil(8)];
            return Err(Error::WrongShape { path, tensor: tensor.name.clone(), expected, found: tensor.shape.clone() });
        }
        let n_groups = scale.shape.get(1).copied().unwrap_or(1);
        let fits = n_groups > 0 && n_columns.is_multiple_of(n_groups) && scale.shape.first() == Some(&n_rows) && scale.shape.len() <= 2;
        if !fits {
            return Err(wrong_shape(scale, catalog, vec![n_rows, n_groups.max(1)]));
        }
        let group = n_columns / n_groups;
        if group == 0 || !group.is_multiple_of(packed::BLOCK_LEN) {
            return unsupported(format!("tensor `{}` has groups of {group} columns; multiples of 32 are supported", tensor.name));
        }
        let wide = read_scales(scale, sources[scale.shard as usize].as_ref())?;
        let scales: Vec<f16> = wide.iter().map(|scale| f16::from_f32(*scale)).collect();
        if let Some(at) = scales.iter().zip(&wide).position(|(half, scale)| half.to_f32() != *scale) {
            let reason = format!("scale {at} of tensor `{}` is {}, which F16 cannot hold exactly; use the original", scale.name, wide[at]);
            return unsupported(reason);
        }
        let source = Arc::clone(&sources[tensor.shard as usize]);
        let place = self.file.push(PackedMatrix { source, stored: tensor.offset, n_rows, n_columns, group, scales });
        self.add(name.to_owned(), DType::Q4_0, [n_rows, n_columns], place);
        Ok(true)
    }

    fn add(&mut self, name: String, dtype: DType, shape: [u64; 2], (offset, size_bytes): (u64, Bytes)) {
        self.tensors.push(TensorInfo { name, dtype, shape: shape.into(), shard: self.shard, offset, size_bytes });
    }
}

fn wrong_shape(scale: &TensorInfo, catalog: &Catalog, expected: Vec<u64>) -> Error {
    let path = catalog.shards[scale.shard as usize].path.clone();
    Error::WrongShape { path, tensor: scale.name.clone(), expected, found: scale.shape.clone() }
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

fn read_scales(tensor: &TensorInfo, source: &dyn ByteSource) -> Result<Vec<f32>> {
    // Both are bounded by the file, which holds them.
    let mut bytes = platform::zeroed(tensor.size_bytes.0 as usize, "the scales of a matrix")?;
    source.read_at(tensor.offset, &mut bytes)?;
    let mut scales = platform::zeroed(tensor.n_values() as usize, "the scales of a matrix")?;
    tensor.dtype.decode(&bytes, &mut scales);
    match scales.iter().position(|scale: &f32| !scale.is_finite()) {
        None => Ok(scales),
        Some(at) => Err(Error::invalid_file(source.path(), format!("scale {at} of tensor `{}` is {}", tensor.name, scales[at]))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scales_are_for_all_for_rows_or_for_blocks() {
        let plain = ScaleBlock(None);
        let blocks = ScaleBlock(Some([128, 128]));
        for (block, shape, matrix, expected) in [
            (plain, &[][..], [6, 40], Some([6, 40])),
            (plain, &[1], [6, 40], Some([6, 40])),
            (plain, &[6, 1], [6, 40], Some([1, 40])),
            (plain, &[6], [6, 40], Some([1, 40])),
            (plain, &[3, 2], [6, 40], Some([2, 20])),
            (plain, &[4, 2], [6, 40], None),
            (plain, &[6, 40, 1], [6, 40], None),
            (plain, &[0, 1], [6, 40], None),
            (blocks, &[5, 2], [576, 256], Some([128, 128])),
            (blocks, &[4, 2], [576, 256], None),
            (blocks, &[1, 1], [60, 40], Some([128, 128])),
            (blocks, &[], [576, 256], Some([576, 256])),
            (blocks, &[576, 1], [576, 256], Some([1, 256])),
        ] {
            assert_eq!(block.of_shape(shape, matrix), expected, "{block:?} {shape:?} {matrix:?}");
        }
    }

    #[test]
    fn ways_of_quantising_that_are_known_say_their_blocks() {
        let of = |value: Value| ScaleBlock::of(&value);
        assert_eq!(of(json!({"quant_method": "fp8", "weight_block_size": [128, 128]})), Ok(ScaleBlock(Some([128, 128]))));
        assert_eq!(of(json!({"quant_method": "fp8", "weight_block_size": null})), Ok(ScaleBlock(None)));
        let group = |weights: Value| json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {"weights": weights}}});
        assert_eq!(of(group(json!({"num_bits": 8, "type": "float", "strategy": "channel"}))), Ok(ScaleBlock(None)));
        assert_eq!(of(group(json!({"num_bits": 8, "type": "float", "block_structure": [64, 32]}))), Ok(ScaleBlock(Some([64, 32]))));
        assert_eq!(of(group(json!({"num_bits": 4, "type": "int", "symmetric": true, "group_size": 128}))), Ok(ScaleBlock(None)));
        for (value, named) in [
            (group(json!({"num_bits": 4, "type": "int", "symmetric": false})), "compressed-tensors"),
            (group(json!({"num_bits": 3, "type": "int"})), "compressed-tensors"),
            (json!({"quant_method": "gptq"}), "gptq"),
            (json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "weight_block_size"),
        ] {
            let reason = of(value).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }
}
