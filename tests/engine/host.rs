//! The host's products and attention: each kind of instructions that this processor has against plain arithmetic,
//! and the promise that no result depends on how the work is cut.

use crate::common::bits;
use crate::common::kv_blocks::{blocks_of, in_shuffled_blocks};
use tierflow::DType;
use tierflow::dtype::Scaling;
use tierflow::host::simd::{self, Simd};
use tierflow::host::{self, Input, KvCache, Operand};
use tierflow::kernels::kv_tables::{BLOCK_POSITIONS, block_at, row_in};
use tierflow::kernels::rope_kv::{CacheDType, Token};
use tierflow::kernels::{attention, matmul, rope_kv};
use xtask::models::GgufType;

use crate::common;

/// Share of the largest product by which f32 sums in another order may differ.
const F32_TOLERANCE: f32 = 2e-6;
/// The same for a product with 16-bit inputs, which adds to it: a value of the test is off by half of 3/32 767 at most and by
/// 2.6e-5 as a rule, a sum of n of them by 2.6e-5·√n, and the largest product is some 3·√n.
const SIXTEEN_BIT_TOLERANCE: f32 = 5e-5;

fn quantised() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|dtype| dtype.has_blocks())
}

/// So many columns, rounded up to whole blocks.
fn whole(dtype: DType, n_columns: usize) -> usize {
    n_columns.next_multiple_of(dtype.block_len() as usize)
}

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() + next() + next()).collect()
}

/// A matrix of `n_rows × n_columns` as `dtype`.
fn weight(dtype: DType, n_rows: usize, n_columns: usize) -> Vec<u8> {
    let gguf: GgufType = dtype.to_string().to_ascii_lowercase().parse().unwrap();
    let mut bytes = Vec::new();
    gguf.encode(&values(n_rows * n_columns, 7), &mut bytes);
    bytes
}

fn product(simd: &Simd, params: &matmul::Params, weight: &[u8], input: &[f32]) -> Vec<f32> {
    let mut output = vec![f32::NAN; (params.n_tokens * params.output_stride) as usize];
    host::multiply(simd, params, weight, Input::default().prepare(params, input), &mut output);
    output
}

