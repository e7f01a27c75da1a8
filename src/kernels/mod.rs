//! The operations on a GPU, one a file: params, bindings, `prepare`, and a plain CPU `reference`. Knows no layers and no tiers.
//!
//! All activations are f32, row-major. `prepare` checks every binding against the params, so a shader never leaves a buffer;
//! the shaders themselves run without bounds checks.

pub mod add;
pub mod add_bias;
pub mod add_expert_bias;
pub mod attention;
pub mod back;
pub mod conv;
pub mod copy_part;
pub mod delta_rule;
pub mod expert_matmul;
pub mod gate_rows;
pub mod gather_rows;
pub mod glu;
pub mod kv_tables;
pub mod layer_norm;
pub mod map;
pub mod matmul;
pub(crate) mod params;
pub mod rms_norm;
pub mod rope;
pub mod rope_kv;
pub mod rope_kv_blocks;
pub mod rope_kv_padded;
pub mod route;
pub mod sum_experts;
pub mod top_k;
pub mod weigh_inputs;

use crate::device::AdapterKind;
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::Access::{Read, Write};
use crate::gpu::{Access, BUFFER_ALIGNMENT, Dispatch, Gpu, KernelSource};
use crate::model::Value;

/// What params depend on besides the operation: the forward and the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Tokens of the forward.
    pub n_tokens: u32,
    /// Positions whose logits are asked for.
    pub n_logit_rows: u32,
    /// Sequences that may be there.
    pub n_seqs: u32,
    /// Blocks in the caches of keys and values.
    pub n_blocks: u32,
    /// Positions that a sequence may have.
    pub kv_capacity: u32,
    /// How the caches of keys and of values store them.
    pub kv_dtypes: [rope_kv::CacheDType; 2],
}

impl BatchShape {
    /// Rows of `value` in this forward.
    pub fn rows_of(&self, value: &Value) -> u32 {
        value.n_rows(self.n_tokens as usize, self.n_logit_rows as usize) as u32
    }

    /// Numbers in `value` in this forward.
    fn n_values(&self, value: &Value) -> u32 {
        self.rows_of(value) * value.width as u32
    }
}

/// A part of a buffer that a kernel reads or writes. A buffer that is written may not be read by the same dispatch.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    /// The buffer, with usage `STORAGE`.
    pub buffer: &'a wgpu::Buffer,
    /// Where it begins, in bytes; a multiple of the adapter's storage alignment (256 is always right).
    pub offset: u64,
    /// Its size in bytes; may be larger than what the kernel needs.
    pub size: u64,
}

impl<'a> Binding<'a> {
    /// The whole of `buffer`.
    pub fn whole(buffer: &'a wgpu::Buffer) -> Binding<'a> {
        Binding { buffer, offset: 0, size: buffer.size() }
    }

    /// What of it is behind its first `bytes`.
    fn behind(self, bytes: u64) -> Binding<'a> {
        Binding { offset: self.offset.saturating_add(bytes), size: self.size.saturating_sub(bytes), ..self }
    }

