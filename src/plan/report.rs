//! How plans and schedules print, for users before anything is loaded. One fact a line, not wrapped: the caller knows how wide the page is.

use std::cmp::Ordering;
use std::fmt;

use crate::device::Device;
use crate::model::UnitKind;
use crate::plan::{DevicePlan, Plan, Schedule, Step, UnitPlan, UploadPath};
use crate::units::{Bytes, counted, listed};

const BAR_WIDTH: usize = 16;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.executors().iter().map(Device::to_string).collect();
        let verb = if names.len() == 1 { "computes" } else { "compute" };
        let n_tokens = counted(self.forward.n_tokens, "token");
        write!(f, "{} {verb} · up to {n_tokens} per forward · context {}", listed(&names), self.ctx_size)?;
        match self.ctx_size.cmp(&self.ctx_size_model) {
            Ordering::Less => write!(f, " of {}", self.ctx_size_model)?,
            Ordering::Equal => {}
            Ordering::Greater => write!(f, " (trained for {})", self.ctx_size_model)?,
        }
        if self.n_seqs > 1 {
            write!(f, " for each of {} sequences", self.n_seqs)?;
            if let Some(kv_size) = self.kv_size {
                write!(f, ", {kv_size} together")?;
            }
        }
        writeln!(f)?;
        self.devices.iter().try_for_each(|device| self.write_device(f, device))?;
        if (0..self.chunks.len()).all(|chunk| self.is_resident(chunk)) {
            writeln!(f, "  nothing streams: every weight is resident where it is computed with")?;
        }
        Ok(())
    }
}

impl Plan {
    fn write_device(&self, f: &mut fmt::Formatter<'_>, device: &DevicePlan) -> fmt::Result {
        match device.budget {
            Some(budget) => {
                let used = device.used.total();
                let share = if budget.0 == 0 { 0.0 } else { used.0 as f64 / budget.0 as f64 };
                let filled = ((share * BAR_WIDTH as f64).ceil() as usize).min(BAR_WIDTH);
                let bar = "█".repeat(filled) + &"░".repeat(BAR_WIDTH - filled);
                writeln!(f, "  {:<6} {bar}  {used} of {budget}  {}", device.device, device.name)?;
            }
            None => return self.write_disk(f, device),
        }
        let parts = [self.computed_by(device), self.stored_for_others(device)];
        let parts = parts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
        let lines = [parts, self.streamed_to_it(device), self.used_by(device), slots_of(device), cache_of(device)];
        lines.iter().filter(|line| !line.is_empty()).try_for_each(|line| writeln!(f, "         {line}"))
    }

    /// What is stored on a device without a budget, which has no usage.
    fn write_disk(&self, f: &mut fmt::Formatter<'_>, device: &DevicePlan) -> fmt::Result {
        let bytes: Bytes = (0..self.units.len())
            .filter(|&unit| !self.is_counted_as_embedding(unit, device.device))
            .map(|unit| self.bytes_at(unit, device.device))
            .sum();
        match self.stored_for_others(device) {
            nothing if nothing.is_empty() => Ok(()),
            stored => writeln!(f, "  {:<6} {stored}: {bytes}", device.device),
        }
    }

    /// Whether a unit is a head that is tied to the embedding, and the embedding is stored on `device`: its bytes there are counted already.
    fn is_counted_as_embedding(&self, unit: usize, device: Device) -> bool {
        let is_tied = self.units[unit].kind == UnitKind::Head && self.units[unit].size_bytes == Bytes::ZERO;
        is_tied && self.units.iter().any(|other| other.kind == UnitKind::Embedding && other.stored_on == device)
    }

    /// `computes 14 of 32 layers and the head`, or nothing.
    fn computed_by(&self, device: &DevicePlan) -> String {
        let computed = self.parts(|_, unit| unit.is_computed_by(device.device));
        if computed.is_none() { String::new() } else { format!("computes {}", computed.of_all(self)) }
    }

    /// What of that streams, where from and how much it is, or nothing.
    fn streamed_to_it(&self, device: &DevicePlan) -> String {
        let streams = |_, unit: &UnitPlan| unit.is_computed_by(device.device) && unit.chunks.clone().any(|chunk| self.streams(chunk));
        let parts = self.parts(streams);
        if parts.is_none() {
            return String::new();
        }
        let from = |source: Device| -> Bytes {
            self.streamed_to(device.device)
                .filter(|&chunk| self.stored_on(chunk) == source)
                .map(|chunk| self.chunks[chunk].stored_bytes())
                .sum()
        };
        let sources = [Device::Cpu, Device::Disk].map(|source| (from(source), source));
        let sources = sources.iter().filter(|(bytes, _)| *bytes > Bytes::ZERO).map(|(bytes, source)| format!("{bytes} from {source}"));
        format!("streams {parts}: {} per token", sources.collect::<Vec<_>>().join(" and "))
    }

