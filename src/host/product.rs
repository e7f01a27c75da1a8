//! Matrix products on all threads: `output[t, output_row_begin + r] = Σ_k weight[r, k] · input[t, k]`, weights as they are stored; or the
//! product is added to the output.
//!
//! A thread takes a range of rows. For one token and for a few, eight rows at a time are read in place. For more, rows are brought into panels first, as many as stay in a core's cache, which then meet all tokens.

use std::ops::RangeInclusive;

use super::Operand;
use super::kept::{Pool, Working, clear_for};
use crate::dtype::DType;
use crate::host::simd::{
    BLOCK_LEN, FLOAT_PANEL_ROWS, Floats, PANEL_ROWS, PanelBlock, PanelColumn, PanelProducts, PanelRows, Simd, TILE_TOKENS, TileColumn,
    TokenBlock, padded,
};
use crate::kernels::MAX_PRODUCTS;
use crate::kernels::matmul::Params;
use crate::platform::{for_each_large_part, for_each_part, n_sharing_threads};

/// Parts of a product for each thread: several, so that a thread that other programs hold up is waited for less.
const TASKS_PER_THREAD: RangeInclusive<usize> = 4..=8;
/// Stored bytes below which a task is not worth handing to another thread.
const MIN_TASK_BYTES: usize = 16 << 10;
/// Panels that stay in a core's second cache beside the tokens: half of what most cores have. As many at least as are multiplied at once.
const UNPACKED_BYTES: usize = 128 << 10;
/// Most tokens for which rows of blocks are multiplied as they are stored: for more, it pays to unpack them once.
const FEW_TOKENS: usize = 2;
/// Tokens that meet a panel before the next panel is loaded: a few tens of KiB; a multiple of what the instructions take at once.
const TOKENS_AT_ONCE: usize = 24;

/// The product by `simd`'s instructions. `weight` holds the rows as stored, `output` is `[n_tokens, output_stride]`.
///
/// # Panics
/// Where the slices are shorter than `params` say, or the operand is not of the [`InputFormat`](super::InputFormat) that the product
/// needs: a bug of the caller.
pub fn multiply(simd: &Simd, params: &Params, weight: &[u8], operand: Operand<'_>, output: &mut [f32]) {
    multiply_all(simd, &mut [Part { params: *params, weight, operand, output }]);
}

/// One product of several.
pub struct Part<'a> {
    /// Its shape.
    pub params: Params,
    /// Its rows as stored.
    pub weight: &'a [u8],
    /// Its input.
    pub operand: Operand<'a>,
    /// `[n_tokens, output_stride]`
    pub output: &'a mut [f32],
}

