//! Corrections of a device's measured rates by what runs showed. Knows no clock.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device::Rates;
use crate::dtype::DType;
use crate::units::BytesPerSec;

/// Number of latest runs that count.
const N_KEPT: usize = 6;
/// The largest change of a correction by one run, and its largest distance from the measured rate, as factors.
const MOST_PER_RUN: f64 = 8.0;
const MOST: f64 = 16.0;
/// A run that waited for cores for a larger share of its time counts only if there are no others.
const QUIET: f64 = 0.25;
/// If runs differ by less than the first and the rate is off by more than the second, the measurement itself was wrong.
const AGREEMENT: f64 = 0.15;
const WORTH_MEASURING: f64 = 3.0;

/// The part of a device's rates that a run measures. Products count by the dtype of most of the model's weights: measurements of
/// dtypes are disturbed apart from each other, and what is fixed weighs differently in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Aspect {
    /// Products with one vector, and what each operation costs whatever its size.
    Decode(DType),
    /// Products with many vectors.
    Prefill(DType),
    /// Bytes to the adapter.
    Upload,
    /// Bytes from disk.
    Read,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aspect::Decode(dtype) => write!(f, "decode.{dtype}"),
            Aspect::Prefill(dtype) => write!(f, "prefill.{dtype}"),
            Aspect::Upload => f.write_str("upload"),
            Aspect::Read => f.write_str("read"),
        }
    }
}

impl From<Aspect> for String {
    fn from(aspect: Aspect) -> String {
        aspect.to_string()
    }
}

impl TryFrom<String> for Aspect {
    type Error = String;

    fn try_from(name: String) -> Result<Aspect, String> {
        let of_dtypes = DType::ALL.into_iter().flat_map(|dtype| [Aspect::Decode(dtype), Aspect::Prefill(dtype)]);
        let found = of_dtypes.chain([Aspect::Upload, Aspect::Read]).find(|aspect| aspect.to_string() == name);
        found.ok_or_else(|| format!("`{name}` is no part of a device's rates"))
    }
}

/// What one run showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// How many times faster it was than the measured rates say.
    pub factor: f64,
    /// The share of its time in which it waited for cores that others had, 0 to 1; 0 where the system does not report it.
    #[serde(default)]
    pub waited: f64,
    /// When, in seconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
}

/// How many times faster the latest runs were than the measured rates say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Correction {
    /// Oldest first.
    samples: Vec<Sample>,
}

/// Corrections of one device.
pub type Corrections = BTreeMap<Aspect, Correction>;

impl Correction {
    /// A correction by this factor, as one undisturbed run would bring it.
    pub fn by(factor: f64) -> Correction {
        Correction { samples: vec![Sample { factor, waited: 0.0, at: None }] }
    }

    /// The factor for the measured rates. Other work on the machine can only slow a run, so it is the factor that a third of the
    /// latest runs reach: a faster one counts at once or with the next one, a slower one when most agree.
    pub fn factor(&self) -> f64 {
        let samples = self.telling();
        samples.get(samples.len() / 3).copied().unwrap_or(1.0).clamp(1.0 / MOST, MOST)
    }

    /// The factors of the runs that count, fastest first: those that waited little for cores, if there are any.
    fn telling(&self) -> Vec<f64> {
        let sane = || self.samples.iter().filter(|sample| sample.factor.is_finite() && sample.factor > 0.0);
        let quiet: Vec<f64> = sane().filter(|sample| sample.waited < QUIET).map(|sample| sample.factor).collect();
        let mut factors = if quiet.is_empty() { sane().map(|sample| sample.factor).collect() } else { quiet };
        factors.sort_by(|a, b| b.total_cmp(a));
        factors
    }

    /// How many runs it rests on.
    pub fn n_runs(&self) -> usize {
        self.telling().len()
    }

    /// How far from the factor half of these runs lie, as a share of it.
    pub fn spread(&self) -> f64 {
        let factor = self.factor();
        let mut distances: Vec<f64> = self.telling().iter().map(|sample| (sample / factor - 1.0).abs()).collect();
        distances.sort_by(f64::total_cmp);
        distances.get(distances.len() / 2).copied().unwrap_or(0.0)
    }

    /// When the last run was.
    pub fn last_at(&self) -> Option<u64> {
        self.samples.iter().filter_map(|sample| sample.at).max()
    }

    /// Counts a run. It may move the factor only so far.
    pub fn add(&mut self, sample: Sample) {
        if !sample.factor.is_finite() || sample.factor <= 0.0 {
            return;
        }
        let now = self.factor();
        let factor = sample.factor.clamp(now / MOST_PER_RUN, now * MOST_PER_RUN).clamp(1.0 / MOST, MOST);
        self.samples.push(Sample { factor, ..sample });
        let n_old = self.samples.len().saturating_sub(N_KEPT);
        self.samples.drain(..n_old);
    }

