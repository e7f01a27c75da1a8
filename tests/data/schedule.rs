//! The schedule on simulated rings, and the dry run on a virtual clock.

use std::collections::{BTreeMap, VecDeque};

use tierflow::device::{AdapterKind, Aspect, Device, DeviceSpec, GpuLimits, Rates, Sample};
use tierflow::dtype::DType;
use tierflow::model::ModelConfig;
use tierflow::plan::{
    self, Bound, DevicePlan, Forwards, Plan, PlanOptions, Prediction, ResidentLayers, Schedule, Step, UploadPath, Workload, plan, predict,
};
use tierflow::units::{Bytes, BytesPerSec};

use crate::models;

/// A plan in which the last `n_streamed` layers of `n_layers` stream, and the head with them.
fn streamed_plan(n_layers: usize, n_streamed: usize, n_slots: usize, lookahead: usize, host: Bytes) -> Plan {
    let config = ModelConfig { n_layers, ..models::config() };
    let (catalog, model) = models::model(&config, |_| DType::F32);
    let devices = models::devices(Bytes::gib(1), AdapterKind::Discrete, GpuLimits::default(), host);
    let options = PlanOptions {
        resident_layers: ResidentLayers::AtMost(n_layers - n_streamed),
        n_slots: Some(n_slots),
        lookahead: Some(lookahead),
        upload: Some(UploadPath::Mapped),
        max_memory: [(Device::Cpu, host)].into(),
        ..PlanOptions::default()
    };
    plan(&catalog, &model, &devices, &options).unwrap()
}

/// The same with every unit for which `is_other` says so computed by a second adapter, whose ring is a copy of the first's.
fn shared(mut plan: Plan, is_other: impl Fn(usize) -> bool) -> Plan {
    let first = plan.device(Device::Gpu(0)).unwrap().clone();
    plan.devices.insert(1, DevicePlan { device: Device::Gpu(1), ..first });
    for unit in (1..plan.units.len()).filter(|&unit| is_other(unit)) {
        plan.units[unit].execute_on = Device::Gpu(1);
        for chunk in &mut plan.chunks[plan.units[unit].chunks.clone()] {
            if chunk.stored_on == Device::Gpu(0) {
                chunk.stored_on = Device::Gpu(1);
            }
        }
    }
    plan
}

/// A ring that only counts.
#[derive(Default)]
struct Ring {
    under_way: VecDeque<usize>,
    uploaded: Vec<usize>,
}

/// Rings by device, and who has the residual stream.
struct Walk<'a> {
    plan: &'a Plan,
    rings: BTreeMap<Device, Ring>,
    at: Option<Device>,
    computed: Vec<usize>,
}

impl Walk<'_> {
    fn step(&mut self, step: Step) {
        match step {
            Step::Embed => self.at = Some(self.plan.executor(0)),
            Step::FetchUpload(chunk) | Step::Upload(chunk) => {
                assert_eq!(matches!(step, Step::FetchUpload(_)), self.plan.stored_on(chunk) == Device::Disk);
                let device = self.plan.executor(chunk);
                let (ring, n_slots) = (self.rings.entry(device).or_default(), self.plan.ring(device).unwrap().n_slots);
                ring.under_way.push_back(chunk);
                ring.uploaded.push(chunk);
                assert!(ring.under_way.len() <= n_slots, "{} uploads under way for {n_slots} slots", ring.under_way.len());
            }
            Step::ComputeResident(chunk) => {
                assert!(self.plan.is_resident(chunk));
                self.compute(chunk);
            }
            Step::ComputeCached(chunk) => panic!("chunk {chunk} has no experts"),
            Step::ComputeStreamed(chunk) => {
                let oldest = self.rings.get_mut(&self.plan.executor(chunk)).and_then(|ring| ring.under_way.pop_front());
                assert_eq!(oldest, Some(chunk), "the oldest upload is another chunk");
                self.compute(chunk);
            }
            Step::Transfer { from, to } => assert_eq!(self.at.replace(to), Some(from), "who passes the residual stream on has it"),
            Step::Readback => assert_eq!(self.at.take(), Some(self.plan.executor(self.plan.chunks.len() - 1))),
            Step::StartStage { .. } | Step::FinishStage { .. } => panic!("a step of half a batch among those of a whole one"),
        }
    }

    fn compute(&mut self, chunk: usize) {
        assert_eq!(self.at, Some(self.plan.executor(chunk)), "the residual stream is elsewhere");
        self.computed.push(chunk);
    }

    fn n_under_way(&self) -> usize {
        self.rings.values().map(|ring| ring.under_way.len()).sum()
    }
}

