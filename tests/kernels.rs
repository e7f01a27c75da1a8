//! Every kernel on the adapter against its reference on the host, at odd sizes, under WebGPU's default limits.

mod common;

use common::{GUARD, POISON, Random, assert_close, bits, floats, gpus, output, poisoned, run, run_all, run_with, upload};
use tierflow::device::{MatMulForm, TokenCount};
use tierflow::dtype::DType;
use tierflow::error::Result;
use tierflow::gpu::{Buffer, Gpu};
use tierflow::kernels::attention::AttentionForm;
use tierflow::kernels::{Binding, add, add_bias, attention, gather_rows, matmul, matmul_subgroup, rms_norm, rope_kv, swiglu};

/// Sums of products in another order than the reference's: roundings of f32, grown where a lone sum happens to cancel.
const SUM_TOLERANCE: f32 = 1e-5;
/// One or two roundings.
const ROUNDING_TOLERANCE: f32 = 3e-7;
/// One step of f16, beside the largest value.
const F16_TOLERANCE: f32 = 1.0 / 1024.0;
/// A driver's exp is good to a few units in the last place for f32, and the sums come on top.
const EXP_TOLERANCE: f32 = 1e-5;

struct Product {
    params: matmul::Params,
    weight: Vec<u8>,
    input: Vec<f32>,
}

impl Product {
    fn random(dtype: DType, n_rows: u32, n_columns: u32, n_tokens: u32) -> Product {
        let mut random = Random(u64::from(n_rows * 7919 + n_columns * 31 + n_tokens));
        Product {
            params: matmul::Params::new(dtype, n_rows, n_columns, n_tokens),
            weight: random.weights(dtype, (n_rows * n_columns) as usize),
            input: random.floats((n_tokens * n_columns) as usize),
        }
    }

    fn reference(&self) -> Vec<f32> {
        let mut output = vec![0.0; self.output_len()];
        matmul::reference(&self.params, &self.weight, &self.input, &mut output);
        output
    }

    fn output_len(&self) -> usize {
        (self.params.n_tokens * self.params.output_stride) as usize
    }

    fn on_gpu(&self, gpu: &Gpu) -> Vec<f32> {
        self.on_gpu_in_slices(gpu, self.params.n_rows)
    }

    /// Each slice's rows at an offset of their own, aligned to 256, in one buffer.
    fn on_gpu_in_slices(&self, gpu: &Gpu, slice_rows: u32) -> Vec<f32> {
        let row_bytes = self.params.row_bytes().expect("whole blocks");
        let mut bytes = Vec::new();
        let mut slices = Vec::new();
        for row_begin in (0..self.params.n_rows).step_by(slice_rows as usize) {
            let n_rows = slice_rows.min(self.params.n_rows - row_begin);
            bytes.resize(bytes.len().next_multiple_of(256), 0xA5);
            slices.push((self.params.slice(row_begin, n_rows), bytes.len() as u64, u64::from(n_rows) * row_bytes));
            bytes.extend(&self.weight[(u64::from(row_begin) * row_bytes) as usize..][..(u64::from(n_rows) * row_bytes) as usize]);
        }
        let weight = upload(gpu, "weight", &bytes);
        let input = upload(gpu, "input", &self.input);
        let result = poisoned(gpu, self.output_len());
        let params: Vec<matmul::Params> = slices.iter().map(|slice| slice.0).collect();
        run_all(gpu, &params, |buffer, _| {
            let prepare = |&(params, offset, size): &(matmul::Params, u64, u64)| {
                let weight = Binding::part(&weight, offset, size);
                let bindings = matmul::Bindings { weight, input: Binding::whole(&input), output: Binding::whole(&result) };
                matmul::prepare(gpu, buffer, &params, bindings)
            };
            slices.iter().map(prepare).collect()
        });
        output(gpu, &result, self.output_len())
    }
}

#[test]
fn matmul_matches_its_reference_for_every_dtype_and_odd_shapes() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            let columns: &[u32] = if dtype.has_blocks() { &[32, 96, 288] } else { &[1, 3, 4, 31, 36, 257] };
            for &n_columns in columns {
                for (n_rows, n_tokens) in [(1, 1), (3, 2), (31, 3), (33, 8), (257, 1), (33, 33), (70, 9)] {
                    let product = Product::random(dtype, n_rows, n_columns, n_tokens);
                    let what = format!("{dtype} [{n_rows}, {n_columns}] × {n_tokens}");
                    assert_close(&product.on_gpu(gpu), &product.reference(), SUM_TOLERANCE, &what);
                }
            }
        }
    }
}

