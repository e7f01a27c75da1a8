//! Fusion: the work of a chunk in as few dispatches as possible, with the same bits as one dispatch per operation. Knows no buffers.

use crate::device::Phase;
use crate::gpu::BUFFER_ALIGNMENT;
use crate::kernels::{BatchShape, MAX_PRODUCTS, matmul};
use crate::model::{ExpertMatMul, HeadMatMul, Model, Op, ValueId};
use crate::plan::{DeviceCosts, Slice, UnitWork, Work, is_fused};
use crate::units::Bytes;
use crate::weights::Catalog;

/// Products that would take longer together are not fused: the cost of a dispatch is nothing beside that, and a submission can end only
/// between dispatches.
const SHARED_SECS: f64 = 0.03;

/// Operations that become one dispatch.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fused {
    /// An operation that needs no matrix: index into the unit's operations.
    Op(usize),
    /// Products of one input, whose weights one binding covers, in the order of their offsets.
    Products(Vec<Product>),
    /// The rows of the experts' matrices that are in one slice.
    Experts(ExpertMatMul, Slice),
    /// The rows of the heads' matrices that are in one slice.
    Heads(HeadMatMul, Slice),
}

/// The rows of a matrix product that are in one slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Product {
    pub(super) params: matmul::Params,
    pub(super) slice: Slice,
    pub(super) input: ValueId,
    pub(super) output: ValueId,
    /// How long it should take, by the adapter's rates, besides the cost of any dispatch.
    pub(super) secs: f64,
}

/// What the dispatches of a forward depend on besides its operations.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) model: &'a Model,
    pub(super) batch: BatchShape,
    /// Positions that a token looks back on, at most.
    pub(super) n_positions: usize,
    /// Whether tokens share what they look back on.
    pub(super) attention: Phase,
    pub(super) catalog: &'a Catalog,
    pub(super) costs: &'a DeviceCosts,
    pub(super) max_binding: Bytes,
}

/// The dispatches of one unit's part of a chunk: `work` with these slices. Products of one input are fused where one binding covers their
/// weights, and so is a product with the addition of its result to the residual stream. `None` where a slice belongs to no product.
pub(super) fn fuse(work: &UnitWork, slices: &[Slice], ops: &[Op], terms: &Terms<'_>) -> Option<Vec<Fused>> {
    let mut fused: Vec<Fused> = Vec::with_capacity(work.steps.len());
    for step in &work.steps {
        match *step {
            Work::Op(op) if is_fused(ops, op) => {}
            Work::Op(op) => fused.push(Fused::Op(op)),
            Work::Rows { op, slice } => {
                let slice = *slices.get(slice)?;
                let of_its_own = match ops.get(op) {
                    Some(Op::ExpertMatMul(op)) => Some(Fused::Experts(*op, slice)),
                    Some(Op::HeadMatMul(op)) => Some(Fused::Heads(*op, slice)),
                    _ => None,
                };
                if let Some(of_its_own) = of_its_own {
                    fused.push(of_its_own);
                    continue;
                }
                let product = product(ops, op, slice, terms)?;
                match fusable(&mut fused, ops).filter(|others| can_fuse(others, &product, terms.max_binding)) {
                    Some(others) => others.push(product),
                    None => fused.push(Fused::Products(vec![product])),
                }
            }
        }
    }
    Some(fused)
}

impl Terms<'_> {
    /// How long a dispatch should take, by the adapter's rates.
    pub(super) fn secs(&self, one: &Fused, ops: &[Op]) -> f64 {
        let secs: f64 = match one {
            Fused::Op(op) => match &ops[*op] {
                Op::Attention(op) => self.costs.attention_secs(op, self.batch.n_tokens as usize, self.n_positions, self.attention),
                Op::LoraMatMul(op) => self.costs.lora_secs(op, self.batch.rows_of(self.model.value(op.input)) as usize),
                Op::DeltaRule(rule) => self.costs.delta_rule_secs(rule, self.batch.n_tokens as usize),
                _ => 0.0,
            },
            Fused::Products(products) => products.iter().map(|product| product.secs).sum(),
            Fused::Experts(op, slice) => {
                self.costs.expert_secs(op, &self.catalog[slice.tensor], slice.n_rows, self.batch.n_tokens as usize)
            }
            Fused::Heads(_, slice) => self.costs.head_secs(&self.catalog[slice.tensor], slice.n_rows, self.batch.n_tokens as usize),
        };
        self.costs.dispatch_secs() + secs
    }
}

fn product(ops: &[Op], op: usize, slice: Slice, terms: &Terms<'_>) -> Option<Product> {
    let Some(&Op::MatMul { input, weight, output }) = ops.get(op) else { return None };
    let tensor = &terms.catalog[weight];
    let n_tokens = terms.batch.rows_of(terms.model.value(input));
    let params = matmul::Params::of_rows(tensor, slice.first_row, slice.n_rows, n_tokens);
    let secs = terms.costs.product_secs(tensor, slice.n_rows, n_tokens as usize);
    Some(match ops.get(op + 1) {
        Some(&Op::Add { target, .. }) if is_fused(ops, op + 1) => {
            Product { params: params.accumulating(), slice, input, output: target, secs }
        }
        _ => Product { params, slice, input, output, secs },
    })
}

