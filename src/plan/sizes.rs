//! Bytes that a forward needs besides weights. The executors allocate exactly these.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::model::{EXPERT_INPUTS_AT_ONCE, Model, Op, Rows, State, StoreKv, Unit, Value, ValueId};
use crate::plan::expert_cache::routing_bytes;
use crate::plan::expert_misses::taken_bytes;
use crate::plan::{CacheDType, KvDType};
use crate::units::Bytes;

/// Most tokens that a GPU-side selection returns per row; the kernel's bound.
pub const TOP_K_MAX: usize = 64;
/// Logits of a row that one workgroup selects from; the kernel's segment.
pub const TOP_K_SEGMENT: usize = 2048;

/// Largest head that the attention kernel has workgroup memory for; the kernel's bound.
pub const HEAD_SIZE_MAX: usize = 1024;
/// Values that attention loads at once: an adapter's heads are padded to a multiple of so many; the kernel's bound.
pub const HEAD_PADDING: usize = 8;

/// Tokens up to which attention takes a long context in parts; the kernel's bound.
pub const ATTENTION_PARTS_TOKENS: usize = 8;
/// Parts of a context, at most, and positions of a part, at least; the kernel's bounds.
pub const ATTENTION_PARTS_MAX: usize = 32;
/// See [`ATTENTION_PARTS_MAX`].
pub const ATTENTION_PART_POSITIONS_MIN: usize = 256;

/// Positions of a block of the KV caches; the kernels' own.
pub const KV_BLOCK_POSITIONS: usize = 32;

/// Uniform parameters of one dispatch, at WebGPU's uniform alignment.
pub const PARAMS_BYTES: u64 = 256;
/// Sets of parameters kept at a time: one for prompts, one for decoding.
pub const N_PARAMS_SETS: u64 = 2;

/// A buffer that a forward works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkingBuffer {
    /// An intermediate value.
    Value(ValueId),
    /// Sequence, position and length of every token, `[n_tokens, 4]` u32, and behind them the blocks of their sequences, in as wide rows.
    Tokens,
    /// Cosine and sine of every token's angles by one of the model's rotary tables: `[n_tokens, rotary_size/2, 2]` f32.
    CosSin {
        /// Index into [`Model::rope_tables`].
        table: usize,
    },
    /// What attention makes of the parts of a long context: `[n_tokens, n_heads, parts, padded head_size + 4]` f32, for few tokens.
    AttentionParts,
    /// The rows whose logits are asked for: `[n_rows]` u32.
    SelectedRows,
    /// Candidates of the top-k selection: `[n_rows, segments, k, 2]` u32.
    TopK,
    /// Host-visible memory that results are read through.
    Readback,
    /// The input of a product, packed as the host's vector instructions read it.
    PackedInput,
    /// What the host brings together of the tokens that take one expert.
    ExpertRows,
}

/// What one forward may ask for at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardSize {
    /// Tokens of one forward.
    pub n_tokens: usize,
    /// Positions whose logits may be asked for.
    pub n_logit_rows: usize,
    /// Positions that a token may attend to; the context is no longer.
    pub n_positions: usize,
}

/// What a device does in a forward, as far as its memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Role {
    /// It computes the head, and with it the logits.
    pub computes_head: bool,
    /// It passes the residual stream on to another device at least once.
    pub passes_on: bool,
    /// It is the host, which packs the inputs of its products.
    pub on_host: bool,
}

impl Role {
    /// The role of an adapter that computes everything.
    pub const ALONE: Role = Role { computes_head: true, passes_on: false, on_host: false };
}

