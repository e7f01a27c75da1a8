//! Which variant of the matrix products is fastest on an adapter, and in which shape, found by trying them.

use std::collections::{BTreeSet, VecDeque};

use super::effort::Effort;
use crate::device::{MatMulVariant, MatMulVariants};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::matmul::Params;

/// An unquantised dtype and a quantised one: others take the variant of the nearest, whichever model is planned first.
const DTYPES: [DType; 2] = [DType::F16, DType::Q4_0];
/// A product of decoding and one of prefill, large enough to tell variants apart, and small enough for a software adapter.
const SHAPES_FOR_SOFTWARE: [[u32; 3]; 2] = [[1024, 2048, 1], [512, 512, 64]];
/// Those of a model of some billion parameters, which fill a GPU.
const SHAPES_FOR_HARDWARE: [[u32; 3]; 2] = [[4096, 4096, 1], [2048, 2048, 256]];
/// The share of time that another variant must save against the one that the kind of adapter suggests. Less is noise, and variants
/// differ in the last bits of results, which should not change from one measurement to the next.
const LEAST_GAIN: f64 = 0.1;
/// The share of time that the next shape of the same variant must save.
const LEAST_GAIN_OF_SHAPE: f64 = 0.03;

/// How thorough a search is, and for which kind of adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Whether the adapter is software, whose lanes share a core: shapes change nothing there.
    pub(super) is_software: bool,
    /// Whether each dtype has a search of its own, and software adapters try all that others run.
    pub(super) is_full: bool,
}

impl Extent {
    /// What is searched for a model in the dtypes `of_model`, where nothing is known.
    fn products(self, of_model: &[DType]) -> Vec<Params> {
        let is_asked_for = |dtype: &DType| of_model.iter().any(|asked| asked.has_blocks() == dtype.has_blocks());
        let dtypes: Vec<DType> = if self.is_full { DType::measured().collect() } else { DTYPES.into_iter().filter(is_asked_for).collect() };
        let shapes = if self.is_software { SHAPES_FOR_SOFTWARE } else { SHAPES_FOR_HARDWARE };
        let product = |dtype, [n_rows, n_columns, n_tokens]: [u32; 3]| Params::new(dtype, n_rows, n_columns, n_tokens);
        dtypes.into_iter().flat_map(|dtype| shapes.map(|shape| product(dtype, shape))).collect()
    }

    fn has_shapes(self) -> bool {
        self.is_full || !self.is_software
    }
}

/// The search for the fastest variants of an adapter, which goes on after a variant that failed.
pub(super) struct Search {
    extent: Extent,
    fastest: MatMulVariants,
    /// Products whose fastest variant is to be found.
    due: VecDeque<Params>,
    /// The product under way.
    climb: Option<Climb>,
    /// What failed, in whichever product: it is not tried again.
    failed: BTreeSet<MatMulVariant>,
}

impl Search {
    /// The search for a model in the dtypes `of_model`, beside what is `known`.
    pub(super) fn new(extent: Extent, of_model: &[DType], known: MatMulVariants) -> Search {
        let known = if extent.is_full { MatMulVariants::default() } else { known };
        let is_new = |params: &Params| params.dtype().is_some_and(|dtype| !known.has(dtype, params.phase()));
        let due = extent.products(of_model).into_iter().filter(is_new).collect();
        Search { extent, fastest: known, due, climb: None, failed: BTreeSet::new() }
    }

    /// Whether everything is known.
    pub(super) fn is_done(&self) -> bool {
        self.due.is_empty() && self.climb.is_none()
    }

    /// What was found.
    pub(super) fn into_fastest(self) -> MatMulVariants {
        self.fastest
    }

