//! A test model as a Hugging Face folder: config, tokenizer, and one or many safetensors files.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use super::encode::Stored;
use super::parts::{PART_VALUES, write_parts};
use super::shape::{Family, LlamaShape, RopeScaling, Tensor};
use super::vocabulary;
use super::weights::Values;

/// Writes the model of `seed` into `folder`, which is made where it is missing. Files appear under their names when they are complete.
pub fn write_hf(folder: &Path, shape: &LlamaShape, seed: u64, stored: Stored, n_shards: usize) -> io::Result<()> {
    write_folder(folder, shape, Content::Values { seed }, stored, n_shards)
}

/// Writes a model without its weights: the files have their full length, and where the file system knows holes they take next to
/// no room. For plans of models of any size.
pub fn write_hf_headers(folder: &Path, shape: &LlamaShape, stored: Stored, n_shards: usize) -> io::Result<()> {
    write_folder(folder, shape, Content::Holes, stored, n_shards)
}

/// What stands behind the headers.
#[derive(Clone, Copy)]
enum Content {
    Values { seed: u64 },
    Holes,
}

fn write_folder(folder: &Path, shape: &LlamaShape, content: Content, stored: Stored, n_shards: usize) -> io::Result<()> {
    shape.check()?;
    fs::create_dir_all(folder)?;
    let shards = share_out(shape.tensors_of_folder(), n_shards.max(1));
    if let [only] = shards.as_slice() {
        write_shard(&folder.join("model.safetensors"), only, content, stored)?;
    } else {
        let mut weight_map = Map::new();
        for (number, tensors) in (1..).zip(&shards) {
            let name = format!("model-{number:05}-of-{:05}.safetensors", shards.len());
            write_shard(&folder.join(&name), tensors, content, stored)?;
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(name))));
        }
        let n_values: usize = shards.iter().flatten().map(Tensor::n_values).sum();
        let index = json!({"metadata": {"total_size": n_values * stored.size_bytes()}, "weight_map": weight_map});
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    write_json(&folder.join("tokenizer.json"), &vocabulary::tokenizer_json())?;
    write_json(&folder.join("tokenizer_config.json"), &vocabulary::tokenizer_config(shape.context_length))?;
    let ids = json!({"bos_token_id": vocabulary::end_of_text(), "eos_token_id": vocabulary::end_of_turn()});
    write_json(&folder.join("generation_config.json"), &ids)?;
    // Last, so that a folder with a config is a whole model.
    write_json(&folder.join("config.json"), &config(shape, stored))
}

fn config(shape: &LlamaShape, stored: Stored) -> Value {
    let (class, model_type) = match shape.family {
        Family::Llama if shape.sliding_window.is_some() => ("MistralForCausalLM", "mistral"),
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Family::Qwen3Moe(_) => ("Qwen3MoeForCausalLM", "qwen3_moe"),
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling.map(|scaling| scaling_json(&scaling)),
        "tie_word_embeddings": shape.tied,
        "bos_token_id": vocabulary::end_of_text(),
        "eos_token_id": vocabulary::end_of_turn(),
        "torch_dtype": stored.torch_name(),
    });
    if let Value::Object(fields) = &mut config {
        if let Family::Qwen3Moe(experts) = shape.family {
            fields.insert("num_experts".into(), json!(experts.n_experts));
            fields.insert("num_experts_per_tok".into(), json!(experts.n_used));
            fields.insert("moe_intermediate_size".into(), json!(experts.ffn_size));
            fields.insert("norm_topk_prob".into(), json!(true));
        }
        if shape.sliding_window.is_some() {
            fields.insert("sliding_window".into(), json!(shape.sliding_window));
        } else if shape.family == Family::Llama {
            fields.insert("attention_bias".into(), json!(shape.attention_bias));
            fields.insert("mlp_bias".into(), json!(shape.mlp_bias));
        }
    }
    config
}

fn scaling_json(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_length } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context_length,
        }),
    }
}

/// Cuts the list into at most `n_shards` runs of about the same number of values.
fn share_out(tensors: Vec<Tensor>, n_shards: usize) -> Vec<Vec<Tensor>> {
    let total: usize = tensors.iter().map(Tensor::n_values).sum();
    let mut shards: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut before = 0;
    for tensor in tensors {
        let full = before * n_shards >= total * shards.len();
        before += tensor.n_values();
        match shards.last_mut() {
            Some(last) if !full || last.is_empty() => last.push(tensor),
            _ => shards.push(vec![tensor]),
        }
    }
    shards
}

fn write_shard(path: &Path, tensors: &[Tensor], content: Content, stored: Stored) -> io::Result<()> {
    let mut infos = Vec::new();
    let mut end = 0;
    for tensor in tensors {
        let begin = end;
        end += tensor.n_values() * stored.size_bytes();
        let info = TensorInfo { dtype: stored.dtype(), shape: tensor.shape.clone(), data_offsets: (begin, end) };
        infos.push((tensor.name.clone(), info));
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let mut header = serde_json::to_vec(&Metadata::new(Some(metadata), infos).map_err(io::Error::other)?)?;
    // Spaces align the data part, as the reference writer does it.
    header.resize(header.len().next_multiple_of(8), b' ');
    write_whole(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        match content {
            Content::Values { seed } => tensors.iter().try_for_each(|tensor| write_values(file, tensor, seed, stored)),
            Content::Holes => Ok(()),
        }
    })?;
    match content {
        Content::Values { .. } => Ok(()),
        Content::Holes => fs::OpenOptions::new().write(true).open(path)?.set_len((8 + header.len() + end) as u64),
    }
}

fn write_values(file: &mut dyn Write, tensor: &Tensor, seed: u64, stored: Stored) -> io::Result<()> {
    let values = Values::new(seed, tensor);
    write_parts(file, tensor.n_values().div_ceil(PART_VALUES), |part| {
        let start = part * PART_VALUES;
        let mut made = vec![0.0; PART_VALUES.min(tensor.n_values() - start)];
        values.fill(start, &mut made);
        let mut bytes = Vec::with_capacity(made.len() * stored.size_bytes());
        stored.encode(&made, &mut bytes);
        bytes
    })
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    write_whole(path, |file| Ok(serde_json::to_writer_pretty(file, value)?))
}

/// Writes beside `path` and renames, so that no half-written file ever has the name.
pub(super) fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(&part)?);
    write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?;
    fs::rename(&part, path)
}
