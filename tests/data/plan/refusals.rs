//! Every refusal is followed as a user would follow it: with the budgets that it names there is a plan, and with the next smaller
//! size that can be typed there is none. The latter is not asserted of several budgets where an adapter shares the host's memory: there
//! the size of a budget matters, and that it is named at all. Limits of adapters have no budgets to follow.

use std::collections::BTreeMap;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngSeed, TestRunner};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use tierflow::accelerate::{DeviceKey, DeviceMap, DeviceMapMode};
use tierflow::device::{AdapterKind, Device};
use tierflow::error::{Error, Shortfall};
use tierflow::model::Model;
use tierflow::plan::{Context, Objective, PlacementRule, PlanOptions, Spill, plan, plan_if_it_fits};
use tierflow::units::Bytes;
use tierflow::weights::Catalog;

use super::Case;

/// Cases that are looked at.
const N_CASES: usize = 2300;
/// How many of them must name budgets at least.
const N_FOLLOWED: usize = 900;
/// More than any of the models takes with sizes within reason.
const AMPLE: Bytes = Bytes(1 << 61);

/// Which placement is asked for; a map is made for the model's layers and the devices that compute.
#[derive(Debug, Clone)]
enum Rule {
    Planner,
    FrontToBack,
    Mode(DeviceMapMode),
    /// Numbers that stand for devices.
    Map(Vec<u8>),
}

/// Cases whose budgets are mostly too small.
fn cases() -> impl Strategy<Value = Case> {
    let rule = prop_oneof![
        4 => Just(Rule::Planner),
        1 => Just(Rule::FrontToBack),
        2 => proptest::sample::select(DeviceMapMode::DISTINCT.to_vec()).prop_map(Rule::Mode),
        3 => proptest::collection::vec(any::<u8>(), 16).prop_map(Rule::Map),
    ];
    let budget = prop_oneof![1 => Just(None), 1 => Just(Some(1 << 33)), 4 => (8.0..20.0f64).prop_map(|bits| Some(bits.exp2() as u64))];
    let (spill, fit) = (prop_oneof![3 => Just(Spill::Allowed), 1 => Just(Spill::Refused)], prop_oneof![5 => Just(false), 1 => Just(true)]);
    let objective = prop_oneof![6 => Just(Objective::Latency), 1 => Just(Objective::Throughput)];
    (super::cases(), rule, [budget.clone(), budget.clone(), budget], spill, fit, objective).prop_map(
        |(case, rule, budgets, spill, fit, objective)| {
            let devices = [Device::Gpu(0), Device::Gpu(1), Device::Cpu].into_iter().zip(budgets);
            let max_memory: BTreeMap<Device, Bytes> = devices.filter_map(|(device, budget)| Some((device, Bytes(budget?)))).collect();
            let placement = match rule {
                Rule::Planner => PlacementRule::Auto,
                Rule::FrontToBack => PlacementRule::FrontToBack,
                Rule::Mode(mode) => PlacementRule::Accelerate(mode),
                Rule::Map(numbers) => PlacementRule::Given(map(&case, &numbers)),
            };
            let context = if fit { Context::Fit } else { Context::Comfortable };
            let ctx_size = case.options.ctx_size.filter(|_| !fit);
            let n_seqs = if objective == Objective::Throughput { 0 } else { case.options.n_seqs };
            let options = PlanOptions { max_memory, placement, spill, context, ctx_size, objective, n_seqs, ..case.options };
            Case { options, ..case }
        },
    )
}

/// A map with whole layers and halves of layers, as files have them.
fn map(case: &Case, numbers: &[u8]) -> DeviceMap {
    let mut keys: Vec<DeviceKey> = case.options.compute_on.iter().map(|&device| DeviceKey::from(device)).collect();
    keys.extend([DeviceKey::Cpu, DeviceKey::Disk]);
    let mut numbers = numbers.iter().cycle().copied().map(usize::from);
    let mut map = DeviceMap::default();
    let mut insert = |name: String| map.insert(name, keys[numbers.next().expect("a cycle") % keys.len()]);
    insert("model.embed_tokens".into());
    for layer in 0..case.config.n_layers {
        let parts = ["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"];
        match layer % 2 {
            0 => insert(format!("model.layers.{layer}")),
            _ => parts.iter().for_each(|part| insert(format!("model.layers.{layer}.{part}"))),
        }
    }
    ["model.norm", "model.rotary_emb", "lm_head"].iter().for_each(|name| insert((*name).into()));
    map
}

/// The largest size below that can be typed.
fn below(typed: Bytes) -> Bytes {
    Bytes(typed.0 - 1).typed_down().parse().expect("a size")
}

