//! The head of a new GGUF file (version 3): metadata and tensor list as bytes. Knows no key and no data.

use super::metadata::MetaValue;
use super::reader::{TYPE_ARRAY, TYPE_BOOL, TYPE_F32, TYPE_I32, TYPE_I64, TYPE_STRING, TYPE_U32, TYPE_U64};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::units::Bytes;

const VERSION: u32 = 3;
/// Of a tensor's name: ggml keeps 64 with the closing zero.
const MAX_NAME_BYTES: usize = 63;

/// A value as it is written: its type and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenValue(pub(super) Vec<u8>);

impl From<&MetaValue> for WrittenValue {
    /// Integers are written in 32 bits where they fit, floats always, as llama.cpp's loader expects its own keys.
    fn from(value: &MetaValue) -> WrittenValue {
        let mut bytes = Vec::new();
        let mut put = |kind: u32, value: &[u8]| {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        };
        match value {
            MetaValue::Unsigned(value) => match u32::try_from(*value) {
                Ok(value) => put(TYPE_U32, &value.to_le_bytes()),
                Err(_) => put(TYPE_U64, &value.to_le_bytes()),
            },
            MetaValue::Signed(value) => match i32::try_from(*value) {
                Ok(value) => put(TYPE_I32, &value.to_le_bytes()),
                Err(_) => put(TYPE_I64, &value.to_le_bytes()),
            },
            MetaValue::Float(value) => put(TYPE_F32, &(*value as f32).to_le_bytes()),
            MetaValue::Bool(value) => put(TYPE_BOOL, &[u8::from(*value)]),
            MetaValue::String(value) => put(TYPE_STRING, &string(value)),
            MetaValue::Strings(values) => put(TYPE_ARRAY, &array(TYPE_STRING, values.iter().map(|value| string(value)))),
            MetaValue::Floats(values) => put(TYPE_ARRAY, &array(TYPE_F32, values.iter().map(|value| value.to_le_bytes()))),
            MetaValue::Bools(values) => put(TYPE_ARRAY, &array(TYPE_BOOL, values.iter().map(|value| [u8::from(*value)]))),
            MetaValue::Integers(values) => {
                match values.iter().map(|value| i32::try_from(*value)).collect::<std::result::Result<Vec<_>, _>>() {
                    Ok(values) => put(TYPE_ARRAY, &array(TYPE_I32, values.iter().map(|value| value.to_le_bytes()))),
                    Err(_) => put(TYPE_ARRAY, &array(TYPE_I64, values.iter().map(|value| value.to_le_bytes()))),
                }
            }
        }
        WrittenValue(bytes)
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array<B: AsRef<[u8]>>(kind: u32, values: impl ExactSizeIterator<Item = B>) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    values.for_each(|value| bytes.extend(value.as_ref()));
    bytes
}

/// A tensor of a new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// The file's own name of it.
    pub name: String,
    /// How its values are stored.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
}

/// What stands before the data, and where each tensor's data go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Everything up to the data, padded to the alignment.
    pub head: Vec<u8>,
    /// Of each tensor where its bytes begin, counted from the end of the head, and how many they are. Gaps are zeros.
    pub places: Vec<(u64, Bytes)>,
    /// Of the whole file.
    pub size: Bytes,
}