/// Walks several forwards.
fn walk(plan: &Plan, schedule: &Schedule) {
    let mut walk = Walk { plan, rings: BTreeMap::new(), at: None, computed: Vec::new() };
    assert!(schedule.prologue.iter().all(|step| matches!(step, Step::FetchUpload(_) | Step::Upload(_))));
    schedule.prologue.iter().for_each(|step| walk.step(*step));
    for _ in 0..4 {
        assert_eq!((schedule.steps.first(), schedule.steps.last()), (Some(&Step::Embed), Some(&Step::Readback)));
        schedule.steps.iter().for_each(|step| walk.step(*step));
        assert_eq!(std::mem::take(&mut walk.computed), (0..plan.chunks.len()).collect::<Vec<_>>());
        assert_eq!(walk.n_under_way(), schedule.prologue.len(), "what is under way after a forward is what was before it");
    }
    for device in plan.executors() {
        let streamed: Vec<usize> = plan.streamed_to(device).collect();
        let uploaded = walk.rings.remove(&device).unwrap_or_default().uploaded;
        assert!(uploaded.len() >= 4 * streamed.len(), "each streamed chunk is uploaded once per forward");
        assert_eq!(uploaded, streamed.iter().copied().cycle().take(uploaded.len()).collect::<Vec<_>>());
    }
}

#[test]
fn the_ring_runs_on_in_order_for_every_size() {
    for n_slots in 1..=5 {
        for lookahead in 1..=n_slots {
            for n_streamed in 0..=10 {
                let plan = streamed_plan(10, n_streamed, n_slots, lookahead, Bytes::kib(500));
                assert!((1..=21).contains(&plan.streamed_chunks().count()));
                walk(&plan, &Schedule::new(&plan));
            }
        }
    }
}

#[test]
fn two_rings_run_on_side_by_side() {
    for (n_slots, lookahead) in [(1, 1), (2, 1), (3, 2), (3, 3), (5, 4)] {
        for n_streamed in [0, 1, 5, 10] {
            let plan = streamed_plan(10, n_streamed, n_slots, lookahead, Bytes::kib(500));
            let halves = shared(plan.clone(), |unit| unit > 10);
            assert_eq!(halves.stages().len(), 2);
            walk(&halves, &Schedule::new(&halves));
            // Back and forth: the first adapter has the last word, or the second.
            for n_units in [1, 3, 4] {
                let turns = shared(plan.clone(), |unit| unit / n_units % 2 == 1);
                walk(&turns, &Schedule::new(&turns));
            }
        }
    }
}

