//! Observation, the inverse of prediction: the time that a run took says how fast the device is that took most of it. Pure, as all of
//! planning.

use crate::device::{AdapterKind, Aspect, Correction, Device, DeviceSpec};
use crate::dtype::DType;
use crate::model::Model;
use crate::plan::Plan;
use crate::plan::costs::Workload;
use crate::plan::dry_run::{Prediction, predict};
use crate::units::Bytes;
use crate::weights::Catalog;

/// A part that should take less than this share of the time is not what made a run fast or slow.
const LEAST_SHARE: f64 = 0.4;
/// A factor is looked for up to so many times above and below the present one, by so many bisections.
const RANGE: f64 = 8.0;
const N_HALVINGS: usize = 13;
/// Where a run takes less than so many times what the other parts take alone, its time says nothing of this part.
const FLOOR: f64 = 1.01;

/// Forwards that followed each other: those of a prompt or those of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Forwards {
    /// Workloads of forwards, each with their number.
    alike: Vec<(Workload, usize)>,
    /// Tokens that stayed, where some were drafted.
    n_kept: Option<usize>,
}

impl Forwards {
    /// Those of `n_tokens` of a prompt after `n_before` positions, at most `n_tokens_max` in each.
    pub fn of_prompt(n_before: usize, n_tokens: usize, n_tokens_max: usize) -> Forwards {
        let n_tokens_max = n_tokens_max.max(1);
        let (n_whole, rest) = (n_tokens / n_tokens_max, n_tokens % n_tokens_max);
        let whole = Workload { position: n_before + n_whole * n_tokens_max / 2, ..Workload::prefill(n_tokens_max) };
        let last = Workload { position: n_before + n_tokens - rest / 2, ..Workload::prefill(rest) };
        Forwards::of([(whole, n_whole), (last, usize::from(rest > 0))])
    }

    /// Those of `n_tokens` of an answer after `n_before` positions, each of one token.
    pub fn of_answer(n_before: usize, n_tokens: usize) -> Forwards {
        Forwards::of([(Workload::decode(n_before + n_tokens / 2), n_tokens)])
    }

    /// Those of `n_tokens` of an answer after `n_before` positions, of which some were drafted: so many forwards of 1, 2, … tokens.
    pub fn of_drafted_answer(n_before: usize, n_tokens: usize, by_n_tokens: &[usize]) -> Forwards {
        let position = n_before + n_tokens / 2;
        let workload = |n_tokens| Workload { n_tokens, n_logit_rows: n_tokens, position, n_seqs: 1 };
        let forwards = Forwards::of((1..).map(workload).zip(by_n_tokens.iter().copied()));
        let n_kept = forwards.is_prompt().then_some(n_tokens);
        Forwards { n_kept, ..forwards }
    }

    fn of(alike: impl IntoIterator<Item = (Workload, usize)>) -> Forwards {
        Forwards { alike: alike.into_iter().filter(|(_, n_times)| *n_times > 0).collect(), n_kept: None }
    }

    /// The same of `n_seqs` sequences side by side.
    #[must_use]
    pub fn side_by_side(mut self, n_seqs: usize) -> Forwards {
        for (workload, _) in &mut self.alike {
            *workload = workload.side_by_side(n_seqs);
        }
        self.n_kept = self.n_kept.map(|n_kept| n_kept * n_seqs);
        self
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.alike.iter().map(|(_, n_times)| n_times).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.alike.is_empty()
    }

    /// Tokens of all of them; not those that were drafted in vain.
    pub fn n_tokens(&self) -> usize {
        self.n_kept.unwrap_or_else(|| self.n_computed())
    }

    /// Whether some of their tokens were drafted.
    pub fn is_drafted(&self) -> bool {
        self.n_kept.is_some()
    }

    fn n_computed(&self) -> usize {
        self.alike.iter().map(|(workload, n_times)| workload.n_tokens * n_times).sum()
    }

