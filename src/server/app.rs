//! What all requests share.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ServerSettings;
use super::embeddings::Embedder;
use super::error::ApiError;
use super::facts::Facts;
use super::fields::Fields;
use super::forms::FormVocabulary;
use super::guard::Guard;
use super::metrics::Metrics;
use super::pool::Pool;
use crate::error::Result;
use crate::handle::EngineHandle;
use crate::session::Speculation;
use crate::text::{fresh_seed, strftime};

/// One server.
pub(super) struct App {
    pub(super) engine: EngineHandle,
    pub(super) pool: Arc<Pool>,
    pub(super) guard: Guard,
    pub(super) metrics: Metrics,
    pub(super) model_name: String,
    other_names: Vec<String>,
    /// Seconds since 1970.
    pub(super) started: u64,
    pub(super) facts: Facts,
    pub(super) forms: FormVocabulary,
    /// Where the engine makes embeddings instead of text.
    pub(super) embedder: Option<Embedder>,
    /// Of all answers.
    pub(super) speculation: Speculation,
}

impl App {
    pub(super) async fn new(engine: EngineHandle, settings: ServerSettings, is_local: bool) -> Result<App> {
        let ServerSettings { model_name, other_names, api_key, origins, n_waiting, speculation } = settings;
        let pool = Arc::new(Pool::new(&engine, n_waiting).await?);
        let guard = Guard::new(api_key, origins, is_local);
        let facts = Facts::of(&engine);
        Ok(App {
            facts,
            forms: FormVocabulary::new(engine.tokenizer().cloned()),
            embedder: Embedder::of(&engine)?,
            engine,
            pool,
            guard,
            metrics: Metrics::default(),
            model_name,
            other_names,
            started: now(),
            speculation,
        })
    }

    /// The name in the field `model`, where there is one; refuses those of other models.
    pub(super) fn read_model(&self, fields: &mut Fields) -> Result<Option<String>, ApiError> {
        let name = fields.text("model")?;
        name.as_ref().map_or(Ok(()), |name| self.check_model(name))?;
        Ok(name)
    }

    /// Refuses names of other models. Ollama's clients add `:latest`.
    pub(super) fn check_model(&self, name: &str) -> Result<(), ApiError> {
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        let is_known = [name, bare].iter().any(|name| *name == self.model_name || self.other_names.iter().any(|other| other == name));
        match is_known {
            true => Ok(()),
            false => Err(ApiError::no_model(name, &self.model_name)),
        }
    }
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
