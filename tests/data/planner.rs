//! The measured planner against every placement that there is, on models small enough to try them all.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngSeed, TestRunner};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use tierflow::accelerate::DeviceMapMode;
use tierflow::device::{AdapterKind, Device, DeviceSpec, GpuLimits, Rates};
use tierflow::dtype::DType;
use tierflow::machine::read_devices_file;
use tierflow::model::{Model, ModelConfig};
use tierflow::plan::{
    Context, Mix, Placement, PlacementRule, Plan, PlanOptions, ResidentLayers, SavedPlan, plan, plan_if_it_fits, request_secs,
};
use tierflow::units::{Bytes, BytesPerSec};
use tierflow::weights::Catalog;

use crate::models;

/// The device that computes a unit, and the one that stores it.
const ASSIGNMENTS: [(Device, Device); 5] = {
    let (gpu, host, disk) = (Device::Gpu(0), Device::Cpu, Device::Disk);
    [(gpu, gpu), (gpu, host), (gpu, disk), (host, host), (host, disk)]
};

fn realise(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions, placements: &[Placement]) -> Option<Plan> {
    plan_if_it_fits(catalog, model, devices, &PlanOptions { placement: PlacementRule::Placed(placements.to_vec()), ..options.clone() })
        .ok()?
}

/// The same cases every time: a search is good on most, not proven on all, and a run of the tests is no place to look for a
/// case that it misses. Another seed is a way to look.
const SEED: RngSeed = RngSeed::Fixed(1);
/// How far from the best placement the planner may end.
const WITHIN: f64 = 1.05;

#[derive(Debug, Clone)]
struct Case {
    config: ModelConfig,
    devices: Vec<DeviceSpec>,
    options: PlanOptions,
}

