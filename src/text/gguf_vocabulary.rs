//! The vocabulary in GGUF metadata, checked and rebuilt as a tokenizer. Knows the keys under `tokenizer.ggml`.

use std::collections::HashMap;

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::utils::Sequence;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace};

use super::files::text_error;
use super::pieces::{LeadingSpace, Spelling, byte_token};
use super::pre_tokenizer::PreTokenizer;
use super::sentence_piece::merges_from_scores;
use super::tokenizer::{Frame, Vocabulary};
use crate::error::{Error, Result};
use crate::weights::Metadata;

/// Reads the tokenizer of a GGUF file.
pub(super) fn read(metadata: &Metadata) -> Result<Vocabulary> {
    let tokens = Tokens::read(metadata)?;
    match metadata.string("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(metadata, &tokens),
        Some("llama") => sentence_piece(metadata, &tokens),
        Some(other) => {
            let fault =
                format!("tokenizer.ggml.model `{other}` is not supported; supported are gpt2 (byte-level BPE) and llama (SentencePiece)");
            Err(text_error(&metadata.path, fault))
        }
        None => Err(text_error(&metadata.path, "has no tokenizer (metadata key `tokenizer.ggml.model`)")),
    }
}

/// Texts and types of all tokens, in the order of their ids.
struct Tokens<'a> {
    texts: &'a [String],
    /// Empty where the file has none: all tokens are normal then.
    types: &'a [i64],
}

/// What a token is for (`llama_token_type` of llama.cpp).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    /// 1 and 5 (unused), and numbers that are not known: part of the vocabulary and nothing else.
    Normal,
    /// 2: stands for text that has no tokens.
    Unknown,
    /// 3: never shown, found in templated text.
    Control,
    /// 4: shown, found in text before anything else.
    UserDefined,
    /// 6: a single byte.
    Byte,
}

/// Merging is quadratic in a token's length; vocabularies in use have some 100 characters at most.
const MAX_TOKEN_BYTES: usize = 1024;
/// All tokens' texts together; the largest vocabularies in use have about 4 MB.
const MAX_VOCABULARY_BYTES: usize = 16 << 20;

impl<'a> Tokens<'a> {
    fn read(metadata: &'a Metadata) -> Result<Tokens<'a>> {
        let fault = |text: String| Err(text_error(&metadata.path, text));
        let texts = metadata.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return fault(format!("tokenizer.ggml.tokens has {} tokens", texts.len()));
        }
        if !types.is_empty() && types.len() != texts.len() {
            return fault(format!("tokenizer.ggml.token_type has {} entries for {} tokens", types.len(), texts.len()));
        }
        if let Some((id, text)) = texts.iter().enumerate().find(|(_, text)| text.len() > MAX_TOKEN_BYTES) {
            return fault(format!("token {id} has {} bytes, more than {MAX_TOKEN_BYTES}", text.len()));
        }
        let total: usize = texts.iter().map(String::len).sum();
        if total > MAX_VOCABULARY_BYTES {
            return fault(format!("its tokens have {total} bytes together, more than {MAX_VOCABULARY_BYTES}"));
        }
        let tokens = Tokens { texts, types };
        let misspelt = tokens.iter().find(|(_, text, kind)| *kind == TokenType::Byte && byte_token(text).is_none());
        match misspelt {
            Some((id, text, _)) => fault(format!("token {id} `{text}` is marked as a byte but not written as one (`<0x0A>`)")),
            None => Ok(tokens),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, TokenType)> {
        let (texts, types) = (self.texts, self.types);
        texts.iter().zip(0u32..).map(move |(text, id)| {
            let kind = match types.get(id as usize).copied() {
                Some(2) => TokenType::Unknown,
                Some(3) => TokenType::Control,
                Some(4) => TokenType::UserDefined,
                Some(6) => TokenType::Byte,
                _ => TokenType::Normal,
            };
            (id, text.as_str(), kind)
        })
    }

    fn ids(&self) -> HashMap<&'a str, u32> {
        self.iter().map(|(id, text, _)| (text, id)).collect()
    }

    fn vocab(&self) -> Vocab {
        self.iter().map(|(id, text, _)| (text.to_owned(), id)).collect()
    }
}