    /// What all of them should take together; nothing where there are none.
    pub fn predict(&self, plan: &Plan, catalog: &Catalog, model: &Model, devices: &[DeviceSpec]) -> Totals {
        let predictions = self.alike.iter().map(|&(workload, n_times)| (predict(plan, catalog, model, devices, workload), n_times as f64));
        predictions.fold(Totals::default(), |totals, (prediction, n_times)| totals.plus(&prediction, n_times, devices))
    }

    /// Whether they have many tokens each.
    pub fn is_prompt(&self) -> bool {
        self.alike.iter().any(|(workload, _)| workload.n_tokens > 1)
    }
}

/// Predicted seconds of many forwards.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Totals {
    /// All of them.
    pub secs: f64,
    /// Seconds of these in which the host's cores are busy: the host computes, or a software adapter.
    core_secs: f64,
    /// By what takes them, in the order of the plan's devices.
    parts: Vec<(Part, f64)>,
}

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Compute(Device),
    Upload(Device),
    Read,
}

impl Totals {
    fn plus(mut self, prediction: &Prediction, n_times: f64, devices: &[DeviceSpec]) -> Totals {
        let mut add = |part: Part, secs: f64| match self.parts.iter_mut().find(|(own, _)| *own == part) {
            Some((_, sum)) => *sum += secs * n_times,
            None => self.parts.push((part, secs * n_times)),
        };
        let mut core_secs = 0.0;
        for busy in &prediction.devices {
            add(Part::Compute(busy.device), busy.compute_secs);
            add(Part::Upload(busy.device), busy.upload_secs);
            if computes_on_cores(devices, busy.device) {
                core_secs += busy.compute_secs.max(busy.upload_secs);
            }
        }
        add(Part::Read, prediction.fetch_secs);
        self.secs += prediction.secs * n_times;
        self.core_secs += core_secs.min(prediction.secs) * n_times;
        self
    }

    /// What a run of `secs` would have taken, had its threads not waited for cores for the share `waited` of the time in which they
    /// could have run.
    pub fn undisturbed(&self, secs: f64, waited: f64) -> f64 {
        let on_cores = if self.secs > 0.0 { (self.core_secs / self.secs).clamp(0.0, 1.0) } else { 0.0 };
        secs * (1.0 - waited.clamp(0.0, 1.0) * on_cores)
    }

    /// The part that takes the most time, if that is much of it.
    fn decisive(&self) -> Option<Part> {
        let longest = self.parts.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        longest.filter(|(_, secs)| *secs > 0.0 && *secs >= LEAST_SHARE * self.secs).map(|(part, _)| part)
    }
}

fn computes_on_cores(devices: &[DeviceSpec], device: Device) -> bool {
    let is_software = |spec: &DeviceSpec| spec.device == device && spec.kind == Some(AdapterKind::Software);
    device == Device::Cpu || devices.iter().any(is_software)
}

/// What a run shows about a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Which device.
    pub device: Device,
    /// Which of its rates.
    pub aspect: Aspect,
    /// How many times faster they are than measured.
    pub factor: f64,
}

/// The speed of the device that took most of the time of `forwards`, as the factor of its rates with which the prediction takes `secs`, too.
/// `waited` is the share of the time in which threads that could have run waited for cores. `devices` have their rates as measured, and
/// the corrections by former runs. `None` where no part of the machine is decisive.
pub fn observe(
    plan: &Plan,
    catalog: &Catalog,
    model: &Model,
    devices: &[DeviceSpec],
    forwards: &Forwards,
    [secs, waited]: [f64; 2],
) -> Option<Observation> {
    let dtype = main_dtype(catalog, model);
    let corrected = corrected(devices, dtype);
    let totals = forwards.predict(plan, catalog, model, &corrected);
    if !secs.is_finite() || secs <= 0.0 {
        return None;
    }
    let of_compute = if forwards.is_prompt() { Aspect::Prefill(dtype) } else { Aspect::Decode(dtype) };
    let (device, aspect) = match totals.decisive()? {
        Part::Compute(device) => (device, of_compute),
        Part::Upload(device) => (device, Aspect::Upload),
        Part::Read => (Device::Disk, Aspect::Read),
    };
    let known = devices.iter().find(|spec| spec.device == device)?.rates.corrections.get(&aspect).map_or(1.0, Correction::factor);
    let totals_with = |factor: f64| {
        let devices = corrected_by(devices, device, aspect, factor, dtype);
        forwards.predict(plan, catalog, model, &devices)
    };
    let (mut slow, mut fast) = (known / RANGE, known * RANGE);
    let least = totals_with(fast).secs * FLOOR;
    for _ in 0..N_HALVINGS {
        let middle = (slow * fast).sqrt();
        // Which share of the time is spent on the cores depends on the factor, too.
        let totals = totals_with(middle);
        if totals.secs > totals.undisturbed(secs, waited).max(least) { slow = middle } else { fast = middle }
    }
    Some(Observation { device, aspect, factor: (slow * fast).sqrt() })
}

