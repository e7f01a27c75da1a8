//! Adapters become part of a model: their matrices are tensors beside the model's own, and products with them follow those of its linears.
//! Where several adapt one linear, their ranks stand side by side, so that their sum is one adapter.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::{Adapter, LowRank};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Format, Linear, LoraMatMul, Model, Op, Rows, Value, ValueId, text_module};
use crate::platform::{self, ByteSource};
use crate::units::{Bytes, counted, listed};
use crate::weights::{TensorId, TensorInfo};

/// An adapter and what it is multiplied by besides its own scaling.
#[derive(Debug, Clone)]
pub struct Scaled {
    /// The adapter.
    pub adapter: Arc<Adapter>,
    /// 1 leaves it as it is, 0 as if it were not there.
    pub scale: f32,
}

impl Scaled {
    /// What it is, in a line.
    pub fn summary(&self) -> Summary {
        let Scaled { adapter, scale } = self;
        let ranks = adapter.linears.values().map(|linear| linear.rank);
        let ranks = [ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)];
        let size_bytes = Bytes(4).times(adapter.n_values());
        Summary { path: adapter.path.clone(), scale: *scale, ranks, n_linears: adapter.linears.len(), size_bytes }
    }
}

/// What a plan says of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Where it was read.
    pub path: String,
    /// What it is multiplied by besides its own scaling.
    pub scale: f32,
    /// The smallest rank and the largest.
    pub ranks: [usize; 2],
    /// Linears that it adapts.
    pub n_linears: usize,
    /// Bytes of its matrices, which are resident.
    pub size_bytes: Bytes,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks = match self.ranks {
            [least, most] if least == most => format!("rank {least}"),
            [least, most] => format!("ranks {least} to {most}"),
        };
        let (path, scale, n_linears) = (&self.path, self.scale, counted(self.n_linears, "linear"));
        write!(f, "with {path} × {scale}: {n_linears}, {ranks}, {} resident", self.size_bytes)
    }
}

/// What several adapters add to one linear.
pub(crate) type OfLinear<'a> = Vec<(&'a LowRank, f32)>;

/// The matrices that are added to one product of a model.
#[derive(Debug, Clone, Copy)]
struct Added {
    down: TensorId,
    up: TensorId,
    rank: usize,
    n_inputs: usize,
    n_rows: usize,
}

/// The model with `adapters`, and its files with theirs.
///
/// # Errors
/// [`Error::InvalidFile`] of an adapter of another model.
pub fn apply(checkpoint: &Checkpoint, mut model: Model, adapters: &[Scaled]) -> Result<(Checkpoint, Model)> {
    let linears = linears_of(checkpoint, &model);
    let found = found_in(&model, &linears, adapters)?;
    let mut file = AdapterFile::new(adapters, checkpoint.sources.len() as u32, checkpoint.catalog.tensors.len() as u32);
    let mut added: BTreeMap<usize, BTreeMap<usize, Added>> = BTreeMap::new();
    for (module, of_linear) in &found {
        let Some(linear) = linears.get(module) else { continue };
        let rank = of_linear.iter().map(|(low_rank, _)| low_rank.rank).sum();
        let down = file.push(format!("{module}.lora_A.weight"), [rank, linear.n_inputs], stacked(of_linear))?;
        for part in &linear.parts {
            let name = part.name.as_ref().map_or(String::new(), |name| format!(":{name}"));
            let n_rows = part.rows.len();
            let up = file.push(format!("{module}.lora_B.weight{name}"), [n_rows, rank], side_by_side(of_linear, &part.rows))?;
            added.entry(part.unit).or_default().insert(part.op, Added { down, up, rank, n_inputs: linear.n_inputs, n_rows });
        }
    }
    for (unit, added) in added {
        let ops = std::mem::take(&mut model.units[unit].ops);
        model.units[unit].ops = with_added(ops, &added, &mut model.values);
    }
    let (source, tensors) = file.finish();
    Ok((checkpoint.with_file(source, tensors), model))
}

/// The linears of `model` by their modules.
pub(crate) fn linears_of(checkpoint: &Checkpoint, model: &Model) -> BTreeMap<String, Linear> {
    model.linears(&checkpoint.catalog, matches!(checkpoint.format, Format::Gguf))
}

/// What `adapters` add to each of the model's linears.
pub(crate) fn found_in<'a>(
    model: &Model,
    linears: &BTreeMap<String, Linear>,
    adapters: &'a [Scaled],
) -> Result<BTreeMap<String, OfLinear<'a>>> {
    let mut found: BTreeMap<String, OfLinear<'a>> = BTreeMap::new();
    for Scaled { adapter, scale } in adapters {
        let invalid = |reason: String| Error::invalid_file(&adapter.path, reason);
        for (module, low_rank) in &adapter.linears {
            let name = resolve(model, linears, module).map_err(invalid)?;
            let expected = linears.get(&name).map(|linear| [linear.n_inputs, linear.n_outputs()]).unwrap_or_default();
            check_sides(module, low_rank, expected).map_err(invalid)?;
            found.entry(name).or_default().push((low_rank, *scale));
        }
    }
    Ok(found)
}