fn rates(log_rates: &[f64]) -> Rates {
    let rate = |index: usize| BytesPerSec(10f64.powf(log_rates[index]));
    Rates {
        disk_read: Some(rate(0)),
        host_copy: Some(BytesPerSec(1e10)),
        upload_mapped: None,
        upload_staged: Some(rate(1)),
        readback: Some(rate(1)),
        matvec: [(DType::F32, rate(2))].into(),
        matmul: [(DType::F32, rate(3).0 * 10.0)].into(),
        dispatch_secs: Some(1e-7),
        submit_secs: Some(10f64.powf(log_rates[4])),
        round_trip_secs: Some(10f64.powf(log_rates[4]) * 2.0),
        ..Rates::default()
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let log_rates =
        || (6.0..9.5f64, 6.0..10.0f64, 6.0..11.0f64, 6.0..11.0f64, -7.0..-4.0f64).prop_map(|(a, b, c, d, e)| vec![a, b, c, d, e]);
    let budgets = (100_000u64..900_000, 30_000u64..900_000);
    let shape = (1usize..3, 1usize..5, 0usize..200, 0usize..3);
    (log_rates(), log_rates(), budgets, shape).prop_map(
        |(gpu, host, (gpu_budget, host_budget), (n_layers, n_slots, n_prompt, free_slots))| {
            let config = ModelConfig { n_layers, vocab_size: 650, ffn_size: 400, ..models::config() };
            let mut devices = models::devices(Bytes(gpu_budget), AdapterKind::Discrete, GpuLimits::default(), Bytes(host_budget));
            devices[0].rates = rates(&gpu);
            devices[1].rates = rates(&host);
            devices[2].rates = rates(&gpu);
            let options = PlanOptions {
                compute_on: vec![Device::Gpu(0), Device::Cpu],
                ctx_size: Some(32),
                ubatch_size: Some(4),
                n_slots: (free_slots == 0).then_some(n_slots),
                mix: Mix { n_prompt, n_generated: 32 },
                ..PlanOptions::default()
            };
            Case { config, devices, options }
        },
    )
}

/// The least seconds over every placement of every unit and every number of slots.
fn least_secs(case: &Case, catalog: &Catalog, model: &Model) -> Option<(f64, Vec<Placement>)> {
    let n_units = model.units.len() - 1;
    let all = 0..ASSIGNMENTS.len().pow(n_units as u32);
    let of_each: Vec<_> = all.into_par_iter().filter_map(|code| least_secs_of(case, catalog, model, placements(model, code))).collect();
    of_each.into_iter().reduce(|best, next| if next.0 < best.0 { next } else { best })
}

/// All placements of all units, numbered.
fn placements(model: &Model, code: usize) -> Vec<Placement> {
    let mut placements = vec![Placement::new(Device::Cpu, Vec::new())];
    let mut rest = code;
    for unit in &model.units[1..] {
        let (execute_on, stored_on) = ASSIGNMENTS[rest % ASSIGNMENTS.len()];
        rest /= ASSIGNMENTS.len();
        placements.push(Placement::new(execute_on, vec![stored_on; unit.matrices().count()]));
    }
    placements
}

/// The least seconds of these placements over every number of slots.
fn least_secs_of(case: &Case, catalog: &Catalog, model: &Model, placements: Vec<Placement>) -> Option<(f64, Vec<Placement>)> {
    let streams = placements.iter().any(|placement| placement.stored_on.iter().any(|stored_on| *stored_on != placement.execute_on));
    let n_slots = match case.options.n_slots {
        Some(n_slots) => n_slots..=n_slots,
        None if streams => 1..=4,
        None => 3..=3,
    };
    let secs = |n_slots: usize| {
        let options = PlanOptions { n_slots: Some(n_slots), ..case.options.clone() };
        let made = realise(catalog, model, &case.devices, &options, &placements)?;
        Some(request_secs(&made, catalog, model, &case.devices, &options))
    };
    let least = n_slots.filter_map(secs).reduce(f64::min)?;
    Some((least, placements))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, rng_seed: SEED, ..ProptestConfig::default() })]

    #[test]
    fn the_planner_comes_within_five_percent_of_the_best(case in cases()) {
        let (catalog, model) = models::model(&case.config, |_| DType::F32);
        match (plan(&catalog, &model, &case.devices, &case.options), least_secs(&case, &catalog, &model)) {
            (Ok(made), Some((least, placements))) => {
                let secs = request_secs(&made, &catalog, &model, &case.devices, &case.options);
                let best: Vec<_> = placements.iter().map(|p| (p.execute_on, p.stored_on.first().copied())).collect();
                prop_assert!(secs <= least * WITHIN, "{secs} s, where {least} s is possible with {best:?}\n{made}");
            }
            (Err(error), Some((_, placements))) => prop_assert!(false, "refused with {error}, where this works: {placements:?}"),
            (_, None) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, rng_seed: SEED, ..ProptestConfig::default() })]

    #[test]
    fn no_placement_made_at_random_is_much_better(case in cases(), seed in any::<u64>()) {
        let case = Case { config: ModelConfig { n_layers: 6, ..case.config }, ..case };
        let (catalog, model) = models::model(&case.config, |_| DType::F32);
        // With budgets so small that no plan starts from front to back, a placement made at random may still fit.
        let Ok(made) = plan(&catalog, &model, &case.devices, &case.options) else { return Ok(()) };
        let least = request_secs(&made, &catalog, &model, &case.devices, &case.options);
        let mut random = seed;
        let mut next = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for _ in 0..2000 {
            // Runs of one assignment, since most scattered placements are hopeless.
            let mut assignment = ASSIGNMENTS[next(5) as usize];
            let mut placements = vec![Placement::new(Device::Cpu, Vec::new())];
            for unit in &model.units[1..] {
                assignment = if next(3) == 0 { ASSIGNMENTS[next(5) as usize] } else { assignment };
                placements.push(Placement::new(assignment.0, vec![assignment.1; unit.matrices().count()]));
            }
            let Some(other) = realise(&catalog, &model, &case.devices, &case.options, &placements) else { continue };
            let secs = request_secs(&other, &catalog, &model, &case.devices, &case.options);
            prop_assert!(least <= secs * WITHIN, "{least} s, where {secs} s is possible:\n{other}\nnot\n{made}");
        }
    }
}

/// Llama 3.1 8B in 16 bits, as far as plans look at it.
fn eight_billion() -> ModelConfig {
    ModelConfig {
        vocab_size: 128_256,
        hidden_size: 4096,
        ffn_size: 14_336,
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: 8,
        head_size: 128,
        context_length: 131_072,
        ..models::config()
    }
}

/// The machine of README's example, with these budgets.
fn example_machine() -> Vec<DeviceSpec> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/devices/rx7600-16gb.json");
    read_devices_file(&path).expect("the example of a machine")
}

