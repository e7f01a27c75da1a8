//! The processor's vector instructions behind one table of plain functions, chosen once at run time. Knows no models and no threads.
//!
//! Two kinds of product stand here. Of blocks, both sides are integers: weights of 4 or 8 bits as they are stored, and inputs that
//! were rounded to 16 bits in blocks of 32. Each block gives one exact integer, and the integers are scaled and added block by
//! block, with a rounding after every multiplication and every addition:
//!
//! `sum += (weight.scale · token.scale) · Σ_k q_weight[k] · q_token[k]  [+ weight.minimum · token.scaled_sum]`
//!
//! Blocks with a scale for each sixteen values give two integers, each scaled so; the sum of both is what is added. Where each sixteen
//! have a minimum too, the sum of both minimums, times the sums of their tokens' values, is added to that.
//! How a dtype's blocks become integers and scales, [`crate::dtype::blocks`] says; a dtype that has no instructions of its own is unpacked
//! by that, and multiplied as all others are.
//!
//! So the result has one value, bit for bit, whatever the instructions, the number of tokens beside, or the rows beside.
//! Sixteen bits are as good as f32 here (a step is 1/65 534 of a block's span); eight, which llama.cpp takes, are a little faster,
//! but change a small model's words.
//! For unquantised weights, eight partial sums run over the columns, column `k` in sum `k % 8`, and are added at the end in one order,
//! that of [`column_places`]. Their roundings may differ between processors (with or without fused multiplication), but not with
//! the tokens or rows beside. One token's sums are the lanes of a vector. For many tokens the lanes are rows instead, which spares
//! adding lanes and reading each row again: a [`PanelColumn`] meets a [`TileColumn`], the columns of one partial sum after those of
//! another.

#[cfg(target_arch = "aarch64")]
mod arm;
mod portable;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

pub use crate::dtype::Floats;
use crate::dtype::{Block, BlockLayout, DType, PART_LEN, Scaling};

/// Rows of a panel of blocks: what one call multiplies at once, a row in each lane.
pub const PANEL_ROWS: usize = 8;
/// Values in a block.
pub const BLOCK_LEN: usize = PART_LEN;
/// Partial sums of a product with unquantised weights.
pub const LANES: usize = 8;
/// The order in which they are added: neighbours, then the sums of neighbours, then the two that are left. It is its own inverse.
const LANE_ORDER: [usize; LANES] = [0, 4, 2, 6, 1, 5, 3, 7];
/// Rows of a panel of unquantised weights: two vectors of sums for each token, so that its values are loaded for two.
pub const FLOAT_PANEL_ROWS: usize = 16;
/// Tokens in a [`TileColumn`]: two vectors of sums for each, two of rows and one of a token's values fill sixteen registers.
pub const TILE_TOKENS: usize = 6;

/// A token's 32 values as integers: value `k` is about `scale · values[place(k)]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenBlock {
    /// The step between integers.
    pub scale: f32,
    /// `scale · sum`, which a weight's minimum is multiplied by.
    pub scaled_sum: f32,
    /// Of `values`: corrects for weights that are stored with an offset.
    pub sum: i32,
    /// At least −32 767 each, in the order of [`place`].
    pub values: [i16; BLOCK_LEN],
}

impl TokenBlock {
    /// Zeros, to be filled.
    pub const ZERO: TokenBlock = TokenBlock { scale: 0.0, scaled_sum: 0.0, sum: 0, values: [0; BLOCK_LEN] };

    /// `scale · sum` of each sixteen values.
    #[inline]
    pub fn scaled_sums(&self) -> [f32; 2] {
        let first: i32 = self.values[..BLOCK_LEN / 2].iter().map(|value| i32::from(*value)).sum();
        [self.scale * first as f32, self.scale * (self.sum - first) as f32]
    }
}

/// Where column `k` of a block stands among its values: of each four columns the first and the third, then the second and the
/// fourth. So two that stand together are two bytes of even place, or of odd place, which vector instructions separate at once.
pub const fn place(k: usize) -> usize {
    k / 4 * 4 + k % 2 * 2 + k / 2 % 2
}

/// A block of eight rows, a row in each lane, unpacked for many tokens.
#[repr(C, align(32))]
#[derive(Debug, Clone, Copy)]
pub struct PanelBlock {
    factors: [PanelProducts; MAX_FACTORS],
    /// `[16, rows, 2]`: the columns in pairs, in the order of [`place`].
    values: [[[i16; 2]; PANEL_ROWS]; N_PAIRS],
}

/// Factors of a block: its scale; by [`Scaling`] its minimum behind that, or the scales of its halves, and then their minimums.
const MAX_FACTORS: usize = 4;

