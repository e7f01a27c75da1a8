//! The forward pass of Llama and of what is built like it as a list of operations, top to bottom. Families say by a [`Layout`] what
//! their layers are made of, by a [`Variant`](crate::model::Variant) which numbers they have.

use super::Tensors;
use crate::error::Result;
use crate::model::{Attention, Function, Model, ModelConfig, Op, RmsNorm, Rope, StoreKv, Unit, UnitKind, Value, ValueId};

const HIDDEN: ValueId = ValueId(0);
const NORMED: ValueId = ValueId(1);
const QUERY: ValueId = ValueId(2);
const KEY: ValueId = ValueId(3);
const VALUE: ValueId = ValueId(4);
const ATTENTION: ValueId = ValueId(5);
const GATE: ValueId = ValueId(6);
const UP: ValueId = ValueId(7);
const GATED: ValueId = ValueId(8);
const DELTA: ValueId = ValueId(9);
const LAST: ValueId = ValueId(10);
const LAST_NORMED: ValueId = ValueId(11);
const LOGITS: ValueId = ValueId(12);
/// Of families that norm queries and keys: both as they are before.
const PLAIN_QUERY: ValueId = ValueId(13);
const PLAIN_KEY: ValueId = ValueId(14);

/// What the layers of a family are made of: norms and matrices by their names in a layer.
pub(super) struct Layout {
    /// Norm of what attention reads.
    pub(super) before_attention: Option<&'static str>,
    /// Norm of what attention gives.
    pub(super) after_attention: Option<&'static str>,
    /// Norm of what the feed-forward part reads.
    pub(super) before_ffn: Option<&'static str>,
    /// Norm of what the feed-forward part gives.
    pub(super) after_ffn: Option<&'static str>,
    /// Where queries and keys are normed, whole rows are, not each head for itself.
    pub(super) norms_whole_rows: bool,
    /// Queries, keys and values. `name:part` is a part of a matrix that holds several, [`Family::stacked`](super::Family::stacked).
    pub(super) projections: [&'static str; 3],
    /// Gate and up projection.
    pub(super) gate_up: [&'static str; 2],
}

/// That of Llama, and of most.
pub(super) const LLAMA: Layout = Layout {
    before_attention: Some("input_layernorm"),
    after_attention: None,
    before_ffn: Some("post_attention_layernorm"),
    after_ffn: None,
    norms_whole_rows: false,
    projections: ["q_proj", "k_proj", "v_proj"],
    gate_up: ["gate_proj", "up_proj"],
};

/// A decoder of this layout; tensor names as Hugging Face checkpoints write them.
pub(super) fn model(config: &ModelConfig, tensor: &Tensors<'_>, layout: &Layout) -> Result<Model> {
    let ropes = [&config.rope].into_iter().chain(&config.variant.local_rope);
    let rope_tables = ropes.map(|rope| rope.table(config.rotary_size())).collect();
    let units = Units { config, tensor, layout }.all()?;
    Ok(Model { config: config.clone(), values: values(config), rope_tables, hidden: HIDDEN, logits: LOGITS, units })
}

/// In the order of the ids above.
fn values(config: &ModelConfig) -> Vec<Value> {
    let mut values = vec![
        Value::of_tokens("hidden state", config.hidden_size),
        Value::of_tokens("normed hidden state", config.hidden_size),
        Value::of_heads("queries", config.n_heads, config.head_size),
        Value::of_tokens("keys", config.kv_size()),
        Value::of_tokens("values", config.kv_size()),
        Value::of_heads("attention output", config.n_heads, config.head_size),
        Value::of_tokens("gate", config.ffn_size),
        Value::of_tokens("up projection", config.ffn_size),
        Value::of_tokens("gated up projection", config.ffn_size),
        Value::of_tokens("output of a unit", config.hidden_size),
        Value::of_logits("last hidden states", config.hidden_size),
        Value::of_logits("normed last hidden states", config.hidden_size),
        Value::of_logits("logits", config.vocab_size),
    ];
    if config.qk_norm {
        values.push(Value::of_tokens("queries before their norm", config.query_size()));
        values.push(Value::of_tokens("keys before their norm", config.kv_size()));
    }
    values
}

struct Units<'a> {
    config: &'a ModelConfig,
    tensor: &'a Tensors<'a>,
    layout: &'a Layout,
}

impl Units<'_> {
    fn all(&self) -> Result<Vec<Unit>> {
        let config = self.config;
        let (vocab_size, hidden_size) = (config.vocab_size as u64, config.hidden_size as u64);
        let embedding = (self.tensor)("model.embed_tokens.weight", &[vocab_size, hidden_size])?;
        let embed = Op::Embed { table: embedding, scale: config.variant.embedding_scale, output: HIDDEN };
        let mut units = vec![Unit { name: "model.embed_tokens".into(), kind: UnitKind::Embedding, ops: vec![embed] }];
        for layer in 0..config.n_layers {
            units.push(self.attention(layer)?);
            units.push(self.feed_forward(layer)?);
        }
        let head = if config.tied_embeddings { embedding } else { (self.tensor)("lm_head.weight", &[vocab_size, hidden_size])? };
        let mut ops = vec![
            Op::GatherRows { input: HIDDEN, output: LAST },
            self.norm("model.norm", LAST, LAST_NORMED, config.hidden_size)?,
            Op::MatMul { input: LAST_NORMED, weight: head, output: LOGITS },
        ];
        if config.variant.logit_scale != 1.0 {
            ops.push(Op::Map { function: Function::Scale(config.variant.logit_scale), target: LOGITS });
        }
        if let Some(cap) = config.variant.logit_softcap {
            ops.push(Op::Map { function: Function::Softcap(cap), target: LOGITS });
        }
        units.push(Unit { name: "lm_head".into(), kind: UnitKind::Head, ops });
        Ok(units)
    }

