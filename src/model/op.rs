//! The operations that units ask for, as data: each carries all that its kernels need to know of the model. Who runs them, and on
//! what memory, is not known here.

use serde::Serialize;

use crate::model::{RopePairing, ValueId};
use crate::weights::TensorId;

/// One operation. Formulas stand in the kernel of the same name.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// `output` = the rows of `table` that the token ids name.
    Embed {
        /// `[vocab_size, hidden_size]`
        table: TensorId,
        /// What they are multiplied by.
        scale: f32,
        /// `[context_length, hidden_size]`: the rows that are added by the tokens' positions, where positions are learned.
        positions: Option<TensorId>,
        /// `[n_tokens, hidden_size]`
        output: ValueId,
    },
    /// Root-mean-square norm.
    RmsNorm(RmsNorm),
    /// Layer norm.
    LayerNorm(LayerNorm),
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
    /// Rotary embedding of heads, in place.
    Rope(Rope),
    /// Keys and values go to a layer's cache.
    StoreKv(StoreKv),
    /// Causal attention over a layer's cache.
    Attention(Attention),
    /// Products of heads, each with a matrix of its own.
    HeadMatMul(HeadMatMul),
    /// A product with one of the matrices of a LoRA adapter.
    LoraMatMul(LoraMatMul),
    /// Some values of each head go to some of another value.
    CopyPart(CopyPart),
    /// Causal convolution over a sequence, each channel for itself.
    Conv(Conv),
    /// The gated delta rule over a sequence.
    DeltaRule(DeltaRule),
    /// `output` = activation(`gate`) · `up`.
    Glu {
        /// Of the gate.
        activation: Activation,
        /// `[n_tokens, ffn_size]`
        gate: ValueId,
        /// As `gate`.
        up: ValueId,
        /// As `gate`.
        output: ValueId,
    },
    /// `target` = function(`target`), value by value.
    Map {
        /// Which one.
        function: Function,
        /// Any value.
        target: ValueId,
    },
    /// Which experts each token takes, and by which weights.
    Route(Route),
    /// Products with the matrices of the chosen experts.
    ExpertMatMul(ExpertMatMul),
    /// `output[t, j, i]` = `weight[t, j]` · `input[t, i]`, with the weights that the experts were chosen by.
    WeighInputs {
        /// `[n_tokens, width]`
        input: ValueId,
        /// As [`Route::routing`].
        routing: ValueId,
        /// `[n_tokens, n_used, width]`
        output: ValueId,
    },
    /// `output[t, i]` = Σⱼ `weight[t, j]` · `input[t, j, i]`, with the weights that the experts were chosen by; or without any.
    SumExperts {
        /// `[n_tokens, n_used, width]`
        input: ValueId,
        /// As [`Route::routing`].
        routing: ValueId,
        /// `[n_tokens, width]`
        output: ValueId,
        /// Whether there are weights.
        is_weighted: bool,
    },
    /// `target[t, j, i]` += `bias[e, i]`, where e is the `j`th expert of token t.
    AddExpertBias {
        /// `[n_experts, width]`
        bias: TensorId,
        /// As [`Route::routing`].
        routing: ValueId,
        /// `[n_tokens, n_used, width]`
        target: ValueId,
    },
    /// `target[t, i]` *= sigmoid(`gate[t]`).
    GateRows {
        /// `[n_tokens, 1]`
        gate: ValueId,
        /// `[n_tokens, width]`
        target: ValueId,
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

impl Op {
    /// The matrix whose rows may be sliced and streamed, of an operation that multiplies one.
    pub fn matrix(&self) -> Option<TensorId> {
        match self {
            Op::MatMul { weight, .. } | Op::ExpertMatMul(ExpertMatMul { weight, .. }) | Op::HeadMatMul(HeadMatMul { weight, .. }) => {
                Some(*weight)
            }
            _ => None,
        }
    }

    /// The product with experts that it is, if it is one.
    pub(crate) fn experts(&self) -> Option<&ExpertMatMul> {
        match self {
            Op::ExpertMatMul(op) => Some(op),
            _ => None,
        }
    }
}

/// What the gate of a feed-forward part goes through, or its up projection where it has no gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x / (1 + exp(−x))`
    Silu,
    /// The Gaussian error linear unit in the approximation by tanh (Hendrycks, Gimpel 2016):
    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`
    GeluTanh,
    /// The Gaussian error linear unit itself: `x / 2 · (1 + erf(x / √2))`
    Gelu,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    ReluSquared,
    /// That of gpt-oss: `x' / (1 + exp(−1.702 · x'))` with `x' = min(x, 7)`; an up projection `u` is `min(max(u, −7), 7) + 1` beside it.
    ClampedSilu,
    /// `x` itself.
    Identity,
    /// `1 / (1 + exp(−x))`
    Sigmoid,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 8] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::Gelu,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::ClampedSilu,
        Activation::Identity,
        Activation::Sigmoid,
    ];
}

