//! The form of answers that `tierflow run` asks for: a grammar, a JSON schema, a regular expression.

use serde_json::Value;

use crate::cli::args::GenerationArgs;
use crate::cli::prompt::read_file;
use crate::engine::ModelText;
use crate::error::{Error, Result};
use crate::text::{AnswerForm, FormVocabulary, Gbnf, ReasoningFormat};

/// A form that was asked for, before there is a model.
pub(super) enum FormWish {
    Grammar(Gbnf),
    Schema(Value),
    Regex(String),
}

fn invalid(option: &str, reason: impl std::fmt::Display) -> Error {
    Error::InvalidArgument { option: option.into(), reason: reason.to_string() }
}

impl FormWish {
    /// What the options ask for.
    ///
    /// # Errors
    /// For texts that are none of a form, with the line; those of reading files.
    pub(super) fn of(args: &GenerationArgs) -> Result<Option<FormWish>> {
        let text_of = |text: &Option<String>, file: &Option<std::path::PathBuf>| match (text, file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, file) => file.as_deref().map(read_file).transpose(),
        };
        let option = if args.grammar.is_some() { "--grammar" } else { "--grammar-file" };
        if let Some(text) = text_of(&args.grammar, &args.grammar_file)? {
            return Gbnf::parse(&text).map(|grammar| Some(FormWish::Grammar(grammar))).map_err(|error| invalid(option, error));
        }
        if let Some(text) = text_of(&args.json_schema, &args.json_schema_file)? {
            let wrong = |error| invalid("--json-schema", format!("is no JSON: {error}"));
            return serde_json::from_str(&text).map(|schema| Some(FormWish::Schema(schema))).map_err(wrong);
        }
        Ok(args.regex.clone().map(FormWish::Regex))
    }

    /// The form for a model.
    ///
    /// # Errors
    /// Where the model cannot be held to it.
    pub(super) fn for_model(self, text: &ModelText) -> Result<AnswerForm> {
        let vocabulary = FormVocabulary::new(text.tokenizer().cloned());
        let (option, form) = match self {
            FormWish::Grammar(grammar) => ("--grammar", vocabulary.grammar(grammar)),
            FormWish::Schema(schema) => ("--json-schema", vocabulary.json(schema)),
            FormWish::Regex(regex) => ("--regex", vocabulary.regex(&regex)),
        };
        if text.reasoning_format() == Some(ReasoningFormat::Channels) {
            return Err(invalid(option, "is not supported with a model that answers in channels"));
        }
        form.map_err(|error| invalid(option, error))
    }
}