    fn attention(&self, layer: usize) -> Result<Unit> {
        let (config, layout) = (self.config, self.layout);
        let ModelConfig { n_heads, n_kv_heads, head_size, .. } = *config;
        let (hidden_size, query_size, kv_size) = (config.hidden_size, config.query_size(), config.kv_size());
        let name = format!("model.layers.{layer}.self_attn");
        let mut ops = Vec::new();
        let input = self.norm_before(&mut ops, layer, layout.before_attention)?;
        let (query, key) = if config.qk_norm { (PLAIN_QUERY, PLAIN_KEY) } else { (QUERY, KEY) };
        let [query_name, key_name, value_name] = layout.projections;
        for (part, n_rows, output) in [(query_name, query_size, query), (key_name, kv_size, key), (value_name, kv_size, VALUE)] {
            self.matrix(&mut ops, &name, part, [n_rows, hidden_size], [input, output], config.attention_bias)?;
        }
        if config.qk_norm {
            for (part, input, output, row_size) in [("q_norm", PLAIN_QUERY, QUERY, query_size), ("k_norm", PLAIN_KEY, KEY, kv_size)] {
                let group_size = if layout.norms_whole_rows { row_size } else { head_size };
                ops.push(self.norm(&format!("{name}.{part}"), input, output, group_size)?);
            }
        }
        if config.is_rotated(layer) {
            let table = usize::from(config.variant.local_rope.is_some() && config.is_windowed(layer));
            let (rotary_size, pairs) = (config.rotary_size(), config.rope.pairs);
            for (heads, n_heads) in [(QUERY, n_heads), (KEY, n_kv_heads)] {
                ops.push(Op::Rope(Rope { heads, n_heads, head_size, rotary_size, pairs, table }));
            }
        }
        ops.push(Op::StoreKv(StoreKv { layer, key: KEY, value: VALUE, n_kv_heads, head_size }));
        let window = config.sliding_window.filter(|_| config.is_windowed(layer));
        let scale = config.variant.attention_scale.unwrap_or(1.0 / (head_size as f32).sqrt());
        let softcap = config.variant.attention_softcap;
        let attention =
            Attention { layer, query: QUERY, output: ATTENTION, n_heads, n_kv_heads, head_size, window, is_causal: true, scale, softcap };
        ops.push(Op::Attention(attention));
        self.matrix(&mut ops, &name, "o_proj", [hidden_size, query_size], [ATTENTION, DELTA], config.attention_output_bias)?;
        self.add_delta(&mut ops, layer, layout.after_attention)?;
        Ok(Unit { name, kind: UnitKind::Attention { layer }, ops })
    }

