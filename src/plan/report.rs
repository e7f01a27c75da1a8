//! How plans and schedules print: what users read before anything is loaded.

use std::fmt;

use crate::device::Device;
use crate::plan::{DevicePlan, Plan, Schedule, Step, UnitPlan};
use crate::units::Bytes;

const BAR_WIDTH: usize = 24;
/// Runs of units that are told by their ends.
const MOST_RUNS: usize = 3;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let executors = self.executors();
        let names: Vec<String> = executors.iter().map(Device::to_string).collect();
        let verb = if names.len() == 1 { "computes" } else { "compute" };
        let tokens = if self.forward.n_tokens == 1 { "token" } else { "tokens" };
        write!(f, "{} {verb}  ·  up to {} {tokens} per forward  ·  ctx {}", names.join(" and "), self.forward.n_tokens, self.ctx_size)?;
        if self.ctx_size < self.ctx_size_model {
            let kv_cache: Bytes = self.devices.iter().map(|device| device.used.kv_cache).sum();
            write!(f, " of {}: its {} KV cache takes {kv_cache} of the budget; -c changes it", self.ctx_size_model, self.kv_dtype)?;
        } else {
            write!(f, "  ·  KV cache {}", self.kv_dtype)?;
        }
        writeln!(f)?;
        for device in &self.devices {
            self.write_device(f, device)?;
        }
        if self.streamed_bytes() == Bytes::ZERO {
            writeln!(f, "  nothing streams: every weight is resident where it is computed with")?;
        }
        Ok(())
    }
}

impl Plan {
    fn write_device(&self, f: &mut fmt::Formatter<'_>, device: &DevicePlan) -> fmt::Result {
        write!(f, "  {:<6} ", device.device)?;
        let used = device.used.total();
        match device.budget {
            Some(budget) => {
                let share = if budget.0 == 0 { 0.0 } else { used.0 as f64 / budget.0 as f64 };
                let filled = ((share * BAR_WIDTH as f64).ceil() as usize).min(BAR_WIDTH);
                write!(f, "{}{} {used:>10} / {budget:<10} ", "█".repeat(filled), "░".repeat(BAR_WIDTH - filled))?;
            }
            None => write!(f, "{:BAR_WIDTH$} {used:>10}   {:<10} ", "", "")?,
        }
        writeln!(f, " {} ({})", device.name, if device.budget_source.is_empty() { "no budget" } else { &device.budget_source })?;
        let held = self.unit_range(|unit| unit.home == device.device);
        if !held.is_empty() {
            writeln!(f, "         holds {held}")?;
        }
        let computes = |unit: &UnitPlan| unit.execute_on == device.device && !unit.pieces.is_empty();
        let differs = |unit: &UnitPlan| !unit.pieces.is_empty() && computes(unit) != (unit.home == device.device);
        if device.n_executed > 0 && self.units.iter().any(differs) {
            writeln!(f, "         computes {}", self.unit_range(computes))?;
        }
        let parts = [
            ("weights", device.used.weights),
            ("KV", device.used.kv_cache),
            ("activations", device.used.activations),
            ("slots", device.used.slots),
            ("staging", device.used.staging),
        ];
        let parts: Vec<String> = parts.iter().filter(|(_, bytes)| bytes.0 > 0).map(|(name, bytes)| format!("{name} {bytes}")).collect();
        if !parts.is_empty() {
            writeln!(f, "         {}", parts.join(" · "))?;
        }
        self.write_ring(f, device)
    }

    /// What streams to a device, where from, and through which ring.
    fn write_ring(&self, f: &mut fmt::Formatter<'_>, device: &DevicePlan) -> fmt::Result {
        let Some(ring) = &device.ring else { return Ok(()) };
        let from = |home: Device| -> Bytes {
            self.streamed_to(device.device).filter(|&piece| self.home(piece) == home).map(|piece| self.pieces[piece].size_bytes).sum()
        };
        let sources = [(Device::Cpu, "host memory"), (Device::Disk, "disk")].map(|(home, name)| (from(home), name));
        let sources: Vec<String> =
            sources.iter().filter(|(bytes, _)| bytes.0 > 0).map(|(bytes, name)| format!("{bytes} from {name}")).collect();
        let through = if device.device == Device::Cpu { "host memory".to_owned() } else { ring.upload.to_string() };
        writeln!(
            f,
            "         streams {} per token, through {} slots of {} ({through}), lookahead {}",
            sources.join(" and "),
            ring.n_slots,
            ring.slot_bytes,
            ring.lookahead
        )
    }

