//! Folders whose matrices are 4-bit integers of groups (compressed-tensors, GPTQ, AWQ) or 4-bit codes (bitsandbytes): they are what their
//! values are, and what is broken in them is named.

use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use tierflow::DType;
use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;
use xtask::models::{LlamaShape, Stored, write_hf};

use crate::scaled::{Tensor, logits, with_quantization, write};

/// Columns of a group.
const GROUP: u64 = 32;
/// Rows of a word of AWQ from the lowest bits on.
const AWQ_ORDER: [u64; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How a folder has its matrices.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    CompressedTensors,
    Gptq,
    GptqV2,
    Awq,
    Nf4,
    NestedNf4,
}

impl Way {
    fn config(self) -> Value {
        match self {
            Way::CompressedTensors => {
                let weights = json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32});
                json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}})
            }
            Way::Gptq => json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false}),
            Way::GptqV2 => json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}),
            Way::Awq => json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": true}),
            Way::Nf4 | Way::NestedNf4 => json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}),
        }
    }
}

/// A matrix of made-up integers, zeros and scales.
struct Matrix {
    rows: u64,
    columns: u64,
    number: u64,
    is_symmetric: bool,
}

impl Matrix {
    fn n_groups(&self) -> u64 {
        self.columns / GROUP
    }

    fn integer(&self, row: u64, column: u64) -> u64 {
        (row * 7 + column * 11 + self.number * 5) / 3 % 16
    }

    fn zero(&self, row: u64, group: u64) -> u64 {
        if self.is_symmetric { 8 } else { (row * 5 + group * 3 + self.number) % 16 }
    }

    fn scale(&self, row: u64, group: u64) -> f16 {
        f16::from_f32(0.01 + ((row * 3 + group * 7) % 23) as f32 * 0.001)
    }

    fn value(&self, row: u64, column: u64) -> f32 {
        let group = column / GROUP;
        (self.integer(row, column) as f32 - self.zero(row, group) as f32) * self.scale(row, group).to_f32()
    }

    /// The tensors of integers, whose names begin with `name`.
    fn integers(&self, way: Way, name: &str) -> Vec<Tensor> {
        let (rows, columns, n_groups) = (self.rows, self.columns, self.n_groups());
        let tensor =
            |suffix: &str, dtype, shape: &[u64], bytes| Tensor { name: format!("{name}{suffix}"), dtype, shape: shape.into(), bytes };
        let zero = |row, group| if way == Way::Gptq { (self.zero(row, group) + 15) % 16 } else { self.zero(row, group) };
        if way == Way::CompressedTensors {
            let integers = words(rows, columns / 8, |row, word, k| self.integer(row, 8 * word + k));
            let zeros = words(rows / 8, n_groups, |word, group, k| zero(8 * word + k, group));
            let scales = each(rows, n_groups).flat_map(|(row, group)| self.scale(row, group).to_le_bytes()).collect();
            return vec![
                tensor("weight_packed", "I32", &[rows, columns / 8], integers),
                tensor("weight_shape", "I64", &[2], [rows, columns].into_iter().flat_map(u64::to_le_bytes).collect()),
                tensor("weight_zero_point", "I32", &[rows / 8, n_groups], zeros),
                tensor("weight_scale", "F16", &[rows, n_groups], scales),
            ];
        }
        let order = |k: u64| if way == Way::Awq { AWQ_ORDER[k as usize] } else { k };
        let zeros = words(n_groups, rows / 8, |group, word, k| zero(8 * word + order(k), group));
        let scales = each(n_groups, rows).flat_map(|(group, row)| self.scale(row, group).to_le_bytes()).collect();
        let mut tensors = vec![tensor("qzeros", "I32", &[n_groups, rows / 8], zeros), tensor("scales", "F16", &[n_groups, rows], scales)];
        if way == Way::Awq {
            let integers = words(columns, rows / 8, |column, word, k| self.integer(8 * word + order(k), column));
            tensors.push(tensor("qweight", "I32", &[columns, rows / 8], integers));
        } else {
            let integers = words(columns / 8, rows, |word, row, k| self.integer(row, 8 * word + k));
            let groups = (0..columns).flat_map(|column| ((column / GROUP) as u32).to_le_bytes()).collect();
            tensors.extend([tensor("qweight", "I32", &[columns / 8, rows], integers), tensor("g_idx", "I32", &[columns], groups)]);
        }
        tensors
    }