/// Pairs of columns in a block.
const N_PAIRS: usize = BLOCK_LEN / 2;

impl PanelBlock {
    /// Zeros, to be filled.
    pub const ZERO: PanelBlock = PanelBlock { factors: [[0.0; PANEL_ROWS]; MAX_FACTORS], values: [[[0; 2]; PANEL_ROWS]; N_PAIRS] };
}

/// One column of sixteen unquantised rows. A panel of `n_columns` has [`padded`]`(n_columns)` of them where [`column_places`]
/// says, and zeros where no column is.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub struct PanelColumn(pub [f32; FLOAT_PANEL_ROWS]);

impl PanelColumn {
    /// Zeros, to be filled.
    pub const ZERO: PanelColumn = PanelColumn([0.0; FLOAT_PANEL_ROWS]);
}

/// One column of six tokens, in the order of [`PanelColumn`]s.
pub type TileColumn = [f32; TILE_TOKENS];

/// Columns with those that fill the last of each partial sum.
pub const fn padded(n_columns: usize) -> usize {
    n_columns.next_multiple_of(LANES)
}

/// Where the columns from `chunk * LANES` on, of `n_columns`, stand in a panel or a tile: partial sum after partial sum, in the order
/// of their addition.
pub fn column_places(n_columns: usize, chunk: usize) -> [usize; LANES] {
    LANE_ORDER.map(|place| place * n_columns.div_ceil(LANES) + chunk)
}

/// Eight rows of a weight as stored.
pub type PanelRows<'a> = [&'a [u8]; PANEL_ROWS];

/// One product for each of eight rows.
pub type PanelProducts = [f32; PANEL_ROWS];

/// As [`Simd::multiply_panel`], of two panels of as many blocks, with products of as many tokens.
pub type MultiplyTwoPanels = fn(DType, panels: [&[PanelBlock]; 2], tokens: &[TokenBlock], products: [&mut [PanelProducts]; 2]);

/// The functions of one kind of processor. All panic where slices are not as long as they say, and those of
/// blocks where the dtype has none.
#[derive(Debug)]
pub struct Simd {
    /// Which instructions these are.
    pub name: &'static str,
    /// Eight rows of blocks times one token (`[n_columns / 32]`).
    pub multiply_rows: fn(DType, &PanelRows<'_>, token: &[TokenBlock]) -> PanelProducts,
    /// Unpacks the blocks of eight rows into a panel (`[n_columns / 32]`).
    pub unpack: fn(DType, &PanelRows<'_>, panel: &mut [PanelBlock]),
    /// A panel times tokens (`[n_tokens, n_columns / 32]`): `products` is `[n_tokens]`, as `multiply_rows` has them.
    pub multiply_panel: fn(DType, panel: &[PanelBlock], tokens: &[TokenBlock], products: &mut [PanelProducts]),
    /// Two panels, where that is faster than one after the other; `None` where it is not.
    pub multiply_two_panels: Option<MultiplyTwoPanels>,
    /// Eight unquantised rows times one token (`[n_columns]`).
    pub dot_rows: fn(Floats, &PanelRows<'_>, token: &[f32]) -> PanelProducts,
    /// Decodes sixteen unquantised rows into the panel of `n_columns` columns.
    pub arrange: fn(Floats, n_columns: usize, rows: &[&[u8]; FLOAT_PANEL_ROWS], panel: &mut [PanelColumn]),
    /// A panel times a tile of as many columns: products of the tile's first `products.len()` tokens, as `dot_rows` has them.
    pub multiply_tile: fn(panel: &[PanelColumn], tile: &[TileColumn], products: &mut [[f32; FLOAT_PANEL_ROWS]]),
    /// `products[t, r] = Σ_k rows[r, k] · tokens[t, k]`, as `dot_rows` has them: `rows` `[n_rows, n_columns]`,
    /// `tokens` `[n_tokens, n_columns]`, `products` `[n_tokens, n_rows]`.
    pub dots: fn(n_columns: usize, rows: &[f32], tokens: &[f32], products: &mut [f32]),
    /// `sums[t, c] += Σ_r weights[t, r] · rows[r, c]`, row after row, so that rows may as well come some at a time: `rows` `[n_rows, n_columns]`, `weights` `[n_tokens, n_rows]`,
    /// `sums` `[n_tokens, n_columns]`.
    pub add_weighted_sums: fn(n_columns: usize, rows: &[f32], weights: &[f32], sums: &mut [f32]),
    /// Decodes whole blocks, as [`DType::decode`] does.
    pub decode: fn(DType, blocks: &[u8], values: &mut [f32]),
}

/// The best functions that this processor has.
pub fn simd() -> &'static Simd {
    static CHOSEN: OnceLock<&'static Simd> = OnceLock::new();
    CHOSEN.get_or_init(|| all().first().copied().unwrap_or(&portable::SIMD))
}

/// All functions that this processor can run, the fastest first, the portable ones last: they are the reference of the others.
pub fn all() -> Vec<&'static Simd> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    found.extend(x86::found());
    #[cfg(target_arch = "aarch64")]
    found.push(&arm::SIMD);
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    found.push(&wasm::SIMD);
    found.push(&portable::SIMD);
    found
}

/// How the blocks of `dtype` lie in memory; refuses a dtype that has none.
fn layout_of(dtype: DType) -> &'static BlockLayout {
    dtype.blocks().unwrap_or_else(|| panic!("{dtype} has no blocks"))
}