/// Every working buffer of a device's part of a forward of up to `n_seqs` sequences, with its bytes.
pub fn working_set(model: &Model, size: ForwardSize, n_seqs: usize, role: Role) -> Vec<(WorkingBuffer, Bytes)> {
    let (n_tokens, n_rows) = (size.n_tokens as u64, size.n_logit_rows as u64);
    let bytes_of = |value: &Value| {
        let width = if role.on_host { value.width } else { padded_width(value) };
        Bytes(width as u64 * 4).times(value.n_rows(size.n_tokens, size.n_logit_rows) as u64)
    };
    let needed = model.values().filter(|(_, value)| value.width > 0 && (role.computes_head || !value.is_of_head()));
    let mut buffers: Vec<_> = needed.map(|(id, value)| (WorkingBuffer::Value(id), bytes_of(value))).collect();
    buffers.push((WorkingBuffer::Tokens, placed_tokens_bytes(size, n_seqs)));
    for (table, angles) in model.rope_tables.iter().enumerate() {
        buffers.push((WorkingBuffer::CosSin { table }, Bytes(angles.inverse_frequencies.len() as u64 * 8).times(n_tokens)));
    }
    let passed_on = model.passed_on().filter(|_| role.passes_on).map(|id| bytes_of(model.value(id)));
    let mut readback = passed_on.max().unwrap_or_default();
    if role.computes_head {
        let top_k = Bytes((model.output_width().div_ceil(TOP_K_SEGMENT) * TOP_K_MAX * 8) as u64).times(n_rows);
        buffers.push((WorkingBuffer::SelectedRows, Bytes(4).times(n_rows)));
        buffers.push((WorkingBuffer::TopK, top_k));
        readback = readback.max(bytes_of(model.value(model.logits))).max(top_k);
    }
    if !role.on_host {
        readback = readback.max(routing_bytes(model, size.n_tokens)).max(taken_bytes(model, size.n_tokens));
    }
    buffers.push((WorkingBuffer::Readback, readback));
    if role.on_host {
        buffers.push((WorkingBuffer::PackedInput, packed_input_bytes(model, size.n_tokens)));
        buffers.extend(expert_rows_bytes(model, size.n_tokens).map(|bytes| (WorkingBuffer::ExpertRows, bytes)));
    } else {
        buffers.push((WorkingBuffer::AttentionParts, attention_parts_bytes(model, size)));
    }
    for (_, bytes) in &mut buffers {
        *bytes = bytes.align_up(256);
    }
    buffers
}

/// Bytes of the tokens of a forward and of the tables of their sequences: 16 for each token, and for every four blocks of a sequence.
pub fn placed_tokens_bytes(size: ForwardSize, n_seqs: usize) -> Bytes {
    let rows_of_table = size.n_positions.div_ceil(KV_BLOCK_POSITIONS).div_ceil(4).max(1);
    Bytes(16).times(size.n_tokens as u64) + Bytes(16).times(rows_of_table as u64).times(n_seqs.min(size.n_tokens) as u64)
}

/// Bytes of the widest input of a product as `host::Input` packs it: 76 for each block of 32 values, or tiles of six tokens and a
/// multiple of eight columns; the larger of both, whatever the matrices' dtypes.
pub fn packed_input_bytes(model: &Model, n_tokens: usize) -> Bytes {
    let widest = model.values.iter().filter(|value| value.rows == Rows::Tokens).map(|value| value.width).max().unwrap_or(0);
    packed_bytes(widest, n_tokens, n_tokens.div_ceil(6))
}

/// The same of so many rows of this width, or so many tiles.
fn packed_bytes(width: usize, n_rows: usize, n_tiles: usize) -> Bytes {
    let blocks = Bytes(76).times(width.div_ceil(32) as u64).times(n_rows as u64);
    let tiles = Bytes(4 * 6 * 8).times(width.div_ceil(8) as u64).times(n_tiles as u64);
    blocks.max(tiles)
}

/// Bytes of what the host brings together for experts at once, of which all tokens may take the same one: inputs, as they are and packed,
/// outputs, and where all belong; and likewise for heads. `None` of a model where neither has matrices of its own.
pub fn expert_rows_bytes(model: &Model, n_tokens: usize) -> Option<Bytes> {
    let of_op = |n_columns: usize, n_rows: usize, n_used: usize| {
        let n_inputs = (n_tokens * n_used).min(n_tokens.max(EXPERT_INPUTS_AT_ONCE));
        // An expert has tiles from four inputs on.
        let packed = packed_bytes(n_columns, n_inputs, n_inputs.div_ceil(4));
        Bytes((4 * (n_columns + n_rows)) as u64).times(n_inputs as u64) + packed + Bytes(8).times((n_tokens * n_used) as u64)
    };
    let of_ops = model.units.iter().flat_map(|unit| &unit.ops).filter_map(|op| match op {
        Op::ExpertMatMul(op) => Some(of_op(op.n_columns, op.n_rows, op.n_used)),
        Op::HeadMatMul(op) => Some(of_op(op.n_columns, op.n_rows, op.n_heads)),
        _ => None,
    });
    of_ops.max()
}

