//! Matrix products: `output[t, output_row_begin + r] = Σ_k weight[r, k] · input[t, k]`, weights as they are stored.
//! Chooses the kernel by the number of tokens; holds the one reference of all variants. Up to three products of one input can
//! share a dispatch, and a product can add to its output: fewer dispatches, the same bits.

pub mod subgroup;
pub mod tile;
pub mod unaligned;
pub mod vec;

use bytemuck::{Pod, Zeroable};

use super::{Binding, MAX_PRODUCTS, Needed, f32_bytes, is_software, require};
use crate::device::{MatMulVariant, Phase};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu, KernelSource};
use crate::model::LoraMatMul;
use crate::weights::TensorInfo;

/// Most tokens of a product that counts as one of decoding. For more of them, decoding the weights once for every four tokens costs
/// more than tiles do.
pub const MAX_DECODE_TOKENS: u32 = 8;

/// What [`Params::weight_begin`] counts in, in bytes: WebGPU's largest alignment of storage offsets.
pub const WEIGHT_ALIGNMENT: u64 = 256;

/// Params of every variant, for one product.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Params {
    /// Rows of the weight (of this slice of it).
    pub n_rows: u32,
    /// Columns of the weight; values of a token.
    pub n_columns: u32,
    /// Rows of the input.
    pub n_tokens: u32,
    /// Values between two tokens of the output: the rows of the whole weight.
    pub output_stride: u32,
    /// Where this slice's first row goes in each token's output.
    pub output_row_begin: u32,
    /// [`dtype_code`] of the weight.
    pub dtype: u32,
    /// Where the first row begins in its binding, in units of [`WEIGHT_ALIGNMENT`].
    pub weight_begin: u32,
    /// 0: the output is replaced; 1: it is added to.
    pub accumulates: u32,
}

impl Params {
    /// A whole weight, of `n_rows` rows.
    pub fn new(dtype: DType, n_rows: u32, n_columns: u32, n_tokens: u32) -> Params {
        let (dtype, output_stride) = (dtype_code(dtype), n_rows);
        Params { n_rows, n_columns, n_tokens, output_stride, output_row_begin: 0, dtype, weight_begin: 0, accumulates: 0 }
    }

    /// Rows of `tensor`, as many as `n_rows` from `row_begin` on.
    pub fn of_rows(tensor: &TensorInfo, row_begin: u64, n_rows: u64, n_tokens: u32) -> Params {
        let whole = Params::new(tensor.dtype, tensor.n_rows() as u32, tensor.n_columns() as u32, n_tokens);
        whole.slice(row_begin as u32, n_rows as u32)
    }

    /// The matrix of a LoRA adapter.
    pub fn of_lora(op: &LoraMatMul, n_tokens: u32) -> Params {
        let whole = Params::new(DType::F32, op.n_rows as u32, op.n_columns as u32, n_tokens);
        if op.accumulates { whole.accumulating() } else { whole }
    }

    /// The slice of `n_rows` rows from `row_begin` on of the weight that `self` describes.
    #[must_use]
    pub fn slice(self, row_begin: u32, n_rows: u32) -> Params {
        Params { n_rows, output_row_begin: self.output_row_begin + row_begin, ..self }
    }

    /// The product that is added to its output.
    #[must_use]
    pub fn accumulating(self) -> Params {
        Params { accumulates: 1, ..self }
    }

    /// Whether one dispatch can compute both, if they have the same input.
    pub fn can_share_dispatch(&self, other: &Params) -> bool {
        let shared = |params: &Params| (params.dtype, params.n_columns, params.n_tokens, params.accumulates);
        shared(self) == shared(other) && self.accumulates == 0 && self.has_whole_quads()
    }

    /// The weight's dtype; `None` where the code is none.
    pub fn dtype(&self) -> Option<DType> {
        DType::ALL.get(self.dtype as usize).copied()
    }

    /// Whether each row is whole quads of words, or of blocks: what the fast variants read.
    pub(super) fn has_whole_quads(&self) -> bool {
        self.dtype().is_some_and(|dtype| dtype.has_blocks() || self.row_bytes().is_some_and(|bytes| bytes.is_multiple_of(16)))
    }

    /// The override constants by which shaders know the weight's dtype.
    pub(super) fn dtype_constants(&self) -> [(&'static str, f64); 4] {
        let layout = self.dtype().and_then(DType::blocks);
        let [len, bytes, apart] = layout.map_or([32, 0, 16], |layout| [layout.len, layout.bytes, layout.apart]);
        [("DTYPE", f64::from(self.dtype)), ("BLOCK_LEN", len as f64), ("BLOCK_BYTES", bytes as f64), ("APART", apart as f64)]
    }

    /// Whether this is a product of few tokens, as in decoding, or of many, as in prefill.
    pub fn phase(&self) -> Phase {
        if self.n_tokens <= MAX_DECODE_TOKENS { Phase::Decode } else { Phase::Prefill }
    }

    /// Bytes of one row, or `None` where it is no whole number of blocks.
    pub fn row_bytes(&self) -> Option<u64> {
        self.dtype()?.size_bytes(u64::from(self.n_columns))
    }
}

/// Buffers of a product that has a dispatch of its own.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_rows, n_columns]` as stored.
    pub weight: Binding<'a>,
    /// `[n_tokens, n_columns]`.
    pub input: Binding<'a>,
    /// `[n_tokens, output_stride]`.
    pub output: Binding<'a>,
}

