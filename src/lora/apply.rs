//! Adapters become part of a model: their matrices are tensors beside the model's own, and products with them follow those of its linears.
//! Where several adapt one linear, their ranks stand side by side, so that their sum is one adapter.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::{Adapter, LowRank, norms};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::{Activation, Checkpoint, Format, Linear, LoraMatMul, Model, Op, Rows, Value, ValueId, hugging_face_name, text_module};
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
        let (n_linears, n_norms) = (adapter.linears.len(), adapter.norms.len());
        Summary { path: adapter.path.clone(), scale: *scale, ranks, n_linears, n_norms, size_bytes }
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
    /// Norms that it replaces.
    pub n_norms: usize,
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
        let norms = if self.n_norms > 0 { format!(", {}", counted(self.n_norms, "norm")) } else { String::new() };
        write!(f, "with {path} × {scale}: {n_linears}, {ranks}{norms}, {} resident", self.size_bytes)
    }
}

/// What an adapter adds to one linear.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Adding<'a> {
    pub(crate) low_rank: &'a LowRank,
    /// Which of the adapters it is.
    adapter: usize,
    /// Whether its rows are in the order of GGUF files, as those of the model are.
    is_gguf: bool,
    /// Whatever it is multiplied by.
    factor: f32,
}

/// What several adapters add to one linear.
pub(crate) type OfLinear<'a> = Vec<Adding<'a>>;

/// What adapters are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// What each is given, in all forwards.
    Fixed,
    /// What each sequence chooses ([`Model::lora_scales`]); of a single adapter that replaces norms, which sequences share, what it is given.
    Chosen,
}

/// The matrices that are added to one product of a model.
#[derive(Debug, Clone, Copy)]
struct Added {
    down: TensorId,
    up: TensorId,
    rank: usize,
    n_inputs: usize,
    n_rows: usize,
    /// Which adapter each of the ranks is of, `[rank, n_adapters]`, where sequences choose.
    owners: Option<TensorId>,
}

/// The model with `adapters`, and its files with theirs.
///
/// # Errors
/// [`Error::InvalidFile`] of an adapter of another model; [`Error::UnsupportedModel`] of one of several that replaces norms, where sequences
/// choose: they share them.
pub fn apply(checkpoint: &Checkpoint, mut model: Model, adapters: &[Scaled], scales: Scales) -> Result<(Checkpoint, Model)> {
    let linears = linears_of(checkpoint, &model);
    let mut found = found_in(&model, &linears, adapters, is_gguf(checkpoint))?;
    let scales = match adapters {
        [only] if !only.adapter.norms.is_empty() => Scales::Fixed,
        _ => scales,
    };
    if scales == Scales::Chosen {
        found.values_mut().flatten().for_each(|adding| adding.factor = adding.low_rank.scaling);
        model.values.push(Value::of_tokens("scales of LoRA adapters", adapters.len()));
        model.lora_scales = Some(ValueId(model.values.len() as u16 - 1));
    }
    if let Some(scaled) = adapters.iter().find(|scaled| scales == Scales::Chosen && !scaled.adapter.norms.is_empty()) {
        let reason = "replaces norms (`modules_to_save`), which requests cannot choose; give it alone, or merge it into the model";
        return Err(Error::UnsupportedModel { path: scaled.adapter.path.clone(), reason: reason.into() });
    }
    let mut file = AdapterFile::new(adapters, checkpoint.sources.len() as u32, checkpoint.catalog.tensors.len() as u32);
    replace_norms(checkpoint, &mut model, adapters, &mut file)?;
    let mut added: BTreeMap<usize, BTreeMap<usize, Added>> = BTreeMap::new();
    for (module, of_linear) in &found {
        let Some(linear) = linears.get(module) else { continue };
        let rank = of_linear.iter().map(|adding| adding.low_rank.rank).sum();
        let down = file.push(format!("{module}.lora_A.weight"), &[rank, linear.n_inputs], stacked(of_linear))?;
        let owners = match scales {
            Scales::Fixed => None,
            Scales::Chosen => Some(file.owners(of_linear, adapters.len())?),
        };
        for part in &linear.parts {
            let name = part.name.as_ref().map_or(String::new(), |name| format!(":{name}"));
            let n_rows = part.rows.len();
            let up = file.push(
                format!("{module}.lora_B.weight{name}"),
                &[n_rows, rank],
                side_by_side(of_linear, [&part.rows, &part.gguf_rows]),
            )?;
            added.entry(part.unit).or_default().insert(part.op, Added { down, up, rank, n_inputs: linear.n_inputs, n_rows, owners });
        }
    }
    let mut spread = BTreeMap::new();
    for (unit, added) in added {
        let ops = std::mem::take(&mut model.units[unit].ops);
        model.units[unit].ops = Insertion::new(&mut model, adapters.len(), &mut spread).ops(ops, &added);
    }
    let (source, tensors) = file.finish();
    Ok((checkpoint.with_file(source, tensors), model))
}

