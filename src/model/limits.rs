//! What a model's config may say at all. Both readers end here, so that nothing later meets a zero or an overflow.

use super::{Experts, Heads, ModelConfig, RecurrentKind, RopeConfig, RopeScaling, Variant};
use crate::error::{Error, Result};

/// Largest width of anything: hidden, feed-forward, all heads together.
const MAX_SIZE: usize = 1 << 24;
pub(super) const MAX_LAYERS: usize = 1024;
/// Experts of a layer: above every published number, and what a GPU's router has workgroup memory for.
const MAX_EXPERTS: usize = 1024;
const MAX_HEADS: usize = 1 << 16;
pub(super) const MAX_HEAD_SIZE: usize = 1 << 12;
/// Taps of a convolution.
const MAX_TAPS: usize = 64;
/// Positions: above every published context, and small enough for exact f32 angles to be somebody else's question.
const MAX_CONTEXT: usize = 1 << 28;
/// Largest float setting (theta, factors).
const MAX_FACTOR: f64 = 1e15;

/// Checks every size and setting of `config`, which was read from `path`.
pub(super) fn validate(config: &ModelConfig, path: &str) -> Result<()> {
    let sizes = [
        ("vocabulary size", config.vocab_size, MAX_SIZE),
        ("hidden size", config.hidden_size, MAX_SIZE),
        ("feed-forward size", config.ffn_size, MAX_SIZE),
        ("number of layers", config.n_layers, MAX_LAYERS),
        ("number of attention heads", config.n_heads, MAX_HEADS),
        ("number of key and value heads", config.n_kv_heads, MAX_HEADS),
        ("head size", config.head_size, MAX_HEAD_SIZE),
        ("context length", config.context_length, MAX_CONTEXT),
        ("sliding window", config.sliding_window.unwrap_or(1), usize::MAX),
    ];
    for (what, value, limit) in sizes {
        if value == 0 || value > limit {
            return Err(Error::invalid_file(path, format!("the {what} is {value}, it must be from 1 to {limit}")));
        }
    }
    // Cannot overflow: both factors are bounded above.
    if config.query_size() > MAX_SIZE {
        return Err(Error::invalid_file(path, format!("{} heads of {} values are absurdly wide", config.n_heads, config.head_size)));
    }
    if !config.n_heads.is_multiple_of(config.n_kv_heads) {
        let reason = format!("{} attention heads cannot share {} key and value heads evenly", config.n_heads, config.n_kv_heads);
        return Err(Error::invalid_file(path, reason));
    }
    if !config.head_size.is_multiple_of(2) {
        return Err(Error::invalid_file(path, format!("the head size is {}, it must be even", config.head_size)));
    }
    let rotary_size = config.rotary_size();
    if rotary_size == 0 || !rotary_size.is_multiple_of(2) || rotary_size > config.head_size {
        let reason = format!("of {} values of a head {rotary_size} are rotary; that must be an even number of them", config.head_size);
        return Err(Error::invalid_file(path, reason));
    }
    check_variant(&config.variant, path)?;
    check_sharing(config, path)?;
    config.variant.full_heads.map_or(Ok(()), |heads| check_heads(heads, config, path))?;
    check_recurrent(config, path)?;
    check_latent(config, path)?;
    if let Some(temperature) = config.variant.temperature {
        let floats =
            [("length of the temperature", temperature.length, MAX_FACTOR), ("scale of the temperature", temperature.scale, MAX_FACTOR)];
        check_each(floats.into(), path)?;
    }
    config.variant.experts.as_ref().map_or(Ok(()), |experts| check_experts(experts, config, path))?;
    check_each(vec![("epsilon of the norms", f64::from(config.rms_norm_epsilon), 1.0)], path)?;
    check_rope(&config.rope, config.full_rotary_size(), path)?;
    config.variant.local_rope.as_ref().map_or(Ok(()), |rope| check_rope(rope, rotary_size, path))
}

/// Layers that read the keys and values of others, and embeddings of layers.
fn check_sharing(config: &ModelConfig, path: &str) -> Result<()> {
    let Variant { n_kv_sharing_layers, sharing_ffn_size, layer_embedding_size, .. } = config.variant;
    let invalid = |reason: String| Err(Error::invalid_file(path, reason));
    let Some(n_own) = config.n_layers.checked_sub(n_kv_sharing_layers).filter(|n_own| *n_own > 0) else {
        return invalid(format!("{n_kv_sharing_layers} of {} layers share keys and values of layers before them", config.n_layers));
    };
    if let Some(layer) = (n_own..config.n_layers).find(|layer| config.kv_source(*layer).is_none()) {
        return invalid(format!("layer {layer} shares keys and values, but none of the {n_own} layers that have their own is of its kind"));
    }
    let ffn_size = sharing_ffn_size.unwrap_or(1);
    if ffn_size == 0 || ffn_size > MAX_SIZE {
        return invalid(format!(
            "the feed-forward size of layers that share keys and values is {ffn_size}, it must be from 1 to {MAX_SIZE}"
        ));
    }
    if layer_embedding_size.saturating_mul(config.n_layers) > MAX_SIZE {
        let reason = format!("embeddings of {} layers with {layer_embedding_size} values each are absurdly wide", config.n_layers);
        return invalid(reason);
    }
    Ok(())
}

