//! Candidates: the plans among which the planner chooses, and the choice.
//!
//! Candidates are greedy plans (`greedy.rs`) for every order in which the devices may share the layers, Accelerate's own device maps,
//! and what the search (`search.rs`) finds starting from both. Each is built to the byte and timed by a dry run; the one that serves
//! the request of [`PlanOptions::mix`] in the least time is taken.

use serde::Serialize;

use crate::accelerate::{DeviceMap, DeviceMapMode};
use crate::device::{Device, DeviceSpec};
use crate::error::{Error, Setting};
use crate::model::Model;
use crate::plan::assignment::Assignment;
use crate::plan::costs::{MachineCosts, Workload};
use crate::plan::device_map::{self, Offloaded};
use crate::plan::dry_run::{Prediction, predict};
use crate::plan::expert_cache::{ExpertCachePlan, ExpertCacheRule};
use crate::plan::expert_placements;
use crate::plan::explain::OtherWay;
use crate::plan::planner::check_placements;
use crate::plan::refusal::Refusal;
use crate::plan::scorer::{ForwardKind, Scorer};
use crate::plan::search::{EFFORT, Search};
use crate::plan::shape::Shape;
use crate::plan::site::Site;
use crate::plan::{ExpertMisses, HostLayers, Objective, Placement, PlacementRule, Plan, PlanOptions, ResidentLayers, Spill, UnitPlan};
use crate::units::Bytes;
use crate::weights::Catalog;

/// Most sequences at the same time that the planner chooses by itself.
const N_SEQS_MAX: usize = 256;
/// Numbers of slots with which uploads of uneven duration stay hidden, the better one first: half of the slots are computed from while
/// the others are filled.
const N_SLOTS_EVEN: [usize; 2] = [6, 4];
/// The share of the predicted time that such slots may cost.
const SPARE_SLOTS_COST: f64 = 0.01;
/// Work of a search with forwards of a length that no candidate has.
const EFFORT_OF_OTHERS: usize = EFFORT / 8;
/// The share of the time that another length must save to be taken.
const LEAST_GAIN_OF_OTHERS: f64 = 0.01;
/// Percent of every budget that a search leaves free: none, and more where no plan can be built of what it found.
const SEARCH_MARGINS: [u64; 3] = [0, 1, 5];

/// A plan that could be taken, and how long the request takes with it.
struct Candidate {
    plan: Plan,
    secs: f64,
    shape: Shape,
}

/// The best plan.
pub(super) fn best(site: &Site<'_>) -> Result<Plan, Refusal> {
    let budgets = site.budgets();
    let candidates = match &site.options.placement {
        PlacementRule::Auto => measured(site, &budgets)?,
        PlacementRule::FrontToBack => {
            return site.greedy(&storing_workers(site), &budgets).map(|(_, plan)| plan);
        }
        PlacementRule::Accelerate(mode) => device_map::along_mode(site, *mode, |map| of_map(site, map, &budgets))?,
        PlacementRule::Given(map) => of_map(site, map, &budgets)?,
        PlacementRule::ExpertsOnHost(layers) => return experts_on_host(site, layers, &budgets).map(|made| made.plan),
        PlacementRule::Placed(placements) => {
            check_placements(site, placements)?;
            return site.placed(placements, &budgets).map(|(_, plan)| plan);
        }
    };
    let best = choose(site, candidates).ok_or(Refusal::Budget)?;
    Ok(with_spare_slots(site, &best, &budgets).unwrap_or(best.plan))
}

/// The same placements with more and smaller slots, where that costs next to nothing by the prediction. There every chunk takes just the
/// predicted time; in truth some take longer, and chunks that are there already make up for it.
fn with_spare_slots(site: &Site<'_>, best: &Candidate, budgets: &[Bytes]) -> Option<Plan> {
    if site.options.n_slots.is_some() || best.plan.devices.iter().all(|device| device.ring.is_none()) {
        return None;
    }
    N_SLOTS_EVEN.into_iter().filter(|n_slots| *n_slots > best.shape.n_slots).find_map(|n_slots| {
        let plan = site.with(&placements_of(&best.plan), Shape { n_slots, ..best.shape }, budgets).ok()?;
        (secs_of(site, &plan) <= best.secs * (1.0 + SPARE_SLOTS_COST)).then_some(plan)
    })
}