/// A function of single values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// `x · factor`
    Scale(f32),
    /// `cap · tanh(x / cap)`
    Softcap(f32),
    /// An activation.
    Activation(Activation),
}

/// Chooses `n_used` of `n_experts` experts for each token: those of the best scores, of equal ones the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Route {
    /// `[n_tokens, n_experts]`
    pub logits: ValueId,
    /// `[n_experts]`: added to the scores that experts are chosen by, and not to their weights.
    pub bias: Option<TensorId>,
    /// `[n_experts]`: what the weights of each expert are multiplied by besides.
    pub factors: Option<TensorId>,
    /// `[n_tokens, 2, n_used]`: numbers of the experts, the best first, and their weights.
    pub routing: ValueId,
    /// Experts.
    pub n_experts: usize,
    /// Experts of a token; at most `n_experts`.
    pub n_used: usize,
    /// What scores are.
    pub scores: Scores,
    /// Whether the weights of a token are divided by their sum.
    pub normalises: bool,
    /// What weights are multiplied by.
    pub scale: f32,
    /// Where experts are chosen from some groups of them only.
    pub groups: Option<ExpertGroups>,
}

/// What the scores of experts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum Scores {
    /// `exp(logit)`, over the sum of it of all experts.
    Softmax = 0,
    /// `1 / (1 + exp(−logit))`
    Sigmoid = 1,
}

/// Experts in groups of the same size, one behind the other; those of other than the best groups are not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExpertGroups {
    /// Groups; divides the number of experts.
    pub n_groups: usize,
    /// Groups that experts are chosen from; with room for all that are chosen.
    pub n_used: usize,
    /// A group is as good as the sum of its so many best experts: 1 or 2.
    pub n_best: usize,
}

/// Inputs of experts that the host brings together at once, unless one expert has more: those of a few tokens, whose experts are multiplied
/// side by side.
pub(crate) const EXPERT_INPUTS_AT_ONCE: usize = 64;

/// Whether adapters multiply the tokens of one expert together, so that its rows are read once for them: where there are more than are
/// multiplied one by one of dense products, and enough for each expert on the average. Software keeps rows in the processor's caches: one by
/// one, 64 tokens with 4 for each expert took a fifth of the time, and 256 tokens with 16 less than half.
pub(crate) fn share_experts(n_tokens: usize, n_used: usize, n_experts: usize, is_software: bool) -> bool {
    const ONE_BY_ONE: usize = 8;
    let least_per_expert = if is_software { 64 } else { 4 };
    n_tokens > ONE_BY_ONE && n_tokens.saturating_mul(n_used) >= n_experts.saturating_mul(least_per_expert)
}

/// `output[t, j, r]` = Σₖ `weight[e, r, k]` · `input[t, j, k]`, where e is the `j`th expert of token t. The matrices of all experts are
/// one behind the other, so that any rows of them are slices of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExpertMatMul {
    /// `[n_tokens, n_used, n_columns]`; or `[n_tokens, n_columns]`, which all experts of a token read.
    pub input: ValueId,
    /// As [`Route::routing`].
    pub routing: ValueId,
    /// `[n_experts · n_rows, n_columns]`
    pub weight: TensorId,
    /// `[n_tokens, n_used, n_rows]`
    pub output: ValueId,
    /// Experts.
    pub n_experts: usize,
    /// Experts of a token.
    pub n_used: usize,
    /// Rows of an expert's matrix.
    pub n_rows: usize,
    /// Its columns.
    pub n_columns: usize,
}

