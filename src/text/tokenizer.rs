//! The tokenizer of a model: text to ids, and what a run must know of the ids. Knows not where its vocabulary was stored.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use super::detokenizer::Detokenizer;
use super::files::text_error;
use super::gguf_vocabulary;
use super::pieces::{Pieces, Spelling};
use super::plain_text::{Part, Specials};
use super::tokenizer_json;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Format};
use crate::platform::Folder;
use crate::weights::Metadata;

/// Turns text into token ids as the model was trained to see it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: String,
    inner: Arc<tokenizers::Tokenizer>,
    pieces: Arc<Pieces>,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    frame: Frame,
    template_tokens: Arc<TemplateTokens>,
    /// Made when it is first needed.
    plain: Arc<OnceLock<PlainEncoder>>,
}

/// What encodes texts whose special tokens are letters.
#[derive(Debug)]
struct PlainEncoder {
    inner: tokenizers::Tokenizer,
    specials: Specials,
}

/// Whether the tokens that begin and end a text are put around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// As the model wants it for plain text: most want BOS before it.
    Add,
    /// Not at all: the text has them already, as text from a chat template has.
    Leave,
}

/// What becomes of special tokens that a user's text spells out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Written {
    /// They become their ids.
    #[default]
    Parsed,
    /// They are text like any other.
    Plain,
}

/// What a reader found in a model's files.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// The file, for messages.
    pub path: String,
    pub inner: tokenizers::Tokenizer,
    pub spelling: Spelling,
    pub bos: Option<OuterToken>,
    /// The first is the model's EOS proper.
    pub eos: Vec<OuterToken>,
    pub frame: Frame,
    pub template_tokens: TemplateTokens,
}

/// A token that begins or ends a text.
#[derive(Debug, Clone)]
pub(super) struct OuterToken {
    pub id: u32,
    /// The file that names it, for messages.
    pub file: String,
}

/// The texts that chat templates print by name (`bos_token`, `eos_token`, `unk_token`, `pad_token` and more): those that the model's files
/// name, as transformers passes them. They say nothing of where an answer ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TemplateTokens(pub BTreeMap<String, String>);

impl<K: Into<String>> FromIterator<(K, Option<String>)> for TemplateTokens {
    fn from_iter<I: IntoIterator<Item = (K, Option<String>)>>(tokens: I) -> TemplateTokens {
        TemplateTokens(tokens.into_iter().filter_map(|(name, text)| Some((name.into(), text?))).collect())
    }
}

/// Who puts BOS and EOS around a plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// The tokenizer's own post-processor.
    PostProcessor,
    /// Its settings.
    Settings { add_bos: bool, add_eos: bool },
}

impl Tokenizer {
    /// The tokenizer of `checkpoint`: the folder's `tokenizer.json`, or the vocabulary in the GGUF file's metadata.
    pub fn open(checkpoint: &Checkpoint) -> Result<Tokenizer> {
        let vocab_size = checkpoint.config.vocab_size;
        match (&checkpoint.format, &checkpoint.metadata) {
            (Format::HuggingFace { folder }, _) => Tokenizer::from_folder(folder, vocab_size),
            (Format::Gguf, Some(metadata)) => Tokenizer::from_metadata(metadata, vocab_size),
            (Format::Gguf, None) => Err(text_error(&checkpoint.path, "has no metadata and so no tokenizer")),
        }
    }

    /// The tokenizer in a Hugging Face folder, for a model of `vocab_size` embedding rows.
    pub fn from_folder(folder: impl Into<Folder>, vocab_size: usize) -> Result<Tokenizer> {
        tokenizer_json::read(&folder.into()).map(|vocabulary| Tokenizer::new(vocabulary, vocab_size))
    }

    /// The tokenizer in a GGUF file's metadata, for a model of `vocab_size` embedding rows.
    pub fn from_metadata(metadata: &Metadata, vocab_size: usize) -> Result<Tokenizer> {
        gguf_vocabulary::read(metadata).map(|vocabulary| Tokenizer::new(vocabulary, vocab_size))
    }

    fn new(vocabulary: Vocabulary, vocab_size: usize) -> Tokenizer {
        let Vocabulary { path, inner, spelling, bos, eos, frame, template_tokens } = vocabulary;
        let inside = |OuterToken { id, file }: OuterToken| {
            let is_inside = (id as usize) < vocab_size;
            if !is_inside {
                tracing::warn!(
                    "{file}: {id} is named as a token that begins or ends a text, but the model's vocabulary has {vocab_size}; it is ignored"
                );
            }
            is_inside.then_some(id)
        };
        let bos = bos.and_then(inside);
        let eos = eos.into_iter().filter_map(inside).collect();
        let inner = Arc::new(inner);
        let pieces = Arc::new(Pieces::new(&inner, spelling, vocab_size));
        let template_tokens = Arc::new(template_tokens);
        Tokenizer { path, inner, pieces, vocab_size, bos, eos, frame, template_tokens, plain: Arc::default() }
    }

