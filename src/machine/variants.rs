//! Which variant of the matrix products is fastest on an adapter, found by trying each.

use super::effort::Effort;
use crate::device::{MatMulVariant, MatMulVariants, Phase};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::matmul::Params;

/// An unquantised dtype and a quantised one: others take the variant of the nearest, whichever model is planned first.
const DTYPES: [DType; 2] = [DType::F16, DType::Q4_0];
/// Products large enough to tell variants apart, and small enough for a slow adapter.
const SHAPES: [(Phase, [u32; 3]); 2] = [(Phase::Decode, [1024, 2048, 1]), (Phase::Prefill, [512, 512, 64])];
/// The share of time that another variant must save against the one that the kind of adapter suggests. Less is noise, and variants
/// differ in the last bits of results, which should not change from one measurement to the next.
const LEAST_GAIN: f64 = 0.1;

/// The fastest variants for products in `dtypes`, added to those that are `known`. `variants` lists those that a product can take, the
/// suggested one first; `run` returns the seconds of one product. Where time runs out, the suggested variant is taken.
pub(super) fn measure(
    effort: &Effort,
    dtypes: &[DType],
    known: MatMulVariants,
    variants: impl Fn(&Params) -> Vec<MatMulVariant>,
    mut run: impl FnMut(&Params, MatMulVariant) -> Result<f64>,
) -> Result<MatMulVariants> {
    let mut fastest = known;
    let is_asked_for = |dtype: &DType| dtypes.iter().any(|asked| asked.has_blocks() == dtype.has_blocks());
    for dtype in DTYPES.into_iter().filter(is_asked_for) {
        for (tokens, [n_rows, n_columns, n_tokens]) in SHAPES {
            let params = Params::new(dtype, n_rows, n_columns, n_tokens);
            if fastest.has(dtype, tokens) {
                continue;
            }
            if effort.is_over() {
                return Ok(fastest);
            }
            let mut best: Option<(MatMulVariant, f64)> = None;
            for variant in variants(&params) {
                // The first run compiles.
                effort.beside(|| run(&params, variant))?;
                let secs = effort.best(|| run(&params, variant))?;
                if best.is_none_or(|(_, least)| secs < least * (1.0 - LEAST_GAIN)) {
                    best = Some((variant, secs));
                }
            }
            if let Some((variant, _)) = best {
                fastest.insert(dtype, tokens, variant);
            }
        }
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Measure;

    #[test]
    fn a_variant_is_taken_where_it_is_clearly_faster_than_the_suggested_one() {
        let effort = Effort::of(Measure::Full).unwrap();
        let variants = |_: &Params| vec![MatMulVariant::Workgroup, MatMulVariant::Lane, MatMulVariant::Subgroup];
        let secs = |params: &Params, variant: MatMulVariant| match (params.phase(), variant) {
            (_, MatMulVariant::Workgroup) => 1.0,
            // Noise for prompts, a gain for decoding.
            (Phase::Decode, MatMulVariant::Lane) => 0.7,
            (Phase::Prefill, MatMulVariant::Lane) => 0.95,
            _ => 0.68,
        };
        let fastest =
            measure(&effort, &DType::ALL, MatMulVariants::default(), variants, |params, variant| Ok(secs(params, variant))).unwrap();
        assert_eq!(fastest.of(DType::F16, Phase::Decode), Some(MatMulVariant::Lane));
        assert_eq!(fastest.of(DType::Q4_1, Phase::Prefill), Some(MatMulVariant::Subgroup));
        assert!(measure(&effort, &DType::ALL, MatMulVariants::default(), |_| Vec::new(), |_, _| Ok(1.0)).unwrap().is_empty());
    }
}
