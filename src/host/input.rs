//! The activations that matrix products multiply, in the format that the products need: as they are, in tiles, or quantised.

use super::elementwise::MIN_PARALLEL_VALUES;
use super::quantise::quantise_all;
use crate::host::simd::{BLOCK_LEN, LANES, TILE_TOKENS, TileColumn, TokenBlock, column_places, padded};
use crate::kernels::matmul::Params;
use crate::platform::for_each_part;

/// Most tokens for which rows of unquantised weights are read in place. For more tokens it pays to decode the rows once into panels.
const FEW_TOKENS: u32 = 3;

/// The format in which a product needs its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// As they are: for few tokens and an unquantised matrix.
    Floats,
    /// In tiles of six tokens: for more tokens and an unquantised matrix.
    Tiles,
    /// Quantised to integers: for a matrix that is stored in blocks.
    Blocks,
}

impl InputFormat {
    /// The format for a product of these sizes.
    pub fn of(params: &Params) -> InputFormat {
        match params.dtype() {
            Some(dtype) if dtype.has_blocks() => InputFormat::Blocks,
            _ if params.n_tokens <= FEW_TOKENS => InputFormat::Floats,
            _ => InputFormat::Tiles,
        }
    }
}

/// The activations of a product, `[n_tokens, n_columns]`.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// As they are, for unquantised matrices.
    Floats(&'a [f32]),
    /// `[n_tokens / 6, padded(n_columns)]`, the last tile filled up with zeros: for unquantised matrices and several tokens.
    Tiles(&'a [TileColumn]),
    /// Quantised, `[n_tokens, n_columns / 32]`, for matrices that are stored in blocks.
    Blocks(&'a [TokenBlock]),
}

impl Operand<'_> {
    /// Whether it holds `n_tokens` tokens of `n_columns` columns, of which there is at least one.
    pub(super) fn holds(&self, n_tokens: usize, n_columns: usize) -> bool {
        let (len, len_needed) = match self {
            Operand::Floats(values) => (values.len(), n_tokens * n_columns),
            Operand::Tiles(tiles) => (tiles.len(), n_tokens.div_ceil(TILE_TOKENS) * padded(n_columns)),
            Operand::Blocks(blocks) => (blocks.len(), n_tokens * n_columns / BLOCK_LEN),
        };
        n_columns > 0 && len >= len_needed
    }
}

/// The activations of products, converted once for all matrices that need them in this format. Holds one format at a time.
#[derive(Debug, Default)]
pub struct Input {
    tiles: Vec<TileColumn>,
    blocks: Vec<TokenBlock>,
}

impl Input {
    /// The `values` `[n_tokens, n_columns]` in the format that the product of `params` needs.
    ///
    /// # Panics
    /// Where there are fewer values than `params` say, or no columns: a bug of the caller.
    pub fn prepare<'a>(&'a mut self, params: &Params, values: &'a [f32]) -> Operand<'a> {
        let format = InputFormat::of(params);
        self.fill(format, params, values);
        self.operand(format, values)
    }

    /// Converts `values` to `format`. For [`InputFormat::Floats`] nothing is done, and what was converted before stays.
    pub(crate) fn fill(&mut self, format: InputFormat, params: &Params, values: &[f32]) {
        let [n_tokens, n_columns] = [params.n_tokens, params.n_columns].map(|n| n as usize);
        let values = &values[..n_tokens * n_columns];
        match format {
            InputFormat::Floats => {}
            InputFormat::Tiles => {
                self.blocks = Vec::new();
                arrange_all(n_columns, values, &mut self.tiles);
            }
            InputFormat::Blocks => {
                self.tiles = Vec::new();
                quantise_all(values, &mut self.blocks);
            }
        }
    }

    /// `values`, which were [converted](Input::fill) to `format` last.
    pub(crate) fn operand<'a>(&'a self, format: InputFormat, values: &'a [f32]) -> Operand<'a> {
        match format {
            InputFormat::Floats => Operand::Floats(values),
            InputFormat::Tiles => Operand::Tiles(&self.tiles),
            InputFormat::Blocks => Operand::Blocks(&self.blocks),
        }
    }
}

/// Tiles of all tokens; behind the last token there are zeros, and behind the last column too.
fn arrange_all(n_columns: usize, values: &[f32], tiles: &mut Vec<TileColumn>) {
    let (n_padded, n_values) = (padded(n_columns), TILE_TOKENS * n_columns);
    tiles.resize(values.len().div_ceil(n_values) * n_padded, [0.0; TILE_TOKENS]);
    let tiles_at_once = MIN_PARALLEL_VALUES.div_ceil(n_values);
    let arrange_some = |(): &mut (), part: usize, tiles: &mut [TileColumn]| {
        let values = &values[part * tiles_at_once * n_values..];
        tiles.chunks_exact_mut(n_padded).zip(values.chunks(n_values)).for_each(|(tile, values)| arrange(n_columns, values, tile));
    };
    if values.len() <= tiles_at_once * n_values {
        arrange_some(&mut (), 0, tiles);
    } else {
        for_each_part(tiles, tiles_at_once * n_padded, || (), arrange_some);
    }
}

/// At most six tokens.
fn arrange(n_columns: usize, values: &[f32], tile: &mut [TileColumn]) {
    if values.len() < tile.as_flattened().len() {
        tile.fill([0.0; TILE_TOKENS]);
    }
    for (token, values) in values.chunks_exact(n_columns).enumerate() {
        for (chunk, values) in values.chunks(LANES).enumerate() {
            for (value, place) in values.iter().zip(column_places(n_columns, chunk)) {
                tile[place][token] = *value;
            }
        }
    }
}
