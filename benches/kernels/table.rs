//! The table of the matrix products, `--json`: every variant that an adapter can run, for every dtype and many shapes, beside what the
//! adapter's memory gives to a plain copy. A JSON object a line, as soon as it is measured, the most telling shapes first.

use serde_json::json;
use tierflow::device::MatMulVariant;
use tierflow::dtype::DType;
use tierflow::error::{Error, Result};
use tierflow::gpu::{Buffer, Dispatch, Gpu, ParamsArena};
use tierflow::kernels::{Binding, matmul};

use super::{buffer, encode_all, submission_secs, weight_bytes};

/// Columns (and rows) of the matrices: those of 8, 1 and 70 billion parameters, and a small model's.
const COLUMNS: [u32; 4] = [4096, 2048, 8192, 576];
/// Vectors of a product: one sequence, a few, and prompts.
const TOKENS: [u32; 5] = [1, 512, 4, 16, 64];
/// Where the matrices lie.
const POOL_BYTES: u64 = 256 << 20;
/// Products of few tokens read more than this in turns, which no cache holds.
const CACHE_BYTES: u64 = 128 << 20;
/// Seconds of one run, of which the best counts.
const RUN_SECS: f64 = 0.005;

/// Which part of the table is asked for.
pub struct Shapes {
    columns: Vec<u32>,
    tokens: Vec<u32>,
    /// Empty for all: in every shape those that devices are measured in, then the others in the first.
    dtypes: Vec<DType>,
}

impl Shapes {
    /// All of the table.
    pub fn all() -> Shapes {
        Shapes { columns: COLUMNS.into(), tokens: TOKENS.into(), dtypes: Vec::new() }
    }

    /// Takes one of the options that ask for less: `--columns`, `--tokens`, or `--dtypes`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the list holds something else than the option takes.
    pub fn take(&mut self, option: &str, list: &str) -> Result<()> {
        let refused = |word: &str, wanted: &str| Error::InvalidArgument {
            option: option.to_owned().into(),
            reason: format!("`{word}` is no {wanted}; write a list as in 1,4"),
        };
        let numbers = || list.split(',').map(|word| word.parse().map_err(|_| refused(word, "number"))).collect::<Result<Vec<u32>>>();
        let dtype = |word: &str| DType::ALL.into_iter().find(|dtype| dtype.to_string().eq_ignore_ascii_case(word));
        match option {
            "--columns" => self.columns = numbers()?,
            "--tokens" => self.tokens = numbers()?,
            _ => {
                let dtypes = list.split(',').map(|word| dtype(word).ok_or_else(|| refused(word, "dtype of weights")));
                self.dtypes = dtypes.collect::<Result<_>>()?;
            }
        }
        Ok(())
    }

    /// Matrices and numbers of tokens, in the order in which they are measured.
    fn products(&self) -> Vec<matmul::Params> {
        let product = |dtype, n_columns, n_tokens| matmul::Params::new(dtype, n_columns, n_columns, n_tokens);
        let mut products = Vec::new();
        let (main, others) = match self.dtypes.as_slice() {
            [] => DType::ALL.into_iter().partition(|dtype| dtype.measured_as() == *dtype),
            asked => (asked.to_vec(), Vec::new()),
        };
        for &n_columns in &self.columns {
            for &n_tokens in &self.tokens {
                products.extend(main.iter().map(|&dtype| product(dtype, n_columns, n_tokens)));
            }
        }
        for &n_tokens in self.tokens.iter().take(2) {
            products.extend(others.iter().flat_map(|&dtype| self.columns.first().map(|&n_columns| product(dtype, n_columns, n_tokens))));
        }
        // The rows of some dtypes are whole large blocks.
        products.retain(|params| params.row_bytes().is_some());
        products
    }
}

/// Measures and prints.
///
/// # Errors
/// Those of the adapter.
pub fn print(gpu: &Gpu, shapes: &Shapes) -> Result<()> {
    println!("{}", json!({ "what": "adapter", "device": gpu.spec.device, "name": gpu.spec.name, "driver": gpu.spec.driver }));
    let table = Table::new(gpu)?;
    println!("{}", json!({ "what": "copy", "bytes": table.weights.size(), "read_and_written_gb_per_s": table.copy_rate()? / 1e9 }));
    let products = shapes.products();
    for params in &products {
        table.print_products(params, matmul::variants(gpu, params))?;
    }
    // What a search on this adapter looks at, in two dtypes: the neighbours of the first shapes.
    let is_searched = |params: &&matmul::Params| {
        Some(&params.n_columns) == shapes.columns.first() && matches!(params.dtype(), Some(DType::F16 | DType::Q4_0))
    };
    for params in products.iter().filter(is_searched).filter(|params| matches!(params.n_tokens, 1 | 512)) {
        table.print_products(params, matmul::variants(gpu, params).into_iter().flat_map(MatMulVariant::neighbours).collect())?;
    }
    Ok(())
}

