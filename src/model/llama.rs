//! Llama and what is built like it: the forward pass as a list of operations, top to bottom.

use crate::error::Result;
use crate::model::{Activation, Op, Unit, UnitKind};
use crate::weights::{ModelConfig, TensorId};

/// The units of a Llama-like model; tensor names as Hugging Face checkpoints write them.
pub(super) fn units(config: &ModelConfig, tensor: &dyn Fn(&str, &[u64]) -> Result<TensorId>) -> Result<Vec<Unit>> {
    let (vocab_size, hidden_size) = (config.vocab_size as u64, config.hidden_size as u64);
    let embedding = tensor("model.embed_tokens.weight", &[vocab_size, hidden_size])?;
    let mut units = vec![Unit { name: "model.embed_tokens".into(), kind: UnitKind::Embedding, ops: vec![Op::Embed { table: embedding }] }];
    for layer in 0..config.n_layers {
        units.push(attention(config, layer, tensor)?);
        units.push(feed_forward(config, layer, tensor)?);
    }
    let head = if config.tied_embeddings { embedding } else { tensor("lm_head.weight", &[vocab_size, hidden_size])? };
    units.push(Unit {
        name: "lm_head".into(),
        kind: UnitKind::Head,
        ops: vec![
            Op::PickRows,
            Op::RmsNorm { input: Activation::Picked, weight: tensor("model.norm.weight", &[hidden_size])?, output: Activation::Final },
            Op::MatMul { input: Activation::Final, weight: head, output: Activation::Logits },
        ],
    });
    Ok(units)
}

fn attention(config: &ModelConfig, layer: usize, tensor: &dyn Fn(&str, &[u64]) -> Result<TensorId>) -> Result<Unit> {
    let (hidden_size, query_size, kv_size) = (config.hidden_size as u64, config.query_size() as u64, config.kv_size() as u64);
    let name = format!("model.layers.{layer}.self_attn");
    let norm_weight = tensor(&format!("model.layers.{layer}.input_layernorm.weight"), &[hidden_size])?;
    let mut ops = vec![norm(norm_weight)];
    for (part, n_rows, output) in
        [("q_proj", query_size, Activation::Query), ("k_proj", kv_size, Activation::Key), ("v_proj", kv_size, Activation::Value)]
    {
        let weight = tensor(&format!("{name}.{part}.weight"), &[n_rows, hidden_size])?;
        ops.push(Op::MatMul { input: Activation::Normed, weight, output });
        if config.attention_bias {
            ops.push(Op::AddBias { bias: tensor(&format!("{name}.{part}.bias"), &[n_rows])?, target: output });
        }
    }
    ops.push(Op::RopeKv { layer });
    ops.push(Op::Attention { layer });
    let weight = tensor(&format!("{name}.o_proj.weight"), &[hidden_size, query_size])?;
    ops.push(Op::MatMul { input: Activation::Mixed, weight, output: Activation::Delta });
    if config.attention_output_bias {
        ops.push(Op::AddBias { bias: tensor(&format!("{name}.o_proj.bias"), &[hidden_size])?, target: Activation::Delta });
    }
    ops.push(Op::AddResidual);
    Ok(Unit { name, kind: UnitKind::Attention { layer }, ops })
}

fn feed_forward(config: &ModelConfig, layer: usize, tensor: &dyn Fn(&str, &[u64]) -> Result<TensorId>) -> Result<Unit> {
    let (hidden_size, ffn_size) = (config.hidden_size as u64, config.ffn_size as u64);
    let name = format!("model.layers.{layer}.mlp");
    let matrix = |ops: &mut Vec<Op>, part: &str, shape: [u64; 2], input: Activation, output: Activation| -> Result<()> {
        ops.push(Op::MatMul { input, weight: tensor(&format!("{name}.{part}.weight"), &shape)?, output });
        if config.ffn_bias {
            ops.push(Op::AddBias { bias: tensor(&format!("{name}.{part}.bias"), &shape[..1])?, target: output });
        }
        Ok(())
    };
    let norm_weight = tensor(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[hidden_size])?;
    let mut ops = vec![norm(norm_weight)];
    matrix(&mut ops, "gate_proj", [ffn_size, hidden_size], Activation::Normed, Activation::Gate)?;
    matrix(&mut ops, "up_proj", [ffn_size, hidden_size], Activation::Normed, Activation::Up)?;
    ops.push(Op::SwiGlu);
    matrix(&mut ops, "down_proj", [hidden_size, ffn_size], Activation::Gated, Activation::Delta)?;
    ops.push(Op::AddResidual);
    Ok(Unit { name, kind: UnitKind::FeedForward { layer }, ops })
}

fn norm(weight: TensorId) -> Op {
    Op::RmsNorm { input: Activation::Hidden, weight, output: Activation::Normed }
}