    /// `size` bytes at `offset`.
    pub fn part(buffer: &'a wgpu::Buffer, offset: u64, size: u64) -> Binding<'a> {
        Binding { buffer, offset, size }
    }
}

/// The table of all kernels. Each shader's entry point is `main`; binding 0 is its `Params`; group 0 is the only group.
/// WebGPU guarantees 8 storage buffers per stage: no row may have more.
/// The variants of the matrix product have a row for each number of products in a dispatch.
pub static KERNELS: [&KernelSource; 51] = [
    &MATMUL_VEC[0],
    &MATMUL_VEC[1],
    &MATMUL_VEC[2],
    &MATMUL_TILE[0],
    &MATMUL_TILE[1],
    &MATMUL_TILE[2],
    &MATMUL_SUBGROUP[0],
    &MATMUL_SUBGROUP[1],
    &MATMUL_SUBGROUP[2],
    &MATMUL_UNALIGNED,
    &RMS_NORM,
    &LAYER_NORM,
    &ROPE,
    &ROPE_KV,
    &ROPE_KV_PADDED,
    &ROPE_KV_BLOCKS,
    &ATTENTION_TOKEN,
    &ATTENTION_TILE,
    &ATTENTION_SUBGROUP,
    &ATTENTION_SUBGROUP_TILE,
    &ATTENTION_COMBINE,
    &ATTENTION_COMPACT,
    &CONV,
    &COPY_PART,
    &DELTA_RULE,
    &GLU,
    &MAP,
    &ADD,
    &ADD_BIAS,
    &GATHER_ROWS,
    &TOP_K,
    &ROUTE,
    &EXPERT_MATMUL,
    &EXPERT_MATMUL_TILE,
    &EXPERT_MATMUL_SUBGROUP,
    &SUM_EXPERTS,
    &GATE_ROWS,
    &ADD_EXPERT_BIAS,
    &WEIGH_INPUTS,
    &MATMUL_BACK,
    &ADD_OUTER,
    &RMS_NORM_BACK,
    &LAYER_NORM_BACK,
    &GLU_BACK,
    &MAP_BACK,
    &SCATTER_ROWS,
    &ATTENTION_DENSE,
    &ATTENTION_BACK_QUERY,
    &ATTENTION_BACK_KEYS,
    &SOFTMAX_TOTALS,
    &SOFTMAX_BACK,
];

/// Source text of `shaders/<stem>.wgsl`, with the shared files named after it at its end.
macro_rules! wgsl {
    ($stem:literal $(, $shared:literal)*) => {
        concat!(include_str!(concat!("../../shaders/", $stem, ".wgsl")) $(, include_str!(concat!("../../shaders/shared/", $shared, ".wgsl")))*)
    };
}

/// Most products that share a dispatch: query, key and value.
pub const MAX_PRODUCTS: usize = 3;

/// The rows of one variant of the matrix product, for one, two and three products in a dispatch; with the shared files that it
/// needs beside those of all variants.
macro_rules! products {
    ($stem:literal $(, $shared:literal)*) => {
        [
            row::<[matmul::Params; 1]>($stem, wgsl!($stem, "matmul_params", "decode", "blocks", $($shared,)* "products", "products_1"), MATMUL),
            row::<[matmul::Params; 2]>($stem, wgsl!($stem, "matmul_params", "decode", "blocks", $($shared,)* "products", "products_2"), MATMUL_2),
            row::<[matmul::Params; 3]>($stem, wgsl!($stem, "matmul_params", "decode", "blocks", $($shared,)* "products", "products_3"), MATMUL_3),
        ]
    };
}

const MATMUL: &[(&str, Access)] = &[("weight", Read), ("input", Read), ("output", Write), ("grid", Read)];
const MATMUL_2: &[(&str, Access)] = &[("weight", Read), ("input", Read), ("output_0", Write), ("output_1", Write), ("grid", Read)];
const MATMUL_3: &[(&str, Access)] =
    &[("weight", Read), ("input", Read), ("output_0", Write), ("output_1", Write), ("output_2", Write), ("grid", Read)];
static MATMUL_VEC: [KernelSource; MAX_PRODUCTS] = products!("matmul_vec", "bytes");
static MATMUL_TILE: [KernelSource; MAX_PRODUCTS] = products!("matmul_tile", "bytes", "weight_tile", "tile");
static MATMUL_SUBGROUP: [KernelSource; MAX_PRODUCTS] = products!("matmul_subgroup", "words", "pairs");
static MATMUL_UNALIGNED: KernelSource =
    row::<matmul::Params>("matmul_unaligned", wgsl!("matmul_unaligned", "matmul_params", "decode", "products_1"), MATMUL);
static RMS_NORM: KernelSource =
    row::<rms_norm::Params>("rms_norm", wgsl!("rms_norm", "norm", "lanes"), &[("input", Read), ("weight", Read), ("output", Write)]);
static LAYER_NORM: KernelSource = row::<layer_norm::Params>(
    "layer_norm",
    wgsl!("layer_norm", "norm", "lanes"),
    &[("input", Read), ("weight", Read), ("bias", Read), ("output", Write)],
);
static ROPE: KernelSource = row::<rope::Params>("rope", wgsl!("rope", "items"), &[("cos_sin", Read), ("heads", Write)]);
const ROPE_KV_BINDINGS: &[(&str, Access)] =
    &[("cos_sin", Read), ("tokens", Read), ("key", Read), ("value", Read), ("query", Write), ("key_cache", Write), ("value_cache", Write)];
static ROPE_KV: KernelSource =
    row::<rope_kv::Params>("rope_kv", wgsl!("rope_kv", "rope_kv_params", "kv_rows", "kv_dtypes", "items"), ROPE_KV_BINDINGS);
static ROPE_KV_BLOCKS: KernelSource =
    row::<rope_kv::Params>("rope_kv_blocks", wgsl!("rope_kv_blocks", "rope_kv_params", "kv_rows", "kv_dtypes", "turns"), ROPE_KV_BINDINGS);
static ROPE_KV_PADDED: KernelSource = row::<rope_kv::Params>(
    "rope_kv_padded",
    wgsl!("rope_kv_padded", "rope_kv_params", "kv_rows", "kv_dtypes", "turns", "items"),
    &[
        ("cos_sin", Read),
        ("tokens", Read),
        ("key", Read),
        ("value", Read),
        ("query", Read),
        ("rotated_query", Write),
        ("key_cache", Write),
        ("value_cache", Write),
    ],
);
const ATTENTION: &[(&str, Access)] =
    &[("query", Read), ("tokens", Read), ("key_cache", Read), ("value_cache", Read), ("sinks", Read), ("attention_output", Write)];
static ATTENTION_TOKEN: KernelSource = row::<attention::Params>(
    "attention_token",
    wgsl!("attention_token", "attention_params", "kv_rows", "attention", "kv_dtypes", "octets", "octets_of_quads"),
    ATTENTION,
);
static ATTENTION_TILE: KernelSource = row::<attention::Params>(
    "attention_tile",
    wgsl!("attention_tile", "attention_params", "kv_rows", "attention", "kv_dtypes", "octets", "octets_of_quads"),
    ATTENTION,
);
static ATTENTION_SUBGROUP: KernelSource = row::<attention::Params>(
    "attention_subgroup",
    wgsl!("attention_subgroup", "attention_params", "kv_rows", "attention", "kv_dtypes", "octets", "octets_of_words", "words"),
    ATTENTION,
);
static ATTENTION_SUBGROUP_TILE: KernelSource = row::<attention::Params>(
    "attention_subgroup_tile",
    wgsl!("attention_subgroup_tile", "attention_params", "kv_rows", "attention", "kv_dtypes", "octets", "octets_of_words", "words"),
    ATTENTION,
);
static ATTENTION_COMBINE: KernelSource = row::<attention::Params>(
    "attention_combine",
    wgsl!("attention_combine", "attention_params", "attention"),
    &[("tokens", Read), ("parts", Read), ("sinks", Read), ("attention_output", Write)],
);
static ATTENTION_COMPACT: KernelSource = row::<attention::Params>(
    "attention_compact",
    wgsl!("attention_compact", "attention_params", "items"),
    &[("padded", Read), ("attention_output", Write)],
);
static CONV: KernelSource = row::<conv::Params>(
    "conv",
    wgsl!("conv", "items"),
    &[("tokens", Read), ("input", Read), ("weight", Read), ("bias", Read), ("state", Write), ("output", Write)],
);
static COPY_PART: KernelSource = row::<copy_part::Params>("copy_part", wgsl!("copy_part", "items"), &[("input", Read), ("output", Write)]);
static DELTA_RULE: KernelSource = row::<delta_rule::Params>(
    "delta_rule",
    wgsl!("delta_rule", "items"),
    &[
        ("tokens", Read),
        ("input", Read),
        ("alpha", Read),
        ("beta", Read),
        ("decay", Read),
        ("bias", Read),
        ("state", Write),
        ("output", Write),
    ],
);
static GLU: KernelSource =
    row::<glu::Params>("glu", wgsl!("glu", "value_params", "activations", "items"), &[("gate", Read), ("up", Read), ("output", Write)]);
static MAP: KernelSource = row::<map::Params>("map", wgsl!("map", "activations", "items"), &[("target_values", Write)]);
static ADD: KernelSource = row::<add::Params>("add", wgsl!("add", "value_params", "items"), &[("input", Read), ("target_values", Write)]);
static ADD_BIAS: KernelSource =
    row::<add_bias::Params>("add_bias", wgsl!("add_bias", "row_params", "items"), &[("bias", Read), ("target_values", Write)]);
static GATHER_ROWS: KernelSource =
    row::<gather_rows::Params>("gather_rows", wgsl!("gather_rows", "items"), &[("input", Read), ("row_indices", Read), ("output", Write)]);
static TOP_K: KernelSource = row::<top_k::Params>("top_k", wgsl!("top_k"), &[("logits", Read), ("candidates", Write)]);
static ROUTE: KernelSource =
    row::<route::Params>("route", wgsl!("route"), &[("logits", Read), ("bias", Read), ("factors", Read), ("routing", Write)]);
static EXPERT_MATMUL: KernelSource = row::<expert_matmul::Params>(
    "expert_matmul",
    wgsl!("expert_matmul", "expert_matmul_params", "decode", "blocks", "bytes", "expert_blocks"),
    &[("weight", Read), ("input", Read), ("routing", Read), ("slots", Read), ("output", Write), ("grid", Read)],
);
static EXPERT_MATMUL_TILE: KernelSource = row::<expert_matmul::Params>(
    "expert_matmul_tile",
    wgsl!("expert_matmul_tile", "expert_matmul_params", "decode", "blocks", "bytes", "expert_blocks", "tile"),
    &[("weight", Read), ("input", Read), ("routing", Read), ("slots", Read), ("output", Write), ("grid", Read)],
);
static EXPERT_MATMUL_SUBGROUP: KernelSource = row::<expert_matmul::Params>(
    "expert_matmul_subgroup",
    wgsl!("expert_matmul_subgroup", "expert_matmul_params", "decode", "blocks", "words", "pairs"),
    &[("weight", Read), ("input", Read), ("routing", Read), ("slots", Read), ("output", Write), ("grid", Read)],
);
static SUM_EXPERTS: KernelSource = row::<sum_experts::Params>(
    "sum_experts",
    wgsl!("sum_experts", "expert_params", "items"),
    &[("input", Read), ("routing", Read), ("output", Write)],
);
static WEIGH_INPUTS: KernelSource = row::<weigh_inputs::Params>(
    "weigh_inputs",
    wgsl!("weigh_inputs", "expert_params", "items"),
    &[("input", Read), ("routing", Read), ("output", Write)],
);
static GATE_ROWS: KernelSource =
    row::<gate_rows::Params>("gate_rows", wgsl!("gate_rows", "row_params", "items"), &[("gate", Read), ("target_values", Write)]);
static ADD_EXPERT_BIAS: KernelSource = row::<add_expert_bias::Params>(
    "add_expert_bias",
    wgsl!("add_expert_bias", "expert_params", "items"),
    &[("bias", Read), ("routing", Read), ("target_values", Write)],
);

static MATMUL_BACK: KernelSource = row::<matmul::Params>(
    "matmul_back",
    wgsl!("matmul_back", "matmul_params", "decode", "blocks", "bytes", "weight_tile", "tile"),
    &[("weight", Read), ("upward", Read), ("into", Write), ("grid", Read)],
);
static ADD_OUTER: KernelSource =
    row::<back::products::OuterParams>("add_outer", wgsl!("add_outer", "items"), &[("left", Read), ("right", Read), ("into", Write)]);
const NORM_BACK: &[(&str, Access)] = &[("input", Read), ("weight", Read), ("upward", Read), ("into", Write)];
static RMS_NORM_BACK: KernelSource = row::<rms_norm::Params>("rms_norm_back", wgsl!("rms_norm_back", "norm", "lanes"), NORM_BACK);
static LAYER_NORM_BACK: KernelSource = row::<layer_norm::Params>("layer_norm_back", wgsl!("layer_norm_back", "norm", "lanes"), NORM_BACK);
static GLU_BACK: KernelSource = row::<glu::Params>(
    "glu_back",
    wgsl!("glu_back", "value_params", "activations", "slopes", "items"),
    &[("gate", Read), ("up", Read), ("upward", Read), ("of_gate", Write), ("of_up", Write)],
);
static MAP_BACK: KernelSource =
    row::<map::Params>("map_back", wgsl!("map_back", "activations", "slopes", "items"), &[("input", Read), ("gradient", Write)]);
static SCATTER_ROWS: KernelSource = row::<back::values::ScatterParams>(
    "scatter_rows",
    wgsl!("scatter_rows", "items"),
    &[("input", Read), ("row_indices", Read), ("into", Write)],
);
static ATTENTION_DENSE: KernelSource = row::<attention::Params>(
    "attention_dense",
    wgsl!("attention_dense", "attention_params", "attention_dense", "lanes"),
    &[("query", Read), ("keys", Read), ("values", Read), ("runs", Read), ("sinks", Read), ("attention_output", Write), ("totals", Write)],
);
static ATTENTION_BACK_QUERY: KernelSource = row::<attention::Params>(
    "attention_back_query",
    wgsl!("attention_back_query", "attention_params", "attention_dense", "attention_back", "lanes"),
    &[
        ("query", Read),
        ("keys", Read),
        ("values", Read),
        ("runs", Read),
        ("attention_output", Read),
        ("upward", Read),
        ("of_query", Write),
        ("totals", Write),
    ],
);
static ATTENTION_BACK_KEYS: KernelSource = row::<attention::Params>(
    "attention_back_keys",
    wgsl!("attention_back_keys", "attention_params", "attention_dense", "attention_back"),
    &[
        ("query", Read),
        ("keys", Read),
        ("values", Read),
        ("runs", Read),
        ("totals", Read),
        ("upward", Read),
        ("of_keys", Write),
        ("of_values", Write),
    ],
);
static SOFTMAX_TOTALS: KernelSource = row::<back::loss::Params>(
    "softmax_totals",
    wgsl!("softmax_totals", "softmax", "lanes"),
    &[("logits", Read), ("targets", Read), ("totals", Write)],
);
static SOFTMAX_BACK: KernelSource = row::<back::loss::Params>(
    "softmax_back",
    wgsl!("softmax_back", "softmax", "items"),
    &[("targets", Read), ("totals", Read), ("logits", Write)],
);

const fn row<P>(stem: &'static str, wgsl: &'static str, bindings: &'static [(&'static str, Access)]) -> KernelSource {
    KernelSource { stem, wgsl, params_bytes: size_of::<P>() as u64, bindings }
}

