//! What a new file is made from: pairs and tensors under GGUF's names, whatever the model was stored as.

use std::sync::Arc;

use super::merge::merged;
use crate::dtype::DType;
use crate::error::Result;
use crate::lora::Scaled;
use crate::model::{Checkpoint, Format, Origin, as_gguf, hugging_face_name};
use crate::platform::ByteSource;
use crate::text::text_keys;
use crate::weights::{Catalog, MetaValue, NewTensor, TensorId, WrittenValue, gguf, written_pairs};

/// A model that is converted.
pub(super) struct Input {
    /// What the user named, for messages.
    pub(super) path: String,
    /// `general.architecture`.
    pub(super) architecture: String,
    /// The metadata, without what the conversion says anew.
    pub(super) pairs: Vec<(String, WrittenValue)>,
    /// The tensors, in the order in which they are written.
    pub(super) tensors: Vec<InputTensor>,
    /// What the origins of the tensors name.
    pub(super) catalog: Catalog,
    pub(super) sources: Vec<Arc<dyn ByteSource>>,
    /// Transformer layers, 0 where that is not known.
    pub(super) n_layers: u64,
    /// Experts of a layer, 0 of a dense model.
    pub(super) n_experts: u64,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// One tensor of the new file.
pub(super) struct InputTensor {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    /// How it is stored now; `None` of what is computed.
    pub(super) stored: Option<DType>,
    /// Whether what is not quantised stays as it is stored: in files that are laid out already.
    pub(super) keeps_dtype: bool,
    pub(super) origin: Origin,
}

impl InputTensor {
    pub(super) fn as_new(&self, dtype: DType) -> NewTensor {
        NewTensor { name: self.name.clone(), dtype, shape: self.shape.clone() }
    }

    /// Values in a row.
    pub(super) fn n_columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The layer that it belongs to.
    pub(super) fn layer(&self) -> Option<u64> {
        self.name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
    }
}

/// Keys that the conversion writes anew, and those of a file that is one of several.
const OWN_KEYS: [&str; 3] = ["general.file_type", "general.quantization_version", "general.alignment"];
const SPLIT_KEYS: &str = "split.";

impl Input {
    pub(super) fn new(checkpoint: Checkpoint, loras: &[Scaled]) -> Result<Input> {
        let mut input = match checkpoint.format {
            Format::Gguf => Input::of_gguf(checkpoint, loras)?,
            Format::HuggingFace { .. } => Input::of_folder(checkpoint, loras)?,
        };
        // As llama.cpp orders them: rules count the layers in this order.
        input.tensors.sort_by(|a, b| (a.layer(), &a.name).cmp(&(b.layer(), &b.name)));
        Ok(input)
    }

    /// Under the file's own names, with its pairs byte for byte.
    fn of_gguf(mut checkpoint: Checkpoint, loras: &[Scaled]) -> Result<Input> {
        let mut heads = checkpoint.sources.iter().map(|part| gguf::Head::read(part.as_ref())).collect::<Result<Vec<_>>>()?;
        let catalog = gguf::join(&mut heads, &|name| name.to_owned())?;
        let metadata = heads.swap_remove(0).metadata;
        drop(heads);
        let architecture = metadata.string("general.architecture")?.unwrap_or_default().to_owned();
        let count = |key: &str| Ok(metadata.unsigned(&format!("{architecture}.{key}"))?.unwrap_or(0));
        let (n_layers, n_experts) = (count("block_count")?, count("expert_count")?);
        let is_kept = |(key, _): &(String, WrittenValue)| !OWN_KEYS.contains(&key.as_str()) && !key.starts_with(SPLIT_KEYS);
        let pairs = match checkpoint.sources.first() {
            Some(first) => written_pairs(first.as_ref())?.into_iter().filter(is_kept).collect(),
            None => Vec::new(),
        };
        let tensors = (0..).map(TensorId).zip(&catalog.tensors).map(|(id, tensor)| InputTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            stored: Some(tensor.dtype),
            keeps_dtype: true,
            origin: Origin::Tensors { parts: vec![id], interleaved_heads: None, offset: 0.0 },
        });
        let tensors = tensors.collect();
        let catalog = with_loras(&mut checkpoint, loras, catalog)?;
        let (path, sources) = (checkpoint.path, checkpoint.sources);
        Ok(Input { path, architecture, pairs, tensors, catalog, sources, n_layers, n_experts, notes: Vec::new() })
    }

    fn of_folder(mut checkpoint: Checkpoint, loras: &[Scaled]) -> Result<Input> {
        let model = as_gguf(&checkpoint)?;
        let mut keys = model.keys;
        keys.push(("general.type".to_owned(), MetaValue::String("model".to_owned())));
        keys.extend(text_keys(&checkpoint, &model.architecture)?);
        let mut notes = Vec::new();
        if keys.iter().any(|(_, value)| *value == MetaValue::String("no_vocab".to_owned())) {
            notes.push("the folder has no tokenizer.json, so the file has no tokenizer".to_owned());
        }
        if let [first, rest @ ..] = model.left_out.as_slice() {
            let others = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            notes.push(format!("left out, as the model is not computed with them: {first}{others}"));
        }
        let tensors = model.tensors.into_iter().map(|tensor| InputTensor {
            stored: match &tensor.origin {
                Origin::Tensors { parts, .. } => parts.first().map(|part| checkpoint.catalog[*part].dtype),
                Origin::Values(_) => None,
            },
            name: tensor.name,
            shape: tensor.shape,
            keeps_dtype: false,
            origin: tensor.origin,
        });
        let tensors = tensors.collect();
        let catalog = checkpoint.catalog.clone();
        let catalog = with_loras(&mut checkpoint, loras, catalog)?;
        Ok(Input {
            architecture: model.architecture,
            pairs: keys.iter().map(|(key, value)| (key.clone(), WrittenValue::from(value))).collect(),
            tensors,
            n_layers: checkpoint.config.n_layers as u64,
            n_experts: 0,
            path: checkpoint.path,
            catalog,
            sources: checkpoint.sources,
            notes,
        })
    }
}

/// `catalog` with adapters merged into its matrices; that of a GGUF file has its own names.
fn with_loras(checkpoint: &mut Checkpoint, loras: &[Scaled], catalog: Catalog) -> Result<Catalog> {
    if loras.is_empty() {
        return Ok(catalog);
    }
    let mut sources = checkpoint.sources.clone();
    let name_of = |name: &str| match checkpoint.format {
        Format::Gguf => hugging_face_name(name, checkpoint.config.family),
        Format::HuggingFace { .. } => name.to_owned(),
    };
    let catalog = merged(checkpoint, loras, catalog, &mut sources, &name_of)?;
    checkpoint.sources = sources;
    Ok(catalog)
}
