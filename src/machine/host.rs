//! Probes of the host: its copies and its products.

use std::hint::black_box;

use super::effort::{Effort, time};
use super::products::{self, weight_bytes};
use crate::device::Rates;
use crate::dtype::DType;
use crate::host::simd::simd;
use crate::host::{self, Input};
use crate::kernels::matmul::Params;
use crate::platform;
use crate::units::{Bytes, BytesPerSec};

/// What the products of a run read in turn, at least: more than the last cache holds of most processors. A tab gives back no memory that it
/// once took, and its one thread computes for longer than it waits for memory.
const POOL: Bytes = if platform::MAY_BLOCK { Bytes::mib(64) } else { Bytes::mib(16) };
/// What they read at most, where the processor's cache holds more.
const LARGEST_POOL: Bytes = Bytes::gib(1);
/// The least that holds the smallest of the products that are measured in every dtype, twice.
const LEAST_POOL: Bytes = Bytes::mib(8);

/// As many figures as copies would have the time of one of: in a browser they take little of it, since products say more.
const N_COPY_FIGURES: usize = 20;

/// The dtype whose products are measured for those in `dtype`: itself, or one whose blocks cost the host about as much for each byte
/// (some 20 % more or less). Unpacking them costs instructions, which adapters have to spare: there, [`DType::measured_as`] says which.
fn measured_as(dtype: DType) -> DType {
    match dtype {
        DType::Q5_0 | DType::Q5_1 | DType::Q5K | DType::IQ4NL | DType::IQ4XS | DType::MXFP4 => DType::Q6K,
        DType::Q2K | DType::TQ1_0 | DType::TQ2_0 | DType::IQ3XXS | DType::IQ3S => DType::Q3K,
        DType::IQ2XXS | DType::IQ2XS | DType::IQ2S | DType::IQ1S | DType::IQ1M => DType::Q3K,
        other => other,
    }
}

/// The dtypes whose products are measured for a model in `of_model`: all, but in a browser, where every measurement makes somebody wait.
pub(super) fn dtypes_for(of_model: &[DType]) -> Vec<DType> {
    let is_asked_for = |dtype: &DType| *dtype == DType::F32 || of_model.iter().any(|asked| measured_as(*asked) == *dtype);
    let all = DType::ALL.into_iter().filter(|dtype| measured_as(*dtype) == *dtype);
    all.filter(|dtype| platform::MAY_BLOCK || is_asked_for(dtype)).collect()
}

/// Measures copies, and products in `dtypes`, in no more than half of the memory that is `free`; nothing where that does not do.
pub(super) async fn measure(effort: &Effort, dtypes: &[DType], free: Bytes) -> Rates {
    // A model is read once a token: what is still in a cache since the run before would be read faster than any model.
    let beyond_caches = platform::largest_cache().map_or(POOL, |cache| cache.times(2).min(LARGEST_POOL).max(POOL));
    let pool_bytes = beyond_caches.min(Bytes(free.0 / 2));
    let mut pool = Vec::new();
    if pool_bytes < LEAST_POOL || pool.try_reserve_exact(pool_bytes.0 as usize).is_err() {
        tracing::debug!("{free} of free memory are too little to measure the host in");
        return Rates::default();
    }
    // Small positive numbers in every dtype: neither NaN nor subnormal, which would be slow for the wrong reason.
    pool.resize(pool_bytes.0 as usize, 0x2A_u8);
    let copied = Bytes(pool_bytes.0 / 4);
    let own = effort.of_figure(N_COPY_FIGURES);
    let host_copy = own.as_ref().unwrap_or(effort).secs_of_one(async |repeats| {
        let (source, target) = pool.split_at_mut(copied.0 as usize);
        time(|| {
            (0..repeats).for_each(|_| black_box(&mut target[..source.len()]).copy_from_slice(black_box(source)));
            Ok(())
        })
    });
    let host_copy = host_copy.await;
    // As long as the largest product so far needs them.
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut prepared = Input::default();
    let rates = products::measure(effort, dtypes, products::SMALL_ON_HOST, Bytes(pool_bytes.0 / 2), async |params: &Params, repeats| {
        let len = weight_bytes(params) as usize;
        let places = pool.len() / len;
        let (n_in, n_out) = ((params.n_tokens * params.n_columns) as usize, (params.n_tokens * params.n_rows) as usize);
        input.resize(n_in.max(input.len()), 0.5);
        output.resize(n_out.max(output.len()), 0.0);
        let (input, output) = (&input[..n_in], &mut output[..n_out]);
        // As a chunk of a plan is computed: handed to the threads once.
        time(|| {
            host::among_threads(|| {
                for index in 0..repeats {
                    let weight = &pool[index % places * len..][..len];
                    host::multiply(simd(), params, weight, prepared.prepare(params, input), black_box(output));
                }
                Ok(())
            })
        })
    });
    let mut rates = rates.await.unwrap_or_default(); // The host's products cannot fail.
    for dtype in DType::ALL {
        let (matvec, matmul) = (rates.matvec.get(&measured_as(dtype)).copied(), rates.matmul.get(&measured_as(dtype)).copied());
        rates.matvec.extend(matvec.map(|rate| (dtype, rate)));
        rates.matmul.extend(matmul.map(|rate| (dtype, rate)));
    }
    Rates { host_copy: host_copy.ok().map(|secs| BytesPerSec::from_transfer(copied, secs)), ..rates }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Measure;
    use crate::platform::block_on;

    #[test]
    fn the_host_is_measured_whole() {
        // A machine, and the least that does.
        for free in [Bytes::gib(1), Bytes(LEAST_POOL.0 * 2)] {
            check(&measure_all(free));
        }
        assert!(measure_all(Bytes(LEAST_POOL.0 * 2 - 2)).is_empty());
    }

    fn measure_all(free: Bytes) -> Rates {
        block_on(measure(&Effort::of(Measure::Quick).unwrap(), &dtypes_for(&[]), free))
    }

    fn check(rates: &Rates) {
        assert_eq!([rates.matvec.len(), rates.matmul.len()], [DType::ALL.len(); 2]);
        assert!(rates.matvec.values().all(|rate| rate.0.is_finite() && rate.0 > 0.0), "{rates:?}");
        assert!(rates.matmul.values().all(|rate| rate.is_finite() && *rate > 0.0), "{rates:?}");
        assert!(rates.host_copy.is_some_and(|rate| rate.0 > 0.0) && rates.dispatch_secs.is_some_and(|secs| secs > 0.0), "{rates:?}");
    }
}
