//! Llama 4: most layers see chunks of positions alone, the others see all and turn nothing; some or all have experts, whose weights are on
//! what they read, beside one that every token takes. Defaults are those of transformers' `Llama4TextConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, Family, LLAMA_NAMES, Modules, Names, Stored, all_but_every};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::QWEN_EXPERTS;
use crate::model::{ExpertNames, Experts, ModelConfig, RopeConfig, RopePairing, Scores, SharedExpert, Temperature, Variant};
use crate::weights::Order;

pub(super) static FAMILY: Family = Family {
    name: "llama4_text",
    models: "Llama 4 (text, also of models that see)",
    classes: &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
    names: Names { ffn: "feed_forward", norm_class: "{}TextRMSNorm", ..LLAMA_NAMES },
    gguf: &["llama4"],
    gguf_names: &[
        ("ffn_gate", "feed_forward.gate_proj"),
        ("ffn_up", "feed_forward.up_proj"),
        ("ffn_down", "feed_forward.down_proj"),
        ("ffn_gate_inp", "feed_forward.router"),
        ("ffn_gate_exps", "feed_forward.experts.gate_proj"),
        ("ffn_up_exps", "feed_forward.experts.up_proj"),
        ("ffn_down_exps", "feed_forward.experts.down_proj"),
        ("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj"),
        ("ffn_up_shexp", "feed_forward.shared_expert.up_proj"),
        ("ffn_down_shexp", "feed_forward.shared_expert.down_proj"),
    ],
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Llama4",
    layer_modules: &[&[("", "{}TextDecoderLayer"), (".self_attn", "{}TextAttention")], ATTENTION.split_at(2).1, EXPERTS_AND_NORMS],
};

const EXPERTS_AND_NORMS: Modules = &[
    (".feed_forward", "{}TextMoe"),
    (".feed_forward.experts", "{}TextExperts"),
    (".feed_forward.experts.act_fn", "SiLUActivation"),
    (".feed_forward.router", "{}Router"),
    (".feed_forward.shared_expert", "{}TextMLP"),
    (".feed_forward.shared_expert.gate_proj", "Linear"),
    (".feed_forward.shared_expert.up_proj", "Linear"),
    (".feed_forward.shared_expert.down_proj", "Linear"),
    (".feed_forward.shared_expert.activation_fn", "SiLUActivation"),
    (".input_layernorm", "{}TextRMSNorm"),
    (".post_attention_layernorm", "{}TextRMSNorm"),
];

const LAYOUT: Layout = Layout { norms_turned_only: true, ..LLAMA };

static NAMES: ExpertNames = ExpertNames { router: "router", ..QWEN_EXPERTS };

/// Of so many layers the last sees all positions and turns nothing.
const INTERVAL: usize = 4;
/// Positions of a chunk, and those that a temperature stands for.
const CHUNK: usize = 8192;
const TEMPERATURE_SCALE: f64 = 0.1;

/// Folders have the matrices of each expert transposed.
fn stored(config: &ModelConfig) -> Vec<Stored> {
    let Some(experts) = &config.variant.experts else { return Vec::new() };
    let of_rows = |suffix, n_rows: usize| Stored {
        suffix,
        parts: Vec::new(),
        order: Some(Order::HeadsTransposed { n_heads: experts.n_experts as u64, n_rows: n_rows as u64 }),
        is_so_in_gguf: false,
    };
    vec![of_rows(".feed_forward.experts.gate_up_proj", config.hidden_size), of_rows(".feed_forward.experts.down_proj", experts.ffn_size)]
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults {
        n_kv_heads: Some(8),
        head_size: Some(128),
        context_length: 131_072,
        epsilon: 1e-5,
        rope_theta: 500_000.0,
        ..Defaults::default()
    };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let n_layers = config.n_layers;
    let interval = fields.interval("no_rope_layer_interval", INTERVAL)?;
    let rotated = match fields.unsigned_list("no_rope_layers")?.filter(|layers| !layers.is_empty()) {
        // 1 stands for a layer that turns, whatever the name says.
        Some(layers) if layers.len() == n_layers => layers.iter().map(|turns| *turns != 0).collect(),
        Some(layers) => return Err(fields.error(format!("`no_rope_layers` lists {} of {n_layers} layers", layers.len()))),
        None => all_but_every(interval, n_layers),
    };
    let chunk = fields.nullable("attention_chunk_size", CHUNK)?;
    let in_chunks = fields.layers_of_type("chunked_attention", "full_attention", n_layers)?;
    let temperature = Temperature {
        length: fields.float("floor_scale")?.unwrap_or(CHUNK as f64),
        scale: fields.float("attn_scale")?.unwrap_or(TEMPERATURE_SCALE),
    };
    let experts = Experts::of_json(fields, 1)?;
    let step = fields.interval("interleave_moe_layer_step", 1)?;
    let listed = fields.unsigned_list("moe_layers")?;
    let has_experts = |layer: usize| listed.as_ref().map_or((layer + 1).is_multiple_of(step), |listed| listed.contains(&layer));
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    let config = ModelConfig {
        ffn_size: fields.unsigned("intermediate_size_mlp")?.unwrap_or(16_384),
        qk_norm: fields.bool("use_qk_norm")?.unwrap_or(true),
        attention_bias,
        attention_output_bias: attention_bias,
        ..config
    };
    let temperature = fields.bool("attn_temperature_tuning")?.unwrap_or(true).then_some(temperature);
    Ok(with_own(config, experts.in_layers(n_layers, has_experts), (rotated, in_chunks, chunk), temperature))
}

/// What both formats have in common; of each layer whether it turns, and whether it sees chunks, where that is another question.
fn with_own(
    config: ModelConfig,
    experts: Experts,
    (rotated, in_chunks, chunk): (Vec<bool>, Option<Vec<bool>>, Option<usize>),
    temperature: Option<Temperature>,
) -> ModelConfig {
    let shared = Some(SharedExpert { ffn_size: experts.ffn_size, is_gated: false });
    let experts = Experts { shared, scores: Scores::Sigmoid, normalises: false, weighs_inputs: true, names: &NAMES, ..experts };
    let variant = Variant {
        windowed_layers: Some(in_chunks.unwrap_or_else(|| rotated.clone())),
        windows_are_chunks: true,
        rotated_layers: Some(rotated),
        temperature,
        experts: Some(experts),
        ..config.variant
    };
    let rope = RopeConfig { pairs: RopePairing::Interleaved, ..config.rope };
    ModelConfig { rope, sliding_window: chunk, variant, ..config }
}

/// Converters write down neither intervals nor chunks, but a window of 0 where there are none.
fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::Interleaved)?;
    let n_layers = config.n_layers;
    let has_chunks = keys.unsigned("attention.sliding_window")? != Some(0);
    let rotated = if has_chunks { all_but_every(INTERVAL, n_layers) } else { vec![true; n_layers.min(crate::model::limits::MAX_LAYERS)] };
    let step = keys.unsigned("interleave_moe_layer_step")?.unwrap_or(1).max(1);
    let experts = Experts::of_gguf(keys)?;
    // Of the published models, that of 128 experts norms nothing.
    let config = ModelConfig { qk_norm: experts.n_experts != 128, ..config };
    let temperature = has_chunks.then_some(Temperature { length: CHUNK as f64, scale: TEMPERATURE_SCALE });
    let experts = experts.in_layers(n_layers, |layer| (layer + 1).is_multiple_of(step));
    Ok(with_own(config, experts, (rotated, None, has_chunks.then_some(CHUNK)), temperature))
}
