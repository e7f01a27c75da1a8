//! The weights as the host has them: chunks that are stored in host memory are read once, the rest is read from disk whenever it is due.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Model, State, StateKind, StoreKv, Unit, UnitKind};
use crate::plan::sizes::{KvCache, position_ranges};
use crate::plan::{Chunk, ExpertShape, Plan, Slice};
use crate::platform::{self, DirectBuffer, Pages, Readers};
use crate::stream::BatchToken;
use crate::stream::expert_parts::{ExpertParts, Run};
use crate::stream::fetch::{Fetch, InPlaceRead, Reads};
use crate::units::Bytes;
use crate::weights::TensorId;

/// Gives the bytes of a plan's chunks, wherever they are stored.
#[derive(Debug)]
pub struct Store {
    checkpoint: Arc<Checkpoint>,
    plan: Arc<Plan>,
    /// All chunks that were copied into host memory, one behind the other.
    host_memory: Pages,
    /// Per chunk: its range of `host_memory`, where it is there.
    places: Vec<Option<Range<usize>>>,
    /// Per chunk: how it is read, where it is stored on disk.
    reads: Vec<Reads>,
    /// The matrices whose rows tokens name, in the order of [`Model::embeddings`].
    embeddings: Vec<Embedding>,
    /// What is added to the first by position, where positions are learned. Its rows are read from the file as they are needed: they are few.
    positions: Option<TensorId>,
    /// What each sequence multiplies each LoRA adapter by, where sequences choose.
    lora_scales: RwLock<Vec<Vec<f32>>>,
    /// Read experts from disk, once any are needed.
    readers: OnceLock<Readers>,
}

/// Reads of experts from disk at once.
const READS_AT_ONCE: usize = 8;

/// A matrix whose rows tokens name.
#[derive(Debug)]
struct Embedding {
    table: TensorId,
    /// What its rows are multiplied by.
    scale: f32,
    /// All rows, in host memory; otherwise they are in the file, from which a forward reads the few that it needs.
    host_resident: Option<Box<[u8]>>,
}

impl Store {
    /// Reads every chunk that is stored in host memory, several at a time. With a mapped checkpoint nothing is copied:
    /// pages come in when they are first touched and stay as long as the system lets them.
    ///
    /// # Errors
    /// Those of reading.
    pub fn load(checkpoint: Arc<Checkpoint>, model: &Model, plan: Arc<Plan>, progress: &(dyn Fn(Bytes) + Sync)) -> Result<Store> {
        let places = places(&checkpoint, &plan);
        let len = places.iter().flatten().last().map_or(0, |place| place.end);
        let mut host_memory = Pages::of(Bytes(len as u64))?;
        let mut rest = &mut host_memory[..];
        let mut blocks: Vec<(&Chunk, &mut [u8])> = Vec::new();
        for (chunk, place) in plan.chunks.iter().zip(&places) {
            if let Some(place) = place {
                let (block, behind) = rest.split_at_mut(place.len());
                blocks.push((chunk, block));
                rest = behind;
            }
        }
        blocks.into_par_iter().try_for_each(|(chunk, block)| {
            read_slices(&checkpoint, chunk, block)?;
            progress(chunk.stored_bytes());
            Ok(())
        })?;
        let embeddings = load_embeddings(&checkpoint, model, &plan, progress)?;
        let reads_of = |(index, chunk)| Reads::of(chunk, plan.executor(index), &checkpoint.catalog);
        let reads = plan.chunks.iter().enumerate().map(reads_of).collect();
        let (positions, lora_scales, readers) = (model.positions(), RwLock::default(), OnceLock::new());
        Ok(Store { checkpoint, plan, host_memory, places, reads, embeddings, positions, lora_scales, readers })
    }

    /// The checkpoint whose bytes these are.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Bytes that loading will report: what is resident on adapters and on the host, without mapped files.
    pub fn bytes_to_load(checkpoint: &Checkpoint, model: &Model, plan: &Plan) -> Bytes {
        let is_read = |index: &usize| match plan.stored_on(*index) {
            Device::Gpu(_) => true,
            Device::Cpu => !is_mapped(checkpoint, &plan.chunks[*index]),
            Device::Disk => false,
        };
        let chunks: Bytes = (0..plan.chunks.len()).filter(is_read).map(|index| plan.chunks[index].stored_bytes()).sum();
        let embeddings = model.embeddings().filter(|(table, _)| loads_embedding(checkpoint, model, plan, *table));
        chunks + embeddings.map(|(table, _)| checkpoint.catalog[table].size_bytes).sum()
    }