fn row(params: &matmul::Params, variant: MatMulVariant, secs: f64) -> serde_json::Value {
    let operations = 2.0 * f64::from(params.n_rows) * f64::from(params.n_columns) * f64::from(params.n_tokens);
    json!({
        "what": "product",
        "dtype": params.dtype(),
        "variant": variant,
        "n_rows": params.n_rows,
        "n_columns": params.n_columns,
        "n_tokens": params.n_tokens,
        "secs": secs,
        "gb_per_s": weight_bytes(params) as f64 / secs / 1e9,
        "gflop_per_s": operations / secs / 1e9,
    })
}

/// The buffers of all products, which are made once.
struct Table<'a> {
    gpu: &'a Gpu,
    weights: Buffer,
    copied: Buffer,
    input: Buffer,
    output: Buffer,
}

impl Table<'_> {
    fn new(gpu: &Gpu) -> Result<Table<'_>> {
        let pool_bytes = POOL_BYTES.min(gpu.limits.max_buffer_bytes.0) / 256 * 256;
        let values_bytes = u64::from(TOKENS.into_iter().max().unwrap_or(1) * COLUMNS.into_iter().max().unwrap_or(1)) * 4;
        let [weights, copied, input, output] = [pool_bytes, pool_bytes, values_bytes, values_bytes].map(|bytes| buffer(gpu, bytes));
        Ok(Table { gpu, weights: weights?, copied: copied?, input: input?, output: output? })
    }

    /// Measures a product in each of `variants` and prints what was found.
    fn print_products(&self, params: &matmul::Params, variants: Vec<MatMulVariant>) -> Result<()> {
        for variant in variants {
            if let Some(secs) = self.product_secs(params, variant)? {
                println!("{}", row(params, variant, secs));
            }
        }
        Ok(())
    }

    /// Bytes per second that a copy on the adapter reads and writes together.
    fn copy_rate(&self) -> Result<f64> {
        let secs = submission_secs(self.gpu, RUN_SECS, |encoder, repeats| {
            for _ in 0..repeats {
                encoder.copy_buffer_to_buffer(&self.weights, 0, &self.copied, 0, self.weights.size());
            }
        })?;
        Ok(2.0 * self.weights.size() as f64 / secs)
    }

    /// Seconds of a product; `None` where it is larger than the buffers or one binding.
    fn product_secs(&self, params: &matmul::Params, variant: MatMulVariant) -> Result<Option<f64>> {
        let gpu = self.gpu;
        let size = weight_bytes(params).next_multiple_of(matmul::WEIGHT_ALIGNMENT);
        let values = [params.n_columns, params.n_rows].map(|n_values| u64::from(params.n_tokens) * u64::from(n_values) * 4);
        let fits =
            size <= self.weights.size().min(gpu.limits.max_binding_bytes.0) && values.iter().all(|&bytes| bytes <= self.input.size());
        if !fits {
            return Ok(None);
        }
        // Of few tokens as many matrices are taken in turns as no cache holds: a model's are.
        let n_matrices =
            if params.n_tokens > matmul::MAX_DECODE_TOKENS { 1 } else { (CACHE_BYTES / size).clamp(1, self.weights.size() / size) };
        let mut arena = pollster::block_on(ParamsArena::new(gpu, 1))?;
        arena.push(gpu, params)?;
        let dispatch = |index: u64| {
            let weight = Binding::part(&self.weights, index * size, size);
            let bindings = matmul::Bindings {
                weight,
                input: Binding::part(&self.input, 0, values[0]),
                output: Binding::part(&self.output, 0, values[1]),
            };
            matmul::prepare_as(gpu, arena.buffer(), params, bindings, variant)
        };
        let dispatches: Vec<Dispatch> = (0..n_matrices).map(dispatch).collect::<Result<_>>()?;
        arena.upload(gpu);
        let secs = submission_secs(gpu, RUN_SECS, |encoder, repeats| encode_all(encoder, &dispatches, repeats))?;
        Ok(Some(secs / n_matrices as f64))
    }
}
