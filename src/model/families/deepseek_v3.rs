//! DeepSeek V3 and what is built like it: keys and values are made of one latent vector of each position, first layers have no experts, and
//! experts are chosen by sigmoids and a bias from some groups, beside one that every token takes. Defaults are those of transformers'
//! `DeepseekV3Config`.

use super::decoder::{self, LLAMA};
use super::glm4_moe::{self, SHARED_EXPERTS};
use super::{EXPERTS_AND_NORMS, Family, LLAMA_NAMES, Modules, deepseek_v2};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{self, Defaults, Fields};
use crate::model::{ExpertGroups, Experts, Latent, ModelConfig, RopePairing, RopeScaling, Scores, Variant};

pub(super) static FAMILY: Family = Family {
    name: "deepseek_v3",
    models: "DeepSeek V3, R1, Kimi K2",
    classes: &["DeepseekV3ForCausalLM"],
    names: LLAMA_NAMES,
    // Which of both families a file is of is seen in its keys.
    gguf: &["deepseek2"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "DeepseekV3",
    layer_modules: &[LATENT_ATTENTION, EXPERTS_AND_NORMS, SHARED_EXPERTS],
};

pub(super) const GGUF_NAMES: &[(&str, &str)] = &[
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_k_b", "self_attn.k_b_proj"),
    ("attn_v_b", "self_attn.v_b_proj"),
    ("exp_probs_b", "mlp.gate.e_score_correction"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// A layer itself, and its attention over latent vectors.
pub(super) const LATENT_ATTENTION: Modules = &[
    ("", "{}DecoderLayer"),
    (".self_attn", "{}Attention"),
    (".self_attn.q_a_proj", "Linear"),
    (".self_attn.q_a_layernorm", "{}RMSNorm"),
    (".self_attn.q_b_proj", "Linear"),
    (".self_attn.kv_a_proj_with_mqa", "Linear"),
    (".self_attn.kv_a_layernorm", "{}RMSNorm"),
    (".self_attn.kv_b_proj", "Linear"),
    (".self_attn.o_proj", "Linear"),
];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let pairs = if fields.bool("rope_interleave")?.unwrap_or(true) { RopePairing::Interleaved } else { RopePairing::NeoX };
    let config = latent_decoder(fields, &FAMILY, pairs)?;
    let experts = glm4_moe::of_deepseek_json(fields, config.n_layers, 3)?;
    let number = |key: &str, default: usize| Ok(fields.unsigned(key)?.unwrap_or(default));
    let experts = Experts {
        scale: fields.float("routed_scaling_factor")?.unwrap_or(2.5) as f32,
        groups: glm4_moe::groups_of(number("n_group", 8)?, number("topk_group", 4)?),
        ..experts
    };
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}

/// The config of a decoder with attention over latent vectors, whose experts are not read yet.
pub(super) fn latent_decoder(fields: &Fields<'_>, family: &'static Family, pairs: RopePairing) -> Result<ModelConfig> {
    let number = |key: &str, default: usize| Ok(fields.unsigned(key)?.unwrap_or(default));
    let latent = Latent {
        query_rank: fields.nullable("q_lora_rank", 1536)?,
        rank: number("kv_lora_rank", 512)?,
        still_size: number("qk_nope_head_dim", 128)?,
        rotary_size: number("qk_rope_head_dim", 64)?,
        value_size: number("v_head_dim", 128)?,
    };
    // What configs call the size of a head is that of the part that turns.
    let defaults = Defaults { head_size: Some(latent.rotary_size), context_length: 4096, ..Defaults::default() };
    let config = fields.decoder(family, &defaults)?;
    let has_biases = fields.bool("attention_bias")?.unwrap_or(false);
    let config = ModelConfig { attention_bias: has_biases, attention_output_bias: has_biases, ..config };
    let length_factor = fields.length_factor_of_scores()?;
    Ok(with_latent(config, latent, pairs, length_factor))
}

/// The config with this attention; `length_factor` is what queries and keys are each multiplied by for long contexts.
fn with_latent(config: ModelConfig, latent: Latent, pairs: RopePairing, length_factor: f64) -> ModelConfig {
    let key_size = latent.still_size.saturating_add(latent.rotary_size) as f64;
    let variant = Variant {
        latent: Some(latent),
        rotary_size: Some(latent.rotary_size),
        attention_scale: Some((length_factor * length_factor / key_size.sqrt()) as f32),
        ..config.variant
    };
    let rope = crate::model::RopeConfig { pairs, ..config.rope };
    ModelConfig { n_kv_heads: 1, head_size: latent.rank.saturating_add(latent.rotary_size), rope, variant, ..config }
}

/// Files of both families.
pub(super) fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let (config, latent) = keys.latent_decoder(&FAMILY, RopePairing::Interleaved)?;
    let mut config = config;
    let mut length_factor = 1.0;
    // Converters write a tenth of the factor, and leave it out where there is none.
    let share = keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0) * 10.0;
    if let RopeScaling::Yarn { factor, attention_factor, .. } = &mut config.rope.scaling
        && share != 0.0
    {
        // Cosines and sines are multiplied by nothing then, and the scores by the square.
        *attention_factor = 1.0;
        length_factor = config_json::length_factor(*factor, share);
    }
    let config = with_latent(config, latent, RopePairing::Interleaved, length_factor);
    // Layers that predict further tokens are in files and do not run.
    let n_layers = config.n_layers.saturating_sub(keys.unsigned("nextn_predict_layers")?.unwrap_or(0));
    let experts = glm4_moe::of_deepseek_gguf(keys, n_layers)?;
    // Files of V2 say nothing of it, or 1.
    let is_v3 = keys.unsigned("expert_gating_func")? == Some(2);
    let experts = Experts {
        scores: if is_v3 { Scores::Sigmoid } else { Scores::Softmax },
        has_selection_bias: is_v3,
        normalises: keys.bool("expert_weights_norm")?.unwrap_or(false),
        groups: experts.groups.map(|groups| ExpertGroups { n_best: if is_v3 { groups.n_best } else { 1 }, ..groups }),
        ..experts
    };
    let family = if is_v3 { &FAMILY } else { &deepseek_v2::FAMILY };
    Ok(ModelConfig { family, n_layers, variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
