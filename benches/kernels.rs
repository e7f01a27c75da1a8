//! Rates of the matrix kernels on every adapter: `cargo bench --bench kernels [-- ADAPTER-NAME-PART]`.
//! Prints GB/s of stored weights and GFLOP/s per dtype, what they allow a small model, and µs per dispatch of the small kernels.
//!
//! `cargo bench --bench kernels -- --json [--columns N,…] [--tokens N,…] [--dtypes DTYPE,…] [ADAPTER-NAME-PART]`: the table of every
//! variant and shape instead.

#[path = "kernels/table.rs"]
mod table;

use std::time::Instant;

use tierflow::dtype::DType;
use tierflow::error::Result;
use tierflow::gpu::{self, Buffer, Dispatch, Gpu, ParamsArena, Purpose};
use tierflow::kernels::attention::AttentionVariant;
use tierflow::kernels::kv_tables::{BLOCK_POSITIONS, with_tables};
use tierflow::kernels::{Binding, attention, glu, matmul, rms_norm, rope_kv, top_k};
use tierflow::model::Activation;
use tierflow::units::Bytes;

/// Runs per figure; the best is printed, since other work only ever adds time.
const RUNS: usize = 7;

fn main() -> Result<()> {
    let (mut wanted, mut is_table, mut shapes) = (String::new(), false, table::Shapes::all());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => is_table = true,
            "--columns" | "--tokens" | "--dtypes" => shapes.take(&word, &words.next().unwrap_or_default())?,
            // `cargo bench` adds flags of its own.
            _ if word.starts_with('-') => {}
            _ => wanted = word,
        }
    }
    for found in pollster::block_on(gpu::list())? {
        if !found.spec.name.contains(&wanted) {
            continue;
        }
        let gpu = pollster::block_on(Gpu::open(&found, Bytes::gib(2), None))?;
        if is_table {
            table::print(&gpu, &shapes)?;
        } else {
            println!("{}: {} ({})", found.spec.device, found.spec.name, found.spec.driver);
            bench_products(&gpu)?;
            bench_model(&gpu)?;
            bench_others(&gpu)?;
        }
    }
    Ok(())
}

fn bench_products(gpu: &Gpu) -> Result<()> {
    println!("{:<6} {:>12} {:>7} {:>10} {:>8} {:>9}", "dtype", "matrix", "tokens", "ms", "GB/s", "GFLOP/s");
    for dtype in DType::measured() {
        for (n_rows, n_columns, n_tokens) in
            [(576, 576, 1), (1536, 576, 1), (4096, 4096, 1), (4096, 4096, 4), (2048, 2048, 32), (2048, 2048, 256)]
        {
            let params = matmul::Params::new(dtype, n_rows, n_columns, n_tokens);
            let seconds = product_secs(gpu, &params)?;
            let operations = 2.0 * f64::from(n_rows) * f64::from(n_columns) * f64::from(n_tokens);
            println!(
                "{dtype:<6} {:>12} {n_tokens:>7} {:>10.3} {:>8.2} {:>9.2}",
                format!("{n_rows}x{n_columns}"),
                seconds * 1e3,
                weight_bytes(&params) as f64 / seconds / 1e9,
                operations / seconds / 1e9
            );
        }
    }
    Ok(())
}

/// What the products of one token of SmolLM2-135M take by themselves: no model decodes faster than they allow. Its files keep the head
/// in Q8_0 where the layers have four bits.
fn bench_model(gpu: &Gpu) -> Result<()> {
    const N_LAYERS: f64 = 30.0;
    /// Query, key and value together; attention output; gate and up together; down.
    const LAYER: [(u32, u32); 4] = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
    const HEAD: (u32, u32) = (49_152, 576);
    println!("{:<6} {:>44} {:>9}", "dtype", "products of one token of SmolLM2-135M, ms", "tokens/s");
    // Rows of that model are no whole blocks of the others.
    for dtype in DType::measured().filter(|dtype| HEAD.1.is_multiple_of(dtype.block_len() as u32)) {
        let secs = |(n_rows, n_columns), dtype| product_secs(gpu, &matmul::Params::new(dtype, n_rows, n_columns, 1));
        let head_dtype = if matches!(dtype, DType::Q4_0 | DType::Q4_1) { DType::Q8_0 } else { dtype };
        let mut total = secs(HEAD, head_dtype)?;
        for shape in LAYER {
            total += N_LAYERS * secs(shape, dtype)?;
        }
        println!("{dtype:<6} {:>44.1} {:>9.2}", total * 1e3, 1.0 / total);
    }
    Ok(())
}

