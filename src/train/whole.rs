//! The model's own weights as what is trained: which tensors, where they begin, products with them as they are now, and the folder that they
//! are written to, which has all else as it was.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::adapter::{Adapter, Layer, TrainedVector, is_called};
use super::dense::{add_sums, transposed};
use super::trainer::TrainOptions;
use super::weights::Weights;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::host::simd::simd;
use crate::host::{self, Input};
use crate::kernels::matmul;
use crate::model::{Checkpoint, Format, Model, Op};
use crate::platform::{self, ByteSource, Folder, IoMode};
use crate::units::{Bytes, listed};
use crate::weights::{TensorId, TensorInfo, folder, read_header, safetensors_header};

/// The file of [`write_values`].
const VALUES_NAME: &str = "values.safetensors";
/// Values that are encoded or read at once.
const AT_ONCE: usize = 1 << 20;
const CONFIG_NAME: &str = "config.json";
/// What a model's folder has besides its weights, by the ends of names.
const COPIED: [&str; 5] = ["json", "txt", "model", "jinja", "tiktoken"];

/// A tensor that may be trained, and what its module is called.
struct Candidate {
    id: TensorId,
    modules: Vec<String>,
    is_matrix: bool,
}

/// What is trained of `model` where its own weights are; values are not there before [`begin`].
pub(super) fn adapter(checkpoint: &Checkpoint, model: &Model, options: &TrainOptions) -> Result<Adapter> {
    let invalid = |option: &str, reason: &str| Err(Error::InvalidArgument { option: option.into(), reason: reason.into() });
    if options.lora.dropout > 0.0 {
        return invalid("dropout", "is of adapters; the model's own weights are trained without");
    }
    if !options.lora.modules_to_save.is_empty() {
        return invalid("modules to save", "are of adapters; name norms among the targets");
    }
    let candidates = candidates(checkpoint, model)?;
    let targets = &options.lora.targets;
    check_targets(&candidates, targets)?;
    let is_wanted =
        |found: &Candidate| targets.is_empty() || found.modules.iter().any(|module| targets.iter().any(|target| is_called(module, target)));
    let mut adapter = Adapter::of_weights();
    for Candidate { id, is_matrix, .. } in candidates.into_iter().filter(is_wanted) {
        let tensor = &checkpoint.catalog[id];
        let layer = adapter.layers.len();
        let [n_inputs, n_outputs] = if is_matrix { [tensor.n_columns(), tensor.n_rows()] } else { [tensor.n_values(), 0] };
        if is_matrix {
            adapter.wholes.insert(id, layer);
        } else {
            adapter.vectors.insert(id, TrainedVector { layer, is_bias: false, stored_offset: 0.0 });
        }
        let (n_inputs, n_outputs) = (n_inputs as usize, n_outputs as usize);
        adapter.layers.push(Layer { module: tensor.name.clone(), n_inputs, n_outputs, a: Vec::new(), b: Vec::new() });
        adapter.rows.push(Vec::new());
    }
    check_stored(checkpoint, &adapter)?;
    Ok(adapter)
}

/// The tensors of a model that its operations compute gradients of, each once.
fn candidates(checkpoint: &Checkpoint, model: &Model) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut add = |id: TensorId, is_matrix: bool, is_head: bool| {
        let head = is_head.then(|| model.config.family.names.head.to_owned());
        if let Some(former) = found.iter_mut().find(|former| former.id == id) {
            return former.modules.extend(head);
        }
        let name = &checkpoint.catalog[id].name;
        let whole = name.split_once(':').map_or(name.as_str(), |(whole, _)| whole);
        let module = whole.strip_suffix(".weight").or_else(|| whole.strip_suffix(".bias")).unwrap_or(whole);
        found.push(Candidate { id, modules: [module.to_owned()].into_iter().chain(head).collect(), is_matrix });
    };
    for op in model.units.iter().flat_map(|unit| &unit.ops) {
        match op {
            Op::Embed { table, positions, .. } => {
                add(*table, true, false);
                positions.iter().for_each(|positions| add(*positions, true, false));
            }
            Op::MatMul { weight, output, .. } => add(*weight, true, *output == model.logits),
            Op::AddBias { bias, .. } => add(*bias, false, false),
            Op::RmsNorm(norm) => norm.weight.iter().for_each(|weight| add(*weight, false, false)),
            Op::LayerNorm(norm) => {
                add(norm.weight, false, false);
                norm.bias.iter().for_each(|bias| add(*bias, false, false));
            }
            Op::Attention(attention) if attention.sinks.is_some() => {
                let reason = "its attention has sinks, whose gradients are not computed here; train an adapter";
                return Err(Error::UnsupportedModel { path: checkpoint.path.clone(), reason: reason.into() });
            }
            _ => {}
        }
    }
    Ok(found)
}

