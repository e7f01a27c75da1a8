//! Models in several GGUF files, as llama.cpp's `llama-gguf-split` writes them. Each part has a tensor list and tensors of its own; the
//! metadata that is the model's stands in the first. Parts are called `NAME-00001-of-00003.gguf`, and each says in its metadata which one
//! it is (`split.no`, from 0) of how many (`split.count`), and how many tensors all of them have (`split.tensors.count`).

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::platform::{ByteSource, Folder, IoMode};
use crate::weights::gguf::Metadata;

/// The name of one part of a split model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartName<'a> {
    stem: &'a str,
    index: u64,
    count: u64,
}

impl<'a> PartName<'a> {
    /// Reads `STEM-00002-of-00003.gguf`; parts are counted from 1.
    pub fn parse(name: &'a str) -> Option<PartName<'a>> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, index) = rest.rsplit_once('-')?;
        let part = PartName { stem, index: number(index)?, count: number(count)? };
        (1..=part.count).contains(&part.index).then_some(part)
    }

    /// Whether they are parts of the same model.
    pub fn is_sibling(self, other: PartName<'_>) -> bool {
        (self.stem, self.count) == (other.stem, other.count)
    }

    /// The names of all parts, in their order.
    pub fn all(self) -> impl Iterator<Item = String> {
        (1..=self.count).map(move |index| PartName { index, ..self }.to_string())
    }
}

impl fmt::Display for PartName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.stem, self.index, self.count)
    }
}

/// Five digits, as `llama-gguf-split` writes them.
fn number(digits: &str) -> Option<u64> {
    let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

/// The only model among these names of `.gguf` files: the only file, or the first part of the only split model.
pub(crate) fn only_model(names: &[String]) -> Option<String> {
    let [first, others @ ..] = names else { return None };
    if others.is_empty() {
        return Some(first.clone());
    }
    let part = PartName::parse(first)?;
    let is_sibling = |name: &String| PartName::parse(name).is_some_and(|other| part.is_sibling(other));
    others.iter().all(is_sibling).then(|| part.all().next())?
}

/// All files of the model of which `source` is one, in their order; `metadata` is its own. `source` lies in `folder`.
///
/// # Errors
/// [`Error::InvalidFile`] where its name and its metadata say different things, or a part is not beside it; those of opening.
pub(crate) fn open_parts(
    source: Arc<dyn ByteSource>,
    metadata: &Metadata,
    folder: &Folder,
    io: IoMode,
) -> Result<Vec<Arc<dyn ByteSource>>> {
    let Some((no, count)) = part_of(metadata)? else { return Ok(vec![source]) };
    let path = source.path().to_owned();
    let name = Path::new(&path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(part) = PartName::parse(name).filter(|part| (part.index, part.count) == (no + 1, count)) else {
        let reason = format!(
            "is part {} of {count} of a split model, but its name does not say so; call it NAME-{:05}-of-{count:05}.gguf as the others",
            no + 1,
            no + 1
        );
        return Err(Error::invalid_file(path, reason));
    };
    let open = |(index, name): (u64, String)| match folder.open(&name, io) {
        _ if index == no => Ok(Arc::clone(&source)),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Err(Error::invalid_file(&path, format!("is part {} of {count} of a split model, and {name} is not beside it", no + 1)))
        }
        opened => opened,
    };
    (0..).zip(part.all()).map(open).collect()
}

/// `(split.no, split.count)` of a file that is one of several.
pub(super) fn part_of(metadata: &Metadata) -> Result<Option<(u64, u64)>> {
    let Some(count) = metadata.unsigned("split.count")?.filter(|count| *count > 1) else { return Ok(None) };
    let no = metadata.unsigned("split.no")?.unwrap_or(0);
    if no >= count {
        return Err(Error::invalid_file(&metadata.path, format!("split.no is {no}, it must be below split.count, which is {count}")));
    }
    Ok(Some((no, count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_read_as_they_are_written() {
        let name = "dir/Model-Q4_K_M-00002-of-00003.gguf";
        let part = PartName::parse(name).unwrap();
        assert_eq!((part.index, part.count, part.to_string()), (2, 3, name.to_owned()));
        assert_eq!(part.all().last().unwrap(), "dir/Model-Q4_K_M-00003-of-00003.gguf");
        for other in
            ["m.gguf", "m-2-of-3.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-+0001-of-00003.gguf", "m-00001-of-00002.bin"]
        {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_split_model_is_one_model() {
        let only = |names: &[&str]| only_model(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(only(&["m.gguf"]).unwrap(), "m.gguf");
        assert_eq!(only(&["m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]).unwrap(), "m-00001-of-00003.gguf");
        assert_eq!(only(&["m-00001-of-00002.gguf", "n-00002-of-00002.gguf"]), None);
        assert_eq!(only(&["m.gguf", "n.gguf"]), None);
        assert_eq!(only(&[]), None);
    }
}
