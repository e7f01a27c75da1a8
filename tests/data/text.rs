//! Text from outside: tokenizers of both formats against a real model and small made ones, chat templates, known and untrusted,
//! and properties of streams. Needs no model; with `TIERFLOW_SMOLLM2=file.gguf` the goldens are checked against the real vocabulary.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::{Just, any, prop, prop_oneof, proptest};
use serde_json::{Value, json};
use tierflow::error::Error;
use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;
use tierflow::text::{
    CallBody, CallGrammar, Candidate, ChatMessage, ChatTemplate, FormVocabulary, GenerationPrompt, ReasoningFormat, ReasoningSplitter,
    Said, Sampler, SamplingSettings, Segment, Special, StopStrings, TemplateInput, Tokenizer, ToolCall, ToolChoice, ToolFormat,
    ToolSplitter, Tools,
};
use tierflow::weights::{MetaValue, Metadata};

/// GPT-2's alphabet in the order of the bytes.
fn alphabet() -> Vec<char> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut shifted = '\u{100}'..='\u{1FF}';
    (0..=255u8).map(|byte| if printable(byte) { char::from(byte) } else { shifted.next().unwrap() }).collect()
}

/// GGUF metadata of a byte-level vocabulary: 256 bytes (their ids are the bytes), a few merges, three control tokens.
fn byte_level_metadata(pre: &str) -> BTreeMap<String, MetaValue> {
    let mut tokens: Vec<String> = alphabet().into_iter().map(String::from).collect();
    let merges = ["t h", "th e", "Ġ the", "Ġ a", "1 2"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    tokens.extend(["<s>", "<|im_start|>", "<|im_end|>", "<think>"].map(String::from));
    types.extend([3, 3, 3, 4]);
    BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), MetaValue::String("gpt2".into())),
        ("tokenizer.ggml.pre".to_owned(), MetaValue::String(pre.into())),
        ("tokenizer.ggml.tokens".to_owned(), MetaValue::Strings(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), MetaValue::Integers(types)),
        ("tokenizer.ggml.merges".to_owned(), MetaValue::Strings(merges.map(String::from).to_vec())),
        ("tokenizer.ggml.bos_token_id".to_owned(), MetaValue::Unsigned(261)),
        ("tokenizer.ggml.eos_token_id".to_owned(), MetaValue::Unsigned(261)),
    ])
}

const BYTE_LEVEL_SIZE: usize = 265;

fn byte_level(pre: &str) -> Tokenizer {
    Tokenizer::from_metadata(&Metadata::new("tiny.gguf", byte_level_metadata(pre)), BYTE_LEVEL_SIZE).unwrap()
}

/// The models and texts that the sentencepiece package was asked about (`tests/golden/sentence_piece.py`).
fn sentence_piece_golden() -> Value {
    serde_json::from_str(include_str!("../golden/sentence_piece.json")).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

#[track_caller]
fn check_sentence_piece(tokenizer: &Tokenizer, golden: &Value, name: &str) {
    let model = &golden["models"][name];
    let texts: Vec<String> = numbers(&golden["texts"]);
    let [ids, decoded] = [&model["ids"], &model["decoded"]];
    for (index, text) in texts.iter().enumerate() {
        let expected: Vec<u32> = numbers(&ids[index]);
        assert_eq!(tokenizer.encode_plain(text, Special::Leave).unwrap(), expected, "{name}: {text:?}");
        // What is unknown has no text here, and of marks that a text begins with the package drops all.
        if !expected.contains(&0) && !text.starts_with('▁') {
            assert_eq!(tokenizer.decode(&expected), decoded[index].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn sentence_pieces_own_file_gives_the_ids_of_its_own_package() {
    let golden = sentence_piece_golden();
    for (name, model) in golden["models"].as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let hex = model["model"].as_str().unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        std::fs::write(folder.path().join("tokenizer.model"), &bytes).unwrap();
        let n_pieces = model["pieces"].as_array().unwrap().len();
        let tokenizer = Tokenizer::from_folder(folder.path(), n_pieces + 3).unwrap();
        check_sentence_piece(&tokenizer, &golden, name);
        // Llama's kind begins a text with BOS, T5's ends it with EOS.
        let framed = tokenizer.encode("the", Special::Add).unwrap();
        let merges = ["llama", "gemma"].contains(&name.as_str());
        assert_eq!((framed.first() == Some(&1), framed.last() == Some(&2)), (merges, !merges), "{name}: {framed:?}");
        assert_eq!(tokenizer.eos_tokens(), [2]);

        // Tokens behind the pieces, as the configs of transformers have them; what leaves a gap is refused.
        let added = |id: usize, text: &str| (id.to_string(), json!({"content": text, "special": true, "rstrip": true}));
        let write = |added: serde_json::Map<String, Value>| {
            let config = json!({"added_tokens_decoder": added, "eos_token": "<|end|>", "add_bos_token": false});
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        };
        write([added(n_pieces + 1, "<|end|>"), added(n_pieces, "<|start|>")].into_iter().collect());
        let tokenizer = Tokenizer::from_folder(folder.path(), n_pieces + 3).unwrap();
        let ids = tokenizer.encode("<|start|>  the<|end|>", Special::Leave).unwrap();
        let [start, end] = [n_pieces, n_pieces + 1].map(|id| id as u32);
        assert_eq!(tokenizer.eos_tokens(), [end]);
        assert_eq!(ids, [&[start], &*tokenizer.encode("the", Special::Leave).unwrap(), &[end]].concat(), "{name}: spaces behind it go");
        write([added(n_pieces + 1, "<|end|>")].into_iter().collect());
        let error = Tokenizer::from_folder(folder.path(), n_pieces + 3).unwrap_err().to_string();
        assert!(error.contains("tokenizer.model") && error.contains(&format!("as {}, where {n_pieces} is due", n_pieces + 1)), "{error}");
    }
}

#[test]
fn sentence_pieces_in_gguf_files_give_the_same_ids() {
    let golden = sentence_piece_golden();
    for (name, model) in golden["models"].as_object().unwrap() {
        let kind = if ["llama", "gemma"].contains(&name.as_str()) { "llama" } else { "t5" };
        let mut entries = BTreeMap::from([
            ("model".to_owned(), MetaValue::String(kind.into())),
            ("tokens".to_owned(), MetaValue::Strings(numbers(&model["pieces"]))),
            ("token_type".to_owned(), MetaValue::Integers(numbers(&model["types"]))),
            ("scores".to_owned(), MetaValue::Floats(numbers(&model["scores"]))),
            ("add_space_prefix".to_owned(), MetaValue::Bool(numbers(&model["add_space_prefix"]))),
            ("remove_extra_whitespaces".to_owned(), MetaValue::Bool(numbers(&model["remove_extra_whitespaces"]))),
            ("precompiled_charsmap".to_owned(), MetaValue::Integers(numbers(&model["precompiled_charsmap"]))),
        ]);
        let of = |entries: &BTreeMap<String, MetaValue>| {
            let entries = entries.iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value.clone())).collect();
            Tokenizer::from_metadata(&Metadata::new("m.gguf", entries), 1000)
        };
        check_sentence_piece(&of(&entries).unwrap(), &golden, name);
        // Gemma's newer files list the merges; what the texts become is the same.
        if name == "gemma" {
            let merges = ("merges".to_owned(), MetaValue::Strings(numbers(&model["merges"])));
            let [tokens, types] = ["tokens", "token_type"].map(|key| (key.to_owned(), entries[key].clone()));
            for (model, pre) in [("gemma4", "gemma4"), ("gpt2", "sarvam-moe")] {
                let [model, pre] = [("model", model), ("pre", pre)].map(|(key, text)| (key.to_owned(), MetaValue::String(text.into())));
                let listed = BTreeMap::from([model, pre, tokens.clone(), types.clone(), merges.clone()]);
                check_sentence_piece(&of(&listed).unwrap(), &golden, name);
            }
        }
        if kind == "t5" {
            entries.insert("precompiled_charsmap".to_owned(), MetaValue::Integers(vec![4, 0, 0, 0, 300]));
            assert!(of(&entries).unwrap_err().to_string().contains("no bytes"));
            entries.insert("precompiled_charsmap".to_owned(), MetaValue::Integers(vec![255, 255, 0, 0, 3]));
            assert!(of(&entries).unwrap_err().to_string().contains("cannot be used"));
        }
    }
}

/// Against the tiktoken package (`tests/golden/tiktoken_files.py`), with the words of Llama 3 and those of Kimi K2.
#[test]
fn tiktokens_files_give_the_ids_of_its_own_package() {
    let golden: Value = serde_json::from_str(include_str!("../golden/tiktoken_files.json")).unwrap();
    let file = golden["file"].as_str().unwrap();
    let n_tokens = file.lines().count();
    let texts: Vec<String> = numbers(&golden["texts"]);
    for (name, expected) in golden["ids"].as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), file).unwrap();
        // Between the vocabulary and the added tokens, Kimi has ids that are reserved.
        let added = json!({(n_tokens + 2).to_string(): {"content": "<|end|>", "special": true}});
        let config = json!({"added_tokens_decoder": added, "eos_token": "<|end|>"});
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path(), n_tokens + 3).unwrap();
        for (text, ids) in texts.iter().zip(expected.as_array().unwrap()) {
            let ids: Vec<u32> = numbers(ids);
            assert_eq!(tokenizer.encode(text, Special::Leave).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(&tokenizer.decode(&ids), text, "{name}");
        }
        assert_eq!(tokenizer.eos_tokens(), [n_tokens as u32 + 2]);
        assert_eq!(tokenizer.encode("<|end|>", Special::Leave).unwrap(), tokenizer.eos_tokens());
        assert_eq!(tokenizer.token_text(n_tokens as u32).as_deref(), Some(&*format!("<|reserved_token_{n_tokens}|>")));
    }
}

