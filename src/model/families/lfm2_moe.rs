//! LFM2, the mixtures of experts: layers of the dense models, and behind the first of them experts that are chosen by sigmoids and a bias.
//! Defaults are those of transformers' `Lfm2MoeConfig`.

use super::{Family, Modules, decoder, lfm2};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::{Defaults, Fields};
use crate::model::experts::QWEN_EXPERTS;
use crate::model::{ExpertNames, Experts, ModelConfig, Scores, Variant};

pub(super) static FAMILY: Family = Family {
    name: "lfm2_moe",
    models: "LFM2 (mixtures of experts)",
    classes: &["Lfm2MoeForCausalLM"],
    gguf: &["lfm2moe"],
    gguf_names: &GGUF_NAMES,
    from_json,
    from_gguf,
    model: |config, tensor| decoder::model(config, tensor, &lfm2::LAYOUT),
    class_prefix: "Lfm2Moe",
    layer_modules: &[lfm2::LAYER, EXPERTS],
    ..lfm2::DECODER
};

const EXPERTS: Modules = &[(".feed_forward.experts", "{}Experts"), (".feed_forward.gate", "{}TopKRouter")];

static NAMES: ExpertNames = ExpertNames {
    selection_bias: "expert_bias",
    each: ["w1", "w3", "w2"],
    former: &[(".expert_bias.bias", ".expert_bias")],
    ..QWEN_EXPERTS
};

const OWN_GGUF_NAMES: [(&str, &str); 5] = [
    ("ffn_gate_inp", "feed_forward.gate"),
    ("exp_probs_b", "feed_forward.expert_bias"),
    ("ffn_gate_exps", "feed_forward.experts.w1"),
    ("ffn_up_exps", "feed_forward.experts.w3"),
    ("ffn_down_exps", "feed_forward.experts.w2"),
];

const GGUF_NAMES: [(&str, &str); OWN_GGUF_NAMES.len() + lfm2::GGUF_NAMES.len()] = {
    let mut names = [("", ""); OWN_GGUF_NAMES.len() + lfm2::GGUF_NAMES.len()];
    let mut index = 0;
    while index < names.len() {
        let n_own = OWN_GGUF_NAMES.len();
        names[index] = if index < n_own { OWN_GGUF_NAMES[index] } else { lfm2::GGUF_NAMES[index - n_own] };
        index += 1;
    }
    names
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let fields = &fields.with_other_names(&[("rms_norm_eps", "norm_eps"), ("tie_word_embeddings", "tie_embedding")]);
    let defaults =
        Defaults { n_kv_heads: Some(8), context_length: 128_000, epsilon: 1e-5, rope_theta: 1e6, tied: true, ..Defaults::default() };
    let config = lfm2::with_convolutions(fields, fields.decoder(&FAMILY, &defaults)?)?;
    let n_plain = fields.unsigned("num_dense_layers")?.unwrap_or(2);
    let experts = Experts {
        has_selection_bias: fields.bool("use_expert_bias")?.unwrap_or(true),
        normalises: fields.bool("norm_topk_prob")?.unwrap_or(true),
        scale: fields.float("routed_scaling_factor")?.unwrap_or(1.0) as f32,
        ..Experts::of_json(fields, 4)?
    };
    Ok(with_experts(config, experts, n_plain))
}

fn with_experts(config: ModelConfig, experts: Experts, n_plain: usize) -> ModelConfig {
    let experts = experts.in_layers(config.n_layers, |layer| layer >= n_plain);
    let experts = Some(Experts { scores: Scores::Sigmoid, names: &NAMES, ..experts });
    ModelConfig { variant: Variant { experts, ..config.variant }, ..config }
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = lfm2::of_gguf(&FAMILY, keys)?;
    let n_plain = keys.unsigned("leading_dense_block_count")?.unwrap_or(0);
    let bias = keys.n_rows(&format!("model.layers.{n_plain}.feed_forward.expert_bias.bias"));
    Ok(with_experts(config, Experts { has_selection_bias: bias > 0, ..Experts::of_gguf(keys)? }, n_plain))
}
