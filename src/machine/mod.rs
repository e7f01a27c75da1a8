//! The machine as device specs: adapters, host memory, disk; and their rates, measured once and kept.
//! Also reads the description of a machine that is not here. Decides nothing about placement.

mod adapter;
mod busy;
mod cache;
mod devices_file;
mod disk;
mod effort;
mod host;
mod memory;
mod products;
mod report;
mod variants;

use std::path::Path;

use crate::device::{AdapterKind, Aspect, Device, DeviceSpec, Rates, Sample};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{self, AdapterFound};
use crate::platform::{self, HostMemory};
use crate::units::Bytes;
use busy::Watch;
pub use cache::RATES_FILE;
pub use devices_file::{DevicesFile, parse_devices, read_devices_file};
use effort::Effort;
pub use report::{AdapterReport, adapter_reports};

/// Share of the host's free memory that a plan may use when no budget is given: the rest is for everybody else.
const HOST_SHARE: f64 = 0.8;

/// Whether a rate may be measured that is not known, and how well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Only what was measured before.
    Never,
    /// What was measured before, else measured now: about two seconds for an adapter besides what compiling its kernels takes, and
    /// half of one for the host and the disk. Of an adapter's products, those in the dtypes that are asked for. In a browser, less than
    /// a second for each beside compiling, without the disk, and of the host too those dtypes alone.
    Quick,
    /// Measured now, even where rates are known: some seconds for each device.
    Full,
    /// As [`Measure::Full`], after a search for the fastest kernels of every dtype: up to a minute for each adapter.
    Tune,
}

impl Measure {
    /// Whether what is known is measured again.
    fn is_anew(self) -> bool {
        matches!(self, Measure::Full | Measure::Tune)
    }
}

/// Every device of this machine, with its rates.
///
/// # Errors
/// Those of asking the drivers and of measuring.
pub async fn list(measure: Measure) -> Result<DevicesFile> {
    platform::start_threads(None)?;
    let mut found = DevicesFile::new(Vec::new(), Default::default());
    for mut adapter in adapters().await? {
        if measure.is_anew() {
            try_memory(&mut adapter).await?;
        }
        adapter.spec.rates = rates_of(&adapter, measure, &DType::ALL).await?;
        found.features.insert(adapter.spec.device, adapter.features);
        found.devices.push(adapter.spec);
    }
    found.devices.push(DeviceSpec { rates: host_rates(measure, &DType::ALL).await, ..host_spec() });
    found.devices.push(DeviceSpec { rates: disk_rates(None, measure)?, ..disk_spec() });
    Ok(found)
}

/// All adapters, numbered `gpu:0`, `gpu:1`, ...; real GPUs first. Their rates are not looked up: see [`rates_of`].
///
/// # Errors
/// Those of asking the drivers.
pub async fn adapters() -> Result<Vec<AdapterFound>> {
    let mut adapters = gpu::list().await?;
    for found in &mut adapters {
        found.spec.rates = assumed_here(found.spec.device, found.spec.kind);
    }
    for found in adapters.iter_mut().filter(|found| memory::is_worth_trying(found)) {
        if let Some(size) = cache::find_memory(&key_of(found)) {
            found.set_memory(size, &tried(size));
        }
    }
    Ok(adapters)
}

/// Finds out how much memory an adapter has that reports none, by allocating it; keeps the answer for later plans.
/// Nothing happens where the driver reports, or the adapter is software.
///
/// # Errors
/// Where the adapter cannot be opened or fails otherwise than by refusing.
pub async fn try_memory(found: &mut AdapterFound) -> Result<()> {
    if memory::is_worth_trying(found) {
        let size = memory::take_all(found).await?;
        cache::keep_memory(key_of(found), size);
        found.set_memory(size, &tried(size));
    }
    Ok(())
}

fn tried(size: Bytes) -> String {
    format!("no report: {size} were given when tried")
}

/// By the driver's own name, and anew where the driver changes.
fn key_of(found: &AdapterFound) -> String {
    format!("{} | {}", found.adapter.get_info().name, found.spec.driver)
}