/// The factors of a block, as a [`PanelBlock`] has them.
fn factors_of(scaling: Scaling, block: &Block) -> [f32; MAX_FACTORS] {
    match scaling {
        Scaling::One => [block.scales[0], 0.0, 0.0, 0.0],
        Scaling::Minimum => [block.scales[0], block.minimums[0], 0.0, 0.0],
        Scaling::Two | Scaling::TwoMinimums => [block.scales[0], block.scales[1], block.minimums[0], block.minimums[1]],
    }
}

/// Refuses rows that end before `n_bytes`: what the loads of the instructions rely on.
fn check_rows(rows: &[&[u8]], n_bytes: usize) {
    assert!(rows.iter().all(|row| row.len() >= n_bytes), "a row is shorter than {n_bytes} bytes");
}

/// Refuses slices that do not hold `n_tokens` times `n_blocks` blocks.
fn check_tokens(tokens: &[TokenBlock], n_blocks: usize, n_tokens: usize) {
    assert!(tokens.len() >= n_blocks * n_tokens, "{} blocks are no {n_tokens} tokens of {n_blocks}", tokens.len());
}

/// A panel times tokens, `T` at a time and the rest one by one: `many` and `one` give the products of tokens of as many blocks as the panel.
#[cfg(any(target_arch = "aarch64", all(target_arch = "wasm32", target_feature = "simd128")))]
fn multiply_in_tiles<'t, const T: usize>(
    n_blocks: usize,
    tokens: &'t [TokenBlock],
    products: &mut [PanelProducts],
    many: impl Fn([&'t [TokenBlock]; T]) -> [PanelProducts; T],
    one: impl Fn([&'t [TokenBlock]; 1]) -> [PanelProducts; 1],
) {
    check_tokens(tokens, n_blocks, products.len());
    let (tiles, rest) = products.as_chunks_mut::<T>();
    let n_tiled = tiles.len() * T;
    let token_at = |token: usize| &tokens[token * n_blocks..][..n_blocks];
    for (tile, products) in tiles.iter_mut().enumerate() {
        *products = many(std::array::from_fn(|token| token_at(tile * T + token)));
    }
    for (index, product) in rest.iter_mut().enumerate() {
        [*product] = one([token_at(n_tiled + index)]);
    }
}

/// Refuses a panel that is none of `n_columns`.
fn check_panel(panel: &[PanelColumn], n_columns: usize) {
    assert!(panel.len() == padded(n_columns), "{} columns are no panel of {n_columns}", panel.len());
}

/// The columns of each partial sum of a panel and a tile; refuses those that do not meet, and more products than tokens.
fn check_tile(panel: &[PanelColumn], tile: &[TileColumn], products: &[[f32; FLOAT_PANEL_ROWS]]) -> usize {
    assert!(panel.len() == tile.len() && panel.len().is_multiple_of(LANES), "{} columns meet {}", panel.len(), tile.len());
    assert!(products.len() <= TILE_TOKENS, "{} tokens of {TILE_TOKENS}", products.len());
    panel.len() / LANES
}

/// The rows of [`Simd::dots`] and [`Simd::add_weighted_sums`]; refuses slices that do not hold them: `by_columns` is
/// `[n_tokens, n_columns]`, `by_rows` `[n_tokens, n_rows]`.
fn check_matrices(n_columns: usize, rows: &[f32], by_rows: &[f32], by_columns: &[f32]) -> usize {
    assert!(n_columns > 0, "rows without columns");
    let (n_rows, n_tokens) = (rows.len() / n_columns, by_columns.len() / n_columns);
    assert!(rows.len() == n_rows * n_columns && by_columns.len() == n_tokens * n_columns, "a broken row");
    assert!(by_rows.len() == n_rows * n_tokens, "{} values are no {n_tokens} times {n_rows}", by_rows.len());
    n_rows
}
