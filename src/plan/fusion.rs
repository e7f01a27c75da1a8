//! Which operations are fused with others, decided once for the costs and both executors.

use crate::model::{Op, Rope};

/// Whether operation `op` of a unit needs no dispatch of its own where the operations next to it are computed with the same chunk: the
/// addition of a product to the residual stream is part of the product, products of one input are one dispatch, and queries and keys are
/// rotated as the keys are stored.
pub(crate) fn is_fused(ops: &[Op], op: usize) -> bool {
    let Some((last, before)) = ops.get(..=op).and_then(<[Op]>::split_last) else { return false };
    match last {
        Op::Add { input, .. } => matches!(before.last(), Some(Op::MatMul { output, .. }) if output == input),
        Op::MatMul { input, .. } => {
            let product = before.iter().rfind(|other| !matches!(other, Op::AddBias { .. }));
            matches!(product, Some(Op::MatMul { input: other, .. }) if other == input)
        }
        Op::Rope(_) => (op + 1..op + 3).any(|store| rotated_by(ops, store).is_some()),
        _ => false,
    }
}

/// The rotations that are fused with operation `store`, which stores keys: those of queries and keys right before it. Only matrix products
/// begin a chunk, so all three are in the same one.
pub(crate) fn rotated_by(ops: &[Op], store: usize) -> Option<[&Rope; 2]> {
    let (Some(Op::StoreKv(stored)), Some(before)) = (ops.get(store), ops.get(..store)) else { return None };
    match before {
        [.., Op::Rope(query), Op::Rope(key)] if key.heads == stored.key && query.turns_like(key) => Some([query, key]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attention, RopePairing, StoreKv, ValueId};
    use crate::weights::TensorId;

    #[test]
    fn products_of_one_input_and_what_is_only_added_are_fused() {
        let [hidden, normed, query, key, attention_output, delta] = [0, 1, 2, 3, 4, 5].map(ValueId);
        let product = |input, output| Op::MatMul { input, weight: TensorId(0), output };
        let attention = Attention {
            layer: 0,
            query,
            output: attention_output,
            n_heads: 1,
            n_kv_heads: 1,
            head_size: 8,
            window: None,
            in_chunks: false,
            is_causal: true,
            scale: 1.0,
            softcap: None,
            sinks: None,
        };
        let ops = [
            product(normed, query),
            Op::AddBias { bias: TensorId(1), target: query },
            product(normed, key),
            Op::Attention(attention),
            product(attention_output, delta),
            Op::Add { input: delta, target: hidden },
            product(attention_output, delta),
            Op::AddBias { bias: TensorId(1), target: delta },
            Op::Add { input: delta, target: hidden },
        ];
        let fused: Vec<usize> = (0..=ops.len()).filter(|&op| is_fused(&ops, op)).collect();
        assert_eq!(fused, [2, 5], "a bias that is added first keeps the sum apart");
    }

    #[test]
    fn queries_and_keys_are_rotated_as_keys_are_stored_where_their_angles_are_the_same() {
        let [query, key, value] = [0, 1, 2].map(ValueId);
        let rope = |heads, table| Op::Rope(Rope { heads, n_heads: 1, head_size: 8, rotary_size: 8, pairs: RopePairing::NeoX, table });
        let store = || Op::StoreKv(StoreKv { layer: 0, key, value: Some(value), n_kv_heads: 1, head_size: 8 });
        let fused = |ops: &[Op]| (0..ops.len()).filter(|&op| is_fused(ops, op)).collect::<Vec<_>>();
        assert_eq!(fused(&[rope(query, 0), rope(key, 0), store()]), [0, 1]);
        assert!(fused(&[rope(query, 0), rope(key, 1), store()]).is_empty(), "other angles");
        assert!(fused(&[rope(key, 0), rope(query, 0), store()]).is_empty(), "the keys last");
        assert!(fused(&[rope(query, 0), store()]).is_empty() && fused(&[rope(query, 0), rope(key, 0)]).is_empty());
    }
}
