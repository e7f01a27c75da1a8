//! The operations that units ask for, as data: each carries all that its kernels need to know of the model. Who runs them, and on
//! what memory, is not known here.

use serde::Serialize;

use crate::model::{RopePairs, ValueId};
use crate::weights::TensorId;

/// One operation. Formulas stand in the kernel of the same name.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// `output` = the rows of `table` that the token ids name.
    Embed {
        /// `[vocab_size, hidden_size]`
        table: TensorId,
        /// `[n_tokens, hidden_size]`
        output: ValueId,
    },
    /// Root-mean-square norm.
    RmsNorm(RmsNorm),
    /// `output[t, r]` = Σₖ `weight[r, k]` · `input[t, k]`.
    MatMul {
        /// `[n_tokens, n_columns]`
        input: ValueId,
        /// `[n_rows, n_columns]`
        weight: TensorId,
        /// `[n_tokens, n_rows]`
        output: ValueId,
    },
    /// `target[t, i]` += `bias[i]`.
    AddBias {
        /// `[width]`
        bias: TensorId,
        /// What it is added to.
        target: ValueId,
    },
    /// Rotary embedding of queries and keys; keys and values go to the cache.
    RopeKv(RopeKv),
    /// Causal attention over a layer's cache.
    Attention(Attention),
    /// `output` = silu(`gate`) · `up`.
    SwiGlu {
        /// `[n_tokens, ffn_size]`
        gate: ValueId,
        /// As `gate`.
        up: ValueId,
        /// As `gate`.
        output: ValueId,
    },
    /// `target` += `input`.
    Add {
        /// What is added.
        input: ValueId,
        /// What it is added to: the residual stream.
        target: ValueId,
    },
    /// `output` = the rows of `input` whose logits are asked for.
    GatherRows {
        /// `[n_tokens, width]`
        input: ValueId,
        /// `[n_rows, width]`
        output: ValueId,
    },
}

/// `output` = `input` over the root of its mean square, times `weight`; each group of a row is normed for itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RmsNorm {
    /// What is normed.
    pub input: ValueId,
    /// `[group_size]`
    pub weight: TensorId,
    /// The result, as wide as `input`.
    pub output: ValueId,
    /// Values that are normed together: those of a row, or of a head.
    pub group_size: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// Turns the heads of `query` and `key` by their positions; `key` and `value` go to the cache of `layer`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RopeKv {
    /// Which layer's cache.
    pub layer: usize,
    /// `[n_tokens, n_heads, head_size]`
    pub query: ValueId,
    /// `[n_tokens, n_kv_heads, head_size]`
    pub key: ValueId,
    /// As `key`.
    pub value: ValueId,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Values of a head; even.
    pub head_size: usize,
    /// Which values of a head turn together.
    pub pairs: RopePairs,
}

/// `output` = attention of `query` over the cache of `layer`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Attention {
    /// Which layer's cache.
    pub layer: usize,
    /// `[n_tokens, n_heads, head_size]`
    pub query: ValueId,
    /// As `query`.
    pub output: ValueId,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_size: usize,
    /// Latest positions that a token sees, its own included; `None` sees all.
    pub window: Option<usize>,
    /// What the products of query and key are multiplied by.
    pub scale: f32,
}
