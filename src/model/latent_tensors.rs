//! The matrices that make keys and values of latent vectors, however a checkpoint stores them: both as one, head by head, as folders have
//! them, or those of keys transposed and those of values apart, as GGUF files have them. Queries are multiplied by those of keys, so that
//! these become columns: one matrix each for keys, `[n_heads · rank, still_size]`, and for values, `[n_heads · value_size, rank]`.

use std::sync::Arc;

use super::{Latent, ModelConfig};
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::units::Bytes;
use crate::weights::{Catalog, Gathered, Order, Piece, TensorInfo, add_file, rearranged};

/// The matrix of both in the attention part of a layer; `:key` and `:value` are what the model computes with.
pub(super) const BOTH: &str = "kv_b_proj";
/// What GGUF files have in its place.
pub(super) const APART: [&str; 2] = ["k_b_proj", "v_b_proj"];

/// The catalog with the matrices of keys and of values apart, what is put in order in files of their own that are read from those of
/// `sources`; `path` is for messages.
///
/// # Errors
/// [`Error::MissingTensor`] and [`Error::WrongShape`] where tensors contradict the config; [`Error::UnsupportedModel`] where values of
/// different columns share a block.
pub(super) fn with_latent(config: &ModelConfig, catalog: Catalog, sources: &mut Vec<Arc<dyn ByteSource>>, path: &str) -> Result<Catalog> {
    let Some(latent) = config.variant.latent else { return Ok(catalog) };
    let names = &config.family.names;
    let heads = Heads { n_heads: config.n_heads as u64, latent, path };
    let Catalog { mut shards, mut tensors, .. } = catalog;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for layer in 0..config.n_layers {
        let module = format!("{}.{layer}.{}", names.layers, names.attention);
        let place = |name: &str| tensors.iter().position(|tensor| tensor.name == format!("{module}.{name}.weight"));
        let name = format!("{module}.{BOTH}.weight");
        match (place(BOTH), APART.map(place)) {
            (Some(both), _) => {
                let both = tensors.swap_remove(both);
                keys.push(TensorInfo { name: format!("{name}:key"), ..both.clone() });
                values.push(heads.value_of(both, name)?);
            }
            (None, [Some(key), Some(value)]) => {
                let [key_shape, value_shape] = heads.shapes();
                heads.name_part(&mut tensors[key], format!("{name}:key"), key_shape)?;
                heads.name_part(&mut tensors[value], format!("{name}:value"), value_shape)?;
            }
            (None, _) => return Err(Error::MissingTensor { path: path.to_owned(), tensor: name }),
        }
    }
    let order = Order::HeadsTransposed { n_heads: heads.n_heads, n_rows: latent.still_size as u64 };
    if let Some(file) = rearranged(keys.iter_mut().map(|key| (key, order)).collect(), sources, shards.len() as u32) {
        add_file(file, &mut shards, sources);
    }
    let parts = values.iter_mut().map(|(tensor, pieces)| (tensor, std::mem::take(pieces))).collect();
    if let Some(file) = Gathered::of(parts, sources, shards.len() as u32) {
        add_file(file, &mut shards, sources);
    }
    tensors.extend(keys);
    tensors.extend(values.into_iter().map(|(tensor, _)| tensor));
    Ok(Catalog::new(shards, tensors))
}

/// The heads of a layer.
struct Heads<'a> {
    n_heads: u64,
    latent: Latent,
    path: &'a str,
}

impl Heads<'_> {
    /// The matrices of keys and of values as the model computes with them, of each head.
    fn shapes(&self) -> [[u64; 2]; 2] {
        let Latent { rank, still_size, value_size, .. } = self.latent;
        [[rank as u64, still_size as u64], [value_size as u64, rank as u64]]
    }

    /// Of the matrix of both, called `name`, that of values and where its rows are: behind those of each head's key.
    fn value_of(&self, both: TensorInfo, name: String) -> Result<(TensorInfo, Vec<Piece>)> {
        let Latent { rank, still_size, value_size, .. } = self.latent;
        let [rank, still_size, value_size] = [rank, still_size, value_size].map(|size| size as u64);
        let expected = vec![self.n_heads * (still_size + value_size), rank];
        if both.shape != expected {
            return Err(Error::WrongShape { path: self.path.to_owned(), tensor: both.name, expected, found: both.shape });
        }
        if both.dtype.block_len() > 1 {
            let reason = format!(
                "tensor `{}` is stored as {}, whose blocks cannot be read by columns; convert the model again: converters write keys and values apart now",
                both.name, both.dtype
            );
            return Err(Error::UnsupportedModel { path: self.path.to_owned(), reason });
        }
        let row_bytes = both.row_bytes();
        let first = |head: u64| both.offset + (head * (still_size + value_size) + still_size) * row_bytes;
        let piece = |head: u64| Piece { shard: both.shard, offset: first(head), len: value_size * row_bytes };
        let pieces = (0..self.n_heads).map(piece).collect();
        let n_rows = self.n_heads * value_size;
        let tensor = TensorInfo { name: format!("{name}:value"), shape: vec![n_rows, rank], size_bytes: Bytes(n_rows * row_bytes), ..both };
        Ok((tensor, pieces))
    }

    /// Names a matrix of all heads, each of this shape, and puts these one behind the other.
    fn name_part(&self, tensor: &mut TensorInfo, name: String, [n_rows, n_columns]: [u64; 2]) -> Result<()> {
        let (expected, flat) = (vec![self.n_heads, n_rows, n_columns], vec![self.n_heads * n_rows, n_columns]);
        if tensor.shape != expected && tensor.shape != flat {
            let (tensor, found) = (tensor.name.clone(), tensor.shape.clone());
            return Err(Error::WrongShape { path: self.path.to_owned(), tensor, expected, found });
        }
        (tensor.name, tensor.shape) = (name, flat);
        Ok(())
    }
}
