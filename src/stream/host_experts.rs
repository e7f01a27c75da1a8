//! Experts that are missing in an adapter's cache and left to the host: their products, from host memory or disk, for the tokens that take
//! them, while the adapter computes with the others.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::host;
use crate::kernels::expert_matmul;
use crate::model::{Model, Op, ValueId};
use crate::plan::sizes::{expert_rows_bytes, packed_input_bytes};
use crate::plan::{ExpertShape, HOST_MISS_TOKENS, Plan, Work, expert_products, host_steps, host_vectors, values_of_experts};
use crate::platform;
use crate::stream::Store;
use crate::stream::host_values::Values;
use crate::units::Bytes;
use crate::weights::TensorId;

/// Computes with single experts on the host's cores.
pub(super) struct HostExperts {
    model: Arc<Model>,
    plan: Arc<Plan>,
    values: Values,
    /// Biases between the products.
    vectors: HashMap<TensorId, Vec<f32>>,
    /// Bytes of these, and of the products' scratch.
    held: Bytes,
    peak: Bytes,
}

/// What the adapter says of the tokens of a forward.
pub(super) struct TokensOfExperts<'a> {
    /// `[n_tokens, 2, n_used]`: numbers of experts, then their weights.
    pub(super) routing: &'a [f32],
    /// What experts read: `[n_tokens, width]`.
    pub(super) inputs: &'a [f32],
}

/// Rows of the value that the experts' outputs are in, `[n_tokens · n_used, width]`, of those experts alone that were computed.
pub(super) struct ExpertRows<'a> {
    pub(super) output: ValueId,
    pub(super) rows: Vec<(usize, &'a [f32])>,
}

impl HostExperts {
    /// Reads the biases of all chunks whose experts `chunks` says are cached.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn new(model: &Arc<Model>, plan: &Arc<Plan>, store: &Store, chunks: impl Iterator<Item = usize>) -> Result<HostExperts> {
        let ids: BTreeSet<TensorId> = chunks.flat_map(|chunk| host_vectors(&plan.chunks[chunk], model)).collect();
        let vectors = ids.into_iter().map(|id| Ok((id, store.checkpoint().vector(id)?))).collect::<Result<HashMap<_, _>>>()?;
        let values = Values::new(Arc::clone(model));
        let of_vectors = Bytes(vectors.values().map(|vector| vector.len() as u64 * 4).sum());
        let scratch = packed_input_bytes(model, HOST_MISS_TOKENS) + expert_rows_bytes(model, HOST_MISS_TOKENS).unwrap_or_default();
        let held = of_vectors + scratch;
        Ok(HostExperts { model: Arc::clone(model), plan: Arc::clone(plan), values, vectors, held, peak: held })
    }

    /// Most bytes that it ever held, by its own count: what the plan promised.
    pub(super) fn peak(&self) -> Bytes {
        self.peak
    }

    /// What `experts` of a chunk give for the tokens that take them.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn compute(
        &mut self,
        store: &Store,
        (chunk, shape): (usize, &ExpertShape),
        experts: &[usize],
        tokens: &TokensOfExperts<'_>,
    ) -> Result<ExpertRows<'_>> {
        let (plan, model) = (Arc::clone(&self.plan), Arc::clone(&self.model));
        let of_chunk = &plan.chunks[chunk];
        let n_used = shape.n_used;
        self.begin(chunk, tokens)?;
        let (values, vectors) = (&mut self.values, &self.vectors);
        let mut output = None;
        host::among_threads(|| -> Result<()> {
            let mut matrices = 0..;
            for (unit, step) in host_steps(of_chunk, &model) {
                let ops = &model.units[unit].ops;
                let (Work::Op(op) | Work::Rows { op, .. }) = step;
                match (step, &ops[op]) {
                    (Work::Rows { slice, .. }, Op::ExpertMatMul(op)) => {
                        let dtype = store.checkpoint().catalog[of_chunk.slices[slice].tensor].dtype;
                        let matrix = matrices.next().unwrap_or(0);
                        let wanted: Vec<(usize, usize)> = experts.iter().map(|expert| (*expert, matrix)).collect();
                        let parts = store.experts(chunk, shape, &wanted)?;
                        for (&expert, rows) in experts.iter().zip(parts.iter()) {
                            let places = [expert as u64 * op.n_rows as u64, op.n_rows as u64];
                            let params = expert_matmul::Params::of(op, model.value(op.input), places, &values.batch());
                            values.multiply_experts((op.input, Some(op.routing), op.output), &params, (dtype, rows));
                        }
                        output = Some(op.output);
                    }
                    (Work::Rows { .. }, _) => return Err(Error::internal("a slice among experts that is none of theirs")),
                    (Work::Op(_), op) => values.run(op, vectors),
                }
            }
            Ok(())
        })?;
        let output = output.ok_or_else(|| Error::internal("a chunk of experts has none"))?;
        let width = model.value(output).width / n_used.max(1);
        let taken = tokens.routing.chunks_exact(2 * n_used).flat_map(|token| &token[..n_used]);
        let rows = self.values.get(output).chunks_exact(width.max(1)).zip(taken).enumerate();
        let is_computed = |expert: f32| experts.contains(&(expert as usize));
        Ok(ExpertRows {
            output,
            rows: rows.filter(|(_, (_, expert))| is_computed(**expert)).map(|(index, (row, _))| (index, row)).collect(),
        })
    }

    /// Sets what the adapter computed, and makes room for the rest.
    fn begin(&mut self, chunk: usize, tokens: &TokensOfExperts<'_>) -> Result<()> {
        let of_chunk = &self.plan.chunks[chunk];
        let Some((first, _)) = expert_products(of_chunk, &self.model).next() else { return Ok(()) };
        let n_tokens = tokens.routing.len() / (2 * first.n_used).max(1);
        let mut held = self.held;
        for id in values_of_experts(of_chunk, &self.model) {
            let len = n_tokens * self.model.value(id).width;
            let own = self.values.values.entry(id).or_default();
            platform::resize(own, len, "activations of experts")?;
            held += Bytes(len as u64 * 4);
            match id {
                id if id == first.input => own.copy_from_slice(tokens.inputs),
                id if id == first.routing => own.copy_from_slice(tokens.routing),
                _ => {}
            }
        }
        self.values.packed.forget();
        self.values.n_tokens = n_tokens;
        self.peak = self.peak.max(held);
        Ok(())
    }
}