#[test]
fn an_open_context_costs_nothing_beside_the_same_one_given() {
    let (catalog, model) = models::model(&eight_billion(), |_| DType::BF16);
    let devices = example_machine();
    for (gpu, host) in [(2, 12), (4, 10), (7, 12)] {
        let max_memory = [(Device::Gpu(0), Bytes::gib(gpu)), (Device::Cpu, Bytes::gib(host))].into();
        let options = PlanOptions { compute_on: vec![Device::Gpu(0), Device::Cpu], max_memory, ..PlanOptions::default() };
        let made = plan(&catalog, &model, &devices, &options).unwrap();
        let secs = request_secs(&made, &catalog, &model, &devices, &options);
        for layers in [ResidentLayers::default(), ResidentLayers::AtMost(10), ResidentLayers::AtMost(20)] {
            let given = PlanOptions { ctx_size: Some(made.ctx_size), resident_layers: layers, ..options.clone() };
            let Some(other) = plan_if_it_fits(&catalog, &model, &devices, &given).unwrap() else { continue };
            let others = request_secs(&other, &catalog, &model, &devices, &given);
            assert!(secs <= others * WITHIN, "{gpu} and {host} GiB: {secs} s, with {layers:?} {others} s:\n{other}\nnot\n{made}");
        }
    }
}

#[test]
fn weights_stay_with_fit_whatever_the_context() {
    let (catalog, model) = models::model(&eight_billion(), |_| DType::BF16);
    let devices = example_machine();
    let max_memory = [(Device::Gpu(0), Bytes::gib(7)), (Device::Cpu, Bytes::gib(12))].into();
    let compute_on = vec![Device::Gpu(0), Device::Cpu];
    let fit = PlanOptions { compute_on, max_memory, context: Context::Fit, ..PlanOptions::default() };
    let longest = plan(&catalog, &model, &devices, &fit).unwrap();
    assert!(longest.forward.n_tokens >= 64, "the context leaves forwards of {} tokens", longest.forward.n_tokens);
    for ctx_size in [512, longest.ctx_size, longest.ctx_size * 2] {
        let made = plan_if_it_fits(&catalog, &model, &devices, &PlanOptions { ctx_size: Some(ctx_size), ..fit.clone() }).unwrap();
        assert_eq!(made.is_some(), ctx_size <= longest.ctx_size, "context {ctx_size}, where {} is the longest", longest.ctx_size);
        assert!(made.is_none_or(|made| made.streamed_bytes() == Bytes::ZERO));
    }
}

/// Models, machines and budgets on which placements differ in time, and one thing that may be asked for.
fn choices() -> impl Strategy<Value = (Case, Asked)> {
    let log_rates =
        || (6.0..9.5f64, 6.0..10.0f64, 6.0..11.0f64, 6.0..11.0f64, -7.0..-4.0f64).prop_map(|(a, b, c, d, e)| vec![a, b, c, d, e]);
    let machine = (log_rates(), log_rates(), log_rates(), any::<[bool; 3]>(), [0.05..1.3f64, 0.05..1.3, 0.1..2.5]);
    let model = (1usize..8, 1usize..40, 1usize..60, 1usize..40, prop_oneof![Just(32usize), 64usize..400]);
    let asked = prop_oneof![
        4 => (0usize..9).prop_map(Asked::Layers),
        1 => proptest::sample::select(DeviceMapMode::DISTINCT.to_vec()).prop_map(Asked::Rule),
    ];
    (machine, model, asked, 0usize..200).prop_map(
        |((gpu, second, host, flags, shares), (n_layers, hidden, ffn, vocab, ctx_size), asked, n_prompt)| {
            let config = ModelConfig { n_layers, hidden_size: hidden * 16, ffn_size: ffn * 16, vocab_size: vocab * 64, ..models::config() };
            let (catalog, _) = models::model(&config, |_| DType::F32);
            let budget = |share: f64| Bytes((catalog.size_bytes().0 as f64 * share) as u64);
            let kind = if flags[0] { AdapterKind::Discrete } else { AdapterKind::Integrated };
            let mut devices = models::devices(budget(shares[0]), kind, GpuLimits::default(), budget(shares[2]));
            devices[0].rates = rates(&gpu);
            devices[1].rates = rates(&host);
            devices[2].rates = rates(&gpu);
            let mut compute_on = vec![Device::Gpu(0), Device::Cpu];
            if flags[1] {
                let other =
                    DeviceSpec { device: Device::Gpu(1), capacity: Some(budget(shares[1])), rates: rates(&second), ..devices[0].clone() };
                devices.insert(1, other);
                compute_on.insert(1, Device::Gpu(1));
            }
            let ubatch_size = flags[2].then_some(4);
            let options = PlanOptions {
                compute_on,
                ctx_size: Some(ctx_size),
                ubatch_size,
                mix: Mix { n_prompt, n_generated: 32 },
                ..PlanOptions::default()
            };
            (Case { config, devices, options }, asked)
        },
    )
}

