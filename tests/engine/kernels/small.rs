//! The kernels that multiply no matrix: norms, rotary embedding and caches, element by element.

use tierflow::gpu::Gpu;
use tierflow::kernels::kv_tables::BLOCK_POSITIONS;
use tierflow::kernels::{
    Binding, add, add_bias, attention, conv, copy_part, delta_rule, gather_rows, glu, layer_norm, map, rms_norm, rope, rope_kv,
    rope_kv_blocks, rope_kv_padded,
};
use tierflow::model::{Activation, Function, RopePairing};

use super::{EXP_TOLERANCE, SUM_TOLERANCE};
use crate::common::kv_blocks::{blocks_of, in_shuffled_blocks};
use crate::common::{GUARD, POISON, Random, assert_close, bits, floats, gpus, output, poisoned, run, upload};

/// One or two roundings.
const ROUNDING_TOLERANCE: f32 = 3e-7;
/// One step of f16, beside the largest value.
const F16_TOLERANCE: f32 = 1.0 / 1024.0;

#[test]
fn rms_norm_matches_its_reference() {
    for gpu in gpus() {
        for (n_rows, hidden_size) in [(1, 1), (3, 31), (2, 33), (257, 3), (5, 576)] {
            let params = rms_norm::Params { n_rows, hidden_size, epsilon: 1e-5, weight_offset: (n_rows % 2) as f32 };
            let mut random = Random(u64::from(hidden_size));
            let len = (n_rows * hidden_size) as usize;
            let [input, weight] = [random.floats(len), random.floats(hidden_size as usize)];
            let mut expected = vec![0.0; len];
            let has_weight = hidden_size != 33;
            rms_norm::reference(&params, &input, has_weight.then_some(&weight[..]), &mut expected);
            let [input, weight, result] = [upload(gpu, "input", &input), upload(gpu, "weight", &weight), poisoned(gpu, len)];
            let bindings = rms_norm::Bindings {
                input: Binding::whole(&input),
                weight: has_weight.then_some(Binding::whole(&weight)),
                output: Binding::whole(&result),
            };
            run(gpu, &params, |buffer| rms_norm::prepare(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &result, len), &expected, SUM_TOLERANCE, &format!("{n_rows} rows of {hidden_size}"));
        }
    }
}

#[test]
fn layer_norm_matches_its_reference() {
    for gpu in gpus() {
        for (n_rows, hidden_size, has_bias) in [(1, 1, true), (3, 31, false), (2, 33, true), (257, 3, true), (5, 576, false)] {
            let params = layer_norm::Params { n_rows, hidden_size, epsilon: 1e-5, weight_offset: (n_rows % 2) as f32 };
            let mut random = Random(u64::from(hidden_size));
            let len = (n_rows * hidden_size) as usize;
            // Far from zero, so that a variance that forgets the mean is another.
            let input: Vec<f32> = random.floats(len).iter().map(|value| value + 3.0).collect();
            let [weight, bias] = [0, 1].map(|_| random.floats(hidden_size as usize));
            let mut expected = vec![0.0; len];
            layer_norm::reference(&params, &input, &weight, has_bias.then_some(&bias[..]), &mut expected);
            let [input, weight, bias] = [("input", &input), ("weight", &weight), ("bias", &bias)].map(|(name, v)| upload(gpu, name, v));
            let result = poisoned(gpu, len);
            let bindings = layer_norm::Bindings {
                input: Binding::whole(&input),
                weight: Binding::whole(&weight),
                bias: has_bias.then_some(Binding::whole(&bias)),
                output: Binding::whole(&result),
            };
            run(gpu, &params, |buffer| layer_norm::prepare(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &result, len), &expected, SUM_TOLERANCE, &format!("{n_rows} rows of {hidden_size}"));
        }
    }
}

/// Tokens of two sequences between each other, the first at the beginning, the second in its midst; the last is of none.
const PLACES: [(u32, u32); 7] = [(0, 0), (1, 7), (0, 1), (1, 8), (0, 2), (1, 9), (2, 0)];

