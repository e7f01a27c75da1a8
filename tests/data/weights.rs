//! Checkpoints from the outside: both formats of one seeded model hold the same values, however they are read.

use std::path::{Path, PathBuf};

use tierflow::dtype::DType;
use tierflow::error::Error;
use tierflow::model::{Checkpoint, Format, ModelConfig, RopePairing, RopeScaling};
use tierflow::platform::IoMode;
use tierflow::weights::TensorId;
use xtask::models::{GgufType, LlamaShape, RopeScaling as ShapeScaling, Stored, write_gguf, write_hf, write_split_gguf};

const SEED: u64 = 11;

fn folder_model(root: &Path, shape: &LlamaShape, stored: Stored, n_shards: usize) -> Checkpoint {
    let folder = root.join(format!("hf-{stored:?}-{n_shards}"));
    write_hf(&folder, shape, SEED, stored, n_shards).unwrap();
    Checkpoint::open(&folder, IoMode::Pread).unwrap()
}

fn gguf_model(root: &Path, shape: &LlamaShape, dtype: GgufType) -> Checkpoint {
    let file = root.join(format!("{dtype:?}.gguf"));
    write_gguf(&file, shape, SEED, dtype).unwrap();
    Checkpoint::open(&file, IoMode::Pread).unwrap()
}

fn stored_bytes(checkpoint: &Checkpoint, id: TensorId) -> Vec<u8> {
    let mut bytes = vec![0; checkpoint.catalog[id].size_bytes.0 as usize];
    checkpoint.read(id, 0, &mut bytes).unwrap();
    bytes
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let id = checkpoint.catalog.find(name).unwrap_or_else(|| panic!("{name} is missing"));
    let tensor = &checkpoint.catalog[id];
    let mut values = vec![0.0; tensor.n_values() as usize];
    tensor.dtype.decode(&stored_bytes(checkpoint, id), &mut values);
    values
}

/// Rows of GGUF's queries or keys, which are interleaved, in the order of Hugging Face, which is NeoX.
fn neox_of(interleaved: &[f32], head_size: usize, row_len: usize) -> Vec<f32> {
    let n_rows = interleaved.len() / row_len;
    let rows = (0..n_rows).map(|row| {
        let (head, within) = (row / head_size, row % head_size);
        let half = head_size / 2;
        head * head_size + within % half * 2 + within / half
    });
    rows.flat_map(|row| &interleaved[row * row_len..][..row_len]).copied().collect()
}

fn with_everything() -> LlamaShape {
    LlamaShape { attention_bias: true, mlp_bias: true, ..LlamaShape::tiny() }
}

#[test]
fn both_formats_hold_the_same_values() {
    let root = tempfile::tempdir().unwrap();
    let shape = with_everything();
    let folder = folder_model(root.path(), &shape, Stored::F32, 1);
    let gguf = gguf_model(root.path(), &shape, GgufType::F32);
    assert_eq!(folder.catalog.tensors.len(), gguf.catalog.tensors.len());
    for tensor in &folder.catalog.tensors {
        let mut theirs = values(&gguf, &tensor.name);
        let id = gguf.expect(&tensor.name, &tensor.shape).unwrap();
        assert_eq!(gguf.catalog[id].dtype, DType::F32);
        if tensor.name.contains("q_proj") || tensor.name.contains("k_proj") {
            let row_len = theirs.len() / tensor.shape[0] as usize;
            assert_ne!(theirs, values(&folder, &tensor.name), "{} is permuted in GGUF", tensor.name);
            theirs = neox_of(&theirs, shape.head_size, row_len);
        }
        assert_eq!(theirs, values(&folder, &tensor.name), "{}", tensor.name);
    }
}