/// What a user may ask for instead of leaving the choice to the planner.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// `-ngl N`.
    Layers(usize),
    /// `--device-map RULE`.
    Rule(DeviceMapMode),
}

/// How much better a plan that was asked for may be predicted without being missed.
const WITHIN_OF_ASKED: f64 = 1.01;

/// Cases that are looked at.
const N_CHOICES: usize = 2000;
/// Of them, those in which the search may miss what was asked for: it is good on most, not proven on all.
const MOST_MISSED: usize = N_CHOICES / 100;

/// How many times slower the planner's own choice is, where it misses what was asked for. Both plans come back from files.
fn missed_by(case: &Case, asked: Asked) -> Option<f64> {
    let (catalog, model) = models::model(&case.config, |_| DType::F32);
    let options = match asked {
        Asked::Layers(n_layers) => PlanOptions { resident_layers: ResidentLayers::AtMost(n_layers), ..case.options.clone() },
        Asked::Rule(mode) => PlanOptions { placement: PlacementRule::Accelerate(mode), ..case.options.clone() },
    };
    // A map may fit where no plan starts from front to back.
    let made = |options: &PlanOptions| plan_if_it_fits(&catalog, &model, &case.devices, options).ok().flatten();
    let (other, auto) = (made(&options)?, made(&case.options)?);
    for made in [&auto, &other] {
        let json = made.to_saved_json(&catalog, &model, &case.devices).to_string();
        let saved = PlanOptions { saved: Some(Arc::new(SavedPlan::from_json(&json, "plan.json").unwrap())), ..PlanOptions::default() };
        assert_eq!(plan(&catalog, &model, &case.devices, &saved).unwrap(), *made, "a saved plan comes back");
    }
    let secs = |plan: &Plan| request_secs(plan, &catalog, &model, &case.devices, &case.options);
    let ratio = secs(&auto) / secs(&other);
    (ratio > WITHIN_OF_ASKED).then_some(ratio)
}

#[test]
fn hardly_anything_that_can_be_asked_for_is_better_than_auto_and_all_of_it_comes_back_from_files() {
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, rng_seed: SEED, ..ProptestConfig::default() });
    let all: Vec<(Case, Asked)> = (0..N_CHOICES).map(|_| choices().new_tree(&mut runner).expect("nothing is filtered").current()).collect();
    let missed: Vec<(f64, Asked)> = all.into_par_iter().filter_map(|(case, asked)| Some((missed_by(&case, asked)?, asked))).collect();
    eprintln!("{} of {N_CHOICES} missed: {missed:?}", missed.len());
    assert!(missed.len() <= MOST_MISSED, "{} of {N_CHOICES}: {missed:?}", missed.len());
}

#[test]
fn large_models_are_planned_in_no_time() {
    for (n_layers, hidden_size) in [(32, 4096), (126, 16_384)] {
        let config = ModelConfig {
            n_layers,
            hidden_size,
            ffn_size: hidden_size * 7 / 2,
            n_heads: hidden_size / 128,
            n_kv_heads: 8,
            head_size: 128,
            vocab_size: 128_256,
            context_length: 131_072,
            ..models::config()
        };
        let (catalog, model) = models::model(&config, |_| DType::Q4_0);
        let devices = models::devices(Bytes::gib(4), AdapterKind::Discrete, GpuLimits::default(), Bytes::gib(16));
        let options = PlanOptions { compute_on: vec![Device::Gpu(0), Device::Cpu], ..PlanOptions::default() };
        let [first, second] = [(); 2].map(|()| plan(&catalog, &model, &devices, &options).unwrap());
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "{n_layers} layers");
    }
}