    /// Searches until all is found or time runs out: then the best of what was tried is taken, or nothing where nothing was. `variants`
    /// lists those that a product can take, the suggested one first; `run` returns the seconds of one product. Where a variant fails, it
    /// is left out, and its error returned: the adapter may have to be opened again before the search goes on.
    ///
    /// # Errors
    /// That of the variant.
    pub(super) fn go_on(
        &mut self,
        effort: &Effort,
        variants: impl Fn(&Params) -> Vec<MatMulVariant>,
        mut run: impl FnMut(&Params, MatMulVariant) -> Result<f64>,
    ) -> Result<(), (MatMulVariant, Error)> {
        loop {
            let Some(climb) = &mut self.climb else {
                if effort.is_over() {
                    self.due.clear();
                }
                let Some(params) = self.due.pop_front() else { return Ok(()) };
                let due = variants(&params).into_iter().filter(|variant| !self.failed.contains(variant)).collect();
                self.climb = Some(Climb { params, due, tried: Vec::new(), best: None });
                continue;
            };
            let next = climb.next(self.extent.has_shapes()).filter(|_| climb.best.is_none() || !effort.is_over());
            let Some(variant) = next.filter(|variant| !self.failed.contains(variant)) else {
                if next.is_none() {
                    if let (Some((variant, _)), Some(dtype)) = (climb.best, climb.params.dtype()) {
                        self.fastest.insert(dtype, climb.params.phase(), variant);
                    }
                    self.climb = None;
                }
                continue;
            };
            let params = climb.params;
            // The first run compiles, which drivers of hardware take long for.
            let mut first = || run(&params, variant);
            let first = if self.extent.is_software { effort.beside(first) } else { first() };
            match first.and_then(|_| effort.best(|| run(&params, variant))) {
                Ok(secs) => climb.note(variant, secs),
                Err(error) => {
                    self.failed.insert(variant);
                    return Err((variant, error));
                }
            }
        }
    }
}

/// The search for one product: the variants that it can take, then from the best one to its neighbours, as long as they are faster.
struct Climb {
    params: Params,
    due: VecDeque<MatMulVariant>,
    tried: Vec<MatMulVariant>,
    best: Option<(MatMulVariant, f64)>,
}

impl Climb {
    fn next(&mut self, with_shapes: bool) -> Option<MatMulVariant> {
        if self.due.is_empty() && with_shapes {
            let around = self.best.map(|(best, _)| best.neighbours());
            self.due.extend(around.into_iter().flatten().filter(|variant| !self.tried.contains(variant)));
        }
        let next = self.due.pop_front()?;
        self.tried.push(next);
        Some(next)
    }