#[test]
fn both_formats_say_the_same_config() {
    let root = tempfile::tempdir().unwrap();
    for shape in [
        LlamaShape::tiny(),
        with_everything(),
        LlamaShape { tied: true, rope_theta: 5e5, rope_scaling: Some(ShapeScaling::Linear { factor: 4.0 }), ..LlamaShape::tiny() },
        LlamaShape { sliding_window: Some(96), head_size: 32, ..LlamaShape::tiny() },
    ] {
        let folder = folder_model(root.path(), &shape, Stored::BF16, 1).config;
        let gguf = gguf_model(root.path(), &shape, GgufType::BF16).config;
        assert_eq!((folder.rope.pairs, gguf.rope.pairs), (RopePairing::NeoX, RopePairing::Interleaved));
        // GGUF files call a Mistral a Llama.
        assert_eq!((gguf.family.name, folder.family.name), ("llama", if shape.sliding_window.is_some() { "mistral" } else { "llama" }));
        let mut same = ModelConfig { name: folder.name.clone(), family: folder.family, ..gguf };
        same.rope.pairs = RopePairing::NeoX;
        assert_eq!(same, folder);
        assert_eq!((folder.n_kv_heads, folder.head_size, folder.tied_embeddings), (2, shape.head_size, shape.tied));
        assert_eq!((folder.sliding_window, folder.attention_output_bias), (shape.sliding_window, shape.attention_bias));
    }
}

#[test]
fn llama3_scaling_is_the_same_by_formula_and_by_frequency_factors() {
    let root = tempfile::tempdir().unwrap();
    let scaling = ShapeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context_length: 128 };
    let shape = LlamaShape { rope_theta: 5e5, rope_scaling: Some(scaling), ..LlamaShape::tiny() };
    let folder = folder_model(root.path(), &shape, Stored::F32, 1).config.rope;
    let gguf = gguf_model(root.path(), &shape, GgufType::F32).config.rope;
    assert!(matches!(folder.scaling, RopeScaling::Llama3 { .. }));
    assert!(matches!(&gguf.scaling, RopeScaling::FrequencyFactors { factors } if factors.len() == shape.head_size / 2));
    for (formula, divided) in folder.inverse_frequencies(shape.head_size).iter().zip(gguf.inverse_frequencies(shape.head_size)) {
        assert!((formula - divided).abs() <= formula * 1e-6, "{formula} {divided}");
    }
}

#[test]
fn shards_hold_what_one_file_holds() {
    let root = tempfile::tempdir().unwrap();
    let one = folder_model(root.path(), &LlamaShape::tiny(), Stored::F16, 1);
    let three = folder_model(root.path(), &LlamaShape::tiny(), Stored::F16, 3);
    assert_eq!((one.catalog.shards.len(), three.catalog.shards.len(), three.sources.len()), (1, 3, 3));
    for tensor in &one.catalog.tensors {
        let (a, b) = (one.catalog.find(&tensor.name).unwrap(), three.expect(&tensor.name, &tensor.shape).unwrap());
        assert_eq!(stored_bytes(&one, a), stored_bytes(&three, b), "{}", tensor.name);
    }
    assert_eq!(one.catalog.size_bytes(), three.catalog.size_bytes());
}

#[test]
fn quantised_values_stay_near_the_true_ones() {
    let root = tempfile::tempdir().unwrap();
    let shape = LlamaShape { hidden_size: 256, ffn_size: 512, head_size: 64, n_layers: 1, ..LlamaShape::tiny() };
    let exact = gguf_model(root.path(), &shape, GgufType::F32);
    for (dtype, tolerance) in [
        (GgufType::F16, 1e-3),
        (GgufType::BF16, 8e-3),
        (GgufType::Q8_0, 1e-2),
        (GgufType::Q4_0, 0.15),
        (GgufType::Q4_1, 0.1),
        (GgufType::Q6K, 0.03),
        (GgufType::Q5_0, 0.08),
        (GgufType::Q5_1, 0.05),
        (GgufType::Q4K, 0.1),
        (GgufType::Q5K, 0.05),
        (GgufType::Q3K, 0.3),
        (GgufType::IQ4NL, 0.15),
        (GgufType::IQ4XS, 0.15),
        (GgufType::MXFP4, 0.3),
        (GgufType::Q2K, 0.4),
        (GgufType::TQ1_0, 0.501),
        (GgufType::TQ2_0, 0.501),
    ] {
        let stored = gguf_model(root.path(), &shape, dtype);
        for tensor in &stored.catalog.tensors {
            let truth = values(&exact, &tensor.name);
            let largest = truth.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let worst = truth.iter().zip(values(&stored, &tensor.name)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= largest * tolerance, "{dtype:?} {}: {worst} of {largest}", tensor.name);
            assert!(tensor.shape.len() > 1 || worst == 0.0, "vectors are exact");
        }
    }
}