/// Lets the model's norms read what adapters have in place of their weights.
fn replace_norms(checkpoint: &Checkpoint, model: &mut Model, adapters: &[Scaled], file: &mut AdapterFile) -> Result<()> {
    let mut replaced = BTreeMap::new();
    for (id, values) in norms::replaced(checkpoint, model, adapters)? {
        let name = format!("{}.replaced", checkpoint.catalog[id].name);
        replaced.insert(id, file.push(name, &[values.len()], values.into_iter())?);
    }
    let replace = |id: &mut TensorId| *id = replaced.get(id).copied().unwrap_or(*id);
    for op in model.units.iter_mut().flat_map(|unit| &mut unit.ops) {
        match op {
            Op::RmsNorm(norm) => norm.weight.iter_mut().for_each(replace),
            Op::LayerNorm(norm) => norm.bias.iter_mut().chain([&mut norm.weight]).for_each(replace),
            _ => {}
        }
    }
    Ok(())
}

/// Whether its matrices are laid out as GGUF files have them.
pub(crate) fn is_gguf(checkpoint: &Checkpoint) -> bool {
    matches!(checkpoint.format, Format::Gguf)
}

/// The linears of `model` by their modules.
pub(crate) fn linears_of(checkpoint: &Checkpoint, model: &Model) -> BTreeMap<String, Linear> {
    model.linears(&checkpoint.catalog, is_gguf(checkpoint))
}

/// What `adapters` add to each of the model's linears, which are those of a GGUF file where `of_gguf`.
pub(crate) fn found_in<'a>(
    model: &Model,
    linears: &BTreeMap<String, Linear>,
    adapters: &'a [Scaled],
    of_gguf: bool,
) -> Result<BTreeMap<String, OfLinear<'a>>> {
    let mut found: BTreeMap<String, OfLinear<'a>> = BTreeMap::new();
    for (index, Scaled { adapter, scale }) in adapters.iter().enumerate() {
        let invalid = |reason: String| Error::invalid_file(&adapter.path, reason);
        for (module, low_rank) in &adapter.linears {
            let is_gguf = module.starts_with("blk.") || module == "output";
            if is_gguf && !of_gguf {
                let reason = "is laid out for a GGUF file of the model; run it with that file, or take PEFT's folder of the adapter";
                return Err(invalid(reason.into()));
            }
            let translated = format!("{module}.weight");
            let translated = hugging_face_name(&translated, model.config.family);
            let module = translated.strip_suffix(".weight").filter(|_| is_gguf).unwrap_or(module);
            let name = resolve(model, linears, module).map_err(invalid)?;
            let expected = linears.get(&name).map(|linear| [linear.n_inputs, linear.n_outputs()]).unwrap_or_default();
            check_sides(module, low_rank, expected).map_err(invalid)?;
            found.entry(name).or_default().push(Adding { low_rank, adapter: index, is_gguf, factor: low_rank.scaling * scale });
        }
    }
    Ok(found)
}

/// What the model may call a module that an adapter names.
pub(super) fn names_of(model: &Model, module: &str) -> impl Iterator<Item = String> {
    let base = model.config.family.names.base();
    [Some(module.to_owned()), text_module(module), Some(format!("{base}.{module}"))].into_iter().flatten()
}

/// The model's name of a linear that an adapter names, or why it has none.
fn resolve(model: &Model, linears: &BTreeMap<String, Linear>, module: &str) -> Result<String, String> {
    if let Some(name) = names_of(model, module).find(|name| linears.contains_key(name)) {
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
    of_linear.iter().flat_map(|adding| adding.low_rank.down.iter().copied())
}

/// These rows of the matrices B, in transformers and in GGUF files, scaled and side by side.
pub(crate) fn side_by_side(of_linear: &OfLinear<'_>, [rows, gguf_rows]: [&[usize]; 2]) -> impl Iterator<Item = f32> {
    rows.iter().zip(gguf_rows).flat_map(|(row, gguf_row)| {
        of_linear.iter().flat_map(move |Adding { low_rank, factor, is_gguf, .. }| {
            let row = if *is_gguf { gguf_row } else { row };
            low_rank.up[row * low_rank.rank..][..low_rank.rank].iter().map(move |value| value * factor)
        })
    })
}

/// What puts the operations of adapters between those of a unit.
struct Insertion<'a> {
    values: &'a mut Vec<Value>,
    /// [`Model::lora_scales`].
    scales: Option<ValueId>,
    n_adapters: usize,
    /// Operations that come before those of the unit.
    first: Vec<Op>,
    /// What each rank is multiplied by, for ranks that belong to adapters in the same way, of tokens and of logits. All units have the same
    /// values.
    spread: &'a mut BTreeMap<(TensorId, bool), ValueId>,
    /// Those that the first operations fill.
    filled: Vec<ValueId>,
}

