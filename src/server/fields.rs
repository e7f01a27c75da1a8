//! The fields of a request's JSON, taken one by one: each is checked, and what nobody took is refused, so that nothing is ignored by
//! mistake. A field that is null counts as absent, as in the APIs.

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields that were not taken yet.
pub(super) struct Fields {
    left: Map<String, Value>,
    /// What stands before the names of fields in errors: empty, or the path of the object.
    path: String,
}

impl Fields {
    /// Those of a whole request.
    pub(super) fn of_request(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(left)) => Ok(Fields::of_object(left)),
            Ok(_) => Err(ApiError::invalid("the body must be a JSON object")),
            Err(error) => Err(ApiError::invalid(format!("the body is no JSON: {error}"))),
        }
    }

    /// Those of an object that is a whole request.
    pub(super) fn of_object(left: Map<String, Value>) -> Fields {
        Fields { left, path: String::new() }
    }

    /// Those of an object inside it.
    pub(super) fn of_value(value: Value, path: &str) -> Result<Fields, ApiError> {
        match value {
            Value::Object(left) => Ok(Fields { left, path: format!("{path}.") }),
            _ => Err(ApiError::field(path, "must be an object")),
        }
    }

    /// The name of a field in errors.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Any value.
    pub(super) fn value(&mut self, name: &str) -> Option<Value> {
        self.left.shift_remove(name).filter(|value| !value.is_null())
    }

    fn typed<T>(&mut self, name: &str, what: &str, read: impl FnOnce(Value) -> Option<T>) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| ApiError::field(&self.name(name), format!("must be {what}")))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a text", |value| if let Value::String(text) = value { Some(text) } else { None })
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", |value| value.as_bool())
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        self.typed(name, "a number", |value| value.as_f64().map(|number| number as f32).filter(|number| number.is_finite()))
    }

    /// A whole number from 0 on.
    pub(super) fn count(&mut self, name: &str) -> Result<Option<u32>, ApiError> {
        self.typed(name, "a whole number from 0 to 4294967295", |value| value.as_u64().and_then(|count| u32::try_from(count).ok()))
    }

    /// A whole number.
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        self.typed(name, "a whole number", |value| value.as_i64())
    }

    pub(super) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.typed(name, "a list", |value| if let Value::Array(list) = value { Some(list) } else { None })
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.typed(name, "an object", |value| if let Value::Object(object) = value { Some(object) } else { None })
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        self.typed(name, "a text or a list of texts", |value| match value {
            Value::String(text) => Some(vec![text]),
            Value::Array(list) => list.into_iter().map(|value| value.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// Copies of fields that are there, which are not taken by that.
    pub(super) fn copies(&self, names: &[&str]) -> Map<String, Value> {
        let copy = |name: &&str| Some(((*name).to_owned(), self.left.get(*name).filter(|value| !value.is_null())?.clone()));
        names.iter().filter_map(copy).collect()
    }

    /// Takes fields that change nothing here.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.value(name)));
    }

    /// Takes all that is left, which changes nothing here.
    pub(super) fn ignore_rest(&mut self) {
        self.left.clear();
    }

    /// Takes a field that may only say what is so anyway.
    pub(super) fn only(&mut self, name: &str, is_so: impl FnOnce(&Value) -> bool, reason: &str) -> Result<(), ApiError> {
        match self.value(name) {
            Some(value) if !is_so(&value) => Err(ApiError::unsupported(&self.name(name), reason)),
            _ => Ok(()),
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.left.iter().find(|(_, value)| !value.is_null()) {
            // A name is the client's own text: it is cut to be quoted.
            Some((name, _)) => {
                let name: String = self.name(name).chars().take(100).collect();
                Err(ApiError::unsupported(&name, "this server does not know the field; leave it out"))
            }
            None => Ok(()),
        }
    }
}

/// Whether a value stands for nothing: false, zero, an empty list, object or text.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::of_request(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_nobody_took_is_refused_by_name() {
        let mut read = fields(r#"{"a": 1, "b": null, "c": "x"}"#);
        assert_eq!(read.count("a").unwrap(), Some(1));
        assert!(read.finish().unwrap_err().message.starts_with("c: "));
        let mut read = fields(r#"{"a": 1, "b": null}"#);
        read.ignore(&["a"]);
        assert!(read.finish().is_ok(), "null is absent");
    }

    #[test]
    fn values_have_one_type() {
        let mut read = fields(r#"{"a": -1, "b": 1.5, "c": 1e300, "d": [1], "e": "x", "f": 99999999999, "g": 1}"#);
        assert!(read.count("a").is_err() && read.count("b").is_err() && read.number("c").is_err() && read.texts("d").is_err());
        assert!(read.flag("e").is_err() && read.count("f").is_err());
        assert!(read.only("g", is_nothing, "is one").is_err());
        assert!(
            Fields::of_request(b"[1]").is_err() && Fields::of_request(b"{").is_err() && Fields::of_request(b"{\"a\": \"\xff\"}").is_err()
        );
        assert!(Fields::of_request("[".repeat(100_000).as_bytes()).is_err(), "no deep recursion");
    }
}
