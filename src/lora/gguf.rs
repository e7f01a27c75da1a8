//! A GGUF file with an adapter, as llama.cpp's `convert_lora_to_gguf.py` writes it: the matrix `X.weight` of a model's file has
//! `X.weight.lora_a` and `X.weight.lora_b`, the rows of the second in the order of such files.

use std::collections::BTreeMap;

use super::matrices::{Halves, linear_of};
use super::{Adapter, Settings};
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::weights::gguf;

/// What names its kind, and what kind that is.
const KIND: [(&str, &str); 2] = [("general.type", "adapter"), ("adapter.type", "lora")];
/// Over the rank what the matrices are multiplied by. Where it is 0 or absent, they count as they are.
const ALPHA: &str = "adapter.lora.alpha";
const INVOCATION_TOKENS: &str = "adapter.alora.invocation_tokens";

/// Reads the adapter in `source`.
pub(super) fn read(source: &dyn ByteSource) -> Result<Adapter> {
    let invalid = |reason: String| Error::invalid_file(source.path(), reason);
    let mut heads = [gguf::Head::read(source)?];
    for (key, expected) in KIND {
        if heads[0].metadata.string(key)? != Some(expected) {
            return Err(invalid(format!("is no LoRA adapter: the metadata key `{key}` is not `{expected}`")));
        }
    }
    if heads[0].metadata.get(INVOCATION_TOKENS).is_some() {
        let reason = format!("`{INVOCATION_TOKENS}` is set: activation by tokens (aLoRA), which is not supported; train it as plain LoRA");
        return Err(Error::UnsupportedModel { path: source.path().to_owned(), reason });
    }
    let alpha = heads[0].metadata.float(ALPHA)?.unwrap_or(0.0);
    if !alpha.is_finite() {
        return Err(invalid(format!("the metadata key `{ALPHA}` is {alpha}, it must be a number")));
    }
    let catalog = gguf::join(&mut heads, &|name| name.to_owned())?;
    let mut found: BTreeMap<&str, Halves<'_>> = BTreeMap::new();
    for tensor in &catalog.tensors {
        let halves = [".weight.lora_a", ".weight.lora_b"].map(|suffix| tensor.name.strip_suffix(suffix));
        let (index, module) = match halves {
            [Some(module), None] => (0, module),
            [None, Some(module)] => (1, module),
            _ => return Err(invalid(format!("tensor `{}` is no .weight.lora_a and no .weight.lora_b", tensor.name))),
        };
        // Names in a file differ: no second one can be there.
        found.entry(module).or_default()[index] = Some(tensor);
    }
    let mut ranks: Vec<(String, usize)> = Vec::new();
    let mut linears = BTreeMap::new();
    for (module, halves) in found {
        let [Some(down), Some(up)] = halves else {
            return Err(invalid(format!("`{module}` has one of .weight.lora_a and .weight.lora_b; both are needed")));
        };
        let mut linear = linear_of(source, [down, up])?;
        linear.scaling = if alpha == 0.0 { 1.0 } else { (alpha / linear.rank as f64) as f32 };
        ranks.push((regex::escape(module), linear.rank));
        linears.insert(module.to_owned(), linear);
    }
    let Some((_, rank)) = ranks.first().cloned() else { return Err(invalid("has no .weight.lora_a and no .weight.lora_b".into())) };
    let alphas = if alpha == 0.0 { ranks.iter().map(|(module, rank)| (module.clone(), *rank as f64)).collect() } else { Vec::new() };
    ranks.retain(|(_, other)| *other != rank);
    let settings = Settings { ranks, alphas, ..Settings::new(rank, alpha, linears.keys().cloned().collect()) };
    Ok(Adapter { path: source.path().to_owned(), settings, linears, norms: BTreeMap::new() })
}
