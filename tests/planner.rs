//! The measured planner against every placement that there is, on models small enough to try them all.

#[path = "common/models.rs"]
mod models;

use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, proptest};
use proptest::test_runner::RngSeed;
use tierflow::device::{AdapterKind, Device, DeviceSpec, GpuLimits, Rates};
use tierflow::dtype::DType;
use tierflow::error::Result;
use tierflow::model::Model;
use tierflow::plan::{Homes, Mix, Placement, Plan, PlanOptions, exchange_secs, plan};
use tierflow::units::{Bytes, BytesPerSec};
use tierflow::weights::{Catalog, ModelConfig};

/// Who computes a unit, and its home.
const SPOTS: [(Device, Device); 5] = {
    let (gpu, host, disk) = (Device::Gpu(0), Device::Cpu, Device::Disk);
    [(gpu, gpu), (gpu, host), (gpu, disk), (host, host), (host, disk)]
};
fn realise(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions, placements: &[Placement]) -> Result<Plan> {
    plan(catalog, model, devices, &PlanOptions { homes: Homes::Placed(placements.to_vec()), ..options.clone() })
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

/// Everything computed by `device` and resident there.
fn everywhere(model: &Model, device: Device) -> Vec<Placement> {
    model.units.iter().map(|unit| Placement { execute_on: device, homes: vec![device; unit.matrices().count()] }).collect()
}

/// The least seconds over every placement of every unit and every number of slots.
fn least_secs(case: &Case, catalog: &Catalog, model: &Model) -> Option<(f64, Vec<Placement>)> {
    let spots = SPOTS;
    let n_units = model.units.len() - 1;
    // What fits on the adapters is never spilled, whatever it costs.
    let all_on_gpu = realise(catalog, model, &case.devices, &case.options, &everywhere(model, Device::Gpu(0)));
    let must_stay = all_on_gpu.is_ok();
    let mut best: Option<(f64, Vec<Placement>)> = None;
    for code in 0..spots.len().pow(n_units as u32) {
        let mut placements = vec![Placement { execute_on: Device::Cpu, homes: Vec::new() }];
        let mut rest = code;
        for unit in &model.units[1..] {
            let (execute_on, home) = spots[rest % spots.len()];
            rest /= spots.len();
            placements.push(Placement { execute_on, homes: vec![home; unit.matrices().count()] });
        }
        let streams = placements.iter().any(|placement| placement.homes.iter().any(|home| *home != placement.execute_on));
        if must_stay && streams {
            continue;
        }
        let n_slots = match case.options.n_slots {
            Some(n_slots) => n_slots..=n_slots,
            None if streams => 1..=4,
            None => 3..=3,
        };
        for n_slots in n_slots {
            let options = PlanOptions { n_slots: Some(n_slots), ..case.options.clone() };
            let Ok(made) = realise(catalog, model, &case.devices, &options, &placements) else { continue };
            let secs = exchange_secs(&made, catalog, model, &case.devices, &options);
            if best.as_ref().is_none_or(|(least, _)| secs < *least) {
                best = Some((secs, placements.clone()));
            }
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, rng_seed: SEED, ..ProptestConfig::default() })]

    #[test]
    fn the_planner_comes_within_five_percent_of_the_best(case in cases()) {
        let (catalog, model) = models::model(&case.config, |_| DType::F32);
        match (plan(&catalog, &model, &case.devices, &case.options), least_secs(&case, &catalog, &model)) {
            (Ok(made), Some((least, placements))) => {
                let secs = exchange_secs(&made, &catalog, &model, &case.devices, &case.options);
                let homes: Vec<_> = placements.iter().map(|p| (p.execute_on, p.homes.first().copied())).collect();
                prop_assert!(secs <= least * WITHIN, "{secs} s, where {least} s is possible with {homes:?}\n{made}");
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
        let least = exchange_secs(&made, &catalog, &model, &case.devices, &case.options);
        let never_streams = made.streamed_bytes() == Bytes::ZERO;
        let mut random = seed;
        let mut next = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for _ in 0..2000 {
            // Runs of one spot, since most scattered placements are hopeless.
            let mut spot = SPOTS[next(5) as usize];
            let mut placements = vec![Placement { execute_on: Device::Cpu, homes: Vec::new() }];
            for unit in &model.units[1..] {
                spot = if next(3) == 0 { SPOTS[next(5) as usize] } else { spot };
                placements.push(Placement { execute_on: spot.0, homes: vec![spot.1; unit.matrices().count()] });
            }
            let Ok(other) = realise(&catalog, &model, &case.devices, &case.options, &placements) else { continue };
            let secs = exchange_secs(&other, &catalog, &model, &case.devices, &case.options);
            prop_assert!(never_streams || least <= secs * WITHIN, "{least} s, where {secs} s is possible:\n{other}\nnot\n{made}");
        }
    }
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
