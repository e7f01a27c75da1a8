//! Models that exist as headers only: a config becomes a catalog by hand, for tests of the planner.

use tierflow::device::{AdapterKind, Device, DeviceSpec, GpuLimits, Rates};
use tierflow::dtype::DType;
use tierflow::error::Error;
use tierflow::model::{Model, ModelConfig, RopeConfig, RopePairing, RopeScaling, Variant, families};
use tierflow::units::Bytes;
use tierflow::weights::{Catalog, Shard, TensorId, TensorInfo};

/// A small model; tests change what they are about.
pub fn config() -> ModelConfig {
    ModelConfig {
        family: families::by_name("llama").expect("a family of that name"),
        name: "test".into(),
        vocab_size: 320,
        hidden_size: 64,
        ffn_size: 160,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_size: 16,
        context_length: 512,
        rms_norm_epsilon: 1e-5,
        rope: RopeConfig { theta: 10_000.0, pairs: RopePairing::NeoX, scaling: RopeScaling::None },
        sliding_window: None,
        n_full_attention_layers: 0,
        attention_bias: false,
        attention_output_bias: false,
        ffn_bias: false,
        qk_norm: false,
        tied_embeddings: false,
        variant: Variant::default(),
    }
}

/// A catalog with every tensor that `config` asks for, stored as `dtype` says for its name, and its model.
pub fn model(config: &ModelConfig, dtype: impl Fn(&str) -> DType) -> (Catalog, Model) {
    let tensors = std::cell::RefCell::new(Vec::<TensorInfo>::new());
    let ids = std::cell::RefCell::new(std::collections::HashMap::<String, TensorId>::new());
    let find = |name: &str, shape: &[u64]| -> Result<TensorId, Error> {
        let mut tensors = tensors.borrow_mut();
        if let Some(&id) = ids.borrow().get(name) {
            return Ok(id);
        }
        // A tensor whose rows are no whole blocks is stored plainly, as converters do.
        let columns = if shape.len() < 2 { shape.iter().product() } else { shape[1] };
        let wanted = dtype(name);
        let dtype = if u64::is_multiple_of(columns, wanted.block_len()) && shape.len() == 2 { wanted } else { DType::F32 };
        let size_bytes = Bytes(dtype.size_bytes(shape.iter().product()).expect("sizes that a reader accepts"));
        // One behind the other, and in as many files as sizes beyond all reason need.
        let behind = |last: &TensorInfo| match last.offset.checked_add(last.size_bytes.0).filter(|end| *end < 1 << 62) {
            Some(end) => (last.shard, end.next_multiple_of(32)),
            None => (last.shard + 1, 0),
        };
        let (shard, offset) = tensors.last().map_or((0, 0), behind);
        tensors.push(TensorInfo { name: name.into(), dtype, shape: shape.into(), shard, offset, size_bytes });
        let id = TensorId(tensors.len() as u32 - 1);
        ids.borrow_mut().insert(name.into(), id);
        Ok(id)
    };
    let model = Model::new(config, &find).expect("every tensor is there");
    let tensors = tensors.into_inner();
    let n_shards = tensors.last().map_or(0, |last| last.shard as usize + 1);
    (Catalog::new(vec![Shard { path: "test.gguf".into(), size_bytes: Bytes(u64::MAX) }; n_shards], tensors), model)
}

/// An adapter, host memory and a disk, with these capacities.
pub fn devices(gpu: Bytes, kind: AdapterKind, limits: GpuLimits, host: Bytes) -> Vec<DeviceSpec> {
    let spec = |device: Device, capacity: Option<Bytes>| DeviceSpec {
        device,
        name: format!("test {device}"),
        vendor: 0,
        driver: String::new(),
        kind: None,
        capacity,
        capacity_source: "test".into(),
        limits: None,
        rates: Rates::default(),
    };
    vec![
        DeviceSpec { kind: Some(kind), limits: Some(limits), ..spec(Device::Gpu(0), Some(gpu)) },
        spec(Device::Cpu, Some(host)),
        spec(Device::Disk, None),
    ]
}