fn check_targets(candidates: &[Candidate], targets: &[String]) -> Result<()> {
    let modules = || candidates.iter().flat_map(|candidate| &candidate.modules);
    let Some(unknown) = targets.iter().find(|target| !modules().any(|module| is_called(module, target))) else { return Ok(()) };
    let mut leaves: Vec<&str> = modules().map(|module| module.rsplit('.').next().unwrap_or(module)).collect();
    leaves.sort_unstable();
    leaves.dedup();
    let reason = format!("`{unknown}` is no module of this model; it has {}", listed(&leaves));
    Err(Error::InvalidArgument { option: "target".into(), reason })
}

/// Refuses tensors that could not be written back as they were found.
fn check_stored(checkpoint: &Checkpoint, adapter: &Adapter) -> Result<()> {
    let unsupported = |reason: String| Err(Error::UnsupportedModel { path: checkpoint.path.clone(), reason });
    let Format::HuggingFace { folder } = &checkpoint.format else {
        let reason = "is a GGUF file, which trained weights are not written back to; name the model's folder (config.json and safetensors), or train an adapter";
        return unsupported(reason.into());
    };
    let n_files = folder::open(folder, IoMode::Pread)?.sources.len();
    for id in adapter.tensors() {
        let TensorInfo { name, dtype, shard, .. } = &checkpoint.catalog[id];
        if *shard as usize >= n_files || !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return unsupported(format!(
                "tensor `{name}` is stored quantised or in another order than it is computed with, and such are not written back; \
                 name others to train, or train an adapter"
            ));
        }
    }
    Ok(())
}

/// What is trained begins as the model's files have it.
pub(super) fn begin(adapter: &mut Adapter, checkpoint: &Checkpoint, loaded: &dyn Fn(Bytes)) -> Result<()> {
    let tensors = adapter.tensors();
    for (layer, id) in adapter.layers.iter_mut().zip(tensors) {
        layer.a = checkpoint.vector(id)?;
        loaded(checkpoint.catalog[id].size_bytes);
    }
    Ok(())
}

/// The matrices of a model: those that are trained as they are now, the others as they are stored.
#[derive(Clone, Copy)]
pub(super) struct Matrices<'a> {
    pub(super) weights: &'a Weights,
    pub(super) adapter: &'a Adapter,
}

impl<'a> Matrices<'a> {
    /// Rows of a matrix that is trained.
    fn own(&self, id: TensorId, rows: [u64; 2]) -> Option<(usize, &'a [f32])> {
        let layer = &self.adapter.layers[self.adapter.whole(id)?];
        let [begin, end] = rows.map(|row| row as usize * layer.n_inputs);
        Some((layer.n_inputs, &layer.a[begin..end]))
    }

    /// As [`Weights::multiply`].
    pub(super) fn multiply(&self, id: TensorId, rows: [u64; 2], tokens: &[f32], output: &mut [f32]) -> Result<()> {
        let Some((n_columns, own)) = self.own(id, rows) else { return self.weights.multiply(id, rows, tokens, output) };
        let n_tokens = (tokens.len() / n_columns) as u32;
        let params = matmul::Params::new(DType::F32, (rows[1] - rows[0]) as u32, n_columns as u32, n_tokens);
        let mut input = Input::default();
        let operand = input.prepare(&params, tokens);
        host::multiply(simd(), &params, bytemuck::cast_slice(own), operand, output);
        Ok(())
    }

    /// As [`Weights::add_transposed`].
    pub(super) fn add_transposed(&self, id: TensorId, rows: [u64; 2], upward: &[f32], output: &mut [f32]) -> Result<()> {
        let Some((n_columns, own)) = self.own(id, rows) else { return self.weights.add_transposed(id, rows, upward, output) };
        add_sums(n_columns, own, upward, output);
        Ok(())
    }

    /// Adds the gradient of rows of a matrix, if it is trained: `Σₜ upward[t, r] · input[t, c]`.
    pub(super) fn add_gradient(&self, id: TensorId, rows: [u64; 2], input: &[f32], upward: &[f32], gradients: &mut [Layer]) {
        let Some(layer) = self.adapter.whole(id) else { return };
        let n_columns = gradients[layer].n_inputs;
        let [begin, end] = rows.map(|row| row as usize);
        let into = &mut gradients[layer].a[begin * n_columns..end * n_columns];
        add_sums(n_columns, input, &transposed(end - begin, upward), into);
    }

    /// Row `row` of a matrix, decoded.
    pub(super) fn row(&self, id: TensorId, row: u64, into: &mut [f32]) -> Result<()> {
        match self.own(id, [row, row + 1]) {
            Some((_, own)) => into.copy_from_slice(own),
            None => self.weights.checkpoint().catalog[id].dtype.decode(&self.weights.rows(id, row, 1)?, into),
        }
        Ok(())
    }
}

