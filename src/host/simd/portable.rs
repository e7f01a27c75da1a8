//! Plain Rust: what runs where no other instructions are known, and what the tests hold the others to.

use half::{bf16, f16};

use super::{
    BLOCK_LEN, DType, FLOAT_PANEL_ROWS, Floats, LANE_ORDER, LANES, N_PAIRS, PANEL_ROWS, PanelBlock, PanelColumn, PanelRows, Scaling, Simd,
    TileColumn, TokenBlock, check_matrices, check_panel, check_rows, check_tile, check_tokens, column_places, factors_of, layout_of, place,
};
use crate::dtype::BlockLayout;

/// The functions of this file.
pub(super) static SIMD: Simd = Simd {
    name: "portable",
    multiply_rows,
    unpack,
    multiply_panel,
    multiply_two_panels: None,
    dot_rows,
    arrange,
    multiply_tile,
    dots,
    add_weighted_sums,
    decode: decode_blocks,
};

fn multiply_rows(dtype: DType, rows: &PanelRows<'_>, token: &[TokenBlock]) -> [f32; PANEL_ROWS] {
    let layout = layout_of(dtype);
    check_rows(rows, layout.bytes_of_parts(token.len()));
    let mut sums = [0.0; PANEL_ROWS];
    for (index, token) in token.iter().enumerate() {
        add_block(layout.scaling, &unpack_block(layout, rows, index), token, &mut sums);
    }
    sums
}

pub(super) fn unpack(dtype: DType, rows: &PanelRows<'_>, panel: &mut [PanelBlock]) {
    let layout = layout_of(dtype);
    check_rows(rows, layout.bytes_of_parts(panel.len()));
    for (index, block) in panel.iter_mut().enumerate() {
        *block = unpack_block(layout, rows, index);
    }
}

fn unpack_block(layout: &BlockLayout, rows: &PanelRows<'_>, index: usize) -> PanelBlock {
    let mut unpacked = PanelBlock::ZERO;
    for (row, bytes) in rows.iter().enumerate() {
        let block = layout.part(bytes, index);
        for (k, value) in block.values.into_iter().enumerate() {
            unpacked.values[place(k) / 2][row][place(k) % 2] = i16::from(value);
        }
        for (factors, factor) in unpacked.factors.iter_mut().zip(factors_of(layout.scaling, &block)) {
            factors[row] = factor;
        }
    }
    unpacked
}

fn multiply_panel(dtype: DType, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [[f32; PANEL_ROWS]]) {
    let scaling = layout_of(dtype).scaling;
    check_tokens(tokens, panel.len(), products.len());
    for (token, products) in tokens.chunks_exact(panel.len().max(1)).zip(products) {
        *products = [0.0; PANEL_ROWS];
        for (block, token) in panel.iter().zip(token) {
            add_block(scaling, block, token, products);
        }
    }
}

/// The formula of the module's head for one block.
fn add_block(scaling: Scaling, block: &PanelBlock, token: &TokenBlock, sums: &mut [f32; PANEL_ROWS]) {
    let dots_of = |pairs: std::ops::Range<usize>| {
        let mut dots = [0; PANEL_ROWS];
        for (pairs, values) in block.values[pairs.clone()].iter().zip(&token.values.as_chunks::<2>().0[pairs]) {
            for (dot, pair) in dots.iter_mut().zip(pairs) {
                *dot += i32::from(pair[0]) * i32::from(values[0]) + i32::from(pair[1]) * i32::from(values[1]);
            }
        }
        dots
    };
    let scaled = |scale: f32, dot: i32| scale * token.scale * dot as f32;
    let scaled_sums = if scaling == Scaling::TwoMinimums { token.scaled_sums() } else { [0.0; 2] };
    let (first, last) = (dots_of(0..N_PAIRS / 2), dots_of(N_PAIRS / 2..N_PAIRS));
    for (row, sum) in sums.iter_mut().enumerate() {
        let [scale, other, minimum, other_minimum] = block.factors.map(|factors| factors[row]);
        *sum += match scaling {
            Scaling::One => scaled(scale, first[row] + last[row]),
            Scaling::Minimum => scaled(scale, first[row] + last[row]) + other * token.scaled_sum,
            Scaling::Two => scaled(scale, first[row]) + scaled(other, last[row]),
            Scaling::TwoMinimums => {
                (scaled(scale, first[row]) + scaled(other, last[row])) + (minimum * scaled_sums[0] + other_minimum * scaled_sums[1])
            }
        };
    }
}

fn dot_rows(floats: Floats, rows: &PanelRows<'_>, token: &[f32]) -> [f32; PANEL_ROWS] {
    check_rows(rows, token.len() * floats.size_bytes());
    rows.map(|row| match floats {
        Floats::F32 => dot(row.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)), token),
        Floats::F16 => dot(row.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()), token),
        Floats::BF16 => dot(row.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()), token),
    })
}

