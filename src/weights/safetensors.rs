//! The header of one safetensors file as tensor entries. Knows no other file and no model.
//!
//! Format: eight bytes little-endian header length, that many bytes of JSON (`name → {dtype, shape, data_offsets}` and `__metadata__`),
//! then the tensors' bytes without holes (<https://github.com/huggingface/safetensors>, "Format").
//!
//! Headers are read by the format's own crate. What it refuses, the reader here says where; it also takes offsets that no `usize` of the
//! target holds, as those of a shard of more than 4 GiB in a browser.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use safetensors::tensor::Metadata;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::json;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::platform::ByteSource;
use crate::units::Bytes;
use crate::weights::catalog::TensorInfo;
use crate::weights::lfs::refuse_pointer;

/// Longest header, as the reference implementation has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Longest dimension and most values of a tensor: far above any model, far below what overflows.
pub(crate) const MAX_DIMENSION: u64 = 1 << 36;
const MAX_VALUES: u64 = 1 << 48;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// A tensor that is well-formed but stored in a dtype that tierflow does not compute with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// Its name.
    pub name: String,
    /// The dtype's own name.
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Which file.
    pub shard: u32,
    /// Where its bytes begin in that file.
    pub offset: u64,
    /// How many bytes it has.
    pub size_bytes: Bytes,
}

/// The tensors of one file, in the order of their bytes.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// Those whose values can be used.
    pub tensors: Vec<TensorInfo>,
    /// The others, which are no error as long as the model does not need them.
    pub unreadable: Vec<Unreadable>,
}

/// Reads and checks the header of `source`, the file number `shard` of its checkpoint.
pub(crate) fn read_header(source: &dyn ByteSource, shard: u32) -> Result<Header> {
    let invalid = |text: String| Error::invalid_file(source.path(), text);
    refuse_pointer(source)?;
    if source.len() < 8 {
        return Err(invalid(format!("has {} bytes, a safetensors file has at least 8", source.len())));
    }
    let mut prefix = [0; 8];
    source.read_at(0, &mut prefix)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(invalid(format!("claims a header of {header_bytes} bytes, more than the {MAX_HEADER_BYTES} that are allowed")));
    }
    // Both are bounded by the limit above, so that neither sum nor conversion can fail.
    let data_start = 8 + header_bytes;
    if data_start > source.len() {
        return Err(invalid(format!("claims a header of {header_bytes} bytes, but the file ends at {}", source.len())));
    }
    let mut json = vec![0; header_bytes as usize];
    source.read_at(8, &mut json)?;
    let (entries, refusal) = entries(&json).map_err(|error| invalid(format!("the safetensors header is not valid JSON: {error}")))?;
    let header = place(entries, source, data_start, shard).map_err(invalid)?;
    match refusal {
        // Where a `usize` has 64 bits, nothing here exceeds it.
        Some(refusal) if usize::BITS >= u64::BITS => Err(invalid(format!("the safetensors header is not valid: {refusal}"))),
        _ => Ok(header),
    }
}

/// How a file begins that has these tensors one behind the other: of each its name, that of its dtype, its shape and its bytes.
pub(crate) fn header<'a>(tensors: impl Iterator<Item = (&'a str, &'a str, &'a [u64], Bytes)>) -> Result<Vec<u8>> {
    let mut entries = serde_json::Map::new();
    // What PyTorch's readers ask for.
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut begin = 0;
    for (name, dtype, shape, size) in tensors {
        let end = begin + size.0;
        entries.insert(name.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }));
        begin = end;
    }
    let mut text = serde_json::to_vec(&entries).map_err(|error| Error::internal(error.to_string()))?;
    // Values begin at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

type NamedEntries = Vec<(String, Entry)>;

/// The header's entries; beside them why the format's crate does not take them, where it does not.
fn entries(json: &[u8]) -> serde_json::Result<(NamedEntries, Option<serde_json::Error>)> {
    match serde_json::from_slice::<Metadata>(json) {
        Ok(metadata) => {
            // The crate keeps one of two entries of one name.
            serde_json::from_slice::<Entries<IgnoredAny>>(json)?;
            let entry = |name: String| metadata.info(&name).map(Entry::from).map(|entry| (name, entry));
            Ok((metadata.offset_keys().into_iter().filter_map(entry).collect(), None))
        }
        Err(refusal) => Ok((serde_json::from_slice::<Entries<Entry>>(json)?.0, Some(refusal))),
    }
}

