//! Seeded test models of the Llama family, as a Hugging Face folder or a GGUF file. Knows nothing of tierflow, so that it can check it.
//!
//! The weights are a function of seed, tensor and index alone: both formats, all dtypes and any number of shards hold the same model
//! (rounded to the dtype), and a model of any size is written by all cores without being held in memory.

mod encode;
mod gguf;
mod hugging_face;
mod parts;
mod shape;
mod vocabulary;
mod weights;

use std::path::{Path, PathBuf};

pub use encode::{GgufType, Stored};
pub use gguf::{Dtypes, write_gguf, write_mixed_gguf, write_split_gguf};
pub use hugging_face::{write_hf, write_hf_headers};
pub use shape::{Family, LlamaShape, RopeScaling, TestExperts};

/// `make-model DIR [--preset tiny|20m|1b|8b|moe|moe-3b|qwen3-30b-a3b] [--dtype f32|f16|bf16|q8_0|q4_0|q4_1|q6_k] [--head-dtype …] [--seed N] [--shards N] [--gguf|--headers-only]`.
/// With `--gguf`, DIR may be the file's name; else the file is `DIR/model.gguf`. Quantised dtypes exist in GGUF only,
/// and so does a dtype of its own for the head.
/// With `--headers-only` the weights are left out: enough for a plan.
pub fn make_model(args: &[String]) -> Result<(), String> {
    let options = Options::parse(args)?;
    let shape = match options.preset.as_str() {
        "tiny" => LlamaShape::tiny(),
        "20m" => LlamaShape::twenty_million(),
        "1b" => LlamaShape::one_billion(),
        "8b" => LlamaShape::eight_billion(),
        "moe" => LlamaShape::small_experts(),
        "moe-3b" => LlamaShape::three_billion_experts(),
        "qwen3-30b-a3b" => LlamaShape::qwen3_30b_a3b(),
        other => return Err(format!("--preset {other} is not known; write tiny, 20m, 1b, 8b, moe, moe-3b or qwen3-30b-a3b")),
    };
    let written = if options.headers_only {
        let dtype = options.dtype.parse::<Stored>()?;
        write_hf_headers(&options.target, &shape, dtype, options.n_shards).map(|()| options.target.clone())
    } else if options.gguf {
        let is_file = options.target.extension().is_some_and(|extension| extension == "gguf");
        let file = if is_file { options.target.clone() } else { options.target.join("model.gguf") };
        let dtype = options.dtype.parse::<GgufType>()?;
        let head = options.head_dtype.as_deref().map_or(Ok(dtype), str::parse::<GgufType>)?;
        write_mixed_gguf(&file, &shape, options.seed, Dtypes { layers: dtype, head }).map(|()| file)
    } else {
        let dtype = options.dtype.parse::<Stored>()?;
        write_hf(&options.target, &shape, options.seed, dtype, options.n_shards).map(|()| options.target.clone())
    };
    let path = written.map_err(|error| format!("cannot write {}: {error}", options.target.display()))?;
    println!("{}", path.display());
    Ok(())
}

struct Options {
    target: PathBuf,
    preset: String,
    dtype: String,
    head_dtype: Option<String>,
    seed: u64,
    n_shards: usize,
    gguf: bool,
    headers_only: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Options, String> {
        const USAGE: &str = "usage: make-model DIR [--preset tiny|20m|1b|8b|moe|moe-3b|qwen3-30b-a3b] [--dtype f32|f16|bf16|q8_0|q4_0|q4_1|q6_k] [--head-dtype …] [--seed N] [--shards N] [--gguf|--headers-only]";
        let mut target = None;
        let mut options = Options {
            target: PathBuf::new(),
            preset: "tiny".into(),
            dtype: "bf16".into(),
            head_dtype: None,
            seed: 1,
            n_shards: 1,
            gguf: false,
            headers_only: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} lacks its value; {USAGE}"));
            let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{arg} {text} is no number"));
            match arg.as_str() {
                "--preset" => options.preset = value()?.clone(),
                "--dtype" => options.dtype = value()?.to_ascii_lowercase(),
                "--head-dtype" => options.head_dtype = Some(value()?.to_ascii_lowercase()),
                "--seed" => options.seed = number(value()?)?,
                "--shards" => options.n_shards = usize::try_from(number(value()?)?).map_err(|error| error.to_string())?,
                "--gguf" => options.gguf = true,
                "--headers-only" => options.headers_only = true,
                other if other.starts_with('-') || target.is_some() => return Err(format!("`{other}` is not known; {USAGE}")),
                other => target = Some(Path::new(other).to_owned()),
            }
        }
        if options.head_dtype.is_some() && !options.gguf {
            return Err("--head-dtype is for GGUF files; add --gguf".into());
        }
        if options.gguf && options.headers_only {
            return Err("--headers-only writes a folder with safetensors; leave --gguf out".into());
        }
        options.target = target.ok_or(USAGE)?;
        Ok(options)
    }
}
