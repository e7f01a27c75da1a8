//! Attention in every variant: alone and side by side, short and in parts, whole and cut.

use tierflow::device::Phase;
use tierflow::error::Result;
use tierflow::gpu::{Buffer, Gpu};
use tierflow::kernels::attention::AttentionVariant;
use tierflow::kernels::kv_tables::BLOCK_POSITIONS;
use tierflow::kernels::{Binding, attention, rope_kv, rope_kv_blocks};

use super::EXP_TOLERANCE;
use crate::common::kv_blocks::{blocks_of, in_shuffled_blocks, shuffled_table};
use crate::common::{Random, assert_close, bits, gpus, output, poisoned, run_with, upload};

struct Attention {
    params: attention::Params,
    tokens: Vec<rope_kv::Token>,
    /// A score of each head that has no value, if there are any.
    sinks: Option<Vec<f32>>,
}

impl Attention {
    /// One sequence that ends at `kv_len`, of which the last `n_tokens` are new; `seq` 1 of 2.
    fn of_one_sequence(heads: [u32; 2], head_size: u32, kv_len: u32, n_tokens: u32, window: u32) -> Attention {
        let params = attention::Params {
            n_tokens,
            n_heads: heads[0],
            n_kv_heads: heads[1],
            head_size,
            n_blocks: blocks_of(kv_len + 3),
            kv_capacity: kv_len + 3,
            window,
            scale: 1.0 / (head_size as f32).sqrt(),
            key_dtype: rope_kv::CacheDType::F32 as u32,
            value_dtype: rope_kv::CacheDType::F32 as u32,
            softcap: 0.0,
            is_causal: 1,
            in_chunks: 0,
        };
        Attention {
            params,
            tokens: (kv_len - n_tokens..kv_len).map(|position| rope_kv::Token::new(1, position, kv_len)).collect(),
            sinks: None,
        }
    }

    /// Every variant against the reference.
    fn check(&self, gpu: &Gpu, dtype: rope_kv::CacheDType) {
        self.check_of(gpu, [dtype; 2]);
    }

    /// The same with keys and values of two dtypes.
    fn check_of(&self, gpu: &Gpu, dtypes: [rope_kv::CacheDType; 2]) {
        let params = attention::Params { key_dtype: dtypes[0] as u32, value_dtype: dtypes[1] as u32, ..self.params };
        let (query, caches) = self.random_values();
        let seen = [0, 1].map(|which| dtypes[which].rounded(&caches[which]));
        let mut expected = vec![0.0; query.len()];
        attention::reference(
            &params,
            &query,
            &in_shuffled_blocks(&self.tokens, params.n_blocks),
            (&seen[0], &seen[1]),
            self.sinks.as_deref(),
            &mut expected,
        );
        let on_gpu = [0, 1].map(|which| match (dtypes[which], &caches[which]) {
            (rope_kv::CacheDType::F32, cache) => upload(gpu, "cache", cache),
            (rope_kv::CacheDType::F16, cache) => {
                upload(gpu, "cache", &cache.iter().map(|&value| half::f16::from_f32(value)).collect::<Vec<_>>())
            }
            (dtype, cache) => upload(gpu, "cache", &rope_kv_blocks::packed(dtype, params.head_size, cache).expect("blocks")),
        });
        for variant in attention::variants(gpu, params.head_size) {
            let found = attend_in(1, gpu, &params, &self.tokens, (&query, self.sinks.as_deref()), &on_gpu, variant);
            assert_close(&found, &expected, EXP_TOLERANCE, &format!("{variant:?} of {params:?}"));
        }
    }

    /// Queries, and keys and values.
    fn random_values(&self) -> (Vec<f32>, [Vec<f32>; 2]) {
        let params = &self.params;
        let mut random = Random(u64::from(params.kv_capacity * 131 + params.head_size));
        let query = random.floats((params.n_tokens * params.n_heads * params.head_size) as usize);
        let cache_len = (params.n_blocks * params.n_kv_heads * BLOCK_POSITIONS * params.head_size) as usize;
        (query.iter().map(|value| value * 4.0).collect(), [0, 1].map(|_| random.floats(cache_len)))
    }
}

