//! One model over several machines: which layers each computes. Every share is planned as on that machine alone, for its devices, budgets
//! and rates, and the shares are chosen by which the request takes least. Reads headers only.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::EngineBuilder;
use super::prepare::{ModelSource, Surveyed, options_for};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{self, Forecast, Plan, PlanOptions, Workload};

/// One of several machines that share a model.
pub struct Machine {
    /// What messages call it.
    pub name: String,
    /// The model, and how this machine would open it.
    pub builder: EngineBuilder,
}

/// The way of hidden states from one machine to the next, as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Seconds that the least of them takes.
    pub latency_secs: f64,
    /// Bytes per second of large ones.
    pub bytes_per_sec: f64,
}

impl Link {
    /// Seconds of so many bytes.
    pub fn secs(&self, n_bytes: usize) -> f64 {
        self.latency_secs + n_bytes as f64 / self.bytes_per_sec
    }
}

/// What one machine computes.
pub struct StagePlan {
    /// The machine.
    pub name: String,
    /// Its layers.
    pub layers: Range<usize>,
    /// Its plan, with the speed that is predicted for it.
    pub plan: Plan,
    /// Without the way to the next machine.
    pub forecast: Forecast,
}

/// A model over several machines.
pub struct Split {
    /// One stage for each machine, in the order of the layers.
    pub stages: Vec<StagePlan>,
    /// Positions of a sequence, the same on all of them.
    pub ctx_size: usize,
    /// Most tokens of one forward, the same on all of them.
    pub ubatch_size: usize,
    /// Seconds of one forward of a prompt of so many tokens, and of one token, with the ways between machines.
    pub prefill: (usize, f64),
    /// See there.
    pub decode_secs: f64,
}

impl Split {
    /// Predicted tokens per second of a prompt, and of an answer.
    pub fn tokens_per_sec(&self) -> [f64; 2] {
        let (n_tokens, secs) = self.prefill;
        [n_tokens as f64 / secs, 1.0 / self.decode_secs]
    }
}

/// Divides the layers of a model among `machines`, in their order, each at least one. `links` are the ways from each to the next.
///
/// # Errors
/// [`Error::DoesNotFit`] and its like where no division fits, as the machine says it that has room for the fewest; what else planning
/// refuses; [`Error::InvalidArgument`] where there are more machines than layers, or another number of links.
pub async fn split(machines: Vec<Machine>, links: &[Link]) -> Result<Split> {
    let mut planner = Planner::new(machines).await?;
    let (n_machines, n_layers) = (planner.machines.len(), planner.n_layers()?);
    let invalid = |reason: String| Err(Error::InvalidArgument { option: "machines".into(), reason });
    if n_machines > n_layers {
        return invalid(format!("are {n_machines}, and the model has {n_layers} layers; each computes one at least"));
    }
    if links.len() + 1 != n_machines {
        return invalid(format!("are {n_machines}, with {} ways between them", links.len()));
    }
    if let Some(link) = links.iter().find(|link| !(link.latency_secs >= 0.0 && link.bytes_per_sec > 0.0)) {
        return invalid(format!("have a way that takes {} s and carries {} bytes per second", link.latency_secs, link.bytes_per_sec));
    }
    let ends = match best_ends(n_machines, n_layers, &mut |machine, layers| planner.secs(machine, layers))? {
        Some(ends) => ends,
        None => return Err(planner.refusal(n_layers)?),
    };
    planner.split(&ends, links)
}

/// Plans stages, each once.
struct Planner {
    machines: Vec<(String, Surveyed)>,
    /// What was planned with the options of all machines: seconds of the request, if it fits.
    known: HashMap<(usize, Range<usize>), Option<f64>>,
}

impl Planner {
    async fn new(machines: Vec<Machine>) -> Result<Planner> {
        let mut surveyed: Vec<(String, Surveyed)> = Vec::new();
        for Machine { name, mut builder } in machines {
            // Headers are read once.
            if let Some((_, first)) = surveyed.first() {
                builder.model = ModelSource::Open(Arc::clone(&first.checkpoint));
            }
            let one = builder.survey().await.map_err(|error| of_machine(&name, error))?;
            surveyed.push((name, one));
        }
        Ok(Planner { machines: surveyed, known: HashMap::new() })
    }

