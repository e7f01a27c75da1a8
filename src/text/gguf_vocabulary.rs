//! The vocabulary in GGUF metadata, checked and rebuilt as a tokenizer. Knows the keys under `tokenizer.ggml`.

use std::collections::{HashMap, HashSet};

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::Replace;

use super::files::text_error;
use super::gguf_repairs::{Named, Repairs};
use super::pieces::{LeadingSpace, Spelling, byte_token};
use super::pre_tokenizer::PreTokenizer;
use super::sentence_piece::{Segmentation, SentencePieces};
use super::tokenizer::{Frame, OuterToken, TemplateTokens, Vocabulary};
use super::word_piece;
use crate::error::Result;
use crate::weights::{MetaValue, Metadata};

/// Reads the tokenizer of a GGUF file.
pub(super) fn read(metadata: &Metadata) -> Result<Vocabulary> {
    let tokens = Tokens::read(metadata)?;
    match metadata.string("tokenizer.ggml.model")? {
        Some("gpt2") if metadata.string("tokenizer.ggml.pre")?.is_some_and(|pre| SPACES_AS_MARKS.contains(&pre)) => marked_spaces(&tokens),
        Some("gpt2") => byte_level(&tokens),
        Some("gemma4") => marked_spaces(&tokens),
        Some("llama") => sentence_piece(&tokens, Segmentation::Merges),
        Some("t5") => sentence_piece(&tokens, Segmentation::Likeliest),
        Some("bert") => word_piece_of_words(&tokens),
        Some(other) => {
            let reason = format!(
                "tokenizer.ggml.model `{other}` is not supported; supported are gpt2 (byte-level BPE), gemma4 (BPE), llama (SentencePiece's BPE), t5 (its Unigram) and bert (WordPiece)"
            );
            Err(text_error(&metadata.path, reason))
        }
        None => Err(text_error(&metadata.path, "has no tokenizer (metadata key `tokenizer.ggml.model`)")),
    }
}

/// Texts and types of all tokens, in the order of their ids.
struct Tokens<'a> {
    metadata: &'a Metadata,
    texts: &'a [String],
    /// Empty where the file has none: all tokens are normal then.
    types: &'a [i64],
    repairs: Repairs,
}

/// What a token is for (`llama_token_type` of llama.cpp).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    /// 1, and numbers that are not known: part of the vocabulary and nothing else. So is 5 (unused) in GGUF files.
    Normal,
    /// 2: stands for text that has no tokens.
    Unknown,
    /// 3: never shown, found in templated text.
    Control,
    /// 4: shown, found in text before anything else.
    UserDefined,
    /// 5 of SentencePiece's own files: no text is made of it.
    Unused,
    /// 6: a single byte.
    Byte,
}

impl TokenType {
    /// Whether texts are made of it.
    pub(super) fn is_of_texts(self) -> bool {
        matches!(self, TokenType::Normal | TokenType::UserDefined)
    }
}

/// Merging is quadratic in a token's length; vocabularies in use have some 100 characters at most.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;
/// All tokens' texts together; the largest vocabularies in use have about 4 MB.
pub(super) const MAX_VOCABULARY_BYTES: usize = 16 << 20;

