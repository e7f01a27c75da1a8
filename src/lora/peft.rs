//! The folder of an adapter as PEFT writes it: `adapter_config.json` and `adapter_model.safetensors`, in which the module `M` has
//! `base_model.model.M.lora_A.weight` and `base_model.model.M.lora_B.weight`, and one that is replaced whole `base_model.model.M.weight`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, View};

use super::matrices::{Halves, linear_of, read_values};
use super::{Adapter, LowRank, NormValues, Settings, gguf};
use crate::error::{Error, Result};
use crate::platform::{self, ByteSource, Folder, IoMode, open_source};
use crate::weights::{Header, TensorInfo, read_header};

const CONFIG_NAME: &str = "adapter_config.json";
const WEIGHTS_NAME: &str = "adapter_model.safetensors";
const PICKLED_NAME: &str = "adapter_model.bin";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// What the names of all tensors begin with.
const PREFIX: &str = "base_model.model.";

/// One of the two matrices of a linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Down,
    Up,
}

impl Adapter {
    /// Reads the adapter in the folder `path`, or beside the file `path`, or in a GGUF file.
    ///
    /// # Errors
    /// Those of reading; [`Error::InvalidFile`] that names the field or the tensor; [`Error::UnsupportedModel`] of adapters that are more
    /// than LoRA.
    pub fn open(path: &Path) -> Result<Adapter> {
        if is_gguf(path) {
            return gguf::read(open_source(path, IoMode::Pread)?.as_ref());
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Adapter::read(&Folder::from(if path.is_file() { parent } else { path }))
    }

    /// Reads the adapter whose files are `folder`.
    ///
    /// # Errors
    /// As of [`Adapter::open`].
    pub fn read(folder: &Folder) -> Result<Adapter> {
        if !folder.contains(CONFIG_NAME) {
            return Err(Error::invalid_file(folder, format!("holds no {CONFIG_NAME}; name the folder of a LoRA adapter")));
        }
        let settings = Settings::parse(&folder.path_of(CONFIG_NAME), &folder.read_small(CONFIG_NAME, MAX_CONFIG_BYTES)?)?;
        if !folder.contains(WEIGHTS_NAME) {
            let found = if folder.contains(PICKLED_NAME) { format!(" but {PICKLED_NAME}") } else { String::new() };
            let reason = format!("holds no {WEIGHTS_NAME}{found}; save the adapter with safe_serialization=True");
            return Err(Error::invalid_file(folder, reason));
        }
        let source = folder.open(WEIGHTS_NAME, IoMode::Pread)?;
        let (linears, norms) = read_modules(source.as_ref(), &settings)?;
        Ok(Adapter { path: folder.to_string(), settings, linears, norms })
    }

    /// Reads the adapter whose files are these: those of a folder, or one in the GGUF format.
    ///
    /// # Errors
    /// As of [`Adapter::open`].
    pub fn from_sources(sources: Vec<Arc<dyn ByteSource>>) -> Result<Adapter> {
        match sources.as_slice() {
            [one] if is_gguf(Path::new(one.path())) => gguf::read(one.as_ref()),
            _ => Adapter::read(&Folder::Sources(sources)),
        }
    }

    /// Writes the adapter to `folder`, which is made where there is none: the weights first, each file whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::InvalidFile`] where a matrix or a scaling is not as the settings have it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.files()?.into_iter().try_for_each(|(name, bytes)| platform::write_with_folder(&folder.join(name), &bytes))
    }