impl NewFile {
    /// A file of these pairs and tensors, in their order; `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a tensor whose name is too long, whose rows are no whole blocks, or which is absurdly large.
    pub fn new(path: &str, pairs: &[(String, WrittenValue)], tensors: &[NewTensor]) -> Result<NewFile> {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((pairs.len() as u64).to_le_bytes());
        for (key, WrittenValue(value)) in pairs {
            head.extend(string(key));
            head.extend(value);
        }
        let (mut places, mut end) = (Vec::with_capacity(tensors.len()), 0u64);
        for tensor in tensors {
            let invalid = |reason: &str| Error::invalid_file(path, format!("tensor `{}` {reason}", tensor.name));
            if tensor.name.len() > MAX_NAME_BYTES {
                return Err(invalid(&format!("has a name of more than {MAX_NAME_BYTES} bytes")));
            }
            let n_values = tensor.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
            let is_whole = tensor.shape.last().is_none_or(|len| len.is_multiple_of(tensor.dtype.block_len()));
            let size = n_values.filter(|_| is_whole).and_then(|n_values| tensor.dtype.size_bytes(n_values));
            let size = size.ok_or_else(|| invalid(&format!("of shape {:?} cannot be stored as {}", tensor.shape, tensor.dtype)))?;
            head.extend(string(&tensor.name));
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            // GGUF lists the innermost dimension first.
            tensor.shape.iter().rev().for_each(|size| head.extend(size.to_le_bytes()));
            head.extend(tensor.dtype.gguf_code().to_le_bytes());
            head.extend(end.to_le_bytes());
            places.push((end, Bytes(size)));
            let next = end.checked_add(size).and_then(|end| end.checked_next_multiple_of(DEFAULT_ALIGNMENT));
            end = next.ok_or_else(|| invalid("makes the file absurdly large"))?;
        }
        head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        let size = Bytes(head.len() as u64 + end);
        Ok(NewFile { head, places, size })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Head, join};
    use super::*;
    use crate::weights::in_memory::Memory;

    #[test]
    fn what_is_written_is_read_again() {
        let values = [
            ("a.count", MetaValue::Unsigned(7)),
            ("a.large", MetaValue::Unsigned(1 << 40)),
            ("a.signed", MetaValue::Signed(-3)),
            ("a.float", MetaValue::Float(0.5)),
            ("a.flag", MetaValue::Bool(true)),
            ("a.name", MetaValue::String("tiny é".into())),
            ("a.names", MetaValue::Strings(vec!["x".into(), String::new()])),
            ("a.floats", MetaValue::Floats(vec![1.5, -2.0])),
            ("a.integers", MetaValue::Integers(vec![1, -1])),
            ("a.longs", MetaValue::Integers(vec![1 << 40])),
            ("a.flags", MetaValue::Bools(vec![true, false])),
        ];
        let pairs: Vec<_> = values.iter().map(|(key, value)| ((*key).to_owned(), WrittenValue::from(value))).collect();
        let tensor = |name: &str, dtype, shape: &[u64]| NewTensor { name: name.into(), dtype, shape: shape.into() };
        let tensors =
            [tensor("m.weight", DType::Q8_0, &[3, 64]), tensor("v.weight", DType::F32, &[5]), tensor("w.weight", DType::BF16, &[1, 2, 3])];
        let file = NewFile::new("new.gguf", &pairs, &tensors).unwrap();
        assert_eq!(file.places, [(0, Bytes(204)), (224, Bytes(20)), (256, Bytes(12))]);
        let mut bytes = file.head.clone();
        bytes.resize(file.size.0 as usize, 0);
        let source = Memory(bytes);
        let head = Head::read(&source).unwrap();
        assert_eq!(head.metadata.iter().map(|(key, value)| (key, value.clone())).collect::<BTreeMap<_, _>>(), values.clone().into());
        assert_eq!(super::super::written_pairs(&source).unwrap(), pairs, "bytes are copied as they are");
        let catalog = join(&mut [head], &|name| name.to_owned()).unwrap();
        for ((tensor, found), (offset, size)) in tensors.iter().zip(&catalog.tensors).zip(&file.places) {
            assert_eq!((&tensor.name, tensor.dtype, &tensor.shape), (&found.name, found.dtype, &found.shape));
            assert_eq!((found.offset, found.size_bytes), (file.head.len() as u64 + offset, *size));
        }
        for (tensor, named) in [
            (tensor(&"x".repeat(64), DType::F32, &[1]), "63 bytes"),
            (tensor("odd", DType::Q4_0, &[2, 31]), "cannot be stored as Q4_0"),
            (tensor("huge", DType::F32, &[1 << 40, 1 << 40]), "cannot be stored"),
        ] {
            let reason = NewFile::new("new.gguf", &[], &[tensor]).unwrap_err().to_string();
            assert!(reason.contains("new.gguf") && reason.contains(named), "{reason}");
        }
    }
}
