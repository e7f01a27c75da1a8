//! A stage of a model: the layers that one of several machines computes. The first begins with tokens and the last ends with logits; between
//! them goes the residual stream, so that only models whose layers read nothing else of one another can be divided.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::{Model, Op, UnitKind};

impl Model {
    /// The layers that it has units of: all of them, unless it is a [stage](Model::stage).
    pub fn layers(&self) -> Range<usize> {
        let layers = || self.units.iter().filter_map(|unit| unit.kind.layer());
        layers().min().unwrap_or(0)..layers().max().map_or(0, |last| last + 1)
    }

    /// Whether it has all layers, and is no [stage](Model::stage).
    pub fn is_whole(&self) -> bool {
        self.layers() == (0..self.config.n_layers)
    }

    /// Whether its forwards give the residual stream, which another stage goes on with.
    pub fn gives_hidden(&self) -> bool {
        self.layers().end < self.config.n_layers
    }

    /// The same model with `layers` alone, which keep their numbers and names. One that does not begin with the first layer embeds no tokens
    /// and begins with hidden states; one that does not end with the last layer gives those of the positions that are asked for in place
    /// of logits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there are no such layers, of a model that generates nothing, and where layers read more of earlier
    /// ones than the residual stream.
    pub fn stage(mut self, layers: Range<usize>) -> Result<Model> {
        let n_layers = self.config.n_layers;
        let invalid = |reason: String| Err(Error::InvalidArgument { option: "layers".into(), reason });
        if layers.is_empty() || layers.end > n_layers {
            return invalid(format!("{} to {} are asked for, and the model has {n_layers}", layers.start, layers.end));
        }
        if !self.has_head() || self.is_encoder() {
            return invalid("of a model that makes embeddings cannot be divided among machines".into());
        }
        if let Some(id) = self.carried.first() {
            let (name, family) = (self.value(*id).name, self.config.family.name);
            return invalid(format!("of {family} cannot be divided among machines: they read {name} of earlier ones"));
        }
        let is_whole = layers == (0..n_layers);
        self.units.retain(|unit| unit.kind.layer().is_none_or(|layer| layers.contains(&layer)));
        // Its head is a matrix of its own then, wherever the embedding is.
        self.config.tied_embeddings &= is_whole;
        if layers.start > 0 {
            self.units.iter_mut().filter(|unit| unit.kind == UnitKind::Embedding).for_each(|unit| unit.ops.clear());
        }
        if layers.end < n_layers {
            self.end_with_hidden()?;
        }
        Ok(self)
    }

    /// In place of the head, the rows of the residual stream that are asked for.
    fn end_with_hidden(&mut self) -> Result<()> {
        let gathers = |op: &Op| if let Op::GatherRows { input, output } = op { Some((*input, *output)) } else { None };
        let head = self.units.last_mut().filter(|unit| unit.kind == UnitKind::Head);
        let hidden = self.hidden;
        let gathered = head.and_then(|head| {
            head.ops.retain(|op| gathers(op).is_some_and(|(input, _)| input == hidden));
            head.ops.first().and_then(gathers)
        });
        let Some((_, output)) = gathered else { return Err(Error::internal("a head that reads no hidden states")) };
        // The others of the head are not computed.
        let others = (0..).zip(&mut self.values).filter(|(id, value)| *id != output.0 && value.is_of_head());
        others.for_each(|(_, value)| value.width = 0);
        self.logits = output;
        Ok(())
    }
}
