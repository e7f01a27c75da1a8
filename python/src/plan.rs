//! Plans without loading, and the machine's devices.

use pyo3::prelude::*;
use tierflow::engine::Prepared;
use tierflow::machine::{self, Measure};
use tierflow::platform::block_on;

use crate::options::{Options, locate};
use crate::wait::in_background;
use crate::{errors, process};

/// A plan in words, as JSON, and as a device map in JSON.
pub fn told(prepared: &Prepared) -> (String, String, String) {
    let map = prepared.plan.device_map(&prepared.checkpoint.catalog, &prepared.model);
    let mut json = prepared.to_saved_json();
    json["model"] = serde_json::json!(prepared.checkpoint.path);
    json["forecast"] = serde_json::json!(prepared.forecast);
    json["device_specs"] = serde_json::json!(prepared.devices);
    (prepared.summary(), json.to_string(), map.to_json())
}

/// The plan for a model, which is not loaded.
#[pyfunction]
#[pyo3(signature = (options, progress = None))]
pub fn plan(py: Python<'_>, options: &str, progress: Option<&Bound<'_, PyAny>>) -> PyResult<(String, String, String)> {
    process::check()?;
    let options = Options::from_json(options).map_err(|error| errors::raised(&error))?;
    in_background(py, progress, move |progress| Ok(told(&options.prepare(&locate(&options.model, options.fetch, progress)?)?)))
}

/// The devices of this machine, as `tierflow devices --json` tells them.
#[pyfunction]
pub fn devices(py: Python<'_>, measure: bool) -> PyResult<String> {
    process::check()?;
    let measure = if measure { Measure::Full } else { Measure::Never };
    let found = in_background(py, None, move |_| block_on(machine::list(measure)))?;
    serde_json::to_string(&found).map_err(|error| errors::new("EngineError", &error.to_string()))
}