    fn feed_forward(&self, layer: usize) -> Result<Unit> {
        let (config, layout) = (self.config, self.layout);
        let ModelConfig { hidden_size, ffn_size, ffn_bias, .. } = *config;
        let name = format!("model.layers.{layer}.mlp");
        let mut ops = Vec::new();
        let input = self.norm_before(&mut ops, layer, layout.before_ffn)?;
        for (part, output) in layout.gate_up.into_iter().zip([GATE, UP]) {
            self.matrix(&mut ops, &name, part, [ffn_size, hidden_size], [input, output], ffn_bias)?;
        }
        ops.push(Op::Glu { activation: config.variant.activation, gate: GATE, up: UP, output: GATED });
        self.matrix(&mut ops, &name, "down_proj", [hidden_size, ffn_size], [GATED, DELTA], ffn_bias)?;
        self.add_delta(&mut ops, layer, layout.after_ffn)?;
        Ok(Unit { name, kind: UnitKind::FeedForward { layer }, ops })
    }

    /// A product, and its bias. `name:part` is a part of the matrix `name`.
    fn matrix(
        &self,
        ops: &mut Vec<Op>,
        module: &str,
        name: &str,
        shape: [usize; 2],
        [input, output]: [ValueId; 2],
        has_bias: bool,
    ) -> Result<()> {
        let shape = shape.map(|size| size as u64);
        let stored = match name.split_once(':') {
            Some((name, part)) => format!("{module}.{name}.weight:{part}"),
            None => format!("{module}.{name}.weight"),
        };
        ops.push(Op::MatMul { input, weight: (self.tensor)(&stored, &shape)?, output });
        if has_bias {
            ops.push(Op::AddBias { bias: (self.tensor)(&format!("{module}.{name}.bias"), &shape[..1])?, target: output });
        }
        Ok(())
    }

    /// What a part of a layer reads: the residual stream, normed where the layout has a norm there.
    fn norm_before(&self, ops: &mut Vec<Op>, layer: usize, norm: Option<&str>) -> Result<ValueId> {
        let Some(norm) = norm else { return Ok(HIDDEN) };
        ops.push(self.norm(&format!("model.layers.{layer}.{norm}"), HIDDEN, NORMED, self.config.hidden_size)?);
        Ok(NORMED)
    }

    /// What a part of a layer gives is added to the residual stream; normed and scaled before, where the model has it so.
    fn add_delta(&self, ops: &mut Vec<Op>, layer: usize, norm: Option<&str>) -> Result<()> {
        let mut delta = DELTA;
        if let Some(norm) = norm {
            // What the part has read is not needed any more.
            ops.push(self.norm(&format!("model.layers.{layer}.{norm}"), DELTA, NORMED, self.config.hidden_size)?);
            delta = NORMED;
        }
        if self.config.variant.residual_scale != 1.0 {
            ops.push(Op::Map { function: Function::Scale(self.config.variant.residual_scale), target: delta });
        }
        ops.push(Op::Add { input: delta, target: HIDDEN });
        Ok(())
    }

    fn norm(&self, module: &str, input: ValueId, output: ValueId, group_size: usize) -> Result<Op> {
        let weight = (self.tensor)(&format!("{module}.weight"), &[group_size as u64])?;
        let (epsilon, weight_offset) = (self.config.rms_norm_epsilon, self.config.variant.norm_weight_offset);
        Ok(Op::RmsNorm(RmsNorm { input, weight, output, group_size, epsilon, weight_offset }))
    }
}
