//! What answers are held to: a form, or tools that may be called.

use serde_json::Value;
use tierflow::text::{CallGrammar, Constraint, FormVocabulary, FormWish, Gbnf, ReasoningFormat, ToolChoice, Tools};
use tierflow::{Engine, Error};

use crate::error::invalid;
use crate::fields::Fields;

/// The form that all of an answer must have, if one is asked for.
pub fn take_form(fields: &mut Fields) -> Result<Option<FormWish>, Error> {
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

/// The rules of a form for one answer of a model that writes its reasoning like this.
pub fn constraint_of_form(
    wish: &FormWish,
    forms: &FormVocabulary,
    reasoning: Option<ReasoningFormat>,
) -> Result<Box<dyn Constraint>, Error> {
    let form = forms.form(wish.clone(), reasoning);
    form.map_err(|error| invalid(wish.field(), error.to_string()))?.constraint()
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
        let wrong = || invalid("tool_choice", "must be auto, none, required, or an object that names a function");
        let choice = self.choice.as_ref().map(|choice| ToolChoice::read(choice).ok_or_else(wrong)).transpose()?;
        let offered = Tools::offered(self.list.clone(), choice, !self.is_parallel, || engine.text().tool_format());
        offered.map_err(|(field, error)| invalid(field, error.to_string()))
    }
}

/// The rules for calls of `tools`, where there are some for the way in which the model calls.
pub fn constraint_of_calls(tools: &Tools, forms: &FormVocabulary, engine: &Engine) -> Result<Option<Box<dyn Constraint>>, Error> {
    let rules = CallGrammar::new(forms, engine.tokenizer(), tools);
    rules.map_err(|(field, error)| invalid(field, error.to_string()))?.map(|rules| rules.constraint()).transpose()
}
