//! What a token costs the host's allocator: hardly more in a larger model, but for what wgpu itself needs to record.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use tierflow::device::Device;
use tierflow::engine::{Engine, TextFiles};
use tierflow::stream::{Batch, BatchToken, LogitsRequest};
use xtask::models::{LlamaShape, Stored, write_hf};

/// The system's allocator, with a count of what was asked of it, by any thread.
struct Counting;

static N_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as of the caller.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens that are counted together.
const N_TOKENS: u32 = 16;
/// Windows of so many tokens, the first of which is not counted.
const N_WINDOWS: u32 = 16;

/// What wgpu may allocate for the dispatches of a layer.
const MAX_OF_WGPU: f64 = 40.0;

/// Allocations per token that is decoded, in the mean.
fn per_token(device: Device, n_layers: usize) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    write_hf(&folder.path().join("model"), &LlamaShape { n_layers, ..LlamaShape::tiny() }, 5, Stored::BF16, 1).unwrap();
    let builder =
        Engine::builder(folder.path().join("model")).compute_on([device]).text(TextFiles::Skip).ctx_size((N_TOKENS * N_WINDOWS) as usize);
    let mut engine = pollster::block_on(builder.open()).unwrap();
    let mut decode = |position: u32| {
        let tokens = vec![BatchToken { token: position % 7, sequence: 0, position }];
        pollster::block_on(engine.forward(&Batch { tokens, logits_for: vec![0], logits_request: LogitsRequest::TopK(1) })).unwrap();
    };
    (0..N_TOKENS).for_each(&mut decode);
    // An adapter that other work slows down gets more submissions, each with allocations of its own: the quietest window counts.
    let windows = (1..N_WINDOWS).map(|window| {
        let before = N_ALLOCATIONS.load(Ordering::Relaxed);
        (window * N_TOKENS..(window + 1) * N_TOKENS).for_each(&mut decode);
        N_ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    windows.min().unwrap_or_default() as f64 / f64::from(N_TOKENS)
}

/// One test, so that no other thread of the process allocates beside it.
#[test]
fn a_token_costs_the_allocator_little_more_in_a_larger_model() {
    let per_layer = |device: Device| {
        let [few, many] = [2, 12].map(|n_layers| per_token(device, n_layers));
        println!("{device}: {few} allocations a token with 2 layers, {many} with 12");
        (many - few) / 10.0
    };
    // Attention's logits, and what hands products to the threads.
    let host = per_layer(Device::Cpu);
    assert!(host < 4.0, "host: {host} allocations a layer");
    if !common::gpus().is_empty() {
        // wgpu's own, for the commands of a layer: none are this crate's.
        let gpu = per_layer(Device::Gpu(0));
        assert!(gpu < MAX_OF_WGPU, "GPU: {gpu} allocations a layer");
    }
}
