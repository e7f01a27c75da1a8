//! The options of a plan as JSON, and as the command line that asks for the same.

use std::str::FromStr;
use std::sync::Arc;

use tierflow::engine::EngineBuilder;
use tierflow::machine::Measure;
use tierflow::model::Checkpoint;
use tierflow::plan::{ExpertCacheRule, ExpertMissRule};
use tierflow::{DeviceChoice, Engine, Error, KvDType, MaxMemory, PlanOptions};

use crate::fields::Fields;
use crate::training::TrainingOptions;

/// Rows of hidden states that one forward yields where texts become vectors: an encoder reads all of a text at once.
const ROWS_PER_FORWARD: usize = 512;

/// What may be asked of a plan; what is absent is the planner's choice.
#[derive(Debug, Default)]
pub struct Options {
    /// Who computes: `auto`, `gpu`, `gpu:0` or `cpu`.
    device: DeviceChoice,
    /// Bytes that may be used of a device.
    max_memory: MaxMemory,
    /// Whether devices that were never measured are planned with typical rates.
    no_measure: bool,
    /// Positions of the context.
    ctx_size: Option<usize>,
    /// How the KV cache stores its numbers.
    kv_dtype: KvDType,
    /// Slots of the ring.
    slots: Option<usize>,
    /// Tokens of a forward, at most.
    ubatch_size: Option<usize>,
    /// Whether experts pass through a cache, and who computes with those that are not in it.
    expert_cache: ExpertCacheRule,
    expert_misses: ExpertMissRule,
    /// Whether texts become vectors, in place of answers.
    embeddings: bool,
    /// What an adapter is multiplied by, where one is loaded.
    pub lora_scale: f32,
}

impl Options {
    fn take(fields: &mut Fields) -> Result<Options, Error> {
        let count = "a whole number";
        let placement = Options::take_placement(fields)?;
        Ok(Options {
            ctx_size: fields.take("ctx_size", count)?,
            kv_dtype: fields
                .take("kv_dtype", "f32, f16, q8_0, q4_0, or one for keys and one for values, as q8_0/q4_0")?
                .unwrap_or_default(),
            slots: fields.take("slots", count)?,
            ubatch_size: fields.take("ubatch_size", count)?,
            expert_cache: rule(fields.take("expert_cache", "auto, on or off")?)?,
            expert_misses: rule(fields.take("expert_misses", "auto, upload or host")?)?,
            embeddings: fields.take("embeddings", "true or false")?.unwrap_or_default(),
            lora_scale: fields.take("lora_scale", "a number")?.unwrap_or(1.0),
            ..placement
        })
    }

    fn take_placement(fields: &mut Fields) -> Result<Options, Error> {
        Ok(Options {
            device: fields.take("device", "auto, gpu, gpu:0 or cpu")?.unwrap_or_default(),
            max_memory: fields.take("max_memory", "bytes by device, as {\"gpu:0\": 268435456}")?.unwrap_or_default(),
            no_measure: !fields.take("measure", "true or false")?.unwrap_or(true),
            ..Options::default()
        })
    }

    /// A builder that asks for this.
    pub fn builder(&self, checkpoint: &Arc<Checkpoint>) -> EngineBuilder {
        let options = PlanOptions {
            max_memory: self.max_memory.iter().collect(),
            ctx_size: self.ctx_size,
            kv_dtype: self.kv_dtype,
            n_slots: self.slots,
            ubatch_size: self.ubatch_size,
            expert_cache: self.expert_cache,
            expert_misses: self.expert_misses,
            logit_rows: if self.embeddings { ROWS_PER_FORWARD } else { PlanOptions::default().logit_rows },
            ..PlanOptions::default()
        };
        let measure = if self.no_measure { Measure::Never } else { Measure::Quick };
        let builder = Engine::builder_of(Arc::clone(checkpoint)).device(self.device).measure(measure).plan_options(options);
        if self.embeddings { builder.without_head() } else { builder }
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
        if self.expert_cache != ExpertCacheRule::default() {
            words.push(format!("--expert-cache {}", self.expert_cache));
        }
        if self.expert_misses != ExpertMissRule::default() {
            words.push(format!("--expert-misses {}", self.expert_misses));
        }
        if self.no_measure {
            words.push("--no-measure".to_owned());
        }
        words.join(" ")
    }
}

/// What a word says; none is the planner's choice.
fn rule<T: FromStr<Err = Error> + Default>(word: Option<String>) -> Result<T, Error> {
    word.map_or_else(|| Ok(T::default()), |word| word.parse())
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
    let options = Options::take(&mut fields)?;
    fields.finish()?;
    Ok(options)
}

/// The same for training, which has options of its own besides.
///
/// # Errors
/// As of [`read`].
pub fn read_for_training(text: &str) -> Result<(Options, TrainingOptions), Error> {
    let mut fields = Fields::of("options", text)?;
    let placement = Options::take_placement(&mut fields)?;
    let training = TrainingOptions::take(&mut fields)?;
    fields.finish()?;
    Ok((placement, training))
}
