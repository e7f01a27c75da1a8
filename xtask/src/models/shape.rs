//! The sizes of a test model, and the list of its tensors.

use std::io;

/// Rotary scaling of a test model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's; in GGUF it becomes the tensor `rope_freqs.weight`.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Below which multiple of the original context a frequency is low.
        low_freq_factor: f64,
        /// Above which it is high.
        high_freq_factor: f64,
        /// The context before stretching.
        original_context_length: u32,
    },
}

/// Families of test models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama; with a window, Mistral.
    Llama,
    /// Qwen2: q, k and v have biases, o has none, and in GGUF files rows stay where they are.
    Qwen2,
    /// Qwen3: queries and keys are normed head by head; in GGUF files rows stay where they are.
    Qwen3,
    /// Qwen3 with experts in place of each feed-forward part.
    Qwen3Moe(TestExperts),
}

/// The experts of a test model. A few are taken more often than the others, as in models that people use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestExperts {
    /// Experts of a layer.
    pub n_experts: usize,
    /// Experts of a token.
    pub n_used: usize,
    /// Width of one expert.
    pub ffn_size: usize,
}

/// Sizes and settings of a test model.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaShape {
    /// Tokens; at least 272 (bytes, merges, special tokens).
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub ffn_size: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values per head.
    pub head_size: usize,
    /// Positions.
    pub context_length: usize,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// Which family it belongs to.
    pub family: Family,
    /// With a window the model is a Mistral, which has no biases.
    pub sliding_window: Option<usize>,
    /// q, k, v and o have biases.
    pub attention_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their stretching.
    pub rope_scaling: Option<RopeScaling>,
}

impl LlamaShape {
    /// Four layers of width 64: every path in milliseconds. All widths are multiples of a quantisation block.
    pub fn tiny() -> LlamaShape {
        LlamaShape {
            vocab_size: 320,
            hidden_size: 64,
            ffn_size: 160,
            n_layers: 4,
            n_heads: 4,
            n_kv_heads: 2,
            head_size: 16,
            context_length: 512,
            tied: false,
            family: Family::Llama,
            sliding_window: None,
            attention_bias: false,
            mlp_bias: false,
            rope_theta: 10_000.0,
            rope_scaling: None,
        }
    }

    /// 20 million parameters, 40 MB in bf16: layers large enough that a part of them streams, and forwards that any machine computes.
    pub fn twenty_million() -> LlamaShape {
        LlamaShape {
            vocab_size: 1024,
            hidden_size: 512,
            ffn_size: 1536,
            n_layers: 6,
            n_heads: 8,
            n_kv_heads: 4,
            head_size: 64,
            context_length: 2048,
            ..LlamaShape::tiny()
        }
    }

    /// The sizes of TinyLlama: 1.1 billion parameters, 2.2 GB in bf16.
    pub fn one_billion() -> LlamaShape {
        LlamaShape {
            vocab_size: 32_000,
            hidden_size: 2048,
            ffn_size: 5632,
            n_layers: 22,
            n_heads: 32,
            n_kv_heads: 4,
            head_size: 64,
            context_length: 2048,
            ..LlamaShape::tiny()
        }
    }