/// GGUF metadata of a SentencePiece vocabulary: `<unk>`, `<s>`, `</s>`, 256 bytes, then pieces with falling scores.
fn sentence_piece_metadata() -> BTreeMap<String, MetaValue> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut types = vec![2, 3, 3];
    let mut scores = vec![0.0f32; 3];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        types.push(6);
        scores.push(0.0);
    }
    for (rank, piece) in ["▁t", "he", "▁the", "▁a", "▁", "t", "h", "e", "a", "b"].into_iter().enumerate() {
        tokens.push(piece.to_owned());
        types.push(1);
        scores.push(-(rank as f32));
    }
    BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), MetaValue::String("llama".into())),
        ("tokenizer.ggml.tokens".to_owned(), MetaValue::Strings(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), MetaValue::Integers(types)),
        ("tokenizer.ggml.scores".to_owned(), MetaValue::Floats(scores)),
        ("tokenizer.ggml.bos_token_id".to_owned(), MetaValue::Unsigned(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), MetaValue::Unsigned(2)),
    ])
}

const SENTENCE_PIECE_SIZE: usize = 269;

fn sentence_piece() -> Tokenizer {
    Tokenizer::from_metadata(&Metadata::new("tiny.gguf", sentence_piece_metadata()), SENTENCE_PIECE_SIZE).unwrap()
}

#[test]
fn word_piece_vocabularies_of_gguf_files_cut_words_as_bert_does() {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from);
    let words = ["hello", "world", ",", "!", "un", "東", "京", "a", "x", "it", "'", "s"].map(|word| format!("▁{word}"));
    let rest = ["aff", "able", "d", "l", "o"].map(String::from);
    let tokens: Vec<String> = special.into_iter().chain(words).chain(rest).collect();
    let types = [3; 5].into_iter().chain([1; 17]).collect();
    let size = tokens.len();
    let id = |id: u64| MetaValue::Unsigned(id);
    let entries = BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), MetaValue::String("bert".into())),
        ("tokenizer.ggml.tokens".to_owned(), MetaValue::Strings(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), MetaValue::Integers(types)),
        ("tokenizer.ggml.unknown_token_id".to_owned(), id(1)),
        ("tokenizer.ggml.bos_token_id".to_owned(), id(2)),
        ("tokenizer.ggml.seperator_token_id".to_owned(), id(3)),
    ]);
    let tokenizer = Tokenizer::from_metadata(&Metadata::new("tiny.gguf", entries), size).unwrap();
    let long = format!("hellold x{}", "a".repeat(101));
    // Ids of tokenizers 0.23, WordPiece behind BertNormalizer and BertPreTokenizer.
    for (text, expected) in [
        ("Héllo, wörld!", &[5, 7, 6, 8][..]),
        ("unaffable  UNAFFABLE\tx", &[9, 17, 18, 9, 17, 18, 13]),
        ("東京 a\u{200b}x", &[10, 11, 1]),
        ("it's\0 zzz", &[14, 15, 16, 1]),
        (&long, &[5, 20, 19, 1]),
        ("", &[]),
    ] {
        assert_eq!(tokenizer.encode(text, Special::Leave).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.encode(text, Special::Add).unwrap(), [&[2], expected, &[3]].concat(), "{text:?}");
    }
    assert_eq!(tokenizer.encode("a [SEP]", Special::Leave).unwrap(), [12, 3]);
    assert_eq!(tokenizer.decode(&[2, 9, 17, 18, 13, 3]), "unaffable x");
}

/// A Hugging Face folder with `files`.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in files {
        let text = value.as_str().map_or_else(|| value.to_string(), String::from);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// A byte-level `tokenizer.json`; `change` may spoil it.