#[test]
fn conv_matches_its_reference_and_keeps_its_inputs() {
    let tokens: Vec<rope_kv::Token> = PLACES.map(|(seq, position)| rope_kv::Token::new(seq, position, position + 1)).into();
    for gpu in gpus() {
        for (width, n_taps, has_bias) in [(1, 1, false), (67, 3, true), (130, 4, false), (5, 9, true)] {
            let params = conv::Params { n_tokens: 7, width, n_taps, n_seqs: 2 };
            let mut random = Random(u64::from(width));
            let [input, weight, bias, state] =
                [7 * width, width * n_taps, width, 2 * n_taps * width].map(|len| random.floats(len as usize));
            let (mut after, mut expected) = (state.clone(), vec![POISON; input.len()]);
            let values = conv::Values {
                input: &input,
                weight: &weight,
                bias: has_bias.then_some(&bias[..]),
                state: &mut after,
                output: &mut expected,
            };
            conv::reference(&params, &tokens, values);
            let [input, weight, bias] = [("input", &input), ("weight", &weight), ("bias", &bias)].map(|(name, v)| upload(gpu, name, v));
            let (places, state, result) = (upload(gpu, "tokens", &tokens), upload(gpu, "state", &state), poisoned(gpu, expected.len()));
            let bindings = conv::Bindings {
                tokens: Binding::whole(&places),
                input: Binding::whole(&input),
                weight: Binding::whole(&weight),
                bias: has_bias.then_some(Binding::whole(&bias)),
                state: Binding::whole(&state),
                output: Binding::whole(&result),
            };
            run(gpu, &params, |buffer| conv::prepare(gpu, buffer, &params, bindings));
            let what = format!("{width} channels of {n_taps} taps");
            assert_close(&output(gpu, &result, expected.len()), &expected, SUM_TOLERANCE, &what);
            assert_eq!(floats(gpu, &state)[..after.len()], after, "{what}");
        }
    }
}

#[test]
fn delta_rule_matches_its_reference_and_keeps_its_state() {
    let tokens: Vec<rope_kv::Token> = PLACES.map(|(seq, position)| rope_kv::Token::new(seq, position, position + 1)).into();
    for gpu in gpus() {
        for ([n_key_heads, n_value_heads, key_size, value_size], is_tiled, is_log) in
            [([1, 1, 1, 1], 0, false), ([2, 6, 12, 10], 0, true), ([2, 6, 12, 10], 1, false), ([3, 3, 33, 70], 0, true)]
        {
            let params = delta_rule::Params { n_tokens: 7, n_seqs: 2, n_key_heads, n_value_heads, key_size, value_size, is_tiled };
            let mut random = Random(u64::from(key_size));
            let [input, alpha, beta, decay, bias, state] = [
                7 * (2 * n_key_heads * key_size + n_value_heads * value_size),
                7 * n_value_heads,
                7 * n_value_heads,
                n_value_heads,
                n_value_heads,
                2 * n_value_heads * key_size * value_size,
            ]
            .map(|len| random.floats(len as usize));
            // A rate is above 0.
            let decay: Vec<f32> = decay.iter().map(|value| if is_log { *value } else { -value.abs() }).collect();
            let (mut after, mut expected) = (state.clone(), vec![POISON; (7 * n_value_heads * value_size) as usize]);
            let inputs = delta_rule::Inputs { input: &input, alpha: &alpha, beta: &beta, decay: &decay, is_log, bias: &bias };
            delta_rule::reference(&params, &tokens, &inputs, &mut after, &mut expected);

            let (mut on_host, mut result) = (state.clone(), vec![POISON; expected.len()]);
            tierflow::host::delta_rule(&params, &tokens, &inputs, &mut on_host, &mut result);
            assert!(bits(&on_host) == bits(&after) && bits(&result) == bits(&expected), "the host computes each head as the reference");

            let named = [("input", &input), ("alpha", &alpha), ("beta", &beta), ("decay", &decay), ("bias", &bias), ("state", &state)];
            let [input, alpha, beta, decay, bias, state] = named.map(|(name, values)| upload(gpu, name, values));
            let (places, result) = (upload(gpu, "tokens", &tokens), poisoned(gpu, expected.len()));
            let bindings = delta_rule::Bindings {
                tokens: Binding::whole(&places),
                input: Binding::whole(&input),
                alpha: Binding::whole(&alpha),
                beta: Binding::whole(&beta),
                decay: Binding::whole(&decay),
                bias: Binding::whole(&bias),
                state: Binding::whole(&state),
                output: Binding::whole(&result),
            };
            run(gpu, &params, |buffer| delta_rule::prepare(gpu, buffer, &params, is_log, bindings));
            let what = format!("{n_key_heads} and {n_value_heads} heads of {key_size} and {value_size}");
            // The row of the token of no sequence stays as it was.
            let n_written = expected.len() / 7 * 6;
            let found = output(gpu, &result, expected.len());
            assert_close(&found[..n_written], &expected[..n_written], EXP_TOLERANCE, &what);
            assert_close(&floats(gpu, &state)[..after.len()], &after, EXP_TOLERANCE, &what);
        }
    }
}

