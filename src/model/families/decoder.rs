//! The forward pass of Llama and of what is built like it as a list of operations, top to bottom. Families say by a [`Layout`] what
//! their layers are made of, by a [`Variant`](crate::model::Variant) which numbers they have.

mod latent;
mod layer_embeddings;
pub(super) mod recurrent;

use super::experts::{self, ExpertIds, Router};
use super::{Names, Tensors};
use crate::error::Result;
use crate::model::{
    Activation, Attention, CopyPart, Experts, Function, Heads, LayerNorm, Model, ModelConfig, NormKind, Op, RmsNorm, Rope, StoreKv, Unit,
    UnitKind, Value, ValueId,
};
use crate::weights::TensorId;

/// The values of a decoder.
struct Ids {
    hidden: ValueId,
    normed: ValueId,
    /// Those of heads; where layers that see everything have others, these come second.
    heads: Vec<HeadIds>,
    /// Those of the feed-forward part; where layers that share keys and values have a wider one, its come second.
    ffn: Vec<FfnIds>,
    delta: ValueId,
    last: ValueId,
    last_normed: ValueId,
    logits: ValueId,
    /// What the output of attention is gated by, where it is.
    output_gate: Option<ValueId>,
    /// What attention over latent vectors works with.
    latent: Option<latent::Ids>,
    /// What layers without attention work with.
    recurrent: Option<recurrent::Ids>,
    /// What layers with embeddings of their own work with.
    layer_embeddings: Option<layer_embeddings::Ids>,
    /// Those of experts, where there are any.
    experts: Option<ExpertIds>,
    /// What a plain feed-forward part beside experts gives, normed, and what their router reads.
    beside: Option<[ValueId; 2]>,
}

/// The values of a layer's heads.
struct HeadIds {
    query: ValueId,
    key: ValueId,
    value: ValueId,
    attention: ValueId,
    /// Queries and keys before their norms, where they are normed.
    plain: Option<[ValueId; 2]>,
    /// Values before their norm, where they are normed.
    plain_value: Option<ValueId>,
    /// Keys before they turn, where other layers read them later.
    kept: Option<ValueId>,
}

/// The values of a feed-forward part.
struct FfnIds {
    /// The gate, where there is one.
    gate: Option<ValueId>,
    up: ValueId,
    /// What the down projection reads: the gated up projection, or the up projection itself.
    activated: ValueId,
}

