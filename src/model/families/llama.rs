//! Llama and what is built like it: the forward pass as a list of operations, top to bottom. Defaults are those of transformers'
//! `LlamaConfig`.

use super::{DECODER_LAYER, Family, Tensors};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{Attention, Model, ModelConfig, Op, RmsNorm, RopeKv, RopePairs, Unit, UnitKind, Value, ValueId};
use crate::weights::TensorId;

pub(super) static FAMILY: Family = Family {
    name: "llama",
    classes: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    gguf: &["llama"],
    from_json,
    // Converters permute the rows of q and k for it.
    from_gguf: |keys| keys.decoder(&FAMILY, RopePairs::Neighbours),
    model,
    class_prefix: "Llama",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = fields.decoder(&FAMILY, &Defaults { n_kv_heads: None, head_size: None, context_length: 2048 })?;
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    let ffn_bias = fields.bool("mlp_bias")?.unwrap_or(false);
    Ok(ModelConfig { attention_bias, attention_output_bias: attention_bias, ffn_bias, ..config })
}

const HIDDEN: ValueId = ValueId(0);
const NORMED: ValueId = ValueId(1);
const QUERY: ValueId = ValueId(2);
const KEY: ValueId = ValueId(3);
const VALUE: ValueId = ValueId(4);
const ATTENTION: ValueId = ValueId(5);
const GATE: ValueId = ValueId(6);
const UP: ValueId = ValueId(7);
const GATED: ValueId = ValueId(8);
const DELTA: ValueId = ValueId(9);
const LAST: ValueId = ValueId(10);
const LAST_NORMED: ValueId = ValueId(11);
const LOGITS: ValueId = ValueId(12);
/// Of families that norm queries and keys: both as they are before.
const PLAIN_QUERY: ValueId = ValueId(13);
const PLAIN_KEY: ValueId = ValueId(14);

/// A Llama-like model; tensor names as Hugging Face checkpoints write them.
pub(super) fn model(config: &ModelConfig, tensor: &Tensors<'_>) -> Result<Model> {
    Ok(Model { config: config.clone(), values: values(config), hidden: HIDDEN, logits: LOGITS, units: units(config, tensor)? })
}

/// In the order of the ids above.
fn values(config: &ModelConfig) -> Vec<Value> {
    let mut values = vec![
        Value::of_tokens("hidden state", config.hidden_size),
        Value::of_tokens("normed hidden state", config.hidden_size),
        Value::of_heads("queries", config.n_heads, config.head_size),
        Value::of_tokens("keys", config.kv_size()),
        Value::of_tokens("values", config.kv_size()),
        Value::of_heads("attention output", config.n_heads, config.head_size),
        Value::of_tokens("gate", config.ffn_size),
        Value::of_tokens("up projection", config.ffn_size),
        Value::of_tokens("gated up projection", config.ffn_size),
        Value::of_tokens("output of a unit", config.hidden_size),
        Value::of_logits("last hidden states", config.hidden_size),
        Value::of_logits("normed last hidden states", config.hidden_size),
        Value::of_logits("logits", config.vocab_size),
    ];
    if config.qk_norm {
        values.push(Value::of_tokens("queries before their norm", config.query_size()));
        values.push(Value::of_tokens("keys before their norm", config.kv_size()));
    }
    values
}

fn units(config: &ModelConfig, tensor: &Tensors<'_>) -> Result<Vec<Unit>> {
    let (vocab_size, hidden_size) = (config.vocab_size as u64, config.hidden_size as u64);
    let embedding = tensor("model.embed_tokens.weight", &[vocab_size, hidden_size])?;
    let embed = Op::Embed { table: embedding, output: HIDDEN };
    let mut units = vec![Unit { name: "model.embed_tokens".into(), kind: UnitKind::Embedding, ops: vec![embed] }];
    for layer in 0..config.n_layers {
        units.push(attention(config, layer, tensor)?);
        units.push(feed_forward(config, layer, tensor)?);
    }
    let head = if config.tied_embeddings { embedding } else { tensor("lm_head.weight", &[vocab_size, hidden_size])? };
    units.push(Unit {
        name: "lm_head".into(),
        kind: UnitKind::Head,
        ops: vec![
            Op::GatherRows { input: HIDDEN, output: LAST },
            norm(config, LAST, tensor("model.norm.weight", &[hidden_size])?, LAST_NORMED),
            Op::MatMul { input: LAST_NORMED, weight: head, output: LOGITS },
        ],
    });
    Ok(units)
}

