//! Folders whose matrices are 8-bit floats or packed 4-bit integers with scales: they are what their values are.

use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use tierflow::DType;
use tierflow::device::DeviceChoice;
use tierflow::engine::{Engine, TextFiles};
use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;
use tierflow::stream::{Logits, LogitsRequest};
use xtask::models::{LlamaShape, Stored, write_hf};

/// A tensor as safetensors have it.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

/// The only file of a folder's tensors.
pub fn write(folder: &Path, tensors: &[Tensor]) {
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
            (0..rows * columns).map(|index| ((index * 37 + number as u64) % 107) as u8 | ((index % 3) << 7) as u8).collect();
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

/// The bits of the logits of a few tokens.
pub fn logits(path: &Path) -> Vec<u32> {
    let builder = Engine::builder(path).text(TextFiles::Skip).device(DeviceChoice::Cpu).ctx_size(16);
    let mut engine = pollster::block_on(builder.open()).unwrap();
    match pollster::block_on(engine.session().append(&[3, 1, 4, 1, 5], LogitsRequest::All)).unwrap() {
        Logits::All(logits) => logits.into_iter().map(f32::to_bits).collect(),
        Logits::Top(_) => panic!("all logits"),
    }
}

/// Puts that into the folder's config.
pub fn with_quantization(folder: &Path, quantization: Value) {
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
    with_quantization(&folder, json!({"quant_method": "hqq", "bits": 4}));
    let method = refused(&|_, _| {});
    assert!(method.contains("`hqq`") && method.contains("not supported"), "{method}");
}

/// The tensors of a model whose matrices in layers are packed 4-bit integers, with groups of 32 columns, and the same in F32.
fn packed(plain: &Checkpoint) -> [Vec<Tensor>; 2] {
    let (mut small, mut wide) = (Vec::new(), Vec::new());
    for (number, tensor) in plain.catalog.tensors.iter().enumerate() {
        let mut bytes = vec![0; tensor.size_bytes.0 as usize];
        plain.sources[tensor.shard as usize].read_at(tensor.offset, &mut bytes).unwrap();
        let named = |suffix: &str, dtype, shape: &[u64], bytes| Tensor {
            name: format!("{}{suffix}", tensor.name),
            dtype,
            shape: shape.into(),
            bytes,
        };
        let (&[rows, columns], true) = (tensor.shape.as_slice(), tensor.name.contains("layers")) else {
            small.push(named("", "F32", &tensor.shape, bytes.clone()));
            wide.push(named("", "F32", &tensor.shape, bytes));
            continue;
        };
        let integer = |index: u64| (index * 11 + number as u64 * 5) / 3 % 16;
        let scale = |group: u64| bf16::from_f32(0.01 + (group * 7 % 23) as f32 * 0.001);
        let word = |first: u64| (0..8).fold(0u32, |word, k| word | (integer(first + k) as u32) << (4 * k));
        let words = (0..rows * columns / 8).flat_map(|index| word(8 * index).to_le_bytes());
        small.push(named("_packed", "I32", &[rows, columns / 8], words.collect()));
        small.push(named("_shape", "I64", &[2], [rows, columns].into_iter().flat_map(u64::to_le_bytes).collect()));
        let scales = (0..rows * columns / 32).flat_map(|group| scale(group).to_le_bytes());
        small.push(named("_scale", "BF16", &[rows, columns / 32], scales.collect()));
        let values = (0..rows * columns).map(|index| (integer(index) as f32 - 8.0) * scale(index / 32).to_f32());
        wide.push(named("", "F32", &[rows, columns], values.flat_map(f32::to_le_bytes).collect()));
    }
    [small, wide]
}

#[test]
fn packed_integers_are_q4_0_of_the_same_values() {
    let root = tempfile::tempdir().unwrap();
    let [plain, small, wide] = ["plain", "small", "wide"].map(|name| root.path().join(name));
    for folder in [&plain, &small, &wide] {
        write_hf(folder, &LlamaShape::tiny(), 7, Stored::F32, 1).unwrap();
    }
    let plain = Checkpoint::open(&plain, IoMode::Pread).unwrap();
    let [of_small, of_wide] = packed(&plain);
    write(&small, &of_small);
    write(&wide, &of_wide);
    let weights = json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32});
    with_quantization(
        &small,
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}}),
    );
    let [found, expected] = [&small, &wide].map(|path| Checkpoint::open(path, IoMode::Pread).unwrap());
    let mut n_packed = 0;
    for tensor in &expected.catalog.tensors {
        let values = |checkpoint: &Checkpoint| {
            let id = checkpoint.expect(&tensor.name, &tensor.shape).unwrap();
            let info = &checkpoint.catalog[id];
            let mut bytes = vec![0; info.size_bytes.0 as usize];
            checkpoint.read(id, 0, &mut bytes).unwrap();
            let mut values = vec![f32::NAN; info.n_values() as usize];
            info.dtype.decode(&bytes, &mut values);
            (info.dtype, values)
        };
        let ((dtype, found), (_, expected)) = (values(&found), values(&expected));
        n_packed += usize::from(dtype == DType::Q4_0);
        assert!(found == expected, "{}", tensor.name);
    }
    assert!(n_packed >= 14, "{n_packed}");
    let [found, expected] = [&small, &wide].map(|path| logits(path).into_iter().map(f32::from_bits).collect::<Vec<f32>>());
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 2e-3 * largest));

    let refused = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let [mut tensors, _] = packed(&plain);
        change(&mut tensors);
        write(&small, &tensors);
        Checkpoint::open(&small, IoMode::Pread).unwrap_err().to_string()
    };
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let at = |tensors: &[Tensor], suffix: &str| tensors.iter().position(|tensor| tensor.name == format!("{NAME}{suffix}")).unwrap();
    let scale = refused(&|tensors| drop(tensors.remove(at(tensors, "_scale"))));
    assert!(scale.contains(&format!("`{NAME}_scale` is missing")), "{scale}");
    let order = refused(&|tensors| {
        let place = at(tensors, "_shape");
        tensors[place].name = format!("{NAME}_g_idx");
    });
    assert!(order.contains(&format!("`{NAME}_g_idx` are not supported")), "{order}");
    let shape = refused(&|tensors| {
        let place = at(tensors, "_shape");
        tensors[place].bytes[0] ^= 1;
    });
    assert!(shape.contains(&format!("`{NAME}_packed` has shape")), "{shape}");
    let absurd = refused(&|tensors| {
        let place = at(tensors, "_shape");
        tensors[place].bytes[15] = 0xFF;
    });
    assert!(absurd.contains("absurd size"), "{absurd}");
    let small_scale = refused(&|tensors| {
        let place = at(tensors, "_scale");
        tensors[place].bytes[..2].copy_from_slice(&bf16::from_f32(1.1e-7).to_le_bytes());
    });
    assert!(small_scale.contains("F16 cannot hold"), "{small_scale}");
}
