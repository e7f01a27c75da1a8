//! Adapters of low rank (LoRA; Hu et al. 2021): a linear of a model that computes `W·x` computes `W·x + scaling · B·(A·x)` with one.
//! Reads and writes them as PEFT does, and gives them to models.

pub(crate) mod apply;
mod gguf;
mod matrices;
pub(crate) mod norms;
mod peft;
mod settings;

use std::collections::BTreeMap;

pub use apply::{Scaled, Scales, Summary, apply};
pub use norms::NormValues;
pub use settings::{Settings, Targets};

/// An adapter: what it adds to the linears of a model, and which norms it replaces.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Where it was read, for messages.
    pub path: String,
    /// What `adapter_config.json` says.
    pub settings: Settings,
    /// By the names of the modules in transformers, such as `model.layers.0.self_attn.q_proj`; of an adapter in a GGUF file by those of
    /// such files, `blk.0.attn_q`.
    pub linears: BTreeMap<String, LowRank>,
    /// Norms that it replaces, by the names of their modules in transformers.
    pub norms: BTreeMap<String, NormValues>,
}

/// What an adapter adds to one linear.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Rows of `down`, columns of `up`.
    pub rank: usize,
    /// Values that the linear reads.
    pub n_inputs: usize,
    /// Values that it gives.
    pub n_outputs: usize,
    /// A, row by row: `[rank, n_inputs]`.
    pub down: Vec<f32>,
    /// B, row by row: `[n_outputs, rank]`.
    pub up: Vec<f32>,
    /// What B·A is multiplied by.
    pub scaling: f32,
}

impl Adapter {
    /// Values that it has in all.
    pub fn n_values(&self) -> u64 {
        let of_norms = self.norms.values().map(|norm| norm.weight.len() + norm.bias.as_ref().map_or(0, Vec::len));
        self.linears.values().map(|linear| linear.down.len() + linear.up.len()).chain(of_norms).sum::<usize>() as u64
    }
}
