//! Qwen3-Next: layers of Qwen3.5, whose projections for the delta rule lie in two matrices, key head by key head, and experts as the
//! mixtures of Qwen3.5 have them. Defaults are those of transformers' `Qwen3NextConfig`.

use super::decoder::{self, Layout};
use super::qwen2_moe::SHARED_EXPERT;
use super::qwen3_5::{self, hybrid_of_gguf, hybrid_of_json};
use super::qwen3_moe::sparse_layers;
use super::{ATTENTION, EXPERTS_AND_NORMS, Family, LLAMA_NAMES, QUERY_KEY_NORMS, Stored};
use crate::error::Result;
use crate::model::config_gguf::Keys;
use crate::model::config_json::Fields;
use crate::model::{Experts, ModelConfig, Recurrent, RecurrentKind, Variant};
use crate::weights::Order;

pub(super) static FAMILY: Family = Family {
    name: "qwen3_next",
    models: "Qwen3-Next, Qwen3-Coder-Next",
    classes: &["Qwen3NextForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["qwen3next"],
    gguf_names: &[
        ("post_attention_norm", "post_attention_layernorm"),
        // Files have both parts of the first matrix by themselves; those of earlier converters have it as it is.
        ("attn_qkv.weight", "linear_attn.in_proj_qkvz.weight:qkv"),
        ("attn_gate.weight", "linear_attn.in_proj_qkvz.weight:z"),
        ("ssm_in", "linear_attn.in_proj_qkvz"),
        ("ssm_ba", "linear_attn.in_proj_ba"),
        ("ssm_conv1d", "linear_attn.conv1d"),
        ("ssm_a", "linear_attn.A_log"),
        ("ssm_dt.bias", "linear_attn.dt_bias"),
        ("ssm_norm", "linear_attn.norm"),
        ("ssm_out", "linear_attn.out_proj"),
    ],
    from_json,
    from_gguf,
    stored,
    model: |config, tensor| decoder::model(config, tensor, &LAYOUT),
    class_prefix: "Qwen3Next",
    layer_modules: &[
        &[
            ("", "{}DecoderLayer"),
            (".linear_attn", "{}GatedDeltaNet"),
            (".linear_attn.conv1d", "Conv1d"),
            (".linear_attn.in_proj_qkvz", "Linear"),
            (".linear_attn.in_proj_ba", "Linear"),
            (".linear_attn.norm", "{}RMSNormGated"),
            (".linear_attn.out_proj", "Linear"),
        ],
        ATTENTION.split_at(1).1,
        QUERY_KEY_NORMS,
        EXPERTS_AND_NORMS,
        SHARED_EXPERT,
    ],
};

const LAYOUT: Layout =
    Layout { delta_projections: ["in_proj_qkvz:qkv", "in_proj_qkvz:z", "in_proj_ba:b", "in_proj_ba:a"], ..qwen3_5::LAYOUT };

/// Beside the queries of attention: of each key head its queries and keys, the values and gates of the value heads that share it, and what
/// they forget and change by.
fn stored(config: &ModelConfig) -> Vec<Stored> {
    let mut stored = qwen3_5::stored(config);
    let Some(Recurrent { kind: RecurrentKind::DeltaNet { n_key_heads, n_value_heads, key_size, value_size, .. }, .. }) =
        config.variant.recurrent
    else {
        return stored;
    };
    let (values, n_shared) = (n_value_heads * value_size, (n_value_heads / n_key_heads) as u64);
    let (of_key, of_value) = (key_size as u64, n_shared * value_size as u64);
    let mut push = |suffix, parts, rows_of_head| {
        let order = Some(Order::ByHeads { n_heads: n_key_heads as u64, parts: rows_of_head });
        stored.push(Stored { suffix, parts, order, is_so_in_gguf: true });
    };
    let both = vec![("qkv", 2 * n_key_heads * key_size + values), ("z", values)];
    push(".linear_attn.in_proj_qkvz", both, [of_key, of_key, of_value, of_value]);
    push(".linear_attn.in_proj_ba", vec![("b", n_value_heads), ("a", n_value_heads)], [n_shared, n_shared, 0, 0]);
    stored
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = hybrid_of_json(fields, &FAMILY, 2)?;
    let experts = sparse_layers(fields, config.n_layers, Experts::of_json(fields, 10)?)?;
    let normalises = fields.bool("norm_topk_prob")?.unwrap_or(true);
    let experts = Experts { normalises, ..experts.with_gated_of_json(fields, 512)? };
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}

fn from_gguf(keys: &Keys<'_>) -> Result<ModelConfig> {
    let config = hybrid_of_gguf(keys, &FAMILY, false)?;
    let experts = Experts::of_gguf(keys)?.with_gated_of_gguf(keys)?;
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
