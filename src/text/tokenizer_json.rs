//! `tokenizer.json` or `tokenizer.model` and the configs beside it, checked and read. What the library would panic on is refused before it
//! sees it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::files::{self, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, MAX_TOKENIZER_CONFIG_BYTES, text_error};
use super::gguf_vocabulary::TokenType;
use super::pieces::{LeadingSpace, Spelling};
use super::pre_tokenizer::PreTokenizer;
use super::rank_file;
use super::sentence_piece::Segmentation;
use super::sentence_piece_file::{self, SentencePieceFile};
use super::tokenizer::{Frame, OuterToken, TemplateTokens, Vocabulary};
use super::tokenizer_json_checks::TokenizerFile;
use crate::error::{Error, Result};
use crate::platform::Folder;

/// Reads the tokenizer of a Hugging Face folder: `tokenizer.json`, or where there is none SentencePiece's `tokenizer.model` or a file of
/// tiktoken's.
pub(super) fn read(folder: &Folder) -> Result<Vocabulary> {
    let config = TokenizerConfig::read(folder)?;
    let Read { path, inner, spelling, bos, eos, frame } = match files::read_optional(folder, "tokenizer.json", MAX_TOKENIZER_BYTES)? {
        Some(bytes) => from_json(folder, &config, &bytes)?,
        None => match other_file(folder)? {
            Some((name, bytes)) if rank_file::is_one(&bytes) => from_tiktoken(folder, &config, &name, &bytes)?,
            Some((name, bytes)) => from_sentence_piece(folder, &config, &name, &bytes)?,
            None => {
                return Err(text_error(
                    folder,
                    "has no tokenizer.json, tokenizer.model or tiktoken file; download one of them with the model",
                ));
            }
        },
    };
    let (named_bos, named_eos) = outer_tokens(folder, &config, &inner)?;
    let own = |id: u32| OuterToken { id, file: path.clone() };
    let bos = named_bos.or(bos.map(own));
    let eos = if named_eos.is_empty() { eos.map(own).into_iter().collect() } else { named_eos };
    let frame = match config.add_bos_token {
        // Without a BOS to add only the post-processor can know what is meant.
        Some(add_bos) if !add_bos || bos.is_some() => Frame::Settings { add_bos, add_eos: config.add_eos_token.unwrap_or(false) },
        _ => frame,
    };
    let template_tokens = template_tokens(&config, &inner, bos.as_ref(), eos.first());
    Ok(Vocabulary { path, inner, spelling, bos, eos, frame, template_tokens })
}

/// The file of a vocabulary that is no `tokenizer.json`, and its bytes: SentencePiece's or tiktoken's.
fn other_file(folder: &Folder) -> Result<Option<(String, Vec<u8>)>> {
    let named = folder.names_with("tiktoken").unwrap_or_default();
    for name in ["tokenizer.model".to_owned(), "tiktoken.model".to_owned()].into_iter().chain(named) {
        if let Some(bytes) = files::read_optional(folder, &name, MAX_TOKENIZER_BYTES)? {
            return Ok(Some((name, bytes)));
        }
    }
    Ok(None)
}

/// What one file says of a tokenizer.
struct Read {
    path: String,
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    /// Where no other file names them.
    bos: Option<u32>,
    eos: Option<u32>,
    frame: Frame,
}

fn from_json(folder: &Folder, config: &TokenizerConfig, bytes: &[u8]) -> Result<Read> {
    let path = folder.path_of("tokenizer.json");
    let file: TokenizerFile = serde_json::from_slice(bytes).map_err(|error| text_error(&path, format!("cannot be read: {error}")))?;
    file.check().map_err(|reason| text_error(&path, reason))?;
    let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
    let mut inner = parsed
        .map_err(|_| text_error(&path, "cannot be read: the tokenizers library panicked"))?
        .map_err(|error| text_error(&path, format!("cannot be read: {error}")))?;
    // A prompt is never cut or filled up behind the user's back, whatever the file was saved with.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| text_error(&path, error.to_string()))?;
    add_tokens(&mut inner, config).map_err(|error| text_error(&path, error.to_string()))?;
    let spelling = spelling(file.decoder.as_ref());
    Ok(Read { path, inner, spelling, bos: None, eos: None, frame: Frame::PostProcessor })
}