    /// The tensors of codes, whose names begin with `name`, and the values.
    fn codes(&self, is_nested: bool, name: &str) -> (Vec<Tensor>, Vec<f32>) {
        let n_values = self.rows * self.columns;
        let n_blocks = n_values.div_ceil(64);
        let table = |k: u64| (k as f32 - 7.5) / 8.0;
        let inner = |code: u64| code as f32 / 256.0 - 0.5;
        let code = |block: u64| (block * 37 + self.number) % 256;
        let (outer, offset) = (|index: u64| 0.05 + index as f32 * 0.01, 0.03f32);
        let scale = |block: u64| if is_nested { inner(code(block)) * outer(block / 256) + offset } else { 0.01 + block as f32 * 0.001 };
        let values = (0..n_values).map(|index| table(self.integer(0, index)) * scale(index / 64));
        let bytes = |values: &mut dyn Iterator<Item = f32>| values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let tensor =
            |suffix: &str, dtype, shape: &[u64], bytes| Tensor { name: format!("{name}{suffix}"), dtype, shape: shape.into(), bytes };
        let mut state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [self.rows, self.columns]});
        let mut tensors = vec![
            tensor(
                "weight",
                "U8",
                &[n_values / 2, 1],
                (0..n_values / 2).map(|byte| (self.integer(0, 2 * byte) << 4 | self.integer(0, 2 * byte + 1)) as u8).collect(),
            ),
            tensor("weight.quant_map", "F32", &[16], bytes(&mut (0..16).map(table))),
        ];
        if is_nested {
            (state["nested_blocksize"], state["nested_offset"]) = (json!(256), json!(offset));
            tensors.extend([
                tensor("weight.absmax", "U8", &[n_blocks], (0..n_blocks).map(|block| code(block) as u8).collect()),
                tensor("weight.nested_absmax", "F32", &[n_blocks.div_ceil(256)], bytes(&mut (0..n_blocks.div_ceil(256)).map(outer))),
                tensor("weight.nested_quant_map", "F32", &[256], bytes(&mut (0..256).map(inner))),
            ]);
        } else {
            tensors.push(tensor("weight.absmax", "F32", &[n_blocks], bytes(&mut (0..n_blocks).map(scale))));
        }
        let state = state.to_string().into_bytes();
        tensors.push(tensor("weight.quant_state.bitsandbytes__nf4", "U8", &[state.len() as u64], state));
        (tensors, values.map(|value| bf16::from_f32(value).to_f32()).collect())
    }
}

fn each(n: u64, m: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..n).flat_map(move |i| (0..m).map(move |j| (i, j)))
}

/// Words `[n, m]`, each of eight integers from the lowest bits on.
fn words(n: u64, m: u64, integer: impl Fn(u64, u64, u64) -> u64) -> Vec<u8> {
    each(n, m).flat_map(|(i, j)| (0..8).fold(0u32, |word, k| word | (integer(i, j, k) as u32) << (4 * k)).to_le_bytes()).collect()
}

/// The tensors of a model whose matrices in layers are stored so, and the same in F32.
fn both(plain: &Checkpoint, way: Way, is_symmetric: bool) -> [Vec<Tensor>; 2] {
    let (mut small, mut wide) = (Vec::new(), Vec::new());
    for (number, tensor) in (0..).zip(&plain.catalog.tensors) {
        let mut bytes = vec![0; tensor.size_bytes.0 as usize];
        plain.sources[tensor.shard as usize].read_at(tensor.offset, &mut bytes).unwrap();
        let in_f32 = |bytes| Tensor { name: tensor.name.clone(), dtype: "F32", shape: tensor.shape.clone(), bytes };
        let (&[rows, columns], true) = (tensor.shape.as_slice(), tensor.name.contains("layers")) else {
            small.push(in_f32(bytes.clone()));
            wide.push(in_f32(bytes));
            continue;
        };
        let matrix = Matrix { rows, columns, number, is_symmetric };
        let name = tensor.name.strip_suffix("weight").unwrap();
        let (tensors, values) = match way {
            Way::Nf4 | Way::NestedNf4 => matrix.codes(way == Way::NestedNf4, name),
            _ => (matrix.integers(way, name), each(rows, columns).map(|(row, column)| matrix.value(row, column)).collect()),
        };
        small.extend(tensors);
        wide.push(in_f32(values.into_iter().flat_map(f32::to_le_bytes).collect()));
    }
    [small, wide]
}