/// Heads of layers that see everything, where they are others.
fn check_heads(heads: Heads, config: &ModelConfig, path: &str) -> Result<()> {
    let Heads { n_kv_heads, head_size, .. } = heads;
    let invalid = |reason: String| Err(Error::invalid_file(path, reason));
    let sizes = [("number of key and value heads", n_kv_heads, MAX_HEADS), ("head size", head_size, MAX_HEAD_SIZE)];
    if let Some((what, value, limit)) = sizes.into_iter().find(|(_, value, limit)| *value == 0 || value > limit) {
        return invalid(format!("the {what} of layers that see everything is {value}, it must be from 1 to {limit}"));
    }
    if !head_size.is_multiple_of(2) || config.n_heads * head_size > MAX_SIZE {
        return invalid(format!("layers that see everything have {} heads of {head_size} values; that is odd or too wide", config.n_heads));
    }
    if !config.n_heads.is_multiple_of(n_kv_heads) {
        let reason =
            format!("{} attention heads cannot share {n_kv_heads} key and value heads of layers that see everything", config.n_heads);
        return invalid(reason);
    }
    Ok(())
}

fn check_recurrent(config: &ModelConfig, path: &str) -> Result<()> {
    let Some(recurrent) = &config.variant.recurrent else { return Ok(()) };
    let (n_listed, n_layers) = (recurrent.layers.len(), config.n_layers);
    if n_listed != n_layers {
        return Err(Error::invalid_file(path, format!("kinds of {n_listed} layers are listed, the model has {n_layers}")));
    }
    let (RecurrentKind::ShortConv { n_taps, .. } | RecurrentKind::DeltaNet { n_taps, .. }) = recurrent.kind;
    if !(1..=MAX_TAPS).contains(&n_taps) {
        return Err(Error::invalid_file(path, format!("the convolutions have {n_taps} taps, they must have from 1 to {MAX_TAPS}")));
    }
    let RecurrentKind::DeltaNet { n_key_heads, n_value_heads, key_size, value_size, .. } = recurrent.kind else { return Ok(()) };
    let sizes = [
        ("number of linear attention's key heads", n_key_heads, MAX_HEADS),
        ("number of linear attention's value heads", n_value_heads, MAX_HEADS),
        ("size of linear attention's key heads", key_size, MAX_HEAD_SIZE),
        ("size of linear attention's value heads", value_size, MAX_HEAD_SIZE),
    ];
    if let Some((what, value, limit)) = sizes.into_iter().find(|(_, value, limit)| *value == 0 || value > limit) {
        return Err(Error::invalid_file(path, format!("the {what} is {value}, it must be from 1 to {limit}")));
    }
    // Cannot overflow: all factors are bounded above.
    if n_key_heads * key_size > MAX_SIZE || n_value_heads * value_size > MAX_SIZE {
        let reason =
            format!("linear attention's {n_key_heads} and {n_value_heads} heads of {key_size} and {value_size} values are absurdly wide");
        return Err(Error::invalid_file(path, reason));
    }
    if !n_value_heads.is_multiple_of(n_key_heads) {
        let reason = format!("linear attention's {n_value_heads} value heads cannot share {n_key_heads} key heads evenly");
        return Err(Error::invalid_file(path, reason));
    }
    Ok(())
}

fn check_latent(config: &ModelConfig, path: &str) -> Result<()> {
    let Some(latent) = config.variant.latent else { return Ok(()) };
    let sizes = [
        ("rank of compressed queries", latent.query_rank.unwrap_or(1), MAX_SIZE),
        ("rank of compressed keys and values", latent.rank, MAX_HEAD_SIZE),
        ("number of a query's values that do not turn", latent.still_size, MAX_HEAD_SIZE),
        ("number of a query's values that turn", latent.rotary_size, MAX_HEAD_SIZE),
        ("size of a value's head", latent.value_size, MAX_HEAD_SIZE),
    ];
    if let Some((what, value, limit)) = sizes.into_iter().find(|(_, value, limit)| *value == 0 || value > limit) {
        return Err(Error::invalid_file(path, format!("the {what} is {value}, it must be from 1 to {limit}")));
    }
    // Cannot overflow: all factors are bounded above.
    if config.n_heads * (latent.still_size + latent.rotary_size).max(latent.value_size) > MAX_SIZE {
        return Err(Error::invalid_file(path, format!("{} heads of compressed attention are absurdly wide", config.n_heads)));
    }
    Ok(())
}

fn check_variant(variant: &Variant, path: &str) -> Result<()> {
    let scales = [
        ("scale of the embedding", Some(variant.embedding_scale)),
        ("scale of the residual stream", Some(variant.residual_scale)),
        ("scale of the logits", Some(variant.logit_scale)),
        ("scale of the attention scores", variant.attention_scale),
        ("softcap of the attention scores", variant.attention_softcap),
        ("softcap of the logits", variant.logit_softcap),
    ];
    let floats = scales.iter().filter_map(|&(what, value)| Some((what, f64::from(value?), MAX_FACTOR)));
    check_each(floats.collect(), path)
}