/// Greedy plans, those of Accelerate's rules, and what a search finds; at least one.
fn measured(site: &Site<'_>, budgets: &[Bytes]) -> Result<Vec<Candidate>, Refusal> {
    let (mut candidates, refusal) = greedy(site, budgets);
    // Refusals name the least with which there is a greedy plan, so that nothing is planned with less.
    if candidates.is_empty() {
        return Err(refusal.unwrap_or(Refusal::Budget));
    }
    // Never worse than Accelerate's own maps, since they are among those to choose from.
    for mode in DeviceMapMode::DISTINCT {
        let of_mode = device_map::along_mode(site, mode, |map| of_map(site, map, budgets));
        candidates.extend(of_mode.into_iter().flatten().filter(|candidate| site.allows_residents(&candidate.plan)));
    }
    let caching = caching(site, budgets);
    if site.options.expert_cache == ExpertCacheRule::Always && !caching.is_empty() {
        return Ok(caching);
    }
    let improved = improve(site, &candidates, budgets);
    candidates.extend(improved);
    candidates.extend(caching);
    Ok(candidates)
}

/// Plans by which one adapter computes everything and the experts pass through its cache.
fn caching(site: &Site<'_>, budgets: &[Bytes]) -> Vec<Candidate> {
    if site.options.expert_cache == ExpertCacheRule::Never || site.options.resident_layers != ResidentLayers::Auto {
        return Vec::new();
    }
    let of_adapter = |worker: usize| {
        let made = in_some_host_room(site, worker, budgets, |room| expert_placements::cached(site, worker, room)).ok()??;
        is_allowed(site, &made.plan).then(|| best_split(site, worker, made, budgets))
    };
    adapters(site).filter_map(of_adapter).collect()
}

/// The same plan with as many whole layers in its expert cache as are predicted to be the fastest.
fn best_split(site: &Site<'_>, worker: usize, made: Candidate, budgets: &[Bytes]) -> Candidate {
    let device = site.workers[worker].device;
    let Some(cache) = made.plan.expert_cache(device) else { return made };
    let secs = |split: &ExpertCachePlan| secs_of(site, &made.plan.with_expert_cache(device, *split));
    let n_whole = cache.fastest_split(site.options.expert_profile.as_deref(), secs).map_or(0, |(split, _)| split.misses.n_whole);
    if n_whole == 0 {
        return made;
    }
    let mut placements = placements_of(&made.plan);
    placements.iter_mut().filter_map(|placement| placement.expert_misses.as_mut()).for_each(|misses| {
        *misses = ExpertMisses { n_whole, hit_percent: None, ..*misses };
    });
    match site.placed(&placements, budgets) {
        Ok((shape, plan)) => Candidate { secs: secs_of(site, &plan), plan, shape },
        Err(_) => made,
    }
}

/// The plan by which the host computes the experts of `layers`.
fn experts_on_host(site: &Site<'_>, layers: &HostLayers, budgets: &[Bytes]) -> Result<Candidate, Refusal> {
    let invalid = |reason: &str| Refusal::Limit(Error::InvalidArgument { option: Setting::Placement.into(), reason: reason.into() });
    if site.worker(Device::Cpu).is_none() {
        return Err(invalid("the host is to compute experts, and it does not compute here"));
    }
    let adapter = adapters(site).next().ok_or_else(|| invalid("only the host computes here, and it computes the experts already"))?;
    let made = in_some_host_room(site, adapter, budgets, |room| expert_placements::on_host(site, adapter, layers, room))?;
    made.ok_or_else(|| invalid("the model has no experts"))
}

/// The workers that are adapters and may hold weights.
fn adapters(site: &Site<'_>) -> impl Iterator<Item = usize> {
    (0..site.workers.len()).filter(|&worker| site.workers[worker].is_gpu() && site.may_hold(site.workers[worker].device))
}