    fn n_layers(&self) -> Result<usize> {
        let none = || Error::InvalidArgument { option: "machines".into(), reason: "are none".into() };
        self.machines.first().map(|(_, first)| first.model.config.n_layers).ok_or_else(none)
    }

    /// The model and the options of a stage.
    fn stage(&self, machine: usize, layers: Range<usize>) -> Result<(&Surveyed, Model, PlanOptions)> {
        let surveyed = &self.machines[machine].1;
        let model = surveyed.model.clone().stage(layers)?;
        let options = options_for(&model, surveyed.options.clone());
        Ok((surveyed, model, options))
    }

    /// Seconds of the request; `None` where the layers do not fit.
    fn secs(&mut self, machine: usize, layers: Range<usize>) -> Result<Option<f64>> {
        let key = (machine, layers.clone());
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let (surveyed, model, options) = self.stage(machine, layers)?;
        let (catalog, devices) = (&surveyed.checkpoint.catalog, &surveyed.devices);
        let plan =
            plan::plan_if_it_fits(catalog, &model, devices, &options).map_err(|error| of_machine(&self.machines[machine].0, error))?;
        let secs = plan.map(|plan| plan::request_secs(&plan, catalog, &model, devices, &options));
        self.known.insert(key, secs);
        Ok(secs)
    }

    /// Why there is no division: what the machine says that has room for the fewest layers, of equal shares.
    fn refusal(&self, n_layers: usize) -> Result<Error> {
        let n_machines = self.machines.len();
        for machine in 0..n_machines {
            let share = n_layers * machine / n_machines..n_layers * (machine + 1) / n_machines;
            let (surveyed, model, options) = self.stage(machine, share.clone())?;
            if let Err(error) = plan::plan(&surveyed.checkpoint.catalog, &model, &surveyed.devices, &options) {
                let (name, last) = (&self.machines[machine].0, share.end - 1);
                return Ok(of_machine(&format!("{name} with layers {} to {last}", share.start), error));
            }
        }
        Ok(Error::InvalidArgument { option: "machines".into(), reason: "have no room for the model together; add one".into() })
    }

    /// The plans of stages that end there, all with one context and one length of forwards.
    fn split(&self, ends: &[usize], links: &[Link]) -> Result<Split> {
        let ranges: Vec<Range<usize>> = std::iter::once(0).chain(ends.iter().copied()).zip(ends).map(|(start, end)| start..*end).collect();
        let plans = |asked: Option<[usize; 2]>| -> Result<Vec<StagePlan>> {
            ranges.iter().enumerate().map(|(machine, layers)| self.stage_plan(machine, layers.clone(), asked)).collect()
        };
        let open = plans(None)?;
        let least = |of: fn(&Plan) -> usize| open.iter().map(|stage| of(&stage.plan)).min().unwrap_or(1);
        let [ctx_size, ubatch_size] = [least(|plan| plan.ctx_size), least(|plan| plan.forward.n_tokens)];
        let is_alike = open.iter().all(|stage| stage.plan.ctx_size == ctx_size && stage.plan.forward.n_tokens == ubatch_size);
        let stages = if is_alike { open } else { plans(Some([ctx_size, ubatch_size]))? };
        let Some((_, first)) = self.machines.first() else { return Err(Error::internal("a model was divided among no machines")) };
        let row_bytes = first.model.config.hidden_size * size_of::<f32>();
        let n_prompt = stages.iter().map(|stage| stage.forecast.prefill.workload.n_tokens).min().unwrap_or(1);
        let on_the_way = |n_tokens: usize| links.iter().map(|link| link.secs(n_tokens * row_bytes)).sum::<f64>();
        let sum = |secs: &dyn Fn(&StagePlan) -> f64| stages.iter().map(secs).sum::<f64>();
        let prefill = (n_prompt, sum(&|stage| stage.forecast.prefill.secs) + on_the_way(n_prompt));
        let decode_secs = sum(&|stage| stage.forecast.decode.secs) + on_the_way(1);
        Ok(Split { stages, ctx_size, ubatch_size, prefill, decode_secs })
    }

