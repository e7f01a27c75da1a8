//! Attacks on Hugging Face folders: each row breaks one file of a valid small model.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tierflow::model::{Checkpoint, Model};
use tierflow::platform::IoMode;
use xtask::models::{LlamaShape, Stored, write_hf};

use super::must_refuse;

const SHARD: &str = "model-00001-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A safetensors file of a header and as many zeros as data.
pub fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data_bytes]].concat()
}

fn put(folder: &Path, header: &str, data_bytes: usize) {
    fs::write(folder.join("model.safetensors"), safetensors(header, data_bytes)).unwrap();
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

fn config(folder: &Path, key: &str, value: Value) {
    edit(folder, "config.json", |config| config[key] = value);
}

/// Says that every tensor is in `shard`.
fn index_names(folder: &Path, shard: &str) {
    let index = json!({"weight_map": {"model.norm.weight": shard}});
    fs::write(folder.join(INDEX), serde_json::to_vec(&index).unwrap()).unwrap();
}

/// Makes the config that of a mixture of four experts, two of a token, and sets `key`.
fn mixture(folder: &Path, key: &str, value: Value) {
    edit(folder, "config.json", |config| {
        for (key, value) in [
            ("architectures", json!(["Qwen3MoeForCausalLM"])),
            ("model_type", json!("qwen3_moe")),
            ("hidden_size", json!(64)),
            ("head_dim", json!(16)),
            ("num_experts", json!(4)),
            ("num_experts_per_tok", json!(2)),
            ("moe_intermediate_size", json!(8)),
            (key, value),
        ] {
            config[key] = value;
        }
    });
}

/// Weights of nothing but gate projections of experts of these shapes.
fn put_experts(folder: &Path, shapes: &[&str]) {
    let mut end = 0;
    let entries = shapes.iter().enumerate().map(|(expert, shape)| {
        let [rows, columns] = serde_json::from_str::<[usize; 2]>(shape).unwrap();
        let begin = end;
        end += rows * columns * 4;
        let name = format!("model.layers.0.mlp.experts.{expert}.gate_proj.weight");
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    put(folder, &header, end);
}

/// Makes the config that of gpt-oss with a hidden size and four experts of 8 values, and its weights gate and up projections of the first
/// layer's experts in MXFP4, of these shapes.
fn put_mxfp4(folder: &Path, hidden_size: usize, parts: &[(&str, &str)]) {
    mixture(folder, "hidden_size", json!(hidden_size));
    config(folder, "architectures", json!(["GptOssForCausalLM"]));
    config(folder, "model_type", json!("gpt_oss"));
    config(folder, "quantization_config", json!({"quant_method": "mxfp4"}));
    let mut end = 0;
    let entries = parts.iter().map(|(kind, shape)| {
        let begin = end;
        end += serde_json::from_str::<Vec<usize>>(shape).unwrap().iter().product::<usize>();
        let name = format!("model.layers.0.mlp.experts.gate_up_proj_{kind}");
        format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    put(folder, &header, end);
}

type Attack = (&'static str, &'static str, &'static str, fn(&Path));

const ONE: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// Rows for a model of one file: name, file that the error must name, words of the error, and what is broken.
const ATTACKS: &[Attack] = &[
    ("empty file", ONE, "is empty", |f| fs::write(f.join(ONE), []).unwrap()),
    ("seven bytes", ONE, "at least 8", |f| fs::write(f.join(ONE), [1; 7]).unwrap()),
    ("header length 2^64-1", ONE, "claims a header", |f| fs::write(f.join(ONE), [0xFF; 64]).unwrap()),
    ("header length 100 MB + 1", ONE, "100000001", |f| fs::write(f.join(ONE), 100_000_001u64.to_le_bytes()).unwrap()),
    ("header beyond end", ONE, "file ends at 16", |f| fs::write(f.join(ONE), [9, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]).unwrap()),
    ("header empty", ONE, "not valid JSON", |f| put(f, "", 0)),
    ("header no JSON", ONE, "not valid JSON", |f| put(f, "{\"a\":", 0)),
    ("header not UTF-8", ONE, "not valid JSON", |f| fs::write(f.join(ONE), [2, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFE]).unwrap()),
    ("header a list", ONE, "not valid JSON", |f| put(f, "[]", 0)),
    ("header nested deep", ONE, "not valid JSON", |f| put(f, &"[".repeat(100_000), 0)),
    ("metadata nested deep", ONE, "not valid JSON", |f| put(f, &format!("{{\"__metadata__\":{}", "[".repeat(100_000)), 0)),
    ("trailing JSON", ONE, "not valid JSON", |f| put(f, "{}{}", 0)),
    ("field missing", ONE, "shape", |f| put(f, r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 4)),
    ("field twice", ONE, "duplicate", |f| put(f, r#"{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#, 4)),
    ("name twice", ONE, "duplicate name `a`", |f| {
        put(f, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8);
    }),
    ("dtype unknown", ONE, "`F33`", |f| put(f, r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4)),
    ("shape negative", ONE, "tensor `a`", |f| put(f, r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4)),
    ("shape fractional", ONE, "tensor `a`", |f| put(f, r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4)),
    ("dimension 2^40", ONE, "absurd shape", |f| put(f, r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}"#, 4)),
    ("product overflows to 1", ONE, "absurd shape", |f| {
        put(f, r#"{"a":{"dtype":"F32","shape":[6700417,641,4294967296],"data_offsets":[0,4]}}"#, 4);
    }),
    ("overflow beside zero", ONE, "absurd shape", |f| {
        put(f, r#"{"a":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615,0],"data_offsets":[0,0]}}"#, 0);
    }),
    ("thousand dimensions", ONE, "dimensions", |f| {
        put(f, &format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(999)), 4);
    }),
    ("offset negative", ONE, "tensor `a`", |f| put(f, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,-4]}}"#, 4)),
    ("end before begin", ONE, "tensor `a`", |f| put(f, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4)),
    ("offsets too short", ONE, "take 8 bytes", |f| put(f, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4)),
    ("overlap", ONE, "overlaps", |f| {
        put(f, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12);
    }),
    ("hole", ONE, "leaves a hole", |f| {
        put(f, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#, 12);
    }),
    ("offsets 2^64-1", ONE, "tensor `a`", |f| {
        put(f, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,18446744073709551615]}}"#, 4);
    }),
    ("bytes behind the data", ONE, "holds 9 bytes", |f| put(f, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 9)),
    ("data truncated", ONE, "of tensor data", |f| {
        let bytes = fs::read(f.join(ONE)).unwrap();
        fs::write(f.join(ONE), &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("half a byte", ONE, "whole number of bytes", |f| put(f, r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}"#, 1)),
    ("weights a folder", ONE, "is a folder", |f| {
        fs::remove_file(f.join(ONE)).unwrap();
        fs::create_dir(f.join(ONE)).unwrap();
    }),
    ("no weights", "broken", "no *.safetensors", |f| fs::remove_file(f.join(ONE)).unwrap()),
    ("two files, no index", "broken", "2 safetensors files", |f| {
        fs::copy(f.join(ONE), f.join("a.safetensors")).unwrap();
        fs::rename(f.join(ONE), f.join("b.safetensors")).unwrap();
    }),
    ("config missing", "broken", "no config.json", |f| fs::remove_file(f.join(CONFIG)).unwrap()),
    ("config empty", CONFIG, "is empty", |f| fs::write(f.join(CONFIG), "").unwrap()),
    ("config no JSON", CONFIG, "not valid JSON", |f| fs::write(f.join(CONFIG), "{\"hidden_size\": 64,").unwrap()),
    ("config a list", CONFIG, "not a JSON object", |f| fs::write(f.join(CONFIG), "[]").unwrap()),
    ("config nested deep", CONFIG, "not valid JSON", |f| fs::write(f.join(CONFIG), "[".repeat(500_000)).unwrap()),
    ("config huge", CONFIG, "more than the 1048576", |f| fs::write(f.join(CONFIG), " ".repeat(2 << 20)).unwrap()),
    ("config NaN", CONFIG, "vocab_size", |f| {
        fs::write(f.join(CONFIG), r#"{"model_type":"llama","unused":NaN,"num_attention_heads":1,"hidden_size":8}"#).unwrap()
    }),
    ("model_type unknown", CONFIG, "`t5`", |f| config(f, "model_type", json!("t5"))),
    ("architecture unknown", CONFIG, "`FalconForCausalLM`", |f| config(f, "architectures", json!(["FalconForCausalLM"]))),
    ("architectures a number", CONFIG, "architectures", |f| config(f, "architectures", json!(7))),
    ("layer types against tensors", "broken", "self_attn.q_proj", |f| {
        edit(f, CONFIG, |config| {
            let n_layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
            config["model_type"] = json!("qwen3_5_text");
            config["architectures"] = json!(["Qwen3_5ForCausalLM"]);
            config["layer_types"] = json!(vec!["linear_attention"; n_layers]);
        });
    }),
    ("tokens that see both sides", CONFIG, "`use_bidirectional_attention` is \"vision\", it must be true or false", |f| {
        config(f, "use_bidirectional_attention", json!("vision"));
        config(f, "architectures", Value::Null);
        config(f, "model_type", json!("gemma3_text"));
    }),
    ("text_config a list", CONFIG, "`gemma3`", |f| {
        config(f, "text_config", json!([1]));
        config(f, "architectures", Value::Null);
        config(f, "model_type", json!("gemma3"));
    }),
    ("activation", CONFIG, "`mish`", |f| config(f, "hidden_act", json!("mish"))),
    ("quantised", CONFIG, "`awq`", |f| config(f, "quantization_config", json!({"quant_method": "awq"}))),
    ("hidden_size missing", CONFIG, "`hidden_size` is missing", |f| config(f, "hidden_size", Value::Null)),
    ("hidden_size negative", CONFIG, "`hidden_size` is -64", |f| config(f, "hidden_size", json!(-64))),
    ("hidden_size text", CONFIG, "`hidden_size`", |f| config(f, "hidden_size", json!("64"))),
    ("hidden_size 2^40", CONFIG, "hidden size", |f| config(f, "hidden_size", json!(1u64 << 40))),
    ("layers 0", CONFIG, "number of layers is 0", |f| config(f, "num_hidden_layers", json!(0))),
    ("layers 2^63", CONFIG, "number of layers", |f| config(f, "num_hidden_layers", json!(1u64 << 63))),
    ("heads 0", CONFIG, "heads is 0", |f| config(f, "num_attention_heads", json!(0))),
    ("kv heads 0", CONFIG, "key and value heads is 0", |f| config(f, "num_key_value_heads", json!(0))),
    ("kv heads 3", CONFIG, "cannot share", |f| config(f, "num_key_value_heads", json!(3))),
    ("head_dim odd", CONFIG, "must be even", |f| config(f, "head_dim", json!(15))),
    ("vocab 2^60", CONFIG, "vocabulary size", |f| config(f, "vocab_size", json!(1u64 << 60))),
    ("context 0", CONFIG, "context length is 0", |f| config(f, "max_position_embeddings", json!(0))),
    ("epsilon 0", CONFIG, "epsilon", |f| config(f, "rms_norm_eps", json!(0))),
    ("theta negative", CONFIG, "rotary", |f| config(f, "rope_theta", json!(-1.0))),
    ("rope type unknown", CONFIG, "`ntk`", |f| config(f, "rope_scaling", json!({"type": "ntk"}))),
    ("rope factors missing", CONFIG, "`short_factor`", |f| config(f, "rope_scaling", json!({"type": "longrope"}))),
    ("rope factor missing", CONFIG, "`factor`", |f| config(f, "rope_parameters", json!({"rope_type": "linear"}))),
    ("rope scaling a number", CONFIG, "`rope_scaling`", |f| config(f, "rope_scaling", json!(2))),
    ("experts 0", CONFIG, "number of experts is 0", |f| mixture(f, "num_experts", json!(0))),
    ("experts 2^40", CONFIG, "number of experts is 1099511627776", |f| mixture(f, "num_experts", json!(1u64 << 40))),
    ("experts of a token above all", CONFIG, "experts of a token is 5", |f| mixture(f, "num_experts_per_tok", json!(5))),
    ("experts absurdly wide", CONFIG, "absurdly wide", |f| mixture(f, "moe_intermediate_size", json!(1 << 24))),
    ("layers with experts every 0", CONFIG, "`decoder_sparse_step` is 0", |f| mixture(f, "decoder_sparse_step", json!(0))),
    ("layers of experts 2^62", CONFIG, "number of layers", |f| mixture(f, "num_hidden_layers", json!(1u64 << 62))),
    ("experts without tensors", "broken", "experts.0.gate_proj.weight` is missing", |f| mixture(f, "num_experts", json!(2))),
    ("more experts than the config says", "broken", "its config says 2 experts", |f| {
        mixture(f, "num_experts", json!(2));
        put_experts(f, &["[8,64]", "[8,64]", "[8,64]"]);
    }),
    ("an expert of another shape", "broken", "shape [9, 64]", |f| {
        mixture(f, "num_experts", json!(2));
        put_experts(f, &["[8,64]", "[9,64]"]);
    }),
    ("MXFP4 without scales", "broken", "experts.gate_up_proj_scales` is missing", |f| put_mxfp4(f, 64, &[("blocks", "[4,16,2,16]")])),
    ("MXFP4 with other scales", "broken", "shape [4, 16, 3]", |f| {
        put_mxfp4(f, 64, &[("blocks", "[4,16,2,16]"), ("scales", "[4,16,3]")]);
    }),
    ("MXFP4 of other experts", "broken", "shape [5, 16, 2, 16]", |f| {
        put_mxfp4(f, 64, &[("blocks", "[5,16,2,16]"), ("scales", "[5,16,2]")]);
    }),
    ("MXFP4 of rows that are no whole blocks", "broken", "rows of 40 values", |f| {
        put_mxfp4(f, 40, &[("blocks", "[4,16,1,16]"), ("scales", "[4,16,1]")]);
    }),
    ("clamped otherwise", CONFIG, "swiglu_limit 6 is not supported", |f| {
        put_mxfp4(f, 64, &[]);
        config(f, "swiglu_limit", json!(6.0));
    }),
    ("window 0", CONFIG, "sliding window is 0", |f| {
        config(f, "architectures", json!(["MistralForCausalLM"]));
        config(f, "model_type", json!("mistral"));
        config(f, "sliding_window", json!(0));
    }),
    ("index no JSON", INDEX, "not a valid safetensors index", |f| fs::write(f.join(INDEX), "{").unwrap()),
    ("index without map", INDEX, "weight_map", |f| fs::write(f.join(INDEX), "{}").unwrap()),
    ("index with empty map", INDEX, "weight_map is empty", |f| fs::write(f.join(INDEX), r#"{"weight_map":{}}"#).unwrap()),
    ("index name twice", INDEX, "duplicate name `a`", |f| {
        fs::write(f.join(INDEX), r#"{"weight_map":{"a":"model.safetensors","a":"model.safetensors"}}"#).unwrap();
    }),
    ("shard missing", INDEX, "`gone.safetensors`, which is missing", |f| {
        index_names(f, "gone.safetensors");
        fs::remove_file(f.join(ONE)).unwrap();
    }),
    ("shard above", INDEX, "not a plain file name", |f| index_names(f, "../broken/model.safetensors")),
    ("shard below", INDEX, "not a plain file name", |f| index_names(f, "sub/model.safetensors")),
    ("shard absolute", INDEX, "not a plain file name", |f| index_names(f, f.join(ONE).to_str().unwrap())),
    ("shard with backslash", INDEX, "not a plain file name", |f| index_names(f, "..\\model.safetensors")),
    ("shard on a drive", INDEX, "not a plain file name", |f| index_names(f, "C:model.safetensors")),
    ("shard dots", INDEX, "not a plain file name", |f| index_names(f, "..")),
    ("shard unnamed", INDEX, "not a plain file name", |f| index_names(f, "")),
    ("shard not a string", INDEX, "not a valid safetensors index", |f| fs::write(f.join(INDEX), r#"{"weight_map":{"a":1}}"#).unwrap()),
];

fn model(folder: &Path, n_shards: usize) {
    let shape = LlamaShape { n_layers: 1, ..LlamaShape::tiny() };
    write_hf(folder, &shape, 1, Stored::BF16, n_shards).unwrap();
}

fn run(rows: &[Attack], n_shards: usize) {
    let mut failures = Vec::new();
    for (row, file, reason, attack) in rows {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("broken");
        model(&folder, n_shards);
        attack(&folder);
        must_refuse(row, &folder, file, reason, &mut failures);
    }
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), rows.len(), failures.join("\n"));
}

#[test]
fn every_attack_is_refused_by_name() {
    run(ATTACKS, 1);
}

#[test]
fn every_attack_on_shards_is_refused_by_name() {
    let rows: &[Attack] = &[
        ("shard deleted", INDEX, "which is missing", |f| fs::remove_file(f.join(SHARD)).unwrap()),
        ("shard empty", SHARD, "is empty", |f| fs::write(f.join(SHARD), "").unwrap()),
        ("tensor in two shards", "00002", "in another shard as well", |f| {
            let header = r#"{"extra":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
            for shard in [SHARD, "model-00002-of-00002.safetensors"] {
                fs::write(f.join(shard), safetensors(header, 4)).unwrap();
            }
        }),
        ("shard a pointer of Git LFS", SHARD, "git lfs pull", |f| fs::write(f.join(SHARD), POINTER).unwrap()),
        ("shard cut", SHARD, "is cut short", |f| {
            let bytes = fs::read(f.join(SHARD)).unwrap();
            fs::write(f.join(SHARD), &bytes[..bytes.len() - 3]).unwrap();
        }),
        #[cfg(unix)]
        ("shard a dangling link", INDEX, "which is missing", |f| {
            fs::remove_file(f.join(SHARD)).unwrap();
            std::os::unix::fs::symlink("nothing", f.join(SHARD)).unwrap();
        }),
    ];
    run(rows, 2);
}

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

/// Tensors are where the headers of the files say, whatever an index says.
#[test]
fn an_index_that_is_wrong_or_stale_stops_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    let opens = |what: &str| {
        let checkpoint = Checkpoint::open(&folder, IoMode::Pread).unwrap_or_else(|error| panic!("{what}: {error}"));
        (Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape)).unwrap(), checkpoint.catalog.shards.len())
    };
    model(&folder, 2);
    assert_eq!(opens("as written").1, 2);
    let other = folder.join("model-00002-of-00002.safetensors");
    fs::rename(folder.join(SHARD), folder.join("spare")).unwrap();
    fs::rename(&other, folder.join(SHARD)).unwrap();
    fs::rename(folder.join("spare"), &other).unwrap();
    assert_eq!(opens("shards swapped").1, 2);
    edit(&folder, INDEX, |index| index["weight_map"]["rotary.inv_freq"] = json!(SHARD));
    assert_eq!(opens("a tensor that nobody needs and no file has").1, 2);
    #[cfg(unix)]
    {
        fs::rename(&other, root.path().join("outside.safetensors")).unwrap();
        std::os::unix::fs::symlink("../outside.safetensors", &other).unwrap();
        assert_eq!(opens("a link to elsewhere").1, 2);
    }
    // A whole file beside an index whose shards are gone.
    let whole = root.path().join("whole");
    model(&whole, 1);
    fs::copy(whole.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    fs::remove_file(folder.join(SHARD)).unwrap();
    assert_eq!(opens("a stale index").1, 1);
}

/// A hub cache keeps its files as links from `snapshots/REVISION` into `blobs`.
#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hub_cache_opens() {
    let root = tempfile::tempdir().unwrap();
    let snapshot = root.path().join("models--some--model/snapshots/0123abc");
    let blobs = root.path().join("models--some--model/blobs");
    model(&snapshot, 2);
    fs::create_dir(&blobs).unwrap();
    for entry in fs::read_dir(&snapshot).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_owned();
        fs::rename(&path, blobs.join(&name)).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&name), &path).unwrap();
    }
    let checkpoint = Checkpoint::open(&snapshot, IoMode::Mmap).unwrap();
    assert_eq!((checkpoint.catalog.shards.len(), checkpoint.config.name.as_str()), (2, "some/model"));
}

#[test]
fn paths_that_are_no_model_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    must_refuse("missing", &root.path().join("nowhere"), "nowhere", "cannot open", &mut failures);
    must_refuse("empty folder", root.path(), root.path().to_str().unwrap(), "no config.json", &mut failures);
    let stray = root.path().join("notes.txt");
    fs::write(&stray, "hello").unwrap();
    must_refuse("text file", &stray, "notes.txt", "neither", &mut failures);
    for name in ["a.gguf", "b.gguf"] {
        fs::write(root.path().join(name), "GGUF").unwrap();
    }
    must_refuse("four bytes", &root.path().join("a.gguf"), "a.gguf", "version", &mut failures);
    must_refuse("several", root.path(), "a.gguf", "several", &mut failures);
    #[cfg(unix)]
    {
        let fifo = root.path().join("fifo.gguf");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        must_refuse("FIFO", &fifo, "fifo.gguf", "pipe", &mut failures);
        must_refuse("/dev/zero", Path::new("/dev/zero"), "/dev/zero", "device", &mut failures);
        let link = root.path().join("link.gguf");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        must_refuse("link to /dev/zero", &link, "link.gguf", "device", &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