    /// Host-resident bytes: copied into memory, or mapped for as long as the model is open.
    pub fn host_bytes(&self) -> Bytes {
        let embeddings: usize =
            self.embeddings.iter().filter_map(|embedding| embedding.host_resident.as_ref()).map(|rows| rows.len()).sum();
        let own = self.host_memory.len();
        let is_mapped = |index: &usize| self.plan.stored_on(*index) == Device::Cpu && self.places[*index].is_none();
        let mapped: Bytes = (0..self.places.len()).filter(is_mapped).map(|index| self.plan.chunks[index].size_bytes).sum();
        Bytes((own + embeddings) as u64) + mapped
    }

    /// The bytes of a chunk that was copied into host memory, laid out as its slices say.
    pub fn host_resident(&self, chunk: usize) -> Option<&[u8]> {
        self.places[chunk].clone().map(|place| &self.host_memory[place])
    }

    /// The bytes of one slice of a chunk that is stored in host memory, where the checkpoint is mapped and unchanged.
    pub fn mapped(&self, chunk: usize, slice: &Slice) -> Option<&[u8]> {
        if self.plan.stored_on(chunk) != Device::Cpu {
            return None;
        }
        let row_bytes = self.checkpoint.catalog[slice.tensor].row_bytes();
        self.checkpoint.view(slice.tensor, slice.first_row * row_bytes, slice.size_bytes)
    }

