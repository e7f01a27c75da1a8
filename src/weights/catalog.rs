//! The catalog: names, dtypes, shapes and byte ranges of a checkpoint's tensors, read from headers only. Holds no tensor data.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::dtype::DType;
use crate::error::Result;
use crate::platform::{self, ByteSource};
use crate::units::Bytes;

/// Index of a tensor in its [`Catalog`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TensorId(pub u32);

/// One named tensor, not yet read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Name as Hugging Face checkpoints write it (`model.layers.0.self_attn.q_proj.weight`), whatever the format.
    pub name: String,
    /// How its values are stored.
    pub dtype: DType,
    /// Outermost dimension first: a matrix is `[rows, columns]`, rows contiguous.
    pub shape: Vec<u64>,
    /// Which file of [`Catalog::shards`].
    pub shard: u32,
    /// Where its bytes begin in that file.
    pub offset: u64,
    /// How many bytes it has; always `dtype.size_bytes` of the shape, and inside the file.
    pub size_bytes: Bytes,
}

impl TensorInfo {
    /// Rows: the outermost dimension (1 for a vector).
    pub fn n_rows(&self) -> u64 {
        if self.shape.len() < 2 { 1 } else { self.shape[0] }
    }

    /// Values in one row: everything but the outermost dimension (all of a vector).
    pub fn n_columns(&self) -> u64 {
        if self.shape.len() < 2 { self.n_values() } else { self.shape[1..].iter().product() }
    }

    /// Values in all.
    pub fn n_values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// All values, decoded, of the file that has it. Its size is bounded by that file.
    ///
    /// # Errors
    /// Those of reading, and where there is no memory for them.
    pub(crate) fn values(&self, source: &dyn ByteSource) -> Result<Vec<f32>> {
        let mut bytes: Vec<u8> = platform::zeroed(self.size_bytes.0 as usize, &self.name)?;
        source.read_at(self.offset, &mut bytes)?;
        let mut values = platform::zeroed(self.n_values() as usize, &self.name)?;
        self.dtype.decode(&bytes, &mut values);
        Ok(values)
    }

    /// Bytes of one row. Readers refuse tensors whose rows are no whole number of blocks, so this is exact.
    pub fn row_bytes(&self) -> u64 {
        self.size_bytes.0 / self.n_rows().max(1)
    }
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shard {
    /// Path as given, for messages and for opening it again.
    pub path: String,
    /// Its size when its header was read.
    pub size_bytes: Bytes,
}

/// All tensors of a checkpoint, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Catalog {
    /// The files.
    pub shards: Vec<Shard>,
    /// The tensors.
    pub tensors: Vec<TensorInfo>,
    #[serde(skip)]
    ids: HashMap<String, TensorId>,
}

impl Catalog {
    /// A catalog of `tensors`, whose names are distinct (readers refuse duplicates).
    pub fn new(shards: Vec<Shard>, tensors: Vec<TensorInfo>) -> Catalog {
        let ids = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), TensorId(index as u32))).collect();
        Catalog { shards, tensors, ids }
    }

    /// Looks a tensor up by name.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.ids.get(name).copied()
    }

    /// Bytes of all tensors.
    pub fn size_bytes(&self) -> Bytes {
        self.tensors.iter().map(|tensor| tensor.size_bytes).sum()
    }

    /// Values of all tensors: the model's parameters.
    pub fn n_values(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::n_values).sum()
    }

    /// Bytes of the tensors of each dtype, by its name.
    pub fn bytes_by_dtype(&self) -> BTreeMap<String, Bytes> {
        let mut bytes = BTreeMap::new();
        for tensor in &self.tensors {
            *bytes.entry(tensor.dtype.to_string()).or_insert(Bytes::ZERO) += tensor.size_bytes;
        }
        bytes
    }
}

impl std::ops::Index<TensorId> for Catalog {
    type Output = TensorInfo;
    fn index(&self, id: TensorId) -> &TensorInfo {
        &self.tensors[id.0 as usize]
    }
}
