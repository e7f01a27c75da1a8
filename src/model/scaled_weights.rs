//! Folders whose matrices are stored in few bits with scales beside them: what config.json says of that, and the catalog as if they were in
//! dtypes that are computed with. Here those of 8-bit floats, which become BF16; [`packed_weights`](super::packed_weights) has
//! integers, [`coded_weights`](super::coded_weights) codes.
//!
//! `X.weight` is stored in F8_E4M3 or F8_E5M2, and `X.weight_scale_inv` (DeepSeek's and Qwen's `fp8`) or `X.weight_scale`
//! (compressed-tensors' `float-quantized`, `fbgemm_fp8`) holds what its values are multiplied by: one number, one for each row, or one for
//! each block of rows and columns. Scales of activations are not used: products here keep activations in more bits.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::packed_weights::GroupedIntegers;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::{self, ByteSource};
use crate::units::Bytes;
use crate::weights::derived::DerivedFile;
use crate::weights::safetensors::Unreadable;
use crate::weights::scaled::{Float8, ScaledMatrix};
use crate::weights::{Catalog, TensorInfo, add_file};

/// What the name of a scale has behind that of its matrix.
const SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];

/// How a folder's matrices are quantised, as far as its tensors do not say it themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Quantization {
    block: ScaleBlock,
    integers: Option<GroupedIntegers>,
}

impl Quantization {
    /// What `quantization_config` says, or why its weights cannot be read.
    pub(super) fn of(quantization: &Value) -> std::result::Result<Quantization, String> {
        let method = text(quantization, "quant_method");
        match method.as_str() {
            "fp8" => ScaleBlock::listed(quantization, "weight_block_size").map(Quantization::from),
            "fbgemm_fp8" => Ok(Quantization::default()),
            "compressed-tensors" => of_compressed_tensors(quantization),
            "gptq" | "awq" => {
                let integers = Some(GroupedIntegers::of(&method, quantization).map_err(unsupported)?);
                Ok(Quantization { integers, ..Quantization::default() })
            }
            "bitsandbytes" if text(quantization, "bnb_4bit_quant_type") == "fp4" => Err(unsupported("`bitsandbytes` in FP4".into())),
            "bitsandbytes" if quantization.get("load_in_4bit").and_then(Value::as_bool) == Some(true) => Ok(Quantization::default()),
            "bitsandbytes" => Err(unsupported("`bitsandbytes` in other than 4 bits".into())),
            other => Err(unsupported(format!("`{other}`"))),
        }
    }
}

impl From<ScaleBlock> for Quantization {
    fn from(block: ScaleBlock) -> Quantization {
        Quantization { block, integers: None }
    }
}

/// The text at `key`, or `unknown`.
pub(super) fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned()
}

fn unsupported(what: String) -> String {
    format!("weights quantised by {what} are not supported; use the original in F32, F16 or BF16, or a GGUF file")
}

fn of_compressed_tensors(quantization: &Value) -> std::result::Result<Quantization, String> {
    let groups = quantization.get("config_groups").and_then(Value::as_object);
    let mut weights = groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("weights"));
    let Some(first) = weights.next() else { return Err(unsupported("`compressed-tensors` without groups of weights".into())) };
    let is_read = |weights: &Value| {
        let n_bits = weights.get("num_bits").and_then(Value::as_u64);
        matches!((n_bits, text(weights, "type").as_str()), (Some(8), "float") | (Some(4), "int"))
    };
    if !is_read(first) || !weights.all(is_read) {
        let format = text(quantization, "format");
        return Err(unsupported(format!("`compressed-tensors` in another way than as 8-bit floats or 4-bit integers (`{format}`)")));
    }
    ScaleBlock::listed(first, "block_structure").map(Quantization::from)
}

/// Rows and columns that share a scale; `None` where a tensor's scales themselves say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct ScaleBlock(Option<[u64; 2]>);

