//! An opened checkpoint, whatever its format: catalog, config, and its tensors' bytes on demand.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::constants::layer_scales;
use super::expert_tensors::with_experts;
use super::latent_tensors::with_latent;
use super::scaled_weights::with_scales;
use super::{ModelConfig, config_gguf, config_json, families, gguf_names};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::{self, ByteSource, DirectBuffer, Folder, IoMode, open_source};
use crate::units::Bytes;
use crate::weights::derived::DerivedFile;
use crate::weights::gguf::{self, split};
use crate::weights::safetensors::Unreadable;
use crate::weights::{Catalog, Metadata, NarrowedMatrix, Order, TensorId, TensorInfo, add_file, folder, rearranged};

/// Makes a folder a model in Hugging Face's format.
const CONFIG_NAME: &str = "config.json";
/// Where a head is compared with the embedding: heads that differ do so nearly everywhere, and reading all of both takes seconds.
const N_SAMPLES: u64 = 64;
const SAMPLE_BYTES: usize = 4096;

/// The two formats, distinguished by a file's first bytes.
#[derive(Debug, Clone)]
pub enum Format {
    /// `config.json` and safetensors files.
    HuggingFace {
        /// The folder they are in; tokenizer files lie there too.
        folder: Folder,
    },
    /// A `.gguf` file, or all parts of one that was split.
    Gguf,
}

