//! What tests on a GPU share: the one adapter, buffers with data, runs of one kernel, comparison.

#![allow(dead_code, reason = "each test binary uses a part, and one of them all")]

pub mod kv_blocks;
pub mod program;

use std::path::Path;
use std::sync::{LazyLock, Mutex};

use bytemuck::Pod;
use tierflow::device::{AdapterKind, Device, DeviceChoice, GpuLimits};
use tierflow::dtype::DType;
use tierflow::engine::{Engine, TextFiles};
use tierflow::error::Result;
use tierflow::gpu::{self, Buffer, Dispatch, Gpu, ParamsArena, Purpose};
use tierflow::machine::Measure;
use tierflow::model::Unit;
use tierflow::plan::Placement;
use tierflow::units::Bytes;

/// The adapter under WebGPU's default limits, which every kernel must do with; once as it is and once as if it were of the
/// other kind, so that the variants for hardware and for software are both tested. Empty where there is no adapter, which
/// `REQUIRE_GPU=1` turns into a failure.
pub fn gpus() -> &'static [Gpu] {
    static GPUS: LazyLock<Vec<Gpu>> = LazyLock::new(|| {
        let found = pollster::block_on(gpu::list()).expect("listing adapters");
        // Software first: it is the one that every machine can have, so results are comparable.
        let Some(chosen) = found.iter().find(|found| found.spec.kind == Some(AdapterKind::Software)).or(found.first()) else {
            return Vec::new();
        };
        let open = |kind| {
            let mut gpu = pollster::block_on(Gpu::open(chosen, Bytes::gib(2), Some(GpuLimits::default()))).expect("opening the adapter");
            gpu.spec.kind = Some(kind);
            gpu
        };
        vec![open(AdapterKind::Software), open(AdapterKind::Discrete)]
    });
    if GPUS.is_empty() {
        assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|value| value != "1"), "REQUIRE_GPU=1, but there is no adapter");
        eprintln!("SKIP: no adapter; on Debian `apt-get install mesa-vulkan-drivers` gives a software one");
    }
    &GPUS
}

/// A placement for each unit: `assign` takes its index and the number of units, and returns the devices that compute and store it.
pub fn placements(model: &Path, assign: impl Fn(usize, usize) -> (Device, Device)) -> Vec<Placement> {
    let builder = Engine::builder(model).device(DeviceChoice::Cpu).text(TextFiles::Skip).measure(Measure::Never);
    let prepared = pollster::block_on(builder.prepare()).expect("a plan for the host");
    let units = &prepared.model.units;
    let of = |(index, unit): (usize, &Unit)| {
        let (execute_on, stored_on) = assign(index, units.len());
        Placement::new(execute_on, vec![stored_on; unit.matrices().count()])
    };
    units.iter().enumerate().map(of).collect()
}

/// A value that no kernel computes, to show what was left unwritten.
pub const POISON: f32 = -7.25e30;

/// A buffer that holds `values`.
pub fn upload<T: Pod>(gpu: &Gpu, label: &str, values: &[T]) -> Buffer {
    let mut bytes = bytemuck::cast_slice(values).to_vec();
    bytes.resize(bytes.len().next_multiple_of(4).max(4), 0);
    // Buffers are of whole quads of words: what no value fills is poisoned too.
    while !bytes.len().is_multiple_of(gpu::BUFFER_ALIGNMENT as usize) {
        bytes.extend(POISON.to_le_bytes());
    }
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = pollster::block_on(gpu.buffer(label, Bytes(bytes.len() as u64), usage, Purpose::Other)).expect("a buffer");
    gpu.queue.write_buffer(&buffer, 0, &bytes);
    buffer
}

/// A buffer of `len` poisoned values, with as many behind it that nobody may touch.
pub fn poisoned(gpu: &Gpu, len: usize) -> Buffer {
    upload(gpu, "output", &vec![POISON; len + GUARD])
}

/// Values behind every output that must stay poisoned.
pub const GUARD: usize = 64;

/// Runs one dispatch of `params`.
pub fn run<P: Pod>(gpu: &Gpu, params: &P, prepare: impl FnOnce(&wgpu::Buffer) -> Result<Dispatch>) {
    run_with(gpu, params, |buffer| prepare(buffer).map(|dispatch| vec![dispatch]));
}

/// Runs several dispatches of the same params.
pub fn run_with<P: Pod>(gpu: &Gpu, params: &P, prepare: impl FnOnce(&wgpu::Buffer) -> Result<Vec<Dispatch>>) {
    run_all(gpu, &[*params], |buffer, _| prepare(buffer));
}

/// Runs one dispatch for each of `params`, in one submission; more dispatches take the params in turn.
pub fn run_all<P: Pod>(gpu: &Gpu, params: &[P], prepare: impl FnOnce(&wgpu::Buffer, &[P]) -> Result<Vec<Dispatch>>) {
    // One at a time: the tests share a device, and an error must reach the test that caused it.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut arena = pollster::block_on(ParamsArena::new(gpu, params.len())).expect("an arena");
    let offsets: Vec<u32> = params.iter().map(|params| arena.push(gpu, params).expect("room")).collect();
    arena.upload(gpu);
    let dispatches = prepare(arena.buffer(), params).expect("a valid dispatch");
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    for (dispatch, offset) in dispatches.iter().zip(offsets.into_iter().cycle()) {
        dispatch.encode(&mut pass, offset);
    }
    drop(pass);
    gpu.queue.submit([encoder.finish()]);
    gpu.wait(None).expect("no error");
}

