//! Probes of the host: its copies and its products.

use super::effort::{Effort, time};
use super::products::{self, weight_bytes};
use crate::device::Rates;
use crate::dtype::DType;
use crate::host::{self, Input};
use crate::platform::simd::simd;
use crate::units::{Bytes, BytesPerSec};

/// What the products of a run read in turn: more than the last cache holds of most processors.
const POOL: Bytes = Bytes::mib(64);
/// What one copy moves.
const COPY: Bytes = Bytes::mib(16);

/// Measures copies and products.
pub(super) fn measure(effort: &Effort) -> Rates {
    // Small positive numbers in every dtype: neither NaN nor subnormal, which would be slow for the wrong reason.
    let mut pool = vec![0x2A_u8; POOL.0 as usize];
    let host_copy = effort.best(|| {
        let (source, target) = pool.split_at_mut(COPY.0 as usize);
        time(|| {
            target[..source.len()].copy_from_slice(std::hint::black_box(source));
            Ok(())
        })
    });
    let (input, mut output) = (vec![0.5; products::MOST_VALUES], vec![0.0; products::MOST_VALUES]);
    let mut prepared = Input::default();
    let rates = products::measure(effort, &DType::ALL, products::SMALL_ON_HOST, Bytes(POOL.0 / 2), |params, repeats| {
        let len = weight_bytes(params) as usize;
        let places = pool.len() / len;
        let input = &input[..(params.n_tokens * params.n_columns) as usize];
        let output = &mut output[..(params.n_tokens * params.n_rows) as usize];
        // As a piece of a plan is computed: handed to the threads once.
        time(|| {
            host::among_threads(|| {
                for index in 0..repeats {
                    let weight = &pool[index % places * len..][..len];
                    host::multiply(simd(), params, weight, prepared.prepare(params, input), std::hint::black_box(output));
                }
                Ok(())
            })
        })
    });
    let rates = rates.unwrap_or_default(); // The host's products cannot fail.
    Rates { host_copy: host_copy.ok().map(|secs| BytesPerSec::from_transfer(COPY, secs)), ..rates }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Measure;

    #[test]
    fn the_host_is_measured_whole() {
        let rates = measure(&Effort::of(Measure::Quick).unwrap());
        assert_eq!([rates.matvec.len(), rates.matmul.len()], [DType::ALL.len(); 2]);
        assert!(rates.matvec.values().all(|rate| rate.0.is_finite() && rate.0 > 0.0), "{rates:?}");
        assert!(rates.matmul.values().all(|rate| rate.is_finite() && *rate > 0.0), "{rates:?}");
        assert!(rates.host_copy.is_some_and(|rate| rate.0 > 0.0) && rates.dispatch_secs.is_some_and(|secs| secs > 0.0), "{rates:?}");
    }
}