/// Tokens as products of blocks read them.
fn token_blocks(input: &[f32], n_columns: usize) -> Vec<simd::TokenBlock> {
    let params = matmul::Params::new(DType::Q8_0, 1, n_columns as u32, (input.len() / n_columns) as u32);
    match Input::default().prepare(&params, input) {
        Operand::Blocks(blocks) => blocks.to_vec(),
        other => panic!("Q8_0 reads {other:?}"),
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn worst(values: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(values.len(), expected.len());
    values
        .iter()
        .zip(expected)
        .fold(0.0, |worst, (value, expected)| if (value - expected).abs() <= worst { worst } else { (value - expected).abs() })
}

/// The formula of `host::simd`, one number after the other.
fn plain_block_product(dtype: DType, row: &[u8], token: &[simd::TokenBlock]) -> f32 {
    let layout = dtype.blocks().unwrap();
    let mut sum = 0.0;
    for (index, token) in token.iter().enumerate() {
        let block = layout.part(row, index);
        let dot = |columns: std::ops::Range<usize>| -> i32 {
            columns.map(|k| i32::from(block.values[k]) * i32::from(token.values[simd::place(k)])).sum()
        };
        let scaled = |scale: f32, dot: i32| scale * token.scale * dot as f32;
        sum += match layout.scaling {
            Scaling::One => scaled(block.scales[0], dot(0..32)),
            Scaling::Minimum => scaled(block.scales[0], dot(0..32)) + block.minimums[0] * token.scaled_sum,
            Scaling::Two => scaled(block.scales[0], dot(0..16)) + scaled(block.scales[1], dot(16..32)),
            Scaling::TwoMinimums => {
                let sum = |columns: std::ops::Range<usize>| -> i32 { columns.map(|k| i32::from(token.values[simd::place(k)])).sum() };
                let minimum = |half: usize, sum: i32| block.minimums[half] * (token.scale * sum as f32);
                (scaled(block.scales[0], dot(0..16)) + scaled(block.scales[1], dot(16..32)))
                    + (minimum(0, sum(0..16)) + minimum(1, sum(16..32)))
            }
        };
    }
    sum
}

/// What is added is the product, bit for bit: to rows of zeros and to others, of one token, a few and many.
#[test]
fn products_that_are_added_have_the_bits_of_those_that_are_not() {
    for simd in simd::all() {
        for (dtype, n_columns) in [(DType::F32, 3), (DType::F32, 68), (DType::BF16, 40), (DType::Q8_0, 96)] {
            for (n_rows, n_tokens) in [(1, 1), (21, 1), (13, 3), (37, 29)] {
                let (weight, input) = (weight(dtype, n_rows, n_columns), values(n_tokens * n_columns, 3));
                let params = matmul::Params::new(dtype, n_rows as u32, n_columns as u32, n_tokens as u32);
                let plain = product(simd, &params, &weight, &input);
                let before = values(plain.len(), 5);
                let expected: Vec<f32> = plain.iter().zip(&before).map(|(product, before)| before + product).collect();
                let mut sum = before;
                let params = params.accumulating();
                host::multiply(simd, &params, &weight, Input::default().prepare(&params, &input), &mut sum);
                assert_eq!(bits(&sum), bits(&expected), "{dtype}, {n_rows} rows of {n_columns}, {n_tokens} tokens");
            }
        }
    }
}

#[test]
fn products_of_blocks_have_the_bits_of_the_plain_formula() {
    for simd in simd::all() {
        for dtype in quantised() {
            for (n_rows, n_columns, n_tokens) in [(8, 32, 1), (13, 96, 1), (37, 576, 1), (21, 96, 2), (70, 320, 29), (9, 4096, 7)] {
                let n_columns = whole(dtype, n_columns);
                let (weight, input) = (weight(dtype, n_rows, n_columns), values(n_tokens * n_columns, 3));
                let params = matmul::Params::new(dtype, n_rows as u32, n_columns as u32, n_tokens as u32);
                let output = product(simd, &params, &weight, &input);
                let expected: Vec<f32> = token_blocks(&input, n_columns)
                    .chunks_exact(n_columns / 32)
                    .flat_map(|token| weight.chunks_exact(weight.len() / n_rows).map(|row| plain_block_product(dtype, row, token)))
                    .collect();
                assert!(bits(&output) == bits(&expected), "{}, {dtype}, {n_rows}×{n_columns}, {n_tokens} tokens", simd.name);
            }
        }
    }
}

/// Every byte may come from a file: −128 is a weight too, and the largest sums must fit.
#[test]
fn the_extremes_of_integers_do_not_overflow() {
    for simd in simd::all() {
        for dtype in quantised() {
            for byte in [0x80, 0x7F, 0x00, 0xFF, 0x88] {
                let mut row = vec![byte; dtype.block_bytes() as usize];
                for (place, scale) in common::scale_places(dtype).iter().zip([half::f16::ONE, half::f16::NEG_ONE]) {
                    row[*place..place + 2].copy_from_slice(&scale.to_le_bytes());
                }
                let n_columns = whole(dtype, 32);
                let signs = (0..n_columns).map(|k| if k % 2 == 0 { 1.0 } else { -1.0 }).collect();
                for input in [vec![1.0; n_columns], vec![-1.0; n_columns], signs] {
                    let expected = plain_block_product(dtype, &row, &token_blocks(&input, n_columns));
                    for (n_rows, n_tokens) in [(1, 1), (1, 9), (17, 30)] {
                        let params = matmul::Params::new(dtype, n_rows, n_columns as u32, n_tokens);
                        let output = product(simd, &params, &row.repeat(n_rows as usize), &input.repeat(n_tokens as usize));
                        assert!(output.iter().all(|value| value.to_bits() == expected.to_bits()), "{}, {dtype}, {byte:#x}", simd.name);
                    }
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_reference() {
    for simd in simd::all() {
        for dtype in DType::ALL {
            for (n_rows, n_columns, n_tokens) in [(37, 576, 1), (21, 96, 5), (70, 1536, 29)] {
                let n_columns = whole(dtype, n_columns);
                let (weight, input) = (weight(dtype, n_rows, n_columns), values(n_tokens * n_columns, 5));
                let params = matmul::Params::new(dtype, n_rows as u32, n_columns as u32, n_tokens as u32);
                let mut expected = vec![f32::NAN; n_rows * n_tokens];
                matmul::reference(&params, &weight, &input, &mut expected);
                let what = format!("{}, {dtype}, {n_rows}×{n_columns}, {n_tokens} tokens", simd.name);
                let tolerance = if dtype.has_blocks() { SIXTEEN_BIT_TOLERANCE } else { F32_TOLERANCE };
                let error = worst(&product(simd, &params, &weight, &input), &expected);
                assert!(error <= tolerance * largest(&expected), "{what}: {error} of {}", largest(&expected));
            }
        }
    }
}

/// Numbers of columns that are no whole vectors, which unquantised matrices may have.
#[test]
fn odd_columns_are_summed_too() {
    for simd in simd::all() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for n_columns in [1, 7, 9, 33] {
                for n_tokens in [1, 3, 4, 13] {
                    let (weight, input) = (weight(dtype, 11, n_columns), values(n_tokens * n_columns, 5));
                    let params = matmul::Params::new(dtype, 11, n_columns as u32, n_tokens as u32);
                    let mut expected = vec![f32::NAN; 11 * n_tokens];
                    matmul::reference(&params, &weight, &input, &mut expected);
                    let output = product(simd, &params, &weight, &input);
                    assert!(worst(&output, &expected) <= F32_TOLERANCE * largest(&expected), "{}, {dtype}, {n_columns}", simd.name);
                }
            }
        }
    }
}

#[test]
fn products_do_not_depend_on_cuts_nor_on_the_tokens_beside() {
    for simd in simd::all() {
        for dtype in DType::ALL {
            cut_and_compare(simd, dtype, whole(dtype, 576));
            if !dtype.has_blocks() {
                cut_and_compare(simd, dtype, 45);
            }
        }
    }
}

/// Compares bits of a product with those of parts of its rows and of some of its tokens.
fn cut_and_compare(simd: &Simd, dtype: DType, n_columns: usize) {
    let (n_rows, n_tokens) = (203usize, 31usize);
    let (weight, input) = (weight(dtype, n_rows, n_columns), values(n_tokens * n_columns, 9));
    let row_bytes = weight.len() / n_rows;
    let whole = matmul::Params::new(dtype, n_rows as u32, n_columns as u32, n_tokens as u32);
    let expected = bits(&product(simd, &whole, &weight, &input));
    for cut in [1usize, 5, 64, 202] {
        let first = bits(&product(simd, &whole.slice(0, cut as u32), &weight[..cut * row_bytes], &input));
        let second = whole.slice(cut as u32, (n_rows - cut) as u32);
        let second = bits(&product(simd, &second, &weight[cut * row_bytes..], &input));
        let joined = (0..n_tokens * n_rows).map(|i| if i % n_rows < cut { first[i] } else { second[i] });
        assert!(joined.eq(expected.iter().copied()), "{}, {dtype}, {n_columns} columns, cut at {cut}", simd.name);
    }
    for n_some in [1usize, 2, 3, 4, 5, 6, 7] {
        let some = matmul::Params { n_tokens: n_some as u32, ..whole };
        for first in [0, 11, n_tokens - n_some] {
            let output = bits(&product(simd, &some, &weight, &input[first * n_columns..][..n_some * n_columns]));
            let what = format!("{}, {dtype}, {n_columns} columns, {n_some} tokens from {first}", simd.name);
            assert!(output == expected[first * n_rows..][..n_some * n_rows], "{what}");
        }
    }
}

#[test]
fn a_panel_has_its_columns_where_they_are_looked_for_and_zeros_elsewhere() {
    let floats = [(DType::F32, simd::Floats::F32), (DType::F16, simd::Floats::F16), (DType::BF16, simd::Floats::BF16)];
    for simd in simd::all() {
        for (dtype, variant) in floats {
            for n_columns in [1, 8, 45, 64] {
                let bytes = weight(dtype, simd::FLOAT_PANEL_ROWS, n_columns);
                let rows = std::array::from_fn(|row| &bytes[row * bytes.len() / simd::FLOAT_PANEL_ROWS..]);
                let mut panel = vec![simd::PanelColumn([f32::NAN; simd::FLOAT_PANEL_ROWS]); simd::padded(n_columns)];
                (simd.arrange)(variant, n_columns, &rows, &mut panel);
                let mut expected = vec![simd::PanelColumn::ZERO; panel.len()];
                for (row, bytes) in rows.iter().enumerate() {
                    let mut values = vec![0.0; n_columns];
                    dtype.decode(&bytes[..n_columns * variant.size_bytes()], &mut values);
                    for (column, value) in values.into_iter().enumerate() {
                        expected[simd::column_places(n_columns, column / simd::LANES)[column % simd::LANES]].0[row] = value;
                    }
                }
                assert!(panel.iter().zip(&expected).all(|(a, b)| bits(&a.0) == bits(&b.0)), "{}, {dtype}, {n_columns}", simd.name);
            }
        }
    }
}

/// What was prepared before leaves nothing behind: neither what was too much nor what stood in the places of no token or column.
#[test]
fn an_input_can_be_prepared_again() {
    let mut used = Input::default();
    let cases =
        [(DType::F32, 48, 7), (DType::F32, 45, 5), (DType::Q8_0, 64, 3), (DType::Q8_0, 32, 2), (DType::F16, 45, 8), (DType::BF16, 3, 2)];
    for (dtype, n_columns, n_tokens) in cases {
        let params = matmul::Params::new(dtype, 17, n_columns as u32, n_tokens as u32);
        let (weight, input) = (weight(dtype, 17, n_columns), values(n_tokens * n_columns, 4));
        let expected = product(simd::simd(), &params, &weight, &input);
        used.prepare(&params, &vec![f32::NAN; input.len()]);
        let mut output = vec![f32::NAN; expected.len()];
        host::multiply(simd::simd(), &params, &weight, used.prepare(&params, &input), &mut output);
        assert!(bits(&output) == bits(&expected), "{dtype}, {n_columns} columns, {n_tokens} tokens");
        if let Operand::Tiles(tiles) = used.prepare(&params, &input) {
            let sum = |tiles: &[simd::TileColumn]| tiles.as_flattened().iter().map(|value| f64::from(value.abs())).sum::<f64>();
            let expected: f64 = input.iter().map(|value| f64::from(value.abs())).sum();
            assert!((sum(tiles) - expected).abs() < 1e-9 * expected, "only the values stand in the tiles");
        }
    }
}

#[test]
#[should_panic(expected = "the operand is not 7 times 48 values")]
fn an_operand_of_other_sizes_is_refused() {
    let (input, mut prepared) = (values(5 * 48, 4), Input::default());
    let params = matmul::Params::new(DType::F32, 8, 48, 5);
    let operand = prepared.prepare(&params, &input);
    host::multiply(simd::simd(), &matmul::Params { n_tokens: 7, ..params }, &[0; 8 * 48 * 4], operand, &mut [0.0; 7 * 8]);
}

fn attention_params(n_tokens: usize, window: u32) -> attention::Params {
    attention::Params {
        n_tokens: n_tokens as u32,
        n_heads: 6,
        n_kv_heads: 2,
        head_size: 40,
        n_blocks: blocks_of(90),
        kv_capacity: 90,
        window,
        scale: 0.16,
        key_dtype: 0,
        value_dtype: 0,
        softcap: 0.0,
        is_causal: 1,
        in_chunks: 0,
    }
}

#[test]
fn attention_is_that_of_the_reference_and_the_same_for_one_token_as_for_many() {
    let n_values = blocks_of(90) as usize * 2 * BLOCK_POSITIONS as usize * 40;
    let (keys, cached) = (values(n_values, 1), values(n_values, 2));
    let [key_cache, value_cache] = [&keys, &cached].map(|values| KvCache::Floats(values.clone()));
    // Of one sequence the caches hold 61 positions, of the other one 49.
    let tokens: Vec<Token> = (0..70u32).map(|t| Token::new(u32::from(t >= 41), t % 41 + 20, if t < 41 { 61 } else { 49 })).collect();
    let placed = in_shuffled_blocks(&tokens, blocks_of(90));
    let query = values(tokens.len() * 240, 3);
    let of_heads = [1.5, -3.0, 0.0, 60.0, -90.0, 0.4];
    for (window, is_causal, sinks, in_chunks) in [
        (0, 1, None, 0),
        (7, 1, None, 0),
        (0, 0, None, 0),
        (7, 0, None, 0),
        (0, 1, Some(&of_heads[..]), 0),
        (7, 1, Some(&of_heads[..]), 0),
        (7, 1, None, 1),
    ] {
        let params = attention::Params { is_causal, in_chunks, ..attention_params(tokens.len(), window) };
        let (mut attention_output, mut expected) = (vec![f32::NAN; query.len()], vec![f32::NAN; query.len()]);
        host::attention(&params, &query, &placed, [&key_cache, &value_cache], sinks, &mut attention_output);
        attention::reference(&params, &query, &placed, (&keys, &cached), sinks, &mut expected);
        assert!(
            worst(&attention_output, &expected) <= 4.0 * F32_TOLERANCE * largest(&expected),
            "window {window}: {}",
            worst(&attention_output, &expected)
        );
        for t in [0, 1, 40, 41, 69] {
            let mut alone = vec![f32::NAN; 240];
            let params = attention::Params { is_causal, in_chunks, ..attention_params(1, window) };
            host::attention(&params, &query[t * 240..][..240], &placed[t..], [&key_cache, &value_cache], sinks, &mut alone);
            assert_eq!(bits(&alone), bits(&attention_output[t * 240..][..240]), "token {t}, window {window}");
        }
    }
}

#[test]
fn attention_decodes_caches_of_blocks_with_the_same_bits_for_one_token_as_for_many() {
    let sizes = |n_tokens: usize, window| attention::Params {
        head_size: 96,
        n_blocks: blocks_of(300),
        kv_capacity: 300,
        ..attention_params(n_tokens, window)
    };
    let (n_rows, width) = (blocks_of(300) as usize * 2 * BLOCK_POSITIONS as usize, 6 * 96);
    let tokens: Vec<Token> = (0..150u32).map(|t| Token::new(u32::from(t >= 90), t % 90 + 170, if t < 90 { 260 } else { 230 })).collect();
    let placed = in_shuffled_blocks(&tokens, blocks_of(300));
    let query = values(tokens.len() * width, 3);
    let (floats, bytes, nibbles) = (CacheDType::F32, CacheDType::Q8_0, CacheDType::Q4_0);
    for kv_dtypes in [[bytes; 2], [nibbles; 2], [bytes, nibbles], [floats, nibbles], [bytes, floats]] {
        let rows = [1, 2].map(|seed| values(n_rows * 96, seed));
        // Stored position by position, as forwards do.
        let caches = [0, 1].map(|which| {
            let rows = &rows[which];
            let mut cache = match kv_dtypes[which].blocks() {
                Some(blocks) => KvCache::Blocks(blocks, vec![0; n_rows * 3 * blocks.block_bytes() as usize]),
                None => KvCache::Floats(vec![0.0; n_rows * 96]),
            };
            let of_position = |position: u32, seq: u32| {
                let token = in_shuffled_blocks(&[Token::new(seq, position, position + 1)], blocks_of(300));
                let block = block_at(&token, 0, position).expect("a block");
                let heads = [0, 1].map(|head| &rows[row_in(block, 2, head, position) * 96..][..96]).concat();
                (heads, token)
            };
            for (heads, token) in (0..2).flat_map(|seq| (0..300).map(move |position| of_position(position, seq))) {
                let params = rope_kv::Params {
                    n_tokens: 1,
                    n_heads: 0,
                    n_kv_heads: 2,
                    head_size: 96,
                    n_blocks: blocks_of(300),
                    kv_capacity: 300,
                    key_dtype: 0,
                    value_dtype: 0,
                    pairing: 0,
                    rotary_size: 0,
                };
                cache.store(&params, &heads, &token);
            }
            cache
        });
        let seen = [0, 1].map(|which| kv_dtypes[which].rounded(&rows[which]));
        for window in [0, 7, 100] {
            let params = sizes(tokens.len(), window);
            let (mut attention_output, mut expected) = (vec![f32::NAN; query.len()], vec![f32::NAN; query.len()]);
            host::attention(&params, &query, &placed, [&caches[0], &caches[1]], None, &mut attention_output);
            attention::reference(&params, &query, &placed, (&seen[0], &seen[1]), None, &mut expected);
            let off = worst(&attention_output, &expected);
            assert!(off <= 4.0 * F32_TOLERANCE * largest(&expected), "{kv_dtypes:?}, window {window}: {off}");
            for t in [0, 1, 63, 89, 90, 149] {
                let mut alone = vec![f32::NAN; width];
                host::attention(&sizes(1, window), &query[t * width..][..width], &placed[t..], [&caches[0], &caches[1]], None, &mut alone);
                assert_eq!(bits(&alone), bits(&attention_output[t * width..][..width]), "token {t}, window {window}");
            }
        }
    }
}

#[test]
fn blocks_are_decoded_alike_by_all_instructions() {
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let stored = weight(dtype, 5, 96);
        let mut expected = vec![0.0; 5 * 96];
        dtype.decode(&stored, &mut expected);
        for simd in simd::all() {
            let mut found = vec![f32::NAN; 5 * 96];
            (simd.decode)(dtype, &stored, &mut found);
            assert_eq!(bits(&found), bits(&expected), "{dtype} with {}", simd.name);
        }
    }
}

#[test]
fn a_token_that_sees_nothing_mixes_nothing() {
    let params = attention_params(1, 0);
    let mut attention_output = vec![f32::NAN; 240];
    let caches = KvCache::Floats(vec![1.0; blocks_of(90) as usize * 2 * BLOCK_POSITIONS as usize * 40]);
    host::attention(
        &params,
        &[1.0; 240],
        &in_shuffled_blocks(&[Token::new(0, 3, 0)], blocks_of(90)),
        [&caches, &caches],
        None,
        &mut attention_output,
    );
    assert_eq!(attention_output, [0.0; 240]);
}