fn attend(
    gpu: &Gpu,
    params: &attention::Params,
    tokens: &[rope_kv::Token],
    query: &[f32],
    caches: &[Buffer; 2],
    variant: AttentionVariant,
) -> Vec<f32> {
    attend_in(1, gpu, params, tokens, (query, None), caches, variant)
}

/// As `attend`, in as many as `n_cuts` dispatches, with sinks.
fn attend_in(
    n_cuts: usize,
    gpu: &Gpu,
    params: &attention::Params,
    tokens: &[rope_kv::Token],
    (query, sinks): (&[f32], Option<&[f32]>),
    caches: &[Buffer; 2],
    variant: AttentionVariant,
) -> Vec<f32> {
    let [queries, places] = [upload(gpu, "query", query), upload(gpu, "tokens", &in_shuffled_blocks(tokens, params.n_blocks))];
    let sinks = sinks.map(|sinks| upload(gpu, "sinks", sinks));
    let parts_len = attention::parts_bytes(params) as usize / 4;
    let [parts, attention_output] = [poisoned(gpu, parts_len), poisoned(gpu, query.len())];
    let bindings = attention::Bindings {
        query: Binding::whole(&queries),
        tokens: Binding::whole(&places),
        key_cache: Binding::whole(&caches[0]),
        value_cache: Binding::whole(&caches[1]),
        sinks: sinks.as_ref().map(|sinks| Binding::whole(sinks)),
        parts: Binding::whole(&parts),
        attention_output: Binding::whole(&attention_output),
    };
    let (each, begins) = attention::cut(params, n_cuts);
    run_with(gpu, &each, |buffer| {
        let of_cut = |&begin: &u32| attention::prepare_as(gpu, buffer, &each, bindings.from_token(params, begin), variant);
        Ok(begins.iter().map(of_cut).collect::<Result<Vec<_>>>()?.concat())
    });
    output(gpu, &parts, parts_len);
    output(gpu, &attention_output, query.len())
}

#[test]
fn attention_matches_its_reference() {
    for gpu in gpus() {
        for kv_dtype in [rope_kv::CacheDType::F32, rope_kv::CacheDType::F16] {
            for (heads, head_size, kv_len, n_tokens) in [
                ([1, 1], 8, 1, 1),
                ([3, 1], 24, 3, 3),
                ([4, 2], 64, 31, 1),
                ([9, 3], 64, 33, 5),
                ([2, 2], 256, 257, 2),
                ([4, 1], 512, 300, 3),
                ([2, 2], 264, 20, 17),
                ([6, 2], 80, 100, 33),
            ] {
                for window in [0, 1, 7, 64] {
                    Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, window).check(gpu, kv_dtype);
                }
            }
        }
        for (heads, head_size, kv_len, n_tokens, window) in [([4, 2], 64, 31, 1, 0), ([9, 3], 24, 70, 33, 7), ([2, 2], 256, 300, 3, 0)] {
            let plain = Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, window);
            let params = attention::Params { softcap: 0.7, ..plain.params };
            Attention { params, ..plain }.check(gpu, rope_kv::CacheDType::F16);
        }
        for (heads, head_size, kv_len, n_tokens, window) in [([4, 2], 64, 31, 31, 0), ([9, 3], 24, 70, 33, 7), ([2, 2], 256, 40, 3, 2)] {
            let causal = Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, window);
            let params = attention::Params { is_causal: 0, ..causal.params };
            Attention { params, ..causal }.check(gpu, rope_kv::CacheDType::F32);
        }
        Attention::of_one_sequence([8, 1], 96, 40, 2, 0).check(gpu, rope_kv::CacheDType::F32);
        Attention::of_one_sequence([8, 2], 128, 40, 11, 0).check(gpu, rope_kv::CacheDType::F16);
    }
}