#[test]
fn rope_kv_turns_queries_and_keys_and_stores_only_the_tokens_rows() {
    // The last two tokens lie outside the caches: they are rotated all the same, and not stored.
    let tokens = STORED.map(|(seq, position)| rope_kv::Token::new(seq, position, position + 1));
    let tokens = in_shuffled_blocks(&tokens, blocks_of(39));
    for gpu in gpus() {
        for (kv_dtype, pairing, [n_heads, n_kv_heads, head_size, rotary_size]) in [
            (rope_kv::CacheDType::F32, RopePairing::NeoX, [5, 3, 12, 12]),
            (rope_kv::CacheDType::F16, RopePairing::NeoX, [9, 3, 64, 64]),
            (rope_kv::CacheDType::F32, RopePairing::Interleaved, [1, 1, 4, 4]),
            (rope_kv::CacheDType::F16, RopePairing::Interleaved, [4, 2, 20, 20]),
            // Of some heads a part turns, or nothing; and there may be no queries to turn.
            (rope_kv::CacheDType::F16, RopePairing::NeoX, [4, 2, 24, 8]),
            (rope_kv::CacheDType::F32, RopePairing::Interleaved, [3, 3, 20, 12]),
            (rope_kv::CacheDType::F16, RopePairing::NeoX, [2, 1, 16, 0]),
            (rope_kv::CacheDType::F32, RopePairing::NeoX, [0, 3, 16, 0]),
        ] {
            let random = |dtypes| RopeKv::random(dtypes, pairing, [n_heads, n_kv_heads, head_size, rotary_size]);
            random([kv_dtype; 2]).check(gpu, &tokens);
            random([kv_dtype; 2]).with_one_cache().check(gpu, &tokens);
            random([rope_kv::CacheDType::F16, rope_kv::CacheDType::F32]).check(gpu, &tokens);
            random([rope_kv::CacheDType::F32, rope_kv::CacheDType::F16]).check(gpu, &tokens);
        }
    }
}

/// Cosines and sines of random angles.
fn cos_sin_of(random: &mut Random, n_tokens: u32, rotary_size: u32) -> Vec<f32> {
    let angles = random.floats((n_tokens * rotary_size / 2) as usize);
    angles.iter().flat_map(|angle| [(angle * 3.0).cos(), (angle * 3.0).sin()]).collect()
}

/// By how much integers of two words of a cache differ, at most.
fn steps_between(kv_dtype: rope_kv::CacheDType, a: u32, b: u32) -> u32 {
    let bits = if kv_dtype == rope_kv::CacheDType::Q8_0 { 8 } else { 4 };
    let integers = |word: u32| (0..32 / bits).map(move |k| ((word << (32 - bits * (k + 1))).cast_signed() >> (32 - bits)).cast_unsigned());
    integers(a).zip(integers(b)).map(|(a, b)| a.cast_signed().abs_diff(b.cast_signed())).max().unwrap_or(0)
}

/// A cache of these rows as adapters hold it.
fn cache_of(dtype: rope_kv::CacheDType, head_size: u32, rows: &[f32]) -> Vec<u32> {
    let halves = |two: &[f32]| two.iter().rev().fold(0, |word, value| word << 16 | u32::from(half::f16::from_f32(*value).to_bits()));
    match dtype {
        rope_kv::CacheDType::F32 => bits(rows),
        rope_kv::CacheDType::F16 => rows.chunks(2).map(halves).collect(),
        _ => rope_kv_blocks::packed(dtype, head_size, rows).expect("blocks"),
    }
}

/// Places in the caches of two sequences; the last two lie outside.
const STORED: [(u32, u32); 5] = [(0, 38), (1, 0), (1, 1), (2, 0), (0, 39)];

struct RopeKv {
    params: rope_kv::Params,
    cos_sin: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    /// `None`: keys are the values as well.
    value: Option<Vec<f32>>,
}

impl RopeKv {
    /// Five tokens of two sequences, whose caches have room for 39 positions.
    fn random(dtypes: [rope_kv::CacheDType; 2], pairing: RopePairing, [n_heads, n_kv_heads, head_size, rotary_size]: [u32; 4]) -> RopeKv {
        let params = rope_kv::Params {
            n_tokens: 5,
            n_heads,
            n_kv_heads,
            head_size,
            n_blocks: blocks_of(39),
            kv_capacity: 39,
            key_dtype: dtypes[0] as u32,
            value_dtype: dtypes[1] as u32,
            pairing: pairing as u32,
            rotary_size,
        };
        let mut random = Random(u64::from(params.head_size));
        let mut rows = |n_heads: u32| random.floats((params.n_tokens * n_heads * params.head_size) as usize);
        let [query, key, value] = [params.n_heads, params.n_kv_heads, params.n_kv_heads].map(&mut rows);
        let cos_sin = cos_sin_of(&mut random, params.n_tokens, params.rotary_size);
        RopeKv { params, cos_sin, query, key, value: Some(value) }
    }