    /// Names and bytes of the files that [`Adapter::write`] writes.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where a matrix or a scaling is not as the settings have it.
    pub fn files(&self) -> Result<[(&'static str, Vec<u8>); 2]> {
        let path = Path::new(&self.path).join(WEIGHTS_NAME);
        let mut tensors = Vec::new();
        for (module, linear) in &self.linears {
            let invalid = |reason: String| Error::invalid_file(path.display(), format!("`{module}`: {reason}"));
            let (rank, scaling) = (self.settings.rank_of(module).map_err(invalid)?, self.settings.scaling_of(module).map_err(invalid)?);
            if (rank, scaling) != (linear.rank, linear.scaling) {
                let (found, scaled) = (linear.rank, linear.scaling);
                return Err(invalid(format!("has rank {found} and scaling {scaled} where the settings say {rank} and {scaling}")));
            }
            let matrices =
                [("lora_A", &linear.down, [linear.rank, linear.n_inputs]), ("lora_B", &linear.up, [linear.n_outputs, linear.rank])];
            for (name, values, shape) in matrices {
                if shape[0].checked_mul(shape[1]) != Some(values.len()) {
                    return Err(invalid(format!("{name} has {} values where its shape is {shape:?}", values.len())));
                }
                tensors.push((format!("{PREFIX}{module}.{name}.weight"), Stored { values, shape: shape.to_vec() }));
            }
        }
        for (module, NormValues { weight, bias }) in &self.norms {
            let named = [("weight", Some(weight)), ("bias", bias.as_ref())];
            let values = named.into_iter().filter_map(|(name, values)| Some((name, values?)));
            tensors.extend(values.map(|(name, values)| (format!("{PREFIX}{module}.{name}"), Stored { values, shape: vec![values.len()] })));
        }
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        let bytes = safetensors::serialize(tensors, metadata).map_err(|error| Error::invalid_file(path.display(), error.to_string()))?;
        let config = serde_json::to_string_pretty(&self.settings.to_json()).map_err(|error| Error::internal(error.to_string()))?;
        Ok([(WEIGHTS_NAME, bytes), (CONFIG_NAME, config.into_bytes())])
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Values that are written.
struct Stored<'a> {
    values: &'a [f32],
    shape: Vec<usize>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // The format is little-endian, and so is every target.
        Cow::Borrowed(bytemuck::cast_slice(self.values))
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// Modules of both kinds by their names.
type Modules = (BTreeMap<String, LowRank>, BTreeMap<String, NormValues>);

fn read_modules(source: &dyn ByteSource, settings: &Settings) -> Result<Modules> {
    let invalid = |reason: String| Error::invalid_file(source.path(), reason);
    let Header { tensors, unreadable } = read_header(source, 0)?;
    if let Some(other) = unreadable.first() {
        return Err(invalid(format!("tensor `{}` is stored as {}; supported are F32, F16 and BF16", other.name, other.dtype)));
    }
    let mut found: BTreeMap<&str, Halves<'_>> = BTreeMap::new();
    let mut norms: BTreeMap<String, NormValues> = BTreeMap::new();
    let replaced = |name: &str| {
        let (module, kind) = name.strip_prefix(PREFIX)?.rsplit_once('.')?;
        (["weight", "bias"].contains(&kind) && settings.saves(module)).then(|| (module.to_owned(), kind == "bias"))
    };
    for tensor in &tensors {
        if let Some((module, is_bias)) = replaced(&tensor.name) {
            let values = read_vector(source, tensor)?;
            let norm = norms.entry(module).or_insert(NormValues { weight: Vec::new(), bias: None });
            if is_bias {
                norm.bias = Some(values)
            } else {
                norm.weight = values
            };
            continue;
        }
        let (module, half) = parse_name(&tensor.name).map_err(|reason| invalid(format!("tensor `{}` {reason}", tensor.name)))?;
        let slot = &mut found.entry(module).or_default()[half as usize];
        if let Some(twin) = slot.replace(tensor) {
            return Err(invalid(format!("tensors `{}` and `{}` are the same matrix", twin.name, tensor.name)));
        }
    }
    if found.is_empty() && norms.is_empty() {
        return Err(invalid("holds no tensor".into()));
    }
    let is_missing = |end: &&String| !norms.iter().any(|(module, norm)| module.ends_with(end.as_str()) && !norm.weight.is_empty());
    if let Some(end) = settings.modules_to_save.iter().find(is_missing) {
        return Err(invalid(format!("holds no weight of `{}`, which `modules_to_save` names", end.escape_debug())));
    }
    let linears = found.into_iter().map(|(module, halves)| {
        let [Some(down), Some(up)] = halves else {
            let missing = if halves[Half::Down as usize].is_none() { "lora_A" } else { "lora_B" };
            return Err(invalid(format!("has no tensor `{PREFIX}{module}.{missing}.weight`")));
        };
        read_linear(source, settings, module, [down, up]).map(|linear| (module.to_owned(), linear))
    });
    Ok((linears.collect::<Result<_>>()?, norms))
}

/// The values of a module that is replaced whole.
fn read_vector(source: &dyn ByteSource, tensor: &TensorInfo) -> Result<Vec<f32>> {
    if tensor.shape.len() == 1 {
        return read_values(source, tensor);
    }
    let reason = format!(
        "tensor `{}` is a matrix that is replaced whole (`modules_to_save`), and norms alone can be; train it as plain LoRA, or merge it",
        tensor.name
    );
    Err(Error::UnsupportedModel { path: source.path().to_owned(), reason })
}

/// The module that a tensor belongs to, and which of its matrices it is; or why it is neither.
fn parse_name(name: &str) -> Result<(&str, Half), &'static str> {
    let Some(rest) = name.strip_prefix(PREFIX) else { return Err("is no adapter's, whose names begin with base_model.model.") };
    if rest.contains("lora_magnitude_vector") {
        return Err("belongs to DoRA, which is not supported; train plain LoRA, or merge it");
    }
    if rest.contains("lora_embedding_") {
        return Err("adapts an embedding, which is not supported; leave the embedding out of target_modules");
    }
    for (word, half) in [(".lora_A", Half::Down), (".lora_B", Half::Up)] {
        // What is not saved by PEFT may have the adapter's name in between.
        if let Some((module, "weight" | "default.weight")) =
            rest.rsplit_once(word).map(|(module, rest)| (module, rest.trim_start_matches('.')))
            && !module.is_empty()
        {
            return Ok((module, half));
        }
    }
    Err("is no lora_A.weight and no lora_B.weight, and nothing else is supported")
}

fn read_linear(source: &dyn ByteSource, settings: &Settings, module: &str, halves: [&TensorInfo; 2]) -> Result<LowRank> {
    let invalid = |reason: String| Error::invalid_file(source.path(), reason);
    let linear = linear_of(source, halves)?;
    let (expected, scaling) = (settings.rank_of(module).map_err(invalid)?, settings.scaling_of(module).map_err(invalid)?);
    if linear.rank != expected {
        let (name, rank) = (&halves[0].name, linear.rank);
        return Err(invalid(format!("tensor `{name}` has rank {rank} where {CONFIG_NAME} says {expected} (`r`, `rank_pattern`)")));
    }
    Ok(LowRank { scaling, ..linear })
}