/// Bytes of the parts of a context, for as many as a context of `size.n_positions` or less may have; never none, so that there is
/// something to bind.
pub fn attention_parts_bytes(model: &Model, size: ForwardSize) -> Bytes {
    let n_parts = size.n_positions.div_ceil(ATTENTION_PART_POSITIONS_MIN).min(ATTENTION_PARTS_MAX);
    if n_parts < 2 {
        return Bytes(1);
    }
    let of_part = |value: &Value| value.head_size.map(|head_size| value.width / head_size * (padded(head_size) + 4));
    let widest = model.values.iter().filter_map(of_part).max().unwrap_or(0);
    Bytes((n_parts * widest * 4) as u64).times(size.n_tokens.min(ATTENTION_PARTS_TOKENS) as u64)
}

/// How a device keeps keys, or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCache {
    /// In host memory, as this dtype, the heads as they are; blocks as files have them, each behind its scale.
    Host(CacheDType),
    /// As this dtype, the heads padded; scales of blocks behind all values, each head's in whole words.
    Gpu(CacheDType),
}

impl KvCache {
    /// How the host, or an adapter, keeps keys, and values.
    pub fn both(dtype: KvDType, on_host: bool) -> [KvCache; 2] {
        let of_device = |dtype: CacheDType| if on_host { KvCache::Host(dtype.on_host()) } else { KvCache::Gpu(dtype) };
        [dtype.keys, dtype.values].map(of_device)
    }

    /// Those of `caches` that a layer has: where its keys are its values as well, the first.
    pub fn of_layer(caches: [KvCache; 2], layer: &StoreKv) -> impl Iterator<Item = KvCache> + use<> {
        caches.into_iter().take(layer.n_caches() as usize)
    }

    /// Bytes of one layer's keys (or values) of one position.
    fn position_bytes(self, layer: &StoreKv) -> Bytes {
        self.head_bytes(layer).times(layer.n_kv_heads as u64)
    }

    /// Bytes of one head of them.
    pub fn head_bytes(self, layer: &StoreKv) -> Bytes {
        Bytes(self.planes(layer).into_iter().sum())
    }

    /// Bytes of one head of them in each part of a cache: a part has those of all positions.
    fn planes(self, layer: &StoreKv) -> [u64; 2] {
        match self {
            KvCache::Host(dtype) => [dtype.row_bytes(layer.head_size).into_iter().sum(), 0],
            KvCache::Gpu(dtype) => {
                let [values, scales] = dtype.row_bytes(padded(layer.head_size));
                [values, scales.next_multiple_of(4)]
            }
        }
    }
}

/// Values of a head as an adapter holds it.
pub fn padded(head_size: usize) -> usize {
    head_size.next_multiple_of(HEAD_PADDING)
}

/// Values in a row as an adapter holds it: of heads that attention reads or writes, those of padded heads.
fn padded_width(value: &Value) -> usize {
    value.head_size.map_or(value.width, |head_size| value.width / head_size * padded(head_size))
}

/// Blocks of the KV caches: as many as sequences of so many positions take, or no more than all positions together do, where these are given.
pub fn n_kv_blocks(n_seqs: usize, ctx_size: usize, kv_size: Option<usize>) -> usize {
    let of_all = ctx_size.div_ceil(KV_BLOCK_POSITIONS).saturating_mul(n_seqs);
    kv_size.map_or(of_all, |kv_size| kv_size.div_ceil(KV_BLOCK_POSITIONS).min(of_all))
}

/// Bytes of the K (or V) cache of one layer: `[n_blocks, n_kv_heads, KV_BLOCK_POSITIONS, head_size]`, with padded heads on an adapter.
pub fn kv_buffer_bytes(layer: &StoreKv, cache: KvCache, n_blocks: usize) -> Bytes {
    cache.position_bytes(layer).times(KV_BLOCK_POSITIONS as u64).times(n_blocks as u64).align_up(256)
}