    /// The same with keys that are the values as well.
    fn with_one_cache(self) -> RopeKv {
        let params = rope_kv::Params { value_dtype: self.params.key_dtype, ..self.params };
        RopeKv { params, value: None, ..self }
    }

    /// The same with a block of zeros and one of halves, which are rounded away from zero.
    fn with_zeros(mut self) -> RopeKv {
        let value = self.value.get_or_insert_default();
        value[..32].fill(0.0);
        value[self.params.head_size as usize - 32..][..32].iter_mut().zip(0..).for_each(|(value, i)| *value = (i - 16) as f32 * 0.5);
        value[self.params.head_size as usize - 1] = -127.0;
        self
    }

    /// As `check`, of caches of blocks: what is stored of values to the bit, of keys as far as they were rotated to the same bits.
    fn check_blocks(&self, gpu: &Gpu, tokens: &[rope_kv::Token]) {
        let params = &self.params;
        let dtypes = [params.key_dtype, params.value_dtype].map(|dtype| rope_kv::CacheDType::of_params(dtype).expect("a dtype"));
        let (mut query, mut key) = (self.query.clone(), self.key.clone());
        let n_rows = params.n_blocks * params.n_kv_heads * BLOCK_POSITIONS;
        let nothing = || vec![0.0; (n_rows * params.head_size) as usize];
        let [mut keys, mut values] = [nothing(), nothing()];
        let caches = [keys.as_mut_slice(), if self.value.is_some() { &mut values } else { &mut [] }];
        let value = self.value.as_deref().unwrap_or_default();
        let plain = rope_kv::Params { key_dtype: 0, value_dtype: 0, ..*params };
        rope_kv::reference(&plain, &self.cos_sin, tokens, rope_kv::Values { query: &mut query, key: &mut key, value, caches });
        let expected = [(dtypes[0], &keys), (dtypes[1], &values)].map(|(dtype, rows)| cache_of(dtype, params.head_size, rows));

        let [on_gpu, table] =
            [upload(gpu, "query", &[self.query.clone(), vec![POISON; GUARD]].concat()), upload(gpu, "cos_sin", &self.cos_sin)];
        let [key, places] = [upload(gpu, "key", &self.key), upload(gpu, "tokens", tokens)];
        let value = self.value.as_ref().map(|value| upload(gpu, "value", value));
        let empty = dtypes.map(|dtype| cache_of(dtype, params.head_size, &nothing()));
        let caches = empty.each_ref().map(|empty| upload(gpu, "cache", &[empty.clone(), vec![POISON.to_bits(); GUARD]].concat()));
        let bindings = rope_kv::Bindings {
            cos_sin: Binding::whole(&table),
            tokens: Binding::whole(&places),
            key: Binding::whole(&key),
            value: value.as_ref().map(|value| Binding::whole(value)),
            query: Binding::whole(&on_gpu),
            key_cache: Binding::whole(&caches[0]),
            value_cache: Binding::whole(&caches[1]),
        };
        run(gpu, params, |buffer| rope_kv_blocks::prepare(gpu, buffer, params, bindings));
        assert_close(&output(gpu, &on_gpu, query.len()), &query, ROUNDING_TOLERANCE, &format!("queries of {params:?}"));
        let [found_keys, found_values] = [0, 1].map(|which| bits(&output(gpu, &caches[which], empty[which].len())));
        assert_eq!(found_values, expected[1], "values of {params:?}");
        if dtypes[0].blocks().is_none() {
            let in_word = dtypes[0] as usize + 1;
            let [found, expected] = [&found_keys, &expected[0]].map(|words| unpacked(bytemuck::cast_slice(words), in_word));
            let tolerance = if in_word == 2 { F16_TOLERANCE } else { ROUNDING_TOLERANCE };
            return assert_close(&found, &expected, tolerance, &format!("keys of {params:?}"));
        }
        // A key that was rounded otherwise as it was rotated may become the next integer, and the farthest of a block may change its scale.
        let n_values = (n_rows * dtypes[0].row_words(params.head_size)[0]) as usize;
        let steps = found_keys.iter().zip(&expected[0]).take(n_values);
        let steps = steps.map(|(found, expected)| steps_between(dtypes[0], *found, *expected)).collect::<Vec<u32>>();
        assert!(steps.iter().all(|steps| *steps <= 1), "keys of {params:?}: {:?}", steps.iter().max());
        assert!(
            steps.iter().sum::<u32>() <= 1 + (params.n_tokens * params.n_kv_heads * params.head_size) / 500,
            "keys of {params:?}: {}",
            steps.iter().sum::<u32>()
        );
        let scales = |words: &[u32]| -> Vec<f32> {
            words[n_values..]
                .iter()
                .flat_map(|word| [*word as u16, (word >> 16) as u16])
                .map(|half| half::f16::from_bits(half).to_f32())
                .collect()
        };
        assert_close(&scales(&found_keys), &scales(&expected[0]), F16_TOLERANCE, &format!("scales of {params:?}"));
    }

