//! Norms that adapters replace whole, as PEFT's `modules_to_save` has them. Of several adapters, and of scales other than 1, each takes the model's own
//! weights as far towards its own as its scale says: 1 is the adapter's, 0 the model's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::apply::{Scaled, is_gguf, names_of};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Model, Norm};
use crate::units::listed;
use crate::weights::TensorId;

/// Weights of a norm, and its bias where it has one, as transformers has them.
#[derive(Debug, Clone, PartialEq)]
pub struct NormValues {
    /// `[width]`
    pub weight: Vec<f32>,
    /// `[width]`
    pub bias: Option<Vec<f32>>,
}

/// What stands in place of the model's vectors, as they are stored.
///
/// # Errors
/// [`Error::InvalidFile`] of an adapter of another model; those of reading.
pub(crate) fn replaced(checkpoint: &Checkpoint, model: &Model, adapters: &[Scaled]) -> Result<BTreeMap<TensorId, Vec<f32>>> {
    let mut vectors: BTreeMap<TensorId, Moved> = BTreeMap::new();
    if adapters.iter().all(|scaled| scaled.adapter.norms.is_empty()) {
        return Ok(BTreeMap::new());
    }
    let norms = model.norms(&checkpoint.catalog, is_gguf(checkpoint));
    for Scaled { adapter, scale } in adapters {
        for (module, values) in &adapter.norms {
            let norm = norm_of(model, &norms, module, values).map_err(|reason| Error::invalid_file(&adapter.path, reason))?;
            let parts = [(Some(norm.weight), Some(&values.weight), norm.stored_offset), (norm.bias, values.bias.as_ref(), 0.0)];
            for (id, values, offset) in parts {
                let Some((id, values)) = id.zip(values) else { continue };
                let moved = match vectors.entry(id) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(Moved::new(checkpoint.vector(id)?)),
                };
                moved.towards(values, offset, *scale);
            }
        }
    }
    Ok(vectors.into_iter().map(|(id, moved)| (id, moved.values())).collect())
}

/// A vector of the model, and how far adapters move it.
struct Moved {
    base: Vec<f32>,
    by: Vec<f64>,
}

impl Moved {
    fn new(base: Vec<f32>) -> Moved {
        Moved { by: vec![0.0; base.len()], base }
    }

    fn towards(&mut self, values: &[f32], offset: f32, scale: f32) {
        for ((by, base), value) in self.by.iter_mut().zip(&self.base).zip(values) {
            *by += f64::from(scale) * (f64::from(*value) + f64::from(offset) - f64::from(*base));
        }
    }

    fn values(&self) -> Vec<f32> {
        self.base.iter().zip(&self.by).map(|(base, by)| (f64::from(*base) + by) as f32).collect()
    }
}

/// The norm that an adapter replaces by `values`, or why there is none.
fn norm_of(model: &Model, norms: &BTreeMap<String, Norm>, module: &str, values: &NormValues) -> Result<Norm, String> {
    let Some(norm) = names_of(model, module).find_map(|name| norms.get(&name)) else {
        let mut known: Vec<&str> = norms.keys().filter_map(|name| name.rsplit('.').next()).collect();
        known.sort_unstable();
        known.dedup();
        let (module, name, known) = (module.escape_debug(), &model.config.name, listed(&known));
        return Err(format!("replaces `{module}`, which is no norm of {name} ({known}); take an adapter that was trained on this model"));
    };
    let widths = [Some(values.weight.len()), values.bias.as_ref().map(Vec::len)];
    if let Some(width) = widths.into_iter().flatten().find(|width| *width != norm.width) {
        let module = module.escape_debug();
        return Err(format!("replaces `{module}` by {width} values, and the model's norm has {}", norm.width));
    }
    if values.bias.is_some() && norm.bias.is_none() {
        return Err(format!("has a bias for `{}`, and the model's norm has none", module.escape_debug()));
    }
    Ok(*norm)
}