/// Host memory and its cores, with the rates that are known.
pub fn host_spec() -> DeviceSpec {
    let HostMemory { total, available } = platform::host_memory();
    DeviceSpec {
        device: Device::Cpu,
        name: platform::cpu_name(),
        vendor: 0,
        driver: format!("{} threads", platform::n_compute_threads()),
        kind: None,
        capacity: Some(Bytes((available.0 as f64 * HOST_SHARE) as u64)),
        capacity_source: format!("80 % of the {available} that are free, of {total}"),
        limits: None,
        rates: host_rates_of(known(&host_key(), Measure::Never)),
    }
}

/// The disk of the model's files, with the rates that are known of the disk on which this user's caches lie.
/// For the disk of one model: [`disk_rates`].
pub fn disk_spec() -> DeviceSpec {
    // Nothing is measured, so nothing can fail.
    disk_with(disk_rates(None, Measure::Never).unwrap_or_default())
}

fn disk_with(rates: Rates) -> DeviceSpec {
    DeviceSpec {
        device: Device::Disk,
        name: "the model's files".into(),
        vendor: 0,
        driver: String::new(),
        kind: None,
        capacity: None,
        capacity_source: String::new(),
        limits: None,
        rates,
    }
}

/// The rates of an adapter, kept per adapter and driver. Among them are those of products in `dtypes`, or in what
/// [they are measured as](DType::measured_as), and in single precision, from which the time of attention follows. Empty, or without some of
/// them, where they are not known and `measure` forbids to find out.
///
/// # Errors
/// Where nothing is known, and the adapter cannot be opened or a probe fails. A cache that cannot be read or written is no error.
pub async fn rates_of(found: &AdapterFound, measure: Measure, dtypes: &[DType]) -> Result<Rates> {
    let key = key_of(found);
    let Known { known, before } = known(&key, measure);
    let new = new_of_adapter(known.as_ref(), dtypes);
    match (known, Effort::of(measure)) {
        (None, Some(effort)) => {
            let watch = Watch::start();
            let rates = adapter::measure(found, &effort, &new, dtypes).await?;
            Ok(cache::keep(key, watch.end(rates, before)))
        }
        (Some(known), Some(effort)) if !new.is_empty() || adapter::lacks_variants(found, &effort, dtypes, &known.variants) => {
            match adapter::measure_products(found, &effort, &new, dtypes, &known.variants).await {
                Ok(products) => Ok(cache::keep(key, known.with_products(products))),
                Err(error) => {
                    tracing::warn!("the rates of {} were not measured in {new:?}: {error}", found.spec.name);
                    Ok(known)
                }
            }
        }
        (known, _) => Ok(known.or(before).unwrap_or_default().or(&found.spec.rates)),
    }
}

/// Whether [`rates_of`] would measure: rates of the adapter are not known that are asked for.
pub fn is_to_be_measured(found: &AdapterFound, measure: Measure, dtypes: &[DType]) -> bool {
    let Known { known, .. } = known(&key_of(found), measure);
    let lacks = |known: &Rates, effort| adapter::lacks_variants(found, effort, dtypes, &known.variants);
    let is_due = |effort| known.as_ref().is_none_or(|known| !new_of_adapter(Some(known), dtypes).is_empty() || lacks(known, effort));
    Effort::of(measure).as_ref().is_some_and(is_due)
}

/// What an adapter is measured in for `dtypes`, beside what is `known` of it.
fn new_of_adapter(known: Option<&Rates>, dtypes: &[DType]) -> Vec<DType> {
    let is_asked_for = |dtype: &DType| *dtype == DType::F32 || dtypes.iter().any(|asked| asked.measured_as() == *dtype);
    without_known(known, DType::measured().filter(is_asked_for))
}

/// Those of `dtypes` that no product was measured in.
fn without_known(known: Option<&Rates>, dtypes: impl IntoIterator<Item = DType>) -> Vec<DType> {
    let is_new = |dtype: &DType| known.is_none_or(|known| !known.matvec.contains_key(dtype));
    dtypes.into_iter().filter(is_new).collect()
}

/// Rates that are assumed of a device that is reached in an unusual way, which plans cannot know.
fn assumed_here(device: Device, kind: Option<AdapterKind>) -> Rates {
    if platform::MAY_BLOCK { Rates::default() } else { Rates::assumed_in_browser(device, kind) }
}

