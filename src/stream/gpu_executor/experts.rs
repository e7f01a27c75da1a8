//! Chunks whose experts are cached: what tokens take of them is read back while the adapter goes on, what is missing is brought or computed on
//! the host, and the cache is kept as the plan says.

use std::collections::BTreeSet;

use crate::device::Device;
use crate::error::Result;
use crate::gpu::Readback;
use crate::model::ExpertMatMul;
use crate::plan::{ExpertCachePlan, ExpertShape, HOST_MISS_TOKENS, WorkingBuffer, expert_products, expert_shape};
use crate::stream::expert_cache::{Asked, ExpertCache};
use crate::stream::gpu_executor::{GpuExecutor, ranges_of};
use crate::stream::gpu_forward::{OF_ALL, OF_EACH_GROUP};
use crate::stream::host_experts::TokensOfExperts;
use crate::stream::warm_experts::{ExpertTimes, WarmExperts, times_of, whole_chunks};
use crate::stream::{ExpertStatistics, Lane, Span};
use crate::units::Bytes;

/// A choice of experts on its way to the host.
pub(super) struct Chosen {
    /// The chunk whose experts they are.
    chunk: usize,
    readback: Readback,
    /// The copy is part of it.
    submission: Option<wgpu::SubmissionIndex>,
}

/// What the tokens of a forward take of a layer's experts.
struct Taken {
    experts: BTreeSet<usize>,
    /// `[n_tokens, 2, n_used]`: numbers of experts, then their weights.
    routing: Vec<f32>,
    /// What they read, where the host may compute with some: `[n_tokens, width]`; else empty.
    inputs: Vec<f32>,
}

impl GpuExecutor {
    /// What the expert cache was asked for so far, by chunk; nothing where there is none.
    pub fn expert_statistics(&self) -> impl Iterator<Item = (usize, ExpertStatistics)> {
        self.expert_cache.iter().flat_map(|cache| cache.statistics()).map(|(chunk, statistics)| (*chunk, *statistics))
    }

    /// How often each expert that passes through the cache was asked for, by chunk, where what was long ago counts less.
    pub fn expert_times(&self) -> ExpertTimes {
        let mut times = times_of(&self.plan, &self.model, self.device, None);
        for ((chunk, expert), of_expert) in self.expert_cache.iter().flat_map(|cache| cache.times(self.forward)) {
            if let Some(own) = times.get_mut(&chunk).and_then(|layer| layer.get_mut(expert)) {
                *own = of_expert;
            }
        }
        times
    }

    /// Brings the experts to the cache that it begins with, before the first forward. `progress` gets their bytes.
    ///
    /// # Errors
    /// Those of reading and of the adapter.
    pub(in crate::stream) fn warm_experts(&mut self, warm: &WarmExperts, progress: &dyn Fn(Bytes)) -> Result<()> {
        let (plan, model) = (&self.plan, &self.model);
        let Some(cache) = &mut self.expert_cache else { return Ok(()) };
        cache.know(&warm.times);
        let shape_of = |chunk: usize| expert_shape(&plan.chunks[chunk], model);
        cache.keep_whole(&self.gpu, &self.store, shape_of, &warm.whole, progress)?;
        cache.warm(&self.gpu, &self.store, shape_of, &warm.taken, progress)
    }

    /// The expert cache as it is now; `None` where there is none.
    pub fn expert_cache(&self) -> Option<&ExpertCachePlan> {
        self.expert_cache.as_ref().map(ExpertCache::plan)
    }

    /// Splits the expert cache as `cache` says, which has the hits that were seen. To be called between forwards.
    ///
    /// # Errors
    /// Those of reading and of the adapter.
    pub(in crate::stream) fn split_experts(&mut self, cache: ExpertCachePlan) -> Result<()> {
        self.keep_whole(cache.misses.n_whole)?;
        if let Some(own) = &mut self.expert_cache {
            own.note_hits(cache.misses.hit_percent);
        }
        Ok(())
    }

