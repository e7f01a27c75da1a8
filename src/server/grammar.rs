//! The forms of answers as requests ask for them.

use serde_json::{Value, json};

use super::app::App;
use super::error::ApiError;
use super::fields::{Fields, is_nothing};
use crate::error::Result;
use crate::text::{AnswerForm, CallGrammar, Constraint, FormError, Gbnf};

/// What answers must be.
pub(super) enum Grammar {
    /// All of an answer has a form.
    Form(AnswerForm),
    /// Calls in an answer have one.
    Calls(Box<CallGrammar>),
}

/// Most texts that an answer may be one of.
const MAX_CHOICES: usize = 10_000;

/// The fault of the field `name` of a request.
pub(super) fn fault_of(name: &str) -> impl Fn(FormError) -> ApiError + '_ {
    move |error| match error {
        FormError::Unsupported(reason) => ApiError::unsupported(name, reason),
        FormError::Wrong(reason) => ApiError::field(name, reason),
    }
}

impl Grammar {
    /// JSON that keeps to `schema`, the field `name` of a request.
    pub(super) fn of_schema(app: &App, name: &str, schema: Value) -> Result<Grammar, ApiError> {
        app.forms.json(schema).map(Grammar::Form).map_err(fault_of(name))
    }

    /// Any object of JSON.
    pub(super) fn of_object(app: &App, name: &str) -> Result<Grammar, ApiError> {
        Grammar::of_schema(app, name, json!({ "type": "object" }))
    }

    /// A grammar in llama.cpp's form.
    fn of_gbnf(app: &App, name: &str, text: &str) -> Result<Grammar, ApiError> {
        let grammar = Gbnf::parse(text).map_err(|error| ApiError::field(name, error.to_string()))?;
        app.forms.grammar(grammar).map(Grammar::Form).map_err(fault_of(name))
    }

    /// One of several texts.
    fn of_choices(app: &App, name: &str, choices: &[String]) -> Result<Grammar, ApiError> {
        if choices.is_empty() || choices.len() > MAX_CHOICES {
            return Err(ApiError::field(name, format!("must be 1 to {MAX_CHOICES} texts")));
        }
        let literal = |text: &String| {
            let escaped: String = text.chars().map(|char| format!("\\U{:08x}", char as u32)).collect();
            format!("\"{escaped}\"")
        };
        let literals: Vec<String> = choices.iter().map(literal).collect();
        Grammar::of_gbnf(app, name, &format!("root ::= {}", literals.join(" | ")))
    }

    /// The form that a request asks for in fields of its own: llama.cpp's, vLLM's and SGLang's.
    pub(super) fn of_fields(app: &App, fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
        let mut found = Vec::new();
        for (name, kind) in [
            ("grammar", "grammar"),
            ("ebnf", "grammar"),
            ("guided_grammar", "grammar"),
            ("regex", "regex"),
            ("guided_regex", "regex"),
            ("json_schema", "json"),
            ("guided_json", "json"),
            ("guided_choice", "choice"),
        ] {
            let path = fields.name(name);
            found.extend(Grammar::of_field(app, fields, (name, kind), &path)?);
        }
        if let Some(outputs) = fields.value("structured_outputs") {
            let mut outputs = Fields::of_value(outputs, "structured_outputs")?;
            for kind in ["grammar", "regex", "json", "choice"] {
                let path = outputs.name(kind);
                found.extend(Grammar::of_field(app, &mut outputs, (kind, kind), &path)?);
            }
            if outputs.flag("json_object")? == Some(true) {
                found.push(Grammar::of_object(app, "structured_outputs.json_object")?);
            }
            outputs.finish()?;
        }
        fields.ignore(&["guided_decoding_backend"]);
        Grammar::one_of(found)
    }

    /// The one form of those that were asked for.
    pub(super) fn one_of(mut found: Vec<Grammar>) -> Result<Option<Grammar>, ApiError> {
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(ApiError::invalid("several fields ask for a form of the answer; leave out all but one")),
        }
    }

    /// The form of the field `name`, called `path` in errors.
    fn of_field(app: &App, fields: &mut Fields, (name, kind): (&str, &str), path: &str) -> Result<Option<Grammar>, ApiError> {
        if kind == "choice" {
            return fields.texts(name)?.map(|choices| Grammar::of_choices(app, path, &choices)).transpose();
        }
        if kind == "json" {
            let Some(schema) = fields.value(name).filter(|schema| !is_nothing(schema) || schema.is_object()) else { return Ok(None) };
            // vLLM and SGLang take schemas as texts, too.
            let schema = match schema {
                Value::String(text) => {
                    serde_json::from_str(&text).map_err(|error| ApiError::field(path, format!("is no JSON: {error}")))?
                }
                schema => schema,
            };
            return Grammar::of_schema(app, path, schema).map(Some);
        }
        let Some(text) = fields.text(name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        match kind {
            "regex" => app.forms.regex(&text).map(|form| Some(Grammar::Form(form))).map_err(fault_of(path)),
            _ => Grammar::of_gbnf(app, path, &text).map(Some),
        }
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
            // With a schema, as llama.cpp's server has it.
            Some("json_object") => match format.object("schema")? {
                Some(schema) => Grammar::of_schema(app, &format.name("schema"), schema.into()).map(Some),
                None => Grammar::of_object(app, path).map(Some),
            },
            Some("json_schema") => {
                let (name, schema) = schema(format)?;
                Grammar::of_schema(app, name, schema).map(Some)
            }
            // Fireworks' word.
            Some("grammar") => {
                let text = format.text("grammar")?.ok_or_else(|| ApiError::field(&format.name("grammar"), "is missing"))?;
                Grammar::of_gbnf(app, &format.name("grammar"), &text).map(Some)
            }
            _ => Err(ApiError::field(&format.name("type"), "must be text, json_object, json_schema or grammar")),
        }
    }

    /// The same, as an answer of a conversation has it: a model that answers in channels thinks beside it.
    ///
    /// # Errors
    /// Where the model cannot be held to it, whose field is `name`.
    pub(super) fn in_conversation(self, app: &App, name: &str) -> Result<Grammar, ApiError> {
        match self {
            Grammar::Form(form) => {
                let form = app.forms.beside_reasoning(form, app.engine.text().reasoning_format());
                form.map(Grammar::Form).map_err(fault_of(name))
            }
            calls @ Grammar::Calls(_) => Ok(calls),
        }
    }

    /// The rules for an answer.
    pub(super) fn constraint(&self) -> Result<Box<dyn Constraint>> {
        match self {
            Grammar::Form(form) => form.constraint(),
            Grammar::Calls(calls) => calls.constraint(),
        }
    }
}