    /// The sizes of Llama 3.1 8B: 8.03 billion parameters, 16 GB in bf16.
    pub fn eight_billion() -> LlamaShape {
        LlamaShape {
            vocab_size: 128_256,
            hidden_size: 4096,
            ffn_size: 14_336,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 8,
            head_size: 128,
            context_length: 131_072,
            rope_theta: 500_000.0,
            rope_scaling: Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context_length: 8192,
            }),
            ..LlamaShape::tiny()
        }
    }

    /// A small mixture of experts: 16 million parameters, 1.4 million of them for a token.
    pub fn small_experts() -> LlamaShape {
        LlamaShape {
            vocab_size: 1024,
            hidden_size: 256,
            n_layers: 6,
            n_heads: 8,
            n_kv_heads: 2,
            head_size: 32,
            context_length: 2048,
            family: Family::Qwen3Moe(TestExperts { n_experts: 32, n_used: 4, ffn_size: 96 }),
            ..LlamaShape::tiny()
        }
    }

    /// A mixture of 64 experts in each of 48 layers, of which a token takes four: 3.2 billion parameters.
    pub fn three_billion_experts() -> LlamaShape {
        LlamaShape {
            vocab_size: 32_000,
            hidden_size: 1024,
            n_layers: 48,
            n_heads: 16,
            n_kv_heads: 4,
            head_size: 64,
            context_length: 8192,
            family: Family::Qwen3Moe(TestExperts { n_experts: 64, n_used: 4, ffn_size: 320 }),
            ..LlamaShape::tiny()
        }
    }

    /// The sizes of Qwen3-30B-A3B.
    pub fn qwen3_30b_a3b() -> LlamaShape {
        LlamaShape {
            vocab_size: 151_936,
            hidden_size: 2048,
            n_layers: 48,
            n_heads: 32,
            n_kv_heads: 4,
            head_size: 128,
            context_length: 40_960,
            rope_theta: 1_000_000.0,
            family: Family::Qwen3Moe(TestExperts { n_experts: 128, n_used: 8, ffn_size: 768 }),
            ..LlamaShape::tiny()
        }
    }

    /// The tensors of a folder: those of experts one by one.
    pub(super) fn tensors_of_folder(&self) -> Vec<Tensor> {
        let each = |tensor: Tensor| match tensor.shape.as_slice() {
            &[n_experts, rows, columns] => {
                let of = |expert: usize| Tensor {
                    name: tensor.name.replace("experts", &format!("experts.{expert}")),
                    shape: vec![rows, columns],
                    ..tensor.clone()
                };
                (0..n_experts).map(of).collect()
            }
            _ => vec![tensor],
        };
        self.tensors().into_iter().flat_map(each).collect()
    }

    /// The experts' tensors of a layer: a router, and three stacks of matrices.
    fn expert_tensors(&self, layer: usize, TestExperts { n_experts, ffn_size, .. }: TestExperts) -> [Tensor; 4] {
        let prefix = |name: &str, gguf: &str| (format!("model.layers.{layer}.mlp.{name}"), format!("blk.{layer}.{gguf}"));
        let stack = |name: &str, gguf: &str, [rows, columns]: [usize; 2]| {
            let (name, gguf) = prefix(name, gguf);
            let shape = vec![n_experts, rows, columns];
            Tensor { name: format!("{name}.weight"), gguf_name: format!("{gguf}.weight"), shape, role: Role::Plain }
        };
        let (name, gguf) = prefix("gate", "ffn_gate_inp");
        [
            Tensor::matrix(&name, &gguf, n_experts, self.hidden_size, Role::Router),
            stack("experts.gate_proj", "ffn_gate_exps", [ffn_size, self.hidden_size]),
            stack("experts.up_proj", "ffn_up_exps", [ffn_size, self.hidden_size]),
            stack("experts.down_proj", "ffn_down_exps", [self.hidden_size, ffn_size]),
        ]
    }

    /// All tensors in the order in which they are written.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let (hidden, ffn) = (self.hidden_size, self.ffn_size);
        let (query, kv) = (self.n_heads * self.head_size, self.n_kv_heads * self.head_size);
        let mut tensors = vec![Tensor::matrix("model.embed_tokens", "token_embd", self.vocab_size, hidden, Role::Plain)];
        for layer in 0..self.n_layers {
            let mut linear = |name: &str, gguf: &str, rows, columns, role, bias: bool| {
                let (name, gguf) = (format!("model.layers.{layer}.{name}"), format!("blk.{layer}.{gguf}"));
                tensors.push(Tensor::matrix(&name, &gguf, rows, columns, role));
                if bias {
                    tensors.push(Tensor::vector(&format!("{name}.bias"), &format!("{gguf}.bias"), rows, Role::bias_of(role)));
                }
            };
            let (attention_bias, mlp_bias) = (self.attention_bias || self.family == Family::Qwen2, self.mlp_bias);
            linear("self_attn.q_proj", "attn_q", query, hidden, Role::Rotated { n_heads: self.n_heads }, attention_bias);
            linear("self_attn.k_proj", "attn_k", kv, hidden, Role::Rotated { n_heads: self.n_kv_heads }, attention_bias);
            linear("self_attn.v_proj", "attn_v", kv, hidden, Role::Plain, attention_bias);
            linear("self_attn.o_proj", "attn_output", hidden, query, Role::Plain, self.attention_bias);
            match self.family {
                Family::Qwen3Moe(experts) => tensors.extend(self.expert_tensors(layer, experts)),
                _ => {
                    linear("mlp.gate_proj", "ffn_gate", ffn, hidden, Role::Plain, mlp_bias);
                    linear("mlp.up_proj", "ffn_up", ffn, hidden, Role::Plain, mlp_bias);
                    linear("mlp.down_proj", "ffn_down", hidden, ffn, Role::Plain, mlp_bias);
                }
            }
            let mut norm = |name: &str, gguf: &str, size| {
                let (name, gguf) = (format!("model.layers.{layer}.{name}.weight"), format!("blk.{layer}.{gguf}.weight"));
                tensors.push(Tensor::vector(&name, &gguf, size, Role::Norm));
            };
            norm("input_layernorm", "attn_norm", hidden);
            norm("post_attention_layernorm", "ffn_norm", hidden);
            if matches!(self.family, Family::Qwen3 | Family::Qwen3Moe(_)) {
                norm("self_attn.q_norm", "attn_q_norm", self.head_size);
                norm("self_attn.k_norm", "attn_k_norm", self.head_size);
            }
        }
        tensors.push(Tensor::vector("model.norm.weight", "output_norm.weight", hidden, Role::Norm));
        if !self.tied {
            tensors.push(Tensor::matrix("lm_head", "output", self.vocab_size, hidden, Role::Plain));
        }
        tensors
    }

    /// What GGUF stores for Llama 3's scaling: by how much each pair's frequency is divided.
    pub(super) fn rope_frequency_factors(&self) -> Option<Vec<f32>> {
        let Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_length }) = self.rope_scaling else {
            return None;
        };
        let original = f64::from(original_context_length);
        let factor_of = |pair: usize| {
            let frequency = self.rope_theta.powf(-2.0 * pair as f64 / self.head_size as f64);
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < original / high_freq_factor {
                1.0
            } else if wavelength > original / low_freq_factor {
                factor as f32
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        };
        Some((0..self.head_size / 2).map(factor_of).collect())
    }

    /// Refuses sizes that cannot be a model.
    pub(super) fn check(&self) -> io::Result<()> {
        let n_tokens = super::vocabulary::n_tokens();
        let reason = if self.vocab_size < n_tokens {
            format!("the vocabulary needs at least {n_tokens} tokens")
        } else if self.n_kv_heads == 0 || !self.n_heads.is_multiple_of(self.n_kv_heads) {
            "the key and value heads must divide the heads".into()
        } else if self.sliding_window.is_some() && (self.attention_bias || self.mlp_bias) {
            "a Mistral (a model with a window) has no biases".into()
        } else if self.family != Family::Llama && (self.sliding_window.is_some() || self.attention_bias || self.mlp_bias) {
            "a Qwen has no window here, and no other biases than its own".into()
        } else if self.hidden_size == 0 || self.ffn_size == 0 || self.n_layers == 0 || self.head_size == 0 {
            "no size may be zero".into()
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }
}