    /// Makes as many layers whole in the expert cache as `n_whole` says, by what tokens took so far.
    ///
    /// # Errors
    /// Those of reading and of the adapter.
    fn keep_whole(&mut self, n_whole: usize) -> Result<()> {
        let times = self.expert_times();
        let Some(cache) = &mut self.expert_cache else { return Ok(()) };
        let (plan, model) = (&self.plan, &self.model);
        let shape_of = |chunk: usize| expert_shape(&plan.chunks[chunk], model);
        let whole = whole_chunks(&times, cache.plan().n_slots, n_whole);
        let kept = cache.keep_whole(&self.gpu, &self.store, shape_of, &whole, &|_| {});
        if kept.is_err() {
            cache.recover()?;
        }
        kept
    }

    /// Whether few tokens are under way and the cache has all experts of `chunk`, so that nobody has to know which are taken. What a prompt takes
    /// is asked all the same, so that it is known how often each expert is.
    pub(super) fn takes_whole(&self, chunk: usize) -> bool {
        self.n_tokens() <= HOST_MISS_TOKENS && self.expert_cache.as_ref().is_some_and(|cache| cache.is_whole(chunk))
    }

    /// What the host has to know before experts of `chunk` are computed with, and their first product.
    fn wanted_of(&self, chunk: usize) -> Result<(Vec<(WorkingBuffer, u64)>, ExpertMatMul)> {
        let first = expert_products(&self.plan.chunks[chunk], &self.model).next().map(|(op, _)| *op);
        let op = first.ok_or_else(|| self.gpu.error("a chunk of experts has none"))?;
        let n_tokens = self.n_tokens();
        let mut wanted = vec![(WorkingBuffer::Value(op.routing), (n_tokens * 2 * op.n_used * 4) as u64)];
        if self.host_experts.is_some() && n_tokens <= HOST_MISS_TOKENS {
            wanted.push((WorkingBuffer::Value(op.input), (n_tokens * self.model.value(op.input).width * 4) as u64));
        }
        Ok((wanted, op))
    }

    /// Sends the choice of `chunk`'s experts to the host, so that it goes while the adapter computes what does not depend on it. Where that
    /// would have to wait for memory, it is read later.
    pub(super) fn send_choice(&mut self, chunk: usize) -> Result<()> {
        let (wanted, _) = self.wanted_of(chunk)?;
        let ranges = ranges_of(&self.buffers, &self.gpu, &wanted)?;
        if let Some(readback) = Readback::record_in_kept(&self.gpu, self.submitter.encoder(), &ranges)? {
            // Slots that are computed from are not free yet: more of this chunk comes.
            let submission = self.submitter.submit(self.forward, || {})?;
            self.chosen = Some(Chosen { chunk, readback, submission });
        }
        Ok(())
    }

    /// The experts of a chunk that the tokens of this forward take, once the router has spoken.
    async fn experts_taken(&mut self, chunk: usize, n_experts: usize) -> Result<Taken> {
        let (wanted, op) = self.wanted_of(chunk)?;
        let bytes = match self.chosen.take().filter(|chosen| chosen.chunk == chunk) {
            Some(chosen) => {
                self.submit()?;
                let bytes = chosen.readback.bytes_after(&self.gpu, chosen.submission).await?;
                self.gpu.check()?;
                bytes
            }
            None => self.read_all(&wanted).await?,
        };
        let mut routing: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let inputs = routing.split_off(self.n_tokens() * 2 * op.n_used);
        let of_tokens = routing.chunks_exact(2 * op.n_used).flat_map(|row| &row[..op.n_used]);
        let experts: BTreeSet<usize> = of_tokens.map(|expert| *expert as usize).collect();
        match experts.last() {
            Some(last) if *last >= n_experts => Err(self.gpu.error(format!("expert {last} of {n_experts} was chosen"))),
            _ => Ok(Taken { experts, routing, inputs }),
        }
    }