impl<'a> Insertion<'a> {
    fn new(model: &'a mut Model, n_adapters: usize, spread: &'a mut BTreeMap<(TensorId, bool), ValueId>) -> Insertion<'a> {
        let (scales, values) = (model.lora_scales, &mut model.values);
        Insertion { scales, values, n_adapters, first: Vec::new(), spread, filled: Vec::new() }
    }

    /// The operations of a unit with those of `added`, which belongs to the products of these indices. Products of one input stay
    /// together, and so do a product and the addition of its result to the residual stream: both are fused.
    fn ops(mut self, ops: Vec<Op>, added: &BTreeMap<usize, Added>) -> Vec<Op> {
        let mut result: Vec<Op> = Vec::with_capacity(ops.len() + 2 * added.len());
        // What is added to products, and what they read.
        let mut pending: Vec<Op> = Vec::new();
        let mut read = None;
        for (index, op) in ops.into_iter().enumerate() {
            let stays = match (&op, result.last(), read) {
                (Op::AddBias { .. }, ..) => true,
                (Op::MatMul { input, .. }, _, Some(read)) => *input == read,
                (Op::Add { input, target }, Some(Op::MatMul { output, .. }), Some(read)) if input == output && *target != read => {
                    pending.iter_mut().for_each(|op| redirect(op, *input, *target));
                    true
                }
                _ => false,
            };
            if !stays {
                result.append(&mut pending);
                read = None;
            }
            if let (Op::MatMul { input, output, .. }, Some(added)) = (&op, added.get(&index)) {
                read = Some(*input);
                self.add(*input, *output, *added, &mut pending);
            }
            result.push(op);
        }
        result.append(&mut pending);
        self.first.append(&mut result);
        self.first
    }

    /// Appends the products of both matrices; that of the first is left out where it is the last of its kind already.
    fn add(&mut self, input: ValueId, output: ValueId, added: Added, pending: &mut Vec<Op>) {
        let Added { down, up, rank, n_inputs, n_rows, owners } = added;
        let rows = self.values[usize::from(input.0)].rows;
        let low = self.value("lora", rank, rows);
        let first = Op::LoraMatMul(LoraMatMul { input, matrix: down, output: low, n_rows: rank, n_columns: n_inputs, accumulates: false });
        let is_first = |op: &&Op| matches!(op, Op::LoraMatMul(product) if !product.accumulates);
        let is_there = pending.iter().rfind(is_first) == Some(&first);
        let scaled = owners.and_then(|owners| self.scales_of(owners, rank, rows)).map(|gate| (gate, self.value("scaled lora", rank, rows)));
        if !is_there {
            pending.push(first);
            let scale = |(gate, output)| Op::Glu { activation: Activation::Identity, gate, up: low, output };
            pending.extend(scaled.map(scale));
        }
        let input = scaled.map_or(low, |(_, scaled)| scaled);
        pending.push(Op::LoraMatMul(LoraMatMul { input, matrix: up, output, n_rows, n_columns: rank, accumulates: true }));
    }

    /// The value that has what each rank is multiplied by, which the unit's first operations fill.
    fn scales_of(&mut self, owners: TensorId, rank: usize, rows: Rows) -> Option<ValueId> {
        let scales = self.scales?;
        let values = &mut *self.values;
        let output = *self.spread.entry((owners, rows == Rows::Logits)).or_insert_with(|| {
            values.push(Value { name: "scales of ranks", width: rank, head_size: None, rows });
            ValueId(values.len() as u16 - 1)
        });
        if self.filled.contains(&output) {
            return Some(output);
        }
        self.filled.push(output);
        let input = match rows {
            Rows::Tokens => scales,
            Rows::Logits => {
                let of_logits = self.value("scales of LoRA adapters", self.n_adapters, rows);
                self.first.push(Op::GatherRows { input: scales, output: of_logits });
                of_logits
            }
        };
        let spread = LoraMatMul { input, matrix: owners, output, n_rows: rank, n_columns: self.n_adapters, accumulates: false };
        self.first.push(Op::LoraMatMul(spread));
        Some(output)
    }

    /// The value that is called so, one for each width.
    fn value(&mut self, name: &'static str, width: usize, rows: Rows) -> ValueId {
        let index = self.values.iter().position(|value| value.name == name && value.width == width && value.rows == rows);
        let index = index.unwrap_or_else(|| {
            self.values.push(Value { name, width, head_size: None, rows });
            self.values.len() - 1
        });
        ValueId(index as u16)
    }
}

/// Lets what is added to `from` be added to `to`.
fn redirect(op: &mut Op, from: ValueId, to: ValueId) {
    match op {
        Op::LoraMatMul(product) if product.output == from => product.output = to,
        _ => {}
    }
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
    /// Which adapter each rank is of, for each way that there is.
    owners: BTreeMap<Vec<(usize, usize)>, TensorId>,
}