/// The model's name of a linear that an adapter names, or why it has none.
fn resolve(model: &Model, linears: &BTreeMap<String, Linear>, module: &str) -> Result<String, String> {
    let base = model.config.family.names.base();
    let names = [Some(module.to_owned()), text_module(module), Some(format!("{base}.{module}"))];
    if let Some(name) = names.into_iter().flatten().find(|name| linears.contains_key(name)) {
        return Ok(name);
    }
    let module = module.escape_debug();
    if module.clone().to_string().contains(".experts.") {
        return Err(format!("adapts `{module}`: experts with adapters are not supported; leave them out of target_modules"));
    }
    let mut known: Vec<&str> = linears.keys().filter_map(|name| name.rsplit('.').next()).collect();
    known.sort_unstable();
    known.dedup();
    let (name, n_layers, known) = (&model.config.name, model.config.n_layers, listed(&known));
    Err(format!(
        "adapts `{module}`, which is no linear of {name} ({n_layers} layers; {known}); take an adapter that was trained on this model"
    ))
}

fn check_sides(module: &str, low_rank: &LowRank, [n_inputs, n_outputs]: [usize; 2]) -> Result<(), String> {
    let module = module.escape_debug();
    let another = "it was trained on a model of another size";
    if low_rank.n_inputs != n_inputs {
        return Err(format!(
            "tensor `{module}.lora_A.weight` reads {} values, and the model's linear {n_inputs}: {another}",
            low_rank.n_inputs
        ));
    }
    if low_rank.n_outputs != n_outputs {
        return Err(format!(
            "tensor `{module}.lora_B.weight` gives {} values, and the model's linear {n_outputs}: {another}",
            low_rank.n_outputs
        ));
    }
    Ok(())
}

/// The matrices A, one behind the other.
pub(crate) fn stacked(of_linear: &OfLinear<'_>) -> impl Iterator<Item = f32> {
    of_linear.iter().flat_map(|(low_rank, _)| low_rank.down.iter().copied())
}

/// These rows of the matrices B, scaled and side by side.
pub(crate) fn side_by_side(of_linear: &OfLinear<'_>, rows: &[usize]) -> impl Iterator<Item = f32> {
    rows.iter().flat_map(|row| {
        of_linear.iter().flat_map(move |(low_rank, scale)| {
            let factor = low_rank.scaling * scale;
            low_rank.up[row * low_rank.rank..][..low_rank.rank].iter().map(move |value| value * factor)
        })
    })
}

/// The operations of a unit with those of `added`, which belongs to the products of these indices. Products of one input stay together,
/// and so do a product and the addition of its result to the residual stream: both are fused.
fn with_added(ops: Vec<Op>, added: &BTreeMap<usize, Added>, values: &mut Vec<Value>) -> Vec<Op> {
    let mut result: Vec<Op> = Vec::with_capacity(ops.len() + 2 * added.len());
    let mut pending: Vec<LoraMatMul> = Vec::new();
    for (index, op) in ops.into_iter().enumerate() {
        let stays = match (&op, result.last(), pending.first()) {
            (Op::AddBias { .. }, ..) => true,
            (Op::MatMul { input, .. }, _, Some(first)) => *input == first.input,
            (Op::Add { input, target }, Some(Op::MatMul { output, .. }), Some(first)) if input == output && *target != first.input => {
                pending.iter_mut().filter(|product| product.output == *input).for_each(|product| product.output = *target);
                true
            }
            _ => false,
        };
        if !stays {
            result.extend(pending.drain(..).map(Op::LoraMatMul));
        }
        if let (Op::MatMul { input, output, .. }, Some(added)) = (&op, added.get(&index)) {
            pending.extend(products(*input, *output, *added, &pending, values));
        }
        result.push(op);
    }
    result.extend(pending.into_iter().map(Op::LoraMatMul));
    result
}

/// The products of both matrices with `input`; the first is left out where `before` ends with it.
fn products(input: ValueId, output: ValueId, added: Added, before: &[LoraMatMul], values: &mut Vec<Value>) -> Vec<LoraMatMul> {
    let Added { down, up, rank, n_inputs, n_rows } = added;
    let low = low_value(rank, values[usize::from(input.0)].rows, values);
    let first = LoraMatMul { input, matrix: down, output: low, n_rows: rank, n_columns: n_inputs, accumulates: false };
    let last = LoraMatMul { input: low, matrix: up, output, n_rows, n_columns: rank, accumulates: true };
    let is_there = before.iter().rfind(|product| !product.accumulates) == Some(&first);
    if is_there { vec![last] } else { vec![first, last] }
}

