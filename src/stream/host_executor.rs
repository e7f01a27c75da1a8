//! The host executor: the same schedule without any adapter. It is the check on the GPU, and what runs where there is none.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_channel::oneshot;

use crate::error::{Error, Result};
use crate::host;
use crate::kernels::kv_store::Token;
use crate::model::{Activation, Model, Op};
use crate::plan::sizes::kv_buffer_bytes;
use crate::plan::{KvDType, Plan, Slice, Work};
use crate::stream::feeder::{Feeder, FreeSlots, SlotMemory, stopped_midway, workers_gone};
use crate::stream::host_values::{Quantised, Values};
use crate::stream::store::read_vector;
use crate::stream::{Batch, Executor, Lane, Scores, Span, Store, Trace, Want, batch};
use crate::units::Bytes;
use crate::weights::TensorId;

/// Computes on the host's cores.
pub struct HostExecutor {
    model: Arc<Model>,
    plan: Arc<Plan>,
    store: Arc<Store>,
    trace: Trace,
    values: Values,
    vectors: HashMap<TensorId, Vec<f32>>,
    inverse_frequencies: Vec<f32>,
    /// Pieces on their way from disk, oldest first.
    under_way: VecDeque<(usize, oneshot::Receiver<Result<HostSlot>>)>,
    feeder: Option<(Feeder<HostSlot>, FreeSlots<HostSlot>)>,
    /// Pieces that stream in one forward, at least 1.
    n_streamed: usize,
    n_uploads_begun: usize,
    n_forwards: usize,
    activations_peak: Bytes,
    /// Set while a forward is under way: one that finds it set begins where another stopped.
    is_midway: bool,
}

/// A slot of the host's ring: what is streamed from disk is read into it.
struct HostSlot(Vec<u8>);

impl SlotMemory for HostSlot {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Some(&mut self.0)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

impl HostExecutor {
    /// Allocates caches and slots and reads the vectors; the pieces are held by `store`.
    ///
    /// # Errors
    /// Those of reading.
    pub fn new(model: &Model, plan: Arc<Plan>, store: Arc<Store>, trace: Trace) -> Result<HostExecutor> {
        let config = &model.config;
        let mut vectors = HashMap::new();
        for id in model.units.iter().flat_map(|unit| unit.vectors()) {
            vectors.insert(id, read_vector(store.checkpoint(), id)?);
        }
        let kv_values = (kv_buffer_bytes(config, KvDType::F32, plan.n_seqs, plan.ctx_size).0 / 4) as usize;
        let kv_caches = (0..config.n_layers).map(|_| (vec![0.0; kv_values], vec![0.0; kv_values])).collect();
        let feeder = match &plan.ring {
            Some(ring) => {
                let (feeder, free) = Feeder::start(&store, &plan, &trace)?;
                for _ in 0..ring.n_slots {
                    let _ = free.send(Some(HostSlot(vec![0; ring.slot_bytes.0 as usize])));
                }
                Some((feeder, free))
            }
            None => None,
        };
        let values = Values {
            config: config.clone(),
            activations: HashMap::new(),
            kv_caches,
            tokens: Vec::new(),
            cos_sin: Vec::new(),
            picked_rows: Vec::new(),
            n_seqs: plan.n_seqs,
            ctx_size: plan.ctx_size,
            quantised: Quantised::default(),
        };
        let n_streamed = plan.streamed_pieces().count().max(1);
        Ok(HostExecutor {
            inverse_frequencies: config.rope.inverse_frequencies(config.head_size),
            model: Arc::new(model.clone()),
            plan,
            store,
            trace,
            values,
            vectors,
            under_way: VecDeque::new(),
            feeder,
            n_streamed,
            n_uploads_begun: 0,
            n_forwards: 0,
            activations_peak: Bytes::ZERO,
            is_midway: false,
        })
    }

    fn compute(&mut self, index: usize, slot: Option<&HostSlot>) -> Result<()> {
        let start_secs = self.trace.now();
        let (plan, model, store) = (Arc::clone(&self.plan), Arc::clone(&self.model), Arc::clone(&self.store));
        let piece = &plan.pieces[index];
        let ops = &model.units[piece.unit].ops;
        let (values, vectors) = (&mut self.values, &self.vectors);
        host::among_threads(|| -> Result<()> {
            for work in &piece.work {
                match *work {
                    Work::Op(op) => values.run(&ops[op], vectors),
                    Work::Rows { op, slice } => {
                        let slice = &piece.slices[slice];
                        let rows = match slot {
                            Some(slot) => &slot.0[slice.offset as usize..][..slice.size_bytes as usize],
                            None => rows(&store, &plan, index, slice)?,
                        };
                        if let Op::MatMul { input, output, .. } = ops[op] {
                            let tensor = &store.checkpoint().catalog[slice.tensor];
                            let params = values.params().matmul(tensor, slice, input);
                            values.matmul(&params, rows, input, output);
                        }
                    }
                }
            }
            Ok(())
        })?;
        self.span(Lane::Compute, index, piece.size_bytes, start_secs);
        Ok(())
    }