/// Where several values are chosen at once, or an eighth has no sign of its own, single ones may be far off.
#[test]
fn values_that_are_chosen_from_grids_stay_near_the_true_ones_as_a_rule() {
    let root = tempfile::tempdir().unwrap();
    let shape = LlamaShape { hidden_size: 256, ffn_size: 256, head_size: 64, n_layers: 1, ..LlamaShape::tiny() };
    let exact = gguf_model(root.path(), &shape, GgufType::F32);
    for (dtype, tolerance) in [
        (GgufType::IQ3XXS, 0.28),
        (GgufType::IQ3S, 0.2),
        (GgufType::IQ2XXS, 0.5),
        (GgufType::IQ2XS, 0.43),
        (GgufType::IQ2S, 0.38),
        (GgufType::IQ1S, 0.65),
        (GgufType::IQ1M, 0.6),
    ] {
        let stored = gguf_model(root.path(), &shape, dtype);
        for tensor in stored.catalog.tensors.iter().filter(|tensor| tensor.shape.len() > 1) {
            let truth = values(&exact, &tensor.name);
            let squares: f32 = truth.iter().map(|value| value.powi(2)).sum();
            let errors: f32 = truth.iter().zip(values(&stored, &tensor.name)).map(|(a, b)| (a - b).powi(2)).sum();
            let relative = (errors / squares).sqrt();
            assert!(relative <= tolerance, "{dtype:?} {}: {relative}", tensor.name);
        }
    }
}