    fn note(&mut self, variant: MatMulVariant, secs: f64) {
        let least_gain = |best: MatMulVariant| {
            let is_same_kind = std::mem::discriminant(&best) == std::mem::discriminant(&variant);
            if is_same_kind { LEAST_GAIN_OF_SHAPE } else { LEAST_GAIN }
        };
        if self.best.is_none_or(|(best, least)| secs < least * (1.0 - least_gain(best))) {
            self.best = Some((variant, secs));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Phase, RowShape, TileShape};
    use crate::machine::Measure;

    const HARDWARE: Extent = Extent { is_software: false, is_full: false };
    const SOFTWARE: Extent = Extent { is_software: true, is_full: false };

    fn found(mut search: Search, mut run: impl FnMut(&Params, MatMulVariant) -> Result<f64>) -> (MatMulVariants, Vec<MatMulVariant>) {
        let effort = Effort::of(Measure::Full).unwrap();
        let variants = |params: &Params| match params.phase() {
            Phase::Decode => vec![MatMulVariant::WORKGROUP, MatMulVariant::Lane, MatMulVariant::Subgroup],
            Phase::Prefill => vec![MatMulVariant::TILE, MatMulVariant::Lane, MatMulVariant::Subgroup],
        };
        let mut failed = Vec::new();
        while let Err((variant, _)) = search.go_on(&effort, variants, &mut run) {
            failed.push(variant);
        }
        assert!(search.is_done());
        (search.into_fastest(), failed)
    }

    #[test]
    fn a_variant_is_taken_where_it_is_clearly_faster_than_the_suggested_one() {
        let secs = |params: &Params, variant: MatMulVariant| match (params.phase(), variant) {
            (_, MatMulVariant::Workgroup(_) | MatMulVariant::Tile(_)) => 1.0,
            // Noise for prompts, a gain for decoding.
            (Phase::Decode, MatMulVariant::Lane) => 0.7,
            (Phase::Prefill, MatMulVariant::Lane) => 0.95,
            _ => 0.68,
        };
        let search = Search::new(SOFTWARE, &DType::ALL, MatMulVariants::default());
        let (fastest, failed) = found(search, |params, variant| Ok(secs(params, variant)));
        assert_eq!(fastest.of(DType::F16, Phase::Decode), Some(MatMulVariant::Lane));
        assert_eq!(fastest.of(DType::Q4_1, Phase::Prefill), Some(MatMulVariant::Subgroup));
        assert!(failed.is_empty());
        assert!(Search::new(SOFTWARE, &DType::ALL, fastest).is_done(), "nothing is searched twice");
    }

    /// Seconds that have one minimum over the shapes.
    fn secs_of_shape(variant: MatMulVariant) -> f64 {
        let steps = |value: u32, best: u32| (f64::from(value) / f64::from(best)).log2().abs();
        match variant {
            MatMulVariant::Workgroup(RowShape { lanes, workgroup, rows }) => {
                1.0 + steps(lanes, 8) * 0.2 + steps(workgroup, 128) * 0.2 + steps(rows, 2) * 0.2
            }
            MatMulVariant::Tile(TileShape { rows, tokens, lane_rows, lane_tokens }) => {
                1.0 + steps(rows, 64) * 0.2 + steps(tokens, 64) * 0.2 + steps(lane_rows, 8) * 0.2 + steps(lane_tokens, 4) * 0.2
            }
            MatMulVariant::Lane | MatMulVariant::Subgroup => 5.0,
        }
    }

    #[test]
    fn the_best_shape_is_found_by_steps() {
        let search = Search::new(HARDWARE, &[DType::Q8_0], MatMulVariants::default());
        let (fastest, _) = found(search, |_, variant| Ok(secs_of_shape(variant)));
        let text = serde_json::to_string(&fastest).unwrap();
        assert_eq!(text, r#"{"few":{"Q4_0":"workgroup-8x128x2"},"many":{"Q4_0":"tile-64x64x8x4"}}"#);
    }

    #[test]
    fn a_variant_that_fails_is_left_out_and_the_search_goes_on() {
        let search = Search::new(HARDWARE, &[DType::F16, DType::Q8_0], MatMulVariants::default());
        let broken = MatMulVariant::Workgroup(RowShape { lanes: 8, workgroup: 128, rows: 2 });
        let fails = |variant| variant == MatMulVariant::TILE || variant == broken;
        let (fastest, failed) =
            found(search, |_, variant| if fails(variant) { Err(Error::EngineGone) } else { Ok(secs_of_shape(variant)) });
        assert_eq!(failed, [broken, MatMulVariant::TILE], "each once, over all products");
        for dtype in DTYPES {
            assert!(
                matches!(fastest.of(dtype, Phase::Decode), Some(MatMulVariant::Workgroup(shape)) if MatMulVariant::Workgroup(shape) != broken)
            );
            assert_eq!(fastest.of(dtype, Phase::Prefill), Some(MatMulVariant::Lane));
        }
    }

    #[test]
    fn a_search_without_time_takes_the_suggestion_or_nothing_and_is_taken_up_again() {
        let effort = Effort::of(Measure::Quick).unwrap().part(0.0);
        let mut search = Search::new(HARDWARE, &[DType::F16], MatMulVariants::default());
        search.go_on(&effort, |_| vec![MatMulVariant::WORKGROUP], |_, _| Ok(1.0)).unwrap();
        let nothing = search.into_fastest();
        assert!(nothing.is_empty());
        assert!(!Search::new(HARDWARE, &[DType::F16], nothing).is_done());
    }
}
