//! The values of a test model: a hash of seed, tensor name and index, so that any row can be made alone and in any order.

use super::shape::{Role, Tensor};

/// Makes the values of one tensor.
pub(super) struct Values {
    key: u64,
    /// Matrices: factor that turns the hash into a normal-like value of the right spread.
    scale: f32,
    role: Role,
    n_columns: u64,
}

impl Values {
    /// The values of `tensor` in the model of `seed`.
    pub(super) fn new(seed: u64, tensor: &Tensor) -> Values {
        let mut key = mix(seed);
        for byte in tensor.name.bytes() {
            key = mix(key ^ u64::from(byte));
        }
        let columns = *tensor.shape.last().unwrap_or(&1) as f64;
        let spread = match tensor.role {
            // Queries and keys are large enough that attention looks at some positions more than at others.
            Role::Rotated { .. } => 1.5 / columns.sqrt(),
            _ => (1.0 / columns.sqrt()).clamp(0.02, 0.05),
        };
        Values { key, scale: (spread / SUM_SPREAD) as f32, role: tensor.role, n_columns: (columns as u64).max(1) }
    }

    /// The values from index `start` on, in the order of Hugging Face checkpoints.
    pub(super) fn fill(&self, start: usize, output: &mut [f32]) {
        for (index, value) in (start as u64..).zip(output) {
            let hash = mix(self.key.wrapping_add(index.wrapping_mul(GOLDEN)));
            *value = match self.role {
                Role::Plain | Role::Rotated { .. } => self.scale * centred_sum(hash),
                // The scores of the 64th expert spread a third as far as those of the first.
                Role::Router => self.scale * centred_sum(hash) * 6.0 / (1.0 + index as f32 / self.n_columns as f32 / 32.0),
                // Multiples of 1/128 around 1 and of 1/1024 around 0: exact in f16 and bf16, so that vectors are the same in all dtypes.
                Role::Norm => 1.0 + ((hash % 65) as f32 - 32.0) / 128.0,
                Role::Bias { .. } => ((hash % 129) as f32 - 64.0) / 1024.0,
            };
        }
    }
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Standard deviation of [`centred_sum`]: four uniform values of variance 65536²/12 each.
const SUM_SPREAD: f64 = 65_536.0 / 1.732_050_807_568_877_2;

/// Sum of the four 16-bit parts, less its mean: close to normal, and far cheaper.
fn centred_sum(hash: u64) -> f32 {
    let sum = (hash & 0xFFFF) + (hash >> 16 & 0xFFFF) + (hash >> 32 & 0xFFFF) + (hash >> 48);
    sum as i32 as f32 - 131_070.0
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::shape::LlamaShape;

    #[test]
    fn values_depend_on_index_and_name_and_have_the_wanted_spread() {
        let tensors = LlamaShape::tiny().tensors();
        let values = Values::new(7, &tensors[0]);
        let mut all = vec![0.0; tensors[0].n_values()];
        values.fill(0, &mut all);
        let mut part = [0.0; 10];
        values.fill(100, &mut part);
        assert_eq!(part, all[100..110]);
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        let spread = (all.iter().map(|value| value * value).sum::<f32>() / all.len() as f32).sqrt();
        assert!(mean.abs() < 0.002 && (spread - 0.05).abs() < 0.002, "{mean} {spread}");
    }
}