#[test]
fn matmul_of_long_rows_matches_its_reference() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            for n_tokens in [1, 40] {
                let product = Product::random(dtype, 45, 4128, n_tokens);
                assert_close(&product.on_gpu(gpu), &product.reference(), SUM_TOLERANCE, &format!("{dtype} × {n_tokens}"));
            }
        }
    }
}

#[test]
fn slices_of_a_matrix_give_the_bits_of_the_whole() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            for (n_columns, n_tokens) in [(160, 1), (160, 33), (192, 1), (192, 3), (192, 33)] {
                let product = Product::random(dtype, 131, n_columns, n_tokens);
                let whole = product.on_gpu(gpu);
                for slice_rows in [1, 7, 64, 130] {
                    let slices = product.on_gpu_in_slices(gpu, slice_rows);
                    assert_eq!(bits(&slices), bits(&whole), "{n_columns} of {dtype} × {n_tokens} in slices of {slice_rows}");
                }
            }
        }
    }
}

#[test]
fn a_token_of_a_batch_gives_the_bits_of_the_token_alone() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            // Up to eight tokens share one kernel, more another: bits are the same within each.
            for (alone, batch) in [(1, 8), (9, 37)] {
                let product = Product::random(dtype, 37, 192, batch);
                let all = product.on_gpu(gpu);
                let width = product.params.n_columns as usize;
                let first = Product {
                    params: matmul::Params { n_tokens: alone, ..product.params },
                    weight: product.weight.clone(),
                    input: product.input[..alone as usize * width].to_vec(),
                };
                assert_eq!(bits(&first.on_gpu(gpu)), bits(&all[..alone as usize * 37]), "{dtype}, {alone} of {batch}");
            }
        }
    }
}

#[test]
fn all_forms_of_matmul_agree() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            // Rows that end inside a lane's rows, and tokens that end inside a group of them.
            for (n_rows, n_columns, n_tokens) in [(65, 320, 6), (1100, 64, 1), (33, 576, 19), (40, 96, 3)] {
                let product = Product::random(dtype, n_rows, n_columns, n_tokens);
                let [weight, input] = [upload(gpu, "weight", &product.weight), upload(gpu, "input", &product.input)];
                let result = poisoned(gpu, product.output_len());
                let bindings =
                    matmul::Bindings { weight: Binding::whole(&weight), input: Binding::whole(&input), output: Binding::whole(&result) };
                let possible = matmul::forms(gpu, &product.params);
                let has_subgroups = gpu.subgroup_lanes == Some(matmul_subgroup::LANES);
                assert_eq!(possible.contains(&MatMulForm::Subgroup), has_subgroups && n_columns % 64 == 0, "{dtype} × {n_columns}");
                for form in [MatMulForm::Lane, MatMulForm::Workgroup, MatMulForm::Tile].into_iter().chain(possible) {
                    run(gpu, &product.params, |buffer| matmul::prepare_as(gpu, buffer, &product.params, bindings, form));
                    let what = format!("{form:?} of {n_rows} × {n_columns} × {n_tokens} {dtype}");
                    assert_close(&output(gpu, &result, product.output_len()), &product.reference(), SUM_TOLERANCE, &what);
                }
            }
        }
    }
}