fn weight_bytes(params: &matmul::Params) -> u64 {
    params.row_bytes().unwrap_or(0) * u64::from(params.n_rows)
}

/// Seconds of a product whose matrix comes from memory: a model's matrices are more than any cache holds, so of few tokens as many are
/// taken in turns.
fn product_secs(gpu: &Gpu, params: &matmul::Params) -> Result<f64> {
    const CACHES: u64 = 128 << 20;
    let size = weight_bytes(params).next_multiple_of(matmul::WEIGHT_ALIGNMENT);
    let n_matrices = if params.n_tokens > matmul::MAX_DECODE_TOKENS { 1 } else { CACHES.div_ceil(size) };
    let weights = buffer(gpu, size * n_matrices)?;
    let input = buffer(gpu, u64::from(params.n_tokens * params.n_columns) * 4)?;
    let output = buffer(gpu, u64::from(params.n_tokens * params.n_rows) * 4)?;
    let mut arena = pollster::block_on(ParamsArena::new(gpu, 1))?;
    arena.push(gpu, params)?;
    let dispatch = |index: u64| {
        let weight = Binding::part(&weights, index * size, size);
        let bindings = matmul::Bindings { weight, input: Binding::whole(&input), output: Binding::whole(&output) };
        matmul::prepare(gpu, arena.buffer(), params, bindings)
    };
    let dispatches: Vec<Dispatch> = (0..n_matrices).map(dispatch).collect::<Result<_>>()?;
    Ok(time_all(gpu, &arena, &dispatches)? / n_matrices as f64)
}

/// The small kernels at the sizes of a 135 M model.
fn bench_others(gpu: &Gpu) -> Result<()> {
    let big = buffer(gpu, 64 << 20)?;
    let result = buffer(gpu, 64 << 20)?;
    let (read, write) = (Binding::whole(&big), Binding::whole(&result));
    let mut arena = pollster::block_on(ParamsArena::new(gpu, 1))?;

    let params = rms_norm::Params { n_rows: 1, hidden_size: 576, epsilon: 1e-5, weight_offset: 0.0 };
    arena.push(gpu, &params)?;
    let dispatch = rms_norm::prepare(gpu, arena.buffer(), &params, rms_norm::Bindings { input: read, weight: Some(read), output: write })?;
    report("rms_norm 576", time(gpu, &arena, &dispatch)?);

    arena.clear();
    let params = glu::Params { n_values: 1536 };
    arena.push(gpu, &params)?;
    let dispatch = glu::prepare(gpu, arena.buffer(), &params, Activation::Silu, glu::Bindings { gate: read, up: read, output: write })?;
    report("swiglu 1536", time(gpu, &arena, &dispatch)?);

    for (kv_len, n_tokens) in [(256, 1), (2048, 1), (256, 256), (2048, 256)] {
        arena.clear();
        let params = attention::Params {
            n_tokens,
            n_heads: 9,
            n_kv_heads: 3,
            head_size: 64,
            n_blocks: 2048 / BLOCK_POSITIONS,
            kv_capacity: 2048,
            window: 0,
            scale: 0.125,
            key_dtype: rope_kv::CacheDType::F16 as u32,
            value_dtype: rope_kv::CacheDType::F16 as u32,
            softcap: 0.0,
            is_causal: 1,
            in_chunks: 0,
        };
        arena.push(gpu, &params)?;
        let tokens: Vec<rope_kv::Token> = (0..n_tokens).map(|t| rope_kv::Token::new(0, kv_len - n_tokens + t, kv_len)).collect();
        let table: Vec<u32> = (0..params.n_blocks).rev().collect();
        let placed = with_tables(tokens, |_| &table);
        let places = buffer(gpu, size_of_val(placed.as_slice()) as u64)?;
        gpu.queue.write_buffer(&places, 0, bytemuck::cast_slice(&placed));
        let parts = buffer(gpu, attention::parts_bytes(&params).max(1))?;
        let bindings = attention::Bindings {
            query: read,
            tokens: Binding::whole(&places),
            key_cache: read,
            value_cache: read,
            sinks: None,
            parts: Binding::whole(&parts),
            attention_output: write,
        };
        let tokens = attention::phase(n_tokens as usize, 1);
        let chosen = attention::prepare(gpu, arena.buffer(), &params, bindings, tokens)?;
        report(&format!("attention f16 {n_tokens} at {kv_len}"), time_all(gpu, &arena, &chosen)?);
        let alone = attention::prepare_as(gpu, arena.buffer(), &params, bindings, AttentionVariant::Token)?;
        report(&format!("attention f16 {n_tokens} at {kv_len}, token by token"), time_all(gpu, &arena, &alone)?);
    }

    for (vocab_size, k) in [(49_152, 1), (49_152, 40), (128_256, 40)] {
        arena.clear();
        let params = top_k::Params::new(1, vocab_size, k);
        arena.push(gpu, &params)?;
        let dispatch = top_k::prepare(gpu, arena.buffer(), &params, top_k::Bindings { logits: read, candidates: write })?;
        report(&format!("top_k {k} of {vocab_size}"), time(gpu, &arena, &dispatch)?);
    }
    Ok(())
}