impl<'a> Tokens<'a> {
    fn read(metadata: &'a Metadata) -> Result<Tokens<'a>> {
        let invalid = |text: String| Err(text_error(&metadata.path, text));
        let texts = metadata.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return invalid(format!("tokenizer.ggml.tokens has {} tokens", texts.len()));
        }
        if !types.is_empty() && types.len() != texts.len() {
            return invalid(format!("tokenizer.ggml.token_type has {} entries for {} tokens", types.len(), texts.len()));
        }
        if let Some((id, text)) = texts.iter().enumerate().find(|(_, text)| text.len() > MAX_TOKEN_BYTES) {
            return invalid(format!("token {id} has {} bytes, more than {MAX_TOKEN_BYTES}", text.len()));
        }
        let total: usize = texts.iter().map(String::len).sum();
        if total > MAX_VOCABULARY_BYTES {
            return invalid(format!("its tokens have {total} bytes together, more than {MAX_VOCABULARY_BYTES}"));
        }
        let named = |name: &str| token_id(metadata, texts.len(), name).is_some();
        let named = Named { fill_padding: named("fim_pad"), repository: named("fim_rep"), file_separator: named("fim_sep") };
        let known: HashSet<&str> = texts.iter().map(String::as_str).collect();
        let tokens = Tokens { metadata, texts, types, repairs: Repairs::new(named, |text| known.contains(text)) };
        let misspelt = tokens.iter().find(|(_, text, kind)| *kind == TokenType::Byte && byte_token(text).is_none());
        match misspelt {
            Some((id, text, _)) => invalid(format!("token {id} `{text}` is marked as a byte but not written as one (`<0x0A>`)")),
            None => Ok(tokens),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, TokenType)> {
        let (texts, types, repairs) = (self.texts, self.types, self.repairs);
        texts.iter().zip(0u32..).map(move |(text, id)| {
            let kind = match types.get(id as usize).copied() {
                Some(2) => TokenType::Unknown,
                Some(3) => TokenType::Control,
                Some(4) => TokenType::UserDefined,
                Some(6) => TokenType::Byte,
                _ => TokenType::Normal,
            };
            (id, text.as_str(), repairs.kind(text, kind))
        })
    }

    fn ids(&self) -> HashMap<&'a str, u32> {
        self.iter().map(|(id, text, _)| (text, id)).collect()
    }

    fn vocab(&self) -> Vocab {
        self.iter().map(|(id, text, _)| (text.to_owned(), id)).collect()
    }

    /// The id under `tokenizer.ggml.NAME_token_id`, if it is one of a token.
    fn id(&self, name: &str) -> Option<u32> {
        token_id(self.metadata, self.texts.len(), name)
    }
}

/// The id under `tokenizer.ggml.NAME_token_id`. One that no token has is left out, with a warning.
fn token_id(metadata: &Metadata, n_tokens: usize, name: &str) -> Option<u32> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let value = metadata.get(&key)?;
    let number = match value {
        MetaValue::Unsigned(id) => i128::from(*id),
        MetaValue::Signed(id) => i128::from(*id),
        _ => {
            tracing::warn!("{}: {key} is no number and is ignored", metadata.path);
            return None;
        }
    };
    let id = u32::try_from(number).ok().filter(|&id| (id as usize) < n_tokens);
    if id.is_none() {
        tracing::warn!("{}: {key} is {number}, which none of its {n_tokens} tokens has; it is ignored", metadata.path);
    }
    id
}

/// GPT-2's kind: bytes as characters, cut into words, merged in the order of a list.
fn byte_level(tokens: &Tokens<'_>) -> Result<Vocabulary> {
    let metadata = tokens.metadata;
    let failed = |error: tokenizers::Error| text_error(&metadata.path, format!("its vocabulary cannot be used: {error}"));
    let name = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let way = PreTokenizer::from_name(name).map_err(|reason| text_error(&metadata.path, reason))?;
    let merges = listed_merges(tokens)?;
    let model = BPE::builder().vocab_and_merges(tokens.vocab(), merges).ignore_merges(way.takes_whole_words).build().map_err(failed)?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(way.normalizer()).map_err(failed)?;
    inner.with_pre_tokenizer(Some(way.build().map_err(failed)?));
    // llama.cpp's default for both is 11, a leftover of Falcon: a comma or so elsewhere, which must not end an answer.
    let ends = Ends { bos: tokens.id("bos"), eos: tokens.id("eos"), adds_bos: way.adds_bos, adds_eos: false };
    finish(tokens, inner, Spelling::ByteLevel, ends)
}

/// Names under `tokenizer.ggml.pre` of vocabularies that are merged from a list, but spelled as SentencePiece's.
const SPACES_AS_MARKS: [&str; 3] = ["gemma4", "granite-embed-multi-311m", "sarvam-moe"];

