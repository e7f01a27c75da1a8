//! tierflow in a browser's worker: what JavaScript may call. Structured values cross as JSON text; faults are thrown as `Error`
//! objects with a name. Everything runs on the worker's one thread, where a source may be read synchronously.

mod engine;
mod error;
mod model;
mod options;
mod source;

use std::cell::RefCell;

use tierflow::device::DeviceSpec;
use tierflow::machine::{self, DevicesFile, Measure};
use wasm_bindgen::prelude::*;

use error::{Result, json};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn print_error(text: &str);
}

thread_local! {
    /// What [`devices`] found last.
    static FOUND: RefCell<Option<Vec<DeviceSpec>>> = const { RefCell::new(None) };
}

/// Says in the console what a panic has to say; wasm alone reports just `unreachable`.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|panic| print_error(&format!("tierflow: {panic}"))));
}

/// This machine as the browser shows it, as JSON of the form of `tierflow devices --json`: the adapter if there is one, the
/// worker's own core, and the model's files. Plans that name no other machine are for this one.
#[wasm_bindgen]
pub async fn devices() -> Result<String> {
    let found: DevicesFile = machine::list(Measure::Never).await?;
    let text = json(&found)?;
    FOUND.set(Some(found.devices));
    Ok(text)
}

/// What [`devices`] found last, if it was called.
fn found_devices() -> Option<Vec<DeviceSpec>> {
    FOUND.with_borrow(Clone::clone)
}