/// Products of one input that share a dispatch, with their buffers.
#[derive(Debug, Clone, Copy)]
pub struct Products<'a> {
    /// One to [`MAX_PRODUCTS`]; of several, each [can share the dispatch](Params::can_share_dispatch) with the others.
    pub params: &'a [Params],
    /// All the matrices as stored, each from its `weight_begin` on.
    pub weight: Binding<'a>,
    /// `[n_tokens, n_columns]`.
    pub input: Binding<'a>,
    /// For each product `[n_tokens, output_stride]`, in a buffer of its own.
    pub outputs: &'a [Binding<'a>],
}

impl Products<'_> {
    /// What all products have in common; of none, what no kernel accepts.
    pub(super) fn common(&self) -> Params {
        self.params.first().copied().unwrap_or_else(Params::zeroed)
    }

    /// Groups of `rows` rows, none of which holds rows of two products.
    pub(super) fn n_groups(&self, rows: u32) -> u64 {
        self.params.iter().map(|params| u64::from(params.n_rows.div_ceil(rows))).sum()
    }

    /// The row of the kernel table for so many products.
    pub(super) fn kernel(&self, kernels: &'static [KernelSource; MAX_PRODUCTS]) -> &'static KernelSource {
        &kernels[self.params.len().clamp(1, MAX_PRODUCTS) - 1]
    }

    /// The bindings in the order of the kernel table, with the bytes that they demand.
    pub(super) fn needed(&self, gpu: &Gpu, stem: &str) -> Result<Vec<Needed<'_>>> {
        let common = self.common();
        let row_bytes = common.row_bytes().unwrap_or(0);
        require(gpu, stem, row_bytes > 0 && common.n_tokens > 0, "empty, or its rows are no whole number of blocks")?;
        let is_alone = self.params.len() == 1;
        let can_share = self.params.len() <= MAX_PRODUCTS && self.params.iter().all(|params| common.can_share_dispatch(params));
        require(gpu, stem, (is_alone || can_share) && self.outputs.len() == self.params.len(), "its products cannot share a dispatch")?;
        let mut weight_bytes = 0;
        for params in self.params {
            let row_end = params.output_row_begin.checked_add(params.n_rows);
            require(gpu, stem, params.n_rows > 0, "a matrix is empty")?;
            require(gpu, stem, row_end.is_some_and(|end| end <= params.output_stride), "its rows leave the output")?;
            let begin = u64::from(params.weight_begin) * WEIGHT_ALIGNMENT;
            weight_bytes = weight_bytes.max(begin.saturating_add(row_bytes.saturating_mul(u64::from(params.n_rows))));
        }
        let mut needed = vec![(self.weight, weight_bytes), (self.input, f32_bytes(&[common.n_tokens, common.n_columns]))];
        needed.extend(
            self.outputs.iter().zip(self.params).map(|(output, params)| (*output, f32_bytes(&[params.n_tokens, params.output_stride]))),
        );
        Ok(needed)
    }
}

/// The params of products that share a dispatch, as the shaders read them; the unused ones are zero.
pub fn padded(params: &[Params]) -> [Params; MAX_PRODUCTS] {
    let mut padded = [Params::zeroed(); MAX_PRODUCTS];
    padded.iter_mut().zip(params).for_each(|(to, from)| *to = *from);
    padded
}

/// The number that stands for `dtype` in params and shaders: its row in the table of dtypes.
pub const fn dtype_code(dtype: DType) -> u32 {
    dtype as u32
}

/// Makes the dispatch of the variant that suits `params`. The choice sees tokens, columns and dtype, never the rows:
/// slices of one weight must run the same arithmetic.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or a row is no whole number of blocks.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    prepare_products(gpu, params_buffer, &alone(params, &bindings))
}

/// As [`prepare`], for products that share a dispatch; its params are [`padded`].
///
/// # Errors
/// As [`prepare`], and where the products cannot share a dispatch.
pub fn prepare_products(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>) -> Result<Dispatch> {
    match chosen(gpu, &products.common()) {
        Some(variant) => prepare_products_as(gpu, params_buffer, products, variant),
        None => unaligned::prepare(gpu, params_buffer, products),
    }
}

