//! Matrix products: every variant and dtype, slices, batches, and products that share a dispatch.

use tierflow::device::MatMulVariant;
use tierflow::dtype::DType;
use tierflow::gpu::{Buffer, Gpu};
use tierflow::kernels::{Binding, matmul};

use super::SUM_TOLERANCE;
use crate::common::{GUARD, POISON, Random, assert_close, bits, gpus, output, poisoned, run, run_all, upload};

struct Product {
    params: matmul::Params,
    weight: Vec<u8>,
    input: Vec<f32>,
}

/// A dtype of each way in which kernels decode. Slices, batches and shared dispatches have to do with no other difference between dtypes, all
/// of which are compared with their reference.
const KINDS: [DType; 9] =
    [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q6K, DType::Q4K, DType::TQ2_0, DType::IQ3S];

/// So many columns, rounded up to whole blocks.
fn whole(dtype: DType, n_columns: u32) -> u32 {
    n_columns.next_multiple_of(dtype.block_len() as u32)
}

impl Product {
    fn random(dtype: DType, n_rows: u32, n_columns: u32, n_tokens: u32) -> Product {
        let n_columns = whole(dtype, n_columns);
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
            let columns: &[u32] = match dtype.block_len() {
                1 => &[1, 3, 4, 31, 36, 257],
                32 => &[32, 96, 288],
                _ => &[256, 512, 768],
            };
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
        for dtype in KINDS {
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
        for dtype in KINDS {
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
fn all_variants_of_matmul_agree() {
    for gpu in gpus() {
        for dtype in DType::ALL {
            // Rows that end inside a lane's rows, and tokens that end inside a group of them.
            for (n_rows, n_columns, n_tokens) in [(65, 320, 6), (1100, 64, 1), (33, 576, 19), (40, 96, 3)] {
                let n_columns = whole(dtype, n_columns);
                let product = Product::random(dtype, n_rows, n_columns, n_tokens);
                let [weight, input] = [upload(gpu, "weight", &product.weight), upload(gpu, "input", &product.input)];
                let result = poisoned(gpu, product.output_len());
                let bindings =
                    matmul::Bindings { weight: Binding::whole(&weight), input: Binding::whole(&input), output: Binding::whole(&result) };
                let possible = matmul::variants(gpu, &product.params);
                let has_subgroups = gpu.subgroup_lanes == Some(matmul::subgroup::LANES);
                assert_eq!(
                    possible.contains(&MatMulVariant::Subgroup),
                    has_subgroups && n_columns.is_multiple_of(64),
                    "{dtype} × {n_columns}"
                );
                for variant in matmul::all_variants(gpu, &product.params) {
                    run(gpu, &product.params, |buffer| matmul::prepare_as(gpu, buffer, &product.params, bindings, variant));
                    let what = format!("{variant:?} of {n_rows} × {n_columns} × {n_tokens} {dtype}");
                    assert_close(&output(gpu, &result, product.output_len()), &product.reference(), SUM_TOLERANCE, &what);
                }
            }
        }
    }
}

/// Each shape with one of the dtypes in turn, so that all dtypes meet several shapes.
#[test]
fn every_shape_of_shared_rows_agrees_with_the_reference() {
    for gpu in gpus() {
        for (index, variant) in MatMulVariant::WORKGROUP.all_shapes().into_iter().enumerate() {
            let dtype = DType::ALL[index % DType::ALL.len()];
            let product = Product::random(dtype, 131, whole(dtype, 96), 3);
            let [weight, input] = [upload(gpu, "weight", &product.weight), upload(gpu, "input", &product.input)];
            let result = poisoned(gpu, product.output_len());
            let bindings =
                matmul::Bindings { weight: Binding::whole(&weight), input: Binding::whole(&input), output: Binding::whole(&result) };
            run(gpu, &product.params, |buffer| matmul::prepare_as(gpu, buffer, &product.params, bindings, variant));
            assert_close(&output(gpu, &result, product.output_len()), &product.reference(), SUM_TOLERANCE, &format!("{variant} {dtype}"));
        }
    }
}

/// Each sum adds its products in the order of the columns, whatever the tile.
#[test]
fn every_shape_of_the_tile_gives_the_same_bits() {
    for gpu in gpus() {
        let product = Product::random(DType::Q4_0, 70, 160, 40);
        let [weight, input] = [upload(gpu, "weight", &product.weight), upload(gpu, "input", &product.input)];
        let mut expected = None;
        for variant in MatMulVariant::TILE.all_shapes() {
            let result = poisoned(gpu, product.output_len());
            let bindings =
                matmul::Bindings { weight: Binding::whole(&weight), input: Binding::whole(&input), output: Binding::whole(&result) };
            run(gpu, &product.params, |buffer| matmul::prepare_as(gpu, buffer, &product.params, bindings, variant));
            let found = bits(&output(gpu, &result, product.output_len()));
            assert_eq!(&found, expected.get_or_insert_with(|| found.clone()), "{variant}");
        }
    }
}

/// Query, key and value: matrices of one block, each from a multiple of 256 bytes on, times one input.
#[test]
fn products_that_share_a_dispatch_give_the_bits_of_products_alone() {
    for gpu in gpus() {
        for dtype in KINDS {
            for (n_rows, n_tokens) in [(&[70, 33][..], 40), (&[576, 9, 600], 1), (&[33, 65, 31], 6)] {
                let input = Random(7).floats((n_tokens * whole(dtype, 192)) as usize);
                let random = |&n_rows: &u32| Product { input: input.clone(), ..Product::random(dtype, n_rows, 192, n_tokens) };
                let products: Vec<Product> = n_rows.iter().map(random).collect();
                let (mut block, mut params) = (Vec::new(), Vec::new());
                for product in &products {
                    block.resize(block.len().next_multiple_of(matmul::WEIGHT_ALIGNMENT as usize), 0xA5);
                    params.push(matmul::Params { weight_begin: block.len() as u32 / 256, ..product.params });
                    block.extend(&product.weight);
                }
                let [block, input] = [upload(gpu, "weights", &block), upload(gpu, "input", &input)];
                for variant in matmul::all_variants(gpu, &params[0]) {
                    let results: Vec<Buffer> = products.iter().map(|product| poisoned(gpu, product.output_len())).collect();
                    let outputs: Vec<Binding<'_>> = results.iter().map(|result| Binding::whole(result)).collect();
                    let (weight, input) = (Binding::whole(&block), Binding::whole(&input));
                    let together = matmul::Products { params: &params, weight, input, outputs: &outputs };
                    run(gpu, &matmul::padded(&params), |buffer| matmul::prepare_products_as(gpu, buffer, &together, variant));
                    for (index, (product, result)) in products.iter().zip(&results).enumerate() {
                        let (alone, output_alone) = (upload(gpu, "weight", &product.weight), poisoned(gpu, product.output_len()));
                        let bindings = matmul::Bindings { weight: Binding::whole(&alone), input, output: Binding::whole(&output_alone) };
                        run(gpu, &product.params, |buffer| matmul::prepare_as(gpu, buffer, &product.params, bindings, variant));
                        let [found, expected] = [result, &output_alone].map(|buffer| bits(&output(gpu, buffer, product.output_len())));
                        assert_eq!(found, expected, "{variant:?} {dtype}: product {index} of {n_rows:?} × {n_tokens}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_product_that_accumulates_adds_its_bits_to_the_output() {
    for gpu in gpus() {
        for (dtype, n_columns) in [(DType::Q4_0, 96), (DType::Q6K, 256), (DType::F16, 160), (DType::F32, 31)] {
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
