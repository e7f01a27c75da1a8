//! The linears of a model as modules of transformers: which products compute each, and which of its rows.

use std::collections::BTreeMap;

use super::{Model, ModelConfig, Op, RopePairing, UnitKind};
use crate::weights::{Catalog, Order};

/// A linear of transformers, computed by one product or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// Values that it reads.
    pub n_inputs: usize,
    /// The products that compute it.
    pub parts: Vec<LinearPart>,
}

/// A product that computes a linear, or some of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearPart {
    /// Its unit.
    pub unit: usize,
    /// Which of the unit's operations it is.
    pub op: usize,
    /// What it is called in the names of tensors, where there are several.
    pub name: Option<String>,
    /// For each of its rows the row of the linear that it is.
    pub rows: Vec<usize>,
    /// The same of the linear's matrix as GGUF files have it.
    pub gguf_rows: Vec<usize>,
}

impl Linear {
    /// Values that it gives.
    pub fn n_outputs(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }
}

/// Families whose heads pair neighbouring values in transformers, too.
const PAIR_NEIGHBOURS: [&str; 7] = ["cohere", "ernie4_5", "ernie4_5_moe", "glm4", "deepseek_v2", "deepseek_v3", "llama4_text"];

impl Model {
    /// Its linears by the names of their modules in transformers, as far as plain products compute them. `is_gguf` says whether `catalog` is
    /// that of a GGUF file: some of them have rows in another order.
    pub fn linears(&self, catalog: &Catalog, is_gguf: bool) -> BTreeMap<String, Linear> {
        let mut linears: BTreeMap<String, Linear> = BTreeMap::new();
        for (index, unit) in self.units.iter().enumerate() {
            for (op, what) in unit.ops.iter().enumerate() {
                let Op::MatMul { weight, output, .. } = what else { continue };
                let tensor = &catalog[*weight];
                let (whole, part) = tensor.name.split_once(':').map_or((tensor.name.as_str(), None), |(name, part)| (name, Some(part)));
                // A head may be the embedding's matrix.
                let is_head = unit.kind == UnitKind::Head && *output == self.logits;
                let module = if is_head { Some(self.config.family.names.head) } else { whole.strip_suffix(".weight") };
                let Some(module) = module.filter(|module| !(is_gguf && is_tiled(module))) else { continue };
                let [rows, gguf_rows] = rows_of(&self.config, module, part, tensor.n_rows() as usize, is_gguf);
                let n_inputs = tensor.n_columns() as usize;
                let linear = linears.entry(module.to_owned()).or_insert_with(|| Linear { n_inputs, parts: Vec::new() });
                linear.parts.push(LinearPart { unit: index, op, name: part.map(str::to_owned), rows, gguf_rows });
            }
        }
        linears
    }
}

/// Whether files have the rows and columns of a module head by head in an order that is not undone here.
fn is_tiled(module: &str) -> bool {
    module.contains(".linear_attn.")
}

/// The rows of the linear that a product with `n_rows` rows computes, in transformers and in GGUF files.
fn rows_of(config: &ModelConfig, module: &str, part: Option<&str>, n_rows: usize, is_gguf: bool) -> [Vec<usize>; 2] {
    if let Some(part) = part {
        let stored = (config.family.stored)(config);
        let whole = stored.iter().find(|stored| module.ends_with(stored.suffix));
        let Some((whole, index)) = whole.and_then(|whole| Some((whole, whole.parts.iter().position(|(name, _)| *name == part)?))) else {
            return [Vec::new(), Vec::new()];
        };
        let before = whole.parts[..index].iter().map(|(_, n_rows)| n_rows).sum::<usize>();
        let stacked: Vec<usize> = (before..before + n_rows).collect();
        return match whole.order {
            Some(Order::ByHeads { n_heads, parts }) => {
                let [of_part, in_head, of_head] =
                    [parts[index], parts[..index].iter().sum(), parts.iter().sum()].map(|n_rows: u64| n_rows as usize);
                let of_head = |head: usize| (0..of_part).map(move |row| head * of_head + in_head + row);
                let by_heads: Vec<usize> = (0..n_heads as usize).flat_map(of_head).collect();
                let in_file = if whole.is_so_in_gguf { by_heads.clone() } else { stacked };
                [by_heads, in_file]
            }
            _ => [stacked.clone(), stacked],
        };
    }
    let projection = module.rsplit('.').next().unwrap_or_default();
    let is_paired_otherwise = is_gguf && config.rope.pairs == RopePairing::Interleaved && !PAIR_NEIGHBOURS.contains(&config.family.name);
    let n_heads = match projection {
        "q_proj" => config.n_heads,
        "k_proj" => config.n_kv_heads,
        _ => 0,
    };
    let in_file: Vec<usize> = (0..n_rows).collect();
    if !is_paired_otherwise || n_heads == 0 {
        return [in_file.clone(), in_file];
    }
    // The rows of both halves of a head are in turns.
    let head_size = n_rows / n_heads;
    let paired = |row: usize| row / head_size * head_size + row % head_size / 2 + row % 2 * (head_size / 2);
    [(0..n_rows).map(paired).collect(), in_file]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_turned_pairs_are_those_of_both_halves_in_turns() {
        let family = super::super::families::by_name("llama").unwrap();
        assert!(!PAIR_NEIGHBOURS.contains(&family.name));
        assert!(PAIR_NEIGHBOURS.iter().all(|name| super::super::families::by_name(name).is_some()), "families of these names");
        assert!(is_tiled("model.layers.0.linear_attn.in_proj_qkv") && !is_tiled("model.layers.0.self_attn.q_proj"));
    }
}
