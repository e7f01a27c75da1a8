//! The experts of a layer as operations: a router chooses some for each token, their products are those of a feed-forward part, and what
//! they give is summed by the weights that they were chosen with.

use super::Tensors;
use crate::error::Result;
use crate::model::experts::STACKED;
use crate::model::{ExpertMatMul, Experts, Function, ModelConfig, Op, Route, SharedExpert, Value, ValueId};

/// The values of experts.
pub(super) struct ExpertIds {
    /// What the router gives each expert.
    logits: ValueId,
    routing: ValueId,
    /// What they read, where that is multiplied by their weights.
    weighed: Option<ValueId>,
    gate: ValueId,
    up: ValueId,
    activated: ValueId,
    /// What each of a token's experts gives.
    outputs: ValueId,
    shared: Option<SharedIds>,
}

/// Those of the expert that every token takes.
struct SharedIds {
    gate: ValueId,
    up: ValueId,
    activated: ValueId,
    output: ValueId,
    /// By what it is multiplied, where it is.
    factor: Option<ValueId>,
}

/// Declares the values of `experts`.
pub(super) fn declare(experts: &Experts, hidden_size: usize, declare: &mut dyn FnMut(Value) -> ValueId) -> ExpertIds {
    let wide = experts.n_used * experts.ffn_size;
    let mut value = |name, width| declare(Value::of_tokens(name, width));
    ExpertIds {
        logits: value("scores of the experts", experts.n_experts),
        routing: value("choice of experts", 2 * experts.n_used),
        weighed: experts.weighs_inputs.then(|| value("weighed inputs of the experts", experts.n_used * hidden_size)),
        gate: value("gates of the experts", wide),
        up: value("up projections of the experts", wide),
        activated: value("gated up projections of the experts", wide),
        outputs: value("outputs of the experts", experts.n_used * hidden_size),
        shared: experts.shared.map(|SharedExpert { ffn_size, is_gated }| SharedIds {
            gate: value("gate of the shared expert", ffn_size),
            up: value("up projection of the shared expert", ffn_size),
            activated: value("gated up projection of the shared expert", ffn_size),
            output: value("output of the shared expert", hidden_size),
            factor: is_gated.then(|| value("factor of the shared expert", 1)),
        }),
    }
}

/// What a router reads where it is not what experts read, and what its logits are multiplied by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Router {
    pub(super) input: ValueId,
    pub(super) logit_scale: f32,
}

