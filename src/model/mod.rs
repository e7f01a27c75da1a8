//! Models as data: a checkpoint's config becomes units, a unit becomes a list of operations.
//! Knows neither tiers nor budgets: a model does not know where it lives.

mod checkpoint;
mod coded_weights;
mod config;
mod config_gguf;
mod config_json;
mod constants;
mod expert_tensors;
mod experts;
pub mod families;
mod gguf_names;
mod latent_tensors;
mod limits;
mod linears;
mod norms;
mod op;
mod packed_weights;
mod scaled_weights;
mod stage;
mod to_gguf;
mod value;

use serde::Serialize;

use crate::error::Result;
use crate::weights::TensorId;
pub(crate) use checkpoint::text_module;
pub use checkpoint::{Checkpoint, Format};
pub use config::{
    Heads, Latent, ModelConfig, NormKind, Recurrent, RecurrentKind, RopeConfig, RopePairing, RopeScaling, RopeTable, Temperature, Variant,
};
pub use experts::{ExpertNames, Experts, SharedExpert};
pub use families::Family;
pub(crate) use gguf_names::translate as hugging_face_name;
pub use linears::{Linear, LinearPart};
pub use norms::Norm;
pub use op::{
    Activation, Attention, Conv, CopyPart, DeltaRule, ExpertGroups, ExpertMatMul, Function, HeadMatMul, LayerNorm, LoraMatMul, Op, RmsNorm,
    Rope, Route, Scores, State, StateKind, StoreKv,
};
pub(crate) use op::{EXPERT_INPUTS_AT_ONCE, share_experts};
pub use to_gguf::{AsGguf, GgufTensor, Origin, as_gguf};
pub use value::{Rows, Value, ValueId};

/// A whole model: its units in the order of the computation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    /// Sizes and settings.
    pub config: ModelConfig,
    /// The values that its operations read and write.
    pub values: Vec<Value>,
    /// The angles that heads are rotated by; operations name them by their index.
    pub rope_tables: Vec<RopeTable>,
    /// The residual stream, which goes from unit to unit. `[n_tokens, hidden_size]`
    pub hidden: ValueId,
    /// What goes from unit to unit besides: first what is embedded, in the order of its tables, then what later units read of earlier ones.
    pub carried: Vec<ValueId>,
    /// What the head gives: a number for every token of the vocabulary, `[n_rows, vocab_size]`; of a model [without its
    /// head](Model::without_head), what the head would read, `[n_rows, hidden_size]`; of a [stage](Model::stage) before the last layer, its
    /// residual stream.
    pub logits: ValueId,
    /// What the sequence of each token multiplies each LoRA adapter by, `[n_tokens, n_adapters]`, of a model whose sequences choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_scales: Option<ValueId>,
    /// The units: embedding first, then attention and feed-forward of every layer, together where they read the same, the head last.
    pub units: Vec<Unit>,
}

/// The smallest thing that is placed and executed whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unit {
    /// The module's name in a Hugging Face checkpoint (`model.layers.0.self_attn`), as device maps write it.
    pub name: String,
    /// Which part of the model it is.
    pub kind: UnitKind,
    /// What it computes, in order.
    pub ops: Vec<Op>,
}

/// The parts a model is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// Token ids become vectors; rows are gathered on the host.
    Embedding,
    /// Norm, projections, attention over the cache or what stands in its place (a convolution, the delta rule), residual.
    Attention {
        /// Which layer.
        layer: usize,
    },
    /// Norm, gated feed-forward, residual.
    FeedForward {
        /// Which layer.
        layer: usize,
    },
    /// Both parts of a layer, where they read the same residual stream.
    Layer {
        /// Which one.
        layer: usize,
    },
    /// Last norm and the scores of all tokens.
    Head,
}

impl UnitKind {
    /// The layer it belongs to, if any.
    pub fn layer(self) -> Option<usize> {
        match self {
            UnitKind::Attention { layer } | UnitKind::FeedForward { layer } | UnitKind::Layer { layer } => Some(layer),
            UnitKind::Embedding | UnitKind::Head => None,
        }
    }
}

impl Model {
    /// Lists the units of `config`'s family. `tensor(name, shape)` finds a tensor or says what is wrong with it.
    ///
    /// # Errors
    /// Those of `tensor`: a tensor is missing or has another shape than the config demands.
    pub fn new(config: &ModelConfig, tensor: &dyn Fn(&str, &[u64]) -> Result<TensorId>) -> Result<Model> {
        (config.family.model)(config, tensor)
    }