/// Writes `model.safetensors` of these tensors, F32 of one value each repeated, with a field in each entry that no version knows.
fn write_tensors(folder: &Path, tensors: &[(&str, &[u64], f32)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, value) in tensors {
        let begin = data.len();
        data.extend((0..shape.iter().product::<u64>()).flat_map(|_| value.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()], "note": "mine"});
        header.insert((*name).into(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// As transformers 5 has it: the head that is stored counts, and where only the head is stored, it is the embedding too.
#[test]
fn a_stored_head_counts_whatever_the_config_says_of_ties() {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 300, "tie_word_embeddings": true,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let open = || Checkpoint::open(folder.path(), IoMode::Pread).unwrap();
    let (embedding, head): (&str, &str) = ("model.embed_tokens.weight", "lm_head.weight");
    let shape: &[u64] = &[300, 8];
    write_tensors(folder.path(), &[(embedding, shape, 1.0), (head, shape, 1.0)]);
    assert!(open().config.tied_embeddings, "the same twice");
    write_tensors(folder.path(), &[(embedding, shape, 1.0), (head, shape, 2.0)]);
    assert!(!open().config.tied_embeddings, "another head");
    write_tensors(folder.path(), &[(head, shape, 3.0)]);
    let only_head = open();
    assert!(only_head.config.tied_embeddings);
    assert_eq!(values(&only_head, embedding), vec![3.0; 2400]);
}

#[test]
fn maps_show_what_reads_read() {
    let root = tempfile::tempdir().unwrap();
    let read = gguf_model(root.path(), &LlamaShape::tiny(), GgufType::Q4_1);
    let mapped = Checkpoint::open(Path::new(&read.path), IoMode::Mmap).unwrap();
    for (id, tensor) in (0..).map(TensorId).zip(&read.catalog.tensors) {
        let size = tensor.size_bytes.0;
        assert!(read.view(id, 0, size).is_none());
        let bytes = stored_bytes(&read, id);
        assert_eq!(mapped.view(id, 0, size).unwrap(), bytes);
        assert_eq!(stored_bytes(&mapped, id), bytes);
        for checkpoint in [&read, &mapped] {
            checkpoint.drop_behind(id, 0, size);
            checkpoint.will_need(id, 0, size);
            let mut tail = vec![0; 4];
            checkpoint.read(id, size - 4, &mut tail).unwrap();
            assert_eq!(tail, bytes[bytes.len() - 4..], "dropped bytes come back");
        }
        assert!(mapped.view(id, 1, size).is_none(), "no view past a tensor");
        assert!(read.read(id, size, &mut [0]).is_err(), "no read past a tensor");
    }
    assert!(read.read(TensorId(u32::MAX), 0, &mut [0]).is_err());
}

#[test]
fn a_folder_opens_by_any_of_its_files() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = folder_model(root.path(), &LlamaShape::tiny(), Stored::BF16, 2);
    assert!(matches!(checkpoint.format, Format::HuggingFace { .. }));
    let folder = Path::new(&checkpoint.path);
    for file in ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"] {
        let same = Checkpoint::open(&folder.join(file), IoMode::Pread).unwrap();
        assert_eq!((&same.catalog, &same.config), (&checkpoint.catalog, &checkpoint.config), "{file}");
    }
    let gguf = gguf_model(root.path(), &LlamaShape::tiny(), GgufType::F32);
    let nameless = root.path().join("blob");
    std::fs::copy(&gguf.path, &nameless).unwrap();
    assert!(matches!(Checkpoint::open(&nameless, IoMode::Pread).unwrap().format, Format::Gguf), "known by its first bytes");
}

#[test]
fn a_split_gguf_opens_by_any_of_its_parts() {
    let root = tempfile::tempdir().unwrap();
    let scaling = ShapeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context_length: 128 };
    let shape = LlamaShape { rope_scaling: Some(scaling), ..LlamaShape::tiny() };
    let whole = gguf_model(root.path(), &shape, GgufType::Q8_0);
    let folder = root.path().join("split");
    let parts = write_split_gguf(&folder, "tiny-q8_0", &shape, SEED, GgufType::Q8_0, 3).unwrap();
    for path in parts.iter().chain([&folder]) {
        let split = Checkpoint::open(path, IoMode::Pread).unwrap();
        assert_eq!((split.catalog.shards.len(), &split.config), (3, &whole.config), "{}", path.display());
        assert_eq!(split.catalog.tensors.len(), whole.catalog.tensors.len());
        for tensor in &split.catalog.tensors {
            assert_eq!(values(&split, &tensor.name), values(&whole, &tensor.name), "{}", tensor.name);
        }
    }
    write_gguf(&folder.join("another.gguf"), &shape, SEED, GgufType::F32).unwrap();
    assert!(Checkpoint::open(&folder, IoMode::Pread).unwrap_err().to_string().contains("several .gguf files"));
    assert!(Checkpoint::open(&parts[1], IoMode::Pread).is_ok());
}

#[test]
fn parts_of_a_split_gguf_that_do_not_belong_together_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let parts = write_split_gguf(root.path(), "m", &LlamaShape::tiny(), SEED, GgufType::Q8_0, 3).unwrap();
    let refusal = |path: &Path| Checkpoint::open(path, IoMode::Pread).unwrap_err().to_string();
    let [first, second, third] = parts.try_into().unwrap();
    let kept = std::fs::read(&third).unwrap();
    std::fs::remove_file(&third).unwrap();
    assert!(refusal(&first).contains("is part 1 of 3 of a split model, and m-00003-of-00003.gguf is not beside it"), "{}", refusal(&first));
    std::fs::copy(&second, &third).unwrap();
    assert!(refusal(&first).contains("is not part 3 of 3"), "{}", refusal(&first));
    assert!(refusal(&third).contains("is part 2 of 3 of a split model, but its name"), "{}", refusal(&third));
    let smaller = LlamaShape { n_layers: 2, ..LlamaShape::tiny() };
    let others = write_split_gguf(&root.path().join("other"), "m", &smaller, SEED, GgufType::Q8_0, 3).unwrap();
    std::fs::copy(&others[2], &third).unwrap();
    let mixed = refusal(&first);
    assert!(mixed.contains("two tensors named") || mixed.contains("tensors together, and they have"), "{mixed}");
    std::fs::write(&third, &kept[..kept.len() / 2]).unwrap();
    assert!(refusal(&second).contains("ends beyond"), "{}", refusal(&second));
    std::fs::write(&third, kept).unwrap();
    assert!(Checkpoint::open(&second, IoMode::Pread).is_ok());
    assert!(refusal(&copied_as(&second, "model.gguf")).contains("call it NAME-00002-of-00003.gguf"));
}