    /// What is stored on a device and computed by others, or nothing.
    fn stored_for_others(&self, device: &DevicePlan) -> String {
        let is_of_others = |unit: &UnitPlan| unit.kind == UnitKind::Embedding || unit.execute_on != device.device;
        let parts = self.parts(|index, unit| is_of_others(unit) && self.bytes_at(index, device.device) > Bytes::ZERO);
        if parts.is_none() { String::new() } else { format!("holds {parts}") }
    }

    /// `weights 6.3 GiB · KV cache 614.2 MiB (f16) · activations 140.5 MiB`, or nothing.
    fn used_by(&self, device: &DevicePlan) -> String {
        let dtype = format!(" ({})", self.kv_dtype_of(device.device));
        let used = &device.used;
        let parts = [("weights", used.weights, ""), ("KV cache", used.kv_cache, &*dtype), ("activations", used.activations, "")];
        let parts = parts.iter().filter(|(_, bytes, _)| bytes.0 > 0).map(|(name, bytes, more)| format!("{name} {bytes}{more}"));
        parts.collect::<Vec<_>>().join(" · ")
    }

    fn parts(&self, is_wanted: impl Fn(usize, &UnitPlan) -> bool) -> Parts {
        // The end of a stage, or of an encoder, is no head to speak of.
        let is_empty = |unit: &UnitPlan| self.chunks[unit.chunks.clone()].iter().all(|chunk| chunk.slices.is_empty());
        let named = self.units.iter().enumerate().filter(|(_, unit)| unit.kind != UnitKind::Head || !is_empty(unit));
        let wanted = named.filter(|(index, unit)| is_wanted(*index, unit));
        Parts::of(&wanted.map(|(_, unit)| unit.kind).collect::<Vec<_>>())
    }
}

impl UnitPlan {
    /// No device computes the embedding: the host gathers its rows.
    fn is_computed_by(&self, device: Device) -> bool {
        self.execute_on == device && !self.chunks.is_empty()
    }
}

/// The slots and staging, or nothing.
fn slots_of(device: &DevicePlan) -> String {
    let Some(ring) = &device.ring else { return String::new() };
    let staging = if device.used.staging > Bytes::ZERO { format!(" and staging {}", device.used.staging) } else { String::new() };
    let way = match ring.upload {
        _ if device.device == Device::Cpu => "",
        UploadPath::Mapped => ", mapped",
        UploadPath::Staged => ", staged",
        UploadPath::Written => ", written by the queue",
    };
    let (bytes, each) = (device.used.slots, ring.slot_bytes);
    format!("slots {bytes}{staging}: {} of {each}{way}, filled up to {} ahead", ring.n_slots, ring.lookahead)
}

/// The expert cache, or nothing.
fn cache_of(device: &DevicePlan) -> String {
    let Some(cache) = &device.expert_cache else { return String::new() };
    let (bytes, found) = (device.used.expert_cache, cache.expected_hit_rate() * 100.0);
    let how = if cache.misses.hit_percent.is_some() { "expected" } else { "assumed" };
    let on_host = match cache.misses.host_percent {
        0 => String::new(),
        percent => format!("; of the others, the host computes {percent} %"),
    };
    let (whole, those) = match cache.misses.n_whole {
        0 => (String::new(), "those"),
        n_whole => (format!(", all of {n_whole} of {} layers", cache.n_layers), "the others"),
    };
    format!(
        "expert cache {bytes}: {} of {} experts{whole}, {found:.0} % of {those} that a token takes {how} there{on_host}",
        cache.n_slots, cache.n_experts
    )
}

/// Parts of a model, counted: whole layers, and other parts.
#[derive(Debug, Default, PartialEq)]
struct Parts {
    n_layers: usize,
    n_attention: usize,
    n_feed_forward: usize,
    has_embedding: bool,
    has_head: bool,
}

impl Parts {
    fn of(kinds: &[UnitKind]) -> Parts {
        let mut parts = Parts::default();
        // The parts of a layer are adjacent, attention first.
        let mut open = None;
        for &kind in kinds {
            match kind {
                UnitKind::Embedding => parts.has_embedding = true,
                UnitKind::Head => parts.has_head = true,
                UnitKind::Attention { layer } => {
                    parts.n_attention += 1;
                    open = Some(layer);
                }
                UnitKind::FeedForward { layer } if open == Some(layer) => {
                    parts.n_attention -= 1;
                    parts.n_layers += 1;
                }
                UnitKind::FeedForward { .. } => parts.n_feed_forward += 1,
                UnitKind::Layer { .. } => parts.n_layers += 1,
            }
        }
        parts
    }