/// Checks that the entries fill the file's data part exactly, and makes them absolute.
fn place(mut entries: Vec<(String, Entry)>, source: &dyn ByteSource, data_start: u64, shard: u32) -> Result<Header, String> {
    // Empty tensors share an offset: their names make the order certain.
    entries.sort_by(|(a_name, a), (b_name, b)| (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name)));
    let mut header = Header::default();
    let mut expected = 0;
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        let stored = Stored::parse(&entry.dtype).ok_or_else(|| format!("tensor `{name}` has the unknown dtype `{}`", entry.dtype))?;
        let n_values = count_values(&entry.shape).map_err(|reason| format!("tensor `{name}` has {reason}"))?;
        let size = stored.size_bytes(n_values).ok_or_else(|| format!("tensor `{name}` is no whole number of bytes long"))?;
        if begin != expected {
            let what = if begin < expected { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(format!("tensor `{name}` {what}: it begins at {begin}, the tensor before it ends at {expected}"));
        }
        if end.checked_sub(begin) != Some(size) {
            return Err(format!("tensor `{name}` has offsets {begin}..{end}, but {} of {:?} take {size} bytes", entry.dtype, entry.shape));
        }
        expected = end;
        // May pass the file's end here; the comparison after the loop refuses the whole file then.
        let offset = data_start.checked_add(begin).ok_or_else(|| format!("tensor `{name}` begins beyond any file"))?;
        let Entry { dtype, shape, .. } = entry;
        let size_bytes = Bytes(size);
        match stored {
            Stored::Known(dtype) => header.tensors.push(TensorInfo { name, dtype, shape, shard, offset, size_bytes }),
            Stored::Other { .. } => header.unreadable.push(Unreadable { name, dtype, shape, shard, offset, size_bytes }),
        }
    }
    let present = source.len() - data_start;
    if expected > present {
        return Err(format!("is cut short: it holds {present} bytes of tensor data, but its header describes {expected}"));
    }
    if expected != present {
        return Err(format!("holds {present} bytes of tensor data, but its header describes {expected}"));
    }
    Ok(header)
}

/// Values of a shape, or why it is absurd.
pub(super) fn count_values(shape: &[u64]) -> Result<u64, String> {
    if shape.len() > MAX_DIMENSIONS {
        return Err(format!("{} dimensions, more than {MAX_DIMENSIONS}", shape.len()));
    }
    // Zeros count as ones here: an empty tensor must not hide dimensions whose product overflows.
    let mut bound = 1u64;
    for &dimension in shape {
        bound = bound.checked_mul(dimension.max(1)).filter(|_| dimension <= MAX_DIMENSION).unwrap_or(u64::MAX);
    }
    if bound > MAX_VALUES {
        return Err(format!("the absurd shape {shape:?}"));
    }
    Ok(shape.iter().product())
}

/// How the safetensors format stores a value.
#[derive(Clone, Copy)]
enum Stored {
    Known(DType),
    Other { bits: u64 },
}

impl Stored {
    fn parse(name: &str) -> Option<Stored> {
        Some(match name {
            "F32" => Stored::Known(DType::F32),
            "F16" => Stored::Known(DType::F16),
            "BF16" => Stored::Known(DType::BF16),
            "F4" => Stored::Other { bits: 4 },
            "F6_E2M3" | "F6_E3M2" => Stored::Other { bits: 6 },
            "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Stored::Other { bits: 8 },
            "U16" | "I16" => Stored::Other { bits: 16 },
            "U32" | "I32" => Stored::Other { bits: 32 },
            "U64" | "I64" | "F64" | "C64" => Stored::Other { bits: 64 },
            _ => return None,
        })
    }

    fn size_bytes(self, n_values: u64) -> Option<u64> {
        match self {
            Stored::Known(dtype) => dtype.size_bytes(n_values),
            Stored::Other { bits } => n_values.checked_mul(bits).filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8),
        }
    }
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl From<&safetensors::tensor::TensorInfo> for Entry {
    fn from(info: &safetensors::tensor::TensorInfo) -> Entry {
        let (begin, end) = info.data_offsets;
        let shape = info.shape.iter().map(|&dimension| dimension as u64).collect();
        Entry { dtype: info.dtype.to_string(), shape, data_offsets: (begin as u64, end as u64) }
    }
}

/// The header's pairs. A plain map would silently keep the last of two entries of one name.
struct Entries<E>(Vec<(String, E)>);

