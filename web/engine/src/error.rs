//! Errors as JavaScript's `Error` objects, with a name to distinguish them and numbers where they have some.

use js_sys::Reflect;
use serde::Serialize;
use tierflow::Error;
use wasm_bindgen::JsValue;

use crate::words::{OfThisApi, without_places};

/// An error on its way to JavaScript.
#[derive(Debug)]
pub struct Thrown(JsValue);

/// Result of every exported function.
pub type Result<T, E = Thrown> = std::result::Result<T, E>;

impl From<Thrown> for JsValue {
    fn from(thrown: Thrown) -> JsValue {
        thrown.0
    }
}

impl From<Error> for Thrown {
    fn from(error: Error) -> Thrown {
        let thrown = js_sys::Error::new(&without_places(&error.in_words(&OfThisApi)));
        thrown.set_name(name_of(&error));
        match &error {
            Error::DoesNotFit { device, needed, available, .. } => {
                set(&thrown, "device", &device.into());
                set(&thrown, "needed", &(needed.0 as f64).into());
                set(&thrown, "available", &(available.0 as f64).into());
            }
            Error::ContextFull { needed, available } => {
                set(&thrown, "needed", &(*needed as f64).into());
                set(&thrown, "available", &(*available as f64).into());
            }
            Error::InvalidArgument { option, .. } => set(&thrown, "option", &option.in_words(&OfThisApi).into()),
            _ => {}
        }
        if let Error::DoNotFit { shortfalls, .. } = &error
            && let Some(first) = shortfalls.first()
        {
            set(&thrown, "device", &(&first.device).into());
            set(&thrown, "needed", &(first.needed.0 as f64).into());
            set(&thrown, "available", &(first.available.0 as f64).into());
        }
        Thrown(thrown.into())
    }
}

/// Sets a property of a new object, which nothing can refuse.
fn set(object: &js_sys::Error, name: &str, value: &JsValue) {
    let _ = Reflect::set(object, &name.into(), value);
}

fn name_of(error: &Error) -> &'static str {
    match error {
        Error::NoGpu { .. } => "NoWebGpuError",
        Error::ExceedsLimit { .. } => "LimitError",
        Error::DoesNotFit { .. } | Error::DoNotFit { .. } => "DoesNotFitError",
        Error::DeviceLost { .. } => "DeviceLostError",
        Error::InvalidFile { .. }
        | Error::FileChanged { .. }
        | Error::UnsupportedModel { .. }
        | Error::UnsupportedOnGpu { .. }
        | Error::MissingTensor { .. }
        | Error::WrongShape { .. }
        | Error::Text { .. } => "InvalidFileError",
        Error::Interrupted => "InterruptedError",
        Error::ContextFull { .. } => "ContextFullError",
        Error::InvalidArgument { .. } | Error::NoBudgetIsEnough { .. } | Error::TokenOutOfVocabulary { .. } => "InvalidArgumentError",
        _ => "TierflowError",
    }
}

/// An argument that cannot be taken.
pub fn invalid(argument: &str, reason: impl Into<String>) -> Error {
    Error::InvalidArgument { option: argument.into(), reason: reason.into() }
}

/// `value` as JSON text.
pub fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::io("write as JSON", "the answer", error.into()))
}
