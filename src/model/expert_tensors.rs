//! The matrices of experts in a catalog, however a checkpoint stores them: one tensor for each expert, one for all, or one that has gate and
//! up projections of all. They become one matrix each for gate, up and down projection, of the rows of all experts.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::experts::STACKED;
use super::{Experts, ModelConfig};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::units::Bytes;
use crate::weights::safetensors::Unreadable;
use crate::weights::{Apart, Catalog, Gathered, Order, Piece, Shard, TensorInfo, add_file, mxfp4_blocks, rearranged};

/// The catalog with stacked experts, what is put together in files of their own that are read from those of `sources`; `packed` are tensors
/// of dtypes that are none by themselves, `path` is for messages.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::WrongShape`] and [`Error::InvalidFile`] where tensors contradict the config.
pub(super) fn with_experts(
    config: &ModelConfig,
    catalog: Catalog,
    sources: &mut Vec<Arc<dyn ByteSource>>,
    packed: &[Unreadable],
    path: &str,
) -> Result<Catalog> {
    let Some(experts) = &config.variant.experts else { return Ok(catalog) };
    let Catalog { mut shards, mut tensors, .. } = catalog;
    for tensor in &mut tensors {
        tensor.name = present_name(&tensor.name, experts);
        match tensor.shape.as_slice() {
            // Some converters drop the dimension of the only row.
            [n] if tensor.name.ends_with(&format!(".{}.weight", experts.names.shared[1])) => tensor.shape = vec![1, *n],
            // Some write the selection bias as a matrix of one.
            [1, n] if tensor.name.ends_with(experts.names.selection_bias) => tensor.shape = vec![*n],
            _ => {}
        }
    }
    let places = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
    let names = &config.family.names;
    let (mut whole, mut scattered, mut apart) = (Vec::new(), Vec::new(), Vec::new());
    let used = RefCell::default();
    for layer in (0..config.n_layers).filter(|layer| experts.are_in(*layer)) {
        let prefix = format!("{}.{layer}.{}.{}", names.layers, names.ffn, experts.names.experts);
        let stored = Stored { experts, tensors: &tensors, places: &places, packed, prefix, path, used: &used };
        for (which, shape) in experts.shapes(config.hidden_size).into_iter().enumerate() {
            let (tensor, place) = stored.stack(which, shape)?;
            match place {
                Place::Pieces(pieces) => match joined(&pieces).as_slice() {
                    [only] => whole.push(TensorInfo { shard: only.shard, offset: only.offset, ..tensor }),
                    pieces => scattered.push((tensor, pieces.to_vec())),
                },
                Place::Apart(place) => apart.push((tensor, place)),
            }
        }
        if experts.has_bias {
            whole.extend(stored.biases(config.hidden_size, &mut shards, sources)?);
        }
    }
    let parts = scattered.iter_mut().map(|(tensor, pieces)| (tensor, std::mem::take(pieces))).collect();
    if let Some(file) = Gathered::of(parts, sources, shards.len() as u32) {
        add_file(file, &mut shards, sources);
    }
    let parts = apart.iter_mut().map(|(tensor, place)| (tensor, *place)).collect();
    if let Some(file) = mxfp4_blocks(parts, sources, shards.len() as u32) {
        add_file(file, &mut shards, sources);
    }
    // Each value is in the catalog once.
    let used = used.into_inner();
    tensors.retain(|tensor| !used.contains(&tensor.name));
    tensors.extend(whole);
    tensors.extend(scattered.into_iter().map(|(tensor, _)| tensor).chain(apart.into_iter().map(|(tensor, _)| tensor)));
    Ok(Catalog::new(shards, tensors))
}

/// Where the bytes of a stacked matrix are.
enum Place {
    /// One behind the other.
    Pieces(Vec<Piece>),
    /// As nibbles and scales.
    Apart(Apart),
}

/// The name of a tensor that was called otherwise before.
fn present_name(name: &str, experts: &Experts) -> String {
    let former = experts.names.former.iter().find_map(|(former, present)| {
        let at = name.find(former)?;
        Some(format!("{}{present}{}", &name[..at], &name[at + former.len()..]))
    });
    former.unwrap_or_else(|| name.to_owned())
}

/// What a checkpoint has of the experts of one layer.
struct Stored<'a> {
    experts: &'a Experts,
    tensors: &'a [TensorInfo],
    places: &'a HashMap<String, usize>,
    packed: &'a [Unreadable],
    /// The module of the experts.
    prefix: String,
    path: &'a str,
    /// The names of those that stacks are made of.
    used: &'a RefCell<HashSet<String>>,
}