    /// Computes with experts that are left to the host and writes what they give where the adapter sums it up, which writes nothing there
    /// itself.
    fn compute_on_host(&mut self, chunk: usize, shape: &ExpertShape, experts: &[usize], taken: &Taken) -> Result<()> {
        let start_secs = self.trace.now();
        let host = self.host_experts.as_mut().ok_or_else(|| self.gpu.error("nothing computes experts on the host"))?;
        let tokens = TokensOfExperts { routing: &taken.routing, inputs: &taken.inputs };
        let computed = host.compute(&self.store, (chunk, shape), experts, &tokens)?;
        for (row, values) in computed.rows {
            let begin = (row * size_of_val(values)) as u64;
            self.buffers.write_at(&self.gpu, WorkingBuffer::Value(computed.output), begin, bytemuck::cast_slice(values))?;
        }
        let (forward, end_secs) = (self.forward, self.trace.now());
        let size_bytes = shape.size_bytes.times(experts.len() as u64);
        self.trace.add(Span { lane: Lane::Compute, device: Device::Cpu, chunk: Some(chunk), forward, start_secs, end_secs, size_bytes });
        Ok(())
    }

    /// Records the dispatches of a chunk whose experts are cached: [`OF_EACH_GROUP`] or [`OF_ALL`]; of those that read experts, those of the
    /// buffers in `blocks`.
    fn record_cached(&mut self, chunk: usize, which: usize, blocks: &BTreeSet<usize>) -> Result<()> {
        self.dispatch(chunk, Some(which), |_, placed| placed.experts.is_none_or(|block| blocks.contains(&block)))
    }

    /// Computes a chunk all of whose experts are cached.
    fn compute_whole(&mut self, chunk: usize) -> Result<()> {
        let n_tokens = self.n_tokens();
        let blocks = self.expert_cache.as_mut().map(|cache| cache.use_whole(chunk, n_tokens)).unwrap_or_default();
        self.record_cached(chunk, OF_EACH_GROUP, &blocks)?;
        self.record_cached(chunk, OF_ALL, &blocks)?;
        self.submitter.end_chunk(Bytes::ZERO);
        self.submit_if_due()
    }

    /// See [`Executor::compute_cached`].
    pub(super) async fn compute_experts(&mut self, chunk: usize) -> Result<()> {
        if self.takes_whole(chunk) {
            return self.compute_whole(chunk);
        }
        let shape = expert_shape(&self.plan.chunks[chunk], &self.model).ok_or_else(|| self.gpu.error("a chunk of experts has none"))?;
        let mut taken = self.experts_taken(chunk, shape.n_experts).await?;
        let mut wanted = std::mem::take(&mut taken.experts);
        let asked = Asked { chunk, shape: &shape, forward: self.forward };
        let n_tokens = self.n_tokens();
        let by_host = match &mut self.expert_cache {
            Some(cache) => cache.leave_to_host(asked, n_tokens, &mut wanted),
            None => Vec::new(),
        };
        let uploaded = |cache: &Option<ExpertCache>| {
            cache.as_ref().and_then(|cache| cache.statistics().get(&chunk)).map_or(Bytes::ZERO, |statistics| statistics.uploaded)
        };
        let (before, start_secs) = (uploaded(&self.expert_cache), self.trace.now());
        let mut brought_secs = start_secs;
        while !wanted.is_empty() {
            let cache = self.expert_cache.as_mut().ok_or_else(|| self.gpu.error("there is no expert cache"))?;
            let blocks = cache.bring(&self.gpu, &self.store, asked, &mut wanted)?;
            brought_secs = self.trace.now();
            self.record_cached(chunk, OF_EACH_GROUP, &blocks)?;
            // The next group's tables and slots are written before what is submitted after them, and the adapter computes beside the host.
            if !wanted.is_empty() || !by_host.is_empty() {
                self.submit()?;
            }
            if let Some(cache) = &mut self.expert_cache {
                cache.release()?;
            }
        }
        if !by_host.is_empty() {
            self.compute_on_host(chunk, &shape, &by_host, &taken)?;
        }
        self.record_cached(chunk, OF_ALL, &BTreeSet::new())?;
        if let Some(cache) = self.expert_cache.as_mut().filter(|_| !by_host.is_empty()) {
            cache.adopt(&self.gpu, &self.store, asked, &by_host)?;
        }
        let size_bytes = uploaded(&self.expert_cache).saturating_sub(before);
        let (device, forward, end_secs) = (self.device, self.forward, brought_secs);
        self.trace.add(Span { lane: Lane::Experts, device, chunk: Some(chunk), forward, start_secs, end_secs, size_bytes });
        self.submitter.end_chunk(size_bytes);
        self.submit_if_due()
    }
}
