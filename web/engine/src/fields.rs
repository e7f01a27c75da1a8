//! Arguments that are JSON objects, field by field: an error names the field at fault.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tierflow::Error;

use crate::error::invalid;

/// The fields of an object that are not read yet.
pub struct Fields {
    values: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Of the object `text`; an empty text has none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `argument`, where it is no object.
    pub fn of(argument: &str, text: &str) -> Result<Fields, Error> {
        let values = if text.is_empty() { Ok(Map::new()) } else { serde_json::from_str(text) };
        Ok(Fields { values: values.map_err(|_| invalid(argument, "is no object"))?, known: Vec::new() })
    }

    /// The field `name`, if it is given and not null. `form` says what it should be.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where it is something else.
    pub fn take<T: DeserializeOwned>(&mut self, name: &'static str, form: &str) -> Result<Option<T>, Error> {
        self.known.push(name);
        match self.values.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let found = value.to_string();
                serde_json::from_value(value).map(Some).map_err(|_| invalid(name, format!("{found} is not understood; give {form}")))
            }
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a field that nobody has asked for.
    pub fn finish(self) -> Result<(), Error> {
        match self.values.keys().next() {
            Some(name) => Err(invalid(name, format!("is not known; there are {}", self.known.join(", ")))),
            None => Ok(()),
        }
    }
}