/// The plan with the most of these placements in host memory that fits, beside what an adapter uses of that; `None` where there are no
/// placements.
fn in_some_host_room(
    site: &Site<'_>,
    adapter: usize,
    budgets: &[Bytes],
    placements: impl Fn(Bytes) -> Option<Vec<Placement>>,
) -> Result<Option<Candidate>, Refusal> {
    let shared = if site.workers[adapter].shares_host_memory() { budgets[adapter] } else { Bytes::ZERO };
    let whole = site.host_budget(shared);
    let mut refusal = Refusal::Budget;
    // What a plan needs of host memory besides is not counted here.
    for room in [whole, Bytes(whole.0 / 8 * 7), Bytes(whole.0 / 2), Bytes::ZERO] {
        let Some(placements) = placements(room) else { return Ok(None) };
        match site.placed(&placements, budgets) {
            Ok((shape, plan)) => return Ok(Some(Candidate { secs: secs_of(site, &plan), plan, shape })),
            Err(other) => refusal = other,
        }
    }
    Err(refusal)
}

/// The greedy plans along every chain, and why there are no more.
fn greedy(site: &Site<'_>, budgets: &[Bytes]) -> (Vec<Candidate>, Option<Refusal>) {
    let mut candidates = Vec::new();
    let mut refusal = None;
    for chain in chains(site) {
        match site.greedy(&chain, budgets) {
            Ok((shape, plan)) => candidates.push(Candidate { secs: secs_of(site, &plan), plan, shape }),
            Err(Refusal::Limit(_)) if matches!(refusal, Some(Refusal::Budget)) => {}
            Err(other) => refusal = Some(other),
        }
    }
    (candidates, refusal)
}

/// The plans that a device map allows; at least one.
fn of_map(site: &Site<'_>, map: &DeviceMap, budgets: &[Bytes]) -> Result<Vec<Candidate>, Refusal> {
    let candidate = |(shape, plan): (Shape, Plan)| Candidate { secs: secs_of(site, &plan), plan, shape };
    made_of_map(site, map, budgets).map(|made| made.into_iter().map(candidate).collect())
}

fn made_of_map(site: &Site<'_>, map: &DeviceMap, budgets: &[Bytes]) -> Result<Vec<(Shape, Plan)>, Refusal> {
    let mut all = Vec::new();
    let mut refusal = None;
    for offloaded in Offloaded::ALL {
        let Some(placements) = device_map::placements(site, map, offloaded)? else { continue };
        match site.placed(&placements, budgets) {
            Ok((_, plan)) if !is_allowed(site, &plan) => refusal = Some(Refusal::Budget),
            Ok(made) => all.push(made),
            Err(other) => refusal = Some(other),
        }
    }
    if all.is_empty() { Err(refusal.unwrap_or(Refusal::Budget)) } else { Ok(all) }
}

/// Whether `--strict` and `-ngl all` allow a plan.
fn is_allowed(site: &Site<'_>, plan: &Plan) -> bool {
    let may_stream = site.options.resident_layers != ResidentLayers::All;
    (site.options.spill == Spill::Allowed || site.keeps_within(plan)) && (may_stream || plan.streamed_bytes() == Bytes::ZERO)
}

/// The plans that need no search, fastest first.
pub(super) fn simple(site: &Site<'_>) -> Vec<(OtherWay, Plan)> {
    let budgets = site.budgets();
    let mut named: Vec<(OtherWay, Candidate)> = Vec::new();
    for chain in chains(site) {
        let Ok((shape, plan)) = site.greedy(&chain, &budgets) else { continue };
        let names: Vec<String> = plan.executors().iter().map(Device::to_string).collect();
        let streamed = plan.streamed_bytes();
        let streams = if streamed > Bytes::ZERO { format!(", {streamed} streamed") } else { String::new() };
        let alone = if names.len() == 1 { " alone" } else { "" };
        let way = OtherWay::Devices(format!("{}{alone}{streams}", names.join(", then ")));
        named.push((way, Candidate { secs: secs_of(site, &plan), plan, shape }));
    }
    let sequential = device_map::along_mode(site, DeviceMapMode::Sequential, |map| of_map(site, map, &budgets));
    let sequential = sequential.ok().and_then(|candidates| choose(site, candidates));
    named.extend(sequential.into_iter().map(|candidate| (OtherWay::DeviceMap(DeviceMapMode::Sequential), candidate)));
    named.sort_by(|a, b| a.1.secs.total_cmp(&b.1.secs));
    named.dedup_by(|a, b| placements_of(&a.1.plan) == placements_of(&b.1.plan));
    named.into_iter().map(|(name, candidate)| (name, candidate.plan)).collect()
}

