//! The safetensors files of a Hugging Face folder as one catalog: a single file, or shards named by an index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::catalog::{Catalog, Shard};
use super::safetensors::{Unreadable, read_header};
use crate::error::{Error, Result};
use crate::platform::{self, ByteSource, IoMode};
use crate::units::Bytes;

const INDEX_NAME: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Shards of a checkpoint at most; the largest published ones have a few hundred.
const MAX_SHARDS: usize = 4096;

/// What a folder's safetensors files hold.
pub(crate) struct Folder {
    pub catalog: Catalog,
    pub sources: Vec<Arc<dyn ByteSource>>,
    pub unreadable: Vec<Unreadable>,
}

const USUAL_NAME: &str = "model.safetensors";

/// Reads the headers of all files of `folder`: those that the index names, else `model.safetensors`, else the only `*.safetensors`.
/// An index that names files which are not there is stale where the single file is.
pub(crate) fn open(files: &platform::Folder, io: IoMode) -> Result<Folder> {
    if files.contains(INDEX_NAME) {
        let index = Index::read(files)?;
        let is_stale = index.shards.iter().any(|name| is_plain(name) && !files.contains(name));
        if is_stale && files.contains(USUAL_NAME) {
            tracing::warn!("{} names files that are not there; {USUAL_NAME} is read instead", files.path_of(INDEX_NAME));
            return read_all(files, &[USUAL_NAME.to_owned()], io, None);
        }
        index.shards.iter().try_for_each(|name| check_shard(files, name))?;
        return read_all(files, &index.shards, io, Some(&index));
    }
    read_all(files, &[single_file(files)?], io, None)
}

fn single_file(files: &platform::Folder) -> Result<String> {
    if files.contains(USUAL_NAME) {
        return Ok(USUAL_NAME.to_owned());
    }
    let mut found = files.names_with("safetensors")?;
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(Error::invalid_file(files, "holds no *.safetensors file")),
        n => Err(Error::invalid_file(files, format!("holds {n} safetensors files but no {INDEX_NAME} that joins them"))),
    }
}

/// Reads the headers of the files `names` and joins them. Tensors are where the headers say; of one that several files have, the index
/// says which counts.
fn read_all(files: &platform::Folder, names: &[String], io: IoMode, index: Option<&Index>) -> Result<Folder> {
    let mut folder = Folder { catalog: Catalog::default(), sources: Vec::new(), unreadable: Vec::new() };
    let (mut shards, mut tensors) = (Vec::new(), Vec::new());
    let mut headers = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let number = u32::try_from(number).map_err(|_| Error::invalid_file(files.path_of(name), "is one shard too many"))?;
        let source = files.open(name, io)?;
        let header = read_header(source.as_ref(), number)?;
        shards.push(Shard { path: source.path().to_owned(), size_bytes: Bytes(source.len()) });
        folder.sources.push(source);
        headers.push(header);
    }
    // The files that have a tensor: those beside the one that the index names do not count.
    let mut holders: HashMap<String, Vec<u32>> = HashMap::new();
    for (number, header) in (0..).zip(&headers) {
        let names = header.tensors.iter().map(|tensor| &tensor.name).chain(header.unreadable.iter().map(|tensor| &tensor.name));
        names.for_each(|name| holders.entry(name.clone()).or_default().push(number));
    }
    let holder = |name: &str| -> Option<u32> {
        let all = holders.get(name)?;
        let listed = index.and_then(|index| index.holder(name)).filter(|listed| all.contains(listed));
        listed.or_else(|| <[u32; 1]>::try_from(all.as_slice()).ok().map(|[only]| only))
    };
    for (number, header) in (0..).zip(headers) {
        let path = &shards[number as usize].path;
        let names = header.tensors.iter().map(|tensor| &tensor.name).chain(header.unreadable.iter().map(|tensor| &tensor.name));
        for name in names {
            if holder(name).is_none() {
                return Err(Error::invalid_file(path, format!("tensor `{name}` is in another shard as well")));
            }
        }
        let is_here = |name: &str| holder(name) == Some(number);
        tensors.extend(header.tensors.into_iter().filter(|tensor| is_here(&tensor.name)));
        folder.unreadable.extend(header.unreadable.into_iter().filter(|tensor| is_here(&tensor.name)));
    }
    folder.catalog = Catalog::new(shards, tensors);
    Ok(folder)
}

/// An index: which tensor is in which shard. Shards are numbered in the order of their names.
struct Index {
    shards: Vec<String>,
    weight_map: BTreeMap<String, u32>,
}

impl Index {
    fn read(files: &platform::Folder) -> Result<Index> {
        let invalid = |text: String| Error::invalid_file(files.path_of(INDEX_NAME), text);
        let file: IndexFile = serde_json::from_slice(&files.read_small(INDEX_NAME, MAX_INDEX_BYTES)?)
            .map_err(|error| invalid(format!("is not a valid safetensors index: {error}")))?;
        let names: BTreeSet<&String> = file.weight_map.0.values().collect();
        if names.is_empty() {
            return Err(invalid("its weight_map is empty".into()));
        }
        if names.len() > MAX_SHARDS {
            return Err(invalid(format!("names {} shards, more than {MAX_SHARDS}", names.len())));
        }
        let numbers: BTreeMap<&String, u32> = names.iter().copied().zip(0..).collect();
        let number = |shard: &String| numbers.get(shard).copied().unwrap_or(0);
        let weight_map = file.weight_map.0.iter().map(|(name, shard)| (name.clone(), number(shard))).collect();
        Ok(Index { shards: names.into_iter().cloned().collect(), weight_map })
    }

    fn holder(&self, tensor: &str) -> Option<u32> {
        self.weight_map.get(tensor).copied()
    }
}

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: DistinctPairs,
}

/// A map of texts that refuses a name given twice.
struct DistinctPairs(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for DistinctPairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<DistinctPairs, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = DistinctPairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<DistinctPairs, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((name, shard)) = map.next_entry::<String, String>()? {
                    if let Some(_earlier) = pairs.insert(name.clone(), shard) {
                        return Err(A::Error::custom(format_args!("duplicate name `{name}`")));
                    }
                }
                Ok(DistinctPairs(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Whether it is the name of a file in the same folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

/// Checks a shard that an index names. The index is untrusted input: its names must not lead outside its folder. Links in the folder
/// are the user's own, and may.
fn check_shard(files: &platform::Folder, name: &str) -> Result<()> {
    let invalid = |text: String| Error::invalid_file(files.path_of(INDEX_NAME), text);
    if !is_plain(name) {
        return Err(invalid(format!("names the shard `{}`, which is not a plain file name", name.escape_debug())));
    }
    let platform::Folder::Path(folder) = files else {
        let missing = || invalid(format!("names the shard `{name}`, which was not given with it"));
        return if files.contains(name) { Ok(()) } else { Err(missing()) };
    };
    let path = folder.join(name);
    path.metadata().map(drop).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => invalid(format!("names the shard `{name}`, which is missing")),
        _ => Error::io("examine", path.display(), source),
    })
}