    /// Whether several runs agree that the measurement was far off.
    pub fn refutes(&self) -> bool {
        let factor = self.factor();
        self.n_runs() >= 3 && self.spread() < AGREEMENT && factor.max(1.0 / factor) > WORTH_MEASURING
    }
}

impl Rates {
    /// The corrected rates for a model whose weights are mostly in `dtype`.
    #[must_use]
    pub fn corrected(mut self, dtype: DType) -> Rates {
        let corrections = std::mem::take(&mut self.corrections);
        let factor = |aspect| corrections.get(&aspect).map_or(1.0, Correction::factor);
        let (decode, prefill) = (factor(Aspect::Decode(dtype)), factor(Aspect::Prefill(dtype)));
        let (upload, read) = (factor(Aspect::Upload), factor(Aspect::Read));
        let faster = |rate: &mut Option<BytesPerSec>, factor: f64| *rate = rate.map(|rate| BytesPerSec(rate.0 * factor));
        self.matvec.values_mut().chain(self.expert_matvec.values_mut()).for_each(|rate| rate.0 *= decode);
        self.dispatch_secs = self.dispatch_secs.map(|secs| secs / decode);
        self.matmul.values_mut().for_each(|rate| *rate *= prefill);
        [&mut self.upload_mapped, &mut self.upload_staged, &mut self.upload_written].into_iter().for_each(|rate| faster(rate, upload));
        faster(&mut self.disk_read, read);
        self
    }

