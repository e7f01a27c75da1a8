//! Answers of a given form: JSON, by a schema or by none, or calls of tools (`call_grammar`). Tokens that would leave the form are not drawn
//! (llguidance).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::app::App;
use super::call_grammar::CallGrammar;
use super::error::ApiError;
use super::fields::Fields;
use crate::error::{Error, Result};
use crate::text::{Candidate, Constraint, Tokenizer};

/// The vocabulary as grammars read it; made when the first one is asked for.
#[derive(Default)]
pub(super) struct Vocabulary(OnceLock<Result<ParserFactory, String>>);

/// What answers must be.
pub(super) enum Grammar {
    /// All of an answer has a form; this is its beginning.
    Form(Mutex<Matcher>),
    /// Calls in an answer have one.
    Calls(CallGrammar),
}

/// The form of one answer.
struct Form(Mutex<Matcher>);

/// How JSON is written: on one line, so that no answer is white space without end.
const STYLE: [(&str, &str); 2] = [("item_separator", ", ?"), ("key_separator", ": ?")];
/// Most of an error about a schema, which may repeat all of it.
const MAX_REASON_CHARS: usize = 300;

/// What llguidance takes for the beginning of a token that has no text.
const SPECIAL: u8 = 0xff;

impl Vocabulary {
    fn factory(&self, tokenizer: &Tokenizer) -> std::result::Result<&ParserFactory, String> {
        self.0.get_or_init(|| new_factory(tokenizer)).as_ref().map_err(Clone::clone)
    }
}

fn new_factory(tokenizer: &Tokenizer) -> std::result::Result<ParserFactory, String> {
    let vocab_size = u32::try_from(tokenizer.vocab_size()).map_err(|_| "the vocabulary is too large")?;
    let ends = tokenizer.eos_tokens();
    let first = *ends.first().ok_or("no token ends an answer")?;
    let mut words = Vec::with_capacity(tokenizer.vocab_size());
    for id in 0..vocab_size {
        let bytes = tokenizer.bytes(id).ok_or("the tokenizer does not tell the bytes of its tokens")?;
        words.push(match ends.contains(&id) {
            true => [&[SPECIAL], format!("<end{id}>").as_bytes()].concat(),
            // No text in UTF-8 has that byte.
            false => bytes.strip_prefix(&[SPECIAL]).map_or(bytes, |_| &[]).to_vec(),
        });
    }
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, first), &words).with_eos_tokens(ends);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

impl Grammar {
    /// JSON that keeps to `schema`, the field `name` of a request.
    pub(super) fn of_schema(app: &App, name: &str, schema: Value) -> Result<Grammar, ApiError> {
        Ok(Grammar::Form(Mutex::new(matcher_of(app, name, schema)?)))
    }

    /// Any object of JSON.
    pub(super) fn of_object(app: &App, name: &str) -> Result<Grammar, ApiError> {
        Grammar::of_schema(app, name, json!({ "type": "object" }))
    }

    /// What OpenAI's APIs call a format, the object `path` of a request; `schema` reads the schema with its name out of it.
    pub(super) fn of_format(
        app: &App,
        format: &mut Fields,
        path: &str,
        schema: impl FnOnce(&mut Fields) -> Result<(&'static str, Value), ApiError>,
    ) -> Result<Option<Grammar>, ApiError> {
        match format.text("type")?.as_deref() {
            Some("text") => Ok(None),
            Some("json_object") => Grammar::of_object(app, path).map(Some),
            Some("json_schema") => {
                let (name, schema) = schema(format)?;
                Grammar::of_schema(app, name, schema).map(Some)
            }
            _ => Err(ApiError::field(&format.name("type"), "must be text, json_object or json_schema")),
        }
    }

    /// The rules for an answer.
    pub(super) fn constraint(&self) -> Box<dyn Constraint> {
        match self {
            Grammar::Form(matcher) => Box::new(Form(copied(matcher))),
            Grammar::Calls(calls) => calls.constraint(),
        }
    }
}

/// What follows text that keeps to `schema`, the field `name` of a request, or is said by it.
pub(super) fn matcher_of(app: &App, name: &str, schema: Value) -> Result<Matcher, ApiError> {
    let Value::Object(mut schema) = schema else { return Err(ApiError::field(name, "must be an object")) };
    let mut style = json!({ "whitespace_flexible": false });
    STYLE.iter().for_each(|(name, value)| style[name] = (*value).into());
    schema.insert("x-guidance".to_owned(), style);
    let tokenizer = app.engine.tokenizer().ok_or_else(|| ApiError::unsupported(name, "the model has no tokenizer"))?;
    let factory = app.vocabulary.factory(tokenizer).map_err(|reason| ApiError::unsupported(name, reason))?;
    let matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_json_schema(schema.into())));
    match matcher.get_error() {
        Some(reason) => Err(ApiError::field(name, reason.chars().take(MAX_REASON_CHARS).collect::<String>())),
        None => Ok(matcher),
    }
}

/// A matcher in the state of another one.
pub(super) fn copied(matcher: &Mutex<Matcher>) -> Mutex<Matcher> {
    Mutex::new(locked(matcher).deep_clone())
}

pub(super) fn locked(matcher: &Mutex<Matcher>) -> MutexGuard<'_, Matcher> {
    matcher.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes away what may not come next.
pub(super) fn keep_allowed(matcher: &Mutex<Matcher>, candidates: &mut Vec<Candidate>) -> Result<()> {
    let allowed = locked(matcher).compute_mask_or_eos().map_err(failed)?;
    candidates.retain(|candidate| allowed.is_allowed(candidate.token));
    Ok(())
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Form")
    }
}

impl Constraint for Form {
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        keep_allowed(&self.0, candidates)
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        let mut matcher = locked(&self.0);
        if matcher.is_stopped() { Ok(()) } else { matcher.consume_token(token).map_err(failed) }
    }
}

pub(super) fn failed(error: impl fmt::Display) -> Error {
    let reason: String = error.to_string().chars().take(MAX_REASON_CHARS).collect();
    Error::InvalidArgument { option: "the answer's form".into(), reason: format!("cannot be kept: {reason}") }
}
