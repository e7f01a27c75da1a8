//! The library's errors as exceptions of `tierflow.errors`, with the names of Python's arguments in their texts.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Value, json};
use tierflow::Error;
use tierflow::error::{Setting, Words};

/// Settings by the arguments of Python's functions.
struct Arguments;

impl Words for Arguments {
    fn setting(&self, setting: Setting) -> String {
        let name = match setting {
            Setting::Placement => "device_map",
            Setting::NoSplit => "no_split_module_classes",
            Setting::ResidentLayers => "n_gpu_layers",
            Setting::Strict => "strict",
            Setting::Fit => "fit",
            Setting::Slots => "slots",
            Setting::Raw => "generate()",
            other => other.field(),
        };
        name.to_owned()
    }

    fn writer(&self, setting: Setting) -> String {
        match setting {
            Setting::SavedPlan => "`tierflow plan --export-plan FILE` writes one".to_owned(),
            _ => "write it anew".to_owned(),
        }
    }
}

/// The argument that sets what the library calls `field`.
pub fn argument_of(field: &str) -> String {
    let setting = Setting::ALL.iter().find(|setting| setting.field() == field);
    setting.map_or_else(|| field.to_owned(), |setting| Arguments.setting(*setting))
}

/// The exception of an error.
pub fn raised(error: &Error) -> PyErr {
    let (class, fields) = match error {
        Error::Io { path, .. } | Error::NotMapped { path, .. } => ("FileError", json!({ "path": path })),
        Error::InvalidFile { path, .. } | Error::FileChanged { path, .. } | Error::Text { path, .. } => {
            ("ModelError", json!({ "path": path }))
        }
        Error::UnsupportedModel { path, .. } | Error::UnsupportedOnGpu { path, .. } => ("UnsupportedModelError", json!({ "path": path })),
        Error::MissingTensor { path, tensor } | Error::WrongShape { path, tensor, .. } => {
            ("ModelError", json!({ "path": path, "tensor": tensor }))
        }
        Error::InvalidArgument { option, .. } => ("ArgumentError", json!({ "argument": option.in_words(&Arguments) })),
        Error::NoBudgetIsEnough { .. } | Error::DoNotFit { .. } => ("DoesNotFitError", json!({})),
        Error::DoesNotFit { device, needed, available, .. } | Error::ExceedsLimit { device, needed, available, .. } => {
            ("DoesNotFitError", json!({ "device": device, "needed": needed.0, "available": available.0 }))
        }
        Error::ContextFull { needed, available } => ("ContextFullError", json!({ "needed": needed, "available": available })),
        Error::TokenOutOfVocabulary { token, .. } => ("ArgumentError", json!({ "argument": "tokens", "token": token })),
        Error::NoGpu { .. } => ("NoGpuError", json!({})),
        Error::Gpu { adapter, .. } | Error::DeviceTimeout { adapter, .. } => ("DeviceError", json!({ "adapter": adapter })),
        Error::DeviceLost { adapter, .. } => ("DeviceLostError", json!({ "adapter": adapter })),
        Error::Network { url, .. } => ("NetworkError", json!({ "url": url })),
        Error::AllSequencesInUse { .. } => ("BusyError", json!({})),
        Error::EngineGone => ("ClosedError", json!({})),
        Error::LossNotFinite { .. } | Error::GradientNotFinite => ("NotFiniteError", json!({})),
        Error::Interrupted => ("InterruptedError", json!({})),
        _ => ("EngineError", json!({})),
    };
    with_fields(class, &error.in_words(&Arguments), &fields)
}

/// An exception of `tierflow.errors`.
pub fn new(class: &str, message: &str) -> PyErr {
    with_fields(class, message, &Value::Null)
}

fn with_fields(class: &str, message: &str, fields: &Value) -> PyErr {
    Python::attach(|py| made(py, class, message, fields).unwrap_or_else(|failure| failure))
}

fn made(py: Python<'_>, class: &str, message: &str, fields: &Value) -> PyResult<PyErr> {
    let class = py.import("tierflow.errors")?.getattr(class)?;
    let keywords = PyDict::new(py);
    for (name, value) in fields.as_object().into_iter().flatten() {
        match value {
            Value::Number(number) => keywords.set_item(name, number.as_u64().unwrap_or_default())?,
            other => keywords.set_item(name, other.as_str().unwrap_or_default())?,
        }
    }
    Ok(PyErr::from_value(class.call((message,), Some(&keywords))?))
}
