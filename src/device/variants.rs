//! Which variant the matrix products take on an adapter. Plain data: the kernels know what the variants are, `machine` which is fastest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// How a matrix product is distributed over an adapter's lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatMulVariant {
    /// A lane has rows of its own, and no lane waits for another.
    Lane,
    /// The lanes of half a wave or more share a row and meet at barriers.
    Workgroup,
    /// Tiles of rows and tokens, decoded into workgroup memory.
    Tile,
    /// A lane has rows of its own; the inputs are passed round in the subgroup. Not every adapter can.
    Subgroup,
}

/// What a kernel works on: few tokens, as in decoding, or many, as in the prefill of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Few tokens: each weight is used a few times.
    Decode,
    /// Many tokens: each weight is used often.
    Prefill,
}

/// Which kernels an adapter may run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// The fastest that were measured, of all that it can run.
    #[default]
    Auto,
    /// Those that every adapter runs, chosen by its kind: the same on machines whose measurements differ, and a way to avoid a
    /// driver that fails with others. Predictions still assume the fastest.
    Portable,
}

/// The fastest variants that were measured, by dtype. Where a dtype has none, that of the nearest one measured stands for it;
/// where none was measured, the kernels choose by the kind of adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MatMulVariants {
    /// For few tokens.
    #[serde(rename = "few")]
    pub decode: BTreeMap<DType, MatMulVariant>,
    /// For many tokens.
    #[serde(rename = "many")]
    pub prefill: BTreeMap<DType, MatMulVariant>,
}

impl MatMulVariants {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.decode.is_empty() && self.prefill.is_empty()
    }

    /// The variant for a product in `dtype`, where one was measured.
    pub fn of(&self, dtype: DType, phase: Phase) -> Option<MatMulVariant> {
        nearest(self.by_dtype(phase), dtype)
    }

    /// Whether a variant was measured for this very dtype.
    pub fn has(&self, dtype: DType, phase: Phase) -> bool {
        self.by_dtype(phase).contains_key(&dtype)
    }

    /// Remembers the fastest variant.
    pub fn insert(&mut self, dtype: DType, phase: Phase, variant: MatMulVariant) {
        match phase {
            Phase::Decode => self.decode.insert(dtype, variant),
            Phase::Prefill => self.prefill.insert(dtype, variant),
        };
    }

    fn by_dtype(&self, phase: Phase) -> &BTreeMap<DType, MatMulVariant> {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }
}

/// The value at `dtype`, else at the one that it is measured as, else at the most similar dtype: a quantised one
/// for a quantised one, then the one with the nearest number of bits.
pub(super) fn nearest<T: Copy>(by_dtype: &BTreeMap<DType, T>, dtype: DType) -> Option<T> {
    if let Some(value) = by_dtype.get(&dtype).or_else(|| by_dtype.get(&dtype.measured_as())) {
        return Some(*value);
    }
    let distance = |other: DType| {
        let differs_in_blocks = other.has_blocks() != dtype.has_blocks();
        (differs_in_blocks, (other.bits() - dtype.bits()).abs())
    };
    let by_distance = |a: &(&DType, &T), b: &(&DType, &T)| {
        let (a, b) = (distance(*a.0), distance(*b.0));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    };
    by_dtype.iter().min_by(by_distance).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_dtype_stands_for_one_that_was_not_measured() {
        let mut variants = MatMulVariants::default();
        assert!(variants.is_empty() && variants.of(DType::F16, Phase::Decode).is_none());
        variants.insert(DType::F16, Phase::Decode, MatMulVariant::Workgroup);
        variants.insert(DType::Q4_0, Phase::Decode, MatMulVariant::Subgroup);
        assert_eq!(variants.of(DType::BF16, Phase::Decode), Some(MatMulVariant::Workgroup));
        assert_eq!(variants.of(DType::Q8_0, Phase::Decode), Some(MatMulVariant::Subgroup));
        assert_eq!(variants.of(DType::Q8_0, Phase::Prefill), None);
        let text = serde_json::to_string(&variants).unwrap();
        assert_eq!(text, r#"{"few":{"F16":"workgroup","Q4_0":"subgroup"},"many":{}}"#);
        assert_eq!(serde_json::from_str::<MatMulVariants>(&text).unwrap(), variants);
    }
}