/// A text begins with BOS where the model merges, as Llama's does, and ends with EOS where it does not, as T5's does: so the classes of
/// transformers have it where the config says nothing.
fn from_sentence_piece(folder: &Folder, config: &TokenizerConfig, name: &str, bytes: &[u8]) -> Result<Read> {
    let path = folder.path_of(name);
    let SentencePieceFile { pieces, bos, eos } = sentence_piece_file::read(&path, bytes)?;
    let failed = |error: tokenizers::Error| text_error(&path, format!("its vocabulary cannot be used: {error}"));
    let mut inner = pieces.tokenizer().map_err(failed)?;
    let added = |&(text, kind, _): &(&str, TokenType, f32)| match kind {
        TokenType::Control | TokenType::Unknown => Some(AddedToken::from(text, true).normalized(false)),
        TokenType::UserDefined => Some(AddedToken::from(text, false).normalized(false)),
        TokenType::Normal | TokenType::Unused | TokenType::Byte => None,
    };
    let added: Vec<AddedToken> = pieces.pieces.iter().filter_map(added).filter(|token| !token.content.is_empty()).collect();
    inner.add_tokens(added).map_err(failed)?;
    add_behind(&mut inner, added_behind(folder, config)?, Gaps::Refused).map_err(|reason| text_error(&path, reason))?;
    let spelling = Spelling::SentencePiece(if pieces.adds_space { LeadingSpace::Dropped } else { LeadingSpace::Kept });
    let merges = pieces.segmentation == Segmentation::Merges;
    Ok(Read { path, inner, spelling, bos, eos, frame: Frame::Settings { add_bos: merges, add_eos: !merges } })
}

/// The tokens that are added to a SentencePiece vocabulary: those of `added_tokens_decoder`, or of the older `added_tokens.json`, by id.
fn added_behind(folder: &Folder, config: &TokenizerConfig) -> Result<Vec<(u32, AddedToken)>> {
    let mut added: Vec<(u32, AddedToken)> = config.added_tokens.iter().map(|(id, entry)| (*id, entry.to_added())).collect();
    if added.is_empty() {
        let fields = files::read_fields(folder, "added_tokens.json", MAX_TOKENIZER_CONFIG_BYTES)?.unwrap_or_default();
        let is_named = |text: &str| config.tokens.values().flatten().any(|named| named == text);
        let token = |(text, id): (&String, &Value)| {
            let id = u32::try_from(id.as_u64()?).ok()?;
            Some((id, AddedToken::from(text.clone(), is_named(text)).normalized(false)))
        };
        added = fields.iter().filter_map(token).collect();
    }
    added.sort_by_key(|(id, _)| *id);
    Ok(added)
}

/// A file of tiktoken's does not say how texts are cut into words; the code of each model does. Here Llama 3's way is taken, or Kimi's
/// where the file has its name.
fn from_tiktoken(folder: &Folder, config: &TokenizerConfig, name: &str, bytes: &[u8]) -> Result<Read> {
    let path = folder.path_of(name);
    let way = PreTokenizer::from_name(if name == "tiktoken.model" { "kimi-k2" } else { "llama-bpe" });
    let way = way.map_err(|reason| text_error(&path, reason))?;
    let mut inner = rank_file::tokenizer(&path, bytes, way)?;
    add_behind(&mut inner, added_behind(folder, config)?, Gaps::Reserved).map_err(|reason| text_error(&path, reason))?;
    let frame = Frame::Settings { add_bos: way.adds_bos, add_eos: false };
    Ok(Read { path, inner, spelling: Spelling::ByteLevel, bos: None, eos: None, frame })
}

/// What becomes of ids between the vocabulary's and those of added tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gaps {
    Refused,
    /// They are special tokens that no text has.
    Reserved,
}

/// So many ids may be reserved; models have some hundreds.
const MAX_RESERVED: usize = 4096;

/// Adds tokens whose ids follow those that there are, and sets the flags of those that are there.
fn add_behind(inner: &mut tokenizers::Tokenizer, added: Vec<(u32, AddedToken)>, gaps: Gaps) -> std::result::Result<(), String> {
    for (id, token) in added {
        let (n_tokens, there) = (inner.get_vocab_size(true), inner.token_to_id(&token.content));
        let gap = (id as usize).checked_sub(n_tokens).filter(|gap| *gap == 0 || (gaps == Gaps::Reserved && *gap <= MAX_RESERVED));
        if there.is_some_and(|there| there != id) || (there.is_none() && gap.is_none()) {
            let due = there.map_or(n_tokens, |id| id as usize);
            return Err(format!("the token `{}` is to be added as {id}, where {due} is due", token.content));
        }
        let reserved = (n_tokens..).take(gap.unwrap_or(0)).map(|id| AddedToken::from(format!("<|reserved_token_{id}|>"), true));
        inner.add_tokens(reserved.chain([token])).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The tokens that files name, as keys of `tokenizer_config.json` and of templates (transformers' `SPECIAL_TOKENS_ATTRIBUTES`).
const NAMED_TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// `tokenizer_config.json`, as far as it matters here.
#[derive(Debug, Default)]
struct TokenizerConfig {
    /// The texts of the tokens that it names, by its keys; none for a null.
    tokens: BTreeMap<String, Option<String>>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    added_tokens: Vec<(u32, TokenEntry)>,
    /// There is such a file.
    is_there: bool,
}

#[derive(Debug, Deserialize)]
struct TokenEntry {
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    single_word: bool,
}

/// A token named by its text, bare or with its flags.
fn token_text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str)).map(str::to_owned)
}

