//! GLM-4.5 and what is built like it: attention of which a part of each head turns, first layers without experts, and experts that are chosen
//! by sigmoids and a bias, beside one that every token takes. Defaults are those of transformers' `Glm4MoeConfig`.

use super::decoder::{self, LLAMA};
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::DEEPSEEK_EXPERTS;
use crate::model::{ExpertGroups, Experts, ModelConfig, RopePairing, Scores, SharedExpert, Variant};

pub(super) static FAMILY: Family = Family {
    name: "glm4_moe",
    models: "GLM-4.5, GLM-4.6",
    classes: &["Glm4MoeForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["glm4moe"],
    gguf_names: &GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Glm4Moe",
    layer_modules: &[ATTENTION, EXPERTS_AND_NORMS, SHARED_EXPERTS],
};

/// The expert that every token takes.
pub(super) const SHARED_EXPERTS: super::Modules = &[
    (".mlp.shared_experts", "{}MLP"),
    (".mlp.shared_experts.gate_proj", "Linear"),
    (".mlp.shared_experts.up_proj", "Linear"),
    (".mlp.shared_experts.down_proj", "Linear"),
    (".mlp.shared_experts.act_fn", "SiLUActivation"),
];

const GGUF_NAMES: [(&str, &str); 5] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("exp_probs_b", "mlp.gate.e_score_correction"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults =
        Defaults { n_kv_heads: Some(8), context_length: 131_072, epsilon: 1e-5, partial_rotary: Some(0.5), ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let experts = of_deepseek_json(fields, config.n_layers, 1)?;
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    let qk_norm = fields.bool("use_qk_norm")?.unwrap_or(false);
    Ok(ModelConfig { attention_bias, qk_norm, variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}

/// Experts as configs say them that are like DeepSeek V3's; the first `n_plain` layers have none where one leaves it out.
pub(super) fn of_deepseek_json(fields: &Fields<'_>, n_layers: usize, n_plain: usize) -> Result<Experts> {
    let experts = Experts::of_json(&fields.with_other_names(&[("num_experts", "n_routed_experts")]), 8)?;
    let n_plain = fields.unsigned("first_k_dense_replace")?.unwrap_or(n_plain);
    let n_shared = fields.unsigned("n_shared_experts")?.unwrap_or(1);
    let ffn_size = experts.ffn_size.saturating_mul(n_shared);
    let number = |key: &str| Ok(fields.unsigned(key)?.unwrap_or(1));
    Ok(Experts {
        shared: (n_shared > 0).then_some(SharedExpert { ffn_size, is_gated: false }),
        scores: Scores::Sigmoid,
        has_selection_bias: true,
        normalises: fields.bool("norm_topk_prob")?.unwrap_or(true),
        scale: fields.float("routed_scaling_factor")?.unwrap_or(1.0) as f32,
        groups: groups_of(number("n_group")?, number("topk_group")?),
        names: &DEEPSEEK_EXPERTS,
        ..experts.in_layers(n_layers, |layer| layer >= n_plain)
    })
}

/// Groups that are as good as their two best experts.
pub(super) fn groups_of(n_groups: usize, n_used: usize) -> Option<ExpertGroups> {
    (n_groups != 1).then_some(ExpertGroups { n_groups, n_used, n_best: 2 })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.partly_rotary_decoder(&FAMILY, RopePairing::NeoX)?;
    // Layers that predict further tokens are in files and do not run.
    let n_layers = config.n_layers.saturating_sub(keys.unsigned("nextn_predict_layers")?.unwrap_or(0));
    let experts = of_deepseek_gguf(keys, n_layers)?;
    let qk_norm = keys.n_rows("model.layers.0.self_attn.q_norm.weight") > 0;
    Ok(ModelConfig { n_layers, qk_norm, variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}

/// Experts as metadata say them that are like DeepSeek V3's.
pub(super) fn of_deepseek_gguf(keys: &Keys<'_>, n_layers: usize) -> Result<Experts> {
    let experts = Experts::of_gguf(keys)?;
    let n_plain = keys.unsigned("leading_dense_block_count")?.unwrap_or(0);
    let n_shared = keys.unsigned("expert_shared_count")?.unwrap_or(0);
    let ffn_size = experts.ffn_size.saturating_mul(n_shared);
    let number = |key: &str| Ok(keys.unsigned(key)?.unwrap_or(1));
    Ok(Experts {
        shared: (n_shared > 0).then_some(SharedExpert { ffn_size, is_gated: false }),
        scores: Scores::Sigmoid,
        has_selection_bias: true,
        groups: groups_of(number("expert_group_count")?, number("expert_group_used_count")?),
        names: &DEEPSEEK_EXPERTS,
        ..experts.in_layers(n_layers, |layer| layer >= n_plain)
    })
}