/// Gemma 4's kind: `▁` for the space, characters merged in the order of a list and cut into no words, bytes for what has no token.
fn marked_spaces(tokens: &Tokens<'_>) -> Result<Vocabulary> {
    let metadata = tokens.metadata;
    let failed = |error: tokenizers::Error| text_error(&metadata.path, format!("its vocabulary cannot be used: {error}"));
    let mut builder = BPE::builder().vocab_and_merges(tokens.vocab(), listed_merges(tokens)?).byte_fallback(true).fuse_unk(true);
    if let Some((_, unknown, _)) = tokens.iter().find(|(_, _, kind)| *kind == TokenType::Unknown) {
        builder = builder.unk_token(unknown.to_owned());
    }
    let mut inner = tokenizers::Tokenizer::new(builder.build().map_err(failed)?);
    inner.with_normalizer(Some(Replace::new(" ", "\u{2581}").map_err(failed)?)).map_err(failed)?;
    let ends = Ends { bos: tokens.id("bos"), eos: tokens.id("eos"), adds_bos: true, adds_eos: false };
    finish(tokens, inner, Spelling::SentencePiece(LeadingSpace::Kept), ends)
}

/// SentencePiece's kinds: `▁` for the space, pieces with scores, bytes for what has no token.
fn sentence_piece(tokens: &Tokens<'_>, segmentation: Segmentation) -> Result<Vocabulary> {
    let metadata = tokens.metadata;
    let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != tokens.texts.len() {
        let reason = format!("tokenizer.ggml.scores has {} entries for {} tokens", scores.len(), tokens.texts.len());
        return Err(text_error(&metadata.path, reason));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(text_error(&metadata.path, format!("the score of token {id} is not a number")));
    }
    let adds_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    // What llama.cpp reads of these, it reads for this kind alone.
    let is_unigram = segmentation == Segmentation::Likeliest;
    let pieces = SentencePieces {
        pieces: tokens.iter().zip(scores).map(|((_, text, kind), score)| (text, kind, *score)).collect(),
        segmentation,
        charsmap: if is_unigram { charsmap(metadata)? } else { None },
        trims_spaces: is_unigram && metadata.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false),
        adds_space,
    };
    let inner = pieces.tokenizer().map_err(|error| text_error(&metadata.path, format!("its vocabulary cannot be used: {error}")))?;
    let leading_space = if adds_space { LeadingSpace::Dropped } else { LeadingSpace::Kept };
    // The ids of SentencePiece and of T5, as llama.cpp takes them where the file has none that can be used.
    let or_default = |name: &str, id: u32| tokens.id(name).or(Some(id)).filter(|&id| (id as usize) < tokens.texts.len());
    let ends = match segmentation {
        Segmentation::Merges => Ends { bos: or_default("bos", 1), eos: or_default("eos", 2), adds_bos: true, adds_eos: false },
        Segmentation::Likeliest => Ends { bos: tokens.id("bos"), eos: or_default("eos", 1), adds_bos: false, adds_eos: true },
    };
    finish(tokens, inner, Spelling::SentencePiece(leading_space), ends)
}

/// `tokenizer.ggml.precompiled_charsmap`: bytes.
fn charsmap(metadata: &Metadata) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = metadata.integers("tokenizer.ggml.precompiled_charsmap")? else { return Ok(None) };
    let bytes: Option<Vec<u8>> =
        bytes.iter().map(|byte| u8::try_from(*byte).ok().or(i8::try_from(*byte).ok().map(|byte| byte as u8))).collect();
    bytes.map(Some).ok_or_else(|| text_error(&metadata.path, "tokenizer.ggml.precompiled_charsmap has numbers that are no bytes"))
}

/// BERT's kind. The ids that a file does not name are those of BERT's own vocabulary, as llama.cpp takes them.
fn word_piece_of_words(tokens: &Tokens<'_>) -> Result<Vocabulary> {
    let or_default = |names: &[&str], id: u32| {
        let named = names.iter().find_map(|name| tokens.id(name));
        named.or(Some(id)).filter(|&id| (id as usize) < tokens.texts.len())
    };
    let unknown = or_default(&["unknown"], 100).and_then(|id| tokens.texts.get(id as usize)).map_or("[UNK]", String::as_str);
    let is_special = |kind| matches!(kind, TokenType::Control | TokenType::Unknown | TokenType::UserDefined);
    let words = tokens.iter().map(|(id, text, kind)| (id, text, is_special(kind)));
    let inner = word_piece::tokenizer(words, unknown)
        .map_err(|error| text_error(&tokens.metadata.path, format!("its vocabulary cannot be used: {error}")))?;
    let ends = Ends { bos: or_default(&["cls", "bos"], 101), eos: or_default(&["seperator", "eos"], 102), adds_bos: true, adds_eos: true };
    let vocabulary = finish(tokens, inner, Spelling::Other, ends)?;
    Ok(Vocabulary { frame: Frame::Settings { add_bos: true, add_eos: true }, ..vocabulary })
}

