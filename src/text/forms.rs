//! Forms that answers are held to: JSON by a schema, a regular expression (both llguidance's), a grammar (`text::Gbnf`). Tokens that would
//! leave the form are not drawn. Knows no requests.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::channels::Channels;
use super::{Candidate, Constraint, FormError, Gbnf, ReasoningFormat, TokenBytes, Tokenizer};
use crate::error::{Error, Result};

/// The vocabulary of a model as forms read it; made when the first one is asked for.
pub struct FormVocabulary {
    tokenizer: Option<Tokenizer>,
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
    bytes: OnceLock<std::result::Result<Arc<TokenBytes>, String>>,
}

/// A form that was asked for, before there is a model.
#[derive(Debug, Clone)]
pub enum FormWish {
    /// Texts of a grammar.
    Grammar(Gbnf),
    /// JSON that keeps to a schema.
    Schema(Value),
    /// Texts that all of a regular expression describes.
    Regex(String),
}

/// What answers must be.
pub struct AnswerForm(Form);

enum Form {
    /// The beginning of an answer.
    Matched(Box<Mutex<Matcher>>),
    Rules(Gbnf, Arc<TokenBytes>),
    /// Messages of an answer in channels.
    InChannels(Arc<Channels>),
}

/// How JSON is written: on one line, so that no answer is white space without end.
const STYLE: [(&str, &str); 2] = [("item_separator", ", ?"), ("key_separator", ": ?")];
/// Most of an error about a form, which may repeat all of it.
const MAX_REASON_CHARS: usize = 300;
/// Longest regular expression, in bytes: reading one takes time that grows with the square of its length.
const MAX_REGEX_BYTES: usize = 1 << 13;

/// What llguidance takes for the beginning of a token that has no text.
const SPECIAL: u8 = 0xff;

impl FormWish {
    /// What requests call it.
    pub fn field(&self) -> &'static str {
        match self {
            FormWish::Grammar(_) => "grammar",
            FormWish::Schema(_) => "json_schema",
            FormWish::Regex(_) => "regex",
        }
    }
}

impl FormVocabulary {
    /// That of a tokenizer; without one, no answer has a form.
    pub fn new(tokenizer: Option<Tokenizer>) -> FormVocabulary {
        FormVocabulary { tokenizer, factory: OnceLock::new(), bytes: OnceLock::new() }
    }

    /// The form that is asked for, of a model that writes its reasoning like this.
    ///
    /// # Errors
    /// Where it is no such form, or the model cannot be held to one.
    pub fn form(&self, wish: FormWish, reasoning: Option<ReasoningFormat>) -> std::result::Result<AnswerForm, FormError> {
        let form = match wish {
            FormWish::Grammar(grammar) => self.grammar(grammar),
            FormWish::Schema(schema) => self.json(schema),
            FormWish::Regex(regex) => self.regex(&regex),
        };
        self.beside_reasoning(form?, reasoning)
    }

    /// A form as the answer of a model has it that writes its reasoning like this: in channels the message that answers, and otherwise all that the
    /// model writes.
    ///
    /// # Errors
    /// Where the vocabulary has not what sets channels apart.
    pub fn beside_reasoning(&self, form: AnswerForm, reasoning: Option<ReasoningFormat>) -> std::result::Result<AnswerForm, FormError> {
        if reasoning != Some(ReasoningFormat::Channels) {
            return Ok(form);
        }
        Ok(AnswerForm(Form::InChannels(Arc::new(Channels::of_answer(self.tokenizer()?, form)?))))
    }

    /// Calls of functions in channels, each with the schema of its parameters; where one is demanded, nothing else may follow reasoning.
    pub(crate) fn calls_in_channels(
        &self,
        functions: Vec<(String, AnswerForm)>,
        is_demanded: bool,
    ) -> std::result::Result<AnswerForm, FormError> {
        Ok(AnswerForm(Form::InChannels(Arc::new(Channels::of_calls(self.tokenizer()?, functions, is_demanded)?))))
    }

    /// JSON that keeps to `schema`.
    ///
    /// # Errors
    /// Where it is no schema, has what is not known, or no answer keeps to it.
    pub fn json(&self, schema: Value) -> std::result::Result<AnswerForm, FormError> {
        self.matcher_of_schema(schema).map(|matcher| AnswerForm(Form::Matched(Box::new(Mutex::new(matcher)))))
    }

    /// Texts that all of `regex` describes, from their beginning to their end.
    ///
    /// # Errors
    /// Where it is no regular expression, or looks around itself.
    pub fn regex(&self, regex: &str) -> std::result::Result<AnswerForm, FormError> {
        let matcher = self.matcher(TopLevelGrammar::from_regex(&whole(regex)?))?;
        Ok(AnswerForm(Form::Matched(Box::new(Mutex::new(matcher)))))
    }

    /// Texts that keep to `grammar`.
    ///
    /// # Errors
    /// Where no answer can begin by it, and where the tokenizer does not tell the bytes of its tokens.
    pub fn grammar(&self, grammar: Gbnf) -> std::result::Result<AnswerForm, FormError> {
        let tokenizer = self.tokenizer()?;
        let bytes = self.bytes.get_or_init(|| TokenBytes::of(tokenizer).map(Arc::new).map_err(|error| error.to_string()));
        let bytes = bytes.as_ref().map_err(|reason| FormError::Unsupported(reason.clone()))?;
        let form = AnswerForm(Form::Rules(grammar, Arc::clone(bytes)));
        let mut first: Vec<Candidate> = (0..tokenizer.vocab_size() as u32).map(|token| Candidate { token, logit: 0.0 }).collect();
        match form.constraint().and_then(|mut rules| rules.keep_allowed(&mut first)) {
            Ok(()) => Ok(form),
            Err(Error::InvalidArgument { reason, .. }) => Err(FormError::Wrong(reason)),
            Err(error) => Err(FormError::Wrong(error.to_string())),
        }
    }

