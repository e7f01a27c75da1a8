//! tierflow in a browser's worker: what JavaScript may call. Structured values cross as JSON text; errors are thrown as `Error`
//! objects with a name. Everything runs on the worker's one thread, where a source may be read synchronously; only parts of products and
//! the like may be computed by other workers.

mod embedding;
mod engine;
mod error;
mod fields;
mod held;
mod log;
mod model;
mod options;
mod prompt;
mod request;
mod source;
// Elsewhere there is nobody to share with.
#[cfg(target_arch = "wasm32")]
mod threads;
mod training;
mod words;

use std::cell::RefCell;

use tierflow::device::DeviceSpec;
use tierflow::gpu::{Access, KernelSource};
use tierflow::kernels::KERNELS;
use tierflow::machine::{self, DevicesFile, Measure};
use tierflow::platform;
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

/// Says in the console what a panic has to say, where wasm alone reports just `unreachable`, and what the library warns of.
#[wasm_bindgen(start)]
pub fn start() {
    // This is the first one.
    let _ = tracing::subscriber::set_global_default(log::Console);
    std::panic::set_hook(Box::new(|panic| print_error(&format!("tierflow: {panic}"))));
}

/// This machine as the browser shows it, as JSON like that of `tierflow devices --json`: the adapter if there is one, the
/// worker's own core, and the model's files; their rates as they are known, or all measured anew. Plans that name no other machine are
/// for this one.
#[wasm_bindgen]
pub async fn devices(anew: bool) -> Result<String> {
    let found: DevicesFile = machine::list(if anew { Measure::Full } else { Measure::Never }).await?;
    let text = json(&found)?;
    FOUND.set(Some(found.devices));
    Ok(text)
}

/// The version of the package.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// The rates that are known of this machine by measurement, as a text for [`recall`]; nothing where there are none.
#[wasm_bindgen]
pub fn rates() -> Option<String> {
    String::from_utf8(platform::kept(machine::RATES_FILE)?).ok()
}

/// Takes rates as known that [`rates`] told before. What is no such text counts as nothing.
#[wasm_bindgen]
pub fn recall(rates: &str) -> Result<()> {
    Ok(platform::keep(machine::RATES_FILE, rates.as_bytes())?)
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