/// What decides the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Role {
    /// A matrix.
    Plain,
    /// The matrix of a router: the larger the values of an expert's row, the more often tokens take it.
    Router,
    /// Queries or keys: rows are permuted in GGUF.
    Rotated { n_heads: usize },
    /// Values near 1.
    Norm,
    /// Values near 0, permuted where they belong to queries or keys.
    Bias { n_heads: Option<usize> },
}

impl Role {
    fn bias_of(matrix: Role) -> Role {
        match matrix {
            Role::Rotated { n_heads } => Role::Bias { n_heads: Some(n_heads) },
            _ => Role::Bias { n_heads: None },
        }
    }
}

/// One tensor of a test model.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub name: String,
    pub gguf_name: String,
    /// `[rows, columns]`, or `[values]`.
    pub shape: Vec<usize>,
    pub role: Role,
}

impl Tensor {
    fn matrix(name: &str, gguf: &str, rows: usize, columns: usize, role: Role) -> Tensor {
        Tensor { name: format!("{name}.weight"), gguf_name: format!("{gguf}.weight"), shape: vec![rows, columns], role }
    }

    fn vector(name: &str, gguf: &str, len: usize, role: Role) -> Tensor {
        Tensor { name: name.to_owned(), gguf_name: gguf.to_owned(), shape: vec![len], role }
    }

    /// Values of a row.
    pub fn n_columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Values in all.
    pub fn n_values(&self) -> usize {
        self.shape.iter().product()
    }
}
