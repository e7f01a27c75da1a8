//! Rates of the host's arithmetic: `cargo bench --bench host`, with `RAYON_NUM_THREADS=N` for fewer threads.
//! Prints GB/s of stored weights and GFLOP/s per dtype, beside what the memory gives to a plain copy, and µs per attention.

use std::time::Instant;

use tierflow::DType;
use tierflow::host::simd::simd;
use tierflow::host::{self, Input};
use tierflow::kernels::kv_tables::{BLOCK_POSITIONS, with_tables};
use tierflow::kernels::rope_kv::Token;
use tierflow::kernels::{attention, matmul};

/// Runs per figure; the best is printed, since other work only ever adds time.
const RUNS: usize = 9;
/// Bytes that no cache holds.
const COPY_BYTES: usize = 256 << 20;

fn main() {
    let (source, mut target) = (vec![1_u8; COPY_BYTES], vec![0_u8; COPY_BYTES]);
    let secs = best(|| target.copy_from_slice(std::hint::black_box(&source)));
    println!("{}, {} threads; one thread copies {:.1} GB/s", simd().name, rayon::current_num_threads(), COPY_BYTES as f64 / secs / 1e9);
    println!("{:<6} {:>12} {:>7} {:>10} {:>8} {:>9}", "dtype", "matrix", "tokens", "ms", "GB/s", "GFLOP/s");
    for dtype in DType::ALL {
        for (n_rows, n_columns) in [(576, 576), (1536, 576), (576, 1536), (16_384, 4096)] {
            // The rows of some dtypes are whole large blocks.
            if dtype.size_bytes(u64::from(n_columns)).is_none() {
                continue;
            }
            for n_tokens in [1, 2, 4, 32, 512] {
                // The large one shows what memory allows; computing with it for a prompt only takes long.
                if n_rows < 16_384 || n_tokens == 1 {
                    bench_product(dtype, n_rows, n_columns, n_tokens);
                }
            }
        }
    }
    for (kv_len, n_tokens) in [(256, 1), (2048, 1), (512, 512)] {
        bench_attention(kv_len, n_tokens);
    }
}

fn bench_product(dtype: DType, n_rows: u32, n_columns: u32, n_tokens: u32) {
    let params = matmul::Params::new(dtype, n_rows, n_columns, n_tokens);
    // Small positive bit patterns: no dtype reads them as NaN or subnormal, which would be slow for the wrong reason.
    let weight = vec![0x2A; params.row_bytes().unwrap_or(0) as usize * n_rows as usize];
    let input = vec![0.5; (n_tokens * n_columns) as usize];
    let mut output = vec![0.0; (n_tokens * n_rows) as usize];
    let mut prepared = Input::default();
    // Matrices that share an input share its preparing, so it is not timed.
    let operand = prepared.prepare(&params, &input);
    let secs = best(|| host::among_threads(|| host::multiply(simd(), &params, &weight, operand, std::hint::black_box(&mut output))));
    let operations = 2.0 * f64::from(n_rows) * f64::from(n_columns) * f64::from(n_tokens);
    println!(
        "{dtype:<6} {:>12} {n_tokens:>7} {:>10.3} {:>8.2} {:>9.2}",
        format!("{n_rows}x{n_columns}"),
        secs * 1e3,
        weight.len() as f64 / secs / 1e9,
        operations / secs / 1e9
    );
}

/// At the sizes of a 135 M model.
fn bench_attention(kv_len: u32, n_tokens: u32) {
    let params = attention::Params {
        n_tokens,
        n_heads: 9,
        n_kv_heads: 3,
        head_size: 64,
        n_blocks: kv_len.div_ceil(BLOCK_POSITIONS),
        kv_capacity: kv_len,
        window: 0,
        scale: 0.125,
        key_dtype: 0,
        value_dtype: 0,
        softcap: 0.0,
        is_causal: 1,
        in_chunks: 0,
    };
    let tokens: Vec<Token> = (kv_len - n_tokens..kv_len).map(|position| Token::new(0, position, position + 1)).collect();
    let table: Vec<u32> = (0..params.n_blocks).rev().collect();
    let placed = with_tables(tokens, |_| &table);
    let cache = host::KvCache::Floats(vec![0.25; (3 * params.n_blocks * BLOCK_POSITIONS * 64) as usize]);
    let query = vec![0.5; (n_tokens * 9 * 64) as usize];
    let mut mixed = vec![0.0; query.len()];
    let secs = best(|| {
        host::among_threads(|| host::attention(&params, &query, &placed, [&cache, &cache], None, std::hint::black_box(&mut mixed)));
    });
    println!("attention of {n_tokens} at {kv_len} {:>10.1} µs", secs * 1e6);
}

/// Seconds of the fastest run, each of enough repeats to last some milliseconds.
fn best(mut work: impl FnMut()) -> f64 {
    let mut run = |repeats: u32| {
        let begin = Instant::now();
        (0..repeats).for_each(|_| work());
        begin.elapsed().as_secs_f64() / f64::from(repeats)
    };
    run(1);
    let repeats = (0.005 / run(1)).clamp(1.0, 200.0) as u32;
    (0..RUNS).map(|_| run(repeats)).fold(f64::INFINITY, f64::min)
}
