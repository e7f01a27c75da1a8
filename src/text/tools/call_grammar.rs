//! Calls that are held to the schemas of their tools: free text until a call begins, then its JSON, then free text again; or a call at once.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;

use llguidance::Matcher;
use llguidance::toktrie::TokEnv;
use serde_json::{Map, Value, json};

use super::{CallBody, Tools};
use crate::error::Result;
use crate::text::forms::{FormVocabulary, copied, failed, keep_allowed, locked};
use crate::text::{AnswerForm, Candidate, Constraint, FormError, Special, Tokenizer};

/// What calls must be in all answers of a request.
pub struct CallGrammar(Rules);

enum Rules {
    /// Behind marks.
    Marked(Box<Marked>),
    /// Messages to functions.
    InChannels(AnswerForm),
}

/// What calls behind marks must be.
struct Marked {
    /// Of the calls behind one mark, at their beginning.
    body: Mutex<Matcher>,
    environment: TokEnv,
    /// What begins calls.
    trigger: Vec<u8>,
    /// Marks that are special tokens.
    marks: Vec<(u32, Vec<u8>)>,
    /// The tokens of what begins calls, where there must be one at once.
    opening: Option<VecDeque<u32>>,
    /// The tokens of what ends calls and the answer, where no further ones may follow.
    closing: Option<VecDeque<u32>>,
}

/// What the calls of one answer must be.
struct Calls {
    body: Mutex<Matcher>,
    environment: TokEnv,
    trigger: Vec<u8>,
    marks: Vec<(u32, Vec<u8>)>,
    closing: Option<VecDeque<u32>>,
    state: State,
}

enum State {
    /// Anything may come; these are the latest bytes.
    Free(Vec<u8>),
    /// These come next, then calls.
    Opening(VecDeque<u32>),
    Inside(Box<Mutex<Matcher>>),
    /// These come next, then nothing.
    Closing(VecDeque<u32>),
}

impl CallGrammar {
    /// The rules for calls of `tools`; `None` where the model writes calls in a form that has none.
    ///
    /// # Errors
    /// The field of a request and what is wrong with it, where a call is demanded of such a model, or the vocabulary has no grammars.
    pub fn new(
        forms: &FormVocabulary,
        tokenizer: Option<&Tokenizer>,
        tools: &Tools,
    ) -> std::result::Result<Option<CallGrammar>, (&'static str, FormError)> {
        let (format, is_demanded) = (&tools.format, tools.is_demanded());
        if format.body == CallBody::Message {
            return in_channels(forms, tools).map(|form| Some(CallGrammar(Rules::InChannels(form))));
        }
        let has_rules = matches!(format.body, CallBody::Object | CallBody::List | CallBody::Named);
        // Where no mark begins calls, an answer that begins like one may be another answer.
        if !has_rules || (format.begin.is_empty() && !is_demanded) {
            let reason = "can be auto or none with the form in which this model writes calls";
            return if is_demanded { Err(("tool_choice", FormError::Unsupported(reason.to_owned()))) } else { Ok(None) };
        }
        let unsupported = |reason: String| ("tools", FormError::Unsupported(format!("cannot be kept to: {reason}")));
        let tokenizer = tokenizer.ok_or_else(|| unsupported("the model has no tokenizer".to_owned()))?;
        let is_list = format.body != CallBody::Object;
        let schema = |with_parameters| schema_of(tools, format.keys(), is_list, with_parameters);
        // A schema that the grammar cannot follow is left to the model.
        let matcher = |with_parameters| forms.matcher_of_schema(schema(with_parameters));
        let body = matcher(true).or_else(|_| matcher(false)).map_err(|error| ("tools", error))?;
        let opening_text = format!("{}{}", format.begin, format.lead);
        let tokens = |text: &str| {
            let tokens = tokenizer.encode(text, Special::Leave).map_err(|error| unsupported(error.to_string()))?;
            Ok::<_, (&'static str, FormError)>(VecDeque::from(tokens))
        };
        let closing = || {
            let mut tokens = tokens(&format!("{}{}", format.lead, format.end.unwrap_or_default()))?;
            tokens.extend(tokenizer.eos_tokens().first());
            Ok(tokens)
        };
        Ok(Some(CallGrammar(Rules::Marked(Box::new(Marked {
            environment: body.tok_env().map_err(|error| unsupported(error.to_string()))?,
            body: Mutex::new(body),
            opening: if is_demanded { Some(tokens(&opening_text)?) } else { None },
            closing: if tools.is_single { Some(closing()?) } else { None },
            marks: special_marks(tokenizer, format.begin),
            trigger: opening_text.into_bytes(),
        })))))
    }

    /// The rules for an answer.
    ///
    /// # Errors
    /// Where there are too many ways to begin one.
    pub fn constraint(&self) -> Result<Box<dyn Constraint>> {
        match &self.0 {
            Rules::Marked(marked) => Ok(marked.constraint()),
            Rules::InChannels(form) => form.constraint(),
        }
    }
}

/// The rules for messages to functions. A schema that the grammar cannot follow is left to the model.
fn in_channels(forms: &FormVocabulary, tools: &Tools) -> std::result::Result<AnswerForm, (&'static str, FormError)> {
    let form_of = |function: &Map<String, Value>| {
        let name = function["name"].as_str().unwrap_or_default().to_owned();
        let arguments = forms.json(function["parameters"].clone()).or_else(|_| forms.json(json!({ "type": "object" })));
        arguments.map(|form| (name, form)).map_err(|error| ("tools", error))
    };
    let functions = tools.allowed().map(form_of).collect::<std::result::Result<_, _>>()?;
    let field = if tools.is_demanded() { "tool_choice" } else { "tools" };
    forms.calls_in_channels(functions, tools.is_demanded()).map_err(|error| (field, error))
}

impl Marked {
    fn constraint(&self) -> Box<dyn Constraint> {
        let state = match &self.opening {
            Some(tokens) if tokens.is_empty() => State::Inside(Box::new(copied(&self.body))),
            Some(tokens) => State::Opening(tokens.clone()),
            None => State::Free(Vec::new()),
        };
        Box::new(Calls {
            body: copied(&self.body),
            environment: self.environment.clone(),
            trigger: self.trigger.clone(),
            marks: self.marks.clone(),
            closing: self.closing.clone(),
            state,
        })
    }
}

fn special_marks(tokenizer: &Tokenizer, mark: &str) -> Vec<(u32, Vec<u8>)> {
    let id = tokenizer.token_id(mark).filter(|id| tokenizer.is_special(*id));
    id.map(|id| (id, mark.as_bytes().to_vec())).into_iter().collect()
}

/// The schema of one call, or of a list of them. What tools have in `$defs` is found from the root.
fn schema_of(tools: &Tools, [name, arguments]: [&str; 2], is_list: bool, with_parameters: bool) -> Value {
    let (mut definitions, mut calls) = (Map::new(), Vec::new());
    for (index, function) in tools.allowed().enumerate() {
        let mut parameters = if with_parameters { function["parameters"].clone() } else { json!({ "type": "object" }) };
        let place = format!("#/$defs/{index}");
        move_references(&mut parameters, &place);
        definitions.insert(index.to_string(), parameters);
        calls.push(json!({
            "type": "object", "properties": { name: { "const": function["name"] }, arguments: { "$ref": place } },
            "required": [name, arguments], "additionalProperties": false,
        }));
    }
    let call = json!({ "anyOf": calls });
    let mut schema = if is_list { json!({ "type": "array", "items": call, "minItems": 1 }) } else { call };
    if is_list && tools.is_single {
        schema["maxItems"] = 1.into();
    }
    schema["$defs"] = definitions.into();
    schema
}

/// References from the root of a schema are from `place` now.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" => {
                        if let Some(path) = target.strip_prefix('#') {
                            *target = format!("{place}{path}");
                        }
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| move_references(value, place)),
        _ => {}
    }
}

