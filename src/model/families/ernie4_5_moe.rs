//! ERNIE 4.5, the mixtures of experts: first layers without experts, and experts that are chosen with a bias, beside one that every token
//! takes. Defaults are those of transformers' `Ernie4_5_MoeConfig`.

use super::decoder::{self, LLAMA};
use super::glm4_moe::SHARED_EXPERTS;
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::{DEEPSEEK_EXPERTS, GGUF_BIAS};
use crate::model::{ExpertNames, Experts, ModelConfig, RopeConfig, RopePairing, SharedExpert, Variant};

pub(super) static FAMILY: Family = Family {
    name: "ernie4_5_moe",
    models: "ERNIE 4.5 (mixtures of experts)",
    classes: &["Ernie4_5_MoeForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["ernie4_5-moe"],
    gguf_names: &GGUF_NAMES,
    from_json,
    from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Ernie4_5_Moe",
    layer_modules: &[ATTENTION, EXPERTS_AND_NORMS, SHARED_EXPERTS],
};

/// Checkpoints have the bias beside the router, transformers has it in there.
static NAMES: ExpertNames = ExpertNames {
    selection_bias: "gate.moe_statics.e_score_correction_bias",
    former: &[(".mlp.moe_statics.", ".mlp.gate.moe_statics."), GGUF_BIAS],
    ..DEEPSEEK_EXPERTS
};

const GGUF_NAMES: [(&str, &str); 4] = [
    ("exp_probs_b", "mlp.gate.moe_statics.e_score_correction"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults =
        Defaults { n_kv_heads: Some(4), context_length: 131_072, epsilon: 1e-5, rope_theta: 500_000.0, tied: true, ..Defaults::default() };
    let config = fields.decoder(&FAMILY, &defaults)?;
    fields.refuse_switch("use_bias")?;
    let own = fields.with_other_names(&[("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")]);
    let experts = Experts::of_json(&own, 6)?;
    let shared_size = fields.unsigned("moe_num_shared_experts")?.unwrap_or(2).saturating_mul(experts.ffn_size);
    let interval = fields.interval("moe_layer_interval", 1)?;
    let first = fields.unsigned("moe_layer_start_index")?.unwrap_or(1);
    // −1, or nothing, stands for the last layer.
    let last = fields.signed("moe_layer_end_index")?.and_then(|last| usize::try_from(last).ok()).unwrap_or(usize::MAX);
    let has_experts = |layer: usize| (layer + 1).is_multiple_of(interval) && (first..=last).contains(&layer);
    let experts = with_shared(experts.in_layers(config.n_layers, has_experts), shared_size);
    let rope = RopeConfig { pairs: RopePairing::Interleaved, ..config.rope };
    Ok(ModelConfig { rope, variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}

fn with_shared(experts: Experts, ffn_size: usize) -> Experts {
    let shared = (ffn_size > 0).then_some(SharedExpert { ffn_size, is_gated: false });
    Experts { shared, has_selection_bias: true, names: &NAMES, ..experts }
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = keys.decoder(&FAMILY, RopePairing::Interleaved)?;
    let experts = Experts::of_gguf(keys)?;
    let interval = keys.unsigned("interleave_moe_layer_step")?.unwrap_or(1).max(1);
    let first = keys.unsigned("leading_dense_block_count")?.unwrap_or(0);
    let shared_size = match keys.unsigned("expert_shared_feed_forward_length")? {
        Some(size) => size,
        None => keys.unsigned("expert_shared_count")?.unwrap_or(0).saturating_mul(experts.ffn_size),
    };
    let has_experts = |layer: usize| layer >= first && (layer + 1).is_multiple_of(interval);
    let experts = with_shared(experts.in_layers(config.n_layers, has_experts), shared_size);
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
