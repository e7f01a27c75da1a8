//! The text side of a model: its tokenizer, its chat template, its own generation settings. Needs no weights.

use crate::engine::TextFiles;
use crate::error::{Advice, Error, Remedy, Result};
use crate::model::Checkpoint;
use crate::text::{
    CallBody, ChatMessage, ChatTemplate, FormError, GenerationPrompt, ModelDefaults, ReasoningFormat, ReasoningSplitter, Special,
    TemplateInput, Tokenizer, ToolFormat, Written,
};

/// What makes tokens of texts, and says how a model would be sampled.
pub struct ModelText {
    path: String,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    defaults: ModelDefaults,
}

impl ModelText {
    /// Reads what `files` wants of it; the settings always.
    pub(super) fn open(checkpoint: &Checkpoint, files: TextFiles) -> Result<ModelText> {
        let (tokenizer, chat_template) = match files {
            TextFiles::Read => {
                let tokenizer = Tokenizer::open(checkpoint)?;
                let chat_template = ChatTemplate::open(checkpoint, &tokenizer)?;
                (Some(tokenizer), chat_template)
            }
            TextFiles::Skip => (None, None),
        };
        Ok(ModelText { path: checkpoint.path.clone(), tokenizer, chat_template, defaults: ModelDefaults::open(checkpoint)? })
    }

    /// The model's tokenizer, unless it was skipped.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The model's chat template, if its files have one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// How the model sets its reasoning apart from its answer, as far as its tokens and its chat template tell.
    pub fn reasoning_format(&self) -> Option<ReasoningFormat> {
        ReasoningFormat::of(self.tokenizer()?, self.chat_template())
    }

    /// How the model writes calls of tools.
    ///
    /// # Errors
    /// Where it writes none, or in a way that is not known.
    pub fn tool_format(&self) -> std::result::Result<ToolFormat, FormError> {
        let unknown = |reason: &str| FormError::Unsupported(format!("are not supported{reason}"));
        let template = self.chat_template().ok_or_else(|| unknown(": the model has no chat template"))?;
        let in_channels = self.reasoning_format() == Some(ReasoningFormat::Channels);
        let format = ToolFormat::of(template).filter(|format| in_channels == (format.body == CallBody::Message));
        format.ok_or_else(|| unknown(": the model's chat template has them in a form that is not known"))
    }

    /// What tells reasoning from answer in what the model writes after `prompt`, the tokens of a conversation.
    pub fn reasoning_splitter(&self, prompt: &[u32]) -> ReasoningSplitter {
        match self.tokenizer() {
            Some(tokenizer) => ReasoningSplitter::after_prompt(self.reasoning_format(), tokenizer, prompt),
            None => ReasoningSplitter::new(None),
        }
    }

    /// The model's own generation settings.
    pub fn defaults(&self) -> &ModelDefaults {
        &self.defaults
    }

    /// The tokens of `text` as it is, with the token before it that the model expects at a beginning. `written` says what becomes of
    /// special tokens that the text spells out.
    ///
    /// # Errors
    /// [`Error::Text`] where the tokenizer was skipped or cannot take the text.
    pub fn encode(&self, text: &str, written: Written) -> Result<Vec<u32>> {
        match written {
            Written::Parsed => self.demand_tokenizer()?.encode(text, Special::Add),
            Written::Plain => self.demand_tokenizer()?.encode_plain(text, Special::Add),
        }
    }

    /// The tokens of a conversation in the model's chat template, up to where the answer begins; `input` are tools and whatever else
    /// the template may know.
    ///
    /// # Errors
    /// [`Error::Text`] where there is no tokenizer or template, or the template refuses the messages.
    pub fn encode_chat(&self, messages: &[ChatMessage], input: &TemplateInput, written: Written) -> Result<Vec<u32>> {
        let (template, tokenizer) = (self.demand_template()?, self.demand_tokenizer()?);
        if written == Written::Parsed {
            return tokenizer.encode(&template.render_with(messages, input, GenerationPrompt::Add)?, Special::Leave);
        }
        let mark = |text: &str| tokenizer.marked(text);
        let marked: Vec<ChatMessage> = messages.iter().map(|message| message.map_texts(&mark)).collect();
        tokenizer.encode_marked(&template.render_with(&marked, &input.map_texts(&mark), GenerationPrompt::Add)?)
    }

    fn demand_template(&self) -> Result<&ChatTemplate> {
        self.chat_template().ok_or_else(|| self.error("there is no chat template", [Remedy::raw_prompt()].into()))
    }

    fn demand_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer().ok_or_else(|| self.error("the tokenizer was not read; open the model with TextFiles::Read", Advice::default()))
    }

    fn error(&self, reason: &str, advice: Advice) -> Error {
        Error::Text { path: self.path.clone(), reason: reason.into(), advice }
    }
}