    /// The rows of experts in slices of a chunk that passes through an expert cache: of each expert with the number of the slice. What is on
    /// disk is read several at a time.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn experts(&self, chunk: usize, shape: &ExpertShape, wanted: &[(usize, usize)]) -> Result<ExpertParts<'_>> {
        if !self.is_on_disk(chunk) {
            let reads = wanted.iter().map(|&(expert, matrix)| self.neighbours(chunk, shape, matrix, expert..expert + 1));
            return Ok(ExpertParts::each(reads.collect::<Result<_>>()?));
        }
        let runs = Run::of(wanted, |matrix| shape.matrices.get(matrix).map_or(0, |(_, len)| *len));
        let read = |run: &Run| self.neighbours(chunk, shape, run.matrix, run.first_expert..run.first_expert + run.parts.len());
        let readers = self.readers.get_or_init(|| Readers::start(READS_AT_ONCE));
        let reads = readers.run(|| runs.par_iter().map(read).collect::<Result<_>>())?;
        Ok(ExpertParts::of_runs(&runs, reads))
    }

    /// The rows of some experts in slice `matrix` of a chunk.
    fn neighbours(&self, chunk: usize, shape: &ExpertShape, matrix: usize, experts: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let slice = self.plan.chunks[chunk].slices.get(matrix).zip(shape.matrices.get(matrix));
        let (slice, &(_, len)) = slice.ok_or_else(|| Error::internal("an expert has no such matrix"))?;
        let (begin, len) = (experts.start as u64 * len, experts.len() as u64 * len);
        if let Some(block) = self.host_resident(chunk) {
            return Ok(Cow::Borrowed(&block[(slice.offset + begin) as usize..][..len as usize]));
        }
        if let Some(rows) = self.checkpoint.view(slice.tensor, begin, len).filter(|_| !self.is_on_disk(chunk)) {
            return Ok(Cow::Borrowed(rows));
        }
        let mut rows = platform::zeroed(len as usize, "experts")?;
        self.checkpoint.read(slice.tensor, begin, &mut rows)?;
        Ok(Cow::Owned(rows))
    }

    /// Whether a chunk is stored on disk.
    pub(super) fn is_on_disk(&self, chunk: usize) -> bool {
        self.plan.stored_on(chunk) == Device::Disk
    }

    /// How a chunk comes from disk.
    pub(super) fn reads(&self, chunk: usize) -> &Reads {
        &self.reads[chunk]
    }

    /// Carries out one read, by direct I/O: what is read from disk at every forward must not silently fill the page cache.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn fetch<'b>(&self, fetch: &Fetch, buffer: &'b mut DirectBuffer) -> Result<&'b [u8]> {
        self.checkpoint.read_direct(fetch.shard, fetch.offset, fetch.len, buffer)
    }

    /// The same, straight into a slot's memory, which begins at a multiple of [`crate::plan::FILE_ALIGNMENT`].
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn read_in_place(&self, read: &InPlaceRead, slot: &mut [u8]) -> Result<()> {
        self.checkpoint.read_into(read.shard, read.offset, &mut slot[read.block.clone()], read.len)
    }

    /// Sets what each sequence multiplies LoRA adapters by, from the next forward on.
    pub fn set_lora_scales(&self, scales: Vec<Vec<f32>>) {
        *self.lora_scales.write().unwrap_or_else(PoisonError::into_inner) = scales;
    }

    /// What the sequence of each of `tokens` multiplies LoRA adapters by, `[n_tokens, n_adapters]`.
    pub(super) fn lora_scales(&self, tokens: &[BatchToken]) -> Vec<f32> {
        let scales = self.lora_scales.read().unwrap_or_else(PoisonError::into_inner);
        tokens.iter().filter_map(|token| scales.get(token.sequence as usize)).flatten().copied().collect()
    }

    /// Decodes the embedding rows of `tokens`, scaled, plus the rows of their positions where these are learned, into `output`,
    /// `[n_tokens, hidden_size]`, in place of what was there; behind them the rows of what else is embedded, matrix by matrix.
    ///
    /// # Errors
    /// Those of reading; [`Error::TokenOutOfVocabulary`]; [`Error::ContextFull`] where no row was learned for a position.
    pub fn embed(&self, tokens: &[BatchToken], output: &mut Vec<f32>) -> Result<()> {
        let width = |embedding: &Embedding| self.checkpoint.catalog[embedding.table].n_columns() as usize;
        platform::resize(output, tokens.len() * self.embeddings.iter().map(width).sum::<usize>(), "embedded tokens")?;
        let mut rest = &mut output[..];
        for (index, embedding) in self.embeddings.iter().enumerate() {
            let (rows, behind) = rest.split_at_mut(tokens.len() * width(embedding));
            self.embed_by(embedding, tokens, self.positions.filter(|_| index == 0), rows)?;
            rest = behind;
        }
        Ok(())
    }

    /// The same of one matrix, `[n_tokens, n_columns]`.
    fn embed_by(&self, embedding: &Embedding, tokens: &[BatchToken], positions: Option<TensorId>, output: &mut [f32]) -> Result<()> {
        let tensor = &self.checkpoint.catalog[embedding.table];
        let (row_bytes, width) = (tensor.row_bytes() as usize, tensor.n_columns() as usize);
        let mut row = platform::zeroed(row_bytes, "a row of the embedding")?;
        for (&BatchToken { token, position, .. }, values) in tokens.iter().zip(output.chunks_exact_mut(width)) {
            if u64::from(token) >= tensor.n_rows() {
                return Err(Error::TokenOutOfVocabulary { token, vocab_size: tensor.n_rows() as usize });
            }
            let begin = token as usize * row_bytes;
            match &embedding.host_resident {
                Some(rows) => tensor.dtype.decode(&rows[begin..begin + row_bytes], values),
                None => {
                    self.checkpoint.read(embedding.table, begin as u64, &mut row)?;
                    tensor.dtype.decode(&row, values);
                }
            }
            if embedding.scale != 1.0 {
                values.iter_mut().for_each(|value| *value *= embedding.scale);
            }
            if let Some(positions) = positions {
                self.add_position(positions, position, values)?;
            }
        }
        Ok(())
    }

    fn add_position(&self, positions: TensorId, position: u32, values: &mut [f32]) -> Result<()> {
        let tensor = &self.checkpoint.catalog[positions];
        if u64::from(position) >= tensor.n_rows() {
            return Err(Error::ContextFull { needed: position as usize + 1, available: tensor.n_rows() as usize });
        }
        let mut row = platform::zeroed(tensor.row_bytes() as usize, "a row of the positions")?;
        self.checkpoint.read(positions, u64::from(position) * tensor.row_bytes(), &mut row)?;
        let mut learned = platform::zeroed(values.len(), "a row of the positions")?;
        tensor.dtype.decode(&row, &mut learned);
        values.iter_mut().zip(&learned).for_each(|(value, learned)| *value += learned);
        Ok(())
    }
}

/// Norm weights and biases of the units that `device` computes, each once.
pub(super) fn vectors_of(model: &Model, plan: &Plan, device: Device) -> BTreeSet<TensorId> {
    units_of(model, plan, device).flat_map(Unit::vectors).collect()
}

/// The KV caches of `device`: those of each layer whose attention it computes.
pub(super) fn caches_of<'a>(model: &'a Model, plan: &Plan, device: Device) -> Vec<Option<&'a StoreKv>> {
    let mut layers = vec![None; model.config.n_layers];
    for cache in units_of(model, plan, device).filter_map(Unit::cache) {
        layers[cache.layer] = Some(cache);
    }
    layers
}