#[test]
fn attention_decodes_caches_of_blocks() {
    for gpu in gpus() {
        for kv_dtype in [rope_kv::CacheDType::Q8_0, rope_kv::CacheDType::Q4_0] {
            // Heads of one block, of an odd number and of many; alone, in tiles, and in parts.
            for (heads, head_size, kv_len, n_tokens, window) in [
                ([1, 1], 32, 1, 1, 0),
                ([3, 1], 32, 33, 12, 7),
                ([9, 3], 64, 33, 5, 0),
                ([4, 2], 96, 70, 33, 0),
                ([2, 2], 160, 29, 29, 3),
                ([4, 1], 128, 700, 2, 0),
                ([2, 2], 256, 257, 9, 64),
                ([5, 1], 576, 300, 2, 0),
                ([2, 1], 1024, 33, 12, 0),
            ] {
                Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, window).check(gpu, kv_dtype);
            }
        }
    }
}

/// All pairs of dtypes, decoding and in tiles, in parts, and of heads that are wide.
#[test]
fn attention_reads_keys_and_values_of_different_dtypes() {
    use rope_kv::CacheDType::{F16, F32, Q4_0, Q8_0};
    for gpu in gpus() {
        for keys in [F32, F16, Q8_0, Q4_0] {
            for values in [F32, F16, Q8_0, Q4_0].into_iter().filter(|values| *values != keys) {
                for (heads, head_size, kv_len, n_tokens, window) in
                    [([3, 1], 32, 33, 12, 7), ([4, 2], 96, 70, 33, 0), ([4, 1], 64, 700, 2, 0), ([2, 1], 512, 33, 2, 0)]
                {
                    Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, window).check_of(gpu, [keys, values]);
                }
            }
        }
        // Heads that hold no blocks.
        for dtypes in [[F32, F16], [F16, F32]] {
            Attention::of_one_sequence([6, 2], 24, 100, 33, 0).check_of(gpu, dtypes);
            Attention::of_one_sequence([6, 2], 24, 300, 3, 50).check_of(gpu, dtypes);
        }
    }
}

#[test]
fn attention_to_a_long_context_is_put_together_from_its_parts() {
    for gpu in gpus() {
        // One position past a part, in its midst, and in the part before; more positions than there are parts of the least size.
        for (kv_len, n_tokens, window) in [(385, 1, 0), (300, 8, 0), (300, 3, 50), (4200, 1, 0), (4200, 2, 700)] {
            let attention = Attention::of_one_sequence([8, 1], 16, kv_len, n_tokens, window);
            assert!(attention::parts_bytes(&attention.params) > 0);
            attention.check(gpu, rope_kv::CacheDType::F16);
        }
    }
}

#[test]
fn attention_keeps_to_chunks() {
    for gpu in gpus() {
        for (heads, head_size, kv_len, n_tokens, window) in
            [([4, 2], 64, 31, 31, 7), ([9, 3], 24, 70, 33, 64), ([8, 1], 16, 700, 2, 300), ([2, 1], 16, 5, 5, 9)]
        {
            let windowed = Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, window);
            let params = attention::Params { in_chunks: 1, ..windowed.params };
            Attention { params, ..windowed }.check(gpu, rope_kv::CacheDType::F32);
        }
    }
}

/// Such as latent vectors, which all query heads share.
#[test]
fn attention_takes_wide_heads() {
    for gpu in gpus() {
        assert_eq!(attention::variants(gpu, 264), [AttentionVariant::Token]);
        for (heads, head_size, kv_len, n_tokens) in [([6, 1], 264, 40, 12), ([5, 1], 576, 300, 2), ([4, 2], 1024, 33, 3)] {
            for kv_dtype in [rope_kv::CacheDType::F32, rope_kv::CacheDType::F16] {
                Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, 0).check(gpu, kv_dtype);
            }
        }
    }
}

#[test]
fn attention_serves_tokens_of_several_sequences_at_once() {
    for gpu in gpus() {
        let mut attention = Attention::of_one_sequence([4, 2], 16, 40, 12, 0);
        // The fourth sees nothing, and mixes nothing.
        let places = [(0, 3, 4), (1, 39, 40), (0, 20, 21), (1, 5, 0)].into_iter().chain((0..8).map(|p| (p / 5, p + 7, p + 8)));
        attention.tokens = places.map(|(seq, position, kv_len)| rope_kv::Token::new(seq, position, kv_len)).collect();
        attention.check(gpu, rope_kv::CacheDType::F32);
        attention.tokens.truncate(4);
        attention.params.n_tokens = 4;
        attention.check(gpu, rope_kv::CacheDType::F32);
    }
}