/// The rates of the host's copies and products, kept per processor and number of threads that compute: products in every dtype, but in a
/// browser in `dtypes`.
pub async fn host_rates(measure: Measure, dtypes: &[DType]) -> Rates {
    let key = host_key();
    let found = known(&key, measure);
    let new = without_known(found.known.as_ref(), host::dtypes_for(dtypes));
    let Some(effort) = Effort::of(measure).filter(|_| !new.is_empty()) else { return host_rates_of(found) };
    let watch = Watch::start();
    let rates = host::measure(&effort, &new, platform::host_memory().available).await;
    match found {
        // What could not be measured is tried again by the next run.
        found if rates.is_empty() => host_rates_of(found),
        Known { known: None, before } => cache::keep(key, watch.end(rates, before)),
        Known { known: Some(known), .. } => cache::keep(key, known.with_products(rates)),
    }
}

/// Whether [`host_rates`] would measure.
pub fn is_host_to_be_measured(measure: Measure, dtypes: &[DType]) -> bool {
    let found = known(&host_key(), measure);
    measure != Measure::Never && !without_known(found.known.as_ref(), host::dtypes_for(dtypes)).is_empty()
}

/// The host's rates that are known, or assumed here.
fn host_rates_of(Known { known, before }: Known) -> Rates {
    known.or(before).unwrap_or_default().or(&assumed_here(Device::Cpu, None))
}

/// How fast the disk of `model` is read, kept per file system: `model` is a file, or a folder whose largest file is read.
/// Without a model, or where its files are too small to measure, a new file beside this user's caches is read instead.
///
/// # Errors
/// [`crate::error::Error::Io`] where a file cannot be written or read.
pub fn disk_rates(model: Option<&Path>, measure: Measure) -> Result<Rates> {
    let subject = disk::subject(model);
    let key = disk_key(&subject);
    let Known { known, before } = known(&key, measure);
    // A browser's storage is read by whoever opens the model.
    match (known, Effort::of(measure).filter(|_| platform::MAY_BLOCK)) {
        (None, Some(effort)) => {
            let watch = Watch::start();
            let rates = disk::measure(&subject, &effort)?;
            Ok(cache::keep(key, watch.end(rates, before)))
        }
        (known, _) => Ok(known.or(before).unwrap_or_default()),
    }
}

fn host_key() -> String {
    // Code that is not optimised tells nothing of code that is.
    let build = if cfg!(debug_assertions) { " | debug build" } else { "" };
    format!("cpu | {} | {} threads{build}", platform::cpu_name(), platform::n_compute_threads())
}

fn disk_key(subject: &disk::Subject) -> String {
    format!("disk | {}", subject.file_system())
}

/// Counts what a run showed of `spec`'s rates, which were looked up for it: later plans take them as runs have shown them to be.
/// `model` is the file or folder that was read. Nothing happens where its rates are not kept.
pub fn correct(spec: &DeviceSpec, adapters: &[AdapterFound], model: Option<&Path>, aspect: Aspect, factor: f64, waited: f64) {
    let key = match spec.device {
        Device::Cpu => Some(host_key()),
        Device::Disk => Some(disk_key(&disk::subject(model))),
        Device::Gpu(_) => adapters.iter().find(|found| found.spec.device == spec.device).map(key_of),
    };
    if let Some(key) = key {
        let sample = Sample { factor, waited, at: platform::clock::unix_seconds() };
        cache::correct(&key, aspect, sample, spec.rates.measured_at);
    }
}

/// The rates kept of a device.
struct Known {
    /// Those to take.
    known: Option<Rates>,
    /// Those of a busy machine, to be measured once more.
    before: Option<Rates>,
}

/// The rates kept under `key`, unless they are to be measured anew.
fn known(key: &str, measure: Measure) -> Known {
    let found = if measure.is_anew() { None } else { cache::find(key) };
    let is_due = |rates: &Rates| measure == Measure::Quick && busy::wants_another(rates, platform::clock::unix_seconds());
    if found.as_ref().is_some_and(is_due) { Known { known: None, before: found } } else { Known { known: found, before: None } }
}
