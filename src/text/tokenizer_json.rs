//! `tokenizer.json` and the configs beside it, checked and read. What the library would panic on is refused before it sees it.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use super::files::{self, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, MAX_TOKENIZER_CONFIG_BYTES, text_error};
use super::pieces::{LeadingSpace, Spelling};
use super::tokenizer::{Frame, Vocabulary};
use super::tokenizer_json_checks::TokenizerFile;
use crate::error::Result;
use crate::platform::Folder;

/// Reads the tokenizer of a Hugging Face folder.
pub(super) fn read(folder: &Folder) -> Result<Vocabulary> {
    let path = folder.path_of("tokenizer.json");
    let Some(bytes) = files::read_optional(folder, "tokenizer.json", MAX_TOKENIZER_BYTES)? else {
        let fault = "has no tokenizer.json; download it with the model (slow tokenizers in tokenizer.model are not read)";
        return Err(text_error(folder, fault));
    };
    let file: TokenizerFile = files::parse_json(&path, &bytes)?;
    file.check().map_err(|fault| text_error(&path, fault))?;
    let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes));
    let mut inner = parsed
        .map_err(|_| text_error(&path, "cannot be read: the tokenizers library panicked"))?
        .map_err(|error| text_error(&path, format!("cannot be read: {error}")))?;
    // A prompt is never cut or filled up behind the user's back, whatever the file was saved with.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| text_error(&path, error.to_string()))?;

    let config = TokenizerConfig::read(folder)?;
    add_tokens(&mut inner, &config).map_err(|error| text_error(&path, error.to_string()))?;
    let (bos, eos) = outer_tokens(folder, &config, &inner)?;
    let frame = match config.add_bos_token {
        // Without a BOS to add only the post-processor can know what is meant.
        Some(add_bos) if !add_bos || bos.is_some() => Frame::Settings { add_bos, add_eos: config.add_eos_token.unwrap_or(false) },
        _ => Frame::PostProcessor,
    };
    Ok(Vocabulary { path, inner, spelling: spelling(file.decoder.as_ref()), bos, eos, frame })
}

/// `tokenizer_config.json`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    bos_token: Option<TokenText>,
    #[serde(default)]
    eos_token: Option<TokenText>,
    #[serde(default)]
    add_bos_token: Option<bool>,
    #[serde(default)]
    add_eos_token: Option<bool>,
    #[serde(default)]
    added_tokens_decoder: std::collections::BTreeMap<String, TokenEntry>,
}

/// A token named by its text, bare or with its flags.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Bare(String),
    Entry(TokenEntry),
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

impl TokenText {
    fn text(&self) -> &str {
        match self {
            TokenText::Bare(text) => text,
            TokenText::Entry(entry) => &entry.content,
        }
    }
}

impl TokenizerConfig {
    fn read(folder: &Folder) -> Result<TokenizerConfig> {
        let config = files::read_json(folder, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES)?;
        Ok(config.unwrap_or_default())
    }
}

/// Tokens that only `tokenizer_config.json` calls special: they must be found in templated text, too.
fn add_tokens(inner: &mut tokenizers::Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<()> {
    let known = inner.get_added_tokens_decoder();
    let is_new = |(id, entry): &(&String, &TokenEntry)| {
        let id = id.parse().ok();
        id.is_some_and(|id: u32| !known.contains_key(&id)) && inner.token_to_id(&entry.content) == id
    };
    let new: Vec<AddedToken> = config.added_tokens_decoder.iter().filter(is_new).map(|(_, entry)| entry.to_added()).collect();
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

/// One id or a list of them, as `eos_token_id` comes in the wild.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Debug, Default, Deserialize)]
struct OuterTokens {
    #[serde(default)]
    bos_token_id: Option<Ids>,
    #[serde(default)]
    eos_token_id: Option<Ids>,
}

impl Ids {
    fn list(self) -> Vec<u32> {
        match self {
            Ids::One(id) => vec![id],
            Ids::Many(ids) => ids,
        }
    }
}

/// The id that begins a text and those that end an answer. `tokenizer_config.json` names one of each by its text;
/// `generation_config.json`, or where it does not say `config.json`, gives ids: all of them end an answer.
fn outer_tokens(folder: &Folder, config: &TokenizerConfig, inner: &tokenizers::Tokenizer) -> Result<(Option<u32>, Vec<u32>)> {
    let read = |name| files::read_json::<OuterTokens>(folder, name, MAX_CONFIG_BYTES).map(Option::unwrap_or_default);
    let (generation, model) = (read("generation_config.json")?, read("config.json")?);
    let by_text = |token: &Option<TokenText>| token.as_ref().and_then(|token| inner.token_to_id(token.text()));

    let bos_ids = generation.bos_token_id.or(model.bos_token_id).map(Ids::list).unwrap_or_default();
    let bos = by_text(&config.bos_token).or(bos_ids.first().copied());
    let mut eos = Vec::new();
    let eos_ids = generation.eos_token_id.or(model.eos_token_id).map(Ids::list).unwrap_or_default();
    for id in eos_ids.into_iter().chain(by_text(&config.eos_token)) {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    Ok((bos, eos))
}

/// How tokens are spelled, told by the decoder that turns them back.
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