impl Stored<'_> {
    /// The stacked matrix number `which` of [`STACKED`], whose place is not known yet, and where its bytes are. `shape` is that of one expert.
    fn stack(&self, which: usize, shape: [usize; 2]) -> Result<(TensorInfo, Place)> {
        let each = self.experts.names.each[which];
        let n_rows = (self.experts.n_experts * shape[0]) as u64;
        let name = format!("{}.{}", self.prefix, STACKED[which]);
        let stacked = |dtype, size_bytes| TensorInfo { name, dtype, shape: vec![n_rows, shape[1] as u64], shard: 0, offset: 0, size_bytes };
        if let Some(place) = self.apart(which, shape)? {
            return Ok((stacked(DType::MXFP4, Bytes::ZERO), Place::Apart(place)));
        }
        let (dtype, pieces) = match (self.find(&format!("{}.{each}.weight", self.prefix)), self.of_both(which)) {
            (Some(tensor), _) => self.whole(tensor, shape)?,
            (None, Some(both)) => self.part_of_both(both, which, shape)?,
            (None, None) => self.of_each(each, shape)?,
        };
        let size_bytes = Bytes(pieces.iter().map(|piece| piece.len).sum());
        Ok((stacked(dtype, size_bytes), Place::Pieces(pieces)))
    }

    /// Nibbles and scales of the matrix: `[n_experts, rows, blocks, 16]` and `[n_experts, rows, blocks]`, where rows of gate and up projection
    /// take turns.
    fn apart(&self, which: usize, [n_rows, n_columns]: [usize; 2]) -> Result<Option<Apart>> {
        let (both, _) = STACKED[which].split_once(':').unwrap_or((STACKED[which], ""));
        let find = |kind: &str| {
            let name = format!("{}.{both}_{kind}", self.prefix);
            self.packed.iter().find(|tensor| tensor.name == name).ok_or(name)
        };
        let Ok(nibbles) = find("blocks") else { return Ok(None) };
        let scales = find("scales").map_err(|tensor| Error::MissingTensor { path: self.path.to_owned(), tensor })?;
        if !(n_columns as u64).is_multiple_of(DType::MXFP4.block_len()) {
            let reason =
                format!("`{}` has rows of {n_columns} values, which blocks of {} do not divide", nibbles.name, DType::MXFP4.block_len());
            return Err(Error::invalid_file(self.path, reason));
        }
        let step = if which < 2 { 2 } else { 1 };
        let shape = [self.experts.n_experts, n_rows * step, n_columns / DType::MXFP4.block_len() as usize];
        for (tensor, expected) in [(nibbles, &[&shape[..], &[16]].concat()), (scales, &shape.to_vec())] {
            let expected: Vec<u64> = expected.iter().map(|size| *size as u64).collect();
            if tensor.shape != expected {
                let (path, tensor, found) = (self.path.to_owned(), tensor.name.clone(), tensor.shape.clone());
                return Err(Error::WrongShape { path, tensor, expected, found });
            }
            if tensor.dtype != "U8" {
                let reason = format!("tensor `{}` is stored as {}, it must be U8", tensor.name, tensor.dtype);
                return Err(Error::UnsupportedModel { path: self.path.to_owned(), reason });
            }
        }
        let piece = |tensor: &Unreadable| Piece { shard: tensor.shard, offset: tensor.offset, len: tensor.size_bytes.0 };
        let first = if which == 1 { 1 } else { 0 };
        Ok(Some(Apart { nibbles: piece(nibbles), scales: piece(scales), first, step: step as u64 }))
    }

    /// The biases of gate, up and down projections. Folders have those of gates and up projections in turn; they are put in order in a file of
    /// their own.
    fn biases(&self, hidden_size: usize, shards: &mut Vec<Shard>, sources: &mut Vec<Arc<dyn ByteSource>>) -> Result<Vec<TensorInfo>> {
        let (n_experts, ffn_size) = (self.experts.n_experts, self.experts.ffn_size);
        let names = ["gate_up_proj_bias:gate", "gate_up_proj_bias:up", "down_proj_bias"].map(|name| format!("{}.{name}", self.prefix));
        let sizes = [ffn_size, ffn_size, hidden_size];
        let mut biases = Vec::new();
        for ((name, each), size) in names.iter().zip(self.experts.names.each).zip(sizes) {
            let of_gguf = self.find(&format!("{}.{each}.bias", self.prefix));
            let Some(tensor) = of_gguf.or_else(|| self.find(name)) else { continue };
            self.check(tensor, &[n_experts, size])?;
            biases.push(TensorInfo { name: name.clone(), ..tensor.clone() });
        }
        if let Some(both) = self.find(&format!("{}.gate_up_proj_bias", self.prefix)) {
            self.check(both, &[n_experts, 2 * ffn_size])?;
            let mut pairs = TensorInfo { shape: vec![(n_experts * ffn_size) as u64, 2], ..both.clone() };
            if let Some(file) = rearranged(vec![(&mut pairs, Order::Transposed)], sources, shards.len() as u32) {
                add_file(file, shards, sources);
            }
            let size_bytes = Bytes(pairs.size_bytes.0 / 2);
            for (name, offset) in names.iter().zip([0, size_bytes.0]) {
                let shape = vec![n_experts as u64, ffn_size as u64];
                biases.push(TensorInfo { name: name.clone(), shape, offset: pairs.offset + offset, size_bytes, ..pairs.clone() });
            }
        }
        Ok(biases)
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.places.get(name).map(|place| &self.tensors[*place])
    }

    /// The tensor that has gate and up projections of all experts, or their down projections, as transformers has them.
    fn of_both(&self, which: usize) -> Option<&TensorInfo> {
        let name = format!("{}.{}", self.prefix, STACKED[which].split(':').next().unwrap_or_default());
        self.find(&name).or_else(|| self.find(&format!("{name}.weight")))
    }

    /// `[n_experts, rows, columns]`
    fn whole(&self, tensor: &TensorInfo, [n_rows, n_columns]: [usize; 2]) -> Result<(DType, Vec<Piece>)> {
        self.check(tensor, &[self.experts.n_experts, n_rows, n_columns])?;
        Ok((tensor.dtype, vec![Piece { shard: tensor.shard, offset: tensor.offset, len: tensor.size_bytes.0 }]))
    }

    /// `[n_experts, 2 · rows, columns]`, of which an expert's gate comes before its up projection; or the down projections alone.
    fn part_of_both(&self, tensor: &TensorInfo, which: usize, shape: [usize; 2]) -> Result<(DType, Vec<Piece>)> {
        let Some(part) = [0, 1].into_iter().find(|part| *part == which) else { return self.whole(tensor, shape) };
        self.check(tensor, &[self.experts.n_experts, 2 * shape[0], shape[1]])?;
        let len = tensor.size_bytes.0 / (2 * self.experts.n_experts as u64);
        let offset = |expert: u64| tensor.offset + (2 * expert + part as u64) * len;
        let pieces = (0..self.experts.n_experts as u64).map(|expert| Piece { shard: tensor.shard, offset: offset(expert), len });
        Ok((tensor.dtype, pieces.collect()))
    }

    /// A tensor for each expert, all of one dtype.
    fn of_each(&self, each: &str, shape: [usize; 2]) -> Result<(DType, Vec<Piece>)> {
        let n_experts = self.experts.n_experts;
        let name = |expert: usize| format!("{}.{expert}.{each}.weight", self.prefix);
        let mut pieces = Vec::with_capacity(n_experts);
        let mut dtype = None;
        for expert in 0..n_experts {
            let missing = || Error::MissingTensor { path: self.path.to_owned(), tensor: name(expert) };
            let tensor = self.find(&name(expert)).ok_or_else(missing)?;
            self.check(tensor, &shape)?;
            let first = *dtype.get_or_insert(tensor.dtype);
            if tensor.dtype != first {
                let reason = format!("`{}` is stored as {} and that of expert 0 as {first}; all must be alike", tensor.name, tensor.dtype);
                return Err(Error::UnsupportedModel { path: self.path.to_owned(), reason });
            }
            pieces.push(Piece { shard: tensor.shard, offset: tensor.offset, len: tensor.size_bytes.0 });
        }
        if self.find(&name(n_experts)).is_some() {
            let reason = format!("its config says {n_experts} experts, but there is a tensor `{}`", name(n_experts));
            return Err(Error::invalid_file(self.path, reason));
        }
        Ok((dtype.unwrap_or(DType::F32), pieces))
    }

    fn check(&self, tensor: &TensorInfo, shape: &[usize]) -> Result<()> {
        let expected: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        if tensor.shape == expected {
            self.used.borrow_mut().insert(tensor.name.clone());
            return Ok(());
        }
        let (path, tensor, found) = (self.path.to_owned(), tensor.name.clone(), tensor.shape.clone());
        Err(Error::WrongShape { path, tensor, expected, found })
    }
}

/// Pieces that follow each other in a file as one.
fn joined(pieces: &[Piece]) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if last.shard == piece.shard && last.offset + last.len == piece.offset => last.len += piece.len,
            _ => joined.push(*piece),
        }
    }
    joined
}
