//! Which variant the matrix products take on an adapter. Plain data: the kernels know what the variants are, `machine` which is fastest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// How a matrix product is spread over an adapter's lanes.
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

/// Whether a product is of few tokens, as decoding is, or of many, as prompts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCount {
    /// Each weight is used a few times.
    Few,
    /// Each weight is used often.
    Many,
}

/// Which kernels an adapter may run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// The fastest that were measured, of all that it can run.
    #[default]
    Auto,
    /// Those that every adapter runs, as its kind suggests them: the same on machines whose measurements differ, and a way
    /// round a driver that fails with others. Predictions still rest on the fastest.
    Portable,
}

/// The fastest variants that were measured, by dtype. Where a dtype has none, that of the nearest one measured stands for it;
/// where none was measured, the kernels choose by the kind of adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MatMulVariants {
    /// For few tokens.
    pub few: BTreeMap<DType, MatMulVariant>,
    /// For many tokens.
    pub many: BTreeMap<DType, MatMulVariant>,
}

impl MatMulVariants {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.few.is_empty() && self.many.is_empty()
    }

    /// The variant for a product in `dtype`, where one was measured.
    pub fn of(&self, dtype: DType, tokens: TokenCount) -> Option<MatMulVariant> {
        nearest(self.by_dtype(tokens), dtype)
    }

    /// Whether a variant was measured for this very dtype.
    pub fn has(&self, dtype: DType, tokens: TokenCount) -> bool {
        self.by_dtype(tokens).contains_key(&dtype)
    }

    /// Remembers the fastest variant.
    pub fn insert(&mut self, dtype: DType, tokens: TokenCount, variant: MatMulVariant) {
        match tokens {
            TokenCount::Few => self.few.insert(dtype, variant),
            TokenCount::Many => self.many.insert(dtype, variant),
        };
    }

    fn by_dtype(&self, tokens: TokenCount) -> &BTreeMap<DType, MatMulVariant> {
        match tokens {
            TokenCount::Few => &self.few,
            TokenCount::Many => &self.many,
        }
    }
}

/// The value at `dtype`, else at the one that it is measured as, else at the dtype most like it: blocks before unquantised values where it
/// is one of blocks, then by bits.
pub(super) fn nearest<T: Copy>(by_dtype: &BTreeMap<DType, T>, dtype: DType) -> Option<T> {
    if let Some(value) = by_dtype.get(&dtype).or_else(|| by_dtype.get(&dtype.measured_as())) {
        return Some(*value);
    }
    let distance = |other: DType| {
        let other_variant = other.has_blocks() != dtype.has_blocks();
        (other_variant, (other.bits() - dtype.bits()).abs())
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
        assert!(variants.is_empty() && variants.of(DType::F16, TokenCount::Few).is_none());
        variants.insert(DType::F16, TokenCount::Few, MatMulVariant::Workgroup);
        variants.insert(DType::Q4_0, TokenCount::Few, MatMulVariant::Subgroup);
        assert_eq!(variants.of(DType::BF16, TokenCount::Few), Some(MatMulVariant::Workgroup));
        assert_eq!(variants.of(DType::Q8_0, TokenCount::Few), Some(MatMulVariant::Subgroup));
        assert_eq!(variants.of(DType::Q8_0, TokenCount::Many), None);
        let text = serde_json::to_string(&variants).unwrap();
        assert_eq!(text, r#"{"few":{"F16":"workgroup","Q4_0":"subgroup"},"many":{}}"#);
        assert_eq!(serde_json::from_str::<MatMulVariants>(&text).unwrap(), variants);
    }
}