/// `output[t, h, r]` = Σₖ `weight[h, r, k]` · `input[t, h, k]`. The matrices of all heads are one behind the other, so that any rows of
/// them are slices of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HeadMatMul {
    /// `[n_tokens, n_heads, n_columns]`
    pub input: ValueId,
    /// `[n_heads · n_rows, n_columns]`
    pub weight: TensorId,
    /// `[n_tokens, n_heads, n_rows]`
    pub output: ValueId,
    /// Heads.
    pub n_heads: usize,
    /// Rows of a head's matrix.
    pub n_rows: usize,
    /// Its columns.
    pub n_columns: usize,
}

/// `output[t, r]` = Σₖ `matrix[r, k]` · `input[t, k]`, or that is added to `output`. The matrix is small, unquantised, and stays where its
/// unit is computed, as vectors do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoraMatMul {
    /// `[n_tokens, n_columns]`
    pub input: ValueId,
    /// `[n_rows, n_columns]`
    pub matrix: TensorId,
    /// `[n_tokens, n_rows]`
    pub output: ValueId,
    /// Rows of the matrix.
    pub n_rows: usize,
    /// Its columns.
    pub n_columns: usize,
    /// Whether the product is added to the output.
    pub accumulates: bool,
}

/// `output[t, h, to + i]` = `input[t, h, from + i]`, for `len` values of each head.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CopyPart {
    /// `[n_tokens, n_heads, …]`
    pub input: ValueId,
    /// `[n_tokens, n_heads, …]`
    pub output: ValueId,
    /// Heads of both.
    pub n_heads: usize,
    /// The first value that is read of each head.
    pub from: usize,
    /// The first value that is written of each head.
    pub to: usize,
    /// How many.
    pub len: usize,
}

/// `output` = `input` over the root of its mean square, times `weight` + `weight_offset` where there is a weight; each group of a row is
/// normed for itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RmsNorm {
    /// What is normed.
    pub input: ValueId,
    /// `[group_size]`; `None` multiplies nothing.
    pub weight: Option<TensorId>,
    /// The result, as wide as `input`.
    pub output: ValueId,
    /// Values that are normed together: those of a row, or of a head.
    pub group_size: usize,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to each weight: 1 where a checkpoint stores by how much weights differ from 1.
    pub weight_offset: f32,
}

/// `output` = (`input` − its mean) over its standard deviation, times `weight` + `weight_offset`, plus `bias`; of each group of a row for itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerNorm {
    /// What is normed.
    pub input: ValueId,
    /// `[group_size]`
    pub weight: TensorId,
    /// `[group_size]`; `None` adds nothing.
    pub bias: Option<TensorId>,
    /// The result, as wide as `input`.
    pub output: ValueId,
    /// Values that are normed together: those of a row, or of a head.
    pub group_size: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Added to each weight: 1 where a checkpoint stores by how much weights differ from 1.
    pub weight_offset: f32,
}

/// Turns the heads of `heads` by their positions, in place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rope {
    /// `[n_tokens, n_heads, head_size]`
    pub heads: ValueId,
    /// How many there are: query heads, or key heads.
    pub n_heads: usize,
    /// Values of a head; even.
    pub head_size: usize,
    /// Values of a head that turn, from the first on; even. The others stay as they are.
    pub rotary_size: usize,
    /// Which values turn together.
    pub pairs: RopePairing,
    /// By which angles: index into [`Model::rope_tables`](crate::model::Model::rope_tables), for heads of `rotary_size`.
    pub table: usize,
}

impl Rope {
    /// Whether other heads turn as these do.
    pub fn turns_like(&self, other: &Rope) -> bool {
        let how = |rope: &Rope| (rope.head_size, rope.rotary_size, rope.pairs, rope.table);
        how(self) == how(other)
    }
}

/// `key` and `value` go to the cache of `layer`, which has the shape that stands here.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StoreKv {
    /// Which layer's cache.
    pub layer: usize,
    /// `[n_tokens, n_kv_heads, head_size]`
    pub key: ValueId,
    /// As `key`; `None`: keys are the values as well, and kept once.
    pub value: Option<ValueId>,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a head; even.
    pub head_size: usize,
}