fn tokenizer_json(change: impl FnOnce(&mut Value)) -> Value {
    let vocab: serde_json::Map<String, Value> = alphabet().into_iter().zip(0..).map(|(token, id)| (token.to_string(), json!(id))).collect();
    let mut file = json!({
        "version": "1.0",
        "added_tokens": [{"id": 256, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    change(&mut file);
    file
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer();
    let mut texts: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    texts.push(detokenizer.finish());
    texts
}

#[test]
fn the_goldens_of_a_real_vocabulary_or_the_rules_of_a_small_one() {
    let Some(path) = std::env::var_os("TIERFLOW_SMOLLM2") else {
        // The same template and the same cutting of digits on the small vocabulary.
        let tokenizer = byte_level("smollm");
        let ids = tokenizer.encode("<|im_start|> the 12<|im_end|>", Special::Leave).unwrap();
        assert_eq!(ids, [262, 258, 32, u32::from(b'1'), u32::from(b'2'), 263], "digits are cut before merging");
        assert_eq!(byte_level("gpt-2").encode("12", Special::Leave).unwrap(), [260], "and only where the name says so");
        assert_eq!(tokenizer.decode(&ids), " the 12");
        return;
    };
    let checkpoint = Checkpoint::open(Path::new(&path), IoMode::Pread).unwrap();
    let tokenizer = Tokenizer::open(&checkpoint).unwrap();
    let template = ChatTemplate::open(&checkpoint, &tokenizer).unwrap().unwrap();
    assert_eq!(tokenizer.eos_tokens().first(), Some(&2));
    let golden: Value = serde_json::from_str(include_str!("../golden/smollm2_text.json")).unwrap();
    for item in golden["items"].as_array().unwrap() {
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(item[key].clone()).unwrap() };
        let message = ChatMessage::new("user", item["prompt"].as_str().unwrap());
        let text = template.render(&[message], GenerationPrompt::Add).unwrap();
        assert_eq!(text, item["templated"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text, Special::Leave).unwrap(), ids("prompt_ids"));
        let answer = item["text"].as_str().unwrap().trim_end_matches("<|im_end|>");
        assert_eq!(streamed(&tokenizer, &ids("new_ids")).concat(), answer);
    }
    for text in ["x = 12345 + 67.8;\n\n\tif a != b {  }", "naïve café 日本語 🎉🏳️‍🌈 ½ ٣٤", "   ", "don't WE'LL \u{a0}\u{2003}x\r\n"]
    {
        let ids = tokenizer.encode(text, Special::Add).unwrap();
        assert_eq!(tokenizer.decode(&ids), text, "byte-level vocabularies lose nothing");
    }
}

#[test]
fn bos_is_added_as_the_model_says() {
    let plain = |ids: &[u32]| ids.to_vec();
    assert_eq!(byte_level("gpt-2").encode("a", Special::Add).unwrap(), plain(&[97]));
    assert_eq!(byte_level("llama-bpe").encode("a", Special::Add).unwrap(), plain(&[261, 97]));
    assert_eq!(byte_level("llama-bpe").encode("<s>a", Special::Add).unwrap(), plain(&[261, 97]), "not twice");
    assert_eq!(byte_level("llama-bpe").encode("a", Special::Leave).unwrap(), plain(&[97]));
    let mut entries = byte_level_metadata("llama-bpe");
    entries.insert("tokenizer.ggml.add_bos_token".into(), MetaValue::Bool(false));
    let tokenizer = Tokenizer::from_metadata(&Metadata::new("tiny.gguf", entries), BYTE_LEVEL_SIZE).unwrap();
    assert_eq!(tokenizer.encode("a", Special::Add).unwrap(), plain(&[97]));

    let by_post_processor = folder(&[("tokenizer.json", tokenizer_json(|_| {}))]);
    let tokenizer = Tokenizer::from_folder(by_post_processor.path(), 257).unwrap();
    assert_eq!(tokenizer.encode("a", Special::Add).unwrap(), plain(&[256, 97]));
    assert_eq!(tokenizer.encode("<s>a", Special::Leave).unwrap(), plain(&[256, 97]));
    let config = json!({"bos_token": {"content": "<s>"}, "add_bos_token": false});
    let by_config = folder(&[("tokenizer.json", tokenizer_json(|_| {})), ("tokenizer_config.json", config)]);
    let tokenizer = Tokenizer::from_folder(by_config.path(), 257).unwrap();
    assert_eq!((tokenizer.encode("a", Special::Add).unwrap(), tokenizer.bos_token()), (plain(&[97]), Some(256)));
}

#[test]
fn all_end_tokens_are_known() {
    assert_eq!(byte_level("gpt-2").eos_tokens(), [261, 263], "the listed one, then control tokens known by their text");
    for (generation, expected) in [(json!({"eos_token_id": 3}), vec![3, 256]), (json!({"eos_token_id": [7, 256, 7]}), vec![7, 256])] {
        let files = [
            ("tokenizer.json", tokenizer_json(|_| {})),
            ("generation_config.json", generation),
            ("config.json", json!({"eos_token_id": 9})),
            ("tokenizer_config.json", json!({"eos_token": "<s>"})),
        ];
        assert_eq!(Tokenizer::from_folder(folder(&files).path(), 257).unwrap().eos_tokens(), expected);
    }
}

#[test]
fn ids_that_no_token_has_end_nothing_and_stop_nothing() {
    for (ids, expected) in [(json!(257), vec![]), (json!(-1), vec![]), (json!([128_001, 7.0, "8", 1.5]), vec![7]), (json!(null), vec![3])] {
        let files = [
            ("tokenizer.json", tokenizer_json(|_| {})),
            ("generation_config.json", json!({"eos_token_id": ids})),
            ("config.json", json!({"eos_token_id": 3})),
        ];
        assert_eq!(Tokenizer::from_folder(folder(&files).path(), 257).unwrap().eos_tokens(), expected);
    }
    for outside in [MetaValue::Unsigned(u64::from(u32::MAX)), MetaValue::Unsigned(500), MetaValue::Signed(-1), MetaValue::Bool(true)] {
        let with = |mut entries: BTreeMap<String, MetaValue>, size: usize| {
            entries.insert("tokenizer.ggml.bos_token_id".into(), outside.clone());
            entries.insert("tokenizer.ggml.eos_token_id".into(), outside.clone());
            let tokenizer = Tokenizer::from_metadata(&Metadata::new("tiny.gguf", entries), size).unwrap();
            (tokenizer.bos_token(), tokenizer.eos_tokens().first().copied())
        };
        assert_eq!(with(byte_level_metadata("gpt-2"), BYTE_LEVEL_SIZE), (None, Some(263)), "the end that is known by its text");
        assert_eq!(with(sentence_piece_metadata(), SENTENCE_PIECE_SIZE), (Some(1), Some(2)), "SentencePiece's own");
    }
}

#[test]
fn ends_of_turns_stop_whatever_their_type_and_added_tokens_are_plain_text() {
    for kind in [1, 3, 4] {
        let mut entries = byte_level_metadata("gpt-2");
        let added = ["café", "đem", "ilÖveyou", "<end_of_utterance>", "_<EOT>"];
        for (text, kind) in added.into_iter().zip([4, 4, 4, kind, kind]) {
            if let Some(MetaValue::Strings(tokens)) = entries.get_mut("tokenizer.ggml.tokens") {
                tokens.push(text.to_owned());
            }
            if let Some(MetaValue::Integers(types)) = entries.get_mut("tokenizer.ggml.token_type") {
                types.push(kind);
            }
        }
        let n_tokens = BYTE_LEVEL_SIZE + added.len();
        let tokenizer = Tokenizer::from_metadata(&Metadata::new("tiny.gguf", entries), n_tokens).unwrap();
        let id = |text: &str| tokenizer.token_id(text).unwrap();
        let ids = tokenizer.encode("café đem ilÖveyou<end_of_utterance>_<EOT>", Special::Leave).unwrap();
        assert_eq!(ids, [id("café"), 32, id("đem"), 32, id("ilÖveyou"), id("<end_of_utterance>"), id("_<EOT>")]);
        assert_eq!(tokenizer.decode(&ids), "café đem ilÖveyou");
        assert!(tokenizer.eos_tokens().ends_with(&[id("<end_of_utterance>"), id("_<EOT>")]));
    }
}

#[test]
fn templates_print_the_tokens_that_the_tokenizer_config_names() {
    let source = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token is defined }}|{{ image_token }}";
    let rendered = |config: Option<Value>| {
        let added = json!([
            {"id": 256, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            {"id": 257, "content": "<e>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}
        ]);
        let ids = json!({"bos_token_id": 256, "eos_token_id": [256, 257]});
        let mut files =
            vec![("tokenizer.json", tokenizer_json(|file| file["added_tokens"] = added.clone())), ("generation_config.json", ids)];
        files.extend(config.map(|config| ("tokenizer_config.json", config)));
        let tokenizer = Tokenizer::from_folder(folder(&files).path(), 258).unwrap();
        assert!(tokenizer.eos_tokens().starts_with(&[256, 257]));
        ChatTemplate::new("test.jinja".into(), source.into(), &tokenizer).unwrap().render(&[], GenerationPrompt::Add).unwrap()
    };
    // As transformers 5.24 renders them, but for the last: it has no tokens at all there.
    let named =
        json!({"bos_token": null, "eos_token": {"content": "<e>"}, "unk_token": "<u>", "extra_special_tokens": {"image_token": "<i>"}});
    assert_eq!(rendered(Some(named)), "|<e>|<u>|False|<i>");
    assert_eq!(rendered(Some(json!({"pad_token": "<p>"}))), "|||True|");
    assert_eq!(rendered(Some(json!({"tokenizer_class": "LlamaTokenizerFast", "unk_token": null}))), "<s>|</s>||False|");
    assert_eq!(rendered(None), "<s>|<s>||False|");
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = sentence_piece();
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    assert_eq!(tokenizer.encode("the a", Special::Add).unwrap(), [1, id("▁the"), id("▁a")]);
    assert_eq!(tokenizer.encode("thea", Special::Leave).unwrap(), [id("▁the"), id("a")]);
    assert_eq!(tokenizer.encode("é", Special::Leave).unwrap(), [id("▁"), 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokenizer.encode("</s>the", Special::Leave).unwrap(), [2, id("▁the")]);
    for text in ["the a", " the", "é🎉 b", "a  b"] {
        let ids = tokenizer.encode(text, Special::Add).unwrap();
        assert_eq!(tokenizer.decode(&ids), text, "{ids:?}");
    }
    let mut entries = sentence_piece_metadata();
    entries.insert("tokenizer.ggml.add_space_prefix".into(), MetaValue::Bool(false));
    let tokenizer = Tokenizer::from_metadata(&Metadata::new("tiny.gguf", entries), SENTENCE_PIECE_SIZE).unwrap();
    assert_eq!(tokenizer.encode("the", Special::Leave).unwrap(), [id("t"), id("he")]);
    assert_eq!(tokenizer.decode(&[id("▁a")]), " a");
}

#[test]
fn ids_without_an_embedding_are_refused() {
    let tokenizer = Tokenizer::from_metadata(&Metadata::new("tiny.gguf", byte_level_metadata("gpt-2")), 264).unwrap();
    assert!(tokenizer.encode("think", Special::Add).is_ok());
    let error = tokenizer.encode("<think>", Special::Add).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfVocabulary { token: 264, vocab_size: 264 }), "{error}");
}

#[test]
fn broken_tokenizer_files_are_refused_by_name() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 13] = [
        (|file| file["model"]["merges"] = json!(["a b", "ab cdefgh"]), "merge"),
        (|file| file["model"]["merges"] = json!(["ab"]), ""),
        (|file| file["model"]["merges"] = json!([["a", "b"]]), "out of vocabulary"),
        (|file| file["post_processor"]["special_tokens"] = json!({}), "<s>"),
        (|file| file["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}), "length 0"),
        (|file| file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "Precompiled"),
        (|file| file["model"]["vocab"] = json!({}), "empty"),
        (|file| file["model"]["vocab"] = json!({"a": -1}), "cannot be read"),
        (|file| file["model"]["vocab"] = json!({"a": u32::MAX}), "4294967295"),
        (|file| file["model"]["type"] = json!("Oracle"), "cannot be read"),
        (|file| file["version"] = json!("9.9"), "9.9"),
        (|file| file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}), ""),
        (|file| *file = json!([]), "cannot be read"),
    ];
    for (change, reason) in changes {
        let folder = folder(&[("tokenizer.json", tokenizer_json(change))]);
        let error = Tokenizer::from_folder(folder.path(), 257).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains(reason), "{error}");
    }
    for text in ["", "{", "nonsense", &"[".repeat(100_000)] {
        let folder = folder(&[("tokenizer.json", json!(text))]);
        assert!(Tokenizer::from_folder(folder.path(), 257).unwrap_err().to_string().contains("tokenizer.json"));
    }
    assert!(Tokenizer::from_folder(folder(&[]).path(), 257).unwrap_err().to_string().contains("no tokenizer.json"));
    // What a file was saved with must not cut or lengthen prompts.
    let cut = folder(&[(
        "tokenizer.json",
        tokenizer_json(|file| {
            file["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5});
            file["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
        }),
    )]);
    assert_eq!(Tokenizer::from_folder(cut.path(), 257).unwrap().encode("abc", Special::Leave).unwrap(), [97, 98, 99]);
}

#[test]
fn broken_gguf_vocabularies_are_refused_by_key() {
    let strings = |texts: &[&str]| MetaValue::Strings(texts.iter().map(|text| (*text).to_owned()).collect());
    let byte_level_cases = [
        ("tokenizer.ggml.model", MetaValue::String("rwkv".into()), "rwkv"),
        ("tokenizer.ggml.pre", MetaValue::String("klingon".into()), "llama-bpe"),
        ("tokenizer.ggml.merges", strings(&["t h", "thh"]), "merge 1"),
        ("tokenizer.ggml.merges", strings(&["x y"]), "`xy`"),
        ("tokenizer.ggml.tokens", strings(&[]), "0 tokens"),
        ("tokenizer.ggml.token_type", MetaValue::Integers(vec![1]), "1 entries"),
        ("tokenizer.ggml.tokens", MetaValue::Bool(true), "tokenizer.ggml.tokens"),
    ];
    let cases = byte_level_cases.into_iter().map(|case| (byte_level_metadata("gpt-2"), case));
    let mut scores = vec![0.0; SENTENCE_PIECE_SIZE];
    scores[5] = f32::NAN;
    let sentence_piece_cases = [
        ("tokenizer.ggml.scores", MetaValue::Floats(vec![0.0]), "1 entries"),
        ("tokenizer.ggml.scores", MetaValue::Floats(scores), "token 5"),
        ("tokenizer.ggml.token_type", MetaValue::Integers(vec![6; SENTENCE_PIECE_SIZE]), "token 0"),
    ];
    for (mut entries, (key, value, reason)) in cases.chain(sentence_piece_cases.into_iter().map(|case| (sentence_piece_metadata(), case))) {
        entries.insert(key.to_owned(), value);
        let error = Tokenizer::from_metadata(&Metadata::new("bad.gguf", entries), SENTENCE_PIECE_SIZE).unwrap_err().to_string();
        assert!(error.contains("bad.gguf") && error.contains(reason), "{key}: {error}");
    }
}

fn template(source: &str) -> Result<ChatTemplate, Error> {
    ChatTemplate::new("test.jinja".into(), source.into(), &byte_level("gpt-2"))
}

fn render(source: &str) -> Result<String, Error> {
    let messages = [ChatMessage::new("system", "Be brief."), ChatMessage::new("user", " Hi! ")];
    template(source)?.render(&messages, GenerationPrompt::Add)
}

#[test]
fn templates_render_as_transformers_renders_them() {
    for (source, expected) in [
        (
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content | trim }}{% endfor %}{{ eos_token }}",
            "<s>[system]Be brief.[user]Hi!<s>",
        ),
        ("{%- for m in messages -%}\n  {{- m.content.strip().upper() + '\\n' -}}\n{%- endfor %}", "BE BRIEF.\nHI!\n"),
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{% set first, rest = messages[0], messages[1:] %}{{ first.role }}{{ rest | length }}", "system1"),
        ("{{ messages[0] | tojson }}", r#"{"role": "system", "content": "Be brief."}"#),
        ("{% if tools is defined and tools is not none %}T{% endif %}{{ 'a' if add_generation_prompt else 'b' }}", "a"),
        ("{% macro f(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='?') }}", "a!b?"),
        ("{% generation %}x{% endgeneration %}{{ 'Z'.lower() ~ 'ab'[::-1] }}{{ 'a,b'.split(',')[-1] }}", "xzbab"),
        ("{{ '<' | e }}{{ ['a', 'b'] | join('-') }}{{ 'x-y' | replace('-', '+') }}{{ 'a\nb' | indent(2) }}", "&lt;a-bx+ya\n  b"),
        ("{{ strftime_now('%Y')[:2] }}{{ '=' * 3 }}{{ messages | map(attribute='role') | list | first }}", "20===system"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
    assert!(error.contains("test.jinja") && error.contains("roles must alternate"), "{error}");
}

/// The expected texts are Jinja2's: `templates.json` says of which version and environment.
#[test]
fn every_feature_renders_as_jinja2_renders_it() {
    let golden: Value = serde_json::from_str(include_str!("../golden/templates.json")).unwrap();
    let messages = [ChatMessage::new("system", "Be brief."), ChatMessage::new("user", "Hi")];
    assert_renders_as_jinja2(&golden, &messages, &TemplateInput::default());
}

/// Tools, calls, their results and further fields of messages, as transformers' `apply_chat_template` passes them.
#[test]
fn tools_render_as_jinja2_renders_them() {
    let golden: Value = serde_json::from_str(include_str!("../golden/tool_templates.json")).unwrap();
    let messages: Vec<ChatMessage> = serde_json::from_value(golden["messages"].clone()).unwrap();
    let variables = golden["variables"].as_object().unwrap().clone();
    let input = TemplateInput { tools: golden["tools"].as_array().cloned(), variables, ..TemplateInput::default() };
    assert_renders_as_jinja2(&golden, &messages, &input);
}

#[test]
fn no_tools_and_an_empty_list_of_them_differ_and_names_with_a_meaning_stay() {
    let template = template("{{ tools is none }} {{ tools | length if tools is not none }} {{ messages | length }}").unwrap();
    let render = |input: TemplateInput| template.render_with(&[ChatMessage::new("user", "Hi")], &input, GenerationPrompt::Add).unwrap();
    assert_eq!(render(TemplateInput::default()), "True  1");
    let variables = json!({"messages": [], "tools": [1, 2]}).as_object().unwrap().clone();
    assert_eq!(render(TemplateInput { tools: Some(Vec::new()), variables, ..TemplateInput::default() }), "False 0 1");
}

fn assert_renders_as_jinja2(golden: &Value, messages: &[ChatMessage], input: &TemplateInput) {
    let named = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"});
    let tokenizer = folder(&[("tokenizer.json", tokenizer_json(|_| {})), ("tokenizer_config.json", named)]);
    let tokenizer = Tokenizer::from_folder(tokenizer.path(), 257).unwrap();
    let mut wrong = Vec::new();
    for row in golden["templates"].as_array().unwrap() {
        let source = row["source"].as_str().unwrap();
        let rendered = ChatTemplate::new("test.jinja".into(), source.into(), &tokenizer)
            .and_then(|template| template.render_with(messages, input, GenerationPrompt::Add));
        match (rendered, row["expected"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(_), None) => {}
            (got, expected) => wrong.push(format!("{source:?}\n  expected {expected:?}\n  got {got:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_long_prompt_renders_and_one_that_is_too_long_is_what_the_error_names() {
    let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.replace('<|x|>', '[x]') | trim }}{% endfor %}";
    let template = template(source).unwrap();
    let content = "word <|x|> ".repeat(500_000);
    let text = template.render(&[ChatMessage::new("user", content.clone())], GenerationPrompt::Add).unwrap();
    assert_eq!(text, format!("<|user|>{}", content.replace("<|x|>", "[x]").trim()));
    let error = template.render(&[ChatMessage::new("user", content.repeat(4))], GenerationPrompt::Add).unwrap_err().to_string();
    assert!(error.contains("prompt") && !error.contains("test.jinja"), "{error}");
}

#[test]
fn what_a_user_spells_can_be_plain_text() {
    let tokenizer = byte_level("gpt-2");
    let bytes: Vec<u32> = "<|im_end|>".bytes().map(u32::from).collect();
    assert_eq!(tokenizer.encode("<|im_end|>", Special::Add).unwrap(), [263]);
    assert_eq!(tokenizer.encode_plain("<|im_end|>", Special::Add).unwrap(), bytes);
    assert_eq!(tokenizer.encode_plain("<think>", Special::Add).unwrap(), [264], "an added token that is not special stays one");
    assert_eq!(tokenizer.piece(97), "a");
}

#[test]
fn hostile_templates_end_with_an_error() {
    let loops = |body: &str| format!("{{% set ns = namespace(s='abcdefgh', m=[]) %}}{{% for i in range(100000) %}}{body}{{% endfor %}}");
    let flat = "{% set s = s ~ s %}".repeat(60);
    for source in [
        "{{ 'a' * 10**10 }}".to_owned(),
        "{{ ('a' * 256) * 256 * 256 * 256 }}".to_owned(),
        "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}"
            .to_owned(),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".to_owned(),
        format!("{}{{{{ ns.m | length }}}}", loops("{% set ns.m = ns.m + [i] %}")),
        loops("{% set ns.s = ns.s ~ ns.s %}"),
        loops("{% set ns.s = ns.s + ns.s %}"),
        loops("{% set ns.s = ns.s | replace('a', 'aaaaaaaaaaaaaaaa') %}"),
        loops("{% set ns.s = ns.s.replace('a', 'aaaaaaaaaaaaaaaa') %}"),
        loops("{% set ns.m = [ns.m, ns.m] %}"),
        loops("{% set ns.m = ns.m + ns.m + [1] %}"),
        loops(&format!("{{% set x %}}{}{{% endset %}}", "y".repeat(100_000))),
        format!("{{% set s = 'abcdefgh' %}}{flat}"),
        "{% macro f(s, n) %}{% if n %}{{ f(s ~ s, n - 1) }}{% endif %}{% endmacro %}{{ f('abcdefgh', 60) }}".to_owned(),
        "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}".to_owned() + &format!("{{{{ {}'abcdefgh'{} }}}}", "f(".repeat(40), ")".repeat(40)),
        loops("{{ 'abcdefgh' }}{{ 'abcdefgh' * 200 }}"),
        format!("{{{{ {}1{} }}}}", "(".repeat(15_000), ")".repeat(15_000)),
        format!("{}{}", "{% if a %}".repeat(15_000), "{% endif %}".repeat(15_000)),
        format!("{{{{ x{} }}}}", ".y".repeat(50_000)),
        format!("{{{{ {}x }}}}", "not ".repeat(50_000)),
        "{{ 'x' | indent(1000000000) }}".to_owned(),
        "{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ '{:1000000000}'.format(1) }}".to_owned(),
        "{{ '%*d' | format(1000000000, 1) }}".to_owned(),
        "{{ range(100000) | list * 100000 }}".to_owned(),
        "{{ 'x'.ljust(1000000000) }}{{ '7'.zfill(1000000000) }}".to_owned(),
        "{{ 'x' | center(1000000000) }}".to_owned(),
        "{{ ('ab ' * 1000000) | wordwrap(1, wrapstring='y' * 1000000) }}".to_owned(),
        "{{ ('a' * 1000000) | wordwrap(1) | wordwrap(70000) }}".to_owned(),
        "{{ '%s' * 1000000 % (1, 2) }}".to_owned(),
        loops("{% set ns.s = ns.s * 2 %}"),
        "{% include 'chat' %}".to_owned(),
        "x".repeat(300 << 10),
        "{% for %}".to_owned(),
        "{{ unclosed".to_owned(),
    ] {
        let shown: String = source.chars().take(120).collect();
        let error = render(&source).expect_err(&shown);
        assert!(matches!(error, Error::Text { .. }) && error.to_string().contains("test.jinja"), "{shown}: {error}");
    }
}

#[test]
fn templates_are_found_in_their_order() {
    let tokenizer = byte_level("gpt-2");
    let open = |files: &[(&str, Value)]| {
        let template = ChatTemplate::from_folder(folder(files).path(), &tokenizer).unwrap();
        template.map(|template| template.render(&[], GenerationPrompt::Leave).unwrap())
    };
    let config = |template: Value| ("tokenizer_config.json", json!({"chat_template": template}));
    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]);
    assert_eq!(open(&[("chat_template.jinja", json!("file")), config(json!("config"))]).as_deref(), Some("file"));
    assert_eq!(open(&[config(json!("config"))]).as_deref(), Some("config"));
    assert_eq!(open(&[config(named)]).as_deref(), Some("named"));
    assert_eq!(open(&[config(json!({"tool_use": "tools", "default": "named"}))]).as_deref(), Some("named"));
    assert_eq!(open(&[config(json!([{"name": "tool_use", "template": "tools"}]))]), None);
    assert_eq!(open(&[config(Value::Null)]), None);
    let older = ("chat_template.json", json!({"chat_template": "older"}));
    assert_eq!(open(&[config(Value::Null), older.clone()]).as_deref(), Some("older"));
    assert_eq!(open(&[config(json!("config")), older]).as_deref(), Some("config"));
    assert_eq!(open(&[]), None);
    let entries = BTreeMap::from([("tokenizer.chat_template".to_owned(), MetaValue::String("gguf".into()))]);
    let found = ChatTemplate::from_metadata(&Metadata::new("m.gguf", entries), &tokenizer).unwrap().unwrap();
    assert_eq!(found.render(&[], GenerationPrompt::Leave).unwrap(), "gguf");
}

/// Reasoning and answer of what a model writes token by token.
fn told_apart(tokenizer: &Tokenizer, template: Option<&ChatTemplate>, prompt: &str, written: &str) -> [String; 2] {
    let tokens = |text: &str| tokenizer.encode(text, Special::Leave).unwrap();
    let format = ReasoningFormat::of(tokenizer, template);
    let mut splitter = ReasoningSplitter::after_prompt(format, tokenizer, &tokens(prompt));
    let mut detokenizer = tokenizer.detokenizer();
    let mut segments = Vec::new();
    for token in tokens(written) {
        let text = detokenizer.push(token);
        segments.extend(splitter.push_token(token, &text));
    }
    segments.extend(splitter.finish());
    let text = |wanted: bool| {
        segments.iter().filter_map(move |segment| match segment {
            Segment::Reasoning(text) => wanted.then_some(text.as_str()),
            Segment::Answer(text) => (!wanted).then_some(text.as_str()),
        })
    };
    [text(true).collect(), text(false).collect()]
}

/// Keys of a tokenizer that has `marks`, six of them, as special tokens, which have no text of their own.
fn marked_metadata(marks: [&str; 6]) -> BTreeMap<String, MetaValue> {
    let mut entries = byte_level_metadata("gpt-2");
    for mark in marks {
        if let Some(MetaValue::Strings(tokens)) = entries.get_mut("tokenizer.ggml.tokens") {
            tokens.push(mark.to_owned());
        }
        if let Some(MetaValue::Integers(types)) = entries.get_mut("tokenizer.ggml.token_type") {
            types.push(3);
        }
    }
    entries
}

#[test]
fn calls_in_channels_are_told_from_reasoning_and_answer() {
    let entries = marked_metadata(["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>"]);
    let harmony = Tokenizer::from_metadata(&Metadata::new("m.gguf", entries), BYTE_LEVEL_SIZE + 6).unwrap();
    let template = ChatTemplate::new("t".into(), "{{ tools }}<|channel|>to=functions.".into(), &harmony).unwrap();
    let format = ToolFormat::of(&template).unwrap();
    assert_eq!(format.body, CallBody::Message);
    let tokens = |text: &str| harmony.encode(text, Special::Leave).unwrap();
    let splitter = ReasoningSplitter::after_prompt(
        ReasoningFormat::of(&harmony, Some(&template)),
        &harmony,
        &tokens("<|start|>user<|message|>Rain?<|end|><|start|>assistant"),
    );
    let (mut splitter, mut calls) = (splitter.telling_calls(), ToolSplitter::new(format, Vec::new(), Some(&harmony)));
    let mut detokenizer = harmony.detokenizer();
    let written = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>\
                   <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"place\": \"Zürich\"}<|call|>";
    let (mut segments, mut reasoning, mut said) = (Vec::new(), String::new(), Vec::new());
    for token in tokens(written) {
        let text = detokenizer.push(token) + calls.mark(token);
        segments.extend(splitter.push_token(token, &text));
    }
    segments.extend(splitter.finish());
    for segment in segments {
        match segment {
            Segment::Reasoning(text) => reasoning.push_str(&text),
            Segment::Answer(text) => said.extend(calls.push(&text)),
        }
    }
    said.extend(calls.finish());
    let arguments = json!({ "place": "Zürich" }).as_object().unwrap().clone();
    let call = Said::Call(ToolCall { name: "get_weather".to_owned(), arguments });
    let text: String = said.iter().filter_map(|said| if let Said::Text(text) = said { Some(text.as_str()) } else { None }).collect();
    assert_eq!((reasoning.as_str(), text.as_str(), said.last()), ("Ask.", "I look.", Some(&call)));
}

#[test]
fn calls_in_channels_keep_to_their_schemas_and_all_else_is_free_unless_one_is_demanded() {
    let entries = marked_metadata(["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>"]);
    let harmony = Tokenizer::from_metadata(&Metadata::new("m.gguf", entries), BYTE_LEVEL_SIZE + 6).unwrap();
    let template = ChatTemplate::new("t".into(), "{{ tools }}<|channel|>to=functions.".into(), &harmony).unwrap();
    let schema = json!({ "type": "object", "properties": { "a": { "const": 1 } }, "required": ["a"], "additionalProperties": false });
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": schema } });
    let forms = FormVocabulary::new(Some(harmony.clone()));
    let one = |text: &str| {
        let tokens = harmony.encode(text, Special::Leave).unwrap();
        assert_eq!(tokens.len(), 1, "{text}");
        tokens[0]
    };
    for choice in [ToolChoice::Auto, ToolChoice::Required] {
        let is_demanded = choice != ToolChoice::Auto;
        let tools = Tools { format: ToolFormat::of(&template).unwrap(), list: vec![tool.clone()], choice, is_single: false };
        let mut rules = CallGrammar::new(&forms, Some(&harmony), &tools).unwrap().unwrap().constraint().unwrap();
        let mut write = |text: &str| {
            for token in harmony.encode(text, Special::Leave).unwrap() {
                let mut next: Vec<Candidate> = (0..harmony.vocab_size() as u32).map(|token| Candidate { token, logit: 0.0 }).collect();
                rules.keep_allowed(&mut next).unwrap();
                assert!(next.iter().any(|candidate| candidate.token == token), "{token} of {text}");
                rules.accept(token).unwrap();
            }
            let mut next: Vec<Candidate> = (0..harmony.vocab_size() as u32).map(|token| Candidate { token, logit: 0.0 }).collect();
            rules.keep_allowed(&mut next).unwrap();
            next.into_iter().map(|candidate| candidate.token).collect::<Vec<u32>>()
        };
        assert!(!is_demanded || write("") == [one("<|channel|>")]);
        let next = write("<|channel|>analysis<|message|>Call f with {");
        assert!(next.contains(&one("a")) && next.contains(&one("<|end|>")));
        assert_eq!(next.contains(&one("<|call|>")), !is_demanded, "an answer does not end in its reasoning");
        let next = write("<|end|>");
        assert!(!is_demanded || next == [one("<|start|>")]);
        if !is_demanded {
            // Words before a call, and a message to what is no function of these.
            write("<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>");
            let next = write("<|start|>assistant<|channel|>commentary to=functions.g <|constrain|>json<|message|>");
            assert!(next.contains(&one("a")));
            write("<|end|>");
        }
        let next = write("<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>");
        assert_eq!(next, [one("{")]);
        assert_eq!(write("{\"a\": 1}"), [one("<|call|>")]);
    }
}

#[test]
fn reasoning_is_told_apart_by_tokens_and_by_templates() {
    let mut entries = marked_metadata(["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "[THINK]", "[/THINK]"]);
    let harmony = Tokenizer::from_metadata(&Metadata::new("m.gguf", entries.clone()), BYTE_LEVEL_SIZE + 6).unwrap();
    let written = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>It is é 4.";
    let expected = ["Easy.".to_owned(), "It is é 4.".to_owned()];
    assert_eq!(told_apart(&harmony, None, "<|start|>user<|message|>2 + 2?<|end|><|start|>assistant", written), expected);
    let begun = "<|start|>assistant<|channel|>analysis<|message|>";
    assert_eq!(told_apart(&harmony, None, begun, "Hm.<|end|><|start|>assistant<|channel|>final<|message|>4"), ["Hm.", "4"]);
    // The same marks where a model has no channels.
    if let Some(MetaValue::Strings(tokens)) = entries.get_mut("tokenizer.ggml.tokens") {
        tokens.iter_mut().filter(|token| *token == "<|channel|>").for_each(|token| *token = "<|other|>".to_owned());
    }
    let mistral = Tokenizer::from_metadata(&Metadata::new("m.gguf", entries), BYTE_LEVEL_SIZE + 6).unwrap();
    assert_eq!(told_apart(&mistral, None, "the", "[THINK]a the b[/THINK]c the"), ["a the b", "c the"]);
    assert_eq!(told_apart(&mistral, None, "the[THINK]", "a[/THINK]b"), ["a", "b"]);
    // Marks that are several tokens, and that only the template writes.
    let plain = byte_level("gpt-2");
    let template = |source: &str| ChatTemplate::new("t".into(), source.into(), &plain).unwrap();
    let thinking = template("{{ '<think></think>' }}");
    let written = "a\n</think>\n\nb <think>";
    assert_eq!(told_apart(&plain, Some(&thinking), "the<think>\n", written), ["a", "b <think>"]);
    assert_eq!(told_apart(&plain, Some(&thinking), "<think>the", written), ["", written]);
    assert_eq!(told_apart(&plain, Some(&template("{{ messages }}")), "<think>\n", written), ["", written]);
}

#[test]
fn conversations_with_tools_have_a_template_of_their_own() {
    let tokenizer = byte_level("gpt-2");
    let tools = |tools: Option<Vec<Value>>| TemplateInput { tools, ..TemplateInput::default() };
    let both = |template: ChatTemplate| {
        [None, Some(Vec::new()), Some(vec![json!({"type": "function"})])]
            .map(|given| template.render_with(&[], &tools(given), GenerationPrompt::Leave).unwrap())
    };
    let open = |folder: &Path| both(ChatTemplate::from_folder(folder, &tokenizer).unwrap().unwrap());
    let expected = ["plain", "tools", "tools"];
    let config = |template: Value| folder(&[("tokenizer_config.json", json!({"chat_template": template}))]);
    let list = json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]);
    assert_eq!(open(config(list).path()), expected);
    assert_eq!(open(config(json!({"default": "plain", "tool_use": "tools"})).path()), expected);
    let files = folder(&[("chat_template.jinja", json!("plain"))]);
    assert_eq!(open(files.path()), ["plain"; 3]);
    std::fs::create_dir(files.path().join("additional_chat_templates")).unwrap();
    std::fs::write(files.path().join("additional_chat_templates/tool_use.jinja"), "tools").unwrap();
    assert_eq!(open(files.path()), expected);
    let entries = [("tokenizer.chat_template", "plain"), ("tokenizer.chat_template.tool_use", "tools")];
    let entries = entries.map(|(key, text)| (key.to_owned(), MetaValue::String(text.into()))).into();
    assert_eq!(both(ChatTemplate::from_metadata(&Metadata::new("m.gguf", entries), &tokenizer).unwrap().unwrap()), expected);
}

/// Where the text ends by definition: at the first position at which any stop string is complete, before the longest that is.
fn naive_stop(text: &str, stops: &[String]) -> (String, bool) {
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let longest = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
        if let Some(len) = longest {
            return (text[..end - len].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

proptest! {
    #[test]
    fn streaming_gives_the_whole_text_and_no_half_characters(ids in prop::collection::vec(0u32..BYTE_LEVEL_SIZE as u32 + 3, 0..60), text in ".*") {
        for tokenizer in [byte_level("gpt-2"), sentence_piece()] {
            let texts = streamed(&tokenizer, &ids);
            assert_eq!(texts.concat(), tokenizer.decode(&ids));
            let encoded = tokenizer.encode(&text, Special::Leave).unwrap();
            let texts = streamed(&tokenizer, &encoded);
            let valid = !text.contains(char::REPLACEMENT_CHARACTER) && !text.contains(['▁', '<']);
            if valid {
                assert_eq!(texts.concat(), text.as_str());
                assert!(texts.iter().all(|text| !text.contains(char::REPLACEMENT_CHARACTER)));
            }
        }
        // The bytes of the first 256 ids are the ids themselves.
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
        let only_bytes: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
        assert_eq!(byte_level("gpt-2").decode(&only_bytes), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn stop_strings_stop_where_a_plain_search_finds_them(
        pieces in prop::collection::vec("[abé€]{0,4}", 0..12),
        stops in prop::collection::vec("[abé€]{1,4}", 0..4),
    ) {
        let mut stream = StopStrings::new(stops.clone()).unwrap();
        let (mut text, mut stopped) = (String::new(), false);
        for piece in &pieces {
            let outcome = stream.push(piece);
            text.push_str(&outcome.text);
            stopped = outcome.stopped;
        }
        if !stopped {
            text.push_str(&stream.finish());
        }
        assert_eq!((text, stopped), naive_stop(&pieces.concat(), &stops));
    }

    #[test]
    fn sampling_depends_on_seed_and_logits_alone(
        logits in prop::collection::vec(-20.0f32..20.0, 1..50),
        seed in any::<u64>(),
        rotation in any::<prop::sample::Index>(),
        settings in (0.1f32..2.0, 0u32..20, 0.0f32..=1.0, 0.0f32..=1.0, prop_oneof![Just(1.0f32), 0.5f32..2.0]),
    ) {
        let (temperature, top_k, top_p, min_p, repeat_penalty) = settings;
        let settings = SamplingSettings { temperature, top_k, top_p, min_p, repeat_penalty, ..SamplingSettings::default() };
        let candidates: Vec<Candidate> = logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit }).collect();
        let mut rotated = candidates.clone();
        rotated.rotate_left(rotation.index(candidates.len()));
        let draw = |candidates: &[Candidate]| -> Vec<u32> {
            let mut sampler = Sampler::new(settings.clone(), seed);
            let mut next = || {
                let token = sampler.sample(&mut candidates.to_vec()).unwrap();
                sampler.accept(token).unwrap();
                token
            };
            (0..8).map(|_| next()).collect()
        };
        let tokens = draw(&candidates);
        assert_eq!(tokens, draw(&rotated));
        // Without a penalty, what top-k and min-p exclude is never drawn.
        if repeat_penalty == 1.0 {
            let better = |token: u32| logits.iter().filter(|&&logit| logit > logits[token as usize]).count();
            let greatest = logits.iter().copied().fold(f32::MIN, f32::max);
            for token in tokens {
                assert!(top_k == 0 || better(token) < top_k as usize);
                assert!(logits[token as usize] >= greatest || logits[token as usize] - greatest >= min_p.ln() - 1e-4);
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_tokens_on_every_machine() {
    let candidates: Vec<Candidate> = (0..100).map(|token| Candidate { token, logit: ((token * 37) % 101) as f32 / 10.0 }).collect();
    let draw = |seed| -> Vec<u32> {
        let mut sampler = Sampler::new(SamplingSettings::default(), seed);
        (0..8).map(|_| sampler.sample(&mut candidates.clone()).unwrap()).collect()
    };
    assert_eq!(draw(42), draw(42));
    assert_ne!(draw(42), draw(43));
}
