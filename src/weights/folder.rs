//! The safetensors files of a Hugging Face folder as one catalog: a single file, or shards named by an index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::catalog::{Catalog, Shard};
use super::safetensors::{Unreadable, read_header};
use crate::error::{Error, Result};
use crate::platform::{ByteSource, IoMode, open_source, read_small_file};
use crate::units::Bytes;

const INDEX_NAME: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Shards of a checkpoint at most; the largest published ones have a few hundred.
const MAX_SHARDS: usize = 4096;

/// What a folder's safetensors files hold.
pub(super) struct Folder {
    pub catalog: Catalog,
    pub sources: Vec<Arc<dyn ByteSource>>,
    pub unreadable: Vec<Unreadable>,
}

/// Reads the headers of all files of `folder`: those that the index names, else `model.safetensors`, else the only `*.safetensors`.
pub(super) fn open(folder: &Path, io: IoMode) -> Result<Folder> {
    let index_path = folder.join(INDEX_NAME);
    if index_path.symlink_metadata().is_ok() {
        let index = Index::read(&index_path)?;
        let shards = index.shards.iter().map(|name| shard_path(folder, &index_path, name)).collect::<Result<Vec<_>>>()?;
        return read_all(&shards, io, Some((&index, &index_path)));
    }
    read_all(&[single_file(folder)?], io, None)
}

fn single_file(folder: &Path) -> Result<PathBuf> {
    let usual = folder.join("model.safetensors");
    if usual.symlink_metadata().is_ok() {
        return Ok(usual);
    }
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("list", folder.display(), source))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| Error::io("list", folder.display(), source))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(path);
        }
    }
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(Error::invalid_file(folder.display(), "holds no *.safetensors file")),
        n => Err(Error::invalid_file(folder.display(), format!("holds {n} safetensors files but no {INDEX_NAME} that joins them"))),
    }
}

/// Reads the headers of `paths` and joins them; with an index, checks that each tensor is where the index says.
fn read_all(paths: &[PathBuf], io: IoMode, index: Option<(&Index, &Path)>) -> Result<Folder> {
    let mut folder = Folder { catalog: Catalog::default(), sources: Vec::new(), unreadable: Vec::new() };
    let (mut shards, mut tensors) = (Vec::new(), Vec::new());
    let mut holders: HashMap<String, u32> = HashMap::new();
    for (number, path) in paths.iter().enumerate() {
        let number = u32::try_from(number).map_err(|_| Error::invalid_file(path.display(), "is one shard too many"))?;
        let source = open_source(path, io)?;
        let header = read_header(source.as_ref(), number)?;
        let listed_elsewhere = |name: &str| index.is_some_and(|(index, _)| index.holder(name).is_some_and(|shard| shard != number));
        let names = header.tensors.iter().map(|tensor| &tensor.name).chain(header.unreadable.iter().map(|tensor| &tensor.name));
        for name in names.filter(|name| !listed_elsewhere(name)) {
            if holders.insert(name.clone(), number).is_some() {
                return Err(Error::invalid_file(path.display(), format!("tensor `{name}` is in another shard as well")));
            }
        }
        tensors.extend(header.tensors.into_iter().filter(|tensor| !listed_elsewhere(&tensor.name)));
        folder.unreadable.extend(header.unreadable.into_iter().filter(|tensor| !listed_elsewhere(&tensor.name)));
        shards.push(Shard { path: source.path().to_owned(), size_bytes: Bytes(source.len()) });
        folder.sources.push(source);
    }
    if let Some((index, index_path)) = index {
        let absent = index.weight_map.iter().find(|(name, shard)| holders.get(*name) != Some(shard));
        if let Some((name, _)) = absent {
            let shard = index.holder(name).and_then(|shard| index.shards.get(shard as usize)).map_or("", String::as_str);
            return Err(Error::invalid_file(index_path.display(), format!("says that tensor `{name}` is in `{shard}`, which lacks it")));
        }
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
    fn read(path: &Path) -> Result<Index> {
        let fault = |text: String| Error::invalid_file(path.display(), text);
        let file: IndexFile = serde_json::from_slice(&read_small_file(path, MAX_INDEX_BYTES)?)
            .map_err(|error| fault(format!("is not a valid safetensors index: {error}")))?;
        let names: BTreeSet<&String> = file.weight_map.0.values().collect();
        if names.is_empty() {
            return Err(fault("its weight_map is empty".into()));
        }
        if names.len() > MAX_SHARDS {
            return Err(fault(format!("names {} shards, more than {MAX_SHARDS}", names.len())));
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

/// The path of a shard that an index names. The index comes from a stranger: it must not reach outside its folder.
fn shard_path(folder: &Path, index_path: &Path, name: &str) -> Result<PathBuf> {
    let fault = |text: String| Error::invalid_file(index_path.display(), text);
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0']);
    if !plain {
        return Err(fault(format!("names the shard `{}`, which is not a plain file name", name.escape_debug())));
    }
    let path = folder.join(name);
    let metadata = path.symlink_metadata().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => fault(format!("names the shard `{name}`, which is missing")),
        _ => Error::io("examine", path.display(), source),
    })?;
    if metadata.is_symlink() && !link_stays_inside(folder, &path) {
        return Err(fault(format!("names the shard `{name}`, which is a link out of the model's folder")));
    }
    Ok(path)
}

/// Whether a link leads into its folder, or into the `blobs` of the hub cache that the folder is a snapshot of
/// (`models--ORG--NAME/snapshots/REVISION/FILE → ../../blobs/HASH`).
fn link_stays_inside(folder: &Path, link: &Path) -> bool {
    let (Ok(folder), Ok(target)) = (folder.canonicalize(), link.canonicalize()) else {
        return false;
    };
    let snapshots = folder.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    target.starts_with(&folder) || blobs.is_some_and(|blobs| target.starts_with(blobs))
}