/// A model's files, its headers read and checked.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// What the user named, for messages.
    pub path: String,
    /// How it is stored.
    pub format: Format,
    /// Its tensors.
    pub catalog: Catalog,
    /// Its sizes and settings.
    pub config: ModelConfig,
    /// The key-value pairs of a GGUF file.
    pub metadata: Option<Metadata>,
    /// One per shard of the catalog.
    pub sources: Vec<Arc<dyn ByteSource>>,
    /// Tensors in dtypes that tierflow does not compute with, by name.
    unreadable: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens a folder, a `.gguf` file (any part of a split one), or a folder by one of its files (`config.json`, `*.safetensors`, the
    /// index). Reads headers only.
    pub fn open(path: &Path, io: IoMode) -> Result<Checkpoint> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path.display(), source))?;
        if !metadata.is_dir() {
            return Checkpoint::open_file(path, io);
        }
        let folder = Folder::from(path);
        if folder.contains(CONFIG_NAME) {
            return Checkpoint::open_folder(folder, io);
        }
        let names = folder.names_with("gguf")?;
        if let Some(only) = split::only_model(&names) {
            return Checkpoint::open_gguf(folder.open(&only, io)?, &folder, io);
        }
        match names.as_slice() {
            [] => Err(Error::invalid_file(path.display(), "holds no config.json and no .gguf file; name a model's folder or file")),
            [first, ..] => {
                let reason = format!("holds several .gguf files; name one of them, such as {}", folder.path_of(first));
                Err(Error::invalid_file(path.display(), reason))
            }
        }
    }

    /// Opens files that were handed in: one GGUF file, all parts of a split one, or those of a safetensors folder, each called by its bare
    /// name.
    /// Reads headers only.
    ///
    /// # Errors
    /// Those of reading and of headers; [`Error::InvalidFile`] where the sources are neither.
    pub fn from_sources(sources: Vec<Arc<dyn ByteSource>>) -> Result<Checkpoint> {
        if let [only] = sources.as_slice()
            && is_gguf(only.as_ref())?
        {
            return Checkpoint::open_gguf(Arc::clone(only), &Folder::Sources(sources.clone()), IoMode::Pread);
        }
        let folder = Folder::Sources(sources);
        if folder.contains(CONFIG_NAME) {
            return Checkpoint::open_folder(folder, IoMode::Pread);
        }
        let names = folder.names_with("gguf")?;
        if let Some(only) = split::only_model(&names) {
            return Checkpoint::open_gguf(folder.open(&only, IoMode::Pread)?, &folder, IoMode::Pread);
        }
        match names.as_slice() {
            [] => Err(Error::invalid_file(
                &folder,
                "is no GGUF file, and there is no config.json; give a .gguf file or all files of a model's folder",
            )),
            [_, ..] => Err(Error::invalid_file(&folder, "is one of several .gguf files; give one of them")),
        }
    }

    fn open_file(path: &Path, io: IoMode) -> Result<Checkpoint> {
        let source = open_source(path, io)?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let parent = Folder::from(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")));
        if extension == Some("gguf") || is_gguf(source.as_ref())? {
            return Checkpoint::open_gguf(source, &parent, io);
        }
        match extension {
            Some("safetensors" | "json") => Checkpoint::open_folder(parent, io),
            _ => Err(Error::invalid_file(path.display(), "is neither a GGUF file nor part of a safetensors folder")),
        }
    }

    /// The model in the file `source` of `folder`, and in its other parts where it is split.
    fn open_gguf(source: Arc<dyn ByteSource>, folder: &Folder, io: IoMode) -> Result<Checkpoint> {
        let path = source.path().to_owned();
        let head = gguf::Head::read(source.as_ref())?;
        let mut sources = split::open_parts(Arc::clone(&source), &head.metadata, folder, io)?;
        let mut heads = match sources.as_slice() {
            [_] => vec![head],
            parts => parts.iter().map(|part| gguf::Head::read(part.as_ref())).collect::<Result<_>>()?,
        };
        // Before the tensor lists, so that a model of another kind is named as such and not by its tensor types.
        let family = families::of_gguf(&heads[0].metadata, &|| {
            let catalog = gguf::join(&mut [gguf::Head::read(source.as_ref()).ok()?], &|name| name.to_owned()).ok()?;
            families::nearest(catalog.tensors.iter().map(|tensor| tensor.name.as_str()))
        })?;
        let catalog = gguf::join(&mut heads, &|name| gguf_names::translate(name, family))?;
        let metadata = heads.swap_remove(0).metadata;
        let mut config = config_gguf::read_config(family, &metadata, &catalog, &sources)?;
        config.variant.layer_scales = layer_scales(&config, &catalog, &sources, &path)?;
        let catalog = with_experts(&config, catalog, &mut sources, &[], &path)?;
        let catalog = with_latent(&config, catalog, &mut sources, &path)?;
        let catalog = with_parts(&config, with_rows(&config, catalog, &mut sources, true), &path)?;
        Ok(Checkpoint { path, format: Format::Gguf, catalog, config, metadata: Some(metadata), sources, unreadable: HashMap::new() })
    }

    fn open_folder(folder: Folder, io: IoMode) -> Result<Checkpoint> {
        let mut config = config_json::read_config(&folder, &|| {
            let folder::Folder { catalog, .. } = folder::open(&folder, io).ok()?;
            families::nearest(catalog.tensors.iter().map(|tensor| tensor.name.as_str()))
        })?;
        let folder::Folder { catalog, mut sources, mut unreadable } = folder::open(&folder, io)?;
        let catalog = with_scales(config_json::quantization(&folder)?, catalog, &mut unreadable, &mut sources)?;
        let catalog = with_embedding(&config, with_base(&config, with_head(&config, with_taps(with_text(&config, catalog, &folder)))));
        config.variant.layer_scales = layer_scales(&config, &catalog, &sources, &folder.to_string())?;
        let catalog =
            with_experts(&config, with_rows(&config, catalog, &mut sources, false), &mut sources, &unreadable, &folder.to_string())?;
        let catalog = with_latent(&config, catalog, &mut sources, &folder.to_string())?;
        let catalog = with_parts(&config, catalog, &folder)?;
        let mut checkpoint = Checkpoint {
            path: folder.to_string(),
            format: Format::HuggingFace { folder },
            catalog,
            config,
            metadata: None,
            sources,
            unreadable: unreadable.into_iter().map(|Unreadable { name, dtype, .. }| (name, dtype)).collect(),
        };
        if checkpoint.config.tied_embeddings && checkpoint.has_other_head()? {
            let head = checkpoint.config.family.names.head_weight();
            tracing::warn!("{}: tie_word_embeddings is true, but {head} is another matrix; it is used", checkpoint.path);
            checkpoint.config.tied_embeddings = false;
        }
        Ok(checkpoint)
    }

    /// Whether a head is stored that is not the embedding: of another dtype, or with other bytes at any of some places.
    fn has_other_head(&self) -> Result<bool> {
        let names = &self.config.family.names;
        let [head, embedding] = [names.head_weight(), names.embedding_weight()].map(|name| self.catalog.find(&name));
        let (Some(head), Some(embedding)) = (head, embedding) else { return Ok(false) };
        let (found, expected) = (&self.catalog[head], &self.catalog[embedding]);
        if (found.dtype, &found.shape) != (expected.dtype, &expected.shape) {
            return Ok(true);
        }
        let size = found.size_bytes.0;
        let (mut of_head, mut of_embedding) = ([0; SAMPLE_BYTES], [0; SAMPLE_BYTES]);
        for sample in 0..N_SAMPLES {
            let begin = (size / N_SAMPLES).saturating_mul(sample);
            let len = (SAMPLE_BYTES as u64).min(size - begin) as usize;
            self.read(head, begin, &mut of_head[..len])?;
            self.read(embedding, begin, &mut of_embedding[..len])?;
            if of_head[..len] != of_embedding[..len] {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The tensor `name`, which the architecture needs in this shape.
    pub fn expect(&self, name: &str, shape: &[u64]) -> Result<TensorId> {
        let Some(id) = self.catalog.find(name) else {
            let Some(dtype) = self.unreadable.get(name) else {
                return Err(Error::MissingTensor { path: self.path.clone(), tensor: name.to_owned() });
            };
            let reason = format!(
                "tensor `{name}` is stored as {dtype}; supported are F32, F16 and BF16, 8-bit floats with scales, 4-bit integers of compressed-tensors, GPTQ and AWQ, and 4-bit codes of bitsandbytes"
            );
            return Err(Error::UnsupportedModel { path: self.path.clone(), reason });
        };
        let found = &self.catalog[id].shape;
        if found != shape {
            return Err(Error::WrongShape {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: found.clone(),
            });
        }
        Ok(id)
    }

    /// The same with one more file, whose tensors are numbered behind all others.
    pub(crate) fn with_file(&self, source: impl ByteSource + 'static, tensors: Vec<TensorInfo>) -> Checkpoint {
        let mut checkpoint = self.clone();
        let Catalog { mut shards, tensors: mut all, .. } = checkpoint.catalog;
        add_file(source, &mut shards, &mut checkpoint.sources);
        all.extend(tensors);
        checkpoint.catalog = Catalog::new(shards, all);
        checkpoint
    }

    /// Fills `buffer` with the tensor's stored bytes from `offset` on.
    pub fn read(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.locate(id, offset, buffer.len() as u64) {
            Some((source, offset)) => source.read_at(offset, buffer),
            None => Err(self.outside(id, offset, buffer.len())),
        }
    }

    /// All values of a tensor.
    ///
    /// # Errors
    /// Those of reading.
    pub fn vector(&self, id: TensorId) -> Result<Vec<f32>> {
        let tensor = &self.catalog[id];
        let mut bytes = platform::zeroed(tensor.size_bytes.0 as usize, &tensor.name)?;
        self.read(id, 0, &mut bytes)?;
        let mut values = platform::zeroed(tensor.n_values() as usize, &tensor.name)?;
        tensor.dtype.decode(&bytes, &mut values);
        Ok(values)
    }

    /// Bytes of a shard, read without leaving them in the system's memory ([`ByteSource::read_direct`]).
    pub fn read_direct<'b>(&self, shard: u32, offset: u64, len: usize, buffer: &'b mut DirectBuffer) -> Result<&'b [u8]> {
        self.source(shard)?.read_direct(offset, len, buffer)
    }

    /// The same, into memory of the caller ([`ByteSource::read_into`]).
    pub fn read_into(&self, shard: u32, offset: u64, block: &mut [u8], len: usize) -> Result<()> {
        self.source(shard)?.read_into(offset, block, len)
    }

    fn source(&self, shard: u32) -> Result<&dyn ByteSource> {
        let source = self.sources.get(shard as usize);
        source.map(AsRef::as_ref).ok_or_else(|| Error::invalid_file(&self.path, format!("has no shard {shard}")))
    }

    fn outside(&self, id: TensorId, offset: u64, len: usize) -> Error {
        Error::invalid_file(&self.path, format!("{len} bytes at {offset} of tensor {} lie outside of it", id.0))
    }

    /// The tensor's stored bytes themselves, where its file is mapped and unchanged. `None` means: [read](Checkpoint::read) them.
    pub fn view(&self, id: TensorId, offset: u64, len: u64) -> Option<&[u8]> {
        let (source, offset) = self.locate(id, offset, len)?;
        source.view(offset, len)
    }

    /// The same model, its matrices in F32 rounded to `dtype` as they are read: [`DType::F16`] or [`DType::BF16`].
    pub(crate) fn narrowed(&self, dtype: DType) -> Checkpoint {
        let mut narrowed = self.clone();
        let (mut file, shard) = (DerivedFile::default(), self.sources.len() as u32);
        for tensor in narrowed.catalog.tensors.iter_mut().filter(|tensor| tensor.dtype == DType::F32 && tensor.shape.len() >= 2) {
            let source = Arc::clone(&self.sources[tensor.shard as usize]);
            let (offset, size_bytes) = file.push(NarrowedMatrix { source, stored: (tensor.offset, tensor.size_bytes), dtype });
            *tensor = TensorInfo { dtype, shard, offset, size_bytes, ..tensor.clone() };
        }
        if !file.is_empty() {
            add_file(file, &mut narrowed.catalog.shards, &mut narrowed.sources);
        }
        narrowed
    }

    /// A hint that these bytes of a tensor will be read soon.
    pub fn will_need(&self, id: TensorId, offset: u64, len: u64) {
        if let Some((source, offset)) = self.locate(id, offset, len) {
            source.will_need(offset, len);
        }
    }

    /// A hint that these bytes of a tensor will not be read soon, so that the system need not keep them in memory.
    pub fn drop_behind(&self, id: TensorId, offset: u64, len: u64) {
        if let Some((source, offset)) = self.locate(id, offset, len) {
            source.drop_behind(offset, len);
        }
    }

    /// The source and the absolute offset of a range that lies inside the tensor.
    fn locate(&self, id: TensorId, offset: u64, len: u64) -> Option<(&dyn ByteSource, u64)> {
        let tensor: &TensorInfo = self.catalog.tensors.get(id.0 as usize)?;
        offset.checked_add(len).filter(|end| *end <= tensor.size_bytes.0)?;
        let source = self.sources.get(tensor.shard as usize)?;
        Some((source.as_ref(), tensor.offset.checked_add(offset)?))
    }
}

/// What holds the text model where a checkpoint has more: in its names now, and as it was called before.
const TEXT_MODELS: [(&str, &str); 3] =
    [("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")];

/// What the text model calls a module of a checkpoint that has more.
pub(crate) fn text_module(name: &str) -> Option<String> {
    TEXT_MODELS.iter().find_map(|(prefix, own)| Some(format!("{own}{}", name.strip_prefix(prefix)?)))
}

/// The tensors of the text model alone, by their names in it, where the checkpoint holds a model that sees or hears, too.
fn with_text(config: &ModelConfig, catalog: Catalog, path: impl std::fmt::Display) -> Catalog {
    let is_part = |tensor: &TensorInfo| TEXT_MODELS.iter().any(|(prefix, _)| tensor.name.starts_with(prefix));
    if !catalog.tensors.iter().any(is_part) {
        return catalog;
    }
    let head = config.family.names.head_weight();
    let Catalog { shards, mut tensors, .. } = catalog;
    let n_all = tensors.len();
    tensors.retain(|tensor| is_part(tensor) || tensor.name == head);
    for tensor in &mut tensors {
        tensor.name = text_module(&tensor.name).unwrap_or_else(|| std::mem::take(&mut tensor.name));
    }
    let n_others = n_all - tensors.len();
    if n_others > 0 {
        tracing::warn!("{path}: holds a text model and {n_others} tensors of other parts (pictures, sound), which are ignored");
    }
    Catalog::new(shards, tensors)
}

/// Convolutions of single channels as matrices: folders have `[channels, 1, taps]`.
fn with_taps(catalog: Catalog) -> Catalog {
    let Catalog { shards, mut tensors, .. } = catalog;
    for tensor in tensors.iter_mut().filter(|tensor| matches!(tensor.shape[..], [_, 1, _])) {
        tensor.shape.remove(1);
    }
    Catalog::new(shards, tensors)
}

/// A head under its former name is given its own.
fn with_head(config: &ModelConfig, catalog: Catalog) -> Catalog {
    let names = &config.family.names;
    let Some(former) = names.former_head.map(|name| format!("{name}.weight")) else { return catalog };
    let Catalog { shards, mut tensors, .. } = catalog;
    let head = names.head_weight();
    if !tensors.iter().any(|tensor| tensor.name == head) {
        tensors.iter_mut().filter(|tensor| tensor.name == former).for_each(|tensor| tensor.name.clone_from(&head));
    }
    Catalog::new(shards, tensors)
}

/// A model that was saved without its head has names without the module that holds the rest; they are given it.
fn with_base(config: &ModelConfig, catalog: Catalog) -> Catalog {
    let names = &config.family.names;
    let (embedding, base) = (names.embedding_weight(), names.base());
    let bare = embedding.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')).unwrap_or(&embedding);
    if catalog.find(&embedding).is_some() || catalog.find(bare).is_none() {
        return catalog;
    }
    let Catalog { shards, mut tensors, .. } = catalog;
    let head = names.head_weight();
    tensors.iter_mut().filter(|tensor| tensor.name != head).for_each(|tensor| tensor.name.insert_str(0, &format!("{base}.")));
    Catalog::new(shards, tensors)
}

/// Of a model whose head is its embedding, some writers keep the head's name alone.
fn with_embedding(config: &ModelConfig, catalog: Catalog) -> Catalog {
    let [embedding, head] = [config.family.names.embedding_weight(), config.family.names.head_weight()];
    if !config.tied_embeddings || catalog.find(&embedding).is_some() {
        return catalog;
    }
    let Catalog { shards, mut tensors, .. } = catalog;
    tensors.iter_mut().filter(|tensor| tensor.name == head).for_each(|tensor| tensor.name.clone_from(&embedding));
    Catalog::new(shards, tensors)
}

/// What files store in another order as what it is, in a file of its own that is read from those of `sources`.
fn with_rows(config: &ModelConfig, catalog: Catalog, sources: &mut Vec<Arc<dyn ByteSource>>, is_gguf: bool) -> Catalog {
    let mut stored = (config.family.stored)(config);
    stored.retain(|stored| stored.is_so_in_gguf || !is_gguf);
    let order_of = |tensor: &TensorInfo| {
        // A parameter that is no module's weight.
        if let Some(bare) = stored.iter().find(|stored| tensor.name.ends_with(stored.suffix)) {
            return bare.order;
        }
        let (module, kind) = tensor.name.rsplit_once('.')?;
        let order = stored.iter().find(|stored| module.ends_with(stored.suffix))?.order?;
        // Biases have one dimension, in which there is nothing to transpose.
        (kind == "weight" || (kind == "bias" && order != Order::Transposed)).then_some(order)
    };
    let Catalog { mut shards, mut tensors, .. } = catalog;
    let reordered = tensors.iter_mut().filter_map(|tensor| order_of(tensor).map(|order| (tensor, order))).collect();
    if let Some(file) = rearranged(reordered, sources, shards.len() as u32) {
        add_file(file, &mut shards, sources);
    }
    Catalog::new(shards, tensors)
}

/// Each matrix that holds several of the family's, one behind the other, as those, and its bias likewise: rows are contiguous, so that
/// some of them are a matrix too, which is placed, sliced and streamed as any other.
fn with_parts(config: &ModelConfig, catalog: Catalog, path: impl std::fmt::Display) -> Result<Catalog> {
    let mut stored = (config.family.stored)(config);
    stored.retain(|stored| !stored.parts.is_empty());
    if stored.is_empty() {
        return Ok(catalog);
    }
    let Catalog { shards, tensors, .. } = catalog;
    let mut parts = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let module = tensor.name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind)).map(|(module, _)| module);
        let Some(found) = module.and_then(|module| stored.iter().find(|stored| module.ends_with(stored.suffix))) else {
            parts.push(tensor);
            continue;
        };
        let n_rows: u64 = found.parts.iter().map(|(_, n_rows)| *n_rows as u64).sum();
        // Of a matrix and of its bias, whose rows are single values.
        let (n_found, inner) = tensor.shape.split_first().map_or((0, &[][..]), |(n_rows, inner)| (*n_rows, inner));
        let is_whole = n_found == n_rows && n_rows > 0 && tensor.size_bytes.0.is_multiple_of(n_rows);
        if inner.len() > 1 || !is_whole || (inner.is_empty() && tensor.dtype.block_len() > 1) {
            let expected = [&[n_rows][..], inner].concat();
            return Err(Error::WrongShape { path: path.to_string(), tensor: tensor.name, expected, found: tensor.shape });
        }
        let (mut offset, row_bytes) = (tensor.offset, tensor.size_bytes.0 / n_rows);
        for (part, n_rows) in &found.parts {
            let size_bytes = Bytes(*n_rows as u64 * row_bytes);
            let (name, shape) = (format!("{}:{part}", tensor.name), [&[*n_rows as u64][..], inner].concat());
            parts.push(TensorInfo { name, shape, offset, size_bytes, ..tensor.clone() });
            offset += size_bytes.0;
        }
    }
    Ok(Catalog::new(shards, parts))
}

/// By its first bytes.
fn is_gguf(source: &dyn ByteSource) -> Result<bool> {
    let mut magic = [0; 4];
    Ok(source.len() >= 4 && source.read_at(0, &mut magic).map(|()| magic == gguf::MAGIC)?)
}
