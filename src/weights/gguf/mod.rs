//! GGUF files, versions 2 and 3: header, metadata and tensor list become a catalog.
//!
//! Format: magic `GGUF`, version, number of tensors, number of key-value pairs, the pairs, the tensor list, padding to the alignment,
//! then the tensors' bytes (`docs/gguf.md` of ggml).

mod metadata;
mod reader;
pub(crate) mod split;
mod tensors;
mod writer;

use std::collections::{BTreeMap, HashSet};

use self::reader::Reader;
use super::catalog::{Catalog, Shard, TensorInfo};
use super::lfs::refuse_pointer;
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::units::Bytes;
pub use metadata::{MetaValue, Metadata};
pub use writer::{NewFile, NewTensor, WrittenValue};

/// The first bytes of every GGUF file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_KEY_BYTES: u64 = 65_535;
/// Least bytes of a pair: length of the key, type, one byte of value.
const LEAST_PAIR_BYTES: u64 = 8 + 4 + 1;

/// A GGUF file of which everything before the tensor list is read.
pub(crate) struct Head<'a> {
    reader: Reader<'a>,
    n_tensors: u64,
    /// Its key-value pairs.
    pub metadata: Metadata,
}

impl<'a> Head<'a> {
    /// Reads up to the key-value pairs.
    pub fn read(source: &'a dyn ByteSource) -> Result<Head<'a>> {
        refuse_pointer(source)?;
        let mut reader = Reader::new(source);
        check_version(&mut reader)?;
        let n_tensors = reader.count(tensors::LEAST_ENTRY_BYTES, "tensors")?;
        let n_pairs = reader.count(LEAST_PAIR_BYTES, "metadata pairs")?;
        let metadata = read_metadata(&mut reader, n_pairs)?;
        Ok(Head { reader, n_tensors, metadata })
    }

    /// Reads the tensor list of the file that becomes the shard `number`. Each tensor gets the name that `rename` makes of its own.
    fn tensors(&mut self, number: u32, rename: &dyn Fn(&str) -> String) -> Result<(Shard, Vec<TensorInfo>)> {
        let alignment = alignment(&self.metadata)?;
        let mut tensors = tensors::read_entries(&mut self.reader, self.n_tensors, number)?;
        let data = tensors::Data { start: self.reader.position().next_multiple_of(alignment), alignment };
        tensors::place(&self.reader, &mut tensors, data, rename)?;
        Ok((Shard { path: self.metadata.path.clone(), size_bytes: Bytes(self.reader.file_size()) }, tensors))
    }
}

/// The tensors of all files of a model, in the order of their parts.
///
/// # Errors
/// [`Error::InvalidFile`] for a tensor list that is none, a file that is another part than its place says, a tensor that two parts have,
/// and a number of tensors other than the parts were written with.
pub(crate) fn join(heads: &mut [Head<'_>], rename: &dyn Fn(&str) -> String) -> Result<Catalog> {
    let count = heads.len() as u64;
    let (mut shards, mut tensors) = (Vec::new(), Vec::new());
    for (number, head) in (0..).zip(heads.iter_mut()) {
        if count > 1 && split::part_of(&head.metadata)? != Some((u64::from(number), count)) {
            return Err(head.reader.error(format!("is not part {} of {count} of a split model, as its name says", number + 1)));
        }
        let (shard, own) = head.tensors(number, rename)?;
        shards.push(shard);
        tensors.extend(own);
    }
    let Some(first) = heads.first().filter(|_| count > 1) else { return Ok(Catalog::new(shards, tensors)) };
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(first.reader.error(format!("and its other parts have two tensors named `{}`", twice.name)));
    }
    match first.metadata.unsigned("split.tensors.count")? {
        Some(expected) if expected != tensors.len() as u64 => {
            let reason = format!("says that all parts have {expected} tensors together, and they have {}", tensors.len());
            Err(first.reader.error(reason))
        }
        _ => Ok(Catalog::new(shards, tensors)),
    }
}

/// The pairs of a file as they are written in it, in its order.
///
/// # Errors
/// As of reading its head.
pub fn written_pairs(source: &dyn ByteSource) -> Result<Vec<(String, WrittenValue)>> {
    let mut reader = Reader::new(source);
    check_version(&mut reader)?;
    reader.count(tensors::LEAST_ENTRY_BYTES, "tensors")?;
    let n_pairs = reader.count(LEAST_PAIR_BYTES, "metadata pairs")?;
    let mut pairs = Vec::new();
    for index in 0..n_pairs {
        let key = reader.string(MAX_KEY_BYTES, &format!("the key of metadata pair {index}"))?;
        let begin = reader.position();
        let kind = reader.u32(&key)?;
        reader.value(kind, &key)?;
        // What was just read lies in the file.
        let mut bytes = vec![0; (reader.position() - begin) as usize];
        source.read_at(begin, &mut bytes)?;
        pairs.push((key, WrittenValue(bytes)));
    }
    Ok(pairs)
}

fn check_version(reader: &mut Reader<'_>) -> Result<()> {
    if reader.bytes::<4>("the magic")? != MAGIC {
        return Err(reader.error("is no GGUF file: its first bytes are not `GGUF`"));
    }
    match reader.u32("the version")? {
        2 | 3 => Ok(()),
        version if matches!(version.swap_bytes(), 1..=3) => {
            Err(reader.error("is a big-endian GGUF file; only little-endian ones can be read"))
        }
        version => Err(reader.error(format!("is a GGUF file of version {version}; versions 2 and 3 can be read"))),
    }
}

fn read_metadata(reader: &mut Reader<'_>, n_pairs: u64) -> Result<Metadata> {
    let mut entries = BTreeMap::new();
    for index in 0..n_pairs {
        let key = reader.string(MAX_KEY_BYTES, &format!("the key of metadata pair {index}"))?;
        let shown: String = key.escape_debug().take(100).collect();
        let what = format!("metadata key `{shown}`");
        let kind = reader.u32(&what)?;
        let value = reader.value(kind, &what)?;
        if entries.insert(key, value).is_some() {
            return Err(reader.error(format!("{what} is there twice")));
        }
    }
    Ok(Metadata::new(reader.path(), entries))
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let reason = format!("general.alignment is {alignment}, it must be a power of two up to {MAX_ALIGNMENT}");
        return Err(Error::invalid_file(&metadata.path, reason));
    }
    Ok(alignment)
}
