//! Models that are converted to GGUF: what is written is what llama.cpp's converter would write, and answers as what it was made from.

use std::path::{Path, PathBuf};

use serde_json::json;
use tierflow::convert::{ConvertOptions, Converted, convert};
use tierflow::device::DeviceChoice;
use tierflow::engine::{Engine, TextFiles};
use tierflow::model::{Checkpoint, ModelConfig, RecurrentKind};
use tierflow::platform::IoMode;
use tierflow::stream::{Logits, LogitsRequest};
use tierflow::text::{ChatTemplate, Special, Tokenizer};
use tierflow::{DType, Result};
use xtask::models::{GgufType, LlamaShape, Stored, write_gguf, write_hf};

use crate::families::{self, Golden};

fn converted(model: &Path, out: &Path, file_type: &str) -> Result<Converted> {
    convert(model, out, ConvertOptions { file_type: file_type.parse()?, pure: false }, &mut |_, _| Ok(()))
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, IoMode::Pread).unwrap()
}

fn logits(path: &Path, prompt: &[u32]) -> Vec<f32> {
    let builder = Engine::builder(path).text(TextFiles::Skip).device(DeviceChoice::Cpu).ctx_size(64);
    let mut engine = pollster::block_on(builder.open()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    match pollster::block_on(engine.session().append(prompt, LogitsRequest::All)).unwrap() {
        Logits::All(logits) => logits,
        Logits::Top(_) => panic!("all logits"),
    }
}

/// Greatest difference over the greatest magnitude.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0.0f32, |most, (found, expected)| most.max((found - expected).abs())) / largest
}

