//! Qwen3.5, the dense models: three of four layers have the gated delta rule in place of attention, whose output is gated in the others.
//! Defaults are those of transformers' `Qwen3_5TextConfig`.

use super::decoder::{self, LLAMA, Layout};
use super::{ATTENTION, FEED_FORWARD_AND_NORMS, Family, LLAMA_NAMES, Modules, QUERY_KEY_NORMS, Stored, all_but_every, llama};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, Recurrent, RecurrentKind, RopePairing, Variant};
use crate::weights::Order;

pub(super) static FAMILY: Family = Family {
    name: "qwen3_5_text",
    models: "Qwen3.5, Qwen3.6 (dense; text, also of models that see)",
    classes: &["Qwen3_5ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["qwen35"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Qwen3_5",
    layer_modules: &[LINEAR_ATTENTION, ATTENTION.split_at(1).1, QUERY_KEY_NORMS, FEED_FORWARD_AND_NORMS],
};

pub(super) const GGUF_NAMES: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("attn_qkv", "linear_attn.in_proj_qkv"),
    ("attn_gate", "linear_attn.in_proj_z"),
    ("ssm_beta", "linear_attn.in_proj_b"),
    ("ssm_alpha", "linear_attn.in_proj_a"),
    ("ssm_conv1d", "linear_attn.conv1d"),
    ("ssm_a", "linear_attn.A_log"),
    ("ssm_dt.bias", "linear_attn.dt_bias"),
    ("ssm_norm", "linear_attn.norm"),
    ("ssm_out", "linear_attn.out_proj"),
];

/// A layer itself, and what it has in place of attention.
pub(super) const LINEAR_ATTENTION: Modules = &[
    ("", "{}DecoderLayer"),
    (".linear_attn", "{}GatedDeltaNet"),
    (".linear_attn.conv1d", "Conv1d"),
    (".linear_attn.norm", "{}RMSNormGated"),
    (".linear_attn.out_proj", "Linear"),
    (".linear_attn.in_proj_qkv", "Linear"),
    (".linear_attn.in_proj_z", "Linear"),
    (".linear_attn.in_proj_b", "Linear"),
    (".linear_attn.in_proj_a", "Linear"),
];

pub(super) const LAYOUT: Layout = Layout { projections: ["q_proj:query", "k_proj", "v_proj"], output_gate: Some("q_proj:gate"), ..LLAMA };

/// Of so many layers the last has attention.
const INTERVAL: usize = 4;

/// Each head's queries are followed by what its output is gated by, in files of both formats.
pub(super) fn stored(config: &ModelConfig) -> Vec<Stored> {
    let parts = ["query", "gate"].map(|part| (part, config.query_size())).into();
    let head_size = config.head_size as u64;
    let order = Some(Order::ByHeads { n_heads: config.n_heads as u64, parts: [head_size, head_size, 0, 0] });
    vec![Stored { suffix: ".self_attn.q_proj", parts, order, is_so_in_gguf: true }]
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    hybrid_of_json(fields, &FAMILY, 4)
}

/// What configs of all models with the gated delta rule have in common; `n_kv_heads` where one leaves them out.
pub(super) fn hybrid_of_json(fields: &Fields<'_>, family: &'static Family, n_kv_heads: usize) -> Result<ModelConfig> {
    let defaults = Defaults {
        n_kv_heads: Some(n_kv_heads),
        head_size: Some(256),
        context_length: 32_768,
        partial_rotary: Some(0.25),
        ..Defaults::default()
    };
    let config = llama::with_attention_biases(fields, fields.decoder(family, &defaults)?)?;
    let interval = fields.interval("full_attention_interval", INTERVAL)?;
    let listed = fields.layers_of_type("linear_attention", "full_attention", config.n_layers)?;
    let layers = listed.unwrap_or_else(|| all_but_every(interval, config.n_layers));
    let size = |key: &str, default: usize| Ok(fields.unsigned(key)?.unwrap_or(default));
    let kind = RecurrentKind::DeltaNet {
        n_taps: size("linear_conv_kernel_dim", 4)?,
        n_key_heads: size("linear_num_key_heads", 16)?,
        n_value_heads: size("linear_num_value_heads", 32)?,
        key_size: size("linear_key_head_dim", 128)?,
        value_size: size("linear_value_head_dim", 128)?,
        is_tiled: false,
        decay_is_log: true,
    };
    let config = of_qwen3_5(config, layers, kind);
    // Norms hold what is added to 1.
    Ok(ModelConfig { variant: Variant { norm_weight_offset: 1.0, ..config.variant }, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    hybrid_of_gguf(keys, &FAMILY, true)
}

/// The same of files; `is_tiled` says whether value heads that share a key head lie apart in them.
pub(super) fn hybrid_of_gguf(keys: &Keys<'_>, family: &'static Family, is_tiled: bool) -> Result<ModelConfig> {
    let config = keys.hybrid_decoder(family, RopePairing::NeoX)?;
    // Layers that predict further tokens are in files and do not run.
    let n_layers = config.n_layers.saturating_sub(keys.unsigned("nextn_predict_layers")?.unwrap_or(0));
    let interval = keys.unsigned("full_attention_interval")?.unwrap_or(INTERVAL).max(1);
    let layers = all_but_every(interval, n_layers);
    let n_value_heads = keys.required("ssm.time_step_rank")?;
    let kind = RecurrentKind::DeltaNet {
        n_taps: keys.required("ssm.conv_kernel")?,
        n_key_heads: keys.required("ssm.group_count")?,
        n_value_heads,
        key_size: keys.required("ssm.state_size")?,
        value_size: keys.required("ssm.inner_size")? / n_value_heads.max(1),
        is_tiled,
        decay_is_log: false,
    };
    // The first layer has no attention whose biases would show.
    let first = layers.iter().position(|is_recurrent| !is_recurrent).unwrap_or(0);
    let attention_bias = keys.n_rows(&format!("model.layers.{first}.self_attn.q_proj.bias")) > 0;
    let attention_output_bias = keys.n_rows(&format!("model.layers.{first}.self_attn.o_proj.bias")) > 0;
    Ok(of_qwen3_5(ModelConfig { n_layers, attention_bias, attention_output_bias, ..config }, layers, kind))
}

/// What no config says.
fn of_qwen3_5(config: ModelConfig, layers: Vec<bool>, kind: RecurrentKind) -> ModelConfig {
    let recurrent = layers.contains(&true).then_some(Recurrent { layers, kind });
    ModelConfig { qk_norm: true, variant: Variant { recurrent, ..config.variant }, ..config }
}