/// Whether the adapter is software, where few lanes with much work each beat many lanes that meet at barriers.
fn is_software(gpu: &Gpu) -> bool {
    gpu.spec.kind == Some(AdapterKind::Software)
}

/// Lanes of a workgroup that computes one row: LANES of the shaders that say so.
fn lanes_of_row(gpu: &Gpu) -> f64 {
    if is_software(gpu) { 8.0 } else { 64.0 }
}

/// A binding and the bytes of it that the params demand.
type Needed<'a> = (Binding<'a>, u64);

/// Checks the bindings and makes the dispatch: the common end of every `prepare`.
fn dispatch(
    gpu: &Gpu,
    kernel: &'static KernelSource,
    constants: &[(&'static str, f64)],
    params_buffer: &wgpu::Buffer,
    bindings: &[Needed<'_>],
    workgroups: [u32; 3],
) -> Result<Dispatch> {
    let mut parts = vec![(params_buffer.clone(), 0, kernel.params_bytes)];
    for (&(bound, needed), &(name, _)) in bindings.iter().zip(kernel.bindings) {
        let size = checked_size(gpu, kernel.stem, name, bound, needed)?;
        parts.push((bound.buffer.clone(), bound.offset, size));
    }
    let pipeline = gpu.pipeline(kernel, constants);
    Ok(Dispatch { bind_group: gpu.bind_group(kernel.stem, pipeline.layout(), parts), pipeline, workgroups })
}

/// As [`dispatch`], of a kernel that reads a matrix of this dtype, the first of the bindings, and whose last binding is the dtype's grid.
fn dispatch_of_matrix(
    gpu: &Gpu,
    kernel: &'static KernelSource,
    constants: &[(&'static str, f64)],
    params_buffer: &wgpu::Buffer,
    (dtype, bindings): (Option<DType>, &[Needed<'_>]),
    workgroups: [u32; 3],
) -> Result<Dispatch> {
    let grid = dtype.and_then(DType::grid).map(|grid| gpu.table(grid)).transpose()?;
    let mut bindings = bindings.to_vec();
    // Where there is no grid, something must be bound all the same.
    let stand_in = bindings.first().map(|(weight, _)| (*weight, 0));
    bindings.extend(grid.as_ref().map(|grid| (Binding::whole(grid), grid.size())).or(stand_in));
    dispatch(gpu, kernel, constants, params_buffer, &bindings, workgroups)
}

/// The size to bind, in whole quads of words: all of it that the adapter can bind, whatever is needed of it, so that forwards of any
/// number of tokens bind the same. The padding may reach past the binding, not past the buffer, which [`Gpu::buffer`] makes of
/// whole quads.
fn checked_size(gpu: &Gpu, stem: &str, name: &str, bound: Binding<'_>, needed: u64) -> Result<u64> {
    let size = needed.max(1).next_multiple_of(BUFFER_ALIGNMENT);
    let reason = if needed > bound.size || bound.offset.checked_add(size).is_none_or(|end| end > bound.buffer.size()) {
        format!("needs {needed} bytes, has {} of a buffer of {}", bound.size, bound.buffer.size())
    } else if size > gpu.limits.max_binding_bytes.0 || size > u64::from(u32::MAX) {
        format!("needs {needed} bytes, the adapter binds {} at most: cut it into slices", gpu.limits.max_binding_bytes)
    } else if !bound.offset.is_multiple_of(u64::from(gpu.limits.storage_alignment)) {
        format!("begins at byte {}, no multiple of {}", bound.offset, gpu.limits.storage_alignment)
    } else {
        let most = bound.size.min(gpu.limits.max_binding_bytes.0).min(u64::from(u32::MAX)) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
        return Ok(size.max(most));
    };
    Err(gpu.error(format!("kernel {stem}, binding `{name}`: {reason}")))
}

/// `count` workgroups as x and y, where x alone has a limit; the shader drops the few too many.
fn fold(gpu: &Gpu, stem: &str, count: u64, z: u32) -> Result<[u32; 3]> {
    let max = u64::from(gpu.limits.max_workgroups);
    let x = count.clamp(1, max);
    let y = count.div_ceil(x).max(1);
    if y > max || u64::from(z) > max {
        return Err(gpu.error(format!("kernel {stem}: {count} × {z} workgroups exceed the adapter's {max} per dimension")));
    }
    Ok([x as u32, y as u32, z.max(1)])
}

/// Bytes of `shape` as f32 (or any four-byte type); saturates, so that an absurd shape fails the size check.
fn f32_bytes(shape: &[u32]) -> u64 {
    shape.iter().fold(4u64, |bytes, &n| bytes.saturating_mul(u64::from(n)))
}

/// Workgroups of a kernel with one invocation per item, whose `@workgroup_size` is 64.
fn fold_items(gpu: &Gpu, stem: &str, shape: &[u32]) -> Result<[u32; 3]> {
    let items = f32_bytes(shape) / 4;
    require(gpu, stem, items > 0 && items <= u64::from(u32::MAX), "it is empty, or has more values than u32 counts")?;
    fold(gpu, stem, items.div_ceil(64), 1)
}

/// Refuses params that no shader was written for.
fn require(gpu: &Gpu, stem: &str, holds: bool, reason: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(gpu.error(format!("kernel {stem}: {reason}"))) }
}