impl Calls {
    fn inside(&self) -> State {
        State::Inside(Box::new(copied(&self.body)))
    }

    /// The bytes of a token, also of a mark.
    fn bytes(&self, token: u32) -> &[u8] {
        let mark = self.marks.iter().find(|(id, _)| *id == token);
        mark.map_or_else(|| self.environment.tok_trie().token(token), |(_, bytes)| bytes)
    }

    /// What follows after the calls of one mark.
    fn after_body(&self) -> State {
        self.closing.clone().map_or_else(|| State::Free(Vec::new()), State::Closing)
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calls")
    }
}

impl Constraint for Calls {
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        match &mut self.state {
            State::Free(_) => Ok(()),
            State::Inside(matcher) => keep_allowed(matcher, candidates),
            State::Opening(tokens) | State::Closing(tokens) => {
                if let Some(next) = tokens.front() {
                    candidates.retain(|candidate| candidate.token == *next);
                }
                Ok(())
            }
        }
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        let bytes = self.bytes(token).to_vec();
        let next = match &mut self.state {
            State::Free(latest) => {
                latest.extend_from_slice(&bytes);
                let begins = latest.ends_with(&self.trigger);
                let n_old = latest.len().saturating_sub(self.trigger.len());
                latest.drain(..n_old);
                begins.then(|| self.inside())
            }
            State::Opening(tokens) => {
                tokens.pop_front();
                tokens.is_empty().then(|| self.inside())
            }
            State::Inside(matcher) => {
                let mut matcher = locked(matcher);
                matcher.consume_token(token).map_err(failed)?;
                let is_whole = matcher.is_accepting().map_err(failed)?;
                drop(matcher);
                is_whole.then(|| self.after_body())
            }
            State::Closing(tokens) => {
                tokens.pop_front();
                None
            }
        };
        if let Some(next) = next {
            self.state = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_from_the_root() {
        let mut schema =
            json!({ "properties": { "a": { "$ref": "#/$defs/b" } }, "anyOf": [{ "$ref": "#" }], "$defs": { "b": { "$ref": "x" } } });
        move_references(&mut schema, "#/$defs/0");
        assert_eq!(
            schema,
            json!({ "properties": { "a": { "$ref": "#/$defs/0/$defs/b" } }, "anyOf": [{ "$ref": "#/$defs/0" }], "$defs": { "b": { "$ref": "x" } } })
        );
    }
}