/// The value between both matrices, one for each rank.
fn low_value(rank: usize, rows: Rows, values: &mut Vec<Value>) -> ValueId {
    const NAME: &str = "lora";
    let index = values.iter().position(|value| value.name == NAME && value.width == rank && value.rows == rows);
    let index = index.unwrap_or_else(|| {
        values.push(Value { name: NAME, width: rank, head_size: None, rows });
        values.len() - 1
    });
    ValueId(index as u16)
}

/// The matrices of all adapters as a file of F32 tensors in memory.
#[derive(Debug)]
struct AdapterFile {
    path: String,
    bytes: Vec<u8>,
    tensors: Vec<TensorInfo>,
    shard: u32,
    /// The number that the first of its tensors will have.
    first: u32,
}

impl AdapterFile {
    fn new(adapters: &[Scaled], shard: u32, first: u32) -> AdapterFile {
        let path = adapters.first().map_or_else(String::new, |scaled| scaled.adapter.path.clone());
        AdapterFile { path, bytes: Vec::new(), tensors: Vec::new(), shard, first }
    }

    fn push(&mut self, name: String, shape: [usize; 2], values: impl Iterator<Item = f32>) -> Result<TensorId> {
        let (offset, n_bytes) = (self.bytes.len(), shape[0] * shape[1] * size_of::<f32>());
        platform::resize(&mut self.bytes, offset + n_bytes, "an adapter")?;
        for (place, value) in self.bytes[offset..].chunks_exact_mut(size_of::<f32>()).zip(values) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        let id = TensorId(self.first + self.tensors.len() as u32);
        let (shape, size_bytes) = (shape.map(|side| side as u64).into(), Bytes(n_bytes as u64));
        self.tensors.push(TensorInfo { name, dtype: DType::F32, shape, shard: self.shard, offset: offset as u64, size_bytes });
        Ok(id)
    }

    fn finish(mut self) -> (AdapterFile, Vec<TensorInfo>) {
        let tensors = std::mem::take(&mut self.tensors);
        (self, tensors)
    }
}

impl ByteSource for AdapterFile {
    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let begin = usize::try_from(offset).ok();
        let bytes = begin.and_then(|begin| self.bytes.get(begin..)?.get(..buffer.len()));
        let bytes = bytes.ok_or_else(|| Error::internal(format!("{} bytes at {offset} are no part of an adapter", buffer.len())))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDED: Added = Added { down: TensorId(7), up: TensorId(8), rank: 2, n_inputs: 8, n_rows: 8 };

    fn product(input: u16, output: u16) -> Op {
        Op::MatMul { input: ValueId(input), weight: TensorId(0), output: ValueId(output) }
    }

    /// What each operation writes, in order; those of adapters with a prime.
    fn written(ops: Vec<Op>, at: &[usize]) -> Vec<String> {
        let mut values = vec![Value::of_tokens("any", 8); 6];
        let added = at.iter().map(|index| (*index, Added { down: TensorId(10 + *index as u32), ..ADDED })).collect();
        let name = |op: &Op| match op {
            Op::MatMul { output, .. } => format!("{}", output.0),
            Op::LoraMatMul(op) => format!("{}'", op.output.0),
            Op::Add { target, .. } => format!("+{}", target.0),
            _ => "-".to_owned(),
        };
        with_added(ops, &added, &mut values).iter().map(name).collect()
    }

    #[test]
    fn products_that_are_fused_stay_together() {
        let bias = || Op::AddBias { bias: TensorId(1), target: ValueId(2) };
        let add = || Op::Add { input: ValueId(4), target: ValueId(0) };
        let map = || Op::Map { function: crate::model::Function::Scale(2.0), target: ValueId(4) };
        let projections = || vec![product(1, 2), bias(), product(1, 3), product(2, 4), add()];
        assert_eq!(written(projections(), &[]), ["2", "-", "3", "4", "+0"]);
        assert_eq!(written(projections(), &[0, 2]), ["2", "-", "3", "6'", "2'", "6'", "3'", "4", "+0"]);
        assert_eq!(written(projections(), &[3]), ["2", "-", "3", "4", "+0", "6'", "0'"]);
        assert_eq!(written(vec![product(2, 4), map(), add()], &[0]), ["4", "6'", "4'", "-", "+0"], "scaled before it is added");
        assert_eq!(written(vec![product(0, 4), add()], &[0]), ["4", "6'", "4'", "+0"], "what is read must not change before");
    }

    #[test]
    fn parts_of_one_linear_share_the_first_product() {
        let mut values = vec![Value::of_tokens("any", 8); 6];
        let ops = with_added(vec![product(1, 2), product(1, 3)], &[(0, ADDED), (1, ADDED)].into(), &mut values);
        assert_eq!(ops.len(), 5);
        assert_eq!(values.len(), 7);
    }
}