impl ScaleBlock {
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

/// The catalog with the matrices among `unreadable` that are 8-bit floats, packed integers or codes, in a file of their own that is read
/// from those of `sources`. One of 8-bit floats that has no scale stays unreadable.
///
/// # Errors
/// [`Error::WrongShape`] for scales that do not fit their matrix, [`Error::MissingTensor`] where integers or codes have none,
/// [`Error::InvalidFile`] for one that is no number, [`Error::UnsupportedModel`] for integers that no blocks can hold; those of reading.
pub(super) fn with_scales(
    quantization: Quantization,
    catalog: Catalog,
    unreadable: &mut Vec<Unreadable>,
    sources: &mut Vec<Arc<dyn ByteSource>>,
) -> Result<Catalog> {
    let mut derived = Derived { file: DerivedFile::default(), tensors: Vec::new(), shard: sources.len() as u32 };
    let tensors = std::mem::take(unreadable);
    let others = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let stored = Beside { catalog: &catalog, others, sources };
    for tensor in &tensors {
        if !derived.make(quantization, tensor, &stored)? {
            let lacks = if Float8::named(&tensor.dtype).is_some() { " without a scale" } else { "" };
            unreadable.push(Unreadable { dtype: format!("{}{lacks}", tensor.dtype), ..tensor.clone() });
        }
    }
    let Derived { file, tensors: made, .. } = derived;
    if file.is_empty() {
        return Ok(catalog);
    }
    let Catalog { mut shards, mut tensors, .. } = catalog;
    tensors.extend(made);
    add_file(file, &mut shards, sources);
    Ok(Catalog::new(shards, tensors))
}

/// What stands beside a matrix in its folder.
pub(super) struct Beside<'a> {
    pub(super) catalog: &'a Catalog,
    /// Tensors that are not read as they are, by name.
    others: HashMap<&'a str, &'a Unreadable>,
    sources: &'a [Arc<dyn ByteSource>],
}

