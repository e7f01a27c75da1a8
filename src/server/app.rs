//! What all requests share.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::ServerSettings;
use super::embeddings::Embedder;
use super::error::ApiError;
use super::facts::Facts;
use super::fields::Fields;
use super::loras::Loras;
use super::metrics::{Gauges, Metrics};
use super::pool::Pool;
use crate::error::Result;
use crate::handle::EngineHandle;
use crate::session::Speculation;
use crate::text::{FormVocabulary, SamplingFlags, fresh_seed, strftime};

/// One server.
pub(super) struct App {
    pub(super) engine: EngineHandle,
    pub(super) pool: Arc<Pool>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) model_name: String,
    other_names: Vec<String>,
    /// Seconds since 1970.
    pub(super) started: u64,
    pub(super) facts: Facts,
    pub(super) forms: FormVocabulary,
    /// Where the engine makes embeddings instead of text.
    pub(super) embedder: Option<Embedder>,
    /// How tokens are chosen where a request says nothing.
    pub(super) sampling: SamplingFlags,
    /// LoRA adapters that requests choose.
    pub(super) loras: Loras,
    /// Of all answers.
    pub(super) speculation: Speculation,
}

impl App {
    pub(super) async fn new(engine: EngineHandle, settings: ServerSettings, metrics: Arc<Metrics>) -> Result<App> {
        let ServerSettings { model_name, other_names, n_waiting, sampling, speculation, cache_ram, .. } = settings;
        engine.keep_histories(cache_ram)?;
        let loras = Loras::of(&engine);
        let pool = Arc::new(Pool::new(&engine, n_waiting, &loras.defaults()).await?);
        let facts = Facts::of(&engine);
        Ok(App {
            facts,
            forms: FormVocabulary::new(engine.tokenizer().cloned()),
            embedder: Embedder::of(&engine)?,
            loras,
            engine,
            pool,
            metrics,
            model_name,
            other_names,
            started: now(),
            sampling,
            speculation,
        })
    }

    /// What is so now.
    pub(super) fn gauges(&self) -> Gauges {
        let (plan, model, cached) = (self.engine.plan(), &self.engine.prepared().model, self.engine.cached_tokens());
        Gauges {
            n_leased: self.pool.n_leased(),
            n_waiting: self.pool.n_waiting(),
            n_paused: self.engine.paused_sequences().into_iter().filter(|is_paused| *is_paused).count(),
            n_preemptions: self.engine.n_preemptions(),
            n_cached: cached.iter().sum(),
            cached: plan.blocks_bytes(model, self.engine.used_kv_blocks(), cached.iter().filter(|n_tokens| **n_tokens > 0).count()),
            cache_size: plan.kv_cache_bytes(),
            histories: self.engine.history_bytes(),
            experts: self.engine.expert_statistics(),
        }
    }

    /// The name in the field `model`, where there is one; refuses those of other models.
    pub(super) fn read_model(&self, fields: &mut Fields) -> Result<Option<String>, ApiError> {
        let name = fields.text("model")?;
        name.as_ref().map_or(Ok(()), |name| self.check_model(name))?;
        Ok(name)
    }

    /// Refuses names of other models. An adapter's name may stand behind the model's, or alone.
    pub(super) fn check_model(&self, name: &str) -> Result<(), ApiError> {
        match self.is_own(name) || self.adapter_named(name).is_some() {
            true => Ok(()),
            false => Err(ApiError::no_model(name, &self.model_name)),
        }
    }

    fn is_own(&self, name: &str) -> bool {
        is_named(name, &self.model_name, &self.other_names)
    }

    /// The number of the LoRA adapter that a model's name names.
    fn adapter_named(&self, name: &str) -> Option<usize> {
        if self.is_own(name) { None } else { self.loras.named(name, |model| self.is_own(model)) }
    }

    /// What a request multiplies LoRA adapters by, as the field `lora` or the model's name says, which is not taken.
    pub(super) fn read_loras(&self, fields: &mut Fields) -> Result<Vec<f32>, ApiError> {
        if let Some(list) = fields.list("lora")? {
            return self.loras.read_list(list, "lora");
        }
        let named = fields.copies(&["model"]);
        let chosen = named.get("model").and_then(Value::as_str).and_then(|name| self.adapter_named(name));
        chosen.map_or_else(|| Ok(self.loras.defaults()), |index| self.loras.alone(index))
    }
}

/// Whether that is a name of a model. Ollama's clients add `:latest`.
pub(super) fn is_named(name: &str, model_name: &str, other_names: &[String]) -> bool {
    let bare = name.strip_suffix(":latest").unwrap_or(name);
    [name, bare].iter().any(|name| *name == model_name || other_names.iter().any(|other| other == name))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// That time as the APIs write it.
pub(super) fn rfc3339(seconds: u64) -> String {
    strftime("%Y-%m-%dT%H:%M:%SZ", seconds)
}

/// An id that no other answer has, behind `prefix`.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:08x}{:08x}{:08x}", fresh_seed(), fresh_seed(), fresh_seed())
}
