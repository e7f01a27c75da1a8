//! Layers that have something with a state in place of attention.

use super::Units;
use crate::error::Result;
use crate::model::{Activation, Conv, ModelConfig, Op, RecurrentKind, Unit, UnitKind, Value, ValueId};

/// The parts of a short convolution's input projection: both gates and what is convolved.
pub(in crate::model::families) const SHORT_CONV_PARTS: [&str; 3] = ["b", "c", "x"];

/// The values of these layers.
pub(super) struct Ids {
    /// Both gates of a short convolution and its input.
    projected: [ValueId; 3],
    /// The gated input.
    gated: ValueId,
}

pub(super) fn declare(config: &ModelConfig, kind: RecurrentKind, declare: &mut dyn FnMut(Value) -> ValueId) -> Ids {
    let RecurrentKind::ShortConv { .. } = kind;
    let mut of_width = |name: &'static str| declare(Value::of_tokens(name, config.hidden_size));
    let projected = [of_width("gate before the convolution"), of_width("gate behind the convolution"), of_width("convolution's input")];
    Ids { projected, gated: of_width("gated input of the convolution") }
}

impl Units<'_> {
    /// The part of a layer that stands in place of attention.
    pub(super) fn recurrent(&self, layer: usize, kind: RecurrentKind) -> Result<Unit> {
        let RecurrentKind::ShortConv { n_taps, has_bias } = kind;
        let name = format!("{}.{layer}.{}", self.names.layers, kind.module());
        let mut ops = Vec::new();
        let input = self.norm_before(&mut ops, layer, self.layout.before_attention)?.unwrap_or(self.ids.hidden);
        self.short_conv(&mut ops, &name, input, Shape { layer, n_taps, has_bias })?;
        self.add_delta(&mut ops, layer, self.layout.after_attention, self.ids.hidden)?;
        Ok(Unit { name, kind: UnitKind::Attention { layer }, ops })
    }

    /// A convolution between two gates, which are products of the input as is what is convolved.
    fn short_conv(&self, ops: &mut Vec<Op>, name: &str, input: ValueId, shape: Shape) -> Result<()> {
        let (width, Shape { layer, n_taps, has_bias }) = (self.config.hidden_size, shape);
        let Some(ids) = &self.ids.recurrent else { return Ok(()) };
        for (part, output) in SHORT_CONV_PARTS.iter().zip(ids.projected) {
            self.matrix(ops, name, &format!("in_proj:{part}"), [width, width], [input, output], has_bias)?;
        }
        let [before, behind, convolved] = ids.projected;
        ops.push(Op::Glu { activation: Activation::Identity, gate: before, up: convolved, output: ids.gated });
        let weight = (self.tensor)(&format!("{name}.conv.weight"), &[width as u64, n_taps as u64])?;
        let bias = has_bias.then(|| (self.tensor)(&format!("{name}.conv.bias"), &[width as u64])).transpose()?;
        ops.push(Op::Conv(Conv { layer, input: ids.gated, weight, bias, output: convolved, width, n_taps }));
        ops.push(Op::Glu { activation: Activation::Identity, gate: behind, up: convolved, output: ids.gated });
        self.matrix(ops, name, "out_proj", [width, width], [ids.gated, self.ids.delta], has_bias)
    }
}

/// A short convolution.
#[derive(Clone, Copy)]
struct Shape {
    layer: usize,
    n_taps: usize,
    has_bias: bool,
}
