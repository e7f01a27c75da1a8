//! What APIs tell of a model: its size, its main dtype, a digest.

use sha2::{Digest, Sha256};

use crate::device::Device;
use crate::handle::EngineHandle;
use crate::model::Format;

/// Facts that do not change while the model is served.
pub(super) struct Facts {
    pub(super) family: &'static str,
    pub(super) format: &'static str,
    pub(super) n_parameters: u64,
    pub(super) size_bytes: u64,
    /// Bytes on GPUs, as planned.
    pub(super) gpu_bytes: u64,
    /// The dtype of most bytes.
    pub(super) dtype: String,
    /// Of the tensors' names, dtypes, shapes and places: two models that differ in these have two digests.
    pub(super) digest: String,
}

impl Facts {
    pub(super) fn of(engine: &EngineHandle) -> Facts {
        let prepared = engine.prepared();
        let catalog = &prepared.checkpoint.catalog;
        let on_gpus = engine.plan().devices.iter().filter(|device| matches!(device.device, Device::Gpu(_)));
        let described = serde_json::to_vec(&catalog.tensors).unwrap_or_default();
        Facts {
            family: engine.config().family.name,
            format: if matches!(prepared.checkpoint.format, Format::Gguf) { "gguf" } else { "safetensors" },
            n_parameters: catalog.n_values(),
            size_bytes: catalog.size_bytes().0,
            gpu_bytes: on_gpus.map(|device| device.used.total().0).sum(),
            dtype: catalog.bytes_by_dtype().into_iter().max_by_key(|(_, bytes)| *bytes).map(|(dtype, _)| dtype).unwrap_or_default(),
            digest: Sha256::digest(described).iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// The parameters as Ollama writes them: `8.0B`, `134.52M`.
    pub(super) fn parameter_size(&self) -> String {
        let n = self.n_parameters as f64;
        match self.n_parameters {
            1_000_000_000.. => format!("{:.1}B", n / 1e9),
            1_000_000.. => format!("{:.2}M", n / 1e6),
            1_000.. => format!("{:.2}K", n / 1e3),
            few => few.to_string(),
        }
    }
}