/// Where the first `n_positions` of the heads in some blocks are in the K (or V) cache of one layer, which has `n_blocks`: ranges of bytes,
/// head after head.
pub fn position_ranges<'t>(
    layer: &StoreKv,
    cache: KvCache,
    n_blocks: usize,
    table: &'t [u32],
    n_positions: usize,
) -> impl Iterator<Item = Range<u64>> + use<'t> {
    let (n_heads, block_len, planes) = (layer.n_kv_heads as u64, KV_BLOCK_POSITIONS as u64, cache.planes(layer));
    let begins = [0, n_blocks as u64 * n_heads * block_len * planes[0]];
    begins.into_iter().zip(planes).filter(|(_, head)| *head > 0).flat_map(move |(begin, head)| {
        (0..n_heads).flat_map(move |index| {
            (0..n_positions).step_by(KV_BLOCK_POSITIONS).zip(table).map(move |(done, block)| {
                let first = begin + (u64::from(*block) * n_heads + index) * block_len * head;
                first..first + block_len.min((n_positions - done) as u64) * head
            })
        })
    })
}

/// Bytes of the K and V caches of one layer.
pub fn kv_buffers_bytes(layer: &StoreKv, caches: [KvCache; 2], n_blocks: usize) -> Bytes {
    KvCache::of_layer(caches, layer).map(|cache| kv_buffer_bytes(layer, cache, n_blocks)).sum()
}

/// Bytes of the largest K or V cache of all layers.
pub fn largest_kv_buffer_bytes(model: &Model, caches: [KvCache; 2], n_blocks: usize) -> Bytes {
    let of_layer = |layer| KvCache::of_layer(caches, layer).map(move |cache| kv_buffer_bytes(layer, cache, n_blocks));
    model.caches().flat_map(of_layer).max().unwrap_or_default()
}

/// Bytes of a layer's state of all sequences, f32 on every device: `[n_seqs, n_values]`.
pub fn state_buffer_bytes(state: &State, n_seqs: usize) -> Bytes {
    Bytes(4).times(state.n_values).times(n_seqs as u64).align_up(256)
}

/// Bytes of the states of a unit, of one sequence.
pub fn state_values_bytes(unit: &Unit) -> Bytes {
    unit.states().map(|state| Bytes(4).times(state.n_values)).sum()
}

/// Bytes of the states of a unit.
pub fn state_bytes(unit: &Unit, n_seqs: usize) -> Bytes {
    unit.states().map(|state| state_buffer_bytes(&state, n_seqs)).sum()
}

/// Bytes of the largest state of all layers.
pub fn largest_state_buffer_bytes(model: &Model, n_seqs: usize) -> Bytes {
    model.units.iter().flat_map(Unit::states).map(|state| state_buffer_bytes(&state, n_seqs)).max().unwrap_or_default()
}

/// Bytes of all K and V caches per position of one sequence; a layer whose keys are its values as well has one.
pub fn kv_bytes_per_position(model: &Model, caches: [KvCache; 2]) -> Bytes {
    model.caches().map(|layer| kv_bytes_of_layer(layer, caches)).sum()
}

/// The same of one layer.
pub fn kv_bytes_of_layer(layer: &StoreKv, caches: [KvCache; 2]) -> Bytes {
    KvCache::of_layer(caches, layer).map(|cache| cache.position_bytes(layer)).sum()
}

/// Why no adapter can compute this model, whatever its memory and limits: the kernels do not take heads of its shape. `None` where they
/// can.
pub fn unsupported_on_gpu(model: &Model) -> Option<String> {
    model.units.iter().flat_map(|unit| &unit.ops).find_map(|op| match *op {
        Op::StoreKv(StoreKv { head_size, .. }) if head_size > HEAD_SIZE_MAX => {
            Some(format!("its heads have {head_size} values and a GPU computes with at most {HEAD_SIZE_MAX}"))
        }
        Op::Rope(rope) if rope.head_size.is_multiple_of(HEAD_PADDING) && !rope.rotary_size.is_multiple_of(4) => {
            let (rotated, of) = (rope.rotary_size, rope.head_size);
            Some(format!("of the {of} values of its heads {rotated} are rotated, and of such heads a GPU rotates only multiples of 4"))
        }
        _ => None,
    })
}