    /// As `check`, with heads that are padded on their way.
    fn check_padded(&self, gpu: &Gpu, tokens: &[rope_kv::Token]) {
        let params = &self.params;
        let padded_size = rope_kv_padded::padded_size(params.head_size);
        let (mut query, mut key) = (self.query.clone(), self.key.clone());
        let cached = (params.n_blocks * params.n_kv_heads * BLOCK_POSITIONS * padded_size) as usize;
        let [mut keys, mut values] = [0, 1].map(|_| vec![POISON; cached]);
        let of_values = if self.value.is_some() { cached } else { 0 };
        let value = self.value.as_deref().unwrap_or_default();
        let caches = [keys.as_mut_slice(), &mut values[..of_values]];
        let expected = rope_kv::Values { query: &mut query, key: &mut key, value, caches };
        let expected = rope_kv_padded::reference(params, &self.cos_sin, tokens, expected);

        let in_words = [params.key_dtype, params.value_dtype].map(|dtype| dtype as usize + 1);
        let [query, table] = [upload(gpu, "query", &self.query), upload(gpu, "cos_sin", &self.cos_sin)];
        let [key, places] = [upload(gpu, "key", &self.key), upload(gpu, "tokens", tokens)];
        let value = self.value.as_ref().map(|value| upload(gpu, "value", value));
        let rotated_query = poisoned(gpu, expected.len());
        let caches = in_words.map(|in_word| poisoned(gpu, cached / in_word));
        let bindings = rope_kv_padded::Bindings {
            cos_sin: Binding::whole(&table),
            tokens: Binding::whole(&places),
            key: Binding::whole(&key),
            value: value.as_ref().map(|value| Binding::whole(value)),
            query: Binding::whole(&query),
            rotated_query: Binding::whole(&rotated_query),
            key_cache: Binding::whole(&caches[0]),
            value_cache: Binding::whole(&caches[1]),
        };
        run(gpu, params, |buffer| rope_kv_padded::prepare(gpu, buffer, params, bindings));
        assert_close(&output(gpu, &rotated_query, expected.len()), &expected, ROUNDING_TOLERANCE, &format!("queries of {params:?}"));
        let [found_keys, found_values] =
            [0, 1].map(|which| unpacked(&output(gpu, &caches[which], cached / in_words[which]), in_words[which]));
        assert_eq!(bits(&found_values), bits(&values), "values of {params:?}");
        let tolerance = if in_words[0] == 2 { F16_TOLERANCE } else { ROUNDING_TOLERANCE };
        let is_stored = |keys: &[f32]| keys.iter().map(|key| *key != POISON).collect::<Vec<bool>>();
        assert_eq!(is_stored(&found_keys), is_stored(&keys), "keys of {params:?}");
        let stored = |keys: Vec<f32>| keys.into_iter().filter(|key| *key != POISON).collect::<Vec<f32>>();
        assert_close(&stored(found_keys), &stored(keys), tolerance, &format!("keys of {params:?}"));
    }

