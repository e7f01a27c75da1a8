//! tierflow in a browser's worker: what JavaScript may call. Structured values cross as JSON text; errors are thrown as `Error`
//! objects with a name. Everything runs on the worker's one thread, where a source may be read synchronously.

mod embedding;
mod engine;
mod error;
mod fields;
mod held;
mod model;
mod options;
mod prompt;
mod request;
mod source;
mod training;
mod words;

use std::cell::RefCell;

use tierflow::device::DeviceSpec;
use tierflow::gpu::{Access, KernelSource};
use tierflow::kernels::KERNELS;
use tierflow::machine::{self, DevicesFile, Measure};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

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

/// This machine as the browser shows it, as JSON like that of `tierflow devices --json`: the adapter if there is one, the
/// worker's own core, and the model's files. Plans that name no other machine are for this one.
#[wasm_bindgen]
pub async fn devices() -> Result<String> {
    let found: DevicesFile = machine::list(Measure::Never).await?;
    let text = json(&found)?;
    FOUND.set(Some(found.devices));
    Ok(text)
}

/// What the engine may compile for an adapter, as JSON: name, source, size of the params, and how each storage buffer is used. With
/// it the browser's compiler can be asked about all of them, also about those that its own adapter would not take.
#[wasm_bindgen]
pub fn kernels() -> Result<String> {
    let of = |kernel: &&KernelSource| {
        let access = |&(_, access): &(&str, Access)| if access == Access::Read { "read" } else { "write" };
        let bindings: Vec<&str> = kernel.bindings.iter().map(access).collect();
        serde_json::json!({"stem": kernel.stem, "wgsl": kernel.wgsl, "params_bytes": kernel.params_bytes, "bindings": bindings})
    };
    Ok(json(&KERNELS.iter().map(of).collect::<Vec<_>>())?)
}

/// What a function of JavaScript's answers: whether to go on. It may answer later; one that throws wants no more.
async fn answer_of(returned: Result<JsValue, JsValue>) -> bool {
    let answer = match returned.map(|answer| answer.dyn_into::<js_sys::Promise>()) {
        Ok(Ok(later)) => JsFuture::from(later).await,
        Ok(Err(now)) => Ok(now),
        Err(thrown) => Err(thrown),
    };
    answer.is_ok_and(|answer| answer != JsValue::FALSE)
}

/// What [`devices`] found last, if it was called.
fn found_devices() -> Option<Vec<DeviceSpec>> {
    FOUND.with_borrow(Clone::clone)
}
