//! A model in training: steps that JavaScript asks for one by one, and the adapter that comes of them.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tierflow::engine::EngineBuilder;
use tierflow::train::{DataOptions, DataSet, LoraOptions, OptimizerKind, Scheduler, TrainOn, TrainOptions, Trainer};
use tierflow::{Error, LoadProgress};
use wasm_bindgen::prelude::*;

use crate::error::{self, Result, invalid};
use crate::fields::Fields;

/// What the records are called in messages.
const RECORDS: &str = "records";

/// How a model is trained and how records are read: the options of `tierflow train` by their names.
#[derive(Debug)]
pub struct TrainingOptions {
    train: TrainOptions,
    data: DataOptions,
    epochs: u32,
    steps: Option<u32>,
    warmup: f64,
}

impl TrainingOptions {
    /// Takes them out of `fields`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming what cannot be read.
    pub fn take(fields: &mut Fields) -> Result<TrainingOptions, Error> {
        let (number, count) = ("a number", "a whole number from 1 on");
        let default = TrainOptions::default();
        let lora = LoraOptions {
            rank: fields.take("lora_r", count)?.unwrap_or(default.lora.rank),
            alpha: fields.take("lora_alpha", number)?.unwrap_or(default.lora.alpha),
            targets: fields.take("target", "a list of names, as [\"q_proj\", \"v_proj\"]")?.unwrap_or_default(),
            dropout: fields.take("dropout", number)?.unwrap_or(default.lora.dropout),
            modules_to_save: fields.take("modules_to_save", "a list of names, as [\"norm\"]")?.unwrap_or_default(),
        };
        let grad_clip: Option<f64> = fields.take("grad_clip", number)?;
        let train = TrainOptions {
            lora,
            mixed_precision: fields.take("mixed_precision", "no, fp16 or bf16")?.unwrap_or_default(),
            optimizer: fields.take::<OptimizerKind>("optimizer", "adamw or sgd")?.unwrap_or(default.optimizer),
            learning_rate: fields.take("lr", number)?.unwrap_or(default.learning_rate),
            scheduler: fields.take::<Scheduler>("scheduler", "linear, cosine or constant")?.unwrap_or(default.scheduler),
            weight_decay: fields.take("weight_decay", number)?.unwrap_or(default.weight_decay),
            grad_clip: grad_clip.map_or(default.grad_clip, |most| (most != 0.0).then_some(most)),
            batch: fields.take("batch", count)?.unwrap_or(default.batch),
            accumulate: fields.take("accumulate", count)?.unwrap_or(default.accumulate),
            seq_len: fields.take("seq_len", count)?.unwrap_or(default.seq_len),
            packs: fields.take("packing", "true or false")?.unwrap_or(default.packs),
            seed: fields.take("seed", "a whole number from 0 on")?.unwrap_or(default.seed),
            ..default
        };
        let data = DataOptions {
            train_on: fields.take::<TrainOn>("train_on", "answers or all")?.unwrap_or_default(),
            seq_len: train.seq_len,
            truncates: fields.take("truncate", "true or false")?.unwrap_or_default(),
        };
        let (epochs, steps) = (fields.take("epochs", count)?.unwrap_or(1), fields.take("steps", count)?);
        if epochs == 0 || steps == Some(0) {
            return Err(invalid("steps", "are none; ask for at least one"));
        }
        let warmup = fields.take("warmup", number)?.unwrap_or_default();
        Ok(TrainingOptions { train, data, epochs, steps, warmup })
    }
}

/// A model in training.
#[wasm_bindgen]
pub struct Training {
    /// Taken out during a step.
    trainer: RefCell<Option<Trainer>>,
    data: DataSet,
    described: String,
    is_cancelled: Arc<AtomicBool>,
}

impl Training {
    /// Opens the model for training and reads the records, which are lines of JSON.
    ///
    /// # Errors
    /// As of [`Trainer::open`] and [`DataSet::of_lines`].
    pub async fn open(
        builder: EngineBuilder,
        options: TrainingOptions,
        records: &str,
        progress: &(dyn Fn(LoadProgress) + Sync),
    ) -> Result<Training, Error> {
        let mut trainer = Trainer::open(builder, options.train, progress).await?;
        let data = DataSet::of_lines(records.as_bytes(), RECORDS, trainer.text(), options.data)?;
        trainer.set_epochs(&data, options.epochs, options.steps, options.warmup)?;
        let is_cancelled = Arc::new(AtomicBool::new(false));
        trainer.cancel_with(Arc::clone(&is_cancelled));
        let gpu = trainer.gpu_use();
        let described = json!({
            "n_steps": trainer.options().n_steps,
            "n_records": data.examples.len(),
            "n_too_long": data.n_too_long,
            "n_truncated": data.n_truncated,
            "n_values": trainer.adapter().n_values(),
            "n_layers": trainer.adapter().layers.len(),
            "gpu": gpu.map(|used| json!({"name": used.adapter, "resident": used.resident, "streamed": used.streamed})),
        });
        Ok(Training { trainer: RefCell::new(Some(trainer)), data, described: described.to_string(), is_cancelled })
    }
}

#[wasm_bindgen]
impl Training {
    /// How many steps there are, how many records and values, and which GPU computes, as JSON.
    pub fn describe(&self) -> String {
        self.described.clone()
    }

    /// The next step as JSON, as `tierflow train --json` prints it; nothing once all are done.
    pub async fn step(&self) -> Result<Option<String>> {
        let mut trainer = self.trainer.take().ok_or_else(busy)?;
        let report = trainer.step(&self.data).await;
        self.trainer.replace(Some(trainer));
        Ok(report?.map(|report| error::json(&report)).transpose()?)
    }

    /// Ends the step that is under way before its next unit, with an `InterruptedError`.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// The adapter's files in PEFT's form: names and bytes by turns.
    pub fn adapter(&self) -> Result<Vec<JsValue>> {
        let trainer = self.trainer.borrow();
        let files = trainer.as_ref().ok_or_else(busy)?.adapter_files()?;
        Ok(files.into_iter().flat_map(|(name, bytes)| [name.into(), js_sys::Uint8Array::from(&bytes[..]).into()]).collect())
    }
}

fn busy() -> Error {
    invalid("train", "a step is under way, or an earlier one failed")
}