impl TokenizerConfig {
    fn read(folder: &Folder) -> Result<TokenizerConfig> {
        let Some(fields) = files::read_fields(folder, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES)? else {
            let fields = files::read_fields(folder, "special_tokens_map.json", MAX_CONFIG_BYTES)?.unwrap_or_default();
            return Ok(TokenizerConfig { tokens: named_tokens(&fields), ..TokenizerConfig::default() });
        };
        let mut tokens = named_tokens(&fields);
        for (name, token) in class_tokens(fields.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default()) {
            tokens.entry((*name).to_owned()).or_insert_with(|| Some((*token).to_owned()));
        }
        let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
        let entries = fields.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
        let added_tokens = entries.filter_map(|(id, entry)| {
            let entry = id.parse().ok().zip(TokenEntry::deserialize(entry).ok());
            if entry.is_none() {
                tracing::debug!("{folder}: the entry of {id} in added_tokens_decoder cannot be read and is left out");
            }
            entry
        });
        let added_tokens = added_tokens.collect();
        Ok(TokenizerConfig {
            tokens,
            add_bos_token: flag("add_bos_token"),
            add_eos_token: flag("add_eos_token"),
            added_tokens,
            is_there: true,
        })
    }

    fn token(&self, name: &str) -> Option<&str> {
        self.tokens.get(name)?.as_deref()
    }
}

/// The named tokens among `fields`, and those that a model adds under names of its own (`extra_special_tokens`).
fn named_tokens(fields: &Map<String, Value>) -> BTreeMap<String, Option<String>> {
    let own = fields.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
    let known = fields.iter().filter(|(name, _)| NAMED_TOKENS.contains(&name.as_str()));
    known.chain(own).map(|(name, token)| (name.clone(), token_text(token))).collect()
}

/// The tokens that a class of transformers has where its config does not say.
fn class_tokens(class: &str) -> &'static [(&'static str, &'static str)] {
    match class.strip_suffix("Fast").unwrap_or(class) {
        "LlamaTokenizer" | "CodeLlamaTokenizer" => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        "GPT2Tokenizer" => &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")],
        "Qwen2Tokenizer" => &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
        "GemmaTokenizer" => &[("bos_token", "<bos>"), ("eos_token", "<eos>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
        _ => &[],
    }
}

/// Tokens that only `tokenizer_config.json` calls special: they must be found in templated text, too.
fn add_tokens(inner: &mut tokenizers::Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<()> {
    let known = inner.get_added_tokens_decoder();
    let is_new = |(id, entry): &&(u32, TokenEntry)| !known.contains_key(id) && inner.token_to_id(&entry.content) == Some(*id);
    let new: Vec<AddedToken> = config.added_tokens.iter().filter(is_new).map(|(_, entry)| entry.to_added()).collect();
    if !new.is_empty() {
        inner.add_tokens(new)?;
    }
    Ok(())
}

impl TokenEntry {
    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized)
            .single_word(self.single_word)
    }
}