/// Writes `layers`, of the shape of what is trained, exactly.
pub(super) fn write_values(layers: &[Layer], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("make", folder.display(), error))?;
    let shapes: Vec<[u64; 1]> = layers.iter().map(|layer| [layer.a.len() as u64]).collect();
    let tensors = layers.iter().zip(&shapes).map(|(layer, shape)| (layer.module.as_str(), "F32", &shape[..], Bytes(shape[0] * 4)));
    let header = safetensors_header(tensors)?;
    platform::write_atomically_by(&folder.join(VALUES_NAME), |file| {
        file.write_all(&header)?;
        // The format is little-endian, and so is every target.
        layers.iter().try_for_each(|layer| file.write_all(bytemuck::cast_slice(&layer.a)))
    })
}

/// Reads what [`write_values`] wrote into `layers`.
pub(super) fn read_values(layers: &mut [Layer], folder: &Path) -> Result<()> {
    let source = platform::open_source(&folder.join(VALUES_NAME), IoMode::Pread)?;
    let mut found: HashMap<String, TensorInfo> =
        read_header(source.as_ref(), 0)?.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    for layer in layers {
        let fits = |tensor: &TensorInfo| tensor.dtype == DType::F32 && tensor.n_values() == layer.a.len() as u64;
        let Some(tensor) = found.remove(&layer.module).filter(fits) else {
            let reason = format!("is of another model or of other targets: `{}` is missing or of another shape", layer.module);
            return Err(Error::invalid_file(source.path(), reason));
        };
        source.read_at(tensor.offset, bytemuck::cast_slice_mut(&mut layer.a))?;
    }
    match found.into_keys().min() {
        Some(name) => Err(Error::invalid_file(source.path(), format!("is of another model or of other targets: it has `{name}`"))),
        None => Ok(()),
    }
}

/// Refuses to write a model to the folder that it is read from.
pub(super) fn check_folder(checkpoint: &Checkpoint, target: &Path) -> Result<()> {
    let Format::HuggingFace { folder: Folder::Path(own) } = &checkpoint.format else { return Ok(()) };
    if !platform::is_same_file(own, target) {
        return Ok(());
    }
    let reason = "is the folder of the model itself, which would be overwritten; name another one";
    Err(Error::InvalidArgument { option: "the folder to write".into(), reason: reason.into() })
}

/// Writes a folder as the model's own, with what is trained as it is now: in `dtype`, or in those that the files have. The config comes last.
pub(super) fn write_model(adapter: &Adapter, checkpoint: &Checkpoint, target: &Path, dtype: Option<DType>) -> Result<()> {
    check_folder(checkpoint, target)?;
    let Format::HuggingFace { folder } = &checkpoint.format else { return Err(Error::internal("a GGUF file was trained whole")) };
    std::fs::create_dir_all(target).map_err(|error| Error::io("make", target.display(), error))?;
    let places = places(adapter, checkpoint);
    for (shard, source) in folder::open(folder, IoMode::Pread)?.sources.iter().enumerate() {
        let name = Path::new(source.path()).file_name().ok_or_else(|| Error::internal("a file without a name"))?;
        let of_file = places.range((shard as u32, 0)..(shard as u32 + 1, 0)).map(|((_, offset), layer)| (*offset, *layer)).collect();
        File { source, shard: shard as u32, trained: of_file, layers: &adapter.layers, dtype }.write(&target.join(name))?;
    }
    for name in COPIED.iter().map(|end| folder.names_with(end)).collect::<Result<Vec<_>>>()?.concat() {
        if name != CONFIG_NAME {
            platform::write_atomically(&target.join(&name), &read_whole(folder.open(&name, IoMode::Pread)?.as_ref())?)?;
        }
    }
    let mut config = read_whole(folder.open(CONFIG_NAME, IoMode::Pread)?.as_ref())?;
    if let Some(dtype) = dtype {
        config = with_dtype(&config, dtype).map_err(|error| Error::invalid_file(folder.path_of(CONFIG_NAME), error.to_string()))?;
    }
    platform::write_atomically(&target.join(CONFIG_NAME), &config)
}

/// Where files have the tensors that are trained: the file and the place in it, and the layer.
fn places(adapter: &Adapter, checkpoint: &Checkpoint) -> BTreeMap<(u32, u64), usize> {
    let place = |id: TensorId| (checkpoint.catalog[id].shard, checkpoint.catalog[id].offset);
    let mut places: BTreeMap<_, _> = adapter.tensors().into_iter().map(place).zip(0..).collect();
    // Some files hold an embedding a second time, as the head that it is.
    let names = &checkpoint.config.family.names;
    let copy = checkpoint.catalog.find(&names.head_weight()).filter(|_| checkpoint.config.tied_embeddings);
    let embedding = checkpoint.catalog.find(&names.embedding_weight()).and_then(|id| adapter.whole(id));
    places.extend(copy.map(place).zip(embedding));
    places
}