    /// The faster figure of each of two measurements of one device, since disturbances can only slow them.
    #[must_use]
    pub fn fastest(self, other: &Rates) -> Rates {
        let mut both = self.or(other);
        let rate = |own: &mut Option<BytesPerSec>, other: Option<BytesPerSec>| {
            *own = [*own, other].into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0));
        };
        let secs = |own: &mut Option<f64>, other: Option<f64>| *own = [*own, other].into_iter().flatten().min_by(f64::total_cmp);
        rate(&mut both.disk_read, other.disk_read);
        rate(&mut both.host_copy, other.host_copy);
        rate(&mut both.upload_mapped, other.upload_mapped);
        rate(&mut both.upload_staged, other.upload_staged);
        rate(&mut both.upload_written, other.upload_written);
        rate(&mut both.readback, other.readback);
        secs(&mut both.disk_request_secs, other.disk_request_secs);
        secs(&mut both.dispatch_secs, other.dispatch_secs);
        secs(&mut both.submit_secs, other.submit_secs);
        secs(&mut both.round_trip_secs, other.round_trip_secs);
        secs(&mut both.shader_compile_secs, other.shader_compile_secs);
        for (own, other) in [(&mut both.matvec, &other.matvec), (&mut both.expert_matvec, &other.expert_matvec)] {
            for (dtype, &other) in other {
                let own = own.entry(*dtype).or_insert(other);
                own.0 = own.0.max(other.0);
            }
        }
        for (dtype, &other) in &other.matmul {
            let own = both.matmul.entry(*dtype).or_insert(other);
            *own = own.max(other);
        }
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A correction after runs that were so many times faster than measured; each with its share of waiting.
    fn after(runs: &[(f64, f64)]) -> Correction {
        let mut correction = Correction::default();
        runs.iter().for_each(|&(factor, waited)| correction.add(Sample { factor, waited, at: Some(1) }));
        correction
    }

    fn after_quiet(factors: &[f64]) -> Correction {
        after(&factors.iter().map(|&factor| (factor, 0.0)).collect::<Vec<_>>())
    }

    #[test]
    fn a_faster_run_counts_soon_and_a_slower_one_when_most_agree() {
        assert_eq!(Correction::default().factor(), 1.0);
        assert_eq!(after_quiet(&[0.8]).factor(), 0.8);
        assert_eq!(after_quiet(&[0.8, 1.2]).factor(), 1.2);
        assert_eq!(after_quiet(&[0.8, 0.8, 0.8, 1.2, 1.2]).factor(), 1.2);
        for n_slow in 1..=3 {
            let slow = vec![0.5; n_slow];
            assert_eq!(after_quiet(&[vec![1.0; 6], slow].concat()).factor(), 1.0, "{n_slow} slow runs");
        }
        assert_eq!(after_quiet(&[1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]).factor(), 0.5, "what lasts counts");
    }

    #[test]
    fn runs_that_waited_for_cores_count_only_where_there_is_no_other() {
        assert_eq!(after(&[(0.5, 0.9)]).factor(), 0.5);
        assert_eq!(after(&[(0.5, 0.9), (1.1, 0.0)]).factor(), 1.1);
        assert_eq!(after(&[(1.1, 0.0), (0.5, 0.9), (0.5, 0.9), (3.0, 0.9)]).factor(), 1.1);
        assert_eq!(after(&[(1.1, 0.0), (0.5, 0.9), (3.0, 0.9)]).n_runs(), 1);
    }

    #[test]
    fn no_run_moves_far_and_none_moves_the_wrong_way() {
        assert_eq!((after_quiet(&[1e3]).factor(), after_quiet(&[1e-3]).factor()), (8.0, 0.125));
        assert_eq!((after_quiet(&[1e9; 40]).factor(), after_quiet(&[1e-9; 40]).factor()), (MOST, 1.0 / MOST));
        for odd in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(after_quiet(&[odd]), Correction::default(), "{odd}");
        }
        // Pseudo-random runs: whatever came before, a faster last run never gives a smaller factor, and all stay within the bounds.
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        for _ in 0..500 {
            let runs: Vec<(f64, f64)> = (0..(next() * 9.0) as usize).map(|_| ((6.0 * (next() - 0.5)).exp(), next())).collect();
            let (slow, waited) = (next() * 2.0, next());
            let with = |last: f64| after(&[runs.clone(), vec![(last, waited)]].concat()).factor();
            let (slower, faster) = (with(slow + 0.01), with(slow + 0.01 + next()));
            assert!(slower <= faster, "{runs:?}, then {slow}: {slower} and {faster}");
            assert!((1.0 / MOST..=MOST).contains(&slower) && (1.0 / MOST..=MOST).contains(&faster));
        }
    }

    #[test]
    fn what_runs_agree_on_and_is_far_off_refutes_the_measurement() {
        assert!(after_quiet(&[10.0; 12]).refutes());
        assert!(!after_quiet(&[10.0; 2]).refutes() && !after_quiet(&[2.0; 12]).refutes() && !after_quiet(&[]).refutes());
        assert!(after_quiet(&[1.0, 1.1, 1.1]).spread() < 0.1 && after_quiet(&[2.0; 4]).n_runs() == 4);
    }

    fn rates() -> Rates {
        Rates {
            disk_read: Some(BytesPerSec(1.0)),
            upload_staged: Some(BytesPerSec(1.0)),
            matvec: BTreeMap::from([(DType::F16, BytesPerSec(1.0))]),
            matmul: BTreeMap::from([(DType::F16, 1.0)]),
            dispatch_secs: Some(1.0),
            ..Rates::default()
        }
    }

    #[test]
    fn each_aspect_corrects_its_own_rates_once() {
        let factors =
            [(Aspect::Decode(DType::Q8_0), 2.0), (Aspect::Prefill(DType::Q8_0), 4.0), (Aspect::Upload, 1.25), (Aspect::Read, 1.6)];
        let corrections: Corrections = factors.map(|(aspect, factor)| (aspect, Correction::by(factor))).into();
        let with = Rates { corrections, ..rates() };
        let corrected = with.clone().corrected(DType::Q8_0);
        assert_eq!((corrected.matvec_of(DType::F16), corrected.dispatch_secs), (Some(BytesPerSec(2.0)), Some(0.5)));
        assert_eq!(
            (corrected.matmul_of(DType::F16), corrected.upload(), corrected.disk_read),
            (Some(4.0), Some(BytesPerSec(1.25)), Some(BytesPerSec(1.6)))
        );
        assert_eq!(corrected.clone().corrected(DType::Q8_0), corrected);
        let of_another = with.corrected(DType::F16);
        assert_eq!((of_another.matvec_of(DType::F16), of_another.upload()), (Some(BytesPerSec(1.0)), Some(BytesPerSec(1.25))));
        assert_eq!(rates().corrected(DType::F16), rates());
    }

    #[test]
    fn of_two_disturbed_measurements_the_faster_figures_count() {
        let other = Rates {
            upload_staged: Some(BytesPerSec(2.0)),
            matvec: BTreeMap::from([(DType::F16, BytesPerSec(0.5)), (DType::Q8_0, BytesPerSec(3.0))]),
            dispatch_secs: Some(0.5),
            readback: Some(BytesPerSec(7.0)),
            ..Rates::default()
        };
        let both = rates().fastest(&other);
        assert_eq!((both.upload_staged, both.readback, both.dispatch_secs), (Some(BytesPerSec(2.0)), Some(BytesPerSec(7.0)), Some(0.5)));
        assert_eq!(
            (both.matvec[&DType::F16], both.matvec[&DType::Q8_0], both.matmul[&DType::F16]),
            (BytesPerSec(1.0), BytesPerSec(3.0), 1.0)
        );
    }

    #[test]
    fn corrections_are_kept_by_names_and_unknown_names_are_refused() {
        let all: Corrections = [Aspect::Decode(DType::Q6K), Aspect::Prefill(DType::F16), Aspect::Upload, Aspect::Read]
            .map(|aspect| (aspect, after_quiet(&[2.0])))
            .into();
        let text = serde_json::to_string(&all).unwrap();
        assert!(text.contains(r#""decode.Q6_K":[{"factor":2.0,"waited":0.0,"at":1}]"#), "{text}");
        assert_eq!(serde_json::from_str::<Corrections>(&text).unwrap(), all);
        assert!(serde_json::from_str::<Corrections>(r#"{"decode.NVFP4":[]}"#).unwrap_err().to_string().contains("decode.NVFP4"));
    }
}