/// A copy of `file` beside it.
fn copied_as(file: &Path, name: &str) -> PathBuf {
    let copy = file.with_file_name(name);
    std::fs::copy(file, &copy).unwrap();
    copy
}

#[test]
fn what_a_model_lacks_is_named() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = folder_model(root.path(), &LlamaShape::tiny(), Stored::BF16, 1);
    let wrong = checkpoint.expect("model.norm.weight", &[65]);
    assert!(matches!(wrong, Err(Error::WrongShape { ref found, .. }) if *found == [64]), "{wrong:?}");
    let missing = checkpoint.expect("model.layers.4.input_layernorm.weight", &[64]);
    assert!(matches!(missing, Err(Error::MissingTensor { ref tensor, .. }) if tensor.contains("layers.4")), "{missing:?}");
    // An FP8 tensor is no error until somebody needs it.
    let header = br#"{"model.norm.weight":{"dtype":"F8_E4M3","shape":[64],"data_offsets":[0,64]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 64]].concat();
    let folder = Path::new(&checkpoint.path);
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    let reason = Checkpoint::open(folder, IoMode::Pread).unwrap().expect("model.norm.weight", &[64]).unwrap_err().to_string();
    assert!(reason.contains("`model.norm.weight` is stored as F8_E4M3"), "{reason}");
}

/// The makers' vocabulary is the same in both formats, and its tokenizer file is one that the `tokenizers` crate takes.
#[test]
fn the_made_tokenizer_works() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder_model(root.path(), &LlamaShape::tiny(), Stored::BF16, 1);
    let tokenizer = tokenizers::Tokenizer::from_file(Path::new(&folder.path).join("tokenizer.json")).unwrap();
    let text = "the cat and\nä 42<|im_end|>";
    let encoding = tokenizer.encode(text, false).unwrap();
    assert_eq!(encoding.get_tokens()[..2], ["the", "Ġc"], "merges are used");
    assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
    let gguf = gguf_model(root.path(), &LlamaShape::tiny(), GgufType::F32);
    let tokens = gguf.metadata.as_ref().unwrap().strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens.len(), 320);
    for (id, token) in encoding.get_ids().iter().zip(encoding.get_tokens()) {
        assert_eq!(&tokens[*id as usize], token);
    }
}

/// The real model, where the environment variable names it.
#[test]
fn smollm2_opens() {
    let Some(path) = std::env::var_os("TIERFLOW_SMOLLM2") else { return };
    let checkpoint = Checkpoint::open(Path::new(&path), IoMode::Pread).unwrap();
    let config = &checkpoint.config;
    assert_eq!((config.n_layers, config.hidden_size, config.ffn_size, config.vocab_size), (30, 576, 1536, 49152));
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_size, config.tied_embeddings), (9, 3, 64, true));
    checkpoint.expect("model.layers.29.mlp.down_proj.weight", &[576, 1536]).unwrap();
    let norm = values(&checkpoint, "model.norm.weight");
    assert!(norm.iter().all(|value| value.is_finite()));
    let metadata = checkpoint.metadata.as_ref().unwrap();
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().map(<[String]>::len), Some(49152));
}
