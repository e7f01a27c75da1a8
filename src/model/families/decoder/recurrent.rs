//! Layers that have something with a state in place of attention.

use super::Units;
use crate::error::Result;
use crate::model::{Activation, Conv, DeltaRule, Function, ModelConfig, Op, RecurrentKind, RmsNorm, Unit, UnitKind, Value, ValueId};
use crate::weights::TensorId;

/// The parts of a short convolution's input projection: both gates and what is convolved.
pub(in crate::model::families) const SHORT_CONV_PARTS: [&str; 3] = ["b", "c", "x"];

/// The values of these layers.
pub(super) enum Ids {
    ShortConv {
        /// Both gates and the input.
        projected: [ValueId; 3],
        gated: ValueId,
    },
    DeltaNet {
        /// Queries, keys and values before and behind the convolution.
        projected: ValueId,
        convolved: ValueId,
        alpha: ValueId,
        beta: ValueId,
        /// What the output is gated by.
        gate: ValueId,
        output: ValueId,
        normed: ValueId,
    },
}

pub(super) fn declare(config: &ModelConfig, kind: RecurrentKind, declare: &mut dyn FnMut(Value) -> ValueId) -> Ids {
    let mut of_width = |name: &'static str, width: usize| declare(Value::of_tokens(name, width));
    match kind {
        RecurrentKind::ShortConv { .. } => {
            let names = ["gate before the convolution", "gate behind the convolution", "convolution's input"];
            let projected = names.map(|name| of_width(name, config.hidden_size));
            Ids::ShortConv { projected, gated: of_width("gated input of the convolution", config.hidden_size) }
        }
        RecurrentKind::DeltaNet { n_key_heads, n_value_heads, key_size, value_size, .. } => {
            let value_width = n_value_heads * value_size;
            let width = 2 * n_key_heads * key_size + value_width;
            Ids::DeltaNet {
                projected: of_width("linear attention's input", width),
                convolved: of_width("linear attention's convolved input", width),
                alpha: of_width("linear attention's alpha", n_value_heads),
                beta: of_width("linear attention's beta", n_value_heads),
                gate: of_width("gate of linear attention", value_width),
                output: of_width("output of linear attention", value_width),
                normed: of_width("normed output of linear attention", value_width),
            }
        }
    }
}

impl Units<'_> {
    /// The part of a layer that stands in place of attention.
    pub(super) fn recurrent(&self, layer: usize, kind: RecurrentKind) -> Result<Unit> {
        let name = format!("{}.{layer}.{}", self.names.layers, kind.module());
        let mut ops = Vec::new();
        let input = self.norm_before(&mut ops, layer, self.layout.before_attention)?.unwrap_or(self.ids.hidden);
        match kind {
            RecurrentKind::ShortConv { n_taps, has_bias } => self.short_conv(&mut ops, &name, input, layer, (n_taps, has_bias))?,
            RecurrentKind::DeltaNet { .. } => self.delta_net(&mut ops, &name, input, layer, kind)?,
        }
        self.add_delta(&mut ops, layer, self.layout.after_attention, self.ids.hidden)?;
        Ok(Unit { name, kind: UnitKind::Attention { layer }, ops })
    }

    /// A convolution between two gates, which are products of the input as is what is convolved.
    fn short_conv(&self, ops: &mut Vec<Op>, name: &str, input: ValueId, layer: usize, (n_taps, has_bias): (usize, bool)) -> Result<()> {
        let width = self.config.hidden_size;
        let Some(Ids::ShortConv { projected, gated }) = self.ids.recurrent else { return Ok(()) };
        for (part, output) in SHORT_CONV_PARTS.iter().zip(projected) {
            self.matrix(ops, name, &format!("in_proj:{part}"), [width, width], [input, output], has_bias)?;
        }
        let [before, behind, convolved] = projected;
        ops.push(Op::Glu { activation: Activation::Identity, gate: before, up: convolved, output: gated });
        let weight = self.parameter(name, "conv.weight", &[width, n_taps])?;
        let bias = has_bias.then(|| self.parameter(name, "conv.bias", &[width])).transpose()?;
        ops.push(Op::Conv(Conv { layer, input: gated, weight, bias, output: convolved, width, n_taps }));
        ops.push(Op::Glu { activation: Activation::Identity, gate: behind, up: convolved, output: gated });
        self.matrix(ops, name, "out_proj", [width, width], [gated, self.ids.delta], has_bias)
    }

    /// Queries, keys and values are convolved, the delta rule is applied, and its output is normed and gated.
    fn delta_net(&self, ops: &mut Vec<Op>, name: &str, input: ValueId, layer: usize, kind: RecurrentKind) -> Result<()> {
        let RecurrentKind::DeltaNet { n_taps, n_key_heads, n_value_heads, key_size, value_size, is_tiled, decay_is_log } = kind else {
            return Ok(());
        };
        let Some(Ids::DeltaNet { projected, convolved, alpha, beta, gate, output, normed }) = self.ids.recurrent else { return Ok(()) };
        let (hidden_size, value_width) = (self.config.hidden_size, n_value_heads * value_size);
        let width = 2 * n_key_heads * key_size + value_width;
        let products = [(width, projected), (value_width, gate), (n_value_heads, beta), (n_value_heads, alpha)];
        for (part, (n_rows, output)) in self.layout.delta_projections.into_iter().zip(products) {
            self.matrix(ops, name, part, [n_rows, hidden_size], [input, output], false)?;
        }
        let weight = self.parameter(name, "conv1d.weight", &[width, n_taps])?;
        ops.push(Op::Conv(Conv { layer, input: projected, weight, bias: None, output: convolved, width, n_taps }));
        ops.push(Op::Map { function: Function::Activation(Activation::Silu), target: convolved });
        ops.push(Op::DeltaRule(DeltaRule {
            layer,
            input: convolved,
            alpha,
            beta,
            decay: self.parameter(name, "A_log", &[n_value_heads])?,
            decay_is_log,
            bias: self.parameter(name, "dt_bias", &[n_value_heads])?,
            output,
            n_key_heads,
            n_value_heads,
            key_size,
            value_size,
            is_tiled,
        }));
        let weight = Some(self.parameter(name, "norm.weight", &[value_size])?);
        let epsilon = self.config.rms_norm_epsilon;
        // This norm's weights are stored themselves, whatever those of others are.
        ops.push(Op::RmsNorm(RmsNorm { input: output, weight, output: normed, group_size: value_size, epsilon, weight_offset: 0.0 }));
        ops.push(Op::Glu { activation: Activation::Silu, gate, up: normed, output });
        self.matrix(ops, name, "out_proj", [hidden_size, value_width], [output, self.ids.delta], false)
    }

    /// A tensor that is no matrix of a product.
    fn parameter(&self, module: &str, name: &str, shape: &[usize]) -> Result<TensorId> {
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        (self.tensor)(&format!("{module}.{name}"), &shape)
    }
}