    /// `38 units: model.embed_tokens, model.layers.12.mlp … lm_head`, or nothing: each run of neighbours by its ends. Many runs are
    /// counted by the part of a layer that they are.
    fn unit_range(&self, is_wanted: impl Fn(&UnitPlan) -> bool) -> String {
        let at_home: Vec<bool> = self.units.iter().map(is_wanted).collect();
        let mut runs = Vec::new();
        let mut index = 0;
        for run in at_home.chunk_by(|a, b| a == b) {
            let (first, last) = (index, index + run.len() - 1);
            index += run.len();
            if run[0] {
                let name = |unit: usize| self.units[unit].name.as_str();
                runs.push(if first == last { name(first).to_owned() } else { format!("{} … {}", name(first), name(last)) });
            }
        }
        let which = if runs.len() > MOST_RUNS { self.counts_by_part(&at_home) } else { runs.join(", ") };
        match at_home.iter().filter(|wanted| **wanted).count() {
            0 => String::new(),
            1 => format!("1 unit: {which}"),
            n_units => format!("{n_units} units: {which}"),
        }
    }

    /// `embed_tokens, 26 of 32 self_attn, 5 of 32 mlp`: the wanted units by the last part of their names.
    fn counts_by_part(&self, is_wanted: &[bool]) -> String {
        // Name, how many are wanted, how many there are.
        let mut parts: Vec<(&str, usize, usize)> = Vec::new();
        for (unit, &wanted) in self.units.iter().zip(is_wanted) {
            let name = unit.name.rsplit('.').next().unwrap_or(&unit.name);
            let place = parts.iter().position(|(other, ..)| *other == name).unwrap_or_else(|| {
                parts.push((name, 0, 0));
                parts.len() - 1
            });
            parts[place].1 += usize::from(wanted);
            parts[place].2 += 1;
        }
        let told = parts.into_iter().filter(|(_, n_wanted, _)| *n_wanted > 0).map(|(name, n_wanted, n)| match n {
            1 => name.to_owned(),
            _ => format!("{n_wanted} of {n} {name}"),
        });
        told.collect::<Vec<_>>().join(", ")
    }
}

/// A schedule with its plan, for printing.
pub struct ScheduleReport<'a>(pub &'a Schedule, pub &'a Plan);

impl Schedule {
    /// The schedule with names and sizes, one step a line.
    pub fn report<'a>(&'a self, plan: &'a Plan) -> ScheduleReport<'a> {
        ScheduleReport(self, plan)
    }
}

impl fmt::Display for ScheduleReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ScheduleReport(schedule, plan) = self;
        let steps = schedule.prologue.iter().map(|step| ("once", step)).chain(schedule.steps.iter().map(|step| ("", step)));
        for (when, step) in steps {
            let (verb, piece) = match *step {
                Step::Hop { from, to } => {
                    writeln!(f, "{when:>5} hop           {from} to {to}")?;
                    continue;
                }
                Step::Embed => ("embed", None),
                Step::FetchUpload(piece) => ("fetch+upload", Some(piece)),
                Step::Upload(piece) => ("upload", Some(piece)),
                Step::ComputeResident(piece) => ("compute", Some(piece)),
                Step::ComputeStreamed(piece) => ("compute slot", Some(piece)),
                Step::Readback => ("readback", None),
            };
            match piece {
                Some(piece) => writeln!(f, "{when:>5} {verb:<13} {:<40} {:>10}", plan.piece_name(piece), plan.pieces[piece].size_bytes)?,
                None => writeln!(f, "{when:>5} {verb}")?,
            }
        }
        Ok(())
    }
}