/// Names, dtypes, shapes and bytes, in the order of names.
fn tensors(checkpoint: &Checkpoint) -> Vec<(String, DType, Vec<u64>, Vec<u8>)> {
    let read = |tensor: &tierflow::weights::TensorInfo| {
        let mut bytes = vec![0; tensor.size_bytes.0 as usize];
        checkpoint.sources[tensor.shard as usize].read_at(tensor.offset, &mut bytes).unwrap();
        (tensor.name.clone(), tensor.dtype, tensor.shape.clone(), bytes)
    };
    let mut tensors: Vec<_> = checkpoint.catalog.tensors.iter().map(read).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// The golden cases whose configs no GGUF file can hold, and what their refusals name.
const REFUSED: [(&str, &str); 6] = [
    ("bert-one-kind", "activation"),
    ("gemma2-scalar", "attention_scale"),
    ("gemma3-wide", "windowed_layers"),
    ("gpt2-bare", "activation"),
    ("qwen2-window", "windowed_layers"),
    ("smollm3-untied", "rotated_layers"),
];

/// Every family in every way that its goldens have it: as the golden's own GGUF file, which is laid out as llama.cpp's converter does,
/// bit for bit; where there is none, the same answers.
#[test]
fn folders_of_every_family_become_what_llama_cpps_converter_makes_of_them() {
    let root = tempfile::tempdir().unwrap();
    let mut n_alike = 0;
    for (name, golden) in Golden::all() {
        let name = name.as_str();
        golden.write(root.path(), name);
        let (folder, out) = (root.path().join(name), root.path().join(format!("{name}.gguf")));
        let outcome = converted(&folder, &out, &golden.dtype.to_lowercase());
        let config = open(&folder).config;
        let has_delta_rule =
            config.variant.recurrent.as_ref().is_some_and(|recurrent| matches!(recurrent.kind, RecurrentKind::DeltaNet { .. }));
        let is_unwritten = config.variant.sees_both_sides || config.variant.full_heads.is_some();
        if config.family.is_mixture() || has_delta_rule || is_unwritten {
            let reason = outcome.unwrap_err().to_string();
            assert!(reason.contains("are not converted") && !out.exists(), "{name}: {reason}");
            continue;
        }
        if let Some((_, named)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let reason = outcome.unwrap_err().to_string();
            assert!(reason.contains("cannot say") && reason.contains(named) && !out.exists(), "{name}: {reason}");
            continue;
        }
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = root.path().join(format!("{name}-gguf/model.gguf"));
        if expected.exists() {
            let [found, expected] = [&out, &expected].map(|path| open(path));
            let bare = |checkpoint: &Checkpoint| ModelConfig { name: String::new(), ..checkpoint.config.clone() };
            assert_eq!(bare(&found), bare(&expected), "{name}");
            for (found, expected) in tensors(&found).iter().zip(&tensors(&expected)) {
                assert!(
                    found == expected,
                    "{name}: {:?} should be {:?}",
                    &(&found.0, found.1, &found.2),
                    &(&expected.0, expected.1, &expected.2)
                );
            }
            assert_eq!(found.catalog.tensors.len(), expected.catalog.tensors.len(), "{name}");
            n_alike += 1;
        } else {
            let prompt = [3, 1, 4, 15, 9, 2, 6];
            let difference = difference(&logits(&out, &prompt), &logits(&folder, &prompt));
            assert!(difference < 1e-4, "{name}: {difference}");
        }
    }
    assert!(n_alike > 20, "{n_alike}");
}

/// A folder with a tokenizer and a template, whose rows are whole blocks of 256.
fn folder(root: &Path) -> PathBuf {
    let folder = root.join("folder");
    let shape = LlamaShape { hidden_size: 256, ffn_size: 512, head_size: 64, n_layers: 2, ..LlamaShape::tiny() };
    write_hf(&folder, &shape, 7, Stored::BF16, 2).unwrap();
    folder
}

/// Root mean square of the differences over that of the values.
fn loss(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>();
    let differences = square(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    (differences / square(&mut expected.iter().copied())).sqrt()
}

/// The most that a dtype loses of values without outliers.
fn most_loss(dtype: DType) -> f64 {
    match dtype {
        // The folder's own.
        DType::F32 | DType::BF16 => 0.0,
        DType::F16 => 1e-3,
        DType::Q8_0 => 0.01,
        DType::Q6K => 0.03,
        DType::Q5K | DType::Q5_0 | DType::Q5_1 => 0.06,
        DType::Q4K | DType::Q4_0 | DType::Q4_1 => 0.11,
        DType::MXFP4 => 0.2,
        other => panic!("{other} is not written"),
    }
}

#[test]
fn every_type_holds_the_folders_values_as_far_as_its_bits_reach() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder(root.path());
    let (plain, out) = (root.path().join("plain.gguf"), root.path().join("out.gguf"));
    converted(&folder, &plain, "f32").unwrap();
    let prompt = [5, 9, 200, 17, 3, 77];
    assert!(difference(&logits(&plain, &prompt), &logits(&folder, &prompt)) < 1e-4);
    let plain = tensors(&open(&plain));
    let (tokenizer, source) = (Tokenizer::open(&open(&folder)).unwrap(), "Hello the world, 123!<|im_start|>");
    for (file_type, dtype) in [
        ("bf16", DType::BF16),
        ("f16", DType::F16),
        ("q8_0", DType::Q8_0),
        ("q6_k", DType::Q6K),
        ("q5_k_m", DType::Q5K),
        ("q5_k_s", DType::Q5K),
        ("q5_1", DType::Q5_1),
        ("q5_0", DType::Q5_0),
        ("q4_k_m", DType::Q4K),
        ("q4_k_s", DType::Q4K),
        ("q4_1", DType::Q4_1),
        ("q4_0", DType::Q4_0),
        ("mxfp4", DType::MXFP4),
    ] {
        let written = converted(&folder, &out, file_type).unwrap();
        assert!(written.tensors.contains_key(&dtype), "{file_type}: {:?}", written.tensors);
        assert_eq!(written.size.0, std::fs::metadata(&out).unwrap().len());
        let checkpoint = open(&out);
        for ((name, dtype, shape, bytes), (_, _, _, expected)) in tensors(&checkpoint).iter().zip(&plain) {
            let n_values = shape.iter().product::<u64>() as usize;
            let [mut found, mut values] = [vec![0.0; n_values], vec![0.0; n_values]];
            dtype.decode(bytes, &mut found);
            DType::F32.decode(expected, &mut values);
            let loss = loss(&found, &values);
            assert!(loss <= most_loss(*dtype), "{file_type}: {name} in {dtype} loses {loss}");
        }
        let own = Tokenizer::open(&checkpoint).unwrap();
        assert_eq!(own.encode(source, Special::Add).unwrap(), tokenizer.encode(source, Special::Add).unwrap());
        assert_eq!(own.eos_tokens()[0], tokenizer.eos_tokens()[0]);
        assert!(ChatTemplate::open(&checkpoint, &own).unwrap().is_some());
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 3, "no temporary file is left");
}

#[test]
fn a_gguf_file_becomes_another_with_its_metadata() {
    let root = tempfile::tempdir().unwrap();
    let [file, same, other] = ["model.gguf", "same.gguf", "other.gguf"].map(|name| root.path().join(name));
    write_gguf(&file, &LlamaShape::tiny(), 7, GgufType::Q4_1).unwrap();
    // What has the dtype already is copied.
    let options = ConvertOptions { file_type: "q4_1".parse().unwrap(), pure: true };
    assert!(convert(&file, &same, options, &mut |_, _| Ok(())).unwrap().notes.is_empty());
    assert!(tensors(&open(&same)) == tensors(&open(&file)));
    let written = converted(&file, &other, "q8_0").unwrap();
    assert!(written.notes[0].contains("quantised already"), "{:?}", written.notes);
    assert!(difference(&logits(&other, &[5, 9, 200]), &logits(&file, &[5, 9, 200])) < 0.03);
    let keys = |path: &Path| open(path).metadata.unwrap().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect::<Vec<_>>();
    let without = |path: &Path| {
        keys(path)
            .into_iter()
            .filter(|(key, _)| !["general.file_type", "general.quantization_version"].contains(&key.as_str()))
            .collect::<Vec<_>>()
    };
    assert_eq!(without(&other), without(&file));
}

/// SentencePiece vocabularies come as merges in folders, and go as scores.
#[test]
fn other_vocabularies_are_written_as_gguf_files_have_them() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder(root.path());
    let space = "\u{2581}";
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend([space, "a", "b", "c"].map(str::to_owned));
    let merges = [["b", "c"], ["a", "b"], [space, "a"], ["\u{2581}a", "bc"]];
    tokens.extend(merges.iter().map(|pair| pair.concat()));
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added = |id: usize| json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [added(0), added(1), added(2)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, replace(" ", space)]},
        "decoder": {"type": "Sequence", "decoders": [replace(space, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    let config =
        json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true, "tokenizer_class": "LlamaTokenizer"});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    let out = root.path().join("out.gguf");
    converted(&folder, &out, "q8_0").unwrap();
    let [found, expected] = [&out, &folder].map(|path| Tokenizer::open(&open(path)).unwrap().encode("abc ab cab é", Special::Add).unwrap());
    assert_eq!(found, expected);
    assert_eq!(expected[0], 1);

    // One that GGUF files have no word for.
    let mut unknown = file.clone();
    unknown["model"] =
        json!({"type": "Unigram", "unk_id": 0, "vocab": tokens.iter().map(|token| json!([token, -1.0])).collect::<Vec<_>>()});
    unknown["decoder"] = json!(null);
    std::fs::write(folder.join("tokenizer.json"), unknown.to_string()).unwrap();
    let reason = converted(&folder, &out, "q8_0").unwrap_err().to_string();
    assert!(reason.contains("tokenizer.json") && reason.contains("Unigram"), "{reason}");
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert!(converted(&folder, &out, "q8_0").unwrap().notes[0].contains("no tokenizer"));
}

