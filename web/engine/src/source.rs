//! Files that JavaScript reads: a `File`, a server with range requests, a file of the origin's private file system.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use js_sys::Reflect;
use tierflow::Error;
use tierflow::platform::ByteSource;
use wasm_bindgen::prelude::*;

#[wasm_bindgen(typescript_custom_section)]
const SOURCE: &str = r#"
/** A file that the engine may read. */
export interface Source {
  /** Its bare name, such as `model.gguf` or `config.json`. */
  readonly name: string;
  /** Its bytes. */
  readonly size: number;
  /** Fills `into`, which lies in the engine's memory, from `offset` on, or throws. */
  read(offset: number, into: Uint8Array): void;
}
"#;

#[wasm_bindgen]
extern "C" {
    /// What JavaScript hands in.
    #[wasm_bindgen(typescript_type = "Source")]
    pub type Source;

    #[wasm_bindgen(method, getter)]
    fn name(this: &Source) -> String;

    #[wasm_bindgen(method, getter)]
    fn size(this: &Source) -> f64;

    #[wasm_bindgen(method, catch)]
    fn read(this: &Source, offset: f64, into: &mut [u8]) -> Result<(), JsValue>;
}

/// Whether a model's sources may be read: all of them end at once.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    is_stopped: Arc<AtomicBool>,
}

impl Reading {
    /// From now on, reads go ahead.
    pub fn allow(&self) {
        self.is_stopped.store(false, Ordering::Relaxed);
    }

    /// From now on, reads fail with [`Error::Interrupted`].
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Error::Interrupted`] where reading was stopped.
    pub fn check(&self) -> Result<(), Error> {
        if self.is_stopped.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// A source with what it said of itself when it was handed in.
struct JsSource {
    reading: Reading,
    name: String,
    size: u64,
    source: Source,
}

// SAFETY: a value of JavaScript must stay on its thread, and there is no other: this crate is built for wasm without atomics,
// where no thread can be started.
#[expect(unsafe_code, reason = "the engine's sources may be shared between threads, of which a worker has one")]
unsafe impl Send for JsSource {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "as above")]
unsafe impl Sync for JsSource {}

/// The largest number below which JavaScript counts without gaps.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Sources as the engine knows them, all of which end with `reading`.
///
/// # Errors
/// [`Error::InvalidFile`] for one that has no bytes, or more than JavaScript can count.
pub fn sources(given: Vec<Source>, reading: &Reading) -> Result<Vec<Arc<dyn ByteSource>>, Error> {
    let checked = |source: Source| -> Result<Arc<dyn ByteSource>, Error> {
        let (name, size) = (source.name(), source.size());
        if !(1.0..=MAX_SAFE_INTEGER).contains(&size) {
            return Err(Error::invalid_file(name, format!("has {size} bytes; is it empty?")));
        }
        Ok(Arc::new(JsSource { reading: reading.clone(), name, size: size as u64, source }))
    };
    given.into_iter().map(checked).collect()
}

impl ByteSource for JsSource {
    fn path(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.reading.check()?;
        let len = buffer.len();
        if offset.checked_add(len as u64).is_none_or(|end| end > self.size) {
            let reason = format!("a read of {len} bytes at offset {offset} passes its end at {}", self.size);
            return Err(Error::invalid_file(&self.name, reason));
        }
        self.source.read(offset as f64, buffer).map_err(|thrown| {
            let source = std::io::Error::other(text_of(&thrown));
            Error::io(format!("read {len} bytes at offset {offset} of"), &self.name, source)
        })
    }
}

/// What was thrown, in words.
fn text_of(thrown: &JsValue) -> String {
    let message = Reflect::get(thrown, &"message".into()).ok().and_then(|message| message.as_string());
    message.or_else(|| thrown.as_string()).unwrap_or_else(|| format!("{thrown:?}"))
}

impl fmt::Debug for JsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsSource").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}
