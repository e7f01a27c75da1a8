//! Models as GGUF files that llama.cpp reads, in any dtype that can be written: from a Hugging Face folder, or from another GGUF file.
//! Tensors pass through a few rows at a time, so that memory does not grow with the model.

mod input;
mod merge;
mod mix;
mod rows;

use std::collections::BTreeMap;
use std::path::Path;

use crate::dtype::DType;
use crate::error::{Argument, Error, Result};
use crate::lora::Scaled;
use crate::model::Checkpoint;
use crate::platform::{self, IoMode};
use crate::units::Bytes;
use crate::weights::{MetaValue, NewFile, NewTensor, WrittenValue};
use input::{Input, InputTensor};
use mix::Chooser;
pub use mix::FileType;
use rows::Rows;

/// How a model is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertOptions {
    /// What its matrices become.
    pub file_type: FileType,
    /// All matrices become one dtype, where llama.cpp's rules would give some of them more bits.
    pub pure: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// `general.architecture`.
    pub architecture: String,
    /// Of the whole file.
    pub size: Bytes,
    /// How many tensors have which dtype.
    pub tensors: BTreeMap<DType, usize>,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

/// Told how many bytes of how many are written; what it returns may end the conversion.
pub type ConvertProgress<'a> = dyn FnMut(Bytes, Bytes) -> Result<()> + 'a;

/// Version of the quantised layouts (`GGML_QNT_VERSION` of ggml.h).
const QUANTIZATION_VERSION: u64 = 2;

/// Writes the model at `model`, a folder or a GGUF file, to `out`. The file is written under a temporary name and renamed when it is whole.
/// `progress` is told how many bytes of how many are written; an error of it ends the conversion, and nothing is left of the file.
///
/// # Errors
/// Those of `progress` and of reading the model; [`Error::InvalidArgument`] where `out` is one of the model's own files; [`Error::UnsupportedModel`] for what
/// no GGUF file can hold; [`Error::InvalidFile`] for weights that are no numbers, or too large for the dtype; [`Error::Io`] naming `out`.
pub fn convert(model: &Path, out: &Path, options: ConvertOptions, progress: &mut ConvertProgress<'_>) -> Result<Converted> {
    convert_with(model, &[], out, options, progress)
}

/// As [`convert`], with LoRA adapters that are merged into the model's matrices.
///
/// # Errors
/// As [`convert`]; [`Error::InvalidFile`] of an adapter of another model.
pub fn convert_with(
    model: &Path,
    loras: &[Scaled],
    out: &Path,
    options: ConvertOptions,
    progress: &mut ConvertProgress<'_>,
) -> Result<Converted> {
    let checkpoint = Checkpoint::open(model, IoMode::Pread)?;
    let own = checkpoint.sources.iter().find(|source| platform::is_same_file(Path::new(source.path()), out));
    if let Some(source) = own {
        let reason = format!("{} is a file of the model itself; name another file", source.path());
        return Err(Error::InvalidArgument { option: Argument::from("OUT.gguf"), reason });
    }
    let input = Input::new(checkpoint, loras)?;
    let dtypes = Chooser::new(&input, options).choose();
    let tensors: Vec<NewTensor> = input.tensors.iter().zip(&dtypes).map(|(tensor, dtype)| tensor.as_new(*dtype)).collect();
    let file = NewFile::new(&out.to_string_lossy(), &pairs(&input, options.file_type), &tensors)?;
    platform::write_atomically_by(out, |target| {
        target.write_all(&file.head)?;
        let mut written = 0;
        for ((tensor, dtype), (begin, size)) in input.tensors.iter().zip(&dtypes).zip(&file.places) {
            target.write_all(&vec![0; (begin - written) as usize])?;
            written = *begin;
            Rows { input: &input, tensor, dtype: *dtype }.write(&mut |bytes| {
                target.write_all(bytes)?;
                written += bytes.len() as u64;
                progress(Bytes(file.head.len() as u64 + written), file.size)
            })?;
            if written != begin + size.0 {
                let reason = format!("tensor `{}` has {} bytes where {size} were planned", tensor.name, written - begin);
                return Err(Error::invalid_file(&input.path, reason));
            }
        }
        target.write_all(&vec![0; (file.size.0 - file.head.len() as u64 - written) as usize])
    })?;
    let mut counts = BTreeMap::new();
    dtypes.iter().for_each(|dtype| *counts.entry(*dtype).or_default() += 1);
    Ok(Converted { notes: notes(&input, &dtypes), architecture: input.architecture, size: file.size, tensors: counts })
}

/// The metadata of the new file.
fn pairs(input: &Input, file_type: FileType) -> Vec<(String, WrittenValue)> {
    let number = |key: &str, value: u64| (key.to_owned(), WrittenValue::from(&MetaValue::Unsigned(value)));
    let mut pairs = input.pairs.clone();
    pairs.push(number("general.file_type", file_type.number().into()));
    pairs.push(number("general.quantization_version", QUANTIZATION_VERSION));
    pairs
}

fn notes(input: &Input, dtypes: &[DType]) -> Vec<String> {
    let mut notes = input.notes.clone();
    let again = |(tensor, dtype): &(&InputTensor, &DType)| tensor.stored.is_some_and(|stored| stored.has_blocks() && stored != **dtype);
    let n_again = input.tensors.iter().zip(dtypes).filter(again).count();
    if n_again > 0 {
        notes.push(format!(
            "{n_again} tensors were quantised already: what was lost then is not regained; convert the original weights where you have them"
        ));
    }
    notes
}