    fn span(&self, lane: Lane, piece: usize, size_bytes: Bytes, start_secs: f64) {
        let end_secs = self.trace.now();
        self.trace.add(Span { lane, piece: Some(piece), forward: self.n_forwards, start_secs, end_secs, size_bytes });
    }

    /// Bytes of what this executor holds, by its own counting: what the plan promised.
    pub fn peak(&self) -> Bytes {
        let values = |values: &[f32]| Bytes(values.len() as u64 * 4);
        let caches: Bytes = self.values.kv_caches.iter().map(|(keys, cached)| values(keys) + values(cached)).sum();
        let vectors: Bytes = self.vectors.values().map(|vector| values(vector)).sum();
        let ring = self.plan.ring.map_or(Bytes::ZERO, |ring| Bytes(ring.slot_bytes.0 * ring.n_slots as u64));
        self.store.held_bytes() + caches + self.activations_peak + vectors + ring
    }
}

impl Executor for HostExecutor {
    type Output = Vec<Scores>;

    fn embed(&mut self, batch: &Batch) -> Result<()> {
        if self.is_midway {
            return Err(stopped_midway());
        }
        let config = &self.values.config;
        let (n_tokens, n_rows) = (batch.tokens.len(), batch.logits_for.len());
        let mut n_values = 0;
        for activation in Activation::ALL {
            let len = activation.n_rows(n_tokens, n_rows) * activation.width(config);
            self.values.activations.entry(activation).or_default().resize(len, 0.0);
            n_values += len as u64;
        }
        self.activations_peak = self.activations_peak.max(Bytes(n_values * 4));
        self.values.tokens = batch.tokens.iter().map(|token| Token::new(token.sequence, token.position, token.position + 1)).collect();
        self.values.cos_sin = batch::cos_sin(batch, &self.inverse_frequencies);
        self.values.picked_rows.clone_from(&batch.logits_for);
        let hidden = self.values.activations.entry(Activation::Hidden).or_default();
        self.store.embed(batch.tokens.iter().map(|token| token.token), hidden)?;
        self.is_midway = true;
        Ok(())
    }

    fn upload(&mut self, piece: usize) -> Result<()> {
        let (feeder, _) = self.feeder.as_ref().ok_or_else(workers_gone)?;
        self.under_way.push_back((piece, feeder.begin(piece, self.n_uploads_begun / self.n_streamed)?));
        self.n_uploads_begun += 1;
        Ok(())
    }

    fn compute_resident(&mut self, piece: usize) -> Result<()> {
        self.compute(piece, None)
    }

    async fn compute_streamed(&mut self, piece: usize) -> Result<()> {
        let (due, filled) = self.under_way.pop_front().ok_or_else(workers_gone)?;
        if due != piece {
            return Err(stopped_midway());
        }
        let start_secs = self.trace.now();
        let slot = filled.await.map_err(|_| workers_gone())??;
        self.span(Lane::Stall, piece, Bytes::ZERO, start_secs);
        self.compute(piece, Some(&slot))?;
        if let Some((_, free)) = &self.feeder {
            let _ = free.send(Some(slot));
        }
        Ok(())
    }

    async fn readback(&mut self, batch: &Batch) -> Result<Vec<Scores>> {
        self.n_forwards += 1;
        self.is_midway = false;
        let vocab_size = self.values.config.vocab_size;
        let logits = self.values.activations.get(&Activation::Logits).map(Vec::as_slice).unwrap_or_default();
        Ok(logits.chunks_exact(vocab_size).take(batch.logits_for.len()).map(|row| select(row, batch.want)).collect())
    }
}

/// The stored bytes of a slice that is held or mapped.
fn rows<'a>(store: &'a Store, plan: &Plan, piece: usize, slice: &Slice) -> Result<&'a [u8]> {
    if let Some(block) = store.held(piece) {
        return Ok(&block[slice.offset as usize..][..slice.size_bytes as usize]);
    }
    if let Some(rows) = store.mapped(piece, slice) {
        return Ok(rows);
    }
    // A mapped file that changed is not shown any more; reading it says why.
    let first = slice.first_row * store.checkpoint().catalog[slice.tensor].row_bytes();
    store.checkpoint().read(slice.tensor, first, &mut vec![0; slice.size_bytes as usize])?;
    let unit = &plan.units[plan.pieces[piece].unit].name;
    Err(Error::io("show from its map", unit, std::io::Error::other("use --io pread")))
}

/// All scores of a row, or its best: higher first, ties in order of the token, NaN above all so that nobody misses it.
fn select(row: &[f32], want: Want) -> Scores {
    let Want::TopK(k) = want else { return Scores::All(row.to_vec()) };
    let mut scored: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
    let rank = |score: f32| if score.is_nan() { f32::INFINITY } else { score };
    let better = |a: &(u32, f32), b: &(u32, f32)| rank(b.1).total_cmp(&rank(a.1)).then(a.0.cmp(&b.0));
    if k < scored.len() && k > 0 {
        scored.select_nth_unstable_by(k - 1, better);
        scored.truncate(k);
    }
    scored.sort_by(better);
    Scores::Top(scored)
}
