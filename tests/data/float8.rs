//! Folders whose matrices are 8-bit floats with scales: they are what their values in BF16 are.

use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use tierflow::device::DeviceChoice;
use tierflow::engine::{Engine, TextFiles};
use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;
use tierflow::stream::{Logits, LogitsRequest};
use xtask::models::{LlamaShape, Stored, write_hf};

/// A tensor as safetensors have it.
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

fn write(folder: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let begin = data.len();
        data.extend(&tensor.bytes);
        header.insert(tensor.name.clone(), json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    std::fs::write(folder.join("model.safetensors"), [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

/// How scales stand beside a matrix.
#[derive(Clone, Copy)]
struct Way {
    suffix: &'static str,
    /// Rows and columns that share one; 0 for all of them.
    block: [u64; 2],
    dtype: &'static str,
    /// Whether one scale for each row has two dimensions, and one for all of them one.
    has_dimensions: bool,
}

/// The tensors of a model with matrices of 8-bit floats, and the same in BF16.
fn both(plain: &Checkpoint, way: Way) -> [Vec<Tensor>; 2] {
    let (mut small, mut wide) = (Vec::new(), Vec::new());
    for (number, tensor) in plain.catalog.tensors.iter().enumerate() {
        let mut bytes = vec![0; tensor.size_bytes.0 as usize];
        plain.sources[tensor.shard as usize].read_at(tensor.offset, &mut bytes).unwrap();
        let named = |dtype, bytes| Tensor { name: tensor.name.clone(), dtype, shape: tensor.shape.clone(), bytes };
        let &[rows, columns] = tensor.shape.as_slice() else {
            small.push(named("BF16", bytes.clone()));
            wide.push(named("BF16", bytes));
            continue;
        };
        if tensor.name.contains("embed") {
            small.push(named("BF16", bytes.clone()));
            wide.push(named("BF16", bytes));
            continue;
        }
        let [block_rows, block_columns] =
            [(way.block[0], rows), (way.block[1], columns)].map(|(block, all)| if block == 0 { all } else { block });
        let grid = [rows.div_ceil(block_rows), columns.div_ceil(block_columns)];
        let scale = |index: u64| (1.0 + (index * 7 % 13) as f32 / 16.0) * if way.dtype == "BF16" { 1.0 / 64.0 } else { 0.013 };
        let stored: Vec<u8> =
            (0..rows * columns).map(|index| ((index * 37 + number as u64) % 107) as u8 | (index % 3 << 7) as u8).collect();
        let value = |byte: u8| match way.suffix {
            "_scale_inv" => f16::from_bits(u16::from(byte & 0x80) << 8 | u16::from(byte & 0x7F) << 7).to_f32() * 256.0,
            _ => f16::from_bits(u16::from(byte) << 8).to_f32(),
        };
        let scaled = (0..).zip(&stored).map(|(index, byte): (u64, _)| {
            let (row, column) = (index / columns, index % columns);
            bf16::from_f32(value(*byte) * scale(row / block_rows * grid[1] + column / block_columns))
        });
        wide.push(named("BF16", scaled.flat_map(bf16::to_le_bytes).collect()));
        small.push(named(if way.suffix == "_scale_inv" { "F8_E4M3" } else { "F8_E5M2" }, stored));
        let scales = (0..grid[0] * grid[1]).map(scale);
        let bytes = match way.dtype {
            "BF16" => scales.flat_map(|scale| bf16::from_f32(scale).to_le_bytes()).collect(),
            _ => scales.flat_map(f32::to_le_bytes).collect(),
        };
        let shape = match grid {
            [1, 1] if !way.has_dimensions => Vec::new(),
            [n, 1] if !way.has_dimensions => vec![n],
            grid => grid.into(),
        };
        small.push(Tensor { name: format!("{}{}", tensor.name, way.suffix), dtype: way.dtype, shape, bytes });
    }
    [small, wide]
}

fn logits(path: &Path) -> Vec<u32> {
    let builder = Engine::builder(path).text(TextFiles::Skip).device(DeviceChoice::Cpu).ctx_size(16);
    let mut engine = pollster::block_on(builder.open()).unwrap();
    match pollster::block_on(engine.session().append(&[3, 1, 4, 1, 5], LogitsRequest::All)).unwrap() {
        Logits::All(logits) => logits.into_iter().map(f32::to_bits).collect(),
        Logits::Top(_) => panic!("all logits"),
    }
}

fn with_quantization(folder: &Path, quantization: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = quantization;
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn matrices_of_8_bits_with_scales_are_their_values_in_bf16() {
    let root = tempfile::tempdir().unwrap();
    let [plain, small, wide] = ["plain", "small", "wide"].map(|name| root.path().join(name));
    let shape = LlamaShape { hidden_size: 54, ffn_size: 99, head_size: 18, n_heads: 3, n_kv_heads: 1, tied: false, ..LlamaShape::tiny() };
    for folder in [&plain, &small, &wide] {
        write_hf(folder, &shape, 7, Stored::BF16, 1).unwrap();
    }
    let plain = Checkpoint::open(&plain, IoMode::Pread).unwrap();
    let float = |strategy: &str| json!({"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": strategy}}});
    for (way, quantization) in [
        (
            Way { suffix: "_scale_inv", block: [16, 32], dtype: "F32", has_dimensions: true },
            json!({"quant_method": "fp8", "weight_block_size": [16, 32]}),
        ),
        (Way { suffix: "_scale_inv", block: [0, 0], dtype: "F32", has_dimensions: false }, json!({"quant_method": "fp8"})),
        (
            Way { suffix: "_scale", block: [1, 0], dtype: "BF16", has_dimensions: true },
            json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": float("channel")}),
        ),
        (Way { suffix: "_scale", block: [1, 0], dtype: "F32", has_dimensions: false }, json!({"quant_method": "fbgemm_fp8"})),
    ] {
        let [of_small, of_wide] = both(&plain, way);
        write(&small, &of_small);
        write(&wide, &of_wide);
        with_quantization(&small, quantization.clone());
        assert!(logits(&small) == logits(&wide), "{quantization}");
    }
}

#[test]
fn scales_that_are_missing_or_wrong_are_named() {
    let root = tempfile::tempdir().unwrap();
    let [plain, folder] = ["plain", "small"].map(|name| root.path().join(name));
    for folder in [&plain, &folder] {
        write_hf(folder, &LlamaShape::tiny(), 7, Stored::BF16, 1).unwrap();
    }
    let plain = Checkpoint::open(&plain, IoMode::Pread).unwrap();
    with_quantization(&folder, json!({"quant_method": "fp8", "weight_block_size": [16, 16]}));
    let way = Way { suffix: "_scale_inv", block: [16, 16], dtype: "F32", has_dimensions: true };
    let refused = |change: &dyn Fn(&mut Vec<Tensor>, usize)| {
        let [mut tensors, _] = both(&plain, way);
        let at = tensors.iter().position(|tensor| tensor.name == "model.layers.1.mlp.up_proj.weight_scale_inv").unwrap();
        change(&mut tensors, at);
        write(&folder, &tensors);
        let builder = Engine::builder(&folder).text(TextFiles::Skip).device(DeviceChoice::Cpu);
        pollster::block_on(builder.open()).map(|_| ()).unwrap_err().to_string()
    };
    let missing = refused(&|tensors, at| drop(tensors.remove(at)));
    assert!(missing.contains("model.layers.1.mlp.up_proj.weight`") && missing.contains("without a scale"), "{missing}");
    let nan = refused(&|tensors, at| tensors[at].bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert!(nan.contains("scale 1 of tensor `model.layers.1.mlp.up_proj.weight_scale_inv` is NaN"), "{nan}");
    let shape = refused(&|tensors, at| {
        tensors[at].shape[0] += 1;
        let row = 4 * tensors[at].shape[1] as usize;
        let longer = tensors[at].bytes.len() + row;
        tensors[at].bytes.resize(longer, 0);
    });
    assert!(shape.contains("up_proj.weight_scale_inv") && shape.contains("has shape"), "{shape}");
    with_quantization(&folder, json!({"quant_method": "awq", "bits": 4}));
    let method = refused(&|_, _| {});
    assert!(method.contains("`awq`") && method.contains("not supported"), "{method}");
}