/// The states of the units that `device` computes.
pub(super) fn states_of(model: &Model, plan: &Plan, device: Device) -> Vec<State> {
    units_of(model, plan, device).flat_map(Unit::states).collect()
}

/// A part of what is kept of the sequences in a layer: a buffer, or a vector of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Keys.
    Keys,
    /// Values, where keys are not the values as well.
    Values,
    /// A state.
    State(StateKind),
}

/// Where `device` keeps what it keeps of the first `n_positions` of a sequence, which has these blocks, in a layer: ranges of bytes.
pub(super) fn kept_ranges(
    model: &Model,
    plan: &Plan,
    device: Device,
    layer: usize,
    (sequence, table): (u32, &[u32]),
    n_positions: usize,
) -> Vec<(Kept, Range<u64>)> {
    let mut ranges = Vec::new();
    for unit in units_of(model, plan, device) {
        if let Some(cache) = unit.cache().filter(|cache| cache.layer == layer) {
            let n_blocks = plan.n_kv_blocks();
            for (part, kept) in [Kept::Keys, Kept::Values].into_iter().zip(KvCache::of_layer(plan.kv_caches_of(device), cache)) {
                ranges.extend(position_ranges(cache, kept, n_blocks, table, n_positions).map(|range| (part, range)));
            }
        }
        for state in unit.states().filter(|state| state.layer == layer) {
            let (len, begin) = (state.n_values * 4, u64::from(sequence) * state.n_values * 4);
            ranges.push((Kept::State(state.kind), begin..begin + len));
        }
    }
    ranges
}

fn units_of<'a>(model: &'a Model, plan: &Plan, device: Device) -> impl Iterator<Item = &'a Unit> {
    model.units.iter().zip(&plan.units).filter(move |(_, planned)| planned.execute_on == device).map(|(unit, _)| unit)
}

/// Where each chunk is copied to in host memory: those that are stored there, whichever device computes with them, unless the file is
/// mapped.
fn places(checkpoint: &Checkpoint, plan: &Plan) -> Vec<Option<Range<usize>>> {
    let mut end = 0;
    let place = |index: usize| {
        let chunk = &plan.chunks[index];
        if plan.stored_on(index) != Device::Cpu || is_mapped(checkpoint, chunk) {
            return None;
        }
        let begin = end;
        end += chunk.size_bytes.0 as usize;
        Some(begin..end)
    };
    (0..plan.chunks.len()).map(place).collect()
}

fn read_slices(checkpoint: &Checkpoint, chunk: &Chunk, block: &mut [u8]) -> Result<()> {
    for slice in &chunk.slices {
        let row_bytes = checkpoint.catalog[slice.tensor].row_bytes();
        let range = slice.offset as usize..(slice.offset + slice.size_bytes) as usize;
        checkpoint.read(slice.tensor, slice.first_row * row_bytes, &mut block[range])?;
    }
    Ok(())
}

/// Whether a matrix whose rows tokens name is read into host memory for itself: it is stored there, the file is not mapped, and it is no
/// head that is host-resident.
fn loads_embedding(checkpoint: &Checkpoint, model: &Model, plan: &Plan, table: TensorId) -> bool {
    let stored_on = plan.units.iter().zip(&model.units).find(|(_, unit)| unit.kind == UnitKind::Embedding).map(|(unit, _)| unit.stored_on);
    let is_head = model.config.tied_embeddings && model.embedding() == Some(table);
    let is_host_resident = is_head && plan.units.last().is_some_and(|head| head.stored_on == Device::Cpu);
    stored_on == Some(Device::Cpu) && !is_host_resident && checkpoint.view(table, 0, 1).is_none()
}

fn is_mapped(checkpoint: &Checkpoint, chunk: &Chunk) -> bool {
    chunk.slices.iter().all(|slice| checkpoint.view(slice.tensor, 0, 1).is_some())
}

fn load_embeddings(checkpoint: &Checkpoint, model: &Model, plan: &Plan, progress: &dyn Fn(Bytes)) -> Result<Vec<Embedding>> {
    let load = |(table, scale)| {
        let mut host_resident = None;
        if loads_embedding(checkpoint, model, plan, table) {
            let size_bytes = checkpoint.catalog[table].size_bytes;
            let mut rows = platform::zeroed(size_bytes.0 as usize, "the embedding")?.into_boxed_slice();
            checkpoint.read(table, 0, &mut rows)?;
            progress(size_bytes);
            host_resident = Some(rows);
        }
        Ok(Embedding { table, scale, host_resident })
    };
    model.embeddings().map(load).collect()
}
