//! A Llama in double precision, as plain as the formulas: what the engine's results are compared with. It shares no
//! arithmetic with the crate except the decoding of stored numbers and the table of rotary frequencies.

use tierflow::model::{Checkpoint, ModelConfig, RopePairing};

/// The whole model, decoded.
pub struct Reference<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
}

impl<'a> Reference<'a> {
    pub fn new(checkpoint: &'a Checkpoint) -> Reference<'a> {
        Reference { checkpoint, config: &checkpoint.config }
    }

    /// Logits behind every token. `[n_tokens, vocab_size]`
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let embedding = self.tensor("model.embed_tokens.weight");
        let hidden_size = self.config.hidden_size;
        let mut hidden: Vec<Vec<f64>> =
            tokens.iter().map(|&token| embedding[token as usize * hidden_size..][..hidden_size].to_vec()).collect();
        for layer in 0..self.config.n_layers {
            self.attention(layer, &mut hidden);
            self.feed_forward(layer, &mut hidden);
        }
        let norm = self.tensor("model.norm.weight");
        let head = if self.config.tied_embeddings { embedding } else { self.tensor("lm_head.weight") };
        hidden.iter().map(|row| product(&head, &self.norm(row, &norm))).collect()
    }

    fn attention(&self, layer: usize, hidden: &mut [Vec<f64>]) {
        let config = self.config;
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let norm = self.tensor(&format!("model.layers.{layer}.input_layernorm.weight"));
        let [query, key, value, output] =
            ["q_proj", "k_proj", "v_proj", "o_proj"].map(|part| (self.tensor(&name(&format!("{part}.weight"))), self.bias(&name(part))));
        let head_norm = |part: &str| if config.qk_norm { self.tensor(&name(&format!("{part}.weight"))) } else { Vec::new() };
        let (q_norm, k_norm) = (head_norm("q_norm"), head_norm("k_norm"));
        let rows: Vec<[Vec<f64>; 3]> = hidden
            .iter()
            .enumerate()
            .map(|(position, row)| {
                let normed = self.norm(row, &norm);
                let [mut q, mut k, v] = [&query, &key, &value].map(|(weight, bias)| plus(product(weight, &normed), bias));
                if config.qk_norm {
                    q = q.chunks(config.head_size).flat_map(|head| self.norm(head, &q_norm)).collect();
                    k = k.chunks(config.head_size).flat_map(|head| self.norm(head, &k_norm)).collect();
                }
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                [q, k, v]
            })
            .collect();
        let size = config.head_size;
        for (position, row) in hidden.iter_mut().enumerate() {
            let first = config.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
            let mut mixed = Vec::with_capacity(config.n_heads * size);
            for head in 0..config.n_heads {
                let kv_head = head / (config.n_heads / config.n_kv_heads);
                let part = |values: &[f64], head: usize| values[head * size..(head + 1) * size].to_vec();
                let q = part(&rows[position][0], head);
                let scores: Vec<f64> = (first..=position).map(|p| dot(&q, &part(&rows[p][1], kv_head)) / (size as f64).sqrt()).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let values: Vec<Vec<f64>> = (first..=position).map(|p| part(&rows[p][2], kv_head)).collect();
                mixed.extend((0..size).map(|i| {
                    let weighted = scores.iter().zip(&values).map(|(score, value)| (score - largest).exp() / sum * value[i]);
                    weighted.sum::<f64>()
                }));
            }
            add(row, &plus(product(&output.0, &mixed), &output.1));
        }
    }

    fn feed_forward(&self, layer: usize, hidden: &mut [Vec<f64>]) {
        let name = |part: &str| format!("model.layers.{layer}.mlp.{part}");
        let norm = self.tensor(&format!("model.layers.{layer}.post_attention_layernorm.weight"));
        let [gate, up, down] =
            ["gate_proj", "up_proj", "down_proj"].map(|part| (self.tensor(&name(&format!("{part}.weight"))), self.bias(&name(part))));
        for row in hidden {
            let normed = self.norm(row, &norm);
            let gates = plus(product(&gate.0, &normed), &gate.1);
            let ups = plus(product(&up.0, &normed), &up.1);
            let gated: Vec<f64> = gates.iter().zip(&ups).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            add(row, &plus(product(&down.0, &gated), &down.1));
        }
    }

    fn norm(&self, row: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(self.config.rms_norm_epsilon)).sqrt();
        row.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
    }

    fn rotate(&self, heads: &mut [f64], position: usize) {
        let size = self.config.head_size;
        let frequencies = self.config.rope.inverse_frequencies(size);
        for head in heads.chunks_exact_mut(size) {
            for (i, &frequency) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
                let (a, b) = match self.config.rope.pairs {
                    RopePairing::NeoX => (i, i + size / 2),
                    RopePairing::Interleaved => (2 * i, 2 * i + 1),
                };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
        }
    }

    fn bias(&self, name: &str) -> Vec<f64> {
        let name = format!("{name}.bias");
        if self.checkpoint.catalog.find(&name).is_some() { self.tensor(&name) } else { Vec::new() }
    }

    fn tensor(&self, name: &str) -> Vec<f64> {
        let id = self.checkpoint.catalog.find(name).unwrap_or_else(|| panic!("{name}"));
        let tensor = &self.checkpoint.catalog[id];
        let mut bytes = vec![0; tensor.size_bytes.0 as usize];
        self.checkpoint.read(id, 0, &mut bytes).unwrap();
        let mut values = vec![0.0; tensor.n_values() as usize];
        tensor.dtype.decode(&bytes, &mut values);
        values.into_iter().map(f64::from).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `weight` `[n_rows, input.len()]` times `input`.
fn product(weight: &[f64], input: &[f64]) -> Vec<f64> {
    weight.chunks_exact(input.len()).map(|row| dot(row, input)).collect()
}

fn plus(mut values: Vec<f64>, bias: &[f64]) -> Vec<f64> {
    values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    values
}

fn add(target: &mut [f64], values: &[f64]) {
    target.iter_mut().zip(values).for_each(|(target, value)| *target += value);
}