/// Appends what experts make of `input` as `output`; `name` is the module that they are in.
pub(super) fn push(
    ops: &mut Vec<Op>,
    tensor: &Tensors<'_>,
    name: &str,
    (config, experts): (&ModelConfig, &Experts),
    ids: &ExpertIds,
    [input, output]: [ValueId; 2],
    of_router: Option<Router>,
) -> Result<()> {
    let &Experts { n_experts, n_used, scores, normalises, scale, groups, names, .. } = experts;
    let matrix = |module: &str, shape: [usize; 2]| tensor(&format!("{name}.{module}.weight"), &shape.map(|size| size as u64));
    let router = matrix(names.router, [n_experts, config.hidden_size])?;
    ops.push(Op::MatMul { input: of_router.map_or(input, |router| router.input), weight: router, output: ids.logits });
    if let Some(Router { logit_scale, .. }) = of_router {
        ops.push(Op::Map { function: Function::Scale(logit_scale), target: ids.logits });
    }
    let vector = |module: &str, shape: &[usize]| {
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        tensor(&format!("{name}.{module}"), &shape)
    };
    if experts.has_bias {
        let bias = vector(&format!("{}.bias", names.router), &[n_experts])?;
        ops.push(Op::AddBias { bias, target: ids.logits });
    }
    let bias = experts.has_selection_bias.then(|| tensor(&format!("{name}.{}", names.selection_bias), &[n_experts as u64])).transpose()?;
    let factors = experts.beside_plain.then(|| vector("router.per_expert_scale", &[n_experts])).transpose()?;
    let (logits, routing) = (ids.logits, ids.routing);
    ops.push(Op::Route(Route { logits, bias, factors, routing, n_experts, n_used, scores, normalises, scale, groups }));
    let read = ids.weighed.unwrap_or(input);
    if let Some(output) = ids.weighed {
        ops.push(Op::WeighInputs { input, routing, output });
    }
    // It waits for no choice: adapters compute it while the host reads which experts are.
    let of_shared = ids.shared.as_ref().map(|shared| push_shared(ops, tensor, name, (config, experts), shared, input)).transpose()?;
    let shapes = experts.shapes(config.hidden_size);
    let product = |which: usize, input: ValueId, output: ValueId| {
        let [n_rows, n_columns] = shapes[which];
        let stacked = format!("{name}.{}.{}", names.experts, STACKED[which]);
        let weight = tensor(&stacked, &[(n_experts * n_rows) as u64, n_columns as u64])?;
        Ok(Op::ExpertMatMul(ExpertMatMul { input, routing, weight, output, n_experts, n_used, n_rows, n_columns }))
    };
    // Of the biases of all experts those of the chosen ones are added.
    let biased = |bias: &str, width: usize, target: ValueId| {
        let add = || Ok(Op::AddExpertBias { bias: vector(&format!("{}.{bias}", names.experts), &[n_experts, width])?, routing, target });
        experts.has_bias.then(add).transpose()
    };
    ops.extend([product(0, read, ids.gate)?, product(1, read, ids.up)?]);
    ops.extend(biased("gate_up_proj_bias:gate", experts.ffn_size, ids.gate)?);
    ops.extend(biased("gate_up_proj_bias:up", experts.ffn_size, ids.up)?);
    let activation = config.variant.activation;
    ops.push(Op::Glu { activation, gate: ids.gate, up: ids.up, output: ids.activated });
    ops.push(product(2, ids.activated, ids.outputs)?);
    ops.extend(biased("down_proj_bias", config.hidden_size, ids.outputs)?);
    ops.push(Op::SumExperts { input: ids.outputs, routing, output, is_weighted: ids.weighed.is_none() });
    if let Some(of_shared) = of_shared {
        ops.push(Op::Add { input: of_shared, target: output });
    }
    Ok(())
}

/// Appends what the expert makes of `input` that every token takes; the value that has it.
fn push_shared(
    ops: &mut Vec<Op>,
    tensor: &Tensors<'_>,
    name: &str,
    (config, experts): (&ModelConfig, &Experts),
    ids: &SharedIds,
    input: ValueId,
) -> Result<ValueId> {
    let (hidden_size, [module, factor]) = (config.hidden_size, experts.names.shared);
    let ffn_size = experts.shared.map_or(0, |shared| shared.ffn_size);
    let matrix = |module: &str, shape: [usize; 2]| tensor(&format!("{name}.{module}.weight"), &shape.map(|size| size as u64));
    if let Some(value) = ids.factor {
        ops.push(Op::MatMul { input, weight: matrix(factor, [1, hidden_size])?, output: value });
    }
    for (part, output) in [("gate_proj", ids.gate), ("up_proj", ids.up)] {
        let weight = matrix(&format!("{module}.{part}"), [ffn_size, hidden_size])?;
        ops.push(Op::MatMul { input, weight, output });
    }
    ops.push(Op::Glu { activation: config.variant.activation, gate: ids.gate, up: ids.up, output: ids.activated });
    let weight = matrix(&format!("{module}.down_proj"), [hidden_size, ffn_size])?;
    ops.push(Op::MatMul { input: ids.activated, weight, output: ids.output });
    if let Some(gate) = ids.factor {
        ops.push(Op::GateRows { gate, target: ids.output });
    }
    Ok(ids.output)
}
