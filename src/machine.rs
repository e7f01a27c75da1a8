//! The machine as device specs: adapters, host memory, disk; and the rates measured on them, cached per adapter and driver.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use crate::device::{Device, DeviceSpec, Rates};
use crate::error::{Error, Result};
use crate::gpu::{self, AdapterFound, Gpu, Purpose};
use crate::platform::{self, HostMemory};
use crate::units::{Bytes, BytesPerSec};

/// Share of the host's free memory that a plan may use when no budget is given: the rest is for everybody else.
const HOST_SHARE: f64 = 0.8;
/// What one probe of the upload paths moves.
const PROBE_BYTES: Bytes = Bytes::mib(8);
/// How often it does so; the median counts.
const PROBE_RUNS: usize = 5;

/// All adapters, numbered `gpu:0`, `gpu:1`, ...; real GPUs first.
///
/// # Errors
/// Those of asking the drivers.
pub async fn adapters() -> Result<Vec<AdapterFound>> {
    gpu::list().await
}

/// Host memory and its cores.
pub fn host_spec() -> DeviceSpec {
    let HostMemory { total, available } = platform::host_memory();
    DeviceSpec {
        device: Device::Cpu,
        name: platform::cpu_name(),
        driver: format!("{} threads", platform::n_threads()),
        kind: None,
        capacity: Some(Bytes((available.0 as f64 * HOST_SHARE) as u64)),
        capacity_source: format!("80 % of the {available} that are free, of {total}"),
        limits: None,
        rates: Rates::default(),
    }
}

/// The disk of the model's files.
pub fn disk_spec() -> DeviceSpec {
    DeviceSpec {
        device: Device::Disk,
        name: "the model's files".into(),
        driver: String::new(),
        kind: None,
        capacity: None,
        capacity_source: String::new(),
        limits: None,
        rates: Rates::default(),
    }
}

/// The rates of both upload paths of an adapter: from the cache, else measured (a tenth of a second) and cached.
///
/// # Errors
/// Where the adapter cannot be opened. A cache that cannot be read or written is no error.
pub async fn upload_rates(found: &AdapterFound) -> Result<Rates> {
    let key = format!("{} | {}", found.spec.name, found.spec.driver);
    let mut cache = read_cache();
    if let Some(rates) = cache.get(&key) {
        return Ok(*rates);
    }
    let rates = measure_uploads(found).await?;
    cache.insert(key, rates);
    write_cache(&cache);
    Ok(rates)
}

/// Measures both upload paths now.
///
/// # Errors
/// Where the adapter cannot be opened or a transfer fails.
pub async fn measure_uploads(found: &AdapterFound) -> Result<Rates> {
    let gpu = Gpu::open(found, Bytes(PROBE_BYTES.0 * 4), None).await?;
    let mut rates = Rates { upload_staged: Some(probe(&gpu, false).await?), ..Rates::default() };
    if gpu.mappable {
        rates.upload_mapped = Some(probe(&gpu, true).await?);
    }
    Ok(rates)
}

/// One path's rate: host memory to where kernels can read it, waiting for each transfer.
async fn probe(gpu: &Gpu, mapped: bool) -> Result<BytesPerSec> {
    let map = wgpu::BufferUsages::MAP_WRITE;
    let (host_usage, slot_usage) = (map | wgpu::BufferUsages::COPY_SRC, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST);
    let host_usage = if mapped { map | wgpu::BufferUsages::STORAGE } else { host_usage };
    let memory = gpu.buffer("probe", PROBE_BYTES, host_usage, Purpose::Staging).await?;
    let slot = if mapped { None } else { Some(gpu.buffer("probe slot", PROBE_BYTES, slot_usage, Purpose::Slots).await?) };
    let bytes = vec![0x5a_u8; PROBE_BYTES.0 as usize];
    let failed = |fault: String| Error::Gpu { adapter: gpu.spec.name.clone(), fault: format!("the upload probe failed: {fault}") };
    let mut secs = Vec::with_capacity(PROBE_RUNS);
    for _ in 0..PROBE_RUNS {
        let begin = Instant::now();
        let (sender, receiver) = futures_channel::oneshot::channel();
        memory.slice(..).map_async(wgpu::MapMode::Write, move |result| drop(sender.send(result)));
        gpu.wait(None)?;
        receiver.await.map_err(|fault| failed(fault.to_string()))?.map_err(|fault| failed(fault.to_string()))?;
        memory.slice(..).get_mapped_range_mut().map_err(|fault| failed(fault.to_string()))?.copy_from_slice(&bytes);
        memory.unmap();
        if let Some(slot) = &slot {
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&memory, 0, slot, 0, PROBE_BYTES.0);
            gpu.queue.submit([encoder.finish()]);
        }
        gpu.wait(None)?;
        secs.push(begin.elapsed().as_secs_f64());
    }
    gpu.check()?;
    secs.sort_by(f64::total_cmp);
    Ok(BytesPerSec::from_transfer(PROBE_BYTES, secs[PROBE_RUNS / 2]))
}

fn cache_file() -> Option<PathBuf> {
    Some(platform::cache_folder()?.join("rates.json"))
}

fn read_cache() -> BTreeMap<String, Rates> {
    let read = || serde_json::from_slice(&std::fs::read(cache_file()?).ok()?).ok();
    read().unwrap_or_default()
}

fn write_cache(cache: &BTreeMap<String, Rates>) {
    let Some(path) = cache_file() else { return };
    if let Ok(text) = serde_json::to_vec_pretty(cache)
        && let Err(error) = platform::write_atomically(&path, &text)
    {
        tracing::debug!("the measured rates were not cached: {error}");
    }
}