/// The first `len` values of an output; what lies behind them must be untouched.
pub fn output(gpu: &Gpu, buffer: &Buffer, len: usize) -> Vec<f32> {
    let mut values = floats(gpu, buffer);
    assert!(values[len..].iter().all(|value| value.to_bits() == POISON.to_bits()), "the kernel wrote past its output");
    values.truncate(len);
    values
}

/// All of a buffer as f32.
pub fn floats(gpu: &Gpu, buffer: &Buffer) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&pollster::block_on(gpu::read(gpu, buffer, 0, buffer.size())).expect("a readback"))
}

/// Fails where a value differs by more than `tolerance` times the largest expected magnitude.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        // Written so that a NaN fails.
        assert!(error <= tolerance * largest, "{what}: value {index} is {found}, expected {expected} (largest {largest})");
    }
}

/// The bits of floats, to compare them exactly.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A small generator of test data, the same on every machine (splitmix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 32 bits.
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 32) as u32
    }

    /// A number from −1 to 1.
    pub fn float(&mut self) -> f32 {
        self.word() as f32 / (1u64 << 31) as f32 - 1.0
    }

    /// `len` numbers from −1 to 1.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// `n_values` stored weights: random bytes, but sane scales.
    pub fn weights(&mut self, dtype: DType, n_values: usize) -> Vec<u8> {
        let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
        match dtype {
            DType::F32 => (0..n_values).flat_map(|_| self.float().to_le_bytes()).collect(),
            DType::F16 => (0..n_values).flat_map(|_| half(self.float())).collect(),
            DType::BF16 => (0..n_values).flat_map(|_| half::bf16::from_f32(self.float()).to_le_bytes()).collect(),
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {
                let mut bytes = Vec::new();
                for _ in 0..n_values / 32 {
                    let scale = self.float() * if dtype == DType::Q8_0 { 0.008 } else { 0.125 };
                    bytes.extend(half(scale));
                    if dtype == DType::Q4_1 {
                        bytes.extend(half(scale * -8.0 + 0.1 * self.float()));
                    }
                    let n_quants = if dtype == DType::Q8_0 { 32 } else { 16 };
                    bytes.extend((0..n_quants).map(|_| self.word() as u8));
                }
                bytes
            }
            DType::Q6K => {
                let mut bytes = Vec::new();
                for _ in 0..n_values / 256 {
                    bytes.extend((0..208).map(|_| self.word() as u8));
                    // Of −128 times −32 there come values up to 1.
                    bytes.extend(half(self.float() / 4096.0));
                }
                bytes
            }
            _ => {
                // Values of about 1: the largest integer times the scale, and a minimum that shifts by half of that.
                let largest = largest_of(dtype);
                let mut bytes: Vec<u8> = (0..dtype.size_bytes(n_values as u64).unwrap()).map(|_| self.word() as u8).collect();
                for block in bytes.chunks_exact_mut(dtype.block_bytes() as usize) {
                    if dtype == DType::MXFP4 {
                        // An exponent: 6 times the power of two is 0.1 to 1.5.
                        block[0] = 121 + block[0] % 5;
                    }
                    if dtype == DType::IQ1M {
                        // A half in the upper four bits of four times two bytes.
                        let [low, high] = half(self.float() / 16.0);
                        for (place, bits) in [(49, low << 4), (51, low), (53, high << 4), (55, high)] {
                            block[place] = block[place] & 15 | bits & 0xF0;
                        }
                    }
                    for (place, largest) in scale_places(dtype).iter().zip(largest) {
                        block[*place..place + 2].copy_from_slice(&half(self.float() / largest));
                    }
                }
                bytes
            }
        }
    }
}

/// Where a block of `dtype` has its f16 values: a scale, and a minimum or its scale.
pub fn scale_places(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q8_0 | DType::Q4_0 | DType::Q5_0 | DType::IQ4NL | DType::IQ4XS => &[0],
        DType::IQ3XXS | DType::IQ3S | DType::IQ2XXS | DType::IQ2XS | DType::IQ2S | DType::IQ1S => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q6K => &[208],
        DType::Q3K => &[108],
        DType::MXFP4 | DType::IQ1M => &[],
        DType::Q2K => &[80, 82],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
    }
}

/// The largest numbers that multiply the f16 values of [`scale_places`].
fn largest_of(dtype: DType) -> [f32; 2] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => [1.0, 1.0],
        DType::Q8_0 => [127.0, 1.0],
        DType::Q4_0 => [8.0, 1.0],
        DType::Q4_1 => [8.0, 2.0],
        DType::Q6K => [4096.0, 1.0],
        DType::Q5_0 => [16.0, 1.0],
        DType::Q5_1 => [16.0, 2.0],
        DType::Q4K => [512.0, 64.0],
        DType::Q5K => [1024.0, 64.0],
        DType::Q3K => [128.0, 1.0],
        DType::IQ4NL => [128.0, 1.0],
        DType::IQ4XS => [4096.0, 1.0],
        DType::MXFP4 | DType::TQ1_0 | DType::TQ2_0 => [1.0, 1.0],
        DType::Q2K => [32.0, 16.0],
        DType::IQ3XXS => [512.0, 1.0],
        DType::IQ3S => [512.0, 1.0],
        DType::IQ2XXS | DType::IQ2XS | DType::IQ2S => [256.0, 1.0],
        DType::IQ1S => [16.0, 1.0],
        DType::IQ1M => [1.0, 1.0],
    }
}