impl<'de, E: Deserialize<'de>> Deserialize<'de> for Entries<E> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Entries<E>, D::Error> {
        struct Pairs<E>(PhantomData<E>);
        impl<'de, E: Deserialize<'de>> Visitor<'de> for Pairs<E> {
            type Value = Entries<E>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries<E>, A::Error> {
                let mut seen = HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("duplicate name `{name}`")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value().map_err(|error| A::Error::custom(format_args!("tensor `{name}`: {error}")))?;
                    entries.push((name, entry));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;
    use crate::weights::in_memory::Memory;

    fn file(header: &str, n_data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; n_data]].concat()
    }

    /// A dtype's name, a shape, what is added to the offsets that are right, and to their names' number.
    type Drawn = (&'static str, Vec<u64>, (i64, i64), usize);

    fn drawn() -> impl Strategy<Value = Drawn> {
        let dtype = prop_oneof![
            8 => prop::sample::select(vec!["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "F6_E2M3", "C64"]),
            1 => prop::sample::select(vec!["F33", "f32", "Q8_0"]),
        ];
        let dimension = prop_oneof![8 => 0..5u64, 1 => Just(1 << 40), 1 => Just(u64::MAX)];
        let offset = || prop_oneof![12 => Just(0), 1 => -9..9i64];
        let twin = prop_oneof![12 => Just(0), 1 => Just(1)];
        (dtype, prop::collection::vec(dimension, 0..4), (offset(), offset()), twin)
    }

    /// A header of these tensors, one behind the other but for what is drawn, and the bytes of their data.
    fn header(tensors: &[Drawn], metadata: &str) -> (String, usize) {
        let mut end = 0i64;
        let mut entries = vec![format!(r#""__metadata__":{metadata}"#)];
        for (index, (dtype, shape, (before, behind), twin)) in tensors.iter().enumerate() {
            let bits = safetensors::Dtype::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(dtype));
            let bits = bits.map_or(8, |dtype| dtype.bitsize() as u64);
            let n_values = shape.iter().fold(1u64, |product, dimension| product.saturating_mul(*dimension)).min(1 << 20);
            let begin = end + before;
            end += (n_values * bits / 8) as i64 + behind;
            let name = index.saturating_sub(*twin);
            entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
        }
        (format!("{{{}}}", entries.join(",")), end.clamp(0, 1 << 24) as usize)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// All that is read here the format's crate reads, and sees the same in it; what it reads and is refused here is absurd, or
        /// names a tensor twice.
        #[test]
        fn both_readers_agree_on_what_is_valid(
            tensors in prop::collection::vec(drawn(), 0..5),
            metadata in prop::sample::select(vec!["{}", r#"{"format":"pt"}"#, "null", r#"{"format":1}"#]),
            more in prop_oneof![9 => Just(0usize), 1 => 1..9usize],
        ) {
            let (header, n_data) = header(&tensors, metadata);
            let bytes = file(&header, n_data + more);
            let own = read_header(&Memory(bytes.clone()), 0);
            match (SafeTensors::deserialize(&bytes), own) {
                (Ok(theirs), Ok(own)) => {
                    prop_assert_eq!(own.tensors.len() + own.unreadable.len(), theirs.len());
                    for tensor in &own.tensors {
                        let view = theirs.tensor(&tensor.name).expect("the name is there");
                        let shape: Vec<u64> = view.shape().iter().map(|&dimension| dimension as u64).collect();
                        prop_assert_eq!(&shape, &tensor.shape);
                        prop_assert_eq!(view.data().len() as u64, tensor.size_bytes.0);
                        prop_assert_eq!(view.data().as_ptr() as usize - bytes.as_ptr() as usize, tensor.offset as usize);
                    }
                }
                (Err(_), Err(_)) => {}
                (Err(theirs), Ok(_)) => prop_assert!(false, "only they refuse {header}: {theirs}"),
                (Ok(_), Err(own)) => {
                    let text = own.to_string();
                    prop_assert!(text.contains("absurd shape") || text.contains("duplicate name"), "only we refuse {header}: {text}");
                }
            }
        }
    }

    /// Behind the crate's back, as where a `usize` has 32 bits.
    #[test]
    fn the_reader_here_finds_the_same_entries() {
        let json = br#"{"b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
        let (theirs, refusal) = entries(json).unwrap();
        assert!(refusal.is_none());
        let mut own = serde_json::from_slice::<Entries<Entry>>(json).unwrap().0;
        own.sort_by_key(|(_, entry)| entry.data_offsets);
        let plain = |entries: Vec<(String, Entry)>| -> Vec<_> {
            entries.into_iter().map(|(name, entry)| (name, entry.dtype, entry.shape, entry.data_offsets)).collect()
        };
        assert_eq!(plain(theirs), plain(own));
    }

    #[test]
    fn absurd_shapes_are_counted_without_overflow() {
        assert_eq!(count_values(&[]), Ok(1));
        assert_eq!(count_values(&[3, 0, 5]), Ok(0));
        assert_eq!(count_values(&[128_256, 16_384]), Ok(2_101_346_304));
        for shape in [&[1 << 40][..], &[u64::MAX, u64::MAX, 0], &[1 << 32, 1 << 32], &[1; 9]] {
            assert!(count_values(shape).is_err(), "{shape:?}");
        }
    }
}