    /// The same model without the product of its head, for embeddings: a forward ends with the normed last hidden states.
    #[must_use]
    pub fn without_head(mut self) -> Model {
        let logits = self.logits;
        let Some(head) = self.units.last_mut() else { return self };
        let product = head.ops.iter().enumerate().find_map(|(at, op)| match op {
            Op::MatMul { input, output, .. } if *output == logits => Some((at, *input)),
            _ => None,
        });
        if let Some((at, input)) = product {
            head.ops.truncate(at);
            self.logits = input;
            self.values[usize::from(logits.0)].width = 0;
        }
        self
    }

    /// Whether tokens see what stands behind them, so that all of a text must go into one forward.
    pub fn is_encoder(&self) -> bool {
        self.units.iter().flat_map(|unit| &unit.ops).any(|op| matches!(op, Op::Attention(attention) if !attention.is_causal))
    }

    /// Whether its forwards give logits.
    pub fn has_head(&self) -> bool {
        self.units.last().is_some_and(|unit| unit.matrices().next().is_some())
    }

    /// Values in one row of what a forward gives: of the vocabulary, or of the hidden state where the head is left out.
    pub fn output_width(&self) -> usize {
        self.value(self.logits).width
    }

    /// Whether it keeps states that only a sequence's next token or its first one can follow.
    pub fn is_recurrent(&self) -> bool {
        // Of a stage, layers elsewhere may keep them.
        self.config.variant.recurrent.as_ref().is_some_and(|recurrent| recurrent.layers.contains(&true))
    }

    /// What value `id` is.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[usize::from(id.0)]
    }

    /// The keys and values of a layer, if it keeps some.
    pub fn cache_of(&self, layer: usize) -> Option<&StoreKv> {
        self.caches().find(|store| store.layer == layer)
    }

    /// The cache of every layer, in their order, as the operations that fill them say. Each belongs to one unit.
    pub fn caches(&self) -> impl Iterator<Item = &StoreKv> {
        self.units.iter().filter_map(Unit::cache)
    }

    /// All values with their ids.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        (0..).map(ValueId).zip(&self.values)
    }

    /// The values that one device passes on to the next: the residual stream, and what is carried with it.
    pub fn passed_on(&self) -> impl Iterator<Item = ValueId> + '_ {
        [self.hidden].into_iter().chain(self.carried.iter().copied())
    }

    /// The embedding matrix, `[vocab_size, hidden_size]`.
    pub fn embedding(&self) -> Option<TensorId> {
        self.embeddings().next().map(|(table, _)| table)
    }

    /// The matrices whose rows tokens name, the embedding first, and what their rows are multiplied by. They become the first of the
    /// values that are [passed on](Model::passed_on), in the same order.
    pub fn embeddings(&self) -> impl Iterator<Item = (TensorId, f32)> + '_ {
        self.units.iter().flat_map(|unit| &unit.ops).filter_map(|op| match op {
            Op::Embed { table, scale, .. } => Some((*table, *scale)),
            _ => None,
        })
    }

    /// What is added to the embedding by position, `[context_length, hidden_size]`, where positions are learned.
    pub fn positions(&self) -> Option<TensorId> {
        self.units.iter().flat_map(|unit| &unit.ops).find_map(|op| match op {
            Op::Embed { positions, .. } => *positions,
            _ => None,
        })
    }
}

impl Unit {
    /// The matrices whose rows may be sliced and streamed, in the order of their use.
    pub fn matrices(&self) -> impl Iterator<Item = TensorId> + '_ {
        self.ops.iter().filter_map(Op::matrix)
    }

    /// The cache that it fills, if it has one.
    pub fn cache(&self) -> Option<&StoreKv> {
        self.ops.iter().find_map(|op| match op {
            Op::StoreKv(store) => Some(store),
            _ => None,
        })
    }

    /// The states that it keeps, if any.
    pub fn states(&self) -> impl Iterator<Item = State> + '_ {
        self.ops.iter().filter_map(Op::state)
    }

    /// Norm weights, biases, taps of convolutions and the matrices of LoRA adapters: small, always resident where the unit is executed.
    pub fn vectors(&self) -> impl Iterator<Item = TensorId> + '_ {
        self.ops
            .iter()
            .flat_map(|op| match op {
                Op::RmsNorm(norm) => [norm.weight, None],
                Op::LayerNorm(norm) => [Some(norm.weight), norm.bias],
                Op::Conv(conv) => [Some(conv.weight), conv.bias],
                Op::DeltaRule(rule) => [Some(rule.decay), Some(rule.bias)],
                Op::AddBias { bias, .. } => [Some(*bias), None],
                Op::Route(route) => [route.bias, route.factors],
                Op::LoraMatMul(op) => [Some(op.matrix), None],
                Op::Attention(attention) => [attention.sinks, None],
                Op::AddExpertBias { bias, .. } => [Some(*bias), None],
                _ => [None, None],
            })
            .flatten()
    }
}