/// Query, key and value: matrices of one block, each from a multiple of 256 bytes on, times one input.
#[test]
fn products_that_share_a_dispatch_give_the_bits_of_products_alone() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            for (n_rows, n_tokens) in [(&[70, 33][..], 40), (&[576, 9, 600], 1), (&[33, 65, 31], 6)] {
                let input = Random(7).floats((n_tokens * 192) as usize);
                let random = |&n_rows: &u32| Product { input: input.clone(), ..Product::random(dtype, n_rows, 192, n_tokens) };
                let products: Vec<Product> = n_rows.iter().map(random).collect();
                let (mut block, mut params) = (Vec::new(), Vec::new());
                for product in &products {
                    block.resize(block.len().next_multiple_of(matmul::WEIGHT_ALIGNMENT as usize), 0xA5);
                    params.push(matmul::Params { weight_begin: block.len() as u32 / 256, ..product.params });
                    block.extend(&product.weight);
                }
                let [block, input] = [upload(gpu, "weights", &block), upload(gpu, "input", &input)];
                let forms = [MatMulForm::Lane, MatMulForm::Workgroup, MatMulForm::Tile];
                for form in forms.into_iter().chain(matmul::forms(gpu, &params[0])) {
                    let results: Vec<Buffer> = products.iter().map(|product| poisoned(gpu, product.output_len())).collect();
                    let outputs: Vec<Binding<'_>> = results.iter().map(|result| Binding::whole(result)).collect();
                    let (weight, input) = (Binding::whole(&block), Binding::whole(&input));
                    let together = matmul::Products { params: &params, weight, input, outputs: &outputs };
                    run(gpu, &matmul::padded(&params), |buffer| matmul::prepare_products_as(gpu, buffer, &together, form));
                    for (index, (product, result)) in products.iter().zip(&results).enumerate() {
                        let (alone, output_alone) = (upload(gpu, "weight", &product.weight), poisoned(gpu, product.output_len()));
                        let bindings = matmul::Bindings { weight: Binding::whole(&alone), input, output: Binding::whole(&output_alone) };
                        run(gpu, &product.params, |buffer| matmul::prepare_as(gpu, buffer, &product.params, bindings, form));
                        let [found, expected] = [result, &output_alone].map(|buffer| bits(&output(gpu, buffer, product.output_len())));
                        assert_eq!(found, expected, "{form:?} {dtype}: product {index} of {n_rows:?} × {n_tokens}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_product_that_accumulates_adds_its_bits_to_the_output() {
    for gpu in gpus() {
        for (dtype, n_columns) in [(DType::Q4_0, 96), (DType::F16, 160), (DType::F32, 31)] {
            for n_tokens in [1, 7, 40] {
                let product = Product::random(dtype, 75, n_columns, n_tokens);
                let before = Random(11).floats(product.output_len());
                let sums = product.on_gpu(gpu).into_iter().zip(&before).map(|(value, before)| before + value);
                let expected: Vec<f32> = sums.collect();
                let mut guarded = before.clone();
                guarded.resize(before.len() + GUARD, POISON);
                let [weight, input] = [upload(gpu, "weight", &product.weight), upload(gpu, "input", &product.input)];
                let result = upload(gpu, "output", &guarded);
                let bindings =
                    matmul::Bindings { weight: Binding::whole(&weight), input: Binding::whole(&input), output: Binding::whole(&result) };
                let params = product.params.accumulating();
                run(gpu, &params, |buffer| matmul::prepare(gpu, buffer, &params, bindings));
                assert_eq!(bits(&output(gpu, &result, product.output_len())), bits(&expected), "{dtype} × {n_tokens}");
            }
        }
    }
}

#[test]
fn only_like_products_share_a_dispatch() {
    for gpu in gpus() {
        let params = matmul::Params::new(DType::F32, 8, 8, 1);
        let [weight, input] = [upload(gpu, "weight", &[1.0f32; 256]), upload(gpu, "input", &[1.0f32; 8])];
        let outputs = [poisoned(gpu, 8), poisoned(gpu, 8)];
        let outputs = [Binding::whole(&outputs[0]), Binding::whole(&outputs[1])];
        let refused = |second: matmul::Params| {
            let (weight, input) = (Binding::whole(&weight), Binding::whole(&input));
            let products = matmul::Products { params: &[params, second], weight, input, outputs: &outputs };
            matmul::prepare_products(gpu, &upload(gpu, "params", &[0u32; 64]), &products).map(drop).map_err(|error| error.to_string())
        };
        let shares = "share a dispatch";
        assert!(refused(matmul::Params { n_tokens: 2, ..params }).unwrap_err().contains(shares));
        assert!(refused(matmul::Params::new(DType::F16, 8, 8, 1)).unwrap_err().contains(shares));
        assert!(refused(params.accumulating()).unwrap_err().contains(shares));
        let error = refused(matmul::Params { weight_begin: 4, ..params }).unwrap_err();
        assert!(error.contains("binding `weight`: needs 1280 bytes, has 1024"), "{error}");
    }
}

#[test]
fn matmul_refuses_bindings_that_are_too_small_or_misaligned() {
    for gpu in gpus() {
        let params = matmul::Params::new(DType::F32, 8, 8, 1);
        let [weight, input, result] = [vec![0f32; 128], vec![0f32; 8], vec![0f32; 8]].map(|values| upload(gpu, "any", &values));
        let arena = pollster::block_on(tierflow::gpu::ParamsArena::new(gpu, 1)).expect("an arena");
        let try_with = |weight, params: matmul::Params| {
            let bindings = matmul::Bindings { weight, input: Binding::whole(&input), output: Binding::whole(&result) };
            matmul::prepare(gpu, arena.buffer(), &params, bindings).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(try_with(Binding::whole(&weight), params), Ok(()));
        assert!(try_with(Binding::part(&weight, 0, 252), params).unwrap_err().contains("`weight`: needs 256 bytes, has 252"));
        assert!(try_with(Binding::part(&weight, 4, 256), params).unwrap_err().contains("begins at byte 4"));
        assert!(try_with(Binding::part(&weight, 256, 1024), matmul::Params { n_rows: 16, output_stride: 16, ..params }).is_err());
        assert!(
            try_with(Binding::whole(&weight), matmul::Params { output_row_begin: 1, ..params }).unwrap_err().contains("leave the output")
        );
        assert!(try_with(Binding::whole(&weight), matmul::Params { dtype: 99, ..params }).is_err());
        assert!(try_with(Binding::whole(&weight), matmul::Params::new(DType::Q8_0, 8, 8, 1)).is_err());
    }
}

#[test]
fn rms_norm_matches_its_reference() {
    for gpu in gpus() {
        for (n_rows, hidden_size) in [(1, 1), (3, 31), (2, 33), (257, 3), (5, 576)] {
            let params = rms_norm::Params { n_rows, hidden_size, epsilon: 1e-5 };
            let mut random = Random(u64::from(hidden_size));
            let len = (n_rows * hidden_size) as usize;
            let [input, weight] = [random.floats(len), random.floats(hidden_size as usize)];
            let mut expected = vec![0.0; len];
            rms_norm::reference(&params, &input, &weight, &mut expected);
            let [input, weight, result] = [upload(gpu, "input", &input), upload(gpu, "weight", &weight), poisoned(gpu, len)];
            let bindings =
                rms_norm::Bindings { input: Binding::whole(&input), weight: Binding::whole(&weight), output: Binding::whole(&result) };
            run(gpu, &params, |buffer| rms_norm::prepare(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &result, len), &expected, SUM_TOLERANCE, &format!("{n_rows} rows of {hidden_size}"));
        }
    }
}

#[test]
fn rope_kv_turns_queries_and_keys_and_stores_only_the_tokens_rows() {
    // The last two tokens lie outside the caches: they are turned all the same, and not stored.
    let places = [(0, 6), (1, 0), (1, 1), (2, 0), (0, 7)];
    let tokens: Vec<rope_kv::Token> = places.map(|(seq, position)| rope_kv::Token::new(seq, position, position + 1)).into();
    for gpu in gpus() {
        for (kv_dtype, pairing, [n_heads, n_kv_heads, head_size]) in [
            (rope_kv::KvDType::F32, rope_kv::Pairing::Halves, [5, 3, 12]),
            (rope_kv::KvDType::F16, rope_kv::Pairing::Halves, [9, 3, 64]),
            (rope_kv::KvDType::F32, rope_kv::Pairing::Neighbours, [1, 1, 4]),
            (rope_kv::KvDType::F16, rope_kv::Pairing::Neighbours, [4, 2, 20]),
        ] {
            let sizes = rope_kv::Params { n_tokens: 5, n_heads, n_kv_heads, head_size, n_seqs: 2, kv_capacity: 7, kv_dtype: 0, pairing: 0 };
            RopeKv::random(rope_kv::Params { kv_dtype: kv_dtype as u32, pairing: pairing as u32, ..sizes }).check(gpu, &tokens);
        }
    }
}

struct RopeKv {
    params: rope_kv::Params,
    cos_sin: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

impl RopeKv {
    fn random(params: rope_kv::Params) -> RopeKv {
        let mut random = Random(u64::from(params.head_size));
        let mut rows = |n_heads: u32| random.floats((params.n_tokens * n_heads * params.head_size) as usize);
        let [query, key, value] = [params.n_heads, params.n_kv_heads, params.n_kv_heads].map(&mut rows);
        let angles = random.floats((params.n_tokens * params.head_size / 2) as usize);
        let cos_sin = angles.iter().flat_map(|angle| [(angle * 3.0).cos(), (angle * 3.0).sin()]).collect();
        RopeKv { params, cos_sin, query, key, value }
    }

    /// Queries and caches against the reference. Values are copied, and cached to the bit; what is turned may be rounded otherwise.
    fn check(&self, gpu: &Gpu, tokens: &[rope_kv::Token]) {
        let params = &self.params;
        let (mut query, mut key) = (self.query.clone(), self.key.clone());
        let cached = (params.n_seqs * params.n_kv_heads * params.kv_capacity * params.head_size) as usize;
        let [mut keys, mut values] = [0, 1].map(|_| vec![POISON; cached]);
        let expected =
            rope_kv::Values { query: &mut query, key: &mut key, value: &self.value, caches: [keys.as_mut_slice(), values.as_mut_slice()] };
        rope_kv::reference(params, &self.cos_sin, tokens, expected);

        let in_word = params.kv_dtype as usize + 1;
        let padded = [self.query.clone(), vec![POISON; GUARD]].concat();
        let [turned, table] = [upload(gpu, "query", &padded), upload(gpu, "cos_sin", &self.cos_sin)];
        let [key, value, places] = [upload(gpu, "key", &self.key), upload(gpu, "value", &self.value), upload(gpu, "tokens", tokens)];
        let caches = [0, 1].map(|_| poisoned(gpu, cached / in_word));
        let bindings = rope_kv::Bindings {
            cos_sin: Binding::whole(&table),
            tokens: Binding::whole(&places),
            key: Binding::whole(&key),
            value: Binding::whole(&value),
            query: Binding::whole(&turned),
            key_cache: Binding::whole(&caches[0]),
            value_cache: Binding::whole(&caches[1]),
        };
        run(gpu, params, |buffer| rope_kv::prepare(gpu, buffer, params, bindings));
        assert_close(&output(gpu, &turned, query.len()), &query, ROUNDING_TOLERANCE, &format!("queries of {params:?}"));
        let [found_keys, found_values] = caches.each_ref().map(|cache| unpacked(&output(gpu, cache, cached / in_word), in_word));
        assert_eq!(bits(&found_values), bits(&values), "values of {params:?}");
        // Values that differ in their last bit may be rounded to different f16.
        let tolerance = if in_word == 2 { F16_TOLERANCE } else { ROUNDING_TOLERANCE };
        let is_stored = |keys: &[f32]| keys.iter().map(|key| *key != POISON).collect::<Vec<bool>>();
        assert_eq!(is_stored(&found_keys), is_stored(&keys), "keys of {params:?}");
        let stored = |keys: Vec<f32>| keys.into_iter().filter(|key| *key != POISON).collect::<Vec<f32>>();
        assert_close(&stored(found_keys), &stored(keys), tolerance, &format!("keys of {params:?}"));
    }
}

/// The values of a cache of which a word holds `in_word`; poisoned words stand for as many poisoned values.
fn unpacked(words: &[f32], in_word: usize) -> Vec<f32> {
    let halves = |word: u32| [word as u16, (word >> 16) as u16].map(|bits| half::f16::from_bits(bits).to_f32());
    let value = |&word: &f32| if in_word == 1 || word == POISON { vec![word; in_word] } else { halves(word.to_bits()).to_vec() };
    words.iter().flat_map(value).collect()
}

struct Attention {
    params: attention::Params,
    tokens: Vec<rope_kv::Token>,
}

impl Attention {
    /// One sequence that ends at `kv_len`, of which the last `n_tokens` are new; `seq` 1 of 2.
    fn of_one_sequence(heads: [u32; 2], head_size: u32, kv_len: u32, n_tokens: u32, window: u32) -> Attention {
        let params = attention::Params {
            n_tokens,
            n_heads: heads[0],
            n_kv_heads: heads[1],
            head_size,
            n_seqs: 2,
            kv_capacity: kv_len + 3,
            window,
            scale: 1.0 / (head_size as f32).sqrt(),
            kv_dtype: rope_kv::KvDType::F32 as u32,
        };
        Attention { params, tokens: (kv_len - n_tokens..kv_len).map(|position| rope_kv::Token::new(1, position, kv_len)).collect() }
    }

    /// Every form against the reference.
    fn check(&self, gpu: &Gpu, kv_dtype: rope_kv::KvDType) {
        let params = attention::Params { kv_dtype: kv_dtype as u32, ..self.params };
        let (query, caches) = self.random_values();
        let halves = caches.each_ref().map(|cache| cache.iter().map(|&value| half::f16::from_f32(value)).collect::<Vec<_>>());
        let is_f16 = kv_dtype == rope_kv::KvDType::F16;
        let seen = if is_f16 { halves.each_ref().map(|cache| cache.iter().map(|value| value.to_f32()).collect()) } else { caches };
        let mut expected = vec![0.0; query.len()];
        attention::reference(&params, &query, &self.tokens, &seen[0], &seen[1], &mut expected);
        let on_gpu: [Buffer; 2] = std::array::from_fn(|which| match is_f16 {
            true => upload(gpu, "cache", &halves[which]),
            false => upload(gpu, "cache", &seen[which]),
        });
        for form in attention::forms(gpu) {
            let found = attend(gpu, &params, &self.tokens, &query, &on_gpu, form);
            assert_close(&found, &expected, EXP_TOLERANCE, &format!("{form:?} of {params:?}"));
        }
    }

    /// Queries, and keys and values.
    fn random_values(&self) -> (Vec<f32>, [Vec<f32>; 2]) {
        let params = &self.params;
        let mut random = Random(u64::from(params.kv_capacity * 131 + params.head_size));
        let query = random.floats((params.n_tokens * params.n_heads * params.head_size) as usize);
        let cache_len = (params.n_seqs * params.n_kv_heads * params.kv_capacity * params.head_size) as usize;
        (query.iter().map(|value| value * 4.0).collect(), [0, 1].map(|_| random.floats(cache_len)))
    }
}

fn attend(
    gpu: &Gpu,
    params: &attention::Params,
    tokens: &[rope_kv::Token],
    query: &[f32],
    caches: &[Buffer; 2],
    form: AttentionForm,
) -> Vec<f32> {
    attend_in(1, gpu, params, tokens, query, caches, form)
}

/// As `attend`, in as many as `n_cuts` dispatches.
fn attend_in(
    n_cuts: usize,
    gpu: &Gpu,
    params: &attention::Params,
    tokens: &[rope_kv::Token],
    query: &[f32],
    caches: &[Buffer; 2],
    form: AttentionForm,
) -> Vec<f32> {
    let [queries, places] = [upload(gpu, "query", query), upload(gpu, "tokens", tokens)];
    let parts_len = attention::parts_bytes(params) as usize / 4;
    let [parts, mixed] = [poisoned(gpu, parts_len), poisoned(gpu, query.len())];
    let bindings = attention::Bindings {
        query: Binding::whole(&queries),
        tokens: Binding::whole(&places),
        key_cache: Binding::whole(&caches[0]),
        value_cache: Binding::whole(&caches[1]),
        parts: Binding::whole(&parts),
        mixed: Binding::whole(&mixed),
    };
    let (each, begins) = attention::cut(params, n_cuts);
    run_with(gpu, &each, |buffer| {
        let of_cut = |&begin: &u32| attention::prepare_as(gpu, buffer, &each, bindings.from_token(params, begin), form);
        Ok(begins.iter().map(of_cut).collect::<Result<Vec<_>>>()?.concat())
    });
    output(gpu, &parts, parts_len);
    output(gpu, &mixed, query.len())
}

#[test]
fn attention_matches_its_reference() {
    for gpu in gpus() {
        for kv_dtype in [rope_kv::KvDType::F32, rope_kv::KvDType::F16] {
            for (heads, head_size, kv_len, n_tokens) in [
                ([1, 1], 8, 1, 1),
                ([3, 1], 24, 3, 3),
                ([4, 2], 64, 31, 1),
                ([9, 3], 64, 33, 5),
                ([2, 2], 256, 257, 2),
                ([6, 2], 80, 100, 33),
            ] {
                for window in [0, 1, 7, 64] {
                    Attention::of_one_sequence(heads, head_size, kv_len, n_tokens, window).check(gpu, kv_dtype);
                }
            }
        }
        Attention::of_one_sequence([8, 1], 96, 40, 2, 0).check(gpu, rope_kv::KvDType::F32);
        Attention::of_one_sequence([8, 2], 128, 40, 11, 0).check(gpu, rope_kv::KvDType::F16);
    }
}

#[test]
fn attention_to_a_long_context_is_put_together_from_its_parts() {
    for gpu in gpus() {
        // One position past a part, in its midst, and in the part before; more positions than there are parts of the least size.
        for (kv_len, n_tokens, window) in [(385, 1, 0), (300, 8, 0), (300, 3, 50), (4200, 1, 0), (4200, 2, 700)] {
            let attention = Attention::of_one_sequence([8, 1], 16, kv_len, n_tokens, window);
            assert!(attention::parts_bytes(&attention.params) > 0);
            attention.check(gpu, rope_kv::KvDType::F16);
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
        attention.check(gpu, rope_kv::KvDType::F32);
        attention.tokens.truncate(4);
        attention.params.n_tokens = 4;
        attention.check(gpu, rope_kv::KvDType::F32);
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
            for form in attention::forms(gpu) {
                let all = attend(gpu, &whole.params, &whole.tokens, &query, &caches, form);
                // Nine tokens at least: eight may attend in parts.
                for range in [0..9, 5..29, 18..29] {
                    let params = attention::Params { n_tokens: range.len() as u32, ..whole.params };
                    let values = range.start * width..range.end * width;
                    let some = attend(gpu, &params, &whole.tokens[range.clone()], &query[values.clone()], &caches, form);
                    assert_eq!(bits(&some), bits(&all[values]), "{form:?} {range:?} {heads:?}");
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
            for form in attention::forms(gpu) {
                let attend_in = |n_cuts| bits(&attend_in(n_cuts, gpu, &whole.params, &whole.tokens, &query, &caches, form));
                let at_once = attend_in(1);
                for n_cuts in [2, 3] {
                    assert_eq!(attend_in(n_cuts), at_once, "{form:?} of {n_tokens} tokens in {n_cuts}");
                }
            }
        }
    }
}

#[test]
fn attention_lets_a_nan_through() {
    for gpu in gpus() {
        let attention = Attention::of_one_sequence([1, 1], 8, 20, 1, 0);
        let mut key = vec![0.5f32; 2 * 23 * 8];
        key[23 * 8 + 17 * 8] = f32::NAN;
        let caches = [upload(gpu, "key", &key), upload(gpu, "value", &vec![1f32; key.len()])];
        for form in attention::forms(gpu) {
            let mixed = attend(gpu, &attention.params, &attention.tokens, &[1f32; 8], &caches, form);
            assert!(mixed.iter().all(|value| value.is_nan()), "{form:?}: {mixed:?}");
        }
    }
}

#[test]
fn attention_takes_tiles_only_where_tokens_of_a_sequence_follow_each_other() {
    assert_eq!(attention::token_count(256, 1), TokenCount::Many);
    assert_eq!(attention::token_count(256, 64), TokenCount::Many);
    assert_eq!(attention::token_count(32, 32), TokenCount::Few);
    assert_eq!(attention::token_count(8, 1), TokenCount::Few);
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

            let params = swiglu::Params { n_values };
            let mut expected = vec![0.0; len];
            swiglu::reference(&params, &gate, &up, &mut expected);
            let bindings = swiglu::Bindings { gate: Binding::whole(&gates), up: Binding::whole(&ups), output: Binding::whole(&result) };
            run(gpu, &params, |buffer| swiglu::prepare(gpu, buffer, &params, bindings));
            assert_close(&output(gpu, &result, len), &expected, EXP_TOLERANCE, &what);

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
