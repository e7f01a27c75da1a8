//! What answers are held to: a form, or tools that may be called.

use serde_json::Value;
use tierflow::text::{CallGrammar, Constraint, FormVocabulary, Gbnf, ReasoningFormat, ToolChoice, ToolFormat, Tools};
use tierflow::{Engine, Error};

use crate::error::invalid;
use crate::fields::Fields;

/// The form that all of an answer must have.
#[derive(Debug)]
pub enum FormWish {
    Grammar(Gbnf),
    Schema(Value),
    Regex(String),
}

impl FormWish {
    /// The one that is asked for.
    pub fn take(fields: &mut Fields) -> Result<Option<FormWish>, Error> {
        let grammar: Option<String> = fields.take("grammar", "a text in the form of llama.cpp's grammars")?;
        let grammar = grammar.map(|text| Gbnf::parse(&text).map_err(|error| invalid("grammar", error.to_string()))).transpose()?;
        let schema = fields.take("json_schema", "an object with a JSON schema")?.map(FormWish::Schema);
        let regex = fields.take("regex", "a text with a regular expression")?.map(FormWish::Regex);
        let mut asked = [grammar.map(FormWish::Grammar), schema, regex].into_iter().flatten();
        let first = asked.next();
        if asked.next().is_some() {
            return Err(invalid("grammar", "give one of grammar, json_schema and regex"));
        }
        Ok(first)
    }

    /// The rules for one answer.
    pub fn constraint(&self, forms: &FormVocabulary, engine: &Engine) -> Result<Box<dyn Constraint>, Error> {
        let (name, form) = match self {
            FormWish::Grammar(grammar) => ("grammar", forms.grammar(grammar.clone())),
            FormWish::Schema(schema) => ("json_schema", forms.json(schema.clone())),
            FormWish::Regex(regex) => ("regex", forms.regex(regex)),
        };
        if engine.text().reasoning_format() == Some(ReasoningFormat::Channels) {
            return Err(invalid(name, "is not supported with a model that answers in channels"));
        }
        form.map_err(|error| invalid(name, error.to_string()))?.constraint()
    }
}

/// Tools that are offered, and whether they must be called.
#[derive(Debug)]
pub struct ToolWish {
    /// In OpenAI's form, which JavaScript has checked.
    list: Vec<Value>,
    choice: Option<Value>,
    is_parallel: bool,
}

impl ToolWish {
    /// What is offered.
    pub fn take(fields: &mut Fields) -> Result<ToolWish, Error> {
        Ok(ToolWish {
            list: fields.take("tools", "a list of functions")?.unwrap_or_default(),
            choice: fields.take("tool_choice", "auto, none, required, or a function")?,
            is_parallel: fields.take("parallel_tool_calls", "true or false")?.unwrap_or(true),
        })
    }

    /// The tools as the engine's model has them; `None` where none may be called.
    pub fn offered(&self, engine: &Engine) -> Result<Option<Tools>, Error> {
        let choice = match &self.choice {
            None => ToolChoice::Auto,
            Some(choice) => {
                let wrong = || invalid("tool_choice", "must be auto, none, required, or an object that names a function");
                ToolChoice::read(choice).ok_or_else(wrong)?
            }
        };
        match &choice {
            ToolChoice::Never => return Ok(None),
            ToolChoice::Auto if self.list.is_empty() => return Ok(None),
            ToolChoice::Required if self.list.is_empty() => return Err(invalid("tool_choice", "asks for a call, and there are no tools")),
            ToolChoice::Named(name) if !self.list.iter().any(|tool| tool["function"]["name"] == *name) => {
                return Err(invalid("tool_choice", "names a tool that is not among `tools`"));
            }
            _ => {}
        }
        let template = engine.chat_template().ok_or_else(|| invalid("tools", "are not supported: the model has no chat template"))?;
        if engine.text().reasoning_format() == Some(ReasoningFormat::Channels) {
            return Err(invalid("tools", "are not supported with a model that answers in channels"));
        }
        let unknown = || invalid("tools", "are not supported: the model's chat template has them in a form that is not known");
        let format = ToolFormat::of(template).ok_or_else(unknown)?;
        Ok(Some(Tools { format, list: self.list.clone(), choice, is_single: !self.is_parallel }))
    }
}

/// The rules for calls of `tools`, where there are some for the way in which the model calls.
pub fn constraint_of(tools: &Tools, forms: &FormVocabulary, engine: &Engine) -> Result<Option<Box<dyn Constraint>>, Error> {
    let rules = CallGrammar::new(forms, engine.tokenizer(), tools);
    Ok(rules.map_err(|(field, error)| invalid(field, error.to_string()))?.map(|rules| rules.constraint()))
}