/// What is wrong with a refusal.
fn error_in(case: &Case, catalog: &Catalog, model: &Model, refusal: &Error) -> Option<String> {
    let with = |budgets: &[(Device, Bytes)]| {
        let mut options = case.options.clone();
        options.max_memory.extend(budgets.iter().copied());
        options
    };
    let planned = |budgets: &[(Device, Bytes)]| plan(catalog, model, &case.devices, &with(budgets));
    let everywhere: Vec<(Device, Bytes)> = case.devices.iter().map(|spec| (spec.device, AMPLE)).collect();
    let everywhere = &everywhere[..everywhere.len() - 1];
    let followed = |budgets: &[(Device, Bytes)]| planned(budgets).err().map(|error| format!("{budgets:?} is not enough: {error}"));
    // Nobody asks what would be enough then.
    let too_small = |budgets: &[(Device, Bytes)]| {
        let made = plan_if_it_fits(catalog, model, &case.devices, &with(budgets));
        made.ok().flatten().map(|_| format!("{budgets:?} is enough"))
    };
    let device = |name: &str| name.parse::<Device>().expect("a device");
    match refusal {
        Error::DoesNotFit { device: name, needed, .. } => {
            let (device, typed) = (device(name), needed.typed_up());
            let expected = format!("does not fit {name}: needs at least {}, has", needed.typed());
            let text = refusal.to_string();
            let wrong_text = (!text.starts_with(&expected)).then_some(text);
            let reason = wrong_text.or_else(|| followed(&[(device, typed)])).or_else(|| followed(&[(device, *needed)]));
            reason.or_else(|| too_small(&[(device, Bytes(needed.0 - 1))])).or_else(|| too_small(&[(device, below(typed))]))
        }
        Error::DoNotFit { shortfalls, .. } => {
            let typed = |short: &Shortfall| (device(&short.device), short.needed.typed_up());
            let all: Vec<(Device, Bytes)> = shortfalls.iter().map(typed).collect();
            let one_less = (0..all.len()).map(|index| {
                let mut less = all.clone();
                less[index].1 = below(less[index].1);
                less
            });
            let alone = all.iter().map(|one| vec![*one]).filter(|_| all.len() > 1);
            let shares = case.devices.iter().any(|spec| spec.kind.is_some_and(AdapterKind::shares_host_memory));
            followed(&all).or_else(|| one_less.chain(alone).filter(|_| !shares).find_map(|less| too_small(&less)))
        }
        Error::ExceedsLimit { needed, available, .. } => (needed <= available).then(|| refusal.to_string()),
        // What no budget changes.
        Error::NoBudgetIsEnough { .. } => too_small(everywhere),
        other => Some(other.to_string()),
    }
}

/// The kind of what comes of a case, and what is wrong with it.
fn outcome(index: usize, case: &Case) -> (&'static str, Option<String>) {
    let (catalog, model) = case.model();
    let Err(refusal) = plan(&catalog, &model, &case.devices, &case.options) else { return ("planned", None) };
    let kind = match &refusal {
        Error::DoesNotFit { .. } => "one device",
        Error::DoNotFit { .. } => "several devices",
        Error::ExceedsLimit { .. } => "a limit",
        _ => "no budget",
    };
    let reason = error_in(case, &catalog, &model, &refusal);
    (kind, reason.map(|reason| format!("case {index}: {refusal}\n  but {reason}\n  {:?}", case.options)))
}

#[test]
fn what_a_refusal_names_is_enough_and_the_least() {
    let mut runner =
        TestRunner::new(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() });
    let all: Vec<Case> = (0..N_CASES).map(|_| cases().new_tree(&mut runner).expect("nothing is filtered").current()).collect();
    let outcomes: Vec<(&str, Option<String>)> = all.into_par_iter().enumerate().map(|(index, case)| outcome(index, &case)).collect();
    let mut n_of_kind: BTreeMap<&str, usize> = BTreeMap::new();
    outcomes.iter().for_each(|(kind, _)| *n_of_kind.entry(kind).or_default() += 1);
    let errors: Vec<String> = outcomes.into_iter().filter_map(|(_, error)| error).collect();
    eprintln!("{n_of_kind:?}, {} errors", errors.len());
    assert!(errors.is_empty(), "{} of {n_of_kind:?}:\n{}", errors.len(), errors[..errors.len().min(12)].join("\n"));
    let n_followed: usize = ["one device", "several devices"].iter().filter_map(|kind| n_of_kind.get(kind)).sum();
    assert!(n_followed >= N_FOLLOWED, "{n_of_kind:?}");
}