#[test]
fn attention_gives_a_token_the_same_bits_whatever_stands_beside_it() {
    for gpu in gpus() {
        for (heads, head_size, window) in [([9, 3], 64, 0), ([4, 4], 24, 13)] {
            let whole = Attention::of_one_sequence(heads, head_size, 61, 29, window);
            let (query, caches) = whole.random_values();
            let caches = caches.map(|cache| upload(gpu, "cache", &cache));
            let width = (heads[0] * head_size) as usize;
            for variant in attention::variants(gpu, head_size) {
                let all = attend(gpu, &whole.params, &whole.tokens, &query, &caches, variant);
                // Nine tokens at least: eight may attend in parts.
                for range in [0..9, 5..29, 18..29] {
                    let params = attention::Params { n_tokens: range.len() as u32, ..whole.params };
                    let values = range.start * width..range.end * width;
                    let some = attend(gpu, &params, &whole.tokens[range.clone()], &query[values.clone()], &caches, variant);
                    assert_eq!(bits(&some), bits(&all[values]), "{variant:?} {range:?} {heads:?}");
                }
            }
        }
    }
}

#[test]
fn attention_gives_the_same_bits_however_it_is_cut() {
    for gpu in gpus() {
        for (heads, head_size, n_tokens) in [([9, 3], 64, 203), ([2, 2], 8, 139)] {
            let whole = Attention::of_one_sequence(heads, head_size, n_tokens + 40, n_tokens, 0);
            let (query, caches) = whole.random_values();
            let caches = caches.map(|cache| upload(gpu, "cache", &cache));
            for variant in attention::variants(gpu, head_size) {
                let attend_in = |n_cuts| bits(&attend_in(n_cuts, gpu, &whole.params, &whole.tokens, (&query, None), &caches, variant));
                let at_once = attend_in(1);
                for n_cuts in [2, 3] {
                    assert_eq!(attend_in(n_cuts), at_once, "{variant:?} of {n_tokens} tokens in {n_cuts}");
                }
            }
        }
    }
}

#[test]
fn attention_lets_a_nan_through() {
    for gpu in gpus() {
        let attention = Attention::of_one_sequence([1, 1], 8, 20, 1, 0);
        let block = shuffled_table(1, attention.params.n_blocks)[0];
        let mut key = vec![0.5f32; (attention.params.n_blocks * BLOCK_POSITIONS * 8) as usize];
        key[((block * BLOCK_POSITIONS + 17) * 8) as usize] = f32::NAN;
        let caches = [upload(gpu, "key", &key), upload(gpu, "value", &vec![1f32; key.len()])];
        for variant in attention::variants(gpu, 8) {
            let attention_output = attend(gpu, &attention.params, &attention.tokens, &[1f32; 8], &caches, variant);
            assert!(attention_output.iter().all(|value| value.is_nan()), "{variant:?}: {attention_output:?}");
        }
    }
}

#[test]
fn attention_takes_tiles_only_where_tokens_of_a_sequence_follow_each_other() {
    assert_eq!(attention::phase(256, 1), Phase::Prefill);
    assert_eq!(attention::phase(256, 64), Phase::Prefill);
    assert_eq!(attention::phase(32, 32), Phase::Decode);
    assert_eq!(attention::phase(8, 1), Phase::Decode);
}

#[test]
fn sinks_take_their_share_in_every_variant() {
    for gpu in gpus() {
        // Short contexts, in tiles, and in parts; sinks that hardly count and such that leave nothing.
        for (heads, head_size, kv_len, n_tokens) in [([6, 2], 24, 9, 3), ([8, 2], 64, 33, 12), ([5, 1], 80, 700, 2)] {
            let sinks = (0..heads[0]).map(|head| [0.5, -20.0, 3.0, 95.0][head as usize % 4]).collect();
            let attention = Attention { sinks: Some(sinks), ..Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, 0) };
            attention.check(gpu, rope_kv::CacheDType::F32);
        }
    }
}
