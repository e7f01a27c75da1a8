//! The size of one value of a tensor, as Accelerate counts it (`dtype_byte_size`).

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::accelerate::Amount;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The type of a tensor's values: one of torch's, one of Accelerate's `CustomDtype`, or a quantised form of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ElementType {
    /// A float or complex number of so many bytes: it may be loaded as a narrower type.
    Float(u8),
    /// An integer of so many bytes: it is always loaded as it is. torch's `int4` and the like count as no bytes at all, a defect that is
    /// kept; Accelerate's own [`CustomInt4`](ElementType::CustomInt4) is the one that counts.
    Integer(u8),
    /// An eighth of a byte, always loaded as it is. torch itself stores a whole byte: kept for equality.
    Bool,
    /// `CustomDtype.INT2`: a quarter of a byte.
    CustomInt2,
    /// `CustomDtype.INT4`: half a byte.
    CustomInt4,
    /// Blocks as a checkpoint of ours stores them, scales included. Accelerate knows none; to it, they are floats of an unusual width.
    Blocks(DType),
}

impl ElementType {
    /// Bytes of `n_values` values; whole blocks where there are blocks.
    pub fn size(self, n_values: i128) -> Amount {
        match self {
            ElementType::Float(width) | ElementType::Integer(width) => Amount::Int(n_values.saturating_mul(i128::from(width))),
            ElementType::Bool => Amount::fraction(n_values, 0.125),
            ElementType::CustomInt2 => Amount::fraction(n_values, 0.25),
            ElementType::CustomInt4 => Amount::fraction(n_values, 0.5),
            ElementType::Blocks(dtype) => {
                let block_len = i128::from(dtype.block_len());
                let n_blocks = n_values / block_len + i128::from(n_values % block_len != 0);
                Amount::Int(n_blocks.saturating_mul(i128::from(dtype.block_bytes())))
            }
        }
    }

    /// Whether a tensor of this type is loaded as it is stored, whatever type is asked for.
    pub(super) fn is_fixed(self) -> bool {
        matches!(self, ElementType::Integer(_) | ElementType::Bool)
    }
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> ElementType {
        dtype.floats().map_or(ElementType::Blocks(dtype), |floats| ElementType::Float(floats.size_bytes() as u8))
    }
}

/// Reads torch's names, with or without `torch.`, and `custom_int2`, `custom_int4`, `custom_fp8`.
impl FromStr for ElementType {
    type Err = Error;

    fn from_str(text: &str) -> Result<ElementType> {
        Ok(match text.strip_prefix("torch.").unwrap_or(text) {
            "complex128" => ElementType::Float(16),
            "float64" | "double" | "complex64" => ElementType::Float(8),
            "float32" | "float" | "complex32" => ElementType::Float(4),
            "float16" | "half" | "bfloat16" => ElementType::Float(2),
            "float8_e4m3fn" | "float8_e5m2" | "float8_e4m3fnuz" | "float8_e5m2fnuz" | "float8_e8m0fnu" | "custom_fp8" => {
                ElementType::Float(1)
            }
            "int64" | "long" | "uint64" => ElementType::Integer(8),
            "int32" | "int" | "uint32" => ElementType::Integer(4),
            "int16" | "short" | "uint16" => ElementType::Integer(2),
            "int8" | "uint8" => ElementType::Integer(1),
            "int1" | "int2" | "int3" | "int4" | "int5" | "int6" | "int7" => ElementType::Integer(0),
            "uint1" | "uint2" | "uint3" | "uint4" | "uint5" | "uint6" | "uint7" => ElementType::Integer(0),
            "bool" => ElementType::Bool,
            "custom_int2" => ElementType::CustomInt2,
            "custom_int4" => ElementType::CustomInt4,
            _ => {
                let reason = format!("`{text}` is no dtype; write one of torch's (float16, bfloat16, int8), custom_int4 or custom_int2");
                return Err(Error::InvalidArgument { option: "dtype".into(), reason });
            }
        })
    }
}

impl TryFrom<String> for ElementType {
    type Error = Error;

    fn try_from(text: String) -> Result<ElementType> {
        text.parse()
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            ElementType::Float(width) => format!("float{}", u32::from(*width) * 8),
            ElementType::Integer(width) => format!("int{}", u32::from(*width) * 8),
            ElementType::Bool => "bool".into(),
            ElementType::CustomInt2 => "custom_int2".into(),
            ElementType::CustomInt4 => "custom_int4".into(),
            ElementType::Blocks(dtype) => dtype.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_sizes_are_the_stored_ones() {
        for dtype in DType::ALL {
            assert_eq!(ElementType::from(dtype).size(512).to_bytes().0, dtype.size_bytes(512).unwrap(), "{dtype}");
        }
    }

    #[test]
    fn unknown_types_are_refused() {
        assert!("int5000".parse::<ElementType>().unwrap_err().to_string().contains("`int5000` is no dtype"));
    }
}