fn alone<'a>(params: &'a Params, bindings: &'a Bindings<'a>) -> Products<'a> {
    let Bindings { weight, input, output } = bindings;
    Products { params: std::slice::from_ref(params), weight: *weight, input: *input, outputs: std::slice::from_ref(output) }
}

/// Makes the dispatch of this variant.
///
/// # Errors
/// As [`prepare`]; where the variant is none of [`variants`].
pub fn prepare_as(
    gpu: &Gpu,
    params_buffer: &wgpu::Buffer,
    params: &Params,
    bindings: Bindings<'_>,
    variant: MatMulVariant,
) -> Result<Dispatch> {
    prepare_products_as(gpu, params_buffer, &alone(params, &bindings), variant)
}

/// As [`prepare_as`], for products that share a dispatch; its params are [`padded`].
///
/// # Errors
/// As [`prepare_products`]; where the variant is none of [`variants`].
pub fn prepare_products_as(gpu: &Gpu, params_buffer: &wgpu::Buffer, products: &Products<'_>, variant: MatMulVariant) -> Result<Dispatch> {
    match variant {
        MatMulVariant::Lane => vec::prepare(gpu, params_buffer, products, None),
        MatMulVariant::Workgroup(shape) => vec::prepare(gpu, params_buffer, products, Some(shape)),
        MatMulVariant::Tile(shape) => tile::prepare(gpu, params_buffer, products, shape),
        MatMulVariant::Subgroup => subgroup::prepare(gpu, params_buffer, products),
    }
}

/// The variants to try for a product on this adapter: first what the kind of adapter suggests. Those that have shapes are listed in the
/// first of them. None where rows are no whole quads of words, which one kernel alone computes.
pub fn variants(gpu: &Gpu, params: &Params) -> Vec<MatMulVariant> {
    if !params.has_whole_quads() {
        return Vec::new();
    }
    let mut variants = match (is_software(gpu), params.phase()) {
        (true, _) => vec![MatMulVariant::Subgroup, MatMulVariant::Lane],
        (false, Phase::Decode) => vec![MatMulVariant::WORKGROUP, MatMulVariant::Lane, MatMulVariant::Subgroup],
        (false, Phase::Prefill) => vec![MatMulVariant::TILE, MatMulVariant::Subgroup],
    };
    variants.retain(|variant| is_possible(gpu, params, *variant));
    variants
}

/// As [`variants`], and behind them those that other kinds of adapter are suggested.
pub fn all_variants(gpu: &Gpu, params: &Params) -> Vec<MatMulVariant> {
    let mut all = variants(gpu, params);
    for variant in [MatMulVariant::WORKGROUP, MatMulVariant::Lane, MatMulVariant::TILE, MatMulVariant::Subgroup] {
        if is_possible(gpu, params, variant) && !all.contains(&variant) {
            all.push(variant);
        }
    }
    all
}

/// Whether the adapter can run the product in this variant.
fn is_possible(gpu: &Gpu, params: &Params, variant: MatMulVariant) -> bool {
    params.has_whole_quads() && (variant != MatMulVariant::Subgroup || subgroup::is_possible(gpu, params))
}

/// The variant that was measured to be fastest, where the product can take it, else the first of [`variants`].
fn chosen(gpu: &Gpu, params: &Params) -> Option<MatMulVariant> {
    let measured = params.dtype().and_then(|dtype| gpu.spec.rates.variants.of(dtype, params.phase()));
    measured.filter(|variant| is_possible(gpu, params, *variant)).or_else(|| variants(gpu, params).first().copied())
}

/// CPU twin of all variants. `weight`: the rows' bytes; `input` `[n_tokens, n_columns]`; `output` `[n_tokens, output_stride]`.
///
/// # Panics
/// Where the slices are shorter than `params` say, or its dtype is none: a bug of the caller.
pub fn reference(params: &Params, weight: &[u8], input: &[f32], output: &mut [f32]) {
    let dtype = params.dtype().expect("a dtype code");
    let row_bytes = params.row_bytes().expect("whole blocks") as usize;
    let [n_columns, stride] = [params.n_columns, params.output_stride].map(|n| n as usize);
    let mut scratch = vec![0.0; n_columns];
    for row in 0..params.n_rows as usize {
        let bytes = &weight[row * row_bytes..][..row_bytes];
        for token in 0..params.n_tokens as usize {
            let value = reference_row(dtype, bytes, &input[token * n_columns..][..n_columns], &mut scratch);
            output[token * stride + params.output_row_begin as usize + row] = value;
        }
    }
}

/// One row times one token. `scratch` holds a decoded row: `input.len()` values.
pub fn reference_row(dtype: DType, row_bytes: &[u8], input: &[f32], scratch: &mut [f32]) -> f32 {
    dtype.decode(row_bytes, scratch);
    dot(scratch, input)
}

/// `Σ a·b`, in sixteen partial sums: compilers turn them into vector lanes, and the error grows more slowly than in one.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<16>();
    let (b_lanes, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
