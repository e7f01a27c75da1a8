//! Whether the machine was busy with other work while it was measured. The figures are then too slow, so they are measured again later,
//! and of each figure the faster one counts.

use crate::device::Rates;
use crate::platform::{self, CoreTime};

/// A measurement whose threads waited for cores for a larger share of their time than this says too little.
const MOST_WAITED: f64 = 0.1;
/// After so many such measurements in a row, the machine is assumed to be always this busy.
const MOST_TRIES: u32 = 3;
/// How long after one the next is made, in seconds: a machine is seldom busy for a moment only.
const PATIENCE: u64 = 600;

/// Watches one measurement.
pub(super) struct Watch(Option<CoreTime>);

impl Watch {
    pub(super) fn start() -> Watch {
        Watch(CoreTime::now())
    }

    /// The measured `rates`, merged with those that were measured `before`.
    pub(super) fn end(self, rates: Rates, before: Option<Rates>) -> Rates {
        let waited = platform::waited_since(self.0).unwrap_or(0.0);
        if waited > MOST_WAITED {
            tracing::info!("the machine was busy while it was measured: {:.0} % of the time went to others", waited * 100.0);
        }
        judged(rates, before, waited)
    }
}

fn judged(rates: Rates, before: Option<Rates>, waited: f64) -> Rates {
    let before = before.unwrap_or_default();
    if waited > MOST_WAITED {
        return Rates { n_disturbed: before.n_disturbed + 1, measured_at: None, ..rates.fastest(&before) };
    }
    // Products in dtypes that this time nobody asked for.
    let Rates { mut matvec, mut expert_matvec, mut matmul, .. } = before;
    matvec.extend(rates.matvec);
    expert_matvec.extend(rates.expert_matvec);
    matmul.extend(rates.matmul);
    Rates { matvec, expert_matvec, matmul, ..rates }
}

/// Whether `rates` were measured on a busy machine so long before `now` that another try is due. What runs have corrected needs none.
pub(super) fn wants_another(rates: &Rates, now: Option<u64>) -> bool {
    let age = now.zip(rates.measured_at).map_or(0, |(now, at)| now.saturating_sub(at));
    (1..MOST_TRIES).contains(&rates.n_disturbed) && rates.corrections.is_empty() && age > PATIENCE
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::device::{Aspect, Correction};
    use crate::dtype::DType;
    use crate::units::BytesPerSec;

    fn rates(dtype: DType, rate: f64) -> Rates {
        Rates { matvec: BTreeMap::from([(dtype, BytesPerSec(rate))]), ..Rates::default() }
    }

    #[test]
    fn of_busy_measurements_the_faster_figures_stay_and_a_quiet_one_ends_the_tries() {
        let first = judged(rates(DType::F16, 2.0), None, 0.5);
        assert_eq!(first.n_disturbed, 1);
        let second = judged(rates(DType::F16, 1.0), Some(first), 0.5);
        assert_eq!((second.n_disturbed, second.matvec[&DType::F16]), (2, BytesPerSec(2.0)));
        let third = judged(Rates { matvec: rates(DType::Q8_0, 1.0).matvec, ..rates(DType::F32, 1.0) }, Some(second), 0.05);
        assert_eq!((third.n_disturbed, third.matvec.len()), (0, 2), "{third:?}");
        assert_eq!(judged(rates(DType::F16, 1.0), Some(rates(DType::F16, 9.0)), 0.0).matvec[&DType::F16], BytesPerSec(1.0));
    }

    #[test]
    fn another_try_is_due_after_a_while_unless_runs_have_corrected_what_was_measured() {
        let disturbed = |n_disturbed| Rates { n_disturbed, measured_at: Some(1000), ..rates(DType::F16, 1.0) };
        let due = |rates: &Rates| wants_another(rates, Some(1001 + PATIENCE));
        assert!(due(&disturbed(1)) && !due(&disturbed(0)) && !due(&disturbed(MOST_TRIES)));
        assert!(!wants_another(&disturbed(1), Some(1000 + PATIENCE)) && !wants_another(&disturbed(1), None));
        let corrections = BTreeMap::from([(Aspect::Upload, Correction::by(2.0))]);
        assert!(!due(&Rates { corrections, ..disturbed(1) }));
    }
}
