//! Saved plans: files from which a plan is made again, byte for byte. A file has the plan itself and the decisions behind it. The plan is
//! built anew from the decisions, and refused where it differs from the one in the file, so that nothing else of the file is trusted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::device::{AdapterKind, Device, DeviceSpec, GpuLimits, no_gpu};
use crate::error::{Error, Remedy, Result, Setting};
use crate::model::Model;
use crate::plan::build::{Build, Cutting, Outcome, Rings};
use crate::plan::candidates::placements_of;
use crate::plan::planner::{N_SLOTS_MAX, check_placements};
use crate::plan::refusal::Refusal;
use crate::plan::shape::Shape;
use crate::plan::site::Site;
use crate::plan::{ForwardSize, KvDType, PLAN_SCHEMA, Placement, Plan, PlanOptions, RingPlan, UploadPath};
use crate::units::Bytes;
use crate::weights::Catalog;

/// A plan that was written to a file, to be made again for the same model on the same devices.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedPlan {
    /// Where it was read.
    path: String,
    made_for: MadeFor,
    placements: Vec<Placement>,
    decisions: Decisions,
    /// The plan as it is written.
    written: Value,
}

/// What identifies the model and the devices that a plan was made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct MadeFor {
    model: ModelMark,
    devices: Vec<DeviceMark>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ModelMark {
    name: String,
    n_layers: usize,
    n_tensors: usize,
    size_bytes: Bytes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DeviceMark {
    device: Device,
    name: String,
    kind: Option<AdapterKind>,
    limits: Option<GpuLimits>,
}

/// The decisions of the planner in a written plan.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Decisions {
    devices: Vec<DeviceRow>,
    ctx_size: usize,
    n_seqs: usize,
    #[serde(default)]
    kv_size: Option<usize>,
    forward: ForwardSize,
    kv_dtype: KvDType,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct DeviceRow {
    device: Device,
    budget: Option<Bytes>,
    budget_source: String,
    ring: Option<RingPlan>,
}

impl Plan {
    /// What `tierflow plan --export-plan` writes, and [`SavedPlan::from_json`] reads.
    pub fn to_saved_json(&self, catalog: &Catalog, model: &Model, devices: &[DeviceSpec]) -> Value {
        let takes_part = |spec: &&DeviceSpec| self.device(spec.device).is_some();
        let made_for =
            MadeFor { model: ModelMark::of(catalog, model), devices: devices.iter().filter(takes_part).map(DeviceMark::of).collect() };
        serde_json::json!({ "schema": PLAN_SCHEMA, "made_for": made_for, "placements": placements_of(self), "plan": self })
    }
}

impl ModelMark {
    fn of(catalog: &Catalog, model: &Model) -> ModelMark {
        ModelMark {
            name: model.config.name.clone(),
            n_layers: model.config.n_layers,
            n_tensors: catalog.tensors.len(),
            size_bytes: catalog.size_bytes(),
        }
    }

    /// How `other` differs, in words.
    fn difference(&self, other: &ModelMark) -> Option<String> {
        let differs = |what: &str, own: &dyn std::fmt::Display, other: &dyn std::fmt::Display| {
            let (own, other) = (own.to_string(), other.to_string());
            (own != other).then(|| format!("that one has the {what} {}, this one {}", quoted(&own), quoted(&other)))
        };
        differs("name", &self.name, &other.name)
            .or_else(|| differs("number of layers", &self.n_layers, &other.n_layers))
            .or_else(|| differs("number of tensors", &self.n_tensors, &other.n_tensors))
            .or_else(|| differs("size in bytes", &self.size_bytes.0, &other.size_bytes.0))
    }
}

impl DeviceMark {
    fn of(spec: &DeviceSpec) -> DeviceMark {
        DeviceMark { device: spec.device, name: spec.name.clone(), kind: spec.kind, limits: spec.limits }
    }

    /// How `other` differs, in words.
    fn difference(&self, other: &DeviceMark) -> Option<String> {
        let device = self.device;
        if self.name != other.name {
            return Some(format!("{device} was {} and is {}", quoted(&self.name), quoted(&other.name)));
        }
        if self.kind != other.kind {
            return Some(format!("{device} was of the kind {:?} and is of {:?}", self.kind, other.kind));
        }
        let (own, other) = (self.limits.unwrap_or_default(), other.limits.unwrap_or_default());
        let of = |limits: GpuLimits| {
            let GpuLimits { max_buffer_bytes, max_binding_bytes, storage_alignment, max_workgroups } = limits;
            format!("buffers of {max_buffer_bytes}, bindings of {max_binding_bytes} at {storage_alignment}, {max_workgroups} workgroups")
        };
        (own != other).then(|| format!("{device} allowed {} and allows {}", of(own), of(other)))
    }
}

/// A text from a file, for a message: quoted, with control characters escaped, and cut where it is long.
fn quoted(text: &str) -> String {
    const N_CHARS: usize = 80;
    let cut: String = text.chars().take(N_CHARS).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", cut.escape_debug())
}

/// A message that may quote a file, with control characters escaped.
fn printable(message: &impl std::fmt::Display) -> String {
    let escaped = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    message.to_string().chars().map(escaped).collect()
}

impl SavedPlan {
    /// Reads what `tierflow plan --json` or `--export-plan` wrote; `path` is what errors call it.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for what is no such file.
    pub fn from_json(json: &str, path: &str) -> Result<SavedPlan> {
        let invalid = |reason: String| Error::invalid_file(path, reason);
        let mut document: Value = serde_json::from_str(json).map_err(|error| invalid(format!("is no JSON: {error}")))?;
        match document.get("schema").and_then(Value::as_str) {
            Some(PLAN_SCHEMA) => {}
            Some(other) => return Err(invalid(format!("has the schema {}, where {PLAN_SCHEMA} is read", quoted(other)))),
            None => {
                let reason = format!("is no plan, whose `schema` is {PLAN_SCHEMA}");
                let advice = [Remedy::Write(Setting::SavedPlan)].into();
                return Err(Error::InvalidFile { path: path.to_owned(), reason, advice });
            }
        }
        let mut take = |key: &str| document.get_mut(key).map(Value::take).ok_or_else(|| invalid(format!("`{key}` is missing")));
        let (made_for, placements, written) = (take("made_for")?, take("placements")?, take("plan")?);
        let saved = SavedPlan {
            path: path.to_owned(),
            made_for: serde_json::from_value(made_for).map_err(|error| invalid(format!("`made_for`: {}", printable(&error))))?,
            placements: serde_json::from_value(placements).map_err(|error| invalid(format!("`placements`: {}", printable(&error))))?,
            decisions: Decisions::deserialize(&written).map_err(|error| invalid(format!("`plan`: {}", printable(&error))))?,
            written,
        };
        saved.check_domains()?;
        Ok(saved)
    }

    /// Who computes, in the order of the computation.
    pub fn executors(&self) -> Vec<Device> {
        let mut executors = Vec::new();
        for placement in self.placements.iter().skip(1) {
            if !executors.contains(&placement.execute_on) {
                executors.push(placement.execute_on);
            }
        }
        executors
    }

    /// Refuses decisions that no options could ask the planner for.
    fn check_domains(&self) -> Result<()> {
        let Decisions { devices, ctx_size, n_seqs, kv_size, forward, .. } = &self.decisions;
        let sizes = [
            ("kv_size", kv_size.unwrap_or(*ctx_size)),
            ("ctx_size", *ctx_size),
            ("n_seqs", *n_seqs),
            ("forward.n_tokens", forward.n_tokens),
            ("forward.n_logit_rows", forward.n_logit_rows),
            ("forward.n_positions", forward.n_positions),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..=u32::MAX as usize).contains(size)) {
            return Err(self.invalid(format!("`plan.{name}` is {size}, and must be in 1..={}", u32::MAX)));
        }
        if forward.n_logit_rows > forward.n_tokens {
            return Err(self.invalid("`plan.forward` has more rows of logits than tokens".into()));
        }
        let rings = devices.iter().filter_map(|row| row.ring);
        if let Some(ring) = rings.into_iter().find(|ring| !(1..=N_SLOTS_MAX).contains(&ring.n_slots)) {
            return Err(self.invalid(format!("a ring has {} slots, and must have 1 to {N_SLOTS_MAX}", ring.n_slots)));
        }
        if devices.iter().any(|row| row.budget_source.chars().any(char::is_control)) {
            return Err(self.invalid("`plan.devices` has a `budget_source` with control characters".into()));
        }
        match self.executors().as_slice() {
            [] => Err(self.invalid("nothing computes by it".into())),
            executors if executors.contains(&Device::Disk) => Err(self.invalid("the disk is to compute by it".into())),
            _ => Ok(()),
        }
    }

    /// The plan itself, within the budgets that `devices` and `max_memory` give.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another model or other devices, and [`Error::NoGpu`] for one that is not there, with what differs;
    /// [`Error::DoesNotFit`] where the memory that there is now is too small; [`Error::InvalidFile`] where the file's plan does not follow
    /// from its own decisions.
    pub(super) fn make(
        &self,
        catalog: &Catalog,
        model: &Model,
        devices: &[DeviceSpec],
        max_memory: &BTreeMap<Device, Bytes>,
    ) -> Result<Plan> {
        self.check_origin(catalog, model, devices)?;
        let mut plan = self.build(catalog, model, devices)?;
        for row in &mut plan.devices {
            let saved = self.row(row.device);
            row.budget_source = saved.map(|saved| saved.budget_source.clone()).unwrap_or_default();
        }
        let made = serde_json::to_value(&plan).map_err(|error| self.invalid(error.to_string()))?;
        if let Some(place) = first_difference(&made, &self.written, String::new()) {
            let reason = "it was changed, or written for other files or by another version; export it again";
            return Err(self.invalid(format!("the plan that follows from its placements differs at {place}: {reason}")));
        }
        self.check_budgets(&plan, catalog, model, devices, max_memory)?;
        Ok(plan)
    }

    fn check_origin(&self, catalog: &Catalog, model: &Model, devices: &[DeviceSpec]) -> Result<()> {
        let other =
            |reason: String| Error::InvalidArgument { option: Setting::SavedPlan.into(), reason: format!("{} {reason}", self.path) };
        if let Some(difference) = self.made_for.model.difference(&ModelMark::of(catalog, model)) {
            return Err(other(format!("was made for another model: {difference}")));
        }
        for mark in &self.made_for.devices {
            let Some(spec) = devices.iter().find(|spec| spec.device == mark.device) else {
                return Err(no_gpu(format!("{} needs {} ({})", self.path, mark.device, quoted(&mark.name)), devices));
            };
            if let Some(difference) = mark.difference(&DeviceMark::of(spec)) {
                return Err(other(format!("was made for other devices: {difference}")));
            }
            let cannot_map = !spec.rates.is_empty() && spec.rates.upload_mapped.is_none();
            if cannot_map && self.ring(mark.device).is_some_and(|ring| ring.upload == UploadPath::Mapped) {
                return Err(other(format!("uses mapped slots, and {} cannot map memory that its kernels read", mark.device)));
            }
        }
        Ok(())
    }

    /// The plan that follows from the decisions, in the budgets that it was made in.
    fn build(&self, catalog: &Catalog, model: &Model, devices: &[DeviceSpec]) -> Result<Plan> {
        let Decisions { ctx_size, n_seqs, kv_size, forward, kv_dtype, .. } = self.decisions;
        let ring = self.decisions.devices.iter().find_map(|row| row.ring);
        let budgets = self.decisions.devices.iter().filter_map(|row| Some((row.device, row.budget?)));
        let options = PlanOptions {
            compute_on: self.executors(),
            max_memory: budgets.collect(),
            ctx_size: Some(ctx_size),
            n_seqs,
            kv_size,
            kv_dtype,
            lookahead: ring.map(|ring| ring.lookahead),
            ..PlanOptions::default()
        };
        let mut site = Site::new(catalog, model, devices, &options)?;
        for worker in &mut site.workers {
            worker.upload = self.ring(worker.device).map_or(worker.upload, |ring| ring.upload);
        }
        check_placements(&site, &self.placements).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => self.invalid(reason),
            other => other,
        })?;
        let cutting = |ring: RingPlan| Cutting { slot_bytes: ring.cut_bytes, as_in_files: ring.as_in_files };
        let cuttings: Vec<Option<Cutting>> = site.workers.iter().map(|worker| self.ring(worker.device).map(cutting)).collect();
        let build = Build {
            site: &site,
            shape: Shape { forward, ctx_size, n_slots: ring.map_or(1, |ring| ring.n_slots) },
            budgets: &site.budgets(),
            placements: &self.placements,
            n_dispatches: &[],
            rings: Rings::Given(&cuttings),
        };
        match build.plan() {
            Ok(Outcome::Made(plan)) => Ok(*plan),
            Ok(Outcome::NeedsDispatches(..)) | Err(Refusal::Budget) => {
                Err(self.invalid("its placements do not fit the budgets that it names; export it again".into()))
            }
            Err(Refusal::Limit(error)) => Err(error),
        }
    }

    /// Refuses a plan for which there is less memory now.
    fn check_budgets(
        &self,
        plan: &Plan,
        catalog: &Catalog,
        model: &Model,
        devices: &[DeviceSpec],
        max_memory: &BTreeMap<Device, Bytes>,
    ) -> Result<()> {
        let options = PlanOptions { compute_on: plan.executors(), max_memory: max_memory.clone(), ..PlanOptions::default() };
        let site = Site::new(catalog, model, devices, &options)?;
        let used = |device: Device| plan.device(device).map(|row| row.used.total()).unwrap_or_default();
        let shared = site.workers.iter().filter(|worker| worker.shares_host_memory()).map(|worker| used(worker.device)).sum();
        let of_workers = site.workers.iter().filter(|worker| worker.device != Device::Cpu).map(|worker| (worker.device, worker.budget));
        for (device, available) in of_workers.chain([(Device::Cpu, site.host_budget(shared))]) {
            let needed = used(device);
            if needed > available {
                let device = device.to_string();
                let advice = [
                    Remedy::RaiseBudget(device.clone()),
                    Remedy::other("free memory there"),
                    Remedy::Drop(Setting::SavedPlan, "for a plan of what there is"),
                ];
                return Err(Error::DoesNotFit { device, needed, available, advice: advice.into() });
            }
        }
        Ok(())
    }

    fn row(&self, device: Device) -> Option<&DeviceRow> {
        self.decisions.devices.iter().find(|row| row.device == device)
    }

    fn ring(&self, device: Device) -> Option<RingPlan> {
        self.row(device).and_then(|row| row.ring)
    }

    fn invalid(&self, reason: String) -> Error {
        Error::invalid_file(&self.path, reason)
    }
}

/// Where two values first differ, as a JSON pointer appended to `place`.
fn first_difference(own: &Value, other: &Value, place: String) -> Option<String> {
    match (own, other) {
        (Value::Object(own), Value::Object(other)) => {
            let keys = own.keys().chain(other.keys().filter(|key| !own.contains_key(*key)));
            let differs = |key: &String| {
                let place = format!("{place}/{}", key.escape_debug());
                match (own.get(key), other.get(key)) {
                    (Some(own), Some(other)) => first_difference(own, other, place),
                    _ => Some(place),
                }
            };
            keys.into_iter().find_map(differs)
        }
        (Value::Array(own), Value::Array(other)) if own.len() == other.len() => {
            let pairs = own.iter().zip(other).enumerate();
            pairs.into_iter().find_map(|(index, (own, other))| first_difference(own, other, format!("{place}/{index}")))
        }
        _ => (own != other).then(|| if place.is_empty() { "/".into() } else { place }),
    }
}
