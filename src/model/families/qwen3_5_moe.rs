//! Qwen3.5, the mixtures of experts: layers of the dense models, experts whose weights are normalised, and one that every token takes, times
//! a sigmoid of its own. Defaults are those of transformers' `Qwen3_5MoeTextConfig`.

use super::qwen2_moe::SHARED_EXPERT;
use super::qwen3_5::{GGUF_NAMES, LAYOUT, LINEAR_ATTENTION, hybrid_of_gguf, hybrid_of_json, stored};
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES, QUERY_KEY_NORMS, decoder};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::Fields;
use crate::model::{Experts, ModelConfig, Variant};

pub(super) static FAMILY: Family = Family {
    name: "qwen3_5_moe_text",
    models: "Qwen3.5, Qwen3.6 (mixtures of experts; text, also of models that see)",
    classes: &["Qwen3_5MoeForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["qwen35moe"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Qwen3_5Moe",
    layer_modules: &[LINEAR_ATTENTION, ATTENTION.split_at(1).1, QUERY_KEY_NORMS, EXPERTS_AND_NORMS, SHARED_EXPERT],
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    // No layer is without experts, so that configs know one width only.
    let fields = &fields.with_other_names(&[("intermediate_size", "moe_intermediate_size")]);
    let config = hybrid_of_json(fields, &FAMILY, 2)?;
    let experts = Experts::of_json(fields, 8)?.with_gated_of_json(fields, 512)?;
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = hybrid_of_gguf(keys, &FAMILY, true)?;
    let experts = Experts::of_gguf(keys)?.with_gated_of_gguf(keys)?;
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
