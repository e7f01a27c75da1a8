//! The schedule on simulated rings, and the dry run on a virtual clock.

#[path = "common/models.rs"]
mod models;

use std::collections::VecDeque;

use tierflow::device::{AdapterKind, Device, GpuLimits, Rates};
use tierflow::dtype::DType;
use tierflow::plan::{Bound, Load, Plan, PlanOptions, Prediction, ResidentLayers, Schedule, Step, UploadPath, plan, predict};
use tierflow::units::{Bytes, BytesPerSec};
use tierflow::weights::ModelConfig;

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

/// Walks several forwards on a ring that only counts.
fn walk(plan: &Plan, schedule: &Schedule) {
    let n_slots = plan.ring(Device::Gpu(0)).unwrap().n_slots;
    let streamed: Vec<usize> = plan.streamed_pieces().collect();
    let mut ring = VecDeque::new();
    let mut uploaded = Vec::new();
    let mut upload = |ring: &mut VecDeque<usize>, piece: usize| {
        ring.push_back(piece);
        uploaded.push(piece);
        assert!(ring.len() <= n_slots, "{} uploads under way for {n_slots} slots", ring.len());
    };
    for step in &schedule.prologue {
        match *step {
            Step::FetchUpload(piece) | Step::Upload(piece) => upload(&mut ring, piece),
            other => panic!("{other:?} before the first forward"),
        }
    }
    for _ in 0..4 {
        assert_eq!((schedule.steps.first(), schedule.steps.last()), (Some(&Step::Embed), Some(&Step::Readback)));
        let mut computed = Vec::new();
        let mut n_uploads = 0;
        for step in &schedule.steps[1..schedule.steps.len() - 1] {
            match *step {
                Step::FetchUpload(piece) | Step::Upload(piece) => {
                    assert_eq!(matches!(step, Step::FetchUpload(_)), plan.home(piece) == Device::Disk);
                    upload(&mut ring, piece);
                    n_uploads += 1;
                }
                Step::ComputeResident(piece) => {
                    assert!(plan.is_resident(piece));
                    computed.push(piece);
                }
                Step::ComputeStreamed(piece) => {
                    assert_eq!(ring.pop_front(), Some(piece), "the oldest upload is another piece");
                    computed.push(piece);
                }
                Step::Embed | Step::Hop { .. } | Step::Readback => panic!("{step:?} in the middle"),
            }
        }
        assert_eq!(computed, (0..plan.pieces.len()).collect::<Vec<_>>());
        assert_eq!(n_uploads, streamed.len(), "each streamed piece is uploaded once per forward");
    }
    assert_eq!(ring.len(), schedule.prologue.len(), "what is under way after a forward is what was before it");
    let cycle: Vec<usize> = streamed.iter().copied().cycle().take(uploaded.len()).collect();
    assert_eq!(uploaded, cycle);
}

#[test]
fn the_ring_runs_on_in_order_for_every_size() {
    for n_slots in 1..=5 {
        for lookahead in 1..=n_slots {
            for n_streamed in 0..=10 {
                let plan = streamed_plan(10, n_streamed, n_slots, lookahead, Bytes::kib(500));
                assert!((1..=21).contains(&plan.streamed_pieces().count()));
                walk(&plan, &Schedule::new(&plan));
            }
        }
    }
}

#[test]
fn a_resident_model_has_no_uploads() {
    let plan = streamed_plan(3, 0, 3, 2, Bytes::gib(1));
    assert_eq!(plan.streamed_pieces().count(), 1, "-ngl N leaves the head");
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
    predict(plan, &catalog, &model, &devices, Load::decode(0))
}

#[test]
fn a_dry_run_is_bounded_by_the_link_and_by_the_computation() {
    for n_streamed in [0, 1, 4, 10] {
        let mut before = f64::INFINITY;
        for n_slots in 1..=5 {
            let plan = streamed_plan(10, n_streamed, n_slots, n_slots.max(2) - 1, Bytes::gib(1));
            let run = |upload, disk, matvec| run(&plan, 10, upload, disk, matvec);
            let weights: u64 = plan.pieces.iter().map(|piece| piece.size_bytes.0).sum();
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
    assert!(plan.streamed_pieces().all(|piece| plan.home(piece) == Device::Disk));
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