    /// The ids of `text`. Special tokens written out in the text (`<|im_start|>`) become their ids.
    /// Refuses ids that the model has no embedding for.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        self.encode_by(&self.inner, text, special)
    }

    /// As [`Tokenizer::encode`], but special tokens written out in the text are text like any other.
    pub fn encode_plain(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        self.encode_by(&self.plain().inner, text, special)
    }

    /// The ids of a text that [`Tokenizer::marked`] went into: what it marked is text, all else is parsed.
    pub(crate) fn encode_marked(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.plain();
        let mut ids = Vec::new();
        for part in plain.specials.parts(text) {
            match part {
                Part::Special(text) => ids.extend(self.encode_by(&self.inner, text, Special::Leave)?),
                Part::Plain(text) => ids.extend(self.encode_by(&plain.inner, &text, Special::Leave)?),
            }
        }
        Ok(ids)
    }

    /// `text` with marks in what looks like special tokens.
    pub(crate) fn marked(&self, text: &str) -> String {
        self.plain().specials.marked(text)
    }

    fn plain(&self) -> &PlainEncoder {
        self.plain.get_or_init(|| {
            let mut inner = self.inner.as_ref().clone();
            inner.set_encode_special_tokens(true);
            let added = inner.get_added_tokens_decoder().into_values();
            let specials = Specials::new(added.filter(|token| token.special).map(|token| token.content));
            PlainEncoder { inner, specials }
        })
    }

    fn encode_by(&self, inner: &tokenizers::Tokenizer, text: &str, special: Special) -> Result<Vec<u32>> {
        let by_post_processor = special == Special::Add && self.frame == Frame::PostProcessor;
        let failed = |reason: String| text_error(&self.path, format!("its tokenizer fails on this text: {reason}"));
        let encoding = std::panic::catch_unwind(AssertUnwindSafe(|| inner.encode_fast(text, by_post_processor)))
            .map_err(|_| failed("it panicked".into()))?
            .map_err(|error| failed(error.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        if let (Special::Add, Frame::Settings { add_bos, add_eos }) = (special, self.frame) {
            if let Some(bos) = self.bos.filter(|&bos| add_bos && ids.first() != Some(&bos)) {
                ids.insert(0, bos);
            }
            ids.extend(self.eos.first().filter(|_| add_eos));
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(&token) => Err(Error::TokenOutOfVocabulary { token, vocab_size: self.vocab_size }),
            None => Ok(ids),
        }
    }

    /// The text of `tokens`, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut detokenizer = self.detokenizer();
        let mut text: String = tokens.iter().map(|&token| detokenizer.push(token)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// A detokenizer at the beginning of a text.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces))
    }

    /// Rows of the model's embedding: ids at or above it are refused. Some below it may have no token.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token as the vocabulary writes it (`Ġthe`, `▁the`, `<0x0A>`, `<|im_end|>`).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text that one token adds inside a text; bytes that are no character by themselves become U+FFFD, special tokens none.
    pub fn piece(&self, id: u32) -> String {
        match self.pieces.as_ref() {
            Pieces::Bytes(table) => String::from_utf8_lossy(table.bytes(id)).into_owned(),
            Pieces::Decoder(decoder) => decoder.decode(&[id]),
        }
    }

    /// The bytes of one token inside a text: none for special tokens. `None` where only runs of tokens have a text.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        match self.pieces.as_ref() {
            Pieces::Bytes(table) => Some(table.bytes(id)),
            Pieces::Decoder(_) => None,
        }
    }

    /// The id of a token as the vocabulary writes it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The first token that is another one in `other`, in words; `None` where both have the same. How many there are may differ: some
    /// models have room for more than they have.
    pub fn difference(&self, other: &Tokenizer) -> Option<String> {
        let n_tokens = self.vocab_size.max(other.vocab_size) as u32;
        let (id, [own, other]) = (0..n_tokens).map(|id| (id, [self, other].map(|own| own.token_text(id)))).find(|(_, [a, b])| a != b)?;
        let named = |text: Option<String>| text.map_or("missing".to_owned(), |text| format!("`{}`", text.escape_debug()));
        Some(format!("token {id} is {} there, and {} in the model", named(other), named(own)))
    }

    /// Whether a token is special: texts of tokens leave it out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Tokens that end an answer, the model's EOS first.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.eos
    }

    /// What chat templates print by name.
    pub(super) fn template_tokens(&self) -> &TemplateTokens {
        &self.template_tokens
    }

    /// The token that begins a text.
    pub fn bos_token(&self) -> Option<u32> {
        self.bos
    }
}