/// All layers and the head resident, and computed by a second adapter where `is_other` says so.
fn resident_plan(n_layers: usize, is_other: impl Fn(usize) -> bool) -> Plan {
    let (catalog, model) = models::model(&ModelConfig { n_layers, ..models::config() }, |_| DType::F32);
    let devices = models::devices(Bytes::gib(1), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
    shared(plan(&catalog, &model, &devices, &PlanOptions { n_seqs: 32, ..PlanOptions::default() }).unwrap(), is_other)
}

#[test]
fn halves_pass_through_all_stages_one_behind_the_other() {
    for n_units in [1, 3, 4, 11] {
        let plan = resident_plan(10, |unit| unit / n_units % 2 == 1);
        let schedule = Schedule::new(&plan);
        walk(&plan, &schedule);
        let (mut computed, mut started) = ([0, 0], BTreeMap::new());
        let mut n_together = 0;
        assert_eq!(schedule.in_halves.first(), Some(&Step::Embed));
        for step in &schedule.in_halves[1..] {
            match *step {
                Step::StartStage { half, first, last } => {
                    assert_eq!(computed[half], first, "half {half} leaves chunks out");
                    assert!((first..=last).all(|chunk| plan.executor(chunk) == plan.executor(first) && plan.is_resident(chunk)));
                    assert_eq!(started.insert(plan.executor(first), half), None, "a device has two jobs");
                    n_together += usize::from(started.len() == 2);
                    computed[half] = last + 1;
                }
                Step::FinishStage { half, last } => {
                    assert_eq!(started.remove(&plan.executor(last)), Some(half));
                    assert_eq!(computed[half], last + 1, "half {half} is elsewhere");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(started.is_empty() && computed == [plan.chunks.len(); 2] && n_together >= plan.stages().len() - 1);
    }
    assert!(Schedule::new(&resident_plan(10, |_| false)).in_halves.is_empty(), "one device has nothing to do beside itself");
    let streamed = shared(streamed_plan(10, 5, 2, 1, Bytes::gib(1)), |unit| unit > 10);
    assert!(Schedule::new(&streamed).in_halves.is_empty(), "weights would stream twice");
}

#[test]
fn batches_are_halved_where_that_is_faster_and_predicted_as_they_run() {
    let n_layers = 10;
    let (catalog, model) = models::model(&ModelConfig { n_layers, ..models::config() }, |_| DType::F32);
    // Both have layers of their own, and the second one the head.
    let plan = resident_plan(n_layers, |unit| unit > 11);
    let predicted = |reads: f64, multiplies: f64, n_seqs: usize| {
        let mut devices = models::devices(Bytes::gib(1), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
        let other =
            devices.iter().find(|spec| spec.device == Device::Gpu(0)).map(|spec| DeviceSpec { device: Device::Gpu(1), ..spec.clone() });
        devices.extend(other);
        for device in &mut devices {
            device.rates = Rates {
                matvec: [(DType::F32, BytesPerSec(reads))].into(),
                matmul: [(DType::F32, multiplies)].into(),
                upload_staged: Some(BytesPerSec(1e15)),
                readback: Some(BytesPerSec(1e15)),
                dispatch_secs: Some(0.0),
                submit_secs: Some(0.0),
                round_trip_secs: Some(0.0),
                ..Rates::default()
            };
        }
        predict(&plan, &catalog, &model, &devices, Workload::decode(0).side_by_side(n_seqs))
    };
    let busy = |predicted: &Prediction| predicted.devices.iter().map(|busy| busy.compute_secs).collect::<Vec<_>>();
    // Where reading the weights takes the time, both halves would read them: three stages of it instead of two.
    let reading = predicted(1e9, 1e15, 16);
    let weights: u64 = plan.chunks.iter().map(|chunk| chunk.stored_bytes().0).sum();
    assert!(!reading.in_halves);
    assert!((reading.secs / (weights as f64 / 1e9) - 1.0).abs() < 0.02, "{reading:?}");
    // Where the arithmetic of each token takes the time, the devices share it.
    let multiplying = predicted(1e15, 1e9, 16);
    assert!(multiplying.in_halves, "{multiplying:?}");
    let of_each = busy(&multiplying);
    let (sum, most) = (of_each.iter().sum::<f64>(), of_each.iter().copied().fold(0.0, f64::max));
    assert!(multiplying.secs < sum * 0.9 && multiplying.secs > most, "{multiplying:?}");
    assert_eq!(multiplying, predicted(1e15, 1e9, 16), "the same every time");
    assert!(!predicted(1e15, 1e9, 1).in_halves, "one sequence has no halves");
}

#[test]
fn a_resident_model_has_no_uploads() {
    let plan = streamed_plan(3, 0, 3, 2, Bytes::gib(1));
    assert_eq!(plan.streamed_chunks().count(), 1, "-ngl N leaves the head");
    let (catalog, model) = models::model(&models::config(), |_| DType::F16);
    let devices = models::devices(Bytes::gib(1), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
    let resident = tierflow::plan::plan(&catalog, &model, &devices, &PlanOptions::default()).unwrap();
    let schedule = Schedule::new(&resident);
    assert!(schedule.prologue.is_empty());
    assert!(schedule.steps.iter().all(|step| matches!(step, Step::Embed | Step::ComputeResident(_) | Step::Readback)));
}

fn run(plan: &Plan, n_layers: usize, upload: f64, disk: f64, matvec: f64) -> Prediction {
    let (catalog, model) = models::model(&ModelConfig { n_layers, ..models::config() }, |_| DType::F32);
    let mut devices = models::devices(Bytes::gib(1), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(1));
    for device in &mut devices {
        device.rates = Rates {
            upload_mapped: Some(BytesPerSec(upload)),
            matvec: [(DType::F32, BytesPerSec(matvec))].into(),
            matmul: [(DType::F32, 1e12)].into(),
            disk_read: Some(BytesPerSec(disk)),
            readback: Some(BytesPerSec(1e12)),
            dispatch_secs: Some(0.0),
            submit_secs: Some(0.0),
            round_trip_secs: Some(0.0),
            ..Rates::default()
        };
    }
    predict(plan, &catalog, &model, &devices, Workload::decode(0))
}

#[test]
fn a_dry_run_is_bounded_by_the_link_and_by_the_computation() {
    for n_streamed in [0, 1, 4, 10] {
        let mut before = f64::INFINITY;
        for n_slots in 1..=5 {
            let plan = streamed_plan(10, n_streamed, n_slots, n_slots.max(2) - 1, Bytes::gib(1));
            let run = |upload, disk, matvec| run(&plan, 10, upload, disk, matvec);
            let weights: u64 = plan.chunks.iter().map(|chunk| chunk.size_bytes.0).sum();
            let streamed = plan.streamed_bytes().0 as f64;
            assert_eq!(run(f64::INFINITY, f64::INFINITY, 1e9).stall_secs, 0.0);
            for (upload, matvec) in [(1e9, 1e9), (1e8, 1e9), (1e9, 1e8), (3e8, 1e9)] {
                let predicted = run(upload, 1e6, matvec);
                assert!(predicted.secs >= streamed / upload * (1.0 - 1e-9), "{n_slots} slots, {n_streamed}: {predicted:?}");
                assert!(predicted.secs >= weights as f64 / matvec * (1.0 - 1e-9));
                assert!(predicted.stall_secs <= predicted.secs);
                assert_eq!(predicted.streamed_bytes, plan.streamed_bytes());
                let bound = if streamed / upload > weights as f64 / matvec { Bound::Upload(Device::Gpu(0)) } else { Bound::Compute };
                assert_eq!(predicted.bound(), bound, "{predicted:?}");
            }
            let secs = run(3e8, 1e6, 1e9).secs;
            assert!(secs <= before * (1.0 + 1e-9), "{n_slots} slots take {secs} after {before}");
            before = secs;
        }
    }
}

#[test]
fn what_comes_from_disk_is_bounded_by_the_disk() {
    let plan = streamed_plan(10, 10, 3, 2, Bytes::ZERO);
    assert!(plan.streamed_chunks().all(|chunk| plan.stored_on(chunk) == Device::Disk));
    let predicted = run(&plan, 10, 1e9, 1e7, 1e9);
    assert!(predicted.secs >= plan.streamed_bytes().0 as f64 / 1e7 * (1.0 - 1e-9), "{predicted:?}");
    assert_eq!(predicted.bound(), Bound::Disk);
}

#[test]
fn plan_and_schedule_print_as_they_should() {
    let plan = streamed_plan(2, 1, 2, 1, Bytes::kib(200));
    insta::assert_snapshot!("plan", plan.to_string());
    insta::assert_snapshot!("schedule", Schedule::new(&plan).report(&plan).to_string());
}

/// Three placements of one model on a machine with these rates: on the host, resident on an adapter, and streamed to it.
fn placements(devices: &[DeviceSpec], n_layers: usize) -> Vec<(&'static str, Plan)> {
    let (catalog, model) = models::model(&ModelConfig { n_layers, ..models::config() }, |_| DType::F16);
    let planned = |options: PlanOptions| plan(&catalog, &model, devices, &options).unwrap();
    vec![
        ("host", planned(PlanOptions { compute_on: vec![Device::Cpu], ..PlanOptions::default() })),
        ("resident", planned(PlanOptions { compute_on: vec![Device::Gpu(0)], ..PlanOptions::default() })),
        (
            "streamed",
            planned(PlanOptions { compute_on: vec![Device::Gpu(0)], resident_layers: ResidentLayers::AtMost(1), ..PlanOptions::default() }),
        ),
    ]
}

/// A machine that is `slower` times slower than another.
fn machine(kind: AdapterKind, slower: f64) -> Vec<DeviceSpec> {
    let mut devices = models::devices(Bytes::gib(1), kind, GpuLimits::default(), Bytes::gib(1));
    for spec in &mut devices {
        let assumed = Rates::assumed(spec.device, spec.kind);
        let slow = |rate: Option<BytesPerSec>| rate.map(|rate| BytesPerSec(rate.0 / slower));
        spec.rates = Rates {
            matvec: assumed.matvec.iter().map(|(dtype, rate)| (*dtype, BytesPerSec(rate.0 / slower))).collect(),
            matmul: assumed.matmul.iter().map(|(dtype, rate)| (*dtype, rate / slower)).collect(),
            dispatch_secs: assumed.dispatch_secs.map(|secs| secs * slower),
            upload_staged: slow(assumed.upload_staged),
            disk_read: slow(assumed.disk_read),
            origin: Default::default(),
            ..assumed
        };
    }
    devices
}

#[test]
fn rates_that_are_four_times_too_slow_or_too_fast_are_right_after_two_runs() {
    let n_layers = 12;
    let (catalog, model) = models::model(&ModelConfig { n_layers, ..models::config() }, |_| DType::F16);
    let phases = [Forwards::of_answer(40, 32), Forwards::of_prompt(0, 40, 64)];
    for (kind, wrong, waited) in [(AdapterKind::Discrete, 4.0, 0.0), (AdapterKind::Software, 4.0, 0.8), (AdapterKind::Software, 0.25, 0.3)]
    {
        let truth = machine(kind, 1.0);
        for (name, plan) in placements(&truth, n_layers) {
            let secs = |devices: &[DeviceSpec], forwards: &Forwards| forwards.predict(&plan, &catalog, &model, devices).secs;
            let mut measured = machine(kind, wrong);
            let before = measured.clone();
            for _ in 0..2 {
                for forwards in &phases {
                    let undisturbed = secs(&truth, forwards);
                    let took =
                        undisturbed * undisturbed / forwards.predict(&plan, &catalog, &model, &truth).undisturbed(undisturbed, waited);
                    let shown = plan::observe(&plan, &catalog, &model, &measured, forwards, [took, waited]).expect("something takes long");
                    let spec = measured.iter_mut().find(|spec| spec.device == shown.device).unwrap();
                    spec.rates.corrections.entry(shown.aspect).or_default().add(Sample { factor: shown.factor, waited, at: None });
                }
            }
            let corrected = plan::corrected(&measured, plan::main_dtype(&catalog, &model));
            for forwards in &phases {
                let [was, is] = [&before, &corrected].map(|devices| secs(devices, forwards) / secs(&truth, forwards) - 1.0);
                assert!(was.abs() > 0.3, "{kind:?} {wrong} {name}: {was} at first");
                assert!(is.abs() < 0.1, "{kind:?} {wrong} {name}: {is} off after two runs, {was} before");
            }
            for (spec, before) in measured.iter().zip(&before) {
                let rates = Rates { corrections: before.rates.corrections.clone(), ..spec.rates.clone() };
                assert_eq!(rates, before.rates, "what was measured stays");
            }
        }
    }
}

#[test]
fn a_run_tells_of_what_takes_its_time_and_of_nothing_else() {
    let n_layers = 12;
    let (catalog, model) = models::model(&ModelConfig { n_layers, ..models::config() }, |_| DType::F16);
    let mut devices = machine(AdapterKind::Discrete, 1.0);
    for spec in devices.iter_mut().filter(|spec| spec.device == Device::Gpu(0)) {
        spec.rates.upload_staged = Some(BytesPerSec(1e7));
    }
    let observe = |plan: &Plan, forwards: &Forwards| {
        let secs = forwards.predict(plan, &catalog, &model, &devices).secs / 2.0;
        plan::observe(plan, &catalog, &model, &devices, forwards, [secs, 0.0])
    };
    for (name, plan) in placements(&devices, n_layers) {
        let (answer, prompt) =
            (observe(&plan, &Forwards::of_answer(0, 32)).unwrap(), observe(&plan, &Forwards::of_prompt(0, 40, 64)).unwrap());
        let expected = match name {
            "host" => [(Device::Cpu, Aspect::Decode(DType::F16)), (Device::Cpu, Aspect::Prefill(DType::F16))],
            "resident" => [(Device::Gpu(0), Aspect::Decode(DType::F16)), (Device::Gpu(0), Aspect::Prefill(DType::F16))],
            _ => [(Device::Gpu(0), Aspect::Upload); 2],
        };
        assert_eq!([answer, prompt].map(|shown| (shown.device, shown.aspect)), expected, "{name}");
        assert!(answer.factor > 1.5, "{name}: {answer:?}");
        let never = plan::observe(&plan, &catalog, &model, &devices, &Forwards::of_answer(0, 0), [1.0, 0.0]);
        assert_eq!(never, None, "no forwards show nothing");
    }
}