impl AdapterFile {
    fn new(adapters: &[Scaled], shard: u32, first: u32) -> AdapterFile {
        let path = adapters.first().map_or_else(String::new, |scaled| scaled.adapter.path.clone());
        AdapterFile { path, bytes: Vec::new(), tensors: Vec::new(), shard, first, owners: BTreeMap::new() }
    }

    fn push(&mut self, name: String, shape: &[usize], values: impl Iterator<Item = f32>) -> Result<TensorId> {
        let (offset, n_bytes) = (self.bytes.len(), shape.iter().product::<usize>() * size_of::<f32>());
        platform::resize(&mut self.bytes, offset + n_bytes, "an adapter")?;
        for (place, value) in self.bytes[offset..].chunks_exact_mut(size_of::<f32>()).zip(values) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        let id = TensorId(self.first + self.tensors.len() as u32);
        let (shape, size_bytes) = (shape.iter().map(|side| *side as u64).collect(), Bytes(n_bytes as u64));
        self.tensors.push(TensorInfo { name, dtype: DType::F32, shape, shard: self.shard, offset: offset as u64, size_bytes });
        Ok(id)
    }

    /// The matrix that gives each rank of a linear what its adapter is multiplied by.
    fn owners(&mut self, of_linear: &OfLinear<'_>, n_adapters: usize) -> Result<TensorId> {
        let layout: Vec<(usize, usize)> = of_linear.iter().map(|adding| (adding.adapter, adding.low_rank.rank)).collect();
        if let Some(known) = self.owners.get(&layout) {
            return Ok(*known);
        }
        let ranks: Vec<usize> = layout.iter().flat_map(|(adapter, rank)| std::iter::repeat_n(*adapter, *rank)).collect();
        let row = |owner: usize| (0..n_adapters).map(move |adapter| if adapter == owner { 1.0 } else { 0.0 });
        let name = format!("lora_owners.{}.weight", self.owners.len());
        let id = self.push(name, &[ranks.len(), n_adapters], ranks.iter().flat_map(|owner| row(*owner)))?;
        self.owners.insert(layout, id);
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

    const ADDED: Added = Added { down: TensorId(7), up: TensorId(8), rank: 2, n_inputs: 8, n_rows: 8, owners: None };

    fn product(input: u16, output: u16) -> Op {
        Op::MatMul { input: ValueId(input), weight: TensorId(0), output: ValueId(output) }
    }

    fn inserted(ops: Vec<Op>, added: &BTreeMap<usize, Added>, scales: Option<ValueId>, values: &mut Vec<Value>) -> Vec<Op> {
        let (n_adapters, spread) = (2, &mut BTreeMap::new());
        Insertion { values, scales, n_adapters, first: Vec::new(), spread, filled: Vec::new() }.ops(ops, added)
    }

    /// What each operation writes, in order; those of adapters with a prime.
    fn written(ops: Vec<Op>, at: &[usize]) -> Vec<String> {
        let added = at.iter().map(|index| (*index, Added { down: TensorId(10 + *index as u32), ..ADDED })).collect();
        let name = |op: &Op| match op {
            Op::MatMul { output, .. } => format!("{}", output.0),
            Op::LoraMatMul(op) => format!("{}'", op.output.0),
            Op::Add { target, .. } => format!("+{}", target.0),
            _ => "-".to_owned(),
        };
        inserted(ops, &added, None, &mut vec![Value::of_tokens("any", 8); 6]).iter().map(name).collect()
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
        let ops = inserted(vec![product(1, 2), product(1, 3)], &[(0, ADDED), (1, ADDED)].into(), None, &mut values);
        assert_eq!(ops.len(), 5);
        assert_eq!(values.len(), 7);
    }

    #[test]
    fn sequences_that_choose_scale_what_is_between_the_matrices() {
        let (mut values, added) = (vec![Value::of_tokens("any", 8); 6], Added { owners: Some(TensorId(9)), ..ADDED });
        let ops = inserted(
            vec![product(1, 2), product(1, 3), product(2, 4)],
            &[(0, added), (1, added), (2, added)].into(),
            Some(ValueId(5)),
            &mut values,
        );
        let kinds: Vec<&str> = ops
            .iter()
            .map(|op| match op {
                Op::LoraMatMul(op) if op.accumulates => "up",
                Op::LoraMatMul(op) if op.input == ValueId(5) => "scales",
                Op::LoraMatMul(_) => "down",
                Op::Glu { .. } => "scale",
                _ => "-",
            })
            .collect();
        assert_eq!(kinds, ["scales", "-", "-", "down", "scale", "up", "up", "-", "down", "scale", "up"]);
    }
}