/// Tokens that begin a word are marked in place of those that go on with one.
#[test]
fn words_of_bert_are_marked_as_gguf_files_mark_them() {
    let root = tempfile::tempdir().unwrap();
    let (folder, out) = (families::written(root.path(), "bert"), root.path().join("out.gguf"));
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let letters = || "abcdefghijklmnopqrstuvwxyz0123456789".chars().map(String::from);
    let words = ["hello", "world", "##s", "!", ","].map(str::to_owned);
    let continued: Vec<String> = letters().map(|letter| format!("##{letter}")).filter(|token| token != "##s").collect();
    let tokens: Vec<String> = specials.map(str::to_owned).into_iter().chain(words).chain(letters()).chain(continued).collect();
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added = specials.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    let special = |id: usize| json!({"id": specials[id], "ids": [id], "tokens": [specials[id]]});
    let named = |id: usize| json!({"SpecialToken": {"id": specials[id], "type_id": 0}});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [named(2), {"Sequence": {"id": "A", "type_id": 0}}, named(3)], "pair": [],
            "special_tokens": {"[CLS]": special(2), "[SEP]": special(3)}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    let config = json!({"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    converted(&folder, &out, "f16").unwrap();
    let written = open(&out);
    let texts = written.metadata.as_ref().unwrap().strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(texts[2..9], ["[CLS]", "[SEP]", "[MASK]", "\u{2581}hello", "\u{2581}world", "s", "\u{2581}!"]);
    let [found, expected] =
        [&out, &folder].map(|path| Tokenizer::open(&open(path)).unwrap().encode("Hello worlds, x9!", Special::Add).unwrap());
    assert_eq!(found, expected);
    assert_eq!(expected[..4], [2, 5, 6, 7]);
}

#[test]
fn what_cannot_be_written_is_refused_and_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder(root.path());
    let [file, out] = ["model.gguf", "out.gguf"].map(|name| root.path().join(name));
    write_gguf(&file, &LlamaShape::tiny(), 7, GgufType::F16).unwrap();
    let before = std::fs::read(&file).unwrap();
    let refused = |model: &Path, out: &Path| converted(model, out, "q8_0").unwrap_err().to_string();
    let link = root.path().join("link.gguf");
    std::fs::hard_link(&file, &link).unwrap();
    for own in [&file, &link, &root.path().join("./model.gguf")] {
        let reason = refused(&file, own);
        assert!(reason.contains("a file of the model itself"), "{reason}");
    }
    std::fs::remove_file(&link).unwrap();
    assert!(refused(&file, &root.path().join("no/out.gguf")).contains("no folder"));
    #[cfg(target_os = "linux")]
    assert!(refused(&file, Path::new("/dev/full")).contains("cannot write /dev/full"));
    std::fs::write(&out, &before[..before.len() - 100]).unwrap();
    assert!(refused(&out, &root.path().join("cut.gguf")).contains("cut short"));
    std::fs::write(&out, "old").unwrap();
    // A weight that is no number.
    let weights = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let weights = weights.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).max().unwrap();
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xC0, 0x7F]);
    std::fs::write(&weights, bytes).unwrap();
    let reason = refused(&folder, &out);
    assert!(reason.contains("holds NaN") && reason.contains("tensor `"), "{reason}");
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 3, "no temporary file is left");
}
