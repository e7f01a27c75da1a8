//! Attention over latent vectors ([`Latent`](crate::model::Latent)): queries meet the latent vector itself, once they are multiplied by what
//! would make keys of it. A cached key has the values that turn first, so that queries and keys turn as partly rotary heads do; it is the
//! value as well, and what attention gives of the values that turn is left out.

use super::{HeadIds, Units};
use crate::error::Result;
use crate::model::{CopyPart, HeadMatMul, Latent, ModelConfig, Op, RmsNorm, Value, ValueId};

/// That of the norms in it, whatever that of others is.
const EPSILON: f32 = 1e-6;

/// The values of such attention.
pub(super) struct Ids {
    /// What queries are made of before and behind its norm, where they are compressed.
    compressed: Option<[ValueId; 2]>,
    /// Queries as they would meet keys.
    heads: ValueId,
    /// What does not turn of them.
    still: ValueId,
    /// Latent vector and what turns of keys.
    projected: ValueId,
    /// The latent vector before and behind its norm.
    latent: [ValueId; 2],
    /// What meets the latent vector of queries, and later what attention gives of it.
    of_rank: ValueId,
    /// What attention gives as values.
    value: ValueId,
}

pub(super) fn declare(config: &ModelConfig, latent: &Latent, declare: &mut dyn FnMut(Value) -> ValueId) -> Ids {
    let &Latent { query_rank, rank, still_size, rotary_size, value_size } = latent;
    let mut of_width = |name: &'static str, width: usize| declare(Value::of_tokens(name, width));
    let n_heads = config.n_heads;
    Ids {
        compressed: query_rank.map(|rank| ["compressed queries", "normed compressed queries"].map(|name| of_width(name, rank))),
        heads: of_width("queries of keys", n_heads * (still_size + rotary_size)),
        still: of_width("part of queries that does not turn", n_heads * still_size),
        projected: of_width("compressed keys and values", rank + rotary_size),
        latent: ["latent vectors", "normed latent vectors"].map(|name| of_width(name, rank)),
        of_rank: of_width("queries of latent vectors", n_heads * rank),
        value: of_width("values of the attention output", n_heads * value_size),
    }
}

impl Units<'_> {
    /// Queries and the key of `input`.
    pub(super) fn project_latent(&self, ops: &mut Vec<Op>, name: &str, input: ValueId, (latent, ids): (&Latent, &Ids)) -> Result<()> {
        let &Latent { query_rank, rank, still_size, rotary_size, .. } = latent;
        let (hidden_size, n_heads) = (self.config.hidden_size, self.config.n_heads);
        let HeadIds { query, key, .. } = self.ids.heads[0];
        let (query_width, has_bias) = (n_heads * (still_size + rotary_size), self.config.attention_bias);
        match (query_rank, ids.compressed) {
            (Some(rank), Some([compressed, _])) => {
                self.matrix(ops, name, "q_a_proj", [rank, hidden_size], [input, compressed], has_bias)?;
            }
            _ => self.matrix(ops, name, "q_proj", [query_width, hidden_size], [input, ids.heads], false)?,
        }
        self.matrix(ops, name, "kv_a_proj_with_mqa", [rank + rotary_size, hidden_size], [input, ids.projected], has_bias)?;
        if let (Some(rank), Some([compressed, normed])) = (query_rank, ids.compressed) {
            ops.push(self.latent_norm(&format!("{name}.q_a_layernorm"), compressed, normed, rank)?);
            self.matrix(ops, name, "q_b_proj", [query_width, rank], [normed, ids.heads], false)?;
        }
        let copy = |n_heads, [input, output]: [ValueId; 2], [from, to]: [usize; 2], len| {
            Op::CopyPart(CopyPart { input, output, n_heads, from, to, len })
        };
        let [plain, normed] = ids.latent;
        ops.push(copy(1, [ids.projected, plain], [0, 0], rank));
        ops.push(self.latent_norm(&format!("{name}.kv_a_layernorm"), plain, normed, rank)?);
        ops.push(copy(1, [ids.projected, key], [rank, 0], rotary_size));
        ops.push(copy(1, [normed, key], [0, rotary_size], rank));
        ops.push(copy(n_heads, [ids.heads, ids.still], [0, 0], still_size));
        self.of_heads(ops, name, "key", [rank, still_size], [ids.still, ids.of_rank])?;
        ops.push(copy(n_heads, [ids.heads, query], [still_size, 0], rotary_size));
        ops.push(copy(n_heads, [ids.of_rank, query], [0, rotary_size], rank));
        Ok(())
    }

    /// What attention gives, as values of all heads.
    pub(super) fn values_of_latent(&self, ops: &mut Vec<Op>, name: &str, (latent, ids): (&Latent, &Ids)) -> Result<ValueId> {
        let &Latent { rank, rotary_size, value_size, .. } = latent;
        let n_heads = self.config.n_heads;
        let (input, output) = (self.ids.heads[0].attention, ids.of_rank);
        ops.push(Op::CopyPart(CopyPart { input, output, n_heads, from: rotary_size, to: 0, len: rank }));
        self.of_heads(ops, name, "value", [value_size, rank], [ids.of_rank, ids.value])?;
        Ok(ids.value)
    }

    /// A product of each head with the matrix of keys or of values.
    fn of_heads(
        &self,
        ops: &mut Vec<Op>,
        module: &str,
        part: &str,
        [n_rows, n_columns]: [usize; 2],
        [input, output]: [ValueId; 2],
    ) -> Result<()> {
        let n_heads = self.config.n_heads;
        let name = format!("{module}.{}.weight:{part}", crate::model::latent_tensors::BOTH);
        let weight = (self.tensor)(&name, &[(n_heads * n_rows) as u64, n_columns as u64])?;
        ops.push(Op::HeadMatMul(HeadMatMul { input, weight, output, n_heads, n_rows, n_columns }));
        Ok(())
    }

    fn latent_norm(&self, module: &str, input: ValueId, output: ValueId, group_size: usize) -> Result<Op> {
        let weight = (self.tensor)(&format!("{module}.weight"), &[group_size as u64])?;
        Ok(Op::RmsNorm(RmsNorm { input, weight: Some(weight), output, group_size, epsilon: EPSILON, weight_offset: 0.0 }))
    }
}
