//! Linear layers that an embedding goes through after it was pooled: the module Dense of sentence-transformers, and `dense_2` and `dense_3`
//! of GGUF files.

use std::sync::Arc;

use serde_json::Value;

use super::files::{self, MAX_CONFIG_BYTES, text_error};
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::platform::{ByteSource, Folder, IoMode};
use crate::weights::{TensorInfo, folder};

/// Widest input or output: that of no published model comes near.
const MAX_WIDTH: u64 = 1 << 16;

/// `output` = function(`weights` · `input` + `bias`).
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Values of the input.
    n_inputs: usize,
    /// A row for each output.
    weights: Vec<f32>,
    /// One for each output, if there are any.
    bias: Option<Vec<f32>>,
    function: DenseFunction,
}

/// What the sums of a layer go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DenseFunction {
    Identity,
    Tanh,
}

impl Dense {
    /// Values that it reads.
    pub fn n_inputs(&self) -> usize {
        self.n_inputs
    }

    /// Values that it gives.
    pub fn n_outputs(&self) -> usize {
        self.weights.len() / self.n_inputs
    }

    /// What it makes of `input`, which has as many values as it reads.
    pub fn apply(&self, input: &[f32]) -> Vec<f32> {
        let sum = |(index, row): (usize, &[f32])| {
            let products = row.iter().zip(input).map(|(weight, value)| f64::from(*weight) * f64::from(*value)).sum::<f64>();
            let sum = products + self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[index]));
            let value = if self.function == DenseFunction::Tanh { sum.tanh() } else { sum };
            value as f32
        };
        self.weights.chunks_exact(self.n_inputs).enumerate().map(sum).collect()
    }

    /// The one in the subfolder `name` of `parent`.
    pub(super) fn from_folder(parent: &Folder, name: &str) -> Result<Dense> {
        let config = format!("{name}/config.json");
        let path = parent.path_of(&config);
        let fields = files::read_fields(parent, &config, MAX_CONFIG_BYTES)?;
        let fields = fields.ok_or_else(|| text_error(&path, "is missing; it says what a module Dense computes"))?;
        let unsupported = |reason: String| Error::UnsupportedModel { path: path.clone(), reason };
        // What is left out is that of the class in sentence-transformers.
        let function = match fields.get("activation_function").and_then(Value::as_str).map(|name| name.rsplit('.').next().unwrap_or(name)) {
            Some("Identity") => DenseFunction::Identity,
            None | Some("Tanh") => DenseFunction::Tanh,
            Some(other) => {
                return Err(unsupported(format!("activation_function `{other}` is not supported; supported are Identity and Tanh")));
            }
        };
        if let Some(other) = fields.get("module_input_name").and_then(Value::as_str).filter(|name| *name != "sentence_embedding") {
            return Err(unsupported(format!("reads `{other}`; supported is sentence_embedding")));
        }
        let subfolder = match parent {
            Folder::Path(parent) => Folder::Path(parent.join(name)),
            Folder::Sources(_) => {
                return Err(unsupported("belongs to a module in a subfolder, and files that were given have none".into()));
            }
        };
        let folder::Folder { catalog, sources, .. } = folder::open(&subfolder, IoMode::Pread)?;
        let find = |name: &str| catalog.tensors.iter().find(|tensor| tensor.name == name);
        let weight =
            find("linear.weight").ok_or_else(|| Error::MissingTensor { path: subfolder.to_string(), tensor: "linear.weight".into() })?;
        let dense = Dense::of(weight, find("linear.bias"), &sources, function, &subfolder.to_string())?;
        let sizes = [("in_features", dense.n_inputs()), ("out_features", dense.n_outputs())];
        for (key, found) in sizes {
            if let Some(said) = fields.get(key).and_then(Value::as_u64).filter(|said| *said != found as u64) {
                return Err(Error::invalid_file(&path, format!("`{key}` is {said}, but linear.weight has {found}")));
            }
        }
        Ok(dense)
    }

    /// Those of a GGUF file.
    pub(super) fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Vec<Dense>> {
        let tensor = |name: &str| checkpoint.catalog.find(name).map(|id| &checkpoint.catalog[id]);
        let of = |layer: &str| {
            let weight = tensor(&format!("{layer}.weight"))?;
            let bias = tensor(&format!("{layer}.bias"));
            Some(Dense::of(weight, bias, &checkpoint.sources, DenseFunction::Identity, &checkpoint.path))
        };
        ["dense_2", "dense_3"].into_iter().filter_map(of).collect()
    }

    fn of(
        weight: &TensorInfo,
        bias: Option<&TensorInfo>,
        sources: &[Arc<dyn ByteSource>],
        function: DenseFunction,
        path: &str,
    ) -> Result<Dense> {
        let &[n_outputs, n_inputs] = weight.shape.as_slice() else {
            return Err(Error::invalid_file(path, format!("`{}` has {} dimensions, it must have 2", weight.name, weight.shape.len())));
        };
        if let Some(size) = [n_outputs, n_inputs].into_iter().find(|size| *size == 0 || *size > MAX_WIDTH) {
            return Err(Error::invalid_file(path, format!("`{}` has a side of {size}, it must be from 1 to {MAX_WIDTH}", weight.name)));
        }
        let bias = bias.map(|bias| match bias.shape.as_slice() {
            [n] if *n == n_outputs => values_of(bias, sources, path),
            found => {
                Err(Error::WrongShape { path: path.into(), tensor: bias.name.clone(), expected: vec![n_outputs], found: found.into() })
            }
        });
        // Cannot be cut off: at most MAX_WIDTH.
        Ok(Dense { n_inputs: n_inputs as usize, weights: values_of(weight, sources, path)?, bias: bias.transpose()?, function })
    }
}

/// All values of a tensor.
fn values_of(tensor: &TensorInfo, sources: &[Arc<dyn ByteSource>], path: &str) -> Result<Vec<f32>> {
    let source = sources.get(tensor.shard as usize);
    let source = source.ok_or_else(|| Error::invalid_file(path, format!("has no shard {} for `{}`", tensor.shard, tensor.name)))?;
    tensor.values(source.as_ref())
}