impl StoreKv {
    /// Caches of a layer that are as large as its keys: those, and its values where they are others.
    pub fn n_caches(&self) -> u64 {
        1 + u64::from(self.value.is_some())
    }
}

/// `output[t, c]` = `bias[c]` + Σₖ `weight[c, n_taps − 1 − k]` · `input[t − k, c]`, where `t − k` is the token `k` positions before `t` in its
/// sequence, if there is one. The layer's state keeps the latest `n_taps` inputs of each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Conv {
    /// Which layer's state.
    pub layer: usize,
    /// `[n_tokens, width]`
    pub input: ValueId,
    /// `[width, n_taps]`
    pub weight: TensorId,
    /// `[width]`; `None` adds nothing.
    pub bias: Option<TensorId>,
    /// As `input`.
    pub output: ValueId,
    /// Channels.
    pub width: usize,
    /// Positions that an output depends on, its own included.
    pub n_taps: usize,
}

/// Each head's queries read from a matrix that its keys and values change, token by token; the formula stands in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DeltaRule {
    /// Which layer's state.
    pub layer: usize,
    /// `[n_tokens, 2 · n_key_heads · key_size + n_value_heads · value_size]`: queries, keys, values
    pub input: ValueId,
    /// What decides how much of the state is kept, `[n_tokens, n_value_heads]`
    pub alpha: ValueId,
    /// What decides how much of it is changed, as `alpha`
    pub beta: ValueId,
    /// `[n_value_heads]`: minus the rate at which heads forget, or its logarithm
    pub decay: TensorId,
    /// Whether it is the logarithm of the rate.
    pub decay_is_log: bool,
    /// Added to `alpha`, `[n_value_heads]`
    pub bias: TensorId,
    /// `[n_tokens, n_value_heads, value_size]`
    pub output: ValueId,
    /// Heads of queries, and of keys.
    pub n_key_heads: usize,
    /// Heads of values; a multiple of `n_key_heads`.
    pub n_value_heads: usize,
    /// Values of a query's or key's head.
    pub key_size: usize,
    /// Values of a value's head.
    pub value_size: usize,
    /// Whether value head `h` has key head `h mod n_key_heads`; otherwise consecutive value heads share one.
    pub is_tiled: bool,
}

/// What a layer keeps of each sequence besides keys and values: as many f32 values however long the sequence is. It is that after the
/// sequence's last token, so that a sequence goes on from there or begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct State {
    /// Which layer's.
    pub layer: usize,
    /// Of which operation.
    pub kind: StateKind,
    /// Values of one sequence.
    pub n_values: u64,
}

/// The operations that keep a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateKind {
    /// [`Conv`]: `[n_taps, width]`, the input of position `p` in row `p mod n_taps`.
    Conv,
    /// [`DeltaRule`]: `[n_value_heads, key_size, value_size]`.
    DeltaRule,
}

impl Op {
    /// What it keeps of each sequence, if anything.
    pub fn state(&self) -> Option<State> {
        match self {
            Op::Conv(conv) => {
                Some(State { layer: conv.layer, kind: StateKind::Conv, n_values: (conv.width as u64).saturating_mul(conv.n_taps as u64) })
            }
            Op::DeltaRule(rule) => {
                let sizes = [rule.n_value_heads, rule.key_size, rule.value_size];
                let n_values = sizes.iter().fold(1u64, |all, size| all.saturating_mul(*size as u64));
                Some(State { layer: rule.layer, kind: StateKind::DeltaRule, n_values })
            }
            _ => None,
        }
    }
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
    /// A token sees the positions less than so many away; `None` sees all.
    pub window: Option<usize>,
    /// Whether windows are chunks: a token sees the positions since the last multiple of `window`.
    pub in_chunks: bool,
    /// Whether a token sees no position behind its own.
    pub is_causal: bool,
    /// What the products of query and key are multiplied by.
    pub scale: f32,
    /// Each product `x` becomes `cap · tanh(x / cap)` then; `None` leaves it.
    pub softcap: Option<f32>,
    /// `[n_heads]`: one more score of each head, with no value.
    pub sinks: Option<TensorId>,
}
