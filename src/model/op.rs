//! The operations a layer asks for, as data. Who runs them, and on what memory, is not known here.

use serde::Serialize;

use crate::weights::{ModelConfig, TensorId};

/// A named intermediate value of a forward; each row belongs to one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The residual stream. `[n_tokens, hidden_size]`
    Hidden,
    /// The residual stream after a norm. `[n_tokens, hidden_size]`
    Normed,
    /// Queries. `[n_tokens, n_heads, head_size]`
    Query,
    /// Keys of this forward's tokens. `[n_tokens, n_kv_heads, head_size]`
    Key,
    /// Values of this forward's tokens. `[n_tokens, n_kv_heads, head_size]`
    Value,
    /// What attention mixed. `[n_tokens, n_heads, head_size]`
    Mixed,
    /// The gate of the feed-forward part. `[n_tokens, ffn_size]`
    Gate,
    /// What the gate lets through. `[n_tokens, ffn_size]`
    Up,
    /// What came through. `[n_tokens, ffn_size]`
    Gated,
    /// What a unit adds to the residual stream. `[n_tokens, hidden_size]`
    Delta,
    /// The rows of `Hidden` whose logits are asked for. `[n_rows, hidden_size]`
    Picked,
    /// `Picked` after the last norm. `[n_rows, hidden_size]`
    Final,
    /// Scores of all tokens. `[n_rows, vocab_size]`
    Logits,
}

impl Activation {
    /// All of them, in the order of their first use.
    pub const ALL: [Activation; 13] = [
        Activation::Hidden,
        Activation::Normed,
        Activation::Query,
        Activation::Key,
        Activation::Value,
        Activation::Mixed,
        Activation::Gate,
        Activation::Up,
        Activation::Gated,
        Activation::Delta,
        Activation::Picked,
        Activation::Final,
        Activation::Logits,
    ];

    /// Values in one row.
    pub fn width(self, config: &ModelConfig) -> usize {
        match self {
            Activation::Hidden | Activation::Normed | Activation::Delta | Activation::Picked | Activation::Final => config.hidden_size,
            Activation::Query | Activation::Mixed => config.query_size(),
            Activation::Key | Activation::Value => config.kv_size(),
            Activation::Gate | Activation::Up | Activation::Gated => config.ffn_size,
            Activation::Logits => config.vocab_size,
        }
    }

    /// Whether only the head computes with it.
    pub fn is_of_head(self) -> bool {
        matches!(self, Activation::Picked | Activation::Final | Activation::Logits)
    }

    /// Rows it has: one per token, or one per position whose logits are asked for.
    pub fn n_rows(self, n_tokens: usize, n_logit_rows: usize) -> usize {
        if self.is_of_head() { n_logit_rows } else { n_tokens }
    }
}

/// One operation. Formulas stand in the kernel of the same name.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// `Hidden` = the rows of `table` that the token ids name.
    Embed {
        /// `[vocab_size, hidden_size]`
        table: TensorId,
    },
    /// `output` = `input` over its root mean square, times `weight`.
    RmsNorm {
        /// What is normalised.
        input: Activation,
        /// `[width]`
        weight: TensorId,
        /// The result.
        output: Activation,
    },
    /// `output[t, r]` = Σₖ `weight[r, k]` · `input[t, k]`.
    MatMul {
        /// `[n_tokens, n_columns]`
        input: Activation,
        /// `[n_rows, n_columns]`
        weight: TensorId,
        /// `[n_tokens, n_rows]`
        output: Activation,
    },
    /// `target[t, i]` += `bias[i]`.
    AddBias {
        /// `[width]`
        bias: TensorId,
        /// What it is added to.
        target: Activation,
    },
    /// Turns the heads of `Query` and `Key` by their positions; `Key` and `Value` go to the cache of `layer`.
    RopeKv {
        /// Which layer's cache.
        layer: usize,
    },
    /// `Mixed` = attention of `Query` over the cache of `layer`.
    Attention {
        /// Which layer's cache.
        layer: usize,
    },
    /// `Gated` = silu(`Gate`) · `Up`.
    SwiGlu,
    /// `Hidden` += `Delta`.
    AddResidual,
    /// `Picked` = the rows of `Hidden` whose logits are asked for.
    PickRows,
}

/// Whether operation `op` of a unit needs no dispatch of its own where what stands before it is computed in the same place: a
/// product is added to the residual stream as it is made, and products of one input are made together.
pub fn is_joined(ops: &[Op], op: usize) -> bool {
    let Some((last, before)) = ops.get(..=op).and_then(<[Op]>::split_last) else { return false };
    match last {
        Op::AddResidual => matches!(before.last(), Some(Op::MatMul { output: Activation::Delta, .. })),
        Op::MatMul { input, .. } => {
            let product = before.iter().rfind(|other| !matches!(other, Op::AddBias { .. }));
            matches!(product, Some(Op::MatMul { input: other, .. }) if other == input)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_one_input_and_what_is_only_added_are_joined() {
        let product = |input, output| Op::MatMul { input, weight: TensorId(0), output };
        let ops = [
            product(Activation::Normed, Activation::Query),
            Op::AddBias { bias: TensorId(1), target: Activation::Query },
            product(Activation::Normed, Activation::Key),
            Op::Attention { layer: 0 },
            product(Activation::Mixed, Activation::Delta),
            Op::AddResidual,
            product(Activation::Mixed, Activation::Delta),
            Op::AddBias { bias: TensorId(1), target: Activation::Delta },
            Op::AddResidual,
        ];
        let joined: Vec<usize> = (0..=ops.len()).filter(|&op| is_joined(&ops, op)).collect();
        assert_eq!(joined, [2, 5], "a bias that is added first keeps the sum apart");
    }
}