    /// Queries and caches against the reference. Values are copied, and cached to the bit; what is rotated may be rounded otherwise.
    fn check(&self, gpu: &Gpu, tokens: &[rope_kv::Token]) {
        let params = &self.params;
        let (mut query, mut key) = (self.query.clone(), self.key.clone());
        let cached = (params.n_blocks * params.n_kv_heads * BLOCK_POSITIONS * params.head_size) as usize;
        let [mut keys, mut values] = [0, 1].map(|_| vec![POISON; cached]);
        let of_values = if self.value.is_some() { cached } else { 0 };
        let value = self.value.as_deref().unwrap_or_default();
        let caches = [keys.as_mut_slice(), &mut values[..of_values]];
        let expected = rope_kv::Values { query: &mut query, key: &mut key, value, caches };
        rope_kv::reference(params, &self.cos_sin, tokens, expected);

        let in_words = [params.key_dtype, params.value_dtype].map(|dtype| dtype as usize + 1);
        let padded = [self.query.clone(), vec![POISON; GUARD]].concat();
        let [rotated_query, table] = [upload(gpu, "query", &padded), upload(gpu, "cos_sin", &self.cos_sin)];
        let [key, places] = [upload(gpu, "key", &self.key), upload(gpu, "tokens", tokens)];
        let value = self.value.as_ref().map(|value| upload(gpu, "value", value));
        let caches = in_words.map(|in_word| poisoned(gpu, cached / in_word));
        let bindings = rope_kv::Bindings {
            cos_sin: Binding::whole(&table),
            tokens: Binding::whole(&places),
            key: Binding::whole(&key),
            value: value.as_ref().map(|value| Binding::whole(value)),
            query: Binding::whole(&rotated_query),
            key_cache: Binding::whole(&caches[0]),
            value_cache: Binding::whole(&caches[1]),
        };
        run(gpu, params, |buffer| rope_kv::prepare(gpu, buffer, params, bindings));
        assert_close(&output(gpu, &rotated_query, query.len()), &query, ROUNDING_TOLERANCE, &format!("queries of {params:?}"));
        let [found_keys, found_values] =
            [0, 1].map(|which| unpacked(&output(gpu, &caches[which], cached / in_words[which]), in_words[which]));
        assert_eq!(bits(&found_values), bits(&values), "values of {params:?}");
        // Values that differ in their last bit may be rounded to different f16.
        let tolerance = if in_words[0] == 2 { F16_TOLERANCE } else { ROUNDING_TOLERANCE };
        let is_stored = |keys: &[f32]| keys.iter().map(|key| *key != POISON).collect::<Vec<bool>>();
        assert_eq!(is_stored(&found_keys), is_stored(&keys), "keys of {params:?}");
        let stored = |keys: Vec<f32>| keys.into_iter().filter(|key| *key != POISON).collect::<Vec<f32>>();
        assert_close(&stored(found_keys), &stored(keys), tolerance, &format!("keys of {params:?}"));
    }
}

#[test]
fn blocks_are_stored_as_files_have_them() {
    let tokens = STORED.map(|(seq, position)| rope_kv::Token::new(seq, position, position + 1));
    let tokens = in_shuffled_blocks(&tokens, blocks_of(39));
    for gpu in gpus() {
        let (floats, halves) = (rope_kv::CacheDType::F32, rope_kv::CacheDType::F16);
        let (bytes, nibbles) = (rope_kv::CacheDType::Q8_0, rope_kv::CacheDType::Q4_0);
        let alike = [[bytes; 2], [nibbles; 2]];
        let mixed = [[bytes, nibbles], [nibbles, bytes], [bytes, halves], [floats, bytes], [nibbles, floats], [halves, nibbles]];
        for dtypes in alike.into_iter().chain(mixed) {
            for (pairing, [n_heads, n_kv_heads, head_size, rotary_size]) in [
                (RopePairing::NeoX, [5, 3, 32, 32]),
                (RopePairing::NeoX, [9, 3, 64, 64]),
                (RopePairing::Interleaved, [4, 2, 96, 96]),
                (RopePairing::NeoX, [3, 3, 160, 40]),
                (RopePairing::Interleaved, [2, 1, 576, 64]),
                (RopePairing::NeoX, [2, 1, 1024, 0]),
                (RopePairing::NeoX, [0, 3, 64, 0]),
            ] {
                let random = || RopeKv::random(dtypes, pairing, [n_heads, n_kv_heads, head_size, rotary_size]);
                random().check_blocks(gpu, &tokens);
                random().with_zeros().check_blocks(gpu, &tokens);
                if dtypes[0].blocks().is_some() {
                    random().with_one_cache().check_blocks(gpu, &tokens);
                }
            }
        }
    }
}

#[test]
fn heads_of_any_even_size_are_stored_padded_with_zeros() {
    let tokens = STORED.map(|(seq, position)| rope_kv::Token::new(seq, position, position + 1));
    let tokens = in_shuffled_blocks(&tokens, blocks_of(39));
    for gpu in gpus() {
        for (head_size, rotary_size, [n_heads, n_kv_heads]) in [
            (2, 2, [1, 1]),
            (6, 6, [5, 1]),
            (10, 10, [6, 2]),
            (12, 12, [7, 7]),
            (50, 50, [8, 1]),
            (100, 100, [2, 1]),
            (20, 10, [4, 2]),
            (12, 0, [2, 1]),
        ] {
            for (kv_dtype, pairing) in [
                (rope_kv::CacheDType::F32, RopePairing::NeoX),
                (rope_kv::CacheDType::F16, RopePairing::NeoX),
                (rope_kv::CacheDType::F32, RopePairing::Interleaved),
                (rope_kv::CacheDType::F16, RopePairing::Interleaved),
            ] {
                let random = |dtypes| RopeKv::random(dtypes, pairing, [n_heads, n_kv_heads, head_size, rotary_size]);
                random([kv_dtype; 2]).check_padded(gpu, &tokens);
                random([kv_dtype; 2]).with_one_cache().check_padded(gpu, &tokens);
                random([rope_kv::CacheDType::F16, rope_kv::CacheDType::F32]).check_padded(gpu, &tokens);
                random([rope_kv::CacheDType::F32, rope_kv::CacheDType::F16]).check_padded(gpu, &tokens);
            }
        }
    }
}