    fn stage_plan(&self, machine: usize, layers: Range<usize>, asked: Option<[usize; 2]>) -> Result<StagePlan> {
        let (surveyed, model, mut options) = self.stage(machine, layers.clone())?;
        if let Some([ctx_size, ubatch_size]) = asked {
            options = PlanOptions { ctx_size: Some(ctx_size), ubatch_size: Some(ubatch_size), ..options };
        }
        let (catalog, devices, name) = (&surveyed.checkpoint.catalog, &surveyed.devices, self.machines[machine].0.clone());
        let plan = plan::plan(catalog, &model, devices, &options).map_err(|error| of_machine(&name, error))?;
        let mut forecast = plan::forecast(&plan, catalog, &model, devices, &options);
        // Of its tokens a stage gives all hidden states, and the last one logit row.
        let rows = if model.gives_hidden() { forecast.prefill.workload.n_tokens } else { 1 };
        let workload = Workload { n_logit_rows: rows, ..forecast.prefill.workload };
        forecast.prefill = plan::predict(&plan, catalog, &model, devices, workload);
        Ok(StagePlan { name, layers, plan, forecast })
    }
}

/// An error that says which machine it concerns.
fn of_machine(name: &str, error: Error) -> Error {
    match error {
        Error::DoesNotFit { device, needed, available, advice } => {
            Error::DoesNotFit { device: format!("{device} of {name}"), needed, available, advice }
        }
        Error::InvalidArgument { option, reason } => Error::InvalidArgument { option, reason: format!("{reason} (on {name})") },
        other => other,
    }
}

/// Where the layers of each machine end so that the sum of `secs` is least, as far as moving layers between two of them finds it; `None`
/// where no division has seconds for every machine. More layers never fit where fewer do not.
fn best_ends(
    n_machines: usize,
    n_layers: usize,
    secs: &mut dyn FnMut(usize, Range<usize>) -> Result<Option<f64>>,
) -> Result<Option<Vec<usize>>> {
    let equal: Vec<usize> = (1..=n_machines).map(|machine| n_layers * machine / n_machines).collect();
    let mut best = match total(&equal, secs)? {
        Some(secs) => (secs, equal),
        None => match filled(n_machines, n_layers, secs)? {
            Some(ends) => match total(&ends, secs)? {
                Some(secs) => (secs, ends),
                None => return Ok(None),
            },
            None => return Ok(None),
        },
    };
    let mut step = (n_layers / 2).max(1);
    loop {
        let mut is_better = false;
        for [from, to] in (0..n_machines).flat_map(|from| (0..n_machines).map(move |to| [from, to])) {
            let Some(ends) = moved(&best.1, from, to, step) else { continue };
            if let Some(secs) = total(&ends, secs)?.filter(|secs| *secs < best.0 * (1.0 - LEAST_GAIN)) {
                (best, is_better) = ((secs, ends), true);
            }
        }
        match step {
            _ if is_better => {}
            1 => return Ok(Some(best.1)),
            _ => step /= 2,
        }
    }
}

/// The share of the time that moving layers must save.
const LEAST_GAIN: f64 = 1e-6;

/// The sum over all machines.
fn total(ends: &[usize], secs: &mut dyn FnMut(usize, Range<usize>) -> Result<Option<f64>>) -> Result<Option<f64>> {
    let mut sum = 0.0;
    let mut start = 0;
    for (machine, &end) in ends.iter().enumerate() {
        match secs(machine, start..end)? {
            Some(secs) => sum += secs,
            None => return Ok(None),
        }
        start = end;
    }
    Ok(Some(sum))
}

