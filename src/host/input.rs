//! The second factor of products in the form that they want.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::elementwise::MIN_PARALLEL_VALUES;
use super::quantise::quantise_all;
use crate::host::simd::{BLOCK_LEN, LANES, TILE_TOKENS, TileColumn, TokenBlock, column_places, padded};
use crate::kernels::matmul::Params;

/// Tokens for which rows of unquantised values are read in place. For more it pays to decode them once and to sum in the lanes of rows.
const FEW_TOKENS: u32 = 3;

/// How products want their second factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// As it is: few tokens, a matrix of unquantised values.
    Floats,
    /// In tiles of six tokens: more tokens, a matrix of unquantised values.
    Tiles,
    /// As integers: a matrix that is stored in blocks.
    Blocks,
}

impl InputFormat {
    /// What the product of these sizes wants.
    pub fn of(params: &Params) -> InputFormat {
        match params.dtype() {
            Some(dtype) if dtype.has_blocks() => InputFormat::Blocks,
            _ if params.n_tokens <= FEW_TOKENS => InputFormat::Floats,
            _ => InputFormat::Tiles,
        }
    }
}

/// The second factor of a product, `[n_tokens, n_columns]`.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// As it is, for matrices of unquantised values.
    Floats(&'a [f32]),
    /// `[n_tokens / 6, padded(n_columns)]`, the last tile filled with zeros, for the same where there are several tokens.
    Tiles(&'a [TileColumn]),
    /// `[n_tokens, n_columns / 32]`, for matrices that are stored in blocks.
    Blocks(&'a [TokenBlock]),
}

impl Operand<'_> {
    /// Whether it holds so many tokens of so many columns, of which there are some.
    pub(super) fn holds(&self, n_tokens: usize, n_columns: usize) -> bool {
        let (len, len_needed) = match self {
            Operand::Floats(values) => (values.len(), n_tokens * n_columns),
            Operand::Tiles(tiles) => (tiles.len(), n_tokens.div_ceil(TILE_TOKENS) * padded(n_columns)),
            Operand::Blocks(blocks) => (blocks.len(), n_tokens * n_columns / BLOCK_LEN),
        };
        n_columns > 0 && len >= len_needed
    }
}

/// The input of products, brought into a form once for all matrices that want it so. Holds one form at a time, and its memory.
#[derive(Debug, Default)]
pub struct Input {
    tiles: Vec<TileColumn>,
    blocks: Vec<TokenBlock>,
}

impl Input {
    /// The `values` `[n_tokens, n_columns]` as the product of `params` wants them.
    ///
    /// # Panics
    /// Where there are fewer values than `params` say, or no columns: an error of the caller.
    pub fn prepare<'a>(&'a mut self, params: &Params, values: &'a [f32]) -> Operand<'a> {
        let form = InputFormat::of(params);
        self.fill(form, params, values);
        self.operand(form, values)
    }

    /// Brings `values` into `form`. Unquantised values stay where they are, and what was brought into another form stays too.
    pub(crate) fn fill(&mut self, form: InputFormat, params: &Params, values: &[f32]) {
        let [n_tokens, n_columns] = [params.n_tokens, params.n_columns].map(|n| n as usize);
        let values = &values[..n_tokens * n_columns];
        match form {
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

    /// `values`, which were [brought](Input::fill) into `form` last.
    pub(crate) fn operand<'a>(&'a self, form: InputFormat, values: &'a [f32]) -> Operand<'a> {
        match form {
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
    let arrange_some = |(tiles, values): (&mut [TileColumn], &[f32])| {
        tiles.chunks_exact_mut(n_padded).zip(values.chunks(n_values)).for_each(|(tile, values)| arrange(n_columns, values, tile));
    };
    if values.len() <= tiles_at_once * n_values {
        arrange_some((tiles, values));
    } else {
        tiles.par_chunks_mut(tiles_at_once * n_padded).zip(values.par_chunks(tiles_at_once * n_values)).for_each(arrange_some);
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
