//! The tokenizer, the chat template and the sampling of a Hugging Face folder as the keys of a GGUF file, as llama.cpp's converter writes
//! them. What was written is read again and compared on texts that are hard to cut: a tokenizer that would cut otherwise is refused.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::ModelWrapper;
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

use super::chat_template::ChatTemplate;
use super::defaults::ModelDefaults;
use super::embedding::{EmbeddingSettings, Pooling};
use super::files::{self, MAX_TOKENIZER_BYTES, text_error};
use super::pieces::{LeadingSpace, Spelling, byte_token};
use super::pre_tokenizer::PreTokenizer;
use super::tokenizer::{Special, Tokenizer, Vocabulary};
use super::tokenizer_json;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Format};
use crate::platform::Folder;
use crate::weights::{MetaValue, Metadata};

// `llama_token_type` of llama.cpp.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Texts on which ways of cutting differ.
const HARD_TEXTS: [&str; 12] = [
    "Hello, world! It's 12345 and we'll see 3.14159  two  spaces",
    "DON'T you'RE I'Ve  THEY'LL",
    "tabs\tand\n\nlines \r\n \n  x\n\n\n   y",
    "for (i = 0; i < n; i++) { a[i] += b_c->d(\"%s\\n\"); } // ok?!",
    "你好，世界 今天2024年 こんにちは カタカナ 안녕하세요 세계",
    "Größe naïve café Ελληνικά Привет мир مرحبا שלום हिन्दी ไทย",
    "🦙🚀👩‍👩‍👧 ✅ ∑∫√ € ½ ²³ ①",
    "HelloWorld helloWORLD camelCaseText snake_case",
    "http://example.com/a/b?c=d&e=f#g user@mail.org 1,234,567.89",
    "....!!!???---___===~~~^^^||| $<>+ `code`",
    " leading and trailing ",
    "a",
];

/// The keys of the tokenizer, of the chat template, of sampling and of pooling that a folder's files say. None of a tokenizer where it has
/// no `tokenizer.json`; then `tokenizer.ggml.model` is `no_vocab`.
///
/// # Errors
/// [`crate::error::Error::Text`] for files that cannot be read, and for a tokenizer that no GGUF file can hold.
pub fn text_keys(checkpoint: &Checkpoint, architecture: &str) -> Result<Vec<(String, MetaValue)>> {
    let Format::HuggingFace { folder } = &checkpoint.format else { return Ok(Vec::new()) };
    let mut keys = sampling_keys(&ModelDefaults::from_folder(folder.clone())?);
    let embedding = EmbeddingSettings::open(checkpoint)?;
    if !embedding.dense.is_empty() {
        let reason = "has a module Dense: such models are not converted";
        return Err(Error::UnsupportedModel { path: checkpoint.path.clone(), reason: reason.into() });
    }
    if let Some(pooling) = embedding.pooling {
        let number = match pooling {
            Pooling::Mean => 1,
            Pooling::Cls => 2,
            Pooling::Last => 3,
        };
        keys.push((format!("{architecture}.pooling_type"), MetaValue::Unsigned(number)));
    }
    if !folder.contains("tokenizer.json") {
        keys.push(("tokenizer.ggml.model".to_owned(), MetaValue::String("no_vocab".to_owned())));
        return Ok(keys);
    }
    let vocab_size = checkpoint.config.vocab_size;
    let tokenizer = Tokenizer::from_folder(folder.clone(), vocab_size)?;
    keys.extend(tokenizer_keys(folder, &tokenizer)?);
    check(folder, &tokenizer, &keys)?;
    if let Some(template) = ChatTemplate::from_folder(folder.clone(), &tokenizer)? {
        keys.push(("tokenizer.chat_template".to_owned(), MetaValue::String(template.source().to_owned())));
    }
    Ok(keys)
}

/// Under `general.sampling`, as gguf-py names them.
fn sampling_keys(defaults: &ModelDefaults) -> Vec<(String, MetaValue)> {
    let float = |value: Option<f32>| value.map(|value| MetaValue::Float(value.into()));
    let count = |value: Option<u32>| value.map(|value| MetaValue::Signed(value.into()));
    let keys = [
        ("temp", float(defaults.temperature)),
        ("top_k", count(defaults.top_k)),
        ("top_p", float(defaults.top_p)),
        ("min_p", float(defaults.min_p)),
        ("penalty_repeat", float(defaults.repeat_penalty)),
        ("penalty_last_n", count(defaults.repeat_last_n)),
    ];
    keys.into_iter().filter_map(|(name, value)| Some((format!("general.sampling.{name}"), value?))).collect()
}

/// `tokenizer.json` as far as the library does not give it back.
#[derive(Deserialize)]
struct File {
    model: ModelFile,
}

#[derive(Deserialize)]
struct ModelFile {
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Pair(left, right) => Some((left, right)),
            Merge::Text(text) => text.split_once(' '),
        }
    }
}