/// Each machine takes as many layers as fit, and leaves one for each behind it.
fn filled(
    n_machines: usize,
    n_layers: usize,
    secs: &mut dyn FnMut(usize, Range<usize>) -> Result<Option<f64>>,
) -> Result<Option<Vec<usize>>> {
    let mut ends = Vec::new();
    let mut start = 0;
    for machine in 0..n_machines {
        let most = n_layers - (n_machines - 1 - machine);
        if secs(machine, start..most)?.is_some() {
            start = most;
        } else {
            // The last that fits, and the first that does not.
            let (mut fits, mut fails) = (start, most);
            while fits + 1 < fails {
                let middle = fits.midpoint(fails);
                match secs(machine, start..middle)? {
                    Some(_) => fits = middle,
                    None => fails = middle,
                }
            }
            if fits == start {
                return Ok(None);
            }
            start = fits;
        }
        ends.push(start);
    }
    Ok(ends.last().is_some_and(|end| *end == n_layers).then_some(ends))
}

/// The ends where `step` layers more are `to`'s, and as many fewer `from`'s; `None` where it would have none left.
fn moved(ends: &[usize], from: usize, to: usize, step: usize) -> Option<Vec<usize>> {
    let first = if from == 0 { 0 } else { ends[from - 1] };
    if from == to || ends[from] - first <= step {
        return None;
    }
    let mut moved = ends.to_vec();
    match from < to {
        true => moved[from..to].iter_mut().for_each(|end| *end -= step),
        false => moved[to..from].iter_mut().for_each(|end| *end += step),
    }
    Some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers of a machine that holds `holds` of them cost `cost` each, and the others `streamed`; it has room for `most`.
    struct Costs {
        holds: usize,
        cost: f64,
        streamed: f64,
        most: usize,
    }

    fn ends(machines: &[Costs], n_layers: usize) -> Option<Vec<usize>> {
        let mut secs = |machine: usize, layers: Range<usize>| {
            let own = &machines[machine];
            let held = layers.len().min(own.holds);
            let secs = held as f64 * own.cost + (layers.len() - held) as f64 * own.streamed;
            Ok((layers.len() <= own.most).then_some(secs))
        };
        best_ends(machines.len(), n_layers, &mut secs).unwrap()
    }

    #[test]
    fn layers_go_to_where_they_take_least() {
        let costs = |holds, cost, most| Costs { holds, cost, streamed: 10.0, most };
        let all = usize::MAX;
        assert_eq!(ends(&[costs(80, 1.0, all), costs(80, 2.0, all)], 80), Some(vec![79, 80]), "the faster one takes what it holds");
        assert_eq!(ends(&[costs(50, 1.0, all), costs(40, 2.0, all)], 80), Some(vec![50, 80]));
        assert_eq!(ends(&[costs(10, 2.0, all), costs(20, 1.0, all), costs(50, 1.5, all)], 80), Some(vec![10, 30, 80]));
        assert_eq!(ends(&[costs(10, 1.0, 10), costs(0, 1.0, 3), costs(9, 1.0, 9)], 22), Some(vec![10, 13, 22]), "just so they fit");
        assert_eq!(ends(&[costs(10, 1.0, 10), costs(0, 1.0, 3), costs(9, 1.0, 9)], 23), None);
        assert_eq!(ends(&[costs(1, 1.0, 1), costs(1, 1.0, 0)], 2), None, "each has one");
        assert_eq!(ends(&[costs(5, 1.0, 5)], 5), Some(vec![5]));
    }

    #[test]
    fn layers_move_between_machines_that_are_no_neighbours() {
        assert_eq!(moved(&[4, 6, 9], 0, 2, 3), Some(vec![1, 3, 9]));
        assert_eq!(moved(&[4, 6, 9], 2, 0, 2), Some(vec![6, 8, 9]));
        assert_eq!(moved(&[4, 6, 9], 1, 0, 2), None);
        assert_eq!(moved(&[4, 6, 9], 1, 1, 1), None);
    }
}