#[test]
fn parts_of_heads_are_copied_and_nothing_else() {
    for gpu in gpus() {
        for [n_heads, len, input_size, input_begin, output_size, output_begin] in
            [[1, 1, 1, 0, 1, 0], [35, 3, 7, 4, 12, 9], [6, 64, 72, 8, 64, 0]]
        {
            let params = copy_part::Params { n_heads, len, input_size, input_begin, output_size, output_begin };
            let mut random = Random(u64::from(input_size));
            let [input, mut expected] = [input_size, output_size].map(|size| random.floats((n_heads * size) as usize));
            let [on_gpu, result] = [upload(gpu, "input", &input), upload(gpu, "output", &[expected.clone(), vec![POISON; GUARD]].concat())];
            copy_part::reference(&params, &input, &mut expected);
            let bindings = copy_part::Bindings { input: Binding::whole(&on_gpu), output: Binding::whole(&result) };
            run(gpu, &params, |buffer| copy_part::prepare(gpu, buffer, &params, bindings));
            assert_eq!(bits(&output(gpu, &result, expected.len())), bits(&expected), "{params:?}");
        }
    }
}

#[test]
fn heads_turn_in_place_as_far_as_they_turn() {
    for gpu in gpus() {
        for [n_tokens, n_heads, head_size, rotary_size] in [[1, 1, 2, 2], [5, 3, 20, 20], [33, 4, 24, 10], [7, 1, 250, 128]] {
            for pairing in [RopePairing::NeoX, RopePairing::Interleaved] {
                let params = rope::Params { n_tokens, n_heads, head_size, rotary_size, pairing: pairing as u32 };
                let mut random = Random(u64::from(head_size));
                let cos_sin = cos_sin_of(&mut random, n_tokens, rotary_size);
                let mut expected = random.floats((n_tokens * n_heads * head_size) as usize);
                let [table, heads] =
                    [upload(gpu, "cos_sin", &cos_sin), upload(gpu, "heads", &[expected.clone(), vec![POISON; GUARD]].concat())];
                rope::reference(&params, &cos_sin, &mut expected);
                let bindings = rope::Bindings { cos_sin: Binding::whole(&table), heads: Binding::whole(&heads) };
                run(gpu, &params, |buffer| rope::prepare(gpu, buffer, &params, bindings));
                assert_close(&output(gpu, &heads, expected.len()), &expected, ROUNDING_TOLERANCE, &format!("{params:?}"));
            }
        }
    }
}

#[test]
fn what_attention_makes_of_padded_heads_is_put_side_by_side() {
    for gpu in gpus() {
        for (n_tokens, n_heads, head_size) in [(1, 1, 2), (33, 3, 12), (64, 5, 100), (96, 1, 250)] {
            let padded_size = rope_kv_padded::padded_size(head_size);
            let sizes = attention::Params { n_tokens, n_heads, n_kv_heads: 1, head_size: padded_size, ..bytemuck::Zeroable::zeroed() };
            let padded = Random(u64::from(head_size)).floats((n_tokens * n_heads * padded_size) as usize);
            let mut expected = vec![0.0; (n_tokens * n_heads * head_size) as usize];
            attention::compact::reference(&sizes, head_size, &padded, &mut expected);
            let [input, result] = [upload(gpu, "padded", &padded), poisoned(gpu, expected.len())];
            let bindings = attention::compact::Bindings { padded: Binding::whole(&input), attention_output: Binding::whole(&result) };
            run(gpu, &sizes, |buffer| attention::compact::prepare(gpu, buffer, &sizes, head_size, bindings));
            assert_eq!(bits(&output(gpu, &result, expected.len())), bits(&expected), "{n_heads} heads of {head_size}");
            // From a token on, which begins where bindings may.
            if n_tokens > 32 {
                let rest = attention::Params { n_tokens: n_tokens - 32, ..sizes };
                let result = poisoned(gpu, expected.len());
                let whole = attention::compact::Bindings { padded: Binding::whole(&input), attention_output: Binding::whole(&result) };
                let bindings = whole.from_token(&sizes, head_size, 32);
                run(gpu, &rest, |buffer| attention::compact::prepare(gpu, buffer, &rest, head_size, bindings));
                let begin = (32 * n_heads * head_size) as usize;
                assert_eq!(bits(&output(gpu, &result, expected.len())[begin..]), bits(&expected[begin..]));
            }
        }
    }
}