/// `Σ row·token` in eight partial sums.
fn dot(row: impl Iterator<Item = f32>, token: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (index, (weight, value)) in row.zip(token).enumerate() {
        sums[index % LANES] += weight * value;
    }
    add_lanes(LANE_ORDER.map(|lane| sums[lane]))
}

fn arrange(floats: Floats, n_columns: usize, rows: &[&[u8]; FLOAT_PANEL_ROWS], panel: &mut [PanelColumn]) {
    check_rows(rows, n_columns * floats.size_bytes());
    check_panel(panel, n_columns);
    panel.fill(PanelColumn::ZERO);
    let mut values = [0.0; LANES];
    for chunk in 0..n_columns.div_ceil(LANES) {
        let begin = chunk * LANES;
        let values = &mut values[..LANES.min(n_columns - begin)];
        for (row, bytes) in rows.iter().enumerate() {
            floats.decode(&bytes[begin * floats.size_bytes()..], values);
            for (value, place) in values.iter().zip(column_places(n_columns, chunk)) {
                panel[place].0[row] = *value;
            }
        }
    }
}

fn multiply_tile(panel: &[PanelColumn], tile: &[TileColumn], products: &mut [[f32; FLOAT_PANEL_ROWS]]) {
    let n_chunks = check_tile(panel, tile, products).max(1);
    for (token, products) in products.iter_mut().enumerate() {
        let mut lanes = [[0.0; FLOAT_PANEL_ROWS]; LANES];
        for ((lane, panel), tile) in lanes.iter_mut().zip(panel.chunks_exact(n_chunks)).zip(tile.chunks_exact(n_chunks)) {
            let mut sums = [0.0; FLOAT_PANEL_ROWS];
            for (column, values) in panel.iter().zip(tile) {
                sums.iter_mut().zip(column.0).for_each(|(sum, weight)| *sum += weight * values[token]);
            }
            *lane = sums;
        }
        for (row, product) in products.iter_mut().enumerate() {
            *product = add_lanes(lanes.map(|sums| sums[row]));
        }
    }
}

/// Partial sums in the order of [`LANE_ORDER`].
fn add_lanes([a, b, c, d, e, f, g, h]: [f32; LANES]) -> f32 {
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

fn dots(n_columns: usize, rows: &[f32], tokens: &[f32], products: &mut [f32]) {
    let n_rows = check_matrices(n_columns, rows, products, tokens);
    for (token, products) in tokens.chunks_exact(n_columns).zip(products.chunks_exact_mut(n_rows.max(1))) {
        for (row, product) in rows.chunks_exact(n_columns).zip(products) {
            *product = dot(row.iter().copied(), token);
        }
    }
}

/// To be compiled once for each kind of instructions: what is inlined takes those of its caller.
#[inline(always)]
pub(super) fn decode_blocks(dtype: DType, blocks: &[u8], values: &mut [f32]) {
    let scale_of = |block: &[u8]| f16::from_le_bytes([block[0], block[1]]).to_f32();
    let blocks_of_values = values.as_chunks_mut::<BLOCK_LEN>().0.iter_mut();
    match dtype {
        DType::Q8_0 => {
            for (block, values) in blocks.as_chunks::<34>().0.iter().zip(blocks_of_values) {
                let scale = scale_of(block);
                for (value, byte) in values.iter_mut().zip(&block[2..]) {
                    *value = scale * f32::from(byte.cast_signed());
                }
            }
        }
        DType::Q4_0 => {
            for (block, values) in blocks.as_chunks::<18>().0.iter().zip(blocks_of_values) {
                let scale = scale_of(block);
                // Two loops, which become vectors as one does not.
                let (first, last) = values.split_at_mut(BLOCK_LEN / 2);
                for (value, byte) in first.iter_mut().zip(&block[2..]) {
                    *value = scale * (f32::from(byte & 15) - 8.0);
                }
                for (value, byte) in last.iter_mut().zip(&block[2..]) {
                    *value = scale * (f32::from(byte >> 4) - 8.0);
                }
            }
        }
        _ => dtype.decode(blocks, values),
    }
}

fn add_weighted_sums(n_columns: usize, rows: &[f32], weights: &[f32], sums: &mut [f32]) {
    let n_rows = check_matrices(n_columns, rows, weights, sums);
    for (weights, sums) in weights.chunks_exact(n_rows.max(1)).zip(sums.chunks_exact_mut(n_columns)) {
        for (weight, row) in weights.iter().zip(rows.chunks_exact(n_columns)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += weight * value;
            }
        }
    }
}