    fn tokenizer(&self) -> std::result::Result<&Tokenizer, FormError> {
        self.tokenizer.as_ref().ok_or_else(|| FormError::Unsupported("the model has no tokenizer".to_owned()))
    }

    pub(crate) fn matcher_of_schema(&self, schema: Value) -> std::result::Result<Matcher, FormError> {
        let Value::Object(mut schema) = schema else { return Err(FormError::Wrong("must be an object".to_owned())) };
        let mut style = json!({ "whitespace_flexible": false });
        STYLE.iter().for_each(|(name, value)| style[name] = (*value).into());
        schema.insert("x-guidance".to_owned(), style);
        self.matcher(TopLevelGrammar::from_json_schema(schema.into()))
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> std::result::Result<Matcher, FormError> {
        let tokenizer = self.tokenizer()?;
        let factory = self.factory.get_or_init(|| new_factory(tokenizer));
        let factory = factory.as_ref().map_err(|reason| FormError::Unsupported(reason.clone()))?;
        let matcher = Matcher::new(factory.create_parser(grammar));
        // Whether an answer can begin is known only once the first tokens are asked for.
        let begun = match matcher.get_error() {
            Some(reason) => Err(reason),
            None => matcher.deep_clone().compute_mask_or_eos().map_err(|error| error.to_string()),
        };
        match begun {
            Err(reason) if reason.contains("NoExtension") => Err(FormError::Wrong("no answer keeps to it".to_owned())),
            Err(reason) => Err(FormError::Wrong(reason.chars().take(MAX_REASON_CHARS).collect())),
            Ok(_) => Ok(matcher),
        }
    }
}

/// A regular expression of whole texts, without the marks of their beginning and end.
fn whole(regex: &str) -> std::result::Result<String, FormError> {
    let wrong = |reason: &str| Err(FormError::Wrong(reason.to_owned()));
    if regex.len() > MAX_REGEX_BYTES {
        return wrong(&format!("is longer than {MAX_REGEX_BYTES} bytes"));
    }
    let n_escapes = |text: &str| text.len() - text.trim_end_matches('\\').len();
    if n_escapes(regex) % 2 == 1 {
        return wrong("ends in the middle of an escape");
    }
    let without_begin = regex.strip_prefix('^').unwrap_or(regex);
    let whole = match without_begin.strip_suffix('$') {
        Some(without_end) if n_escapes(without_end) % 2 == 0 => without_end,
        _ => without_begin,
    };
    if whole.is_empty() {
        return wrong("describes the empty text alone");
    }
    // What stood between the marks may be several alternatives.
    Ok(format!("(?:{whole})"))
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

impl AnswerForm {
    /// The rules for one answer.
    ///
    /// # Errors
    /// Where there are too many ways to begin one.
    pub fn constraint(&self) -> Result<Box<dyn Constraint>> {
        match &self.0 {
            Form::Matched(matcher) => Ok(Box::new(Matched(copied(matcher)))),
            Form::Rules(grammar, bytes) => grammar.constraint(bytes),
            Form::InChannels(channels) => Ok(channels.constraint()),
        }
    }
}

/// A matcher in the state of another one.
pub(crate) fn copied(matcher: &Mutex<Matcher>) -> Mutex<Matcher> {
    Mutex::new(locked(matcher).deep_clone())
}

pub(crate) fn locked(matcher: &Mutex<Matcher>) -> MutexGuard<'_, Matcher> {
    matcher.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes away what may not come next.
pub(crate) fn keep_allowed(matcher: &Mutex<Matcher>, candidates: &mut Vec<Candidate>) -> Result<()> {
    let allowed = locked(matcher).compute_mask_or_eos().map_err(failed)?;
    candidates.retain(|candidate| allowed.is_allowed(candidate.token));
    Ok(())
}

/// One answer on its way.
struct Matched(Mutex<Matcher>);

impl fmt::Debug for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Matched")
    }
}

impl Constraint for Matched {
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        keep_allowed(&self.0, candidates)
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        let mut matcher = locked(&self.0);
        if matcher.is_stopped() { Ok(()) } else { matcher.consume_token(token).map_err(failed) }
    }
}

pub(crate) fn failed(error: impl fmt::Display) -> Error {
    let reason: String = error.to_string().chars().take(MAX_REASON_CHARS).collect();
    Error::InvalidArgument { option: "the answer's form".into(), reason: format!("cannot be kept: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_beginning_and_end_are_left_out() {
        assert_eq!(whole("^a|b$").unwrap(), "(?:a|b)");
        assert_eq!(whole("a\\$").unwrap(), "(?:a\\$)");
        assert_eq!(whole("a\\\\$").unwrap(), "(?:a\\\\)");
        for wrong in ["", "^$", "a\\", &"a".repeat(MAX_REGEX_BYTES + 1)] {
            assert!(whole(wrong).is_err());
        }
    }
}
