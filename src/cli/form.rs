//! The form of answers that `tierflow run` asks for: a grammar, a JSON schema, a regular expression.

use crate::cli::args::GenerationArgs;
use crate::cli::prompt::read_file;
use crate::engine::ModelText;
use crate::error::{Error, Result};
use crate::text::{AnswerForm, FormVocabulary, FormWish, Gbnf};

fn invalid(option: &str, reason: impl std::fmt::Display) -> Error {
    Error::InvalidArgument { option: option.into(), reason: reason.to_string() }
}

/// What the options ask for.
///
/// # Errors
/// For texts that are none of a form, with the line; those of reading files.
pub(super) fn wish_of(args: &GenerationArgs) -> Result<Option<FormWish>> {
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

/// The form for a model, whose answer to a prompt that is `raw` is all that it writes.
///
/// # Errors
/// Where the model cannot be held to it.
pub(super) fn form_for_model(wish: FormWish, text: &ModelText, raw: bool) -> Result<AnswerForm> {
    let option = format!("--{}", wish.field().replace('_', "-"));
    let reasoning = text.reasoning_format().filter(|_| !raw && text.chat_template().is_some());
    let form = FormVocabulary::new(text.tokenizer().cloned()).form(wish, reasoning);
    form.map_err(|error| invalid(&option, error))
}