/// GPT-2's kind: bytes as characters, cut into words, merged in the order of a list.
fn byte_level(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Vocabulary> {
    let failed = |error: tokenizers::Error| text_error(&metadata.path, format!("its vocabulary cannot be used: {error}"));
    let name = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let way = PreTokenizer::from_name(name).map_err(|fault| text_error(&metadata.path, fault))?;
    let merges = listed_merges(metadata, tokens)?;
    let model = BPE::builder().vocab_and_merges(tokens.vocab(), merges).ignore_merges(way.takes_whole_words()).build().map_err(failed)?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(way.normalizer()).map_err(failed)?;
    inner.with_pre_tokenizer(Some(way.build().map_err(failed)?));
    finish(metadata, tokens, inner, Spelling::ByteLevel, way.adds_bos())
}

/// SentencePiece's kind: `▁` for the space, the likeliest merge first, bytes for what has no token.
fn sentence_piece(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Vocabulary> {
    let failed = |error: tokenizers::Error| text_error(&metadata.path, format!("its vocabulary cannot be used: {error}"));
    let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != tokens.texts.len() {
        let fault = format!("tokenizer.ggml.scores has {} entries for {} tokens", scores.len(), tokens.texts.len());
        return Err(text_error(&metadata.path, fault));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(text_error(&metadata.path, format!("the score of token {id} is not a number")));
    }
    let mergeable = |kind| matches!(kind, TokenType::Normal | TokenType::UserDefined);
    let pieces = tokens.iter().zip(scores).filter(|((_, _, kind), _)| mergeable(*kind));
    let merges = merges_from_scores(pieces.map(|((id, text, _), score)| (id, text, *score)));

    let mut builder = BPE::builder().vocab_and_merges(tokens.vocab(), merges).byte_fallback(true).fuse_unk(true);
    if let Some((_, unknown, _)) = tokens.iter().find(|(_, _, kind)| *kind == TokenType::Unknown) {
        builder = builder.unk_token(unknown.to_owned());
    }
    let mut inner = tokenizers::Tokenizer::new(builder.build().map_err(failed)?);
    let add_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut steps = Vec::new();
    steps.extend(add_space.then(|| NormalizerWrapper::Prepend(Prepend::new("\u{2581}".into()))));
    steps.push(NormalizerWrapper::Replace(Replace::new(" ", "\u{2581}").map_err(failed)?));
    inner.with_normalizer(Some(NormalizerWrapper::Sequence(Sequence::new(steps)))).map_err(failed)?;
    let leading_space = if add_space { LeadingSpace::Dropped } else { LeadingSpace::Kept };
    finish(metadata, tokens, inner, Spelling::SentencePiece(leading_space), true)
}

/// `tokenizer.ggml.merges`: two tokens parted by a space, the first of which may begin with one.
fn listed_merges(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Vec<(String, String)>> {
    let ids = tokens.ids();
    let lines = metadata.strings("tokenizer.ggml.merges")?.unwrap_or_default();
    let parse = |(number, line): (usize, &String)| {
        let fault = |text: &str| text_error(&metadata.path, format!("merge {number} `{line}` {text}"));
        let space = line.char_indices().skip(1).find(|(_, character)| *character == ' ');
        let (left, right) = space.map(|(at, _)| line.split_at(at)).ok_or_else(|| fault("is not two tokens parted by a space"))?;
        let right = right.trim_start_matches(' ');
        for part in [left, right, &format!("{left}{right}")] {
            if !ids.contains_key(part) {
                return Err(fault(&format!("needs the token `{part}`, which the vocabulary lacks")));
            }
        }
        Ok((left.to_owned(), right.to_owned()))
    };
    lines.iter().enumerate().map(parse).collect()
}

/// Tokens that end an answer where they are control tokens, whatever the metadata says; as llama.cpp knows them by their texts.
const END_TEXTS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_sentence|>",
    "<EOT>",
];

/// Adds the tokens that stand outside the merging, and reads which ids begin and end a text.
fn finish(
    metadata: &Metadata,
    tokens: &Tokens<'_>,
    mut inner: tokenizers::Tokenizer,
    spelling: Spelling,
    adds_bos: bool,
) -> Result<Vocabulary> {
    let added = tokens.iter().filter_map(|(_, text, kind)| match kind {
        TokenType::Control | TokenType::Unknown => Some(AddedToken::from(text, true).normalized(false)),
        TokenType::UserDefined => Some(AddedToken::from(text, false).normalized(false)),
        TokenType::Normal | TokenType::Byte => None,
    });
    let added: Vec<AddedToken> = added.filter(|token| !token.content.is_empty()).collect();
    if !added.is_empty() {
        inner.add_tokens(added).map_err(|error| text_error(&metadata.path, format!("its special tokens cannot be used: {error}")))?;
    }
    let id = |name: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = metadata.unsigned(&key)? else { return Ok(None) };
        let known = u32::try_from(id).ok().filter(|&id| (id as usize) < tokens.texts.len());
        let outside =
            || Error::Text { path: metadata.path.clone(), fault: format!("{key} is {id}, but there are {} tokens", tokens.texts.len()) };
        known.map(Some).ok_or_else(outside)
    };
    let mut eos: Vec<u32> = Vec::new();
    let listed = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten();
    let by_text = tokens.iter().filter(|(_, text, kind)| *kind == TokenType::Control && END_TEXTS.contains(text)).map(|(id, ..)| id);
    for id in listed.chain(by_text) {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
    let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let frame = Frame::Settings { add_bos, add_eos };
    Ok(Vocabulary { path: metadata.path.clone(), inner, spelling, bos: id("bos")?, eos, frame })
}