fn attention(config: &ModelConfig, layer: usize, tensor: &Tensors<'_>) -> Result<Unit> {
    let ModelConfig { n_heads, n_kv_heads, head_size, .. } = *config;
    let (hidden_size, query_size, kv_size) = (config.hidden_size as u64, config.query_size() as u64, config.kv_size() as u64);
    let name = format!("model.layers.{layer}.self_attn");
    let norm_weight = tensor(&format!("model.layers.{layer}.input_layernorm.weight"), &[hidden_size])?;
    let mut ops = vec![norm(config, HIDDEN, norm_weight, NORMED)];
    let (query, key) = if config.qk_norm { (PLAIN_QUERY, PLAIN_KEY) } else { (QUERY, KEY) };
    for (part, n_rows, output) in [("q_proj", query_size, query), ("k_proj", kv_size, key), ("v_proj", kv_size, VALUE)] {
        let weight = tensor(&format!("{name}.{part}.weight"), &[n_rows, hidden_size])?;
        ops.push(Op::MatMul { input: NORMED, weight, output });
        if config.attention_bias {
            ops.push(Op::AddBias { bias: tensor(&format!("{name}.{part}.bias"), &[n_rows])?, target: output });
        }
    }
    if config.qk_norm {
        for (part, input, output) in [("q_norm", PLAIN_QUERY, QUERY), ("k_norm", PLAIN_KEY, KEY)] {
            let weight = tensor(&format!("{name}.{part}.weight"), &[head_size as u64])?;
            ops.push(Op::RmsNorm(RmsNorm { input, weight, output, group_size: head_size, epsilon: config.rms_norm_epsilon }));
        }
    }
    ops.push(Op::RopeKv(RopeKv { layer, query: QUERY, key: KEY, value: VALUE, n_heads, n_kv_heads, head_size, pairs: config.rope.pairs }));
    let window = config.sliding_window.filter(|_| layer >= config.n_full_attention_layers);
    let scale = 1.0 / (head_size as f32).sqrt();
    ops.push(Op::Attention(Attention { layer, query: QUERY, output: ATTENTION, n_heads, n_kv_heads, head_size, window, scale }));
    let weight = tensor(&format!("{name}.o_proj.weight"), &[hidden_size, query_size])?;
    ops.push(Op::MatMul { input: ATTENTION, weight, output: DELTA });
    if config.attention_output_bias {
        ops.push(Op::AddBias { bias: tensor(&format!("{name}.o_proj.bias"), &[hidden_size])?, target: DELTA });
    }
    ops.push(Op::Add { input: DELTA, target: HIDDEN });
    Ok(Unit { name, kind: UnitKind::Attention { layer }, ops })
}

fn feed_forward(config: &ModelConfig, layer: usize, tensor: &Tensors<'_>) -> Result<Unit> {
    let (hidden_size, ffn_size) = (config.hidden_size as u64, config.ffn_size as u64);
    let name = format!("model.layers.{layer}.mlp");
    let matrix = |ops: &mut Vec<Op>, part: &str, shape: [u64; 2], input: ValueId, output: ValueId| -> Result<()> {
        ops.push(Op::MatMul { input, weight: tensor(&format!("{name}.{part}.weight"), &shape)?, output });
        if config.ffn_bias {
            ops.push(Op::AddBias { bias: tensor(&format!("{name}.{part}.bias"), &shape[..1])?, target: output });
        }
        Ok(())
    };
    let norm_weight = tensor(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[hidden_size])?;
    let mut ops = vec![norm(config, HIDDEN, norm_weight, NORMED)];
    matrix(&mut ops, "gate_proj", [ffn_size, hidden_size], NORMED, GATE)?;
    matrix(&mut ops, "up_proj", [ffn_size, hidden_size], NORMED, UP)?;
    ops.push(Op::SwiGlu { gate: GATE, up: UP, output: GATED });
    matrix(&mut ops, "down_proj", [hidden_size, ffn_size], GATED, DELTA)?;
    ops.push(Op::Add { input: DELTA, target: HIDDEN });
    Ok(Unit { name, kind: UnitKind::FeedForward { layer }, ops })
}

fn norm(config: &ModelConfig, input: ValueId, weight: TensorId, output: ValueId) -> Op {
    Op::RmsNorm(RmsNorm { input, weight, output, group_size: config.hidden_size, epsilon: config.rms_norm_epsilon })
}
