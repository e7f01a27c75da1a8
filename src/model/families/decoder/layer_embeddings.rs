//! Embeddings of tokens that each layer has of its own (Gemma 3n, Gemma 4 E2B): a row of one more table, with a part for each layer, plus
//! what a product makes of the embedding itself. It goes with the residual stream from unit to unit, and each layer ends with what a gate
//! lets through of its part: `hidden += norm(projection · (gelu(gate · hidden) · part))`. Formulas are those of transformers'
//! `Gemma4TextModel` and `Gemma4TextDecoderLayer`.

use super::Units;
use crate::error::Result;
use crate::model::{CopyPart, Function, ModelConfig, Op, Value, ValueId};

/// Its tables, and the parts of a layer.
const TABLE: &str = "model.embed_tokens_per_layer.weight";
const PROJECTION: &str = "model.per_layer_model_projection.weight";
const NORM: &str = "model.per_layer_projection_norm";

/// The values that layers with embeddings of their own work with.
pub(super) struct Ids {
    /// The parts of all layers, one behind the other.
    pub(super) all: ValueId,
    /// What the product makes of the embedding.
    projected: ValueId,
    /// The same, normed.
    normed: ValueId,
    /// A layer's gate.
    gate: ValueId,
    /// A layer's part.
    own: ValueId,
    /// What the gate lets through.
    gated: ValueId,
}

pub(super) fn declare(config: &ModelConfig, declare: &mut dyn FnMut(Value) -> ValueId) -> Ids {
    let size = config.variant.layer_embedding_size;
    let mut of_all = |name| declare(Value::of_tokens(name, config.n_layers * size));
    let [all, projected, normed] = ["embeddings of layers", "projected embedding", "normed projection of the embedding"].map(&mut of_all);
    let mut of_one = |name| declare(Value::of_tokens(name, size));
    let [gate, own, gated] = ["gate of a layer's embedding", "embedding of a layer", "gated embedding of a layer"].map(&mut of_one);
    Ids { all, projected, normed, gate, own, gated }
}

impl Units<'_> {
    /// The rows of the table of all layers.
    pub(super) fn embed_for_layers(&self) -> Result<Option<Op>> {
        let Some(ids) = &self.ids.layer_embeddings else { return Ok(None) };
        let size = self.config.variant.layer_embedding_size;
        let table = (self.tensor)(TABLE, &[self.config.vocab_size as u64, (self.config.n_layers * size) as u64])?;
        Ok(Some(Op::Embed { table, scale: (size as f32).sqrt(), positions: None, output: ids.all }))
    }

    /// What the product makes of the embedding is added to the rows, before the first layer changes the residual stream.
    pub(super) fn complete_layer_embeddings(&self, ops: &mut Vec<Op>) -> Result<()> {
        let Some(ids) = &self.ids.layer_embeddings else { return Ok(()) };
        let (config, size) = (self.config, self.config.variant.layer_embedding_size);
        let weight = (self.tensor)(PROJECTION, &[(config.n_layers * size) as u64, config.hidden_size as u64])?;
        let scaled = |factor: f32, target| Op::Map { function: Function::Scale(factor), target };
        ops.push(Op::MatMul { input: self.ids.hidden, weight, output: ids.projected });
        ops.push(scaled(1.0 / (config.hidden_size as f32).sqrt(), ids.projected));
        ops.push(self.norm(NORM, ids.projected, ids.normed, size)?);
        ops.push(Op::Add { input: ids.normed, target: ids.all });
        ops.push(scaled(std::f32::consts::FRAC_1_SQRT_2, ids.all));
        Ok(())
    }

    /// What the gate lets through of a layer's part is added to the residual stream.
    pub(super) fn add_layer_embedding(&self, ops: &mut Vec<Op>, layer: usize) -> Result<()> {
        let Some(ids) = &self.ids.layer_embeddings else { return Ok(()) };
        let (config, size) = (self.config, self.config.variant.layer_embedding_size);
        let name = format!("{}.{layer}", self.names.layers);
        let hidden = self.ids.hidden;
        self.matrix(ops, &name, "per_layer_input_gate", [size, config.hidden_size], [hidden, ids.gate], false)?;
        ops.push(Op::CopyPart(CopyPart { input: ids.all, output: ids.own, n_heads: 1, from: layer * size, to: 0, len: size }));
        ops.push(Op::Glu { activation: config.variant.activation, gate: ids.gate, up: ids.own, output: ids.gated });
        self.matrix(ops, &name, "per_layer_projection", [config.hidden_size, size], [ids.gated, self.ids.delta], false)?;
        self.add_delta(ops, layer, Some("post_per_layer_input_norm"), hidden)
    }
}