/// The values of a cache of which a word holds `in_word`; poisoned words stand for as many poisoned values.
fn unpacked(words: &[f32], in_word: usize) -> Vec<f32> {
    let halves = |word: u32| [word as u16, (word >> 16) as u16].map(|bits| half::f16::from_bits(bits).to_f32());
    let value = |&word: &f32| if in_word == 1 || word == POISON { vec![word; in_word] } else { halves(word.to_bits()).to_vec() };
    words.iter().flat_map(value).collect()
}

#[test]
fn elementwise_kernels_match_their_references() {
    for gpu in gpus() {
        for n_values in [1u32, 3, 31, 33, 257, 5000] {
            let len = n_values as usize;
            let mut random = Random(u64::from(n_values));
            let gate: Vec<f32> = random.floats(len).iter().map(|value| value * 30.0).collect();
            let up = random.floats(len);
            let what = format!("{n_values} values");
            let [gates, ups, result] = [upload(gpu, "gate", &gate), upload(gpu, "up", &up), poisoned(gpu, len)];

            let params = glu::Params { n_values };
            let mut expected = vec![0.0; len];
            for activation in Activation::ALL {
                glu::reference(&params, activation, &gate, &up, &mut expected);
                let bindings = glu::Bindings { gate: Binding::whole(&gates), up: Binding::whole(&ups), output: Binding::whole(&result) };
                run(gpu, &params, |buffer| glu::prepare(gpu, buffer, &params, activation, bindings));
                assert_close(&output(gpu, &result, len), &expected, EXP_TOLERANCE, &what);
            }
            // Far beyond a cap, about it and below.
            let numbered = [(Function::Scale(-0.75), -0.75), (Function::Softcap(0.01), 0.01), (Function::Softcap(30.0), 30.0)];
            let activations = Activation::ALL.map(|activation| (Function::Activation(activation), 0.0));
            for (function, number) in numbered.into_iter().chain(activations) {
                let mut expected = gate.clone();
                map::reference(function, &mut expected);
                let (params, mapped) =
                    (map::Params { n_values, number }, upload(gpu, "values", &[gate.clone(), vec![POISON; GUARD]].concat()));
                run(gpu, &params, |buffer| map::prepare(gpu, buffer, &params, function, Binding::whole(&mapped)));
                assert_close(&output(gpu, &mapped, len), &expected, EXP_TOLERANCE, &format!("{function:?} of {what}"));
            }

            let params = add::Params { n_values };
            add::reference(&params, &up, &mut expected);
            let bindings = add::Bindings { input: Binding::whole(&ups), target_values: Binding::whole(&result) };
            run(gpu, &params, |buffer| add::prepare(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &result, len), &expected, EXP_TOLERANCE, &what);
        }
    }
}

#[test]
fn add_bias_and_gather_rows_match_their_references() {
    for gpu in gpus() {
        for (n_tokens, width) in [(1u32, 1u32), (3, 31), (33, 257)] {
            let len = (n_tokens * width) as usize;
            let mut random = Random(u64::from(width));
            let [values, bias] = [random.floats(len), random.floats(width as usize)];
            let params = add_bias::Params { n_tokens, width };
            let mut expected = values.clone();
            add_bias::reference(&params, &bias, &mut expected);
            let [biases, result] = [upload(gpu, "bias", &bias), upload(gpu, "values", &[values.clone(), vec![POISON; GUARD]].concat())];
            let bindings = add_bias::Bindings { bias: Binding::whole(&biases), target_values: Binding::whole(&result) };
            run(gpu, &params, |buffer| add_bias::prepare(gpu, buffer, &params, bindings));
            assert_eq!(bits(&output(gpu, &result, len)), bits(&expected));

            let row_indices = [n_tokens - 1, 0, n_tokens / 2, 99];
            let params = gather_rows::Params { n_rows: 4, n_input_rows: n_tokens, width };
            let mut expected = vec![0.0; 4 * width as usize];
            gather_rows::reference(&params, &values, &row_indices, &mut expected);
            let [input, rows] = [upload(gpu, "input", &values), upload(gpu, "row_indices", &row_indices)];
            let chosen = poisoned(gpu, expected.len());
            let bindings = gather_rows::Bindings {
                input: Binding::whole(&input),
                row_indices: Binding::whole(&rows),
                output: Binding::whole(&chosen),
            };
            run(gpu, &params, |buffer| gather_rows::prepare(gpu, buffer, &params, bindings));
            assert_eq!(bits(&output(gpu, &chosen, expected.len())), bits(&expected));
            assert_eq!(floats(gpu, &input)[..len], values, "the input is only read");
        }
    }
}