/// A folder without weights yet, and the model that its matrices take the place of.
fn folders(root: &Path, names: &[&str]) -> Checkpoint {
    let shape = LlamaShape { n_layers: 2, ..LlamaShape::tiny() };
    for name in [&["plain"], names].concat() {
        write_hf(&root.join(name), &shape, 7, Stored::F32, 1).unwrap();
    }
    Checkpoint::open(&root.join("plain"), IoMode::Pread).unwrap()
}

/// All values of a tensor.
fn values(checkpoint: &Checkpoint, name: &str, shape: &[u64]) -> (DType, Vec<f32>) {
    let id = checkpoint.expect(name, shape).unwrap();
    let info = &checkpoint.catalog[id];
    let mut bytes = vec![0; info.size_bytes.0 as usize];
    checkpoint.read(id, 0, &mut bytes).unwrap();
    let mut values = vec![f32::NAN; info.n_values() as usize];
    info.dtype.decode(&bytes, &mut values);
    (info.dtype, values)
}

#[test]
fn matrices_in_four_bits_are_their_values() {
    let root = tempfile::tempdir().unwrap();
    let plain = folders(root.path(), &["small", "wide"]);
    let [small, wide] = ["small", "wide"].map(|name| root.path().join(name));
    for (way, is_symmetric, dtype) in [
        (Way::CompressedTensors, false, DType::Q5_0),
        (Way::Gptq, true, DType::Q4_0),
        (Way::Gptq, false, DType::Q5_0),
        (Way::GptqV2, false, DType::Q5_0),
        (Way::Awq, true, DType::Q4_0),
        (Way::Awq, false, DType::Q5_0),
        (Way::Nf4, false, DType::BF16),
        (Way::NestedNf4, false, DType::BF16),
    ] {
        let [of_small, of_wide] = both(&plain, way, is_symmetric);
        write(&small, &of_small);
        write(&wide, &of_wide);
        with_quantization(&small, way.config());
        let [found, expected] = [&small, &wide].map(|path| Checkpoint::open(path, IoMode::Pread).unwrap());
        for tensor in &expected.catalog.tensors {
            let [found, expected] = [&found, &expected].map(|checkpoint| values(checkpoint, &tensor.name, &tensor.shape));
            assert!(found.1 == expected.1, "{way:?} {}", tensor.name);
            assert!(found.0 == if tensor.name.contains("proj") { dtype } else { DType::F32 }, "{way:?} {}: {}", tensor.name, found.0);
        }
        let [found, expected] = [&small, &wide].map(|path| logits(path).into_iter().map(f32::from_bits).collect::<Vec<f32>>());
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 2e-3 * largest), "{way:?}");
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    const NAME: &str = "model.layers.1.mlp.up_proj.";
    let root = tempfile::tempdir().unwrap();
    let plain = folders(root.path(), &["small"]);
    let folder = root.path().join("small");
    let refused = |way: Way, suffix: &str, change: &dyn Fn(&mut Vec<Tensor>, usize)| {
        let [mut tensors, _] = both(&plain, way, false);
        let at = tensors.iter().position(|tensor| tensor.name == format!("{NAME}{suffix}")).unwrap();
        change(&mut tensors, at);
        write(&folder, &tensors);
        with_quantization(&folder, way.config());
        Checkpoint::open(&folder, IoMode::Pread).unwrap_err().to_string()
    };
    let remove = |tensors: &mut Vec<Tensor>, at: usize| drop(tensors.remove(at));
    let shorten = |tensors: &mut Vec<Tensor>, at: usize| {
        let tensor = &mut tensors[at];
        let row = tensor.bytes.len() / tensor.shape[0] as usize;
        tensor.shape[0] -= 1;
        tensor.bytes.truncate(tensor.bytes.len() - row);
    };
    let not_a_number = |tensors: &mut Vec<Tensor>, at: usize| tensors[at].bytes[..4].fill(0xFF);
    for (way, suffix) in [
        (Way::Gptq, "scales"),
        (Way::Awq, "qzeros"),
        (Way::CompressedTensors, "weight_scale"),
        (Way::Nf4, "weight.absmax"),
        (Way::NestedNf4, "weight.nested_absmax"),
        (Way::NestedNf4, "weight.quant_map"),
    ] {
        let missing = refused(way, suffix, &remove);
        assert!(missing.contains(&format!("`{NAME}{suffix}` is missing")), "{missing}");
        let shape = refused(way, suffix, &shorten);
        assert!(shape.contains(NAME) && shape.contains("has shape"), "{shape}");
        if suffix != "qzeros" {
            let scale = refused(way, suffix, &not_a_number);
            assert!(scale.contains(&format!("scale 0 of tensor `{NAME}{suffix}` is NaN")), "{scale}");
        }
    }
    let order = refused(Way::Gptq, "g_idx", &|tensors, at| tensors[at].bytes[0] = 1);
    assert!(order.contains(&format!("`{NAME}g_idx` puts columns into groups out of order")), "{order}");
    let zeros = refused(Way::CompressedTensors, "weight_zero_point", &shorten);
    assert!(zeros.contains(&format!("`{NAME}weight_zero_point` has shape")), "{zeros}");
    let state = refused(Way::Nf4, "weight.quant_state.bitsandbytes__nf4", &|tensors, at| tensors[at].bytes[0] = b'[');
    assert!(state.contains("does not describe a matrix"), "{state}");
    let groups = refused(Way::Awq, "scales", &|tensors, at| {
        for tensor in &mut tensors[at - 1..=at] {
            tensor.shape[0] *= 2;
            tensor.bytes = tensor.bytes.repeat(2);
        }
    });
    assert!(groups.contains("64 columns in 4 groups"), "{groups}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever stands in the tensors beside a matrix, opening and reading end in values or in an error.
    #[test]
    fn broken_tensors_never_panic(
        way in prop::sample::select(vec![Way::CompressedTensors, Way::Gptq, Way::Awq, Way::Nf4, Way::NestedNf4]),
        changes in prop::collection::vec((any::<Index>(), 0..6usize, any::<Index>(), any::<u8>()), 1..4),
    ) {
        let root = tempfile::tempdir().unwrap();
        let plain = folders(root.path(), &["small"]);
        let [mut tensors, _] = both(&plain, way, false);
        tensors.retain(|tensor| !tensor.name.contains("layers.1"));
        for (which, kind, place, byte) in changes {
            let near: Vec<usize> = (0..tensors.len()).filter(|index| tensors[*index].name.contains("down_proj")).collect();
            if near.is_empty() {
                break;
            }
            let at = near[which.index(near.len())];
            let tensor = &mut tensors[at];
            let width = tensor.bytes.len() / tensor.shape.iter().product::<u64>().max(1) as usize;
            match kind {
                0 => drop(tensors.remove(at)),
                1 if !tensor.bytes.is_empty() => { let index = place.index(tensor.bytes.len()); tensor.bytes[index] = byte; }
                2 => tensor.shape = vec![tensor.shape.iter().product()],
                3 => {
                    let dimension = place.index(tensor.shape.len());
                    tensor.shape[dimension] = u64::from(byte % 9);
                    tensor.bytes.resize(width * tensor.shape.iter().product::<u64>() as usize, byte);
                }
                4 if width == 4 => tensor.dtype = if tensor.dtype == "F32" { "I32" } else { "F32" },
                _ => tensor.shape.reverse(),
            }
        }
        let folder = root.path().join("small");
        write(&folder, &tensors);
        with_quantization(&folder, way.config());
        if let Ok(checkpoint) = Checkpoint::open(&folder, IoMode::Pread) {
            for tensor in &checkpoint.catalog.tensors {
                let id = checkpoint.catalog.find(&tensor.name).unwrap();
                let mut bytes = vec![0; tensor.size_bytes.0 as usize];
                checkpoint.read(id, 0, &mut bytes).unwrap();
            }
        }
    }
}