/// The best plan, where there is one.
pub(super) fn quick(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Option<Plan> {
    let site = Site::new(catalog, model, devices, options).ok()?;
    let budgets = site.budgets();
    choose(&site, measured(&site, &budgets).ok()?).map(|candidate| candidate.plan)
}

/// Whether [`best`] makes a plan, without its search: it does wherever there is a candidate to begin with.
pub(super) fn is_possible(site: &Site<'_>) -> bool {
    let budgets = site.budgets();
    match &site.options.placement {
        PlacementRule::Auto => chains(site).iter().any(|chain| site.has_greedy(chain, &budgets)),
        PlacementRule::Accelerate(mode) => device_map::along_mode(site, *mode, |map| made_of_map(site, map, &budgets)).is_ok(),
        PlacementRule::Given(map) => made_of_map(site, map, &budgets).is_ok(),
        PlacementRule::FrontToBack | PlacementRule::ExpertsOnHost(_) | PlacementRule::Placed(_) => best(site).is_ok(),
    }
}

/// How many sequences at the same time give the most tokens per second, by greedy plans: doubled for as long as that pays and each
/// sequence has room for the request.
pub(super) fn n_seqs_that_pay(catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> usize {
    let secs = |n_seqs: usize| {
        let options = PlanOptions { n_seqs, ..options.clone() };
        let site = Site::new(catalog, model, devices, &options).ok()?;
        let n_positions = n_positions_wanted(&site);
        let (candidates, _) = greedy(&site, &site.budgets());
        let with_room = candidates.into_iter().filter(|candidate| candidate.plan.ctx_size >= n_positions);
        with_room.map(|candidate| candidate.secs).reduce(f64::min)
    };
    let mut best = (1, secs(1).unwrap_or(f64::INFINITY));
    let mut n_seqs = 2;
    while n_seqs <= N_SEQS_MAX {
        match secs(n_seqs) {
            Some(secs) if secs < best.1 => best = (n_seqs, secs),
            _ => break,
        }
        n_seqs *= 2;
    }
    best.0
}

/// The workers on which weights may be stored; all workers where there is none.
fn storing_workers(site: &Site<'_>) -> Vec<usize> {
    let all = 0..site.workers.len();
    let holders: Vec<usize> = all.clone().filter(|&worker| site.may_hold(site.workers[worker].device)).collect();
    if holders.is_empty() { all.collect() } else { holders }
}

/// The orders in which layers are given to devices: each device alone, all adapters, and all adapters before and after the host.
fn chains(site: &Site<'_>) -> Vec<Vec<usize>> {
    let all = storing_workers(site);
    let (gpus, hosts): (Vec<usize>, Vec<usize>) = all.iter().partition(|&&worker| site.workers[worker].is_gpu());
    let mut chains: Vec<Vec<usize>> = all.into_iter().map(|worker| vec![worker]).collect();
    let behind = gpus.iter().chain(&hosts).copied().collect();
    let before = hosts.iter().chain(&gpus).copied().collect();
    for chain in [gpus, behind, before] {
        if !chain.is_empty() && !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    chains
}

/// What searches find: one for each shape of the candidates, and with less effort one for each other length of forwards. Shorter forwards
/// leave room for weights, and are faster where products of many tokens are slow; they are taken only where they gain enough.
fn improve(site: &Site<'_>, candidates: &[Candidate], budgets: &[Bytes]) -> Vec<Candidate> {
    let shapes = shapes_to_search(site, candidates);
    let effort = EFFORT / shapes.len().max(1);
    let mut improved: Vec<Candidate> = shapes.iter().flat_map(|&shape| searched(site, candidates, shape, budgets, effort)).collect();
    let least = candidates.iter().chain(&improved).map(|candidate| candidate.secs).fold(f64::INFINITY, f64::min);
    let all_workers: Vec<usize> = (0..site.workers.len()).collect();
    let is_other = |shape: &Shape| shapes.iter().all(|known| shape.forward.n_tokens != known.forward.n_tokens);
    let others = site.shapes(&all_workers, budgets).into_iter().filter(is_other);
    let others = others.flat_map(|shape| searched(site, candidates, shape, budgets, EFFORT_OF_OTHERS));
    improved.extend(others.filter(|other| other.secs < least * (1.0 - LEAST_GAIN_OF_OTHERS)));
    improved
}

/// What a search in one shape finds, as plans.
fn searched(site: &Site<'_>, candidates: &[Candidate], shape: Shape, budgets: &[Bytes], effort: usize) -> Vec<Candidate> {
    let machine = MachineCosts::new(site.devices);
    let seed = |candidate: &Candidate| Assignment::of(site, &placements_of(&candidate.plan), shape.n_slots);
    let seeds: Vec<Assignment> = candidates.iter().filter_map(seed).collect();
    // Assignments do not count to the byte, so the best need not be buildable: then the next best may be, or one that leaves a little room.
    let with_margin = |margin: u64| -> Vec<Candidate> {
        let less: Vec<Bytes> = budgets.iter().map(|budget| Bytes(budget.0 - budget.0 / 100 * margin)).collect();
        let scorer = Scorer::new(site, &machine, shape, &less, kinds(site, shape));
        let found = Search::new(site, scorer).best(&seeds, shape.n_slots, effort);
        let built = found.iter().filter_map(|(assignment, _)| {
            let shape = Shape { n_slots: assignment.n_slots, ..shape };
            let plan = site.with(&assignment.placements(site), shape, budgets).ok()?;
            Some(Candidate { secs: secs_of(site, &plan), plan, shape })
        });
        built.collect()
    };
    SEARCH_MARGINS.into_iter().map(with_margin).find(|built| !built.is_empty()).unwrap_or_default()
}

/// The shapes of the candidates. Of those that differ in their context alone, the shortest that
/// holds the request: it leaves the most room for weights.
fn shapes_to_search(site: &Site<'_>, candidates: &[Candidate]) -> Vec<Shape> {
    let n_positions = n_positions_wanted(site);
    let mut shapes: Vec<Shape> = Vec::new();
    for shape in candidates.iter().map(|candidate| candidate.shape) {
        match shapes.iter_mut().find(|other| other.forward == shape.forward) {
            None => shapes.push(shape),
            Some(other) => {
                let is_better = |new: usize, old: usize| if old < n_positions { new > old } else { (n_positions..old).contains(&new) };
                if is_better(shape.ctx_size, other.ctx_size) {
                    *other = shape;
                }
            }
        }
    }
    shapes
}

/// Positions of the request that the plan is made for, as far as the context reaches.
fn n_positions_wanted(site: &Site<'_>) -> usize {
    let most = site.options.ctx_size.unwrap_or(site.model.config.context_length).min(site.model.config.context_length);
    (site.options.mix.n_prompt + site.options.mix.n_generated).min(most)
}

/// The fastest of those that hold the whole request, if any does.
fn choose(site: &Site<'_>, mut candidates: Vec<Candidate>) -> Option<Candidate> {
    let n_positions = n_positions_wanted(site);
    let keep = |candidates: &mut Vec<Candidate>, is_wanted: &dyn Fn(&Plan) -> bool| {
        if candidates.iter().any(|candidate| is_wanted(&candidate.plan)) {
            candidates.retain(|candidate| is_wanted(&candidate.plan));
        }
    };
    candidates.retain(|candidate| is_allowed(site, &candidate.plan));
    keep(&mut candidates, &|plan| plan.ctx_size >= n_positions);
    let faster = |best: Candidate, next: Candidate| if next.secs < best.secs * (1.0 - 1e-6) { next } else { best };
    candidates.into_iter().reduce(faster)
}

/// The placement of each unit of a plan.
pub(super) fn placements_of(plan: &Plan) -> Vec<Placement> {
    let of_unit = |(index, unit): (usize, &UnitPlan)| {
        let mut stored_on = Vec::new();
        let mut last = None;
        for chunk in &plan.chunks[unit.chunks.clone()] {
            for slice in chunk.slices_of(index) {
                // Rows of one matrix follow each other.
                if last.replace((slice.tensor, slice.first_row + slice.n_rows)) != Some((slice.tensor, slice.first_row))
                    || slice.first_row == 0
                {
                    stored_on.push(chunk.stored_on);
                }
            }
        }
        let is_cached = plan.chunks[unit.chunks.clone()].iter().any(|chunk| chunk.is_cached);
        let cache = plan.expert_cache(unit.execute_on).filter(|_| is_cached);
        Placement { execute_on: unit.execute_on, stored_on, expert_misses: cache.map(|cache| cache.misses) }
    };
    plan.units.iter().enumerate().map(of_unit).collect()
}

pub(super) fn secs_of(site: &Site<'_>, plan: &Plan) -> f64 {
    request_secs(plan, site.catalog, site.model, site.devices, site.options)
}

/// The forwards of the request that a plan is made for.
fn kinds(site: &Site<'_>, shape: Shape) -> Vec<ForwardKind> {
    request(site.options, shape.forward.n_tokens)
        .into_iter()
        .map(|(workload, times)| ForwardKind::new(site.model, workload, times))
        .collect()
}

/// Sequences that go on by a token in one forward.
fn n_together(objective: Objective, n_seqs: usize) -> usize {
    match objective {
        Objective::Latency => 1,
        Objective::Throughput => n_seqs.max(1),
    }
}

/// Workloads, and how often each occurs per sequence.
fn request(options: &PlanOptions, n_tokens_max: usize) -> Vec<(Workload, f64)> {
    let mix = options.mix;
    let n_together = n_together(options.objective, options.n_seqs);
    let mut workloads = Vec::new();
    if mix.n_prompt > 0 {
        let n_tokens = mix.n_prompt.min(n_tokens_max).max(1);
        let workload = Workload { n_tokens, n_logit_rows: 1, position: mix.n_prompt / 2, n_seqs: 1 };
        workloads.push((workload, mix.n_prompt as f64 / n_tokens as f64));
    }
    if mix.n_generated > 0 || mix.n_prompt == 0 {
        let workload = Workload::decode(mix.n_prompt + mix.n_generated / 2).side_by_side(n_together);
        workloads.push((workload, mix.n_generated.max(1) as f64 / n_together as f64));
    }
    workloads
}

/// Seconds that a sequence of the request takes by a plan: what the planner makes least.
pub fn request_secs(plan: &Plan, catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> f64 {
    let workloads = request(options, plan.forward.n_tokens).into_iter();
    workloads.map(|(workload, times)| times * predict(plan, catalog, model, devices, workload).secs).sum()
}

/// How fast a plan should go.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// One forward of a prompt of the request that the plan is made for.
    pub prefill: Prediction,
    /// One forward of one token, in the middle of the answer; for throughput, of one token of each of the plan's sequences.
    pub decode: Prediction,
}

/// Predicts the two kinds of forward that a conversation is made of.
pub fn forecast(plan: &Plan, catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Forecast {
    let mix = options.mix;
    let of = |workload: Workload| predict(plan, catalog, model, devices, workload);
    let n_prompt = mix.n_prompt.clamp(1, plan.forward.n_tokens);
    // Not cut to the plan's own context, so that plans with different ones compare.
    let position = (mix.n_prompt + mix.n_generated / 2).min(plan.ctx_size_model);
    let n_together = n_together(options.objective, plan.n_seqs);
    let decode = Workload::decode(position).side_by_side(n_together);
    Forecast { prefill: of(Workload::prefill(n_prompt)), decode: of(decode) }
}
