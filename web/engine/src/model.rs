//! A model of which only the headers are read: what it is made of, and where its weights would go.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use js_sys::{Function, Promise};
use tierflow::Error;
use tierflow::engine::{Inspection, LoadProgress, Prepared};
use tierflow::lora::Adapter;
use tierflow::machine::parse_devices;
use tierflow::model::Checkpoint;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

use crate::engine::Engine;
use crate::error::{Result, invalid, json};
use crate::source::{Reading, Source, sources};
use crate::training::Training;
use crate::words::OfThisApi;
use crate::{found_devices, options};

/// A model's files, their headers read.
#[wasm_bindgen]
pub struct Model {
    checkpoint: Arc<Checkpoint>,
    reading: Reading,
}

#[wasm_bindgen]
impl Model {
    /// Reads the headers of one `.gguf` file, or of the files of a safetensors folder.
    #[wasm_bindgen(constructor)]
    pub fn new(files: Vec<Source>) -> Result<Model> {
        let reading = Reading::default();
        Ok(Model { checkpoint: Arc::new(Checkpoint::from_sources(sources(files, &reading)?)?), reading })
    }

    /// What it is made of and what it would need, as JSON like that of `tierflow inspect --json`.
    pub fn inspect(&self) -> Result<String> {
        let checkpoint = &self.checkpoint;
        let model = tierflow::model::Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape))?;
        Ok(json(&Inspection::new(checkpoint, &model))?)
    }

    /// Measures what is not known of this machine's devices that may compute the model by these options (JSON); `begins` is called before,
    /// where there is something. What cannot be measured is warned of, and planned with typical rates.
    /// Meanwhile the model may be given up.
    pub fn measure(&self, options: &str, begins: Function) -> Result<Promise> {
        let builder = options::read(options)?.builder(&self.checkpoint);
        Ok(future_to_promise(async move {
            // What is wrong with the options or the machine is the plan's to say.
            if builder.unmeasured().await.is_ok_and(|devices| !devices.is_empty()) {
                // Neither keeps anybody from planning.
                let _ = begins.call0(&JsValue::NULL);
                let _ = builder.devices().await;
            }
            Ok(JsValue::UNDEFINED)
        }))
    }

    /// Where everything would live and how fast that should go: the JSON of `tierflow plan --json`, with the same in words
    /// (`text`), the predictions for a prompt and for an answer (`forecast`), and the command line that asks for the same
    /// (`command`). `options` is JSON; `devices` is the text of a devices file and stands for this machine where it is left out.
    pub fn plan(&self, options: &str, devices: Option<String>) -> Result<String> {
        let options = options::read(options)?;
        let machine = match devices {
            Some(text) => parse_devices(text.as_bytes(), "devices")?,
            None => found_devices().ok_or_else(|| invalid("devices", "call devices() first, or give the text of a devices file"))?,
        };
        let prepared = at_once(options.builder(&self.checkpoint).machine(machine).prepare())?;
        Ok(json(&described(&prepared, &options))?)
    }

    /// Loads what the plan holds in memory; `progress` is called with bytes done and bytes in all, and ends the load by returning false:
    /// it fails with `InterruptedError` before anything more is read. `adapter` are the files of a LoRA adapter, or none.
    pub async fn load(&self, options: &str, adapter: Vec<Source>, progress: Function) -> Result<Engine> {
        let options = options::read(options)?;
        let mut builder = options.builder(&self.checkpoint);
        if !adapter.is_empty() {
            let adapter = Adapter::from_sources(sources(adapter, &self.reading)?)?;
            builder = builder.lora(Arc::new(adapter), options.lora_scale);
        }
        let prepared = builder.prepare().await?;
        let plan = json(&described(&prepared, &options))?;
        let progress = Progress { function: progress, reading: self.reading.clone() };
        let loaded = prepared.load(&|loaded| progress.tell(loaded)).await;
        let ended = self.reading.check();
        self.reading.allow();
        // A load that was ended after its last read has an engine, which nobody wants.
        ended?;
        Ok(Engine::new(loaded?, plan))
    }

    /// Makes the model ready for training with `records`, lines of JSON. `options` (JSON) are those of `tierflow train` by their names;
    /// `progress` is as in [`Model::load`].
    pub async fn train(&self, options: &str, records: &str, progress: Function) -> Result<Training> {
        let (options, training) = options::read_for_training(options)?;
        let progress = Progress { function: progress, reading: self.reading.clone() };
        let opened = Training::open(options.builder(&self.checkpoint), training, records, &|loaded| progress.tell(loaded)).await;
        let ended = self.reading.check();
        self.reading.allow();
        ended?;
        Ok(opened?)
    }
}

/// All that [`Model::plan`] returns.
fn described(prepared: &Prepared, options: &options::Options) -> serde_json::Value {
    let explanation = prepared.explain();
    let mut json = prepared.to_json(&explanation);
    json["text"] = format!("{}{}", prepared.summary(), explanation.in_words(&OfThisApi)).into();
    json["forecast"] = serde_json::json!({"prefill": prepared.forecast.prefill, "decode": prepared.forecast.decode});
    json["command"] = options.command(&prepared.checkpoint.path).into();
    json
}

/// What a future yields that waits for nothing: planning for a machine that is described asks no adapter.
fn at_once<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(invalid("devices", "cannot be planned with at once")),
    }
}

/// A function that is called with how far loading has come, and may end it.
struct Progress {
    function: Function,
    reading: Reading,
}

// SAFETY: a value of JavaScript must stay on its thread, and there is no other: this crate is built for wasm without atomics.
#[expect(unsafe_code, reason = "loading may report from any thread, of which a worker has one")]
unsafe impl Sync for Progress {}

impl Progress {
    fn tell(&self, loaded: LoadProgress) {
        let answer = self.function.call2(&JsValue::NULL, &(loaded.done.0 as f64).into(), &(loaded.total.0 as f64).into());
        // A function that throws wants no more either.
        if answer.map_or(true, |answer| answer == JsValue::FALSE) {
            self.reading.stop();
        }
    }
}
