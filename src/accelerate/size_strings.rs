//! Accelerate's size strings (`convert_file_size_to_int`), defects included. What tierflow's own options take is read by
//! [`Bytes`](crate::units::Bytes), which has none of them.

use serde::Deserialize;

use crate::accelerate::Amount;
use crate::error::{Error, Result};

/// A size as a caller of Accelerate writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum SizeSpec {
    /// Whole bytes.
    Bytes(i64),
    /// Bytes as a float, which only `max_memory` lets through.
    Float(f64),
    /// A number with a unit: `20GB`, `10GiB`.
    Text(String),
}

/// A unit, how many bytes it has, and whether a small `b` at its end means bits.
const UNITS: [(&str, f64, SmallB); 6] = [
    ("GIB", 1_073_741_824.0, SmallB::Byte),
    ("MIB", 1_048_576.0, SmallB::Byte),
    ("KIB", 1024.0, SmallB::Byte),
    ("GB", 1e9, SmallB::Bit),
    ("MB", 1e6, SmallB::Bit),
    ("KB", 1e3, SmallB::Bit),
];

/// What a small `b` at the end of a unit stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SmallB {
    Byte,
    /// A defect that is kept: `20Gb`, and `20gb` as well, are 2.5 GB, though `20gib` are 20 GiB.
    Bit,
}

/// Reads a size string: a number and one of `GiB`, `MiB`, `KiB`, `GB`, `MB`, `KB` in any case, rounded down to whole bytes.
/// `20Gb` and `20gb` are bits. A plain number is no size string.
///
/// # Errors
/// [`Error::InvalidArgument`] in Accelerate's words where it is not a size, is negative or infinite.
pub fn convert_file_size_to_int(size: &str) -> Result<i128> {
    let upper = size.to_uppercase();
    let Some((unit, scale, small_b)) = UNITS.iter().find(|(unit, ..)| upper.ends_with(unit)) else { return Err(invalid(size)) };
    let n_chars = size.chars().count().saturating_sub(unit.len());
    let number: String = size.chars().take(n_chars).collect();
    let bytes = python_float(&number).filter(|number| !number.is_nan()).ok_or_else(|| invalid(size))? * scale;
    if bytes.is_infinite() {
        return Err(size_error("cannot convert float infinity to integer; write a finite size".into()));
    }
    let bytes = bytes as i128;
    let bytes = if *small_b == SmallB::Bit && size.ends_with('b') { bytes.div_euclid(8) } else { bytes };
    if bytes < 0 { Err(invalid(size)) } else { Ok(bytes) }
}

impl SizeSpec {
    /// The size in whole bytes, as `convert_file_size_to_int` has it.
    ///
    /// # Errors
    /// Those of [`convert_file_size_to_int`]; also for negative integers and for floats.
    pub fn to_int(&self) -> Result<i128> {
        match self {
            SizeSpec::Bytes(bytes) if *bytes >= 0 => Ok(i128::from(*bytes)),
            SizeSpec::Bytes(bytes) => Err(invalid(&bytes.to_string())),
            SizeSpec::Float(bytes) => Err(invalid(&bytes.to_string())),
            SizeSpec::Text(text) => convert_file_size_to_int(text),
        }
    }

    /// The size as `get_max_memory` takes it: only strings are converted, so that numbers pass as they are, negative ones too.
    ///
    /// # Errors
    /// Those of [`convert_file_size_to_int`].
    pub fn to_budget(&self) -> Result<Amount> {
        match self {
            SizeSpec::Bytes(bytes) => Ok(Amount::Int(i128::from(*bytes))),
            SizeSpec::Float(bytes) => Ok(Amount::Float(*bytes)),
            SizeSpec::Text(text) => convert_file_size_to_int(text).map(Amount::Int),
        }
    }
}

/// What Python's `float()` reads: spaces around it, and single underscores between digits.
fn python_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let is_digit = |index: Option<usize>| index.and_then(|index| bytes.get(index)).is_some_and(u8::is_ascii_digit);
    let mut underscores = text.match_indices('_').map(|(index, _)| index);
    if underscores.any(|index| !is_digit(index.checked_sub(1)) || !is_digit(Some(index + 1))) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

fn invalid(size: &str) -> Error {
    size_error(format!("`size` {size} is not in a valid format. Use an integer for bytes, or a string with an unit (like '5.0GB')."))
}

fn size_error(reason: String) -> Error {
    Error::InvalidArgument { option: "max_memory".into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_b_is_a_bit_in_decimal_units_only() {
        for (text, bytes) in
            [("20Gb", 2_500_000_000), ("20gb", 2_500_000_000), ("20gB", 20_000_000_000), ("1gib", 1 << 30), ("1mb", 125_000)]
        {
            assert_eq!(convert_file_size_to_int(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn numbers_are_pythons() {
        for (text, bytes) in [("1_000KB", 1_000_000), (" 2 MiB", 2 << 20), (".5KiB", 512), ("-0.0001KB", 0)] {
            assert_eq!(convert_file_size_to_int(text).unwrap(), bytes, "{text}");
        }
        for text in ["1__0KB", "_1KB", "1_KB", "0x1KB", "nanGB", "500", "1TB", "GB", "-1GB", "é"] {
            let error = convert_file_size_to_int(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`size` {text} is not in a valid format")), "{error}");
        }
        assert!(convert_file_size_to_int("infGB").unwrap_err().to_string().contains("infinity"));
    }
}
