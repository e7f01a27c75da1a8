//! Which form of the matrix products is fastest on an adapter, found by trying each.

use super::effort::Effort;
use crate::device::{MatMulForm, MatMulForms, TokenCount};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::matmul::Params;

/// One dtype of plain numbers and one of blocks: others take the form of the nearest, whichever model is planned first.
const DTYPES: [DType; 2] = [DType::F16, DType::Q4_0];
/// Products large enough to tell forms apart, and small enough for a slow adapter.
const SHAPES: [(TokenCount, [u32; 3]); 2] = [(TokenCount::Few, [1024, 2048, 1]), (TokenCount::Many, [512, 512, 64])];
/// What another form must save of the time of the one that the kind of adapter suggests: less is noise, and forms differ in
/// the last bits, which should not change from one measurement to the next.
const LEAST_GAIN: f64 = 0.1;

/// The fastest forms for products in `dtypes`, beside those that are `known`. `forms` lists those that a product can take, the
/// suggested one first; `run` returns the seconds of one product. Whatever there was no time for is left to the suggestion.
pub(super) fn measure(
    effort: &Effort,
    dtypes: &[DType],
    known: MatMulForms,
    forms: impl Fn(&Params) -> Vec<MatMulForm>,
    mut run: impl FnMut(&Params, MatMulForm) -> Result<f64>,
) -> Result<MatMulForms> {
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
            let mut best: Option<(MatMulForm, f64)> = None;
            for form in forms(&params) {
                // The first run compiles.
                effort.beside(|| run(&params, form))?;
                let secs = effort.best(|| run(&params, form))?;
                if best.is_none_or(|(_, least)| secs < least * (1.0 - LEAST_GAIN)) {
                    best = Some((form, secs));
                }
            }
            if let Some((form, _)) = best {
                fastest.insert(dtype, tokens, form);
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
    fn a_form_is_taken_where_it_is_clearly_faster_than_the_suggested_one() {
        let effort = Effort::of(Measure::Full).unwrap();
        let forms = |_: &Params| vec![MatMulForm::Workgroup, MatMulForm::Lane, MatMulForm::Subgroup];
        let secs = |params: &Params, form: MatMulForm| match (params.token_count(), form) {
            (_, MatMulForm::Workgroup) => 1.0,
            // Noise for prompts, a gain for decoding.
            (TokenCount::Few, MatMulForm::Lane) => 0.7,
            (TokenCount::Many, MatMulForm::Lane) => 0.95,
            _ => 0.68,
        };
        let fastest = measure(&effort, &DType::ALL, MatMulForms::default(), forms, |params, form| Ok(secs(params, form))).unwrap();
        assert_eq!(fastest.of(DType::F16, TokenCount::Few), Some(MatMulForm::Lane));
        assert_eq!(fastest.of(DType::Q4_1, TokenCount::Many), Some(MatMulForm::Subgroup));
        assert!(measure(&effort, &DType::ALL, MatMulForms::default(), |_| Vec::new(), |_, _| Ok(1.0)).unwrap().is_empty());
    }
}