fn report(what: &str, seconds: f64) {
    println!("{what:<44} {:>10.1} µs", seconds * 1e6);
}

fn buffer(gpu: &Gpu, size: u64) -> Result<Buffer> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let buffer = pollster::block_on(gpu.buffer("bench", Bytes(size), usage, Purpose::Other))?;
    // Small positive bit patterns: no dtype reads them as NaN or subnormal, which would be slow for the wrong reason.
    gpu.queue.write_buffer(&buffer, 0, &vec![0x2A; buffer.size() as usize]);
    Ok(buffer)
}

/// Seconds per dispatch: the best of several submissions of enough dispatches to hide the submission itself.
fn time(gpu: &Gpu, arena: &ParamsArena, dispatch: &Dispatch) -> Result<f64> {
    time_all(gpu, arena, std::slice::from_ref(dispatch))
}

/// Seconds that the dispatches take together, as [`time`].
fn time_all(gpu: &Gpu, arena: &ParamsArena, dispatches: &[Dispatch]) -> Result<f64> {
    arena.upload(gpu);
    submission_secs(gpu, 0.02, |encoder, repeats| encode_all(encoder, dispatches, repeats))
}

/// Encodes the dispatches, one after the other, so many times.
fn encode_all(encoder: &mut wgpu::CommandEncoder, dispatches: &[Dispatch], repeats: u32) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    for _ in 0..repeats {
        dispatches.iter().for_each(|dispatch| dispatch.encode(&mut pass, 0));
    }
}

/// Seconds of what `encode` does once: the best of several submissions of as many repeats as take `run_secs`.
fn submission_secs(gpu: &Gpu, run_secs: f64, encode: impl Fn(&mut wgpu::CommandEncoder, u32)) -> Result<f64> {
    let run = |repeats: u32| -> Result<f64> {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode(&mut encoder, repeats);
        let begin = Instant::now();
        let submission = gpu.queue.submit([encoder.finish()]);
        gpu.wait(Some(submission))?;
        Ok(begin.elapsed().as_secs_f64() / f64::from(repeats))
    };
    run(1)?;
    let repeats = (run_secs / run(1)?).clamp(1.0, 100.0) as u32;
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        best = best.min(run(repeats)?);
    }
    Ok(best)
}