fn read_whole(source: &dyn ByteSource) -> Result<Vec<u8>> {
    let mut bytes = platform::zeroed(source.len() as usize, source.path())?;
    source.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// A config that says this dtype, under either of its names.
fn with_dtype(config: &[u8], dtype: DType) -> serde_json::Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(config)?;
    let said = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    };
    let Value::Object(fields) = &mut config else { return serde_json::to_vec_pretty(&config) };
    let name = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    fields.insert(name.into(), said.into());
    serde_json::to_vec_pretty(&config)
}

/// A file that is written as another one is, but for the tensors that are trained.
struct File<'a> {
    source: &'a Arc<dyn ByteSource>,
    shard: u32,
    /// Where the values of layers stand in it.
    trained: BTreeMap<u64, usize>,
    layers: &'a [Layer],
    dtype: Option<DType>,
}

/// A tensor of a file.
struct Stored {
    name: String,
    /// What it is written as, and what the header calls that.
    dtype: Option<DType>,
    said: String,
    shape: Vec<u64>,
    offset: u64,
    size: Bytes,
    /// What it is stored as.
    found: Option<DType>,
}

impl File<'_> {
    fn write(&self, path: &Path) -> Result<()> {
        let tensors = self.tensors()?;
        let entries = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.said.as_str(), &tensor.shape[..], tensor.written_bytes()));
        let header = safetensors_header(entries)?;
        platform::write_atomically_by(path, |file| {
            file.write_all(&header)?;
            tensors.iter().try_for_each(|tensor| self.write_tensor(tensor, file))
        })
    }

    /// The tensors in the order of their bytes.
    fn tensors(&self) -> Result<Vec<Stored>> {
        let header = read_header(self.source.as_ref(), self.shard)?;
        let mut tensors: Vec<Stored> = Vec::new();
        for TensorInfo { name, dtype, shape, offset, size_bytes, .. } in header.tensors {
            let written = self.dtype.unwrap_or(dtype);
            let said = format!("{written}").to_uppercase();
            tensors.push(Stored { name, dtype: Some(written), said, shape, offset, size: size_bytes, found: Some(dtype) });
        }
        for other in header.unreadable {
            let (said, size, offset) = (other.dtype, other.size_bytes, other.offset);
            tensors.push(Stored { name: other.name, dtype: None, said, shape: other.shape, offset, size, found: None });
        }
        tensors.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
        Ok(tensors)
    }

    fn write_tensor(&self, tensor: &Stored, file: &mut platform::Checked<'_>) -> Result<()> {
        let end = tensor.offset + tensor.size.0;
        let mut at = tensor.offset;
        while at < end {
            // Of a tensor that holds several, some may be trained.
            if let Some(layer) = self.trained.get(&at).map(|layer| &self.layers[*layer]).filter(|layer| !layer.a.is_empty())
                && let (Some(found), Some(written)) = (tensor.found, tensor.dtype)
            {
                write_values_as(&layer.a, written, file)?;
                at += found.size_bytes(layer.a.len() as u64).ok_or_else(|| Error::internal("a tensor of no whole bytes"))?;
                continue;
            }
            let next = self.trained.range(at + 1..).next().map_or(end, |(next, _)| end.min(*next));
            let len = (next - at).min(AT_ONCE as u64 * 4);
            let mut bytes = platform::zeroed(len as usize, &tensor.name)?;
            self.source.read_at(at, &mut bytes)?;
            match (tensor.found, tensor.dtype) {
                (Some(found), Some(written)) if found != written => {
                    let mut values = vec![0.0; bytes.len() / found.block_bytes() as usize];
                    found.decode(&bytes, &mut values);
                    write_values_as(&values, written, file)?;
                }
                _ => file.write_all(&bytes)?,
            }
            at += len;
        }
        Ok(())
    }
}

impl Stored {
    fn written_bytes(&self) -> Bytes {
        match (self.found, self.dtype) {
            (Some(found), Some(written)) => Bytes(self.size.0 / found.block_bytes() * written.block_bytes()),
            _ => self.size,
        }
    }
}

fn write_values_as(values: &[f32], dtype: DType, file: &mut platform::Checked<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    for values in values.chunks(AT_ONCE) {
        bytes.resize(values.len() * dtype.block_bytes() as usize, 0);
        dtype.encode(values, &mut bytes);
        file.write_all(&bytes)?;
    }
    Ok(())
}