/// `tokenizer.ggml.merges`: two tokens parted by a space, the first of which may begin with one.
fn listed_merges(tokens: &Tokens<'_>) -> Result<Vec<(String, String)>> {
    let (metadata, ids) = (tokens.metadata, tokens.ids());
    let lines = metadata.strings("tokenizer.ggml.merges")?.unwrap_or_default();
    let parse = |(number, line): (usize, &String)| {
        let invalid = |text: &str| text_error(&metadata.path, format!("merge {number} `{line}` {text}"));
        let space = line.char_indices().skip(1).find(|(_, character)| *character == ' ');
        let (left, right) = space.map(|(at, _)| line.split_at(at)).ok_or_else(|| invalid("is not two tokens parted by a space"))?;
        let right = right.trim_start_matches(' ');
        for part in [left, right, &format!("{left}{right}")] {
            if !ids.contains_key(part) {
                return Err(invalid(&format!("needs the token `{part}`, which the vocabulary lacks")));
            }
        }
        Ok((left.to_owned(), right.to_owned()))
    };
    lines.iter().enumerate().map(parse).collect()
}

/// What begins and ends a text.
struct Ends {
    bos: Option<u32>,
    eos: Option<u32>,
    /// BOS is put before a text where the file does not say.
    adds_bos: bool,
    /// EOS is put behind it.
    adds_eos: bool,
}

/// Adds the tokens that stand outside the merging, and gathers which ids end an answer.
fn finish(tokens: &Tokens<'_>, mut inner: tokenizers::Tokenizer, spelling: Spelling, ends: Ends) -> Result<Vocabulary> {
    let metadata = tokens.metadata;
    let added = tokens.iter().filter_map(|(_, text, kind)| match kind {
        TokenType::Control | TokenType::Unknown => Some(AddedToken::from(text, true).normalized(false)),
        TokenType::UserDefined => Some(AddedToken::from(text, false).normalized(false)),
        TokenType::Normal | TokenType::Unused | TokenType::Byte => None,
    });
    let added: Vec<AddedToken> = added.filter(|token| !token.content.is_empty()).collect();
    if !added.is_empty() {
        inner.add_tokens(added).map_err(|error| text_error(&metadata.path, format!("its special tokens cannot be used: {error}")))?;
    }
    let named = ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"].map(|name| tokens.id(name));
    let by_text = tokens.iter().filter(|(_, text, _)| tokens.repairs.ends(text)).map(|(id, ..)| id);
    let mut eos: Vec<u32> = Vec::new();
    for id in ends.eos.into_iter().chain(named.into_iter().flatten()).chain(by_text) {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(ends.adds_bos);
    let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(ends.adds_eos) && ends.eos.is_some();
    let text = |id: Option<u32>| id.and_then(|id| tokens.texts.get(id as usize)).cloned();
    let template_tokens = TemplateTokens::from_iter([
        ("bos_token", text(ends.bos)),
        ("eos_token", text(ends.eos)),
        ("unk_token", text(tokens.id("unknown"))),
        ("pad_token", text(tokens.id("padding"))),
        ("sep_token", text(tokens.id("seperator"))),
        ("cls_token", text(tokens.id("cls"))),
        ("mask_token", text(tokens.id("mask"))),
    ]);
    let frame = Frame::Settings { add_bos, add_eos };
    let outer = |id| OuterToken { id, file: metadata.path.clone() };
    let (bos, eos) = (ends.bos.map(outer), eos.into_iter().map(outer).collect());
    Ok(Vocabulary { path: metadata.path.clone(), inner, spelling, bos, eos, frame, template_tokens })
}
