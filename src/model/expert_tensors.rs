//! The matrices of experts in a catalog, however a checkpoint stores them: one tensor for each expert, one for all, or one that has gate and
//! up projections of all. They become one matrix each for gate, up and down projection, of the rows of all experts.

use std::collections::HashMap;
use std::sync::Arc;

use super::experts::STACKED;
use super::{Experts, ModelConfig};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::units::Bytes;
use crate::weights::{Catalog, Gathered, Piece, Shard, TensorInfo};

/// The catalog with stacked experts, what is put together in a file of its own that is read from those of `sources`; `path` is for messages.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::WrongShape`] and [`Error::InvalidFile`] where tensors contradict the config.
pub(super) fn with_experts(config: &ModelConfig, catalog: Catalog, sources: &mut Vec<Arc<dyn ByteSource>>, path: &str) -> Result<Catalog> {
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
    let mut stacks = Vec::new();
    for layer in (0..config.n_layers).filter(|layer| experts.are_in(*layer)) {
        let prefix = format!("{}.{layer}.{}.{}", names.layers, names.ffn, experts.names.experts);
        let stored = Stored { experts, tensors: &tensors, places: &places, prefix, path };
        for (which, shape) in experts.shapes(config.hidden_size).into_iter().enumerate() {
            stacks.push(stored.stack(which, shape)?);
        }
    }
    let (mut whole, mut scattered) = (Vec::new(), Vec::new());
    for (tensor, pieces) in stacks {
        match joined(&pieces).as_slice() {
            [only] => whole.push(TensorInfo { shard: only.shard, offset: only.offset, ..tensor }),
            pieces => scattered.push((tensor, pieces.to_vec())),
        }
    }
    let parts = scattered.iter_mut().map(|(tensor, pieces)| (tensor, std::mem::take(pieces))).collect();
    if let Some(source) = Gathered::of(parts, sources, shards.len() as u32) {
        shards.push(Shard { path: source.path().to_owned(), size_bytes: Bytes(source.len()) });
        sources.push(Arc::new(source));
    }
    tensors.extend(whole.into_iter().chain(scattered.into_iter().map(|(tensor, _)| tensor)));
    Ok(Catalog::new(shards, tensors))
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
    /// The module of the experts.
    prefix: String,
    path: &'a str,
}

impl Stored<'_> {
    /// The stacked matrix number `which` of [`STACKED`], in whose place it is not known yet, and its pieces. `shape` is that of one expert.
    fn stack(&self, which: usize, shape: [usize; 2]) -> Result<(TensorInfo, Vec<Piece>)> {
        let each = self.experts.names.each[which];
        let (dtype, pieces) = match (self.find(&format!("{}.{each}.weight", self.prefix)), self.of_both(which)) {
            (Some(tensor), _) => self.whole(tensor, shape)?,
            (None, Some(both)) => self.part_of_both(both, which, shape)?,
            (None, None) => self.of_each(each, shape)?,
        };
        let n_rows = (self.experts.n_experts * shape[0]) as u64;
        let size_bytes = Bytes(pieces.iter().map(|piece| piece.len).sum());
        let name = format!("{}.{}", self.prefix, STACKED[which]);
        Ok((TensorInfo { name, dtype, shape: vec![n_rows, shape[1] as u64], shard: 0, offset: 0, size_bytes }, pieces))
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