/// The products that the next product could be fused with: the last ones, if only their biases come after them.
fn fusable<'s>(fused: &'s mut [Fused], ops: &[Op]) -> Option<&'s mut Vec<Product>> {
    let is_bias = |one: &&mut Fused| matches!(one, Fused::Op(op) if matches!(ops[*op], Op::AddBias { .. }));
    match fused.iter_mut().rev().find(|one| !is_bias(one)) {
        Some(Fused::Products(products)) => Some(products),
        _ => None,
    }
}

fn can_fuse(others: &[Product], product: &Product, max_binding: Bytes) -> bool {
    let begin = others.first().map_or(0, |first| first.slice.offset);
    let size = (product.slice.offset + product.slice.size_bytes - begin).next_multiple_of(BUFFER_ALIGNMENT);
    let can_share = |other: &Product| {
        other.input == product.input && other.output != product.output && other.params.can_share_dispatch(&product.params)
    };
    let secs: f64 = others.iter().chain([product]).map(|each| each.secs).sum();
    others.len() < MAX_PRODUCTS && size <= max_binding.0 && secs <= SHARED_SECS && others.iter().all(can_share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{AdapterKind, Device, DeviceSpec, Rates};
    use crate::dtype::DType;
    use crate::kernels::rope_kv::CacheDType;
    use crate::model::{Attention, ModelConfig, RopeConfig, RopePairing, RopeScaling, Value, Variant, families};
    use crate::weights::{Shard, TensorId, TensorInfo};

    /// The residual stream first.
    const HIDDEN: ValueId = ValueId(0);
    const NORMED: ValueId = ValueId(1);
    const QUERY: ValueId = ValueId(2);
    const KEY: ValueId = ValueId(3);
    const VALUE: ValueId = ValueId(4);
    const ATTENTION_OUTPUT: ValueId = ValueId(5);
    const DELTA: ValueId = ValueId(6);

    fn model() -> Model {
        let values = vec![Value::of_tokens("any", 64); 7];
        let (rope_tables, carried, units) = (Vec::new(), Vec::new(), Vec::new());
        Model { config: config(), values, rope_tables, hidden: HIDDEN, carried, logits: HIDDEN, lora_scales: None, units }
    }

    fn config() -> ModelConfig {
        ModelConfig {
            family: families::by_name("llama").expect("a family of that name"),
            name: "test".into(),
            vocab_size: 100,
            hidden_size: 64,
            ffn_size: 64,
            n_layers: 1,
            n_heads: 4,
            n_kv_heads: 4,
            head_size: 16,
            context_length: 512,
            rms_norm_epsilon: 1e-5,
            rope: RopeConfig { theta: 10_000.0, pairs: RopePairing::NeoX, scaling: RopeScaling::None },
            sliding_window: None,
            n_full_attention_layers: 0,
            attention_bias: true,
            attention_output_bias: false,
            ffn_bias: false,
            qk_norm: false,
            tied_embeddings: false,
            variant: Variant::default(),
        }
    }

    /// One that multiplies at 1 GFLOP/s: each of the matrices in 8 µs a token.
    fn adapter() -> DeviceSpec {
        let rates = Rates { matmul: [(DType::F16, 1e9)].into(), ..Rates::default() };
        DeviceSpec {
            device: Device::Gpu(0),
            name: "test".into(),
            vendor: 0,
            driver: String::new(),
            kind: Some(AdapterKind::Discrete),
            capacity: None,
            capacity_source: String::new(),
            limits: None,
            rates,
        }
    }

    /// Four matrices of 64 × 64, the last stored as `last`.
    fn catalog(last: DType) -> Catalog {
        let tensor = |index: usize, dtype: DType| TensorInfo {
            name: format!("w{index}"),
            dtype,
            shape: vec![64, 64],
            shard: 0,
            offset: 0,
            size_bytes: Bytes(dtype.size_bytes(64 * 64).unwrap()),
        };
        let tensors = (0..3).map(|index| tensor(index, DType::F16)).chain([tensor(3, last)]).collect();
        Catalog::new(vec![Shard { path: "x".into(), size_bytes: Bytes(1 << 20) }], tensors)
    }

    fn product(weight: u32, input: ValueId, output: ValueId) -> Op {
        Op::MatMul { input, weight: TensorId(weight), output }
    }

    /// Query with its bias, key, value; and the attention output, added to the residual stream.
    fn ops() -> Vec<Op> {
        let (n_heads, head_size) = (4, 16);
        let attention = Attention {
            layer: 0,
            query: QUERY,
            output: ATTENTION_OUTPUT,
            n_heads,
            n_kv_heads: n_heads,
            head_size,
            window: None,
            in_chunks: false,
            is_causal: true,
            scale: 0.25,
            softcap: None,
            sinks: None,
        };
        vec![
            product(0, NORMED, QUERY),
            Op::AddBias { bias: TensorId(0), target: QUERY },
            product(1, NORMED, KEY),
            product(2, NORMED, VALUE),
            Op::Attention(attention),
            product(3, ATTENTION_OUTPUT, DELTA),
            Op::Add { input: DELTA, target: HIDDEN },
        ]
    }

    /// All of `ops`, their matrices one behind the other, that of `cut` in two slices.
    fn chunk(ops: &[Op], cut: Option<u32>) -> (UnitWork, Vec<Slice>) {
        let (mut steps, mut slices, mut size_bytes) = (Vec::new(), Vec::new(), Bytes::ZERO);
        for (index, op) in ops.iter().enumerate() {
            let Op::MatMul { weight, .. } = *op else {
                steps.push(Work::Op(index));
                continue;
            };
            for (first_row, n_rows) in if cut == Some(weight.0) { vec![(0, 30), (30, 34)] } else { vec![(0, 64)] } {
                steps.push(Work::Rows { op: index, slice: slices.len() });
                slices.push(Slice { tensor: weight, first_row, n_rows, offset: size_bytes.0, size_bytes: n_rows * 128 });
                size_bytes = (size_bytes + Bytes(n_rows * 128)).align_up(256);
            }
        }
        (UnitWork { unit: 0, steps }, slices)
    }

    /// How many products each dispatch has; 0 for other operations.
    fn shape(ops: &[Op], cut: Option<u32>, last: DType, max_binding: u64) -> Vec<usize> {
        shape_of_forward(ops, cut, last, max_binding, 1)
    }

    fn shape_of_forward(ops: &[Op], cut: Option<u32>, last: DType, max_binding: u64, n_tokens: usize) -> Vec<usize> {
        let (model, catalog, costs) = (model(), catalog(last), DeviceCosts::new(&adapter()));
        let n_tokens = n_tokens as u32;
        let batch = BatchShape { n_tokens, n_logit_rows: 1, n_seqs: 1, n_blocks: 1, kv_capacity: 8, kv_dtypes: [CacheDType::F32; 2] };
        let attention = Phase::Decode;
        let terms =
            Terms { model: &model, batch, n_positions: 8, attention, catalog: &catalog, costs: &costs, max_binding: Bytes(max_binding) };
        let (work, slices) = chunk(ops, cut);
        let fused = fuse(&work, &slices, ops, &terms).unwrap();
        let n_products = |one: &Fused| if let Fused::Products(products) = one { products.len() } else { 0 };
        let count = fused.iter().map(n_products).collect();
        for one in &fused {
            let Fused::Products(products) = one else { continue };
            let accumulates = products.iter().any(|product| product.params.accumulates == 1);
            assert_eq!(accumulates, products.iter().any(|product| product.output == HIDDEN));
        }
        count
    }

    #[test]
    fn products_of_one_input_go_together_and_the_sum_needs_no_dispatch() {
        assert_eq!(shape(&ops(), None, DType::F16, 1 << 20), [3, 0, 0, 1]);
    }

    #[test]
    fn what_no_binding_holds_goes_apart() {
        assert_eq!(shape(&ops(), None, DType::F16, 2 * 8192), [2, 0, 1, 0, 1]);
        assert_eq!(shape(&ops(), None, DType::F16, 8192), [1, 0, 1, 1, 0, 1]);
    }

    #[test]
    fn slices_of_one_matrix_go_apart_and_both_are_added() {
        assert_eq!(shape(&ops(), Some(1), DType::F16, 1 << 20), [2, 0, 2, 0, 1]);
        assert_eq!(shape(&ops(), Some(3), DType::F16, 1 << 20), [3, 0, 0, 1, 1]);
    }

    #[test]
    fn only_like_products_share_a_dispatch() {
        let both = [product(2, NORMED, QUERY), product(3, NORMED, KEY)];
        assert_eq!(shape(&both, None, DType::F16, 1 << 20), [2]);
        assert_eq!(shape(&both, None, DType::BF16, 1 << 20), [1, 1]);
        let other_input = [both[0].clone(), product(3, ATTENTION_OUTPUT, KEY)];
        assert_eq!(shape(&other_input, None, DType::F16, 1 << 20), [1, 1]);
    }

    #[test]
    fn long_products_go_apart() {
        assert_eq!(shape_of_forward(&ops(), None, DType::F16, 1 << 20, 1000), [3, 0, 0, 1]);
        assert_eq!(shape_of_forward(&ops(), None, DType::F16, 1 << 20, 1500), [2, 0, 1, 0, 1]);
        assert_eq!(shape_of_forward(&ops(), None, DType::F16, 1 << 20, 4000), [1, 0, 1, 1, 0, 1]);
    }

    #[test]
    fn a_product_with_a_bias_of_its_own_is_not_added_before_it() {
        let bias = Op::AddBias { bias: TensorId(0), target: DELTA };
        let ops = [product(3, ATTENTION_OUTPUT, DELTA), bias, Op::Add { input: DELTA, target: HIDDEN }];
        assert_eq!(shape(&ops, None, DType::F16, 1 << 20), [1, 0, 0]);
    }
}