/// Several products side by side: the threads meet once for all of them.
///
/// # Panics
/// As [`multiply`] does.
pub fn multiply_all(simd: &Simd, parts: &mut [Part<'_>]) {
    // Those of a dense layer and one token are handed over without memory for tasks.
    if parts.len() <= MAX_PRODUCTS && parts.iter().all(|part| part.params.n_tokens == 1) {
        return multiply_one_token(simd, parts);
    }
    let mut tasks = Vec::new();
    for part in parts {
        let Some(product) = Product::of(simd, part) else { continue };
        product.cut(&part.params, &mut *part.output, &mut tasks);
    }
    let needed = tasks.iter().map(Task::needed).fold([0, 0], |[blocks, columns], own| [blocks.max(own[0]), columns.max(own[1])]);
    let scratch = || {
        let mut scratch = POOL.take();
        clear_for(&mut scratch.blocks, needed[0]);
        clear_for(&mut scratch.columns, needed[1]);
        scratch
    };
    for_each_large_part(&mut tasks, scratch, |scratch, _, task| task.run(scratch));
}

/// Products of one token each.
fn multiply_one_token(simd: &Simd, parts: &mut [Part<'_>]) {
    match parts {
        [] => {}
        [part] => {
            let Some(product) = Product::of(simd, part) else { return };
            let rows_per_task = product.rows_per_task();
            let output = &mut part.output[part.params.output_row_begin as usize..][..product.n_rows];
            if rows_per_task >= product.n_rows {
                return product.one_token(0, output);
            }
            for_each_part(output, rows_per_task, || (), |(), task, output| product.one_token(task * rows_per_task, output));
        }
        parts => {
            let (first, rest) = parts.split_at_mut(1);
            rayon::join(|| multiply_one_token(simd, first), || multiply_one_token(simd, rest));
        }
    }
}

static POOL: Pool<Scratch> = Pool::new();

/// Memory of one thread, all that it needs.
#[derive(Default)]
struct Scratch {
    blocks: Vec<PanelBlock>,
    columns: Vec<PanelColumn>,
}

impl Working for Scratch {
    fn n_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<PanelBlock>() + self.columns.capacity() * size_of::<PanelColumn>()
    }
}

/// Panels of so many columns that are arranged at once.
fn tile_panels_at_once(n_padded: usize) -> usize {
    (UNPACKED_BYTES / (n_padded * size_of::<PanelColumn>())).max(1)
}

/// Rows of a product that one thread computes.
struct Task<'p, 'o> {
    product: Product<'p>,
    first_row: usize,
    outputs: Outputs<'o>,
}

/// Where the rows of a task go: a slice for each token.
enum Outputs<'o> {
    One(&'o mut [f32]),
    Many(Vec<&'o mut [f32]>),
}

impl Task<'_, '_> {
    /// Blocks and columns of [`Scratch`].
    fn needed(&self) -> [usize; 2] {
        let (product, Outputs::Many(outputs)) = (&self.product, &self.outputs) else { return [0, 0] };
        let n_rows = outputs.first().map_or(0, |output| output.len());
        let (n_blocks, n_padded) = (product.n_columns / BLOCK_LEN, padded(product.n_columns));
        match product.operand {
            Operand::Blocks(_) => [product.panels_at_once(n_blocks).min(n_rows.div_ceil(PANEL_ROWS)) * n_blocks, 0],
            Operand::Tiles(_) => [0, tile_panels_at_once(n_padded).min(n_rows.div_ceil(FLOAT_PANEL_ROWS)) * n_padded],
            Operand::Floats(_) => [0, 0],
        }
    }

    fn run(&mut self, scratch: &mut Scratch) {
        match &mut self.outputs {
            Outputs::One(output) => self.product.one_token(self.first_row, output),
            Outputs::Many(outputs) => self.product.many_tokens(self.first_row, outputs, scratch),
        }
    }
}

/// What all threads know.
#[derive(Clone, Copy)]
struct Product<'a> {
    simd: &'a Simd,
    dtype: DType,
    weight: &'a [u8],
    row_bytes: usize,
    n_rows: usize,
    n_columns: usize,
    operand: Operand<'a>,
    accumulates: bool,
}

impl<'a> Product<'a> {
    /// That of `part`; `None` where there is no such dtype.
    fn of(simd: &'a Simd, part: &Part<'a>) -> Option<Product<'a>> {
        let Part { params, weight, operand, .. } = *part;
        let (dtype, row_bytes) = (params.dtype()?, params.row_bytes()? as usize);
        let [n_rows, n_columns, n_tokens] = [params.n_rows, params.n_columns, params.n_tokens].map(|n| n as usize);
        assert!(operand.holds(n_tokens, n_columns), "the operand is not {n_tokens} times {n_columns} values");
        Some(Product { simd, dtype, weight, row_bytes, n_rows, n_columns, operand, accumulates: params.accumulates != 0 })
    }

    /// Adds its tasks to `tasks`: ranges of rows.
    fn cut<'o>(self, params: &Params, output: &'o mut [f32], tasks: &mut Vec<Task<'a, 'o>>) {
        let [n_tokens, stride, begin] = [params.n_tokens, params.output_stride, params.output_row_begin].map(|n| n as usize);
        let rows_per_task = self.rows_per_task();
        let task = |(index, outputs): (usize, Outputs<'o>)| Task { product: self, first_row: index * rows_per_task, outputs };
        if n_tokens == 1 {
            let parts = output[begin..begin + self.n_rows].chunks_mut(rows_per_task);
            return tasks.extend(parts.map(Outputs::One).enumerate().map(task));
        }
        let mut outputs: Vec<Vec<&mut [f32]>> = (0..self.n_rows.div_ceil(rows_per_task)).map(|_| Vec::with_capacity(n_tokens)).collect();
        for token in output.chunks_mut(stride).take(n_tokens) {
            let parts = token[begin..begin + self.n_rows].chunks_mut(rows_per_task);
            outputs.iter_mut().zip(parts).for_each(|(outputs, part)| outputs.push(part));
        }
        tasks.extend(outputs.into_iter().map(Outputs::Many).enumerate().map(task));
    }

    /// Whole panels. Of the cuts into more or fewer tasks, the coarsest of those that occupy the threads for the shortest.
    fn rows_per_task(&self) -> usize {
        let panel_rows = if matches!(self.operand, Operand::Tiles(_)) { FLOAT_PANEL_ROWS } else { PANEL_ROWS };
        let (n_panels, n_threads) = (self.n_rows.div_ceil(panel_rows).max(1), n_sharing_threads());
        let n_tasks_max = (self.n_rows * self.row_bytes / MIN_TASK_BYTES).max(1);
        let panels_of_task = TASKS_PER_THREAD
            .map(|n_tasks| n_panels.div_ceil(n_tasks_max.min(n_tasks * n_threads)))
            .min_by_key(|panels| n_panels.div_ceil(*panels).div_ceil(n_threads) * panels);
        panels_of_task.unwrap_or(n_panels) * panel_rows
    }

    /// Panels of so many blocks that are unpacked at once.
    fn panels_at_once(&self, n_blocks: usize) -> usize {
        let at_a_time = if self.simd.multiply_two_panels.is_some() { 2 } else { 1 };
        (UNPACKED_BYTES / (n_blocks * size_of::<PanelBlock>())).max(1).next_multiple_of(at_a_time)
    }

    fn row(&self, row: usize) -> &[u8] {
        &self.weight[row * self.row_bytes..][..self.row_bytes]
    }

    /// Rows from `first` on; behind the last row of the matrix, that one again.
    fn rows<const N: usize>(&self, first: usize) -> [&[u8]; N] {
        std::array::from_fn(|row| self.row((first + row).min(self.n_rows - 1)))
    }

    /// The rows from `first_row` on times the only token.
    fn one_token(&self, first_row: usize, output: &mut [f32]) {
        for (panel, output) in output.chunks_mut(PANEL_ROWS).enumerate() {
            let first = first_row + panel * PANEL_ROWS;
            let rows = self.rows(first);
            let products = match (self.operand, self.dtype.floats()) {
                (Operand::Blocks(token), None) => (self.simd.multiply_rows)(self.dtype, &rows, token),
                (Operand::Floats(token), Some(floats)) => (self.simd.dot_rows)(floats, &rows, &token[..self.n_columns]),
                _ => self.refuse(),
            };
            self.put_row(&products, output);
        }
    }

    /// The rows from `first_row` on times all tokens. `outputs` has a slice for each token.
    fn many_tokens(&self, first_row: usize, outputs: &mut [&mut [f32]], scratch: &mut Scratch) {
        match (self.operand, self.dtype.floats()) {
            (Operand::Blocks(tokens), None) if outputs.len() <= FEW_TOKENS => {
                let tokens = tokens.chunks_exact(self.n_columns / BLOCK_LEN);
                self.few_tokens(tokens, first_row, outputs, |rows, token| (self.simd.multiply_rows)(self.dtype, rows, token));
            }
            (Operand::Blocks(tokens), None) => self.many_blocks(tokens, first_row, outputs, scratch),
            (Operand::Tiles(tiles), Some(floats)) => self.many_tiles(floats, tiles, first_row, outputs, scratch),
            (Operand::Floats(tokens), Some(floats)) => {
                let tokens = tokens.chunks_exact(self.n_columns);
                self.few_tokens(tokens, first_row, outputs, |rows, token| (self.simd.dot_rows)(floats, rows, token));
            }
            _ => self.refuse(),
        }
    }

    fn refuse(&self) -> ! {
        panic!("a matrix of {} meets an operand of another kind", self.dtype)
    }

    fn many_blocks(&self, tokens: &[TokenBlock], first_row: usize, outputs: &mut [&mut [f32]], scratch: &mut Scratch) {
        let n_blocks = self.n_columns / BLOCK_LEN;
        let panels_at_once = self.panels_at_once(n_blocks);
        let n_rows = outputs.first().map_or(0, |output| output.len());
        let mut products = [[[0.0; PANEL_ROWS]; TOKENS_AT_ONCE]; 2];
        for begin in (0..n_rows).step_by(panels_at_once * PANEL_ROWS) {
            let end = n_rows.min(begin + panels_at_once * PANEL_ROWS);
            scratch.blocks.resize((end - begin).div_ceil(PANEL_ROWS) * n_blocks, PanelBlock::ZERO);
            for (panel, row) in scratch.blocks.chunks_exact_mut(n_blocks).zip((begin..end).step_by(PANEL_ROWS)) {
                (self.simd.unpack)(self.dtype, &self.rows(first_row + row), panel);
            }
            for (tokens, outputs) in tokens.chunks(TOKENS_AT_ONCE * n_blocks).zip(outputs.chunks_mut(TOKENS_AT_ONCE)) {
                for (panels, row) in scratch.blocks.chunks(2 * n_blocks).zip((begin..end).step_by(2 * PANEL_ROWS)) {
                    let [first, last] = products.each_mut().map(|products| &mut products[..outputs.len()]);
                    self.multiply_panels(panels, tokens, [&mut *first, &mut *last]);
                    self.put(first, row, outputs);
                    if panels.len() > n_blocks {
                        self.put(last, row + PANEL_ROWS, outputs);
                    }
                }
            }
        }
    }

    /// Gives each token its products of a panel whose first row is `row`; the panel may have rows behind the last.
    fn put<const N: usize>(&self, products: &[[f32; N]], row: usize, outputs: &mut [&mut [f32]]) {
        for (products, output) in products.iter().zip(outputs) {
            let n_rows = N.min(output.len() - row);
            self.put_row(products, &mut output[row..][..n_rows]);
        }
    }

    /// Gives a token its products, or adds them.
    fn put_row<const N: usize>(&self, products: &[f32; N], output: &mut [f32]) {
        match self.accumulates {
            true => output.iter_mut().zip(products).for_each(|(sum, product)| *sum += product),
            false => output.copy_from_slice(&products[..output.len()]),
        }
    }

    /// One panel or two of them.
    fn multiply_panels(&self, panels: &[PanelBlock], tokens: &[TokenBlock], [first, last]: [&mut [PanelProducts]; 2]) {
        let (panel, other) = panels.split_at(self.n_columns / BLOCK_LEN);
        match self.simd.multiply_two_panels {
            Some(multiply_two_panels) if !other.is_empty() => multiply_two_panels(self.dtype, [panel, other], tokens, [first, last]),
            _ => {
                (self.simd.multiply_panel)(self.dtype, panel, tokens, first);
                if !other.is_empty() {
                    (self.simd.multiply_panel)(self.dtype, other, tokens, last);
                }
            }
        }
    }

    fn many_tiles(&self, floats: Floats, tiles: &[TileColumn], first_row: usize, outputs: &mut [&mut [f32]], scratch: &mut Scratch) {
        let n_padded = padded(self.n_columns);
        let panels_at_once = tile_panels_at_once(n_padded);
        let n_rows = outputs.first().map_or(0, |output| output.len());
        let mut products = [[0.0; FLOAT_PANEL_ROWS]; TILE_TOKENS];
        for begin in (0..n_rows).step_by(panels_at_once * FLOAT_PANEL_ROWS) {
            let end = n_rows.min(begin + panels_at_once * FLOAT_PANEL_ROWS);
            scratch.columns.resize((end - begin).div_ceil(FLOAT_PANEL_ROWS) * n_padded, PanelColumn::ZERO);
            for (panel, row) in scratch.columns.chunks_exact_mut(n_padded).zip((begin..end).step_by(FLOAT_PANEL_ROWS)) {
                (self.simd.arrange)(floats, self.n_columns, &self.rows(first_row + row), panel);
            }
            for (tile, outputs) in tiles.chunks_exact(n_padded).zip(outputs.chunks_mut(TILE_TOKENS)) {
                for (panel, row) in scratch.columns.chunks_exact(n_padded).zip((begin..end).step_by(FLOAT_PANEL_ROWS)) {
                    let products = &mut products[..outputs.len()];
                    (self.simd.multiply_tile)(panel, tile, products);
                    self.put(products, row, outputs);
                }
            }
        }
    }

    /// Each eight rows come from memory for the first token and from a cache for the others.
    fn few_tokens<'t, T: 't>(
        &self,
        tokens: impl Iterator<Item = &'t [T]> + Clone,
        first_row: usize,
        outputs: &mut [&mut [f32]],
        multiply: impl Fn(&PanelRows<'_>, &'t [T]) -> PanelProducts,
    ) {
        let n_rows = outputs.first().map_or(0, |output| output.len());
        for row in (0..n_rows).step_by(PANEL_ROWS) {
            let panel = self.rows(first_row + row);
            for (output, token) in outputs.iter_mut().zip(tokens.clone()) {
                self.put(&[multiply(&panel, token)], row, std::slice::from_mut(output));
            }
        }
    }
}