impl<'a> Beside<'a> {
    /// A tensor of floats.
    pub(super) fn floats(&self, name: &str) -> Option<&'a TensorInfo> {
        self.catalog.find(name).map(|id| &self.catalog[id])
    }

    /// Another tensor.
    pub(super) fn other(&self, name: &str) -> Option<&'a Unreadable> {
        self.others.get(name).copied()
    }

    pub(super) fn source(&self, shard: u32) -> &'a Arc<dyn ByteSource> {
        &self.sources[shard as usize]
    }

    pub(super) fn path(&self, shard: u32) -> String {
        self.catalog.shards[shard as usize].path.clone()
    }

    /// Refuses a matrix of file number `shard` that lacks the tensor `name`.
    pub(super) fn missing(&self, shard: u32, name: &str) -> Error {
        Error::MissingTensor { path: self.path(shard), tensor: name.to_owned() }
    }

    pub(super) fn wrong_shape(&self, (shard, name): (u32, &str), expected: Vec<u64>, found: &[u64]) -> Error {
        Error::WrongShape { path: self.path(shard), tensor: name.to_owned(), expected, found: found.into() }
    }

    /// All bytes of a tensor, which are bounded by its file.
    pub(super) fn bytes(&self, tensor: &Unreadable) -> Result<Vec<u8>> {
        let mut bytes = platform::zeroed(tensor.size_bytes.0 as usize, "what stands beside a matrix")?;
        self.source(tensor.shard).read_at(tensor.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// The values of a tensor, each of which is a number.
    pub(super) fn numbers(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        let source = self.source(tensor.shard);
        let numbers = tensor.values(source.as_ref())?;
        match numbers.iter().position(|number: &f32| !number.is_finite()) {
            None => Ok(numbers),
            Some(at) => Err(Error::invalid_file(source.path(), format!("scale {at} of tensor `{}` is {}", tensor.name, numbers[at]))),
        }
    }
}

/// The matrices that are made, and their file.
pub(super) struct Derived {
    pub(super) file: DerivedFile,
    tensors: Vec<TensorInfo>,
    /// Its number.
    shard: u32,
}

impl Derived {
    /// Makes a matrix of `tensor` and what stands beside it; `false` where it is none of those that are made.
    fn make(&mut self, quantization: Quantization, tensor: &Unreadable, beside: &Beside<'_>) -> Result<bool> {
        match (tensor.dtype.as_str(), quantization.integers) {
            ("I32", _) if tensor.name.ends_with("_packed") => self.unpack_rows(tensor, beside),
            ("I32", Some(integers)) if tensor.name.ends_with(".qweight") => self.unpack_grouped(integers, tensor, beside),
            ("U8", _) => self.decode_codes(tensor, beside),
            _ => self.scale(quantization.block, tensor, beside),
        }
    }

    /// Makes BF16 of 8-bit floats; `false` where they are none, or have no scale.
    fn scale(&mut self, block: ScaleBlock, tensor: &Unreadable, beside: &Beside<'_>) -> Result<bool> {
        let scale = SUFFIXES.iter().find_map(|suffix| beside.floats(&format!("{}{suffix}", tensor.name)));
        let (Some(float), Some(scale), &[n_rows, n_columns]) = (Float8::named(&tensor.dtype), scale, tensor.shape.as_slice()) else {
            return Ok(false);
        };
        let Some(block) = block.of_shape(&scale.shape, [n_rows, n_columns]) else {
            let [rows, columns] = block.0.unwrap_or([1, n_columns]);
            let expected = vec![n_rows.div_ceil(rows.max(1)), n_columns.div_ceil(columns.max(1))];
            return Err(beside.wrong_shape((scale.shard, &scale.name), expected, &scale.shape));
        };
        let scales = beside.numbers(scale)?;
        let source = Arc::clone(beside.source(tensor.shard));
        let place = self.file.push(ScaledMatrix { source, stored: tensor.offset, n_rows, n_columns, float, block, scales });
        self.add(tensor.name.clone(), DType::BF16, [n_rows, n_columns], place);
        Ok(true)
    }

    pub(super) fn add(&mut self, name: String, dtype: DType, shape: [u64; 2], (offset, size_bytes): (u64, Bytes)) {
        self.tensors.push(TensorInfo { name, dtype, shape: shape.into(), shard: self.shard, offset, size_bytes });
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
        let of = |value: Value| Quantization::of(&value);
        let plain = Ok(Quantization::default());
        let in_blocks = |rows, columns| Ok(ScaleBlock(Some([rows, columns])).into());
        assert_eq!(of(json!({"quant_method": "fp8", "weight_block_size": [128, 128]})), in_blocks(128, 128));
        assert_eq!(of(json!({"quant_method": "fp8", "weight_block_size": null})), plain);
        let group = |weights: Value| json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {"weights": weights}}});
        assert_eq!(of(group(json!({"num_bits": 8, "type": "float", "strategy": "channel"}))), plain);
        assert_eq!(of(group(json!({"num_bits": 8, "type": "float", "block_structure": [64, 32]}))), in_blocks(64, 32));
        assert_eq!(of(group(json!({"num_bits": 4, "type": "int", "symmetric": true, "group_size": 128}))), plain);
        assert_eq!(of(group(json!({"num_bits": 4, "type": "int", "symmetric": false}))), plain);
        assert_eq!(of(json!({"quant_method": "bitsandbytes", "load_in_4bit": true})), plain);
        for (value, way) in [
            (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}), GroupedIntegers::Gptq { adds_one: true }),
            (json!({"quant_method": "gptq", "bits": 4, "desc_act": true}), GroupedIntegers::Gptq { adds_one: true }),
            (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}), GroupedIntegers::Gptq { adds_one: false }),
            (json!({"quant_method": "awq", "bits": 4, "version": "gemm"}), GroupedIntegers::Awq),
        ] {
            assert_eq!(of(value).map(|quantization| quantization.integers), Ok(Some(way)));
        }
        for (value, named) in [
            (json!({"quant_method": "gptq", "bits": 8}), "`gptq` in 8 bits"),
            (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "marlin"),
            (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "gemv"),
            (json!({"quant_method": "awq"}), "unknown number of bits"),
            (json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "bitsandbytes"),
            (json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}), "FP4"),
            (json!({"quant_method": "hqq"}), "hqq"),
            (group(json!({"num_bits": 3, "type": "int"})), "compressed-tensors"),
            (json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "weight_block_size"),
        ] {
            let reason = of(value).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }
}