    fn is_none(&self) -> bool {
        *self == Parts::default()
    }

    /// As it prints, with the number of all layers.
    fn of_all(&self, plan: &Plan) -> String {
        let n_layers = plan.units.iter().filter(|unit| matches!(unit.kind, UnitKind::Attention { .. } | UnitKind::Layer { .. })).count();
        self.in_words(&format!("{} of {}", self.n_layers, counted(n_layers, "layer")))
    }

    fn in_words(&self, layers: &str) -> String {
        let texts = [
            (self.n_layers > 0).then(|| layers.to_owned()),
            (self.n_attention > 0).then(|| counted(self.n_attention, "attention part")),
            (self.n_feed_forward > 0).then(|| counted(self.n_feed_forward, "MLP part")),
            self.has_embedding.then(|| "the embedding".to_owned()),
            self.has_head.then(|| "the head".to_owned()),
        ];
        listed(&texts.into_iter().flatten().collect::<Vec<_>>())
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_words(&counted(self.n_layers, "layer")))
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
        schedule.prologue.iter().try_for_each(|step| write_step(f, plan, "once", step))?;
        schedule.steps.iter().try_for_each(|step| write_step(f, plan, "", step))?;
        if !schedule.in_halves.is_empty() {
            writeln!(f, "of several sequences in two halves, where that is faster")?;
        }
        schedule.in_halves.iter().try_for_each(|step| write_step(f, plan, "", step))
    }
}

fn write_step(f: &mut fmt::Formatter<'_>, plan: &Plan, when: &str, step: &Step) -> fmt::Result {
    let (verb, chunk) = match *step {
        Step::Transfer { from, to } => return writeln!(f, "{when:>5} transfer           {from} to {to}"),
        Step::StartStage { half, first, last } => {
            let (device, chunks) = (plan.executor(first), counted(last + 1 - first, "chunk"));
            return writeln!(f, "{when:>5} start stage        half {} on {device}: {chunks} from {}", half + 1, plan.chunk_name(first));
        }
        Step::FinishStage { half, last } => {
            return writeln!(f, "{when:>5} finish stage       half {} on {}", half + 1, plan.executor(last));
        }
        Step::Embed => ("embed", None),
        Step::FetchUpload(chunk) => ("fetch+upload", Some(chunk)),
        Step::Upload(chunk) => ("upload", Some(chunk)),
        Step::ComputeResident(chunk) => ("compute", Some(chunk)),
        Step::ComputeStreamed(chunk) => ("compute slot", Some(chunk)),
        Step::ComputeCached(chunk) => ("compute taken", Some(chunk)),
        Step::Readback => ("readback", None),
    };
    match chunk {
        Some(chunk) => writeln!(f, "{when:>5} {verb:<13} {:<40} {:>10}", plan.chunk_name(chunk), plan.chunks[chunk].size_bytes),
        None => writeln!(f, "{when:>5} {verb}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_whole_where_both_parts_are_meant() {
        use UnitKind::{Attention, Embedding, FeedForward, Head};
        let layer = |layer: usize| [Attention { layer }, FeedForward { layer }];
        let text = |kinds: &[UnitKind]| Parts::of(kinds).to_string();
        assert_eq!(text(&[]), "");
        assert_eq!(text(&layer(3)), "1 layer");
        assert_eq!(text(&[&[Embedding][..], &layer(0), &layer(1), &[Head]].concat()), "2 layers, the embedding and the head");
        // Adjacent parts of two layers are no layer.
        assert_eq!(text(&[FeedForward { layer: 0 }, Attention { layer: 1 }]), "1 attention part and 1 MLP part");
        assert_eq!(text(&[Attention { layer: 0 }, FeedForward { layer: 1 }]), "1 attention part and 1 MLP part");
        assert_eq!(text(&[&layer(0)[..], &[FeedForward { layer: 5 }, FeedForward { layer: 7 }]].concat()), "1 layer and 2 MLP parts");
    }

    #[test]
    fn counts_and_lists_are_words() {
        let items = |n: usize| ["a", "b", "c"][..n].iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        assert_eq!([0, 1, 2, 3].map(|n| listed(&items(n))), ["", "a", "a and b", "a, b and c"]);
        assert_eq!((counted(1, "layer"), counted(0, "layer")), ("1 layer".into(), "0 layers".into()));
    }
}