/// The ids under `name`: one or a list of them, as `eos_token_id` comes in the wild. What can be no id (-1) is said and left out.
fn ids(path: &str, fields: &Map<String, Value>, name: &str) -> Option<Vec<u32>> {
    let listed = match fields.get(name)? {
        Value::Null => return None,
        Value::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    let id = |value: &Value| {
        let number = value.as_f64().filter(|id| id.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(id));
        if number.is_none() {
            tracing::warn!("{path}: {name} {value} is the id of no token and is ignored");
        }
        number.map(|id| id as u32)
    };
    Some(listed.iter().filter_map(id).collect())
}

/// The id that begins a text and those that end an answer. `tokenizer_config.json` names one of each by its text;
/// `generation_config.json`, or where it does not say `config.json`, gives ids: all of them end an answer.
fn outer_tokens(folder: &Folder, config: &TokenizerConfig, inner: &tokenizers::Tokenizer) -> Result<(Option<OuterToken>, Vec<OuterToken>)> {
    let read = |name: &str| {
        let fields = files::read_fields(folder, name, MAX_CONFIG_BYTES)?.unwrap_or_default();
        let path = folder.path_of(name);
        let named = |id| OuterToken { id, file: path.clone() };
        let tokens = |key| ids(&path, &fields, key).map(|ids| ids.into_iter().map(named).collect::<Vec<_>>());
        Ok::<_, Error>(["bos_token_id", "eos_token_id"].map(tokens))
    };
    let ([bos, eos], [model_bos, model_eos]) = (read("generation_config.json")?, read("config.json")?);
    let file = if config.is_there { "tokenizer_config.json" } else { "special_tokens_map.json" };
    let by_text = |name: &str| Some(OuterToken { id: inner.token_to_id(config.token(name)?)?, file: folder.path_of(file) });
    let bos = by_text("bos_token").or_else(|| bos.or(model_bos).unwrap_or_default().into_iter().next());
    let mut ends: Vec<OuterToken> = Vec::new();
    for token in eos.or(model_eos).unwrap_or_default().into_iter().chain(by_text("eos_token")) {
        if !ends.iter().any(|end| end.id == token.id) {
            ends.push(token);
        }
    }
    Ok((bos, ends))
}

/// What templates print: the texts that the tokenizer's config names, and no others where there is one.
fn template_tokens(
    config: &TokenizerConfig,
    inner: &tokenizers::Tokenizer,
    bos: Option<&OuterToken>,
    eos: Option<&OuterToken>,
) -> TemplateTokens {
    let named = config.tokens.iter().map(|(name, text)| (name.clone(), text.clone()));
    if config.is_there {
        return named.collect();
    }
    let by_id = [("bos_token", bos), ("eos_token", eos)];
    by_id.into_iter().map(|(name, token)| (name.to_owned(), token.and_then(|token| inner.id_to_token(token.id)))).chain(named).collect()
}

/// How tokens are spelled, which follows from the decoder.
fn spelling(decoder: Option<&Value>) -> Spelling {
    let Some(decoder) = decoder else { return Spelling::Other };
    let kind = |step: &Value| step.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind(decoder).as_str() {
        "ByteLevel" => Spelling::ByteLevel,
        "Metaspace" if decoder.get("replacement").and_then(Value::as_str) == Some("\u{2581}") => {
            let never = decoder.get("prepend_scheme").and_then(Value::as_str) == Some("never")
                || decoder.get("add_prefix_space").and_then(Value::as_bool) == Some(false);
            Spelling::SentencePiece(if never { LeadingSpace::Kept } else { LeadingSpace::Dropped })
        }
        "Sequence" => {
            let steps = decoder.get("decoders").and_then(Value::as_array).cloned().unwrap_or_default();
            let kinds: Vec<String> = steps.iter().map(kind).collect();
            let is_space = |step: &Value| {
                step.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str) == Some("\u{2581}")
                    && step.get("content").and_then(Value::as_str) == Some(" ")
            };
            let strips_one = |step: &Value| {
                let number = |key| step.get(key).and_then(Value::as_u64);
                step.get("content").and_then(Value::as_str) == Some(" ") && number("start") == Some(1) && number("stop") == Some(0)
            };
            match (kinds.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), steps.as_slice()) {
                (["Replace", "ByteFallback", "Fuse", "Strip"], [space, _, _, strip]) if is_space(space) && strips_one(strip) => {
                    Spelling::SentencePiece(LeadingSpace::Dropped)
                }
                (["Replace", "ByteFallback", "Fuse"], [space, ..]) if is_space(space) => Spelling::SentencePiece(LeadingSpace::Kept),
                (["ByteLevel"], _) => Spelling::ByteLevel,
                _ => Spelling::Other,
            }
        }
        _ => Spelling::Other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_decoder_tells_the_spelling() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let steps = |strips: bool| {
            let mut steps = vec![replace.clone(), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
            steps.extend(strips.then(|| strip.clone()));
            json!({"type": "Sequence", "decoders": steps})
        };
        assert_eq!(spelling(Some(&steps(true))), Spelling::SentencePiece(LeadingSpace::Dropped));
        assert_eq!(spelling(Some(&steps(false))), Spelling::SentencePiece(LeadingSpace::Kept));
        assert_eq!(spelling(Some(&json!({"type": "ByteLevel"}))), Spelling::ByteLevel);
        assert_eq!(spelling(Some(&json!({"type": "WordPiece"}))), Spelling::Other);
        assert_eq!(spelling(None), Spelling::Other);
    }
}
