//! Which operations need no dispatch of their own: the costs and both executors go by it.

use crate::model::Op;

/// Whether operation `op` of a unit needs no dispatch of its own where what stands before it is computed in the same place: a
/// product is added to the residual stream as it is made, and products of one input are made together.
pub(crate) fn is_fused(ops: &[Op], op: usize) -> bool {
    let Some((last, before)) = ops.get(..=op).and_then(<[Op]>::split_last) else { return false };
    match last {
        Op::Add { input, .. } => matches!(before.last(), Some(Op::MatMul { output, .. }) if output == input),
        Op::MatMul { input, .. } => {
            let product = before.iter().rfind(|other| !matches!(other, Op::AddBias { .. }));
            matches!(product, Some(Op::MatMul { input: other, .. }) if other == input)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attention, ValueId};
    use crate::weights::TensorId;

    #[test]
    fn products_of_one_input_and_what_is_only_added_are_fused() {
        let [hidden, normed, query, key, mixed, delta] = [0, 1, 2, 3, 4, 5].map(ValueId);
        let product = |input, output| Op::MatMul { input, weight: TensorId(0), output };
        let attention = Attention { layer: 0, query, output: mixed, n_heads: 1, n_kv_heads: 1, head_size: 8, window: None, scale: 1.0 };
        let ops = [
            product(normed, query),
            Op::AddBias { bias: TensorId(1), target: query },
            product(normed, key),
            Op::Attention(attention),
            product(mixed, delta),
            Op::Add { input: delta, target: hidden },
            product(mixed, delta),
            Op::AddBias { bias: TensorId(1), target: delta },
            Op::Add { input: delta, target: hidden },
        ];
        let fused: Vec<usize> = (0..=ops.len()).filter(|&op| is_fused(&ops, op)).collect();
        assert_eq!(fused, [2, 5], "a bias that is added first keeps the sum apart");
    }
}
