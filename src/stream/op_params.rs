//! From operations to the kernels' params: written once for every executor, so that the host stays the check on the GPU.

use crate::kernels::{add, add_bias, attention, gather_rows, matmul, rms_norm, rope_kv, swiglu};
use crate::model::Activation;
use crate::plan::{KvDType, Slice};
use crate::weights::{ModelConfig, RopePairs, TensorInfo};

/// What the params of a forward depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpParams<'a> {
    pub(super) config: &'a ModelConfig,
    /// Tokens of the batch.
    pub(super) n_tokens: usize,
    /// Positions whose logits are asked for.
    pub(super) n_rows: usize,
    /// Sequences and positions of the KV cache.
    pub(super) n_seqs: usize,
    pub(super) ctx_size: usize,
    pub(super) kv_dtype: KvDType,
}

impl OpParams<'_> {
    /// The product of one slice's rows with `input`.
    pub(super) fn matmul(&self, tensor: &TensorInfo, slice: &Slice, input: Activation) -> matmul::Params {
        let whole = matmul::Params::new(tensor.dtype, tensor.n_rows() as u32, tensor.n_columns() as u32, self.rows_of(input));
        whole.slice(slice.first_row as u32, slice.n_rows as u32)
    }

    pub(super) fn rms_norm(&self, input: Activation) -> rms_norm::Params {
        let hidden_size = input.width(self.config) as u32;
        rms_norm::Params { n_rows: self.rows_of(input), hidden_size, epsilon: self.config.rms_norm_epsilon }
    }

    pub(super) fn add_bias(&self, target: Activation) -> add_bias::Params {
        add_bias::Params { n_tokens: self.rows_of(target), width: target.width(self.config) as u32 }
    }

    pub(super) fn rope_kv(&self) -> rope_kv::Params {
        let pairing = match self.config.rope.pairs {
            RopePairs::Halves => rope_kv::Pairing::Halves,
            RopePairs::Neighbours => rope_kv::Pairing::Neighbours,
        };
        rope_kv::Params {
            n_tokens: self.n_tokens as u32,
            n_heads: self.config.n_heads as u32,
            n_kv_heads: self.config.n_kv_heads as u32,
            head_size: self.config.head_size as u32,
            n_seqs: self.n_seqs as u32,
            kv_capacity: self.ctx_size as u32,
            kv_dtype: self.kv_dtype(),
            pairing: pairing as u32,
        }
    }

    pub(super) fn attention(&self) -> attention::Params {
        attention::Params {
            n_tokens: self.n_tokens as u32,
            n_heads: self.config.n_heads as u32,
            n_kv_heads: self.config.n_kv_heads as u32,
            head_size: self.config.head_size as u32,
            n_seqs: self.n_seqs as u32,
            kv_capacity: self.ctx_size as u32,
            window: self.config.sliding_window.unwrap_or(0) as u32,
            scale: 1.0 / (self.config.head_size as f32).sqrt(),
            kv_dtype: self.kv_dtype(),
        }
    }

    pub(super) fn swiglu(&self) -> swiglu::Params {
        swiglu::Params { n_values: (self.n_tokens * self.config.ffn_size) as u32 }
    }

    pub(super) fn add_residual(&self) -> add::Params {
        add::Params { n_values: (self.n_tokens * self.config.hidden_size) as u32 }
    }

    pub(super) fn pick_rows(&self) -> gather_rows::Params {
        gather_rows::Params { n_rows: self.n_rows as u32, n_input_rows: self.n_tokens as u32, width: self.config.hidden_size as u32 }
    }

    fn rows_of(&self, activation: Activation) -> u32 {
        activation.n_rows(self.n_tokens, self.n_rows) as u32
    }

    fn kv_dtype(&self) -> u32 {
        let kv_dtype = match self.kv_dtype {
            KvDType::F32 => rope_kv::KvDType::F32,
            KvDType::F16 => rope_kv::KvDType::F16,
        };
        kv_dtype as u32
    }
}