/// The machine as runs have shown it to be, for a model whose weights are mostly in `dtype`.
pub fn corrected(devices: &[DeviceSpec], dtype: DType) -> Vec<DeviceSpec> {
    devices.iter().map(|spec| DeviceSpec { rates: spec.rates.clone().corrected(dtype), ..spec.clone() }).collect()
}

/// As [`corrected`], with this factor for one aspect of one device.
fn corrected_by(devices: &[DeviceSpec], device: Device, aspect: Aspect, factor: f64, dtype: DType) -> Vec<DeviceSpec> {
    let mut devices = devices.to_vec();
    for spec in devices.iter_mut().filter(|spec| spec.device == device) {
        spec.rates.corrections.insert(aspect, Correction::by(factor));
    }
    corrected(&devices, dtype)
}

/// The dtype of most bytes of the model's matrices.
pub fn main_dtype(catalog: &Catalog, model: &Model) -> DType {
    let matrices = || model.units.iter().flat_map(|unit| unit.matrices()).map(|id| &catalog[id]);
    let bytes_in = |dtype: DType| -> Bytes { matrices().filter(|tensor| tensor.dtype == dtype).map(|tensor| tensor.size_bytes).sum() };
    DType::ALL.into_iter().max_by_key(|dtype| bytes_in(*dtype)).unwrap_or(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_of_a_prompt_are_whole_ones_and_a_last_one() {
        let prompt = Forwards::of_prompt(10, 70, 32);
        let workloads: Vec<(usize, usize, usize)> =
            prompt.alike.iter().map(|(workload, n)| (workload.n_tokens, workload.position, *n)).collect();
        assert_eq!((workloads, prompt.n_tokens()), (vec![(32, 42, 2), (6, 77, 1)], 70));
        assert_eq!(Forwards::of_prompt(0, 20, 32).alike, [(Workload::prefill(20), 1)]);
        assert_eq!(Forwards::of_prompt(0, 64, 32).n_tokens(), 64);
        assert_eq!(Forwards::of_answer(5, 10).alike, [(Workload::decode(10), 10)]);
        for none in [Forwards::of_prompt(3, 0, 32), Forwards::of_answer(3, 0)] {
            assert_eq!((none.n_tokens(), none.len(), none.is_empty()), (0, 0, true));
        }
        let side_by_side = prompt.side_by_side(3);
        assert_eq!((side_by_side.n_tokens(), side_by_side.len()), (210, 3));
        assert_eq!(side_by_side.alike[0].0, Workload { n_tokens: 96, n_logit_rows: 3, position: 42, n_seqs: 3 });
    }

    #[test]
    fn waiting_for_cores_lengthens_what_runs_on_them_alone() {
        let totals = |core_secs| Totals { secs: 2.0, core_secs, parts: Vec::new() };
        assert_eq!(totals(2.0).undisturbed(8.0, 0.75), 2.0);
        assert_eq!(totals(1.0).undisturbed(8.0, 0.75), 5.0);
        assert_eq!(totals(0.0).undisturbed(8.0, 0.75), 8.0);
        assert_eq!(Totals::default().undisturbed(8.0, 0.75), 8.0);
    }
}