fn check_experts(experts: &Experts, config: &ModelConfig, path: &str) -> Result<()> {
    let invalid = |reason: String| Err(Error::invalid_file(path, reason));
    let &Experts { n_experts, n_used, ffn_size, .. } = experts;
    let shared = experts.shared.map_or(1, |shared| shared.ffn_size);
    for (what, value, limit) in [
        ("number of experts", n_experts, MAX_EXPERTS),
        ("number of experts of a token", n_used, n_experts),
        ("feed-forward size of an expert", ffn_size, MAX_SIZE),
        ("feed-forward size of the shared expert", shared, MAX_SIZE),
    ] {
        if value == 0 || value > limit {
            return invalid(format!("the {what} is {value}, it must be from 1 to {limit}"));
        }
    }
    // Rows of all experts, and what all experts of a token give; neither overflows, both factors being bounded.
    let widest = ffn_size.max(config.hidden_size);
    if n_experts.saturating_mul(widest) > u32::MAX as usize || n_used.saturating_mul(widest) > MAX_SIZE {
        return invalid(format!("{n_experts} experts of {ffn_size} values, {n_used} of a token, are absurdly wide"));
    }
    if let Some(groups) = experts.groups {
        let (n_groups, n_chosen) = (groups.n_groups, groups.n_used);
        if n_groups == 0 || !n_experts.is_multiple_of(n_groups) {
            return invalid(format!("{n_experts} experts cannot be in {n_groups} groups of the same size"));
        }
        if n_chosen == 0 || n_chosen > n_groups || n_chosen * (n_experts / n_groups) < n_used {
            let reason = format!("{n_used} experts of a token cannot be of {n_chosen} of {n_groups} groups, of {n_experts} experts in all");
            return invalid(reason);
        }
    }
    check_each(vec![("scale of the experts", f64::from(experts.scale), MAX_FACTOR)], path)
}

fn check_rope(rope: &RopeConfig, rotary_size: usize, path: &str) -> Result<()> {
    let mut floats = vec![("base of the rotary embedding", rope.theta, MAX_FACTOR)];
    match &rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => floats.push(("factor of the rope scaling", *factor, MAX_FACTOR)),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_length } => {
            floats.push(("factor of the rope scaling", *factor, MAX_FACTOR));
            floats.push(("low_freq_factor of the rope scaling", *low_freq_factor, MAX_FACTOR));
            floats.push(("high_freq_factor of the rope scaling", *high_freq_factor, MAX_FACTOR));
            floats.push(("original context of the rope scaling", *original_context_length, MAX_FACTOR));
            if high_freq_factor <= low_freq_factor {
                let reason =
                    format!("the rope scaling's high_freq_factor {high_freq_factor} is not above its low_freq_factor {low_freq_factor}");
                return Err(Error::invalid_file(path, reason));
            }
        }
        RopeScaling::Yarn { factor, original_context_length, beta_fast, beta_slow, attention_factor, .. } => {
            floats.push(("factor of the rope scaling", *factor, MAX_FACTOR));
            floats.push(("original context of the rope scaling", *original_context_length, MAX_FACTOR));
            floats.push(("beta_fast of the rope scaling", *beta_fast, MAX_FACTOR));
            floats.push(("beta_slow of the rope scaling", *beta_slow, MAX_FACTOR));
            floats.push(("attention factor of the rope scaling", *attention_factor, MAX_FACTOR));
        }
        RopeScaling::LongRope { short, long, original_context_length, attention_factor } => {
            floats.push(("original context of the rope scaling", *original_context_length, MAX_FACTOR));
            floats.push(("attention factor of the rope scaling", *attention_factor, MAX_FACTOR));
            for factors in [short, long] {
                if factors.len() != rotary_size / 2 {
                    let reason = format!("the rope scaling has {} factors where {} pairs turn", factors.len(), rotary_size / 2);
                    return Err(Error::invalid_file(path, reason));
                }
                check_factors(factors, path)?;
            }
        }
        RopeScaling::FrequencyFactors { factors } => check_factors(factors, path)?,
    }
    check_each(floats, path)
}

fn check_factors(factors: &[f32], path: &str) -> Result<()> {
    match factors.iter().enumerate().find(|(_, value)| !value.is_finite() || **value <= 0.0) {
        Some((i, value)) => {
            Err(Error::invalid_file(path, format!("rotary frequency factor {i} is {value}, it must be finite and above 0")))
        }
        None => Ok(()),
    }
}

/// Each is above 0 and at most its limit.
fn check_each(floats: Vec<(&str, f64, f64)>, path: &str) -> Result<()> {
    match floats.into_iter().find(|(_, value, limit)| !value.is_finite() || *value <= 0.0 || value > limit) {
        Some((what, value, limit)) => {
            Err(Error::invalid_file(path, format!("the {what} is {value}, it must be above 0 and at most {limit}")))
        }
        None => Ok(()),
    }
}