/// What the layers of a family are made of: norms and matrices by their names in a layer.
pub(super) struct Layout {
    /// Norm of what attention reads.
    pub(super) before_attention: Option<&'static str>,
    /// Norm of what attention gives.
    pub(super) after_attention: Option<&'static str>,
    /// Norm of what the feed-forward part reads; where both parts of a layer read the same, `None` means attention's.
    pub(super) before_ffn: Option<&'static str>,
    /// Norm of what the feed-forward part gives.
    pub(super) after_ffn: Option<&'static str>,
    /// Where queries and keys are normed, whole rows are, not each head for itself.
    pub(super) norms_whole_rows: bool,
    /// Whether such norms have no weights, and are in layers alone that turn queries and keys.
    pub(super) norms_turned_only: bool,
    /// Queries, keys and values. `name:part` is a part of a matrix that holds several, [`Family::stored`](super::Family::stored).
    pub(super) projections: [&'static str; 3],
    /// What attention's output is multiplied by, through a sigmoid, where there is such a gate.
    pub(super) output_gate: Option<&'static str>,
    /// Norms of queries and of keys.
    pub(super) query_key_norms: [&'static str; 2],
    /// What layers with the delta rule compute from their input: queries, keys and values, the gate, beta and alpha.
    pub(super) delta_projections: [&'static str; 4],
    /// The output projection of attention.
    pub(super) output: &'static str,
    /// The gate of the feed-forward part, where it has one.
    pub(super) gate: Option<&'static str>,
    /// Its up projection.
    pub(super) up: &'static str,
    /// Its down projection; with a dot before it, as it is called in the layer.
    pub(super) down: &'static str,
    /// Whether a bias is added to the logits.
    pub(super) head_has_bias: bool,
    /// Whether the norms behind a part are of its sum with what the part read, not of what it gives.
    pub(super) norms_sums: bool,
    /// The table of rows for kinds of texts, the first of which is added to the embedding.
    pub(super) token_types: Option<&'static str>,
    /// Norm of the embedding.
    pub(super) embedding_norm: Option<&'static str>,
    /// Whether heads have a score besides those of positions, with no value.
    pub(super) has_sinks: bool,
    /// Whether tokens see both sides, and hidden states are the result.
    pub(super) is_encoder: bool,
}

/// That of Llama, and of most.
pub(super) const LLAMA: Layout = Layout {
    before_attention: Some("input_layernorm"),
    after_attention: None,
    before_ffn: Some("post_attention_layernorm"),
    after_ffn: None,
    norms_whole_rows: false,
    norms_turned_only: false,
    projections: ["q_proj", "k_proj", "v_proj"],
    output_gate: None,
    query_key_norms: ["q_norm", "k_norm"],
    delta_projections: ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"],
    output: "o_proj",
    gate: Some("gate_proj"),
    up: "up_proj",
    down: "down_proj",
    head_has_bias: false,
    norms_sums: false,
    token_types: None,
    embedding_norm: None,
    has_sinks: false,
    is_encoder: false,
};

/// A decoder of this layout; tensor names as Hugging Face checkpoints write them.
pub(super) fn model(config: &ModelConfig, tensor: &Tensors<'_>, layout: &Layout) -> Result<Model> {
    let ropes = [&config.rope].into_iter().chain(&config.variant.local_rope).filter(|_| !config.variant.learns_positions);
    let rotary_sizes = [config.full_rotary_size(), config.rotary_size()];
    let ropes = ropes.zip(rotary_sizes).map(|(rope, rotary_size)| rope.table(rotary_size));
    let rope_tables = ropes.chain(config.variant.temperature.map(|temperature| temperature.table(config.head_size))).collect();
    let (values, ids) = declare(config, layout);
    let logits = match (layout.is_encoder, config.variant.sees_both_sides) {
        (true, _) => ids.last,
        (false, true) => ids.last_normed,
        (false, false) => ids.logits,
    };
    let hidden = ids.hidden;
    let embedded = ids.layer_embeddings.as_ref().map(|ids| ids.all);
    let shared = ids.heads.iter().filter_map(|heads| Some([heads.kept?, heads.value])).flatten();
    let carried = embedded.into_iter().chain(shared).collect();
    let units = Units { config, tensor, layout, names: &config.family.names, ids }.all()?;
    Ok(Model { config: config.clone(), values, rope_tables, hidden, carried, logits, lora_scales: None, units })
}

fn declare(config: &ModelConfig, layout: &Layout) -> (Vec<Value>, Ids) {
    let hidden_size = config.hidden_size;
    let has_ffn = (0..config.n_layers).any(|layer| config.experts_of(layer).is_none_or(|experts| experts.beside_plain));
    let ffn_sizes = [Some(if has_ffn { config.ffn_size } else { 0 }), config.variant.sharing_ffn_size];
    let mut values = Vec::new();
    let mut declare = |value: Value| {
        values.push(value);
        ValueId(values.len() as u16 - 1)
    };
    let hidden = declare(Value::of_tokens("hidden state", hidden_size));
    let normed = declare(Value::of_tokens("normed hidden state", hidden_size));
    let usual = Heads { n_kv_heads: config.n_kv_heads, head_size: config.head_size, values_are_keys: false };
    let heads = [usual].into_iter().chain(config.variant.full_heads).map(|heads| declare_heads(config, heads, &mut declare)).collect();
    let ffn = ffn_sizes.into_iter().flatten().map(|size| declare_ffn(layout, size, &mut declare)).collect();
    let delta = declare(Value::of_tokens("output of a unit", hidden_size));
    let last = declare(Value::of_logits("last hidden states", hidden_size));
    // An encoder ends with its last hidden states, normed or not.
    let width_if = |is_computed: bool, width: usize| if is_computed { width } else { 0 };
    let last_normed = declare(Value::of_logits("normed last hidden states", width_if(!layout.is_encoder, hidden_size)));
    let has_head = !layout.is_encoder && !config.variant.sees_both_sides;
    let logits = declare(Value::of_logits("logits", width_if(has_head, config.vocab_size)));
    let output_gate = layout.output_gate.map(|_| declare(Value::of_tokens("gate of the attention output", config.query_size())));
    let latent = config.variant.latent.as_ref().map(|latent| latent::declare(config, latent, &mut declare));
    let recurrent = config.variant.recurrent.as_ref().map(|recurrent| recurrent::declare(config, recurrent.kind, &mut declare));
    let layer_embeddings = (config.variant.layer_embedding_size > 0).then(|| layer_embeddings::declare(config, &mut declare));
    let experts = config.variant.experts.as_ref().map(|experts| experts::declare(experts, hidden_size, &mut declare));
    let beside = config.variant.experts.as_ref().filter(|experts| experts.beside_plain);
    let beside = beside.map(|_| {
        [
            declare(Value::of_tokens("normed output of the plain part", hidden_size)),
            declare(Value::of_tokens("router's input", hidden_size)),
        ]
    });
    let ids = Ids {
        hidden,
        normed,
        heads,
        ffn,
        delta,
        last,
        last_normed,
        logits,
        output_gate,
        latent,
        recurrent,
        layer_embeddings,
        experts,
        beside,
    };
    (values, ids)
}

fn declare_heads(config: &ModelConfig, heads: Heads, declare: &mut dyn FnMut(Value) -> ValueId) -> HeadIds {
    let (n_heads, Heads { n_kv_heads, head_size, values_are_keys }) = (config.n_heads, heads);
    let kv_size = n_kv_heads * head_size;
    let query = declare(Value::of_heads("queries", n_heads, head_size));
    let key = declare(Value::of_tokens("keys", kv_size));
    // Latent vectors are both keys and values.
    let value = declare(Value::of_tokens("values", if config.variant.latent.is_some() { 0 } else { kv_size }));
    let attention = declare(Value::of_heads("attention output", n_heads, head_size));
    let plain = config.qk_norm.then(|| {
        let query = declare(Value::of_tokens("queries before their norm", n_heads * head_size));
        [query, declare(Value::of_tokens("keys before their norm", kv_size))]
    });
    let plain_value = config.variant.norms_values.then(|| match plain {
        Some([_, key]) if values_are_keys => key,
        _ => declare(Value::of_tokens("values before their norm", kv_size)),
    });
    let kept = (config.variant.n_kv_sharing_layers > 0).then(|| declare(Value::of_tokens("keys before they turn", kv_size)));
    HeadIds { query, key, value, attention, plain, plain_value, kept }
}

fn declare_ffn(layout: &Layout, size: usize, declare: &mut dyn FnMut(Value) -> ValueId) -> FfnIds {
    let gate = layout.gate.map(|_| declare(Value::of_tokens("gate", size)));
    let up = declare(Value::of_tokens("up projection", size));
    let activated = gate.map_or(up, |_| declare(Value::of_tokens("gated up projection", size)));
    FfnIds { gate, up, activated }
}

struct Units<'a> {
    config: &'a ModelConfig,
    tensor: &'a Tensors<'a>,
    layout: &'a Layout,
    names: &'a Names,
    ids: Ids,
}

impl Units<'_> {
    fn all(&self) -> Result<Vec<Unit>> {
        let config = self.config;
        let matrix = |name: &str, n_rows: usize| (self.tensor)(&format!("{name}.weight"), &[n_rows as u64, config.hidden_size as u64]);
        let names = self.names;
        let table = matrix(names.embedding, config.vocab_size)?;
        let positions = names.positions.filter(|_| config.variant.learns_positions);
        let positions = positions.map(|name| matrix(name, config.context_length)).transpose()?;
        let embed = Op::Embed { table, scale: config.variant.embedding_scale, positions, output: self.ids.hidden };
        let ops = [embed].into_iter().chain(self.embed_for_layers()?).collect();
        let mut units = vec![Unit { name: names.embedding.into(), kind: UnitKind::Embedding, ops }];
        for layer in 0..config.n_layers {
            if config.variant.is_parallel {
                units.push(self.layer(layer)?);
            } else {
                units.push(self.attention(layer)?);
                units.push(self.feed_forward(layer)?);
            }
        }
        if self.layout.is_encoder {
            let ops = vec![Op::GatherRows { input: self.ids.hidden, output: self.ids.last }];
            units.push(Unit { name: names.head.into(), kind: UnitKind::Head, ops });
            return Ok(units);
        }
        if config.variant.sees_both_sides {
            let norm = self.norm(names.norm, self.ids.last, self.ids.last_normed, config.hidden_size)?;
            let ops = vec![Op::GatherRows { input: self.ids.hidden, output: self.ids.last }, norm];
            units.push(Unit { name: names.head.into(), kind: UnitKind::Head, ops });
            return Ok(units);
        }
        let head = if config.tied_embeddings { table } else { matrix(names.head, config.vocab_size)? };
        units.push(Unit { name: names.head.into(), kind: UnitKind::Head, ops: self.head(head)? });
        Ok(units)
    }

    fn head(&self, weight: TensorId) -> Result<Vec<Op>> {
        let (variant, ids) = (&self.config.variant, &self.ids);
        let mut ops = vec![
            Op::GatherRows { input: ids.hidden, output: ids.last },
            self.norm(self.names.norm, ids.last, ids.last_normed, self.config.hidden_size)?,
            Op::MatMul { input: ids.last_normed, weight, output: ids.logits },
        ];
        if self.layout.head_has_bias {
            let bias = (self.tensor)(&format!("{}.bias", self.names.head), &[self.config.vocab_size as u64])?;
            ops.push(Op::AddBias { bias, target: ids.logits });
        }
        if variant.logit_scale != 1.0 {
            ops.push(Op::Map { function: Function::Scale(variant.logit_scale), target: ids.logits });
        }
        if let Some(cap) = variant.logit_softcap {
            ops.push(Op::Map { function: Function::Softcap(cap), target: ids.logits });
        }
        Ok(ops)
    }

    fn attention(&self, layer: usize) -> Result<Unit> {
        if let Some(kind) = self.config.recurrent(layer) {
            return self.recurrent(layer, kind);
        }
        let name = format!("{}.{layer}.{}", self.names.layers, self.names.attention);
        let mut ops = Vec::new();
        let read = self.embedded(&mut ops, layer)?;
        let input = self.norm_before(&mut ops, layer, self.layout.before_attention)?.unwrap_or(read);
        self.project(&mut ops, &name, layer, input)?;
        self.attend(&mut ops, &name, layer, read)?;
        Ok(Unit { name, kind: UnitKind::Attention { layer }, ops })
    }

    fn feed_forward(&self, layer: usize) -> Result<Unit> {
        let name = format!("{}.{layer}.{}", self.names.layers, self.names.ffn);
        let mut ops = Vec::new();
        let input = self.norm_before(&mut ops, layer, self.layout.before_ffn)?.unwrap_or(self.ids.hidden);
        self.transform(&mut ops, &name, layer, input)?;
        self.add_layer_embedding(&mut ops, layer)?;
        if let Some(scale) = self.config.variant.layer_scales.as_ref().and_then(|scales| scales.get(layer)) {
            ops.push(Op::Map { function: Function::Scale(*scale), target: self.ids.hidden });
        }
        Ok(Unit { name, kind: UnitKind::FeedForward { layer }, ops })
    }

    /// Both parts of a layer that read the same residual stream: what the second reads is normed before the first is added.
    fn layer(&self, layer: usize) -> Result<Unit> {
        let name = format!("{}.{layer}", self.names.layers);
        let [attention, ffn] = [self.names.attention, self.names.ffn].map(|part| format!("{name}.{part}"));
        let mut ops = Vec::new();
        let hidden = self.ids.hidden;
        let input = self.norm_before(&mut ops, layer, self.layout.before_attention)?.unwrap_or(hidden);
        self.project(&mut ops, &attention, layer, input)?;
        let input = self.norm_before(&mut ops, layer, self.layout.before_ffn)?.unwrap_or(input);
        self.attend(&mut ops, &attention, layer, hidden)?;
        self.transform(&mut ops, &ffn, layer, input)?;
        Ok(Unit { name, kind: UnitKind::Layer { layer }, ops })
    }

    /// The values of a layer's heads.
    fn head_ids(&self, layer: usize) -> &HeadIds {
        let is_full = self.config.variant.full_heads.is_some() && !self.config.is_windowed(layer);
        &self.ids.heads[usize::from(is_full)]
    }

    /// Queries, keys and values of `input`.
    fn project(&self, ops: &mut Vec<Op>, name: &str, layer: usize, input: ValueId) -> Result<()> {
        if let (Some(latent), Some(of_latent)) = (&self.config.variant.latent, &self.ids.latent) {
            return self.project_latent(ops, name, input, (latent, of_latent));
        }
        let (config, layout, ids) = (self.config, self.layout, self.head_ids(layer));
        let Heads { n_kv_heads, head_size, values_are_keys } = config.heads_of(layer);
        let (hidden_size, query_size, kv_size) = (config.hidden_size, config.n_heads * head_size, n_kv_heads * head_size);
        let plain = ids.plain.filter(|_| !layout.norms_turned_only || config.is_rotated(layer));
        let shares = config.shares_kv(layer);
        let normed_key = ids.kept.filter(|_| config.is_kv_source(layer)).unwrap_or(ids.key);
        let [query, key] = plain.unwrap_or([ids.query, normed_key]);
        let value = ids.plain_value.unwrap_or(ids.value);
        let [query_name, key_name, value_name] = layout.projections;
        let n_projected = match (shares, values_are_keys) {
            (true, _) => 1,
            (false, true) => 2,
            (false, false) => 3,
        };
        let projected = [(query_name, query_size, query), (key_name, kv_size, key), (value_name, kv_size, value)];
        for (part, n_rows, output) in projected.into_iter().take(n_projected) {
            self.matrix(ops, name, part, [n_rows, hidden_size], [input, output], config.attention_bias)?;
        }
        for (part, output) in layout.output_gate.into_iter().zip(self.ids.output_gate) {
            self.matrix(ops, name, part, [query_size, hidden_size], [input, output], config.attention_bias)?;
        }
        if plain.is_some() {
            let [query_norm, key_norm] = layout.query_key_norms;
            let normed = [(query_norm, query, ids.query, query_size), (key_norm, key, normed_key, kv_size)];
            for (part, input, output, row_size) in normed.into_iter().take(if shares { 1 } else { 2 }) {
                let group_size = if layout.norms_whole_rows { row_size } else { head_size };
                ops.push(match layout.norms_turned_only {
                    // Without weights, it is the same before queries and keys are turned as behind.
                    true => self.norm_without_weight(input, output, group_size),
                    false => self.norm(&format!("{name}.{part}"), input, output, group_size)?,
                });
            }
        }
        if ids.plain_value.is_some() && !shares {
            ops.push(self.norm_without_weight(value, ids.value, head_size));
        }
        if let Some(kept) = ids.kept.filter(|_| shares || config.is_kv_source(layer)) {
            ops.push(Op::CopyPart(CopyPart { input: kept, output: ids.key, n_heads: n_kv_heads, from: 0, to: 0, len: head_size }));
        }
        Ok(())
    }

    /// Attention, which is added to what the part has read, `read`.
    fn attend(&self, ops: &mut Vec<Op>, name: &str, layer: usize, read: ValueId) -> Result<()> {
        let (config, layout, ids) = (self.config, self.layout, self.head_ids(layer));
        let ModelConfig { hidden_size, n_heads, .. } = *config;
        let Heads { n_kv_heads, head_size, .. } = config.heads_of(layer);
        let query_size = n_heads * head_size;
        if config.is_rotated(layer) {
            let table = usize::from(config.variant.local_rope.is_some() && config.is_windowed(layer));
            let rotary_size = if config.is_windowed(layer) { config.rotary_size() } else { config.full_rotary_size() };
            let pairs = config.rope.pairs;
            for (heads, n_heads) in [(ids.query, n_heads), (ids.key, n_kv_heads)] {
                ops.push(Op::Rope(Rope { heads, n_heads, head_size, rotary_size, pairs, table }));
            }
        }
        if let (Some(_), false) = (config.variant.temperature, config.is_rotated(layer)) {
            // The last table turns nothing; there queries grow with their positions.
            let table = 1 + usize::from(config.variant.local_rope.is_some());
            let pairs = config.rope.pairs;
            ops.push(Op::Rope(Rope { heads: ids.query, n_heads, head_size, rotary_size: head_size, pairs, table }));
        }
        let value = self.ids.latent.is_none().then_some(ids.value);
        ops.push(Op::StoreKv(StoreKv { layer, key: ids.key, value, n_kv_heads, head_size }));
        let window = config.sliding_window.filter(|_| config.is_windowed(layer));
        let scale = config.variant.attention_scale.unwrap_or(1.0 / (head_size as f32).sqrt());
        let softcap = config.variant.attention_softcap;
        let sinks = layout.has_sinks.then(|| (self.tensor)(&format!("{name}.sinks"), &[n_heads as u64])).transpose()?;
        let attention = Attention {
            layer,
            query: ids.query,
            output: ids.attention,
            n_heads,
            n_kv_heads,
            head_size,
            window,
            in_chunks: config.variant.windows_are_chunks && window.is_some(),
            is_causal: !layout.is_encoder && !config.variant.sees_both_sides,
            scale,
            softcap,
            sinks,
        };
        ops.push(Op::Attention(attention));
        let attended = match (self.ids.output_gate, &config.variant.latent, &self.ids.latent) {
            // Queries are not needed any more.
            (Some(gate), ..) => {
                ops.push(Op::Glu { activation: Activation::Sigmoid, gate, up: ids.attention, output: ids.query });
                ids.query
            }
            (None, Some(latent), Some(of_latent)) => self.values_of_latent(ops, name, (latent, of_latent))?,
            (None, ..) => ids.attention,
        };
        let attended_size = config.variant.latent.map_or(query_size, |latent| n_heads * latent.value_size);
        self.matrix(ops, name, layout.output, [hidden_size, attended_size], [attended, self.ids.delta], config.attention_output_bias)?;
        self.add_delta(ops, layer, layout.after_attention, read)
    }

    /// The feed-forward part, which is added to the residual stream.
    fn transform(&self, ops: &mut Vec<Op>, name: &str, layer: usize, input: ValueId) -> Result<()> {
        let (config, layout, ids) = (self.config, self.layout, &self.ids);
        let experts = config.experts_of(layer).zip(ids.experts.as_ref());
        if let Some((experts, of_experts)) = experts.filter(|(experts, _)| !experts.beside_plain) {
            experts::push(ops, self.tensor, name, (config, experts), of_experts, [input, ids.delta], None)?;
            return self.add_delta(ops, layer, layout.after_ffn, ids.hidden);
        }
        let ModelConfig { hidden_size, ffn_bias, .. } = *config;
        let ffn_size = config.ffn_size_of(layer);
        let of_ffn = &ids.ffn[usize::from(config.variant.sharing_ffn_size.is_some() && config.shares_kv(layer))];
        for (part, output) in layout.gate.into_iter().zip(of_ffn.gate).chain([(layout.up, of_ffn.up)]) {
            self.matrix(ops, name, part, [ffn_size, hidden_size], [input, output], ffn_bias)?;
        }
        let activation = config.variant.activation;
        ops.push(match of_ffn.gate {
            Some(gate) => Op::Glu { activation, gate, up: of_ffn.up, output: of_ffn.activated },
            None => Op::Map { function: Function::Activation(activation), target: of_ffn.up },
        });
        let (module, down) = match layout.down.strip_prefix('.') {
            Some(down) => (format!("{}.{layer}", self.names.layers), down),
            None => (name.to_owned(), layout.down),
        };
        self.matrix(ops, &module, down, [hidden_size, ffn_size], [of_ffn.activated, ids.delta], ffn_bias)?;
        let delta = match experts {
            Some((experts, of_experts)) => self.add_experts(ops, name, layer, (experts, of_experts))?,
            None => ids.delta,
        };
        self.add_to_residual(ops, layer, layout.after_ffn, [ids.hidden, delta])
    }

    /// What experts make of the residual stream is added to what the plain part beside them gave, each behind a norm of its own; the value
    /// that has the sum.
    fn add_experts(&self, ops: &mut Vec<Op>, name: &str, layer: usize, (experts, of_experts): (&Experts, &ExpertIds)) -> Result<ValueId> {
        let (config, ids, hidden_size) = (self.config, &self.ids, self.config.hidden_size);
        let Some([plain, router_input]) = ids.beside else { return Ok(ids.delta) };
        let norm = |norm: &str, input, output| self.norm(&format!("{}.{layer}.{norm}", self.names.layers), input, output, hidden_size);
        ops.push(norm("post_feedforward_layernorm_1", ids.delta, plain)?);
        let weight = (self.tensor)(&format!("{name}.router.scale"), &[hidden_size as u64])?;
        let (epsilon, group_size) = (config.rms_norm_epsilon, hidden_size);
        ops.push(Op::RmsNorm(RmsNorm {
            input: ids.hidden,
            weight: Some(weight),
            output: router_input,
            group_size,
            epsilon,
            weight_offset: 0.0,
        }));
        ops.push(norm("pre_feedforward_layernorm_2", ids.hidden, ids.normed)?);
        let router = Router { input: router_input, logit_scale: 1.0 / (hidden_size as f32).sqrt() };
        experts::push(ops, self.tensor, name, (config, experts), of_experts, [ids.normed, ids.delta], Some(router))?;
        ops.push(norm("post_feedforward_layernorm_2", ids.delta, ids.normed)?);
        ops.push(Op::Add { input: ids.normed, target: plain });
        Ok(plain)
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
        let stored = |kind: &str| match name.split_once(':') {
            Some((name, part)) => format!("{module}.{name}.{kind}:{part}"),
            None => format!("{module}.{name}.{kind}"),
        };
        ops.push(Op::MatMul { input, weight: (self.tensor)(&stored("weight"), &shape)?, output });
        if has_bias {
            ops.push(Op::AddBias { bias: (self.tensor)(&stored("bias"), &shape[..1])?, target: output });
        }
        Ok(())
    }

    /// What the first part of a layer reads and adds to: the residual stream; before the first layer the embedding, completed and normed
    /// where the layout has it so.
    fn embedded(&self, ops: &mut Vec<Op>, layer: usize) -> Result<ValueId> {
        let (layout, ids, hidden_size) = (self.layout, &self.ids, self.config.hidden_size);
        if layer == 0 {
            self.complete_layer_embeddings(ops)?;
        }
        if let Some(table) = layout.token_types.filter(|_| layer == 0 && self.config.variant.n_token_types > 0) {
            let row = (self.tensor)(&format!("{table}.weight:first"), &[1, hidden_size as u64])?;
            ops.push(Op::AddBias { bias: row, target: ids.hidden });
        }
        let Some(norm) = layout.embedding_norm.filter(|_| layer == 0) else { return Ok(ids.hidden) };
        ops.push(self.norm(norm, ids.hidden, ids.normed, hidden_size)?);
        Ok(ids.normed)
    }

    /// The residual stream, normed by what the layout has before a part of a layer; `None` where it has nothing there.
    fn norm_before(&self, ops: &mut Vec<Op>, layer: usize, norm: Option<&str>) -> Result<Option<ValueId>> {
        let ids = &self.ids;
        let Some(norm) = norm else { return Ok(None) };
        ops.push(self.norm(&format!("{}.{layer}.{norm}", self.names.layers), ids.hidden, ids.normed, self.config.hidden_size)?);
        Ok(Some(ids.normed))
    }

    /// What a part of a layer gives is added to the residual stream; normed and scaled before, where the model has it so. Where it norms
    /// sums, the residual stream becomes the normed sum with `read`.
    fn add_delta(&self, ops: &mut Vec<Op>, layer: usize, norm: Option<&str>, read: ValueId) -> Result<()> {
        self.add_to_residual(ops, layer, norm, [read, self.ids.delta])
    }

    /// The same of what a part gives as `delta`.
    fn add_to_residual(&self, ops: &mut Vec<Op>, layer: usize, norm: Option<&str>, [read, mut delta]: [ValueId; 2]) -> Result<()> {
        let ids = &self.ids;
        if let Some(norm) = norm.filter(|_| self.layout.norms_sums) {
            ops.push(Op::Add { input: read, target: delta });
            ops.push(self.norm(&format!("{}.{layer}.{norm}", self.names.layers), delta, ids.hidden, self.config.hidden_size)?);
            return Ok(());
        }
        if let Some(norm) = norm {
            // What the part has read is not needed any more.
            ops.push(self.norm(&format!("{}.{layer}.{norm}", self.names.layers), delta, ids.normed, self.config.hidden_size)?);
            delta = ids.normed;
        }
        if self.config.variant.residual_scale != 1.0 {
            ops.push(Op::Map { function: Function::Scale(self.config.variant.residual_scale), target: delta });
        }
        ops.push(Op::Add { input: delta, target: ids.hidden });
        Ok(())
    }

    fn norm_without_weight(&self, input: ValueId, output: ValueId, group_size: usize) -> Op {
        let epsilon = self.config.rms_norm_epsilon;
        Op::RmsNorm(RmsNorm { input, weight: None, output, group_size, epsilon, weight_offset: 0.0 })
    }

    fn norm(&self, module: &str, input: ValueId, output: ValueId, group_size: usize) -> Result<Op> {
        let vector = |kind: &str| (self.tensor)(&format!("{module}.{kind}"), &[group_size as u64]);
        let weight = vector("weight")?;
        let (epsilon, weight_offset) = (self.config.rms_norm_epsilon, self.config.variant.norm_weight_offset);
        Ok(match self.config.variant.norm {
            NormKind::Rms => Op::RmsNorm(RmsNorm { input, weight: Some(weight), output, group_size, epsilon, weight_offset }),
            NormKind::Layer { has_bias } => {
                let bias = if has_bias { Some(vector("bias")?) } else { None };
                Op::LayerNorm(LayerNorm { input, weight, bias, output, group_size, epsilon, weight_offset })
            }
        })
    }
}
