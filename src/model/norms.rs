//! The norms of a model as modules of transformers: where their weights are stored, and how far those are from transformers' own.

use std::collections::BTreeMap;

use super::{Model, Op};
use crate::weights::{Catalog, TensorId};

/// A norm of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// `[width]`
    pub weight: TensorId,
    /// `[width]`, if it has one.
    pub bias: Option<TensorId>,
    /// Values that are normed together.
    pub width: usize,
    /// What stored weights are larger by than those of transformers.
    pub stored_offset: f32,
}

/// Families whose norms have in transformers what is added to 1, and in GGUF files the sum.
const ADD_ONE: [&str; 6] = ["gemma2", "gemma3_text", "nemotron", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"];

impl Model {
    /// Its norms by the names of their modules in transformers, as far as they have weights. `is_gguf` says whether `catalog` is that of a GGUF file.
    pub fn norms(&self, catalog: &Catalog, is_gguf: bool) -> BTreeMap<String, Norm> {
        let weighted = self.units.iter().flat_map(|unit| &unit.ops).filter_map(|op| match op {
            Op::RmsNorm(norm) => Some((norm.weight?, None, norm.group_size)),
            Op::LayerNorm(norm) => Some((norm.weight, norm.bias, norm.group_size)),
            _ => None,
        });
        let named = weighted.filter_map(|(weight, bias, width)| {
            let module = catalog[weight].name.strip_suffix(".weight")?;
            let adds_one = is_gguf && ADD_ONE.contains(&self.config.family.name) && !module.contains(".linear_attn.");
            Some((module.to_owned(), Norm { weight, bias, width, stored_offset: if adds_one { 1.0 } else { 0.0 } }))
        });
        named.collect()
    }
}