/// A vocabulary on its way into a GGUF file.
struct Tokens<'a> {
    vocabulary: &'a Vocabulary,
    texts: Vec<String>,
    types: Vec<i64>,
    merges: Vec<(String, String)>,
}

fn tokenizer_keys(folder: &Folder, tokenizer: &Tokenizer) -> Result<Vec<(String, MetaValue)>> {
    let vocabulary = tokenizer_json::read(folder)?;
    let path = folder.path_of("tokenizer.json");
    let bytes = files::read_optional(folder, "tokenizer.json", MAX_TOKENIZER_BYTES)?.unwrap_or_default();
    let File { model } = serde_json::from_slice(&bytes).map_err(|error| text_error(&path, format!("cannot be read: {error}")))?;
    let tokens = Tokens::new(&vocabulary, &model, tokenizer.vocab_size());
    let kind = match (vocabulary.inner.get_model(), &vocabulary.spelling) {
        (ModelWrapper::BPE(_), Spelling::ByteLevel) => tokens.byte_level(model.ignore_merges),
        (ModelWrapper::BPE(_), Spelling::SentencePiece(leading)) => Ok(tokens.sentence_piece(*leading)),
        (ModelWrapper::WordPiece(_), _) => Ok(tokens.word_piece()),
        (ModelWrapper::Unigram(_), _) => {
            Err("a Unigram vocabulary cannot be converted; byte-level BPE, SentencePiece BPE and WordPiece can".to_owned())
        }
        _ => Err("a vocabulary of this kind cannot be converted; byte-level BPE, SentencePiece BPE and WordPiece can".to_owned()),
    };
    let mut keys = kind.map_err(|reason| text_error(&path, reason))?;
    keys.extend(outer_keys(&vocabulary, tokenizer)?);
    Ok(keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
}

type Keys = Vec<(&'static str, MetaValue)>;

impl<'a> Tokens<'a> {
    fn new(vocabulary: &'a Vocabulary, model: &ModelFile, vocab_size: usize) -> Tokens<'a> {
        let inner = &vocabulary.inner;
        let mut texts: Vec<Option<String>> = vec![None; vocab_size];
        let ids = inner.get_vocab(true);
        for (text, id) in &ids {
            if let Some(place) = texts.get_mut(*id as usize) {
                *place = Some(text.clone());
            }
        }
        let added = inner.get_added_tokens_decoder();
        let types = (0..).zip(&texts).map(|(id, text): (u32, _)| match (text, added.get(&id)) {
            (None, _) => UNUSED,
            (_, Some(token)) if token.special => CONTROL,
            (_, Some(_)) => USER_DEFINED,
            _ => NORMAL,
        });
        let types = types.collect();
        // As llama.cpp's converter calls rows of the embedding that no token has.
        let texts = (0..).zip(texts).map(|(id, text): (usize, _)| text.unwrap_or_else(|| format!("[PAD{id}]"))).collect();
        let is_known = |text: &str| ids.get(text).is_some_and(|id| (*id as usize) < vocab_size);
        let pairs = model.merges.iter().filter_map(Merge::parts);
        let merges = pairs.filter(|(left, right)| is_known(left) && is_known(right) && is_known(&format!("{left}{right}")));
        let merges = merges.map(|(left, right)| (left.to_owned(), right.to_owned())).collect();
        Tokens { vocabulary, texts, types, merges }
    }

    fn keys(self, model: &str, pre: &str) -> Keys {
        vec![
            ("model", MetaValue::String(model.to_owned())),
            ("pre", MetaValue::String(pre.to_owned())),
            ("tokens", MetaValue::Strings(self.texts)),
            ("token_type", MetaValue::Integers(self.types)),
        ]
    }

    fn byte_level(mut self, ignore_merges: bool) -> std::result::Result<Keys, String> {
        let way = way_of(self.vocabulary, ignore_merges).ok_or("cuts texts into words in a way that GGUF files have no name for")?;
        let merges = std::mem::take(&mut self.merges).into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        let mut keys = self.keys("gpt2", way.name());
        keys.push(("merges", MetaValue::Strings(merges)));
        Ok(keys)
    }

    /// Pieces that merge sooner have higher scores, as those that the merges were made from.
    fn sentence_piece(mut self, leading: LeadingSpace) -> Keys {
        let mut scores: HashMap<String, f32> = HashMap::new();
        for (rank, (left, right)) in std::mem::take(&mut self.merges).into_iter().enumerate() {
            scores.entry(format!("{left}{right}")).or_insert(-(rank as f32));
        }
        let scores = self.texts.iter().map(|text| scores.get(text).copied().unwrap_or(-1e6)).collect();
        let unknown = self.vocabulary.template_tokens.0.get("unk_token").cloned();
        for (text, kind) in self.texts.iter().zip(&mut self.types) {
            if byte_token(text).is_some() {
                *kind = BYTE;
            } else if Some(text) == unknown.as_ref() {
                *kind = UNKNOWN;
            }
        }
        let mut keys = self.keys("llama", "default");
        keys.push(("scores", MetaValue::Floats(scores)));
        keys.push(("add_space_prefix", MetaValue::Bool(leading == LeadingSpace::Dropped)));
        keys
    }

    /// `▁` before tokens that begin a word, and no `##` before those that go on with one.
    fn word_piece(mut self) -> Keys {
        for (text, kind) in self.texts.iter_mut().zip(&self.types) {
            if *kind == NORMAL {
                *text = text.strip_prefix("##").map_or_else(|| format!("\u{2581}{text}"), str::to_owned);
            }
        }
        let n_types = MetaValue::Unsigned(2);
        let mut keys = self.keys("bert", "default");
        keys.push(("token_type_count", n_types));
        keys
    }
}

/// The way of cutting that does to hard texts what the folder's tokenizer does.
fn way_of(vocabulary: &Vocabulary, ignore_merges: bool) -> Option<&'static PreTokenizer> {
    let inner = &vocabulary.inner;
    let composes = inner.get_normalizer().is_some();
    let cut = |text: &str| {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = inner.get_normalizer() {
            normalizer.normalize(&mut normalized).ok()?;
        }
        words(normalized.get(), |pieces| inner.get_pre_tokenizer().map_or(Ok(()), |cut| cut.pre_tokenize(pieces)))
    };
    let expected: Vec<Vec<String>> = HARD_TEXTS.iter().map(|text| cut(text)).collect::<Option<_>>()?;
    let is_like = |way: &&PreTokenizer| {
        let Ok(built) = way.build() else { return false };
        let same = |(text, expected): (&&str, &Vec<String>)| words(text, |pieces| built.pre_tokenize(pieces)).as_ref() == Some(expected);
        way.takes_whole_words == ignore_merges && HARD_TEXTS.iter().zip(&expected).all(same)
    };
    // Of ways that cut alike, one that composes characters or not as the tokenizer does.
    let alike: Vec<&PreTokenizer> = PreTokenizer::all().iter().filter(is_like).collect();
    alike.iter().find(|way| way.normalizer().is_some() == composes).or(alike.first()).copied()
}

fn words(text: &str, cut: impl Fn(&mut PreTokenizedString) -> tokenizers::Result<()>) -> Option<Vec<String>> {
    let mut pieces = PreTokenizedString::from(text);
    cut(&mut pieces).ok()?;
    let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits.into_iter().map(|(_, (begin, end), _)| text.get(begin..end).map(str::to_owned)).collect()
}

/// The ids of tokens that have names, and whether BOS and EOS stand around plain texts.
fn outer_keys(vocabulary: &Vocabulary, tokenizer: &Tokenizer) -> Result<Keys> {
    let named = |name: &str| tokenizer.token_id(vocabulary.template_tokens.0.get(name)?);
    let plain = tokenizer.encode("a", Special::Leave)?;
    let framed = tokenizer.encode("a", Special::Add)?;
    let (bos, ends) = (tokenizer.bos_token(), tokenizer.eos_tokens());
    let eos = named("eos_token").or(ends.first().copied());
    let ids = [
        ("bos_token_id", bos),
        ("eos_token_id", eos),
        // One more that ends an answer; the rest is known by its text.
        ("eot_token_id", ends.iter().copied().find(|id| Some(*id) != eos)),
        ("unknown_token_id", named("unk_token")),
        ("padding_token_id", named("pad_token")),
        ("seperator_token_id", named("sep_token")),
        ("cls_token_id", named("cls_token")),
        ("mask_token_id", named("mask_token")),
    ];
    let mut keys: Keys = ids.into_iter().filter_map(|(key, id)| Some((key, MetaValue::Unsigned(id?.into())))).collect();
    keys.push(("add_bos_token", MetaValue::Bool(framed.first() != plain.first())));
    keys.push(("add_eos_token", MetaValue::Bool(framed.last() != plain.last())));
    Ok(keys)
}

/// Compares what the keys say with the folder's tokenizer.
fn check(folder: &Folder, tokenizer: &Tokenizer, keys: &[(String, MetaValue)]) -> Result<()> {
    let metadata = Metadata::new(folder.to_string(), keys.iter().cloned().collect());
    let written = Tokenizer::from_metadata(&metadata, tokenizer.vocab_size())?;
    for text in HARD_TEXTS {
        let [expected, found] = [tokenizer, &written].map(|tokenizer| tokenizer.encode(text, Special::Add));
        let (expected, found) = (expected?, found?);
        if expected != found {
            let reason =
                format!("cannot be held by a GGUF file: `{}` becomes {expected:?}, it would become {found:?}", text.escape_debug());
            return Err(text_error(folder.path_of("tokenizer.json"), reason));
        }
    }
    Ok(())
}
