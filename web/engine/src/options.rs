//! The options of a plan as JSON, and as the command line that asks for the same.

use std::sync::Arc;

use tierflow::engine::EngineBuilder;
use tierflow::model::Checkpoint;
use tierflow::{DeviceChoice, Engine, Error, KvDType, MaxMemory, PlanOptions};

use crate::fields::Fields;

/// What may be asked of a plan; what is absent is the planner's choice.
#[derive(Debug)]
pub struct Options {
    /// Who computes: `auto`, `gpu`, `gpu:0` or `cpu`.
    device: DeviceChoice,
    /// Bytes that may be used of a device.
    max_memory: MaxMemory,
    /// Positions of the context.
    ctx_size: Option<usize>,
    /// How the KV cache stores its numbers.
    kv_dtype: KvDType,
    /// Slots of the ring.
    slots: Option<usize>,
    /// Tokens of a forward, at most.
    ubatch_size: Option<usize>,
}

impl Options {
    /// A builder that asks for this.
    pub fn builder(&self, checkpoint: &Arc<Checkpoint>) -> EngineBuilder {
        let options = PlanOptions {
            max_memory: self.max_memory.iter().collect(),
            ctx_size: self.ctx_size,
            kv_dtype: self.kv_dtype,
            n_slots: self.slots,
            ubatch_size: self.ubatch_size,
            ..PlanOptions::default()
        };
        Engine::builder_of(Arc::clone(checkpoint)).device(self.device).plan_options(options)
    }

    /// The command line that runs `model` so.
    pub fn command(&self, model: &str) -> String {
        let mut words = vec!["tierflow run".to_owned(), quoted(model)];
        if self.device != DeviceChoice::Auto {
            words.push(format!("--device {}", self.device));
        }
        if !self.max_memory.is_empty() {
            words.push(format!("--max-memory {}", self.max_memory));
        }
        if let Some(ctx_size) = self.ctx_size {
            words.push(format!("--ctx-size {ctx_size}"));
        }
        if self.kv_dtype != KvDType::default() {
            words.push(format!("--kv-dtype {}", self.kv_dtype));
        }
        if let Some(n_slots) = self.slots {
            words.push(format!("--slots {n_slots}"));
        }
        if let Some(ubatch_size) = self.ubatch_size {
            words.push(format!("--ubatch-size {ubatch_size}"));
        }
        words.join(" ")
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// Reads options; an empty text asks for nothing.
///
/// # Errors
/// [`Error::InvalidArgument`] naming what cannot be read.
pub fn read(text: &str) -> Result<Options, Error> {
    let mut fields = Fields::of("options", text)?;
    let count = "a whole number";
    let options = Options {
        device: fields.take("device", "auto, gpu, gpu:0 or cpu")?.unwrap_or_default(),
        max_memory: fields.take("max_memory", "bytes by device, as {\"gpu:0\": 268435456}")?.unwrap_or_default(),
        ctx_size: fields.take("ctx_size", count)?,
        kv_dtype: fields.take("kv_dtype", "f32, f16, q8_0 or q4_0")?.unwrap_or_default(),
        slots: fields.take("slots", count)?,
        ubatch_size: fields.take("ubatch_size", count)?,
    };
    fields.finish()?;
    Ok(options)
}
