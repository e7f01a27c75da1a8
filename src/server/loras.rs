//! LoRA adapters that requests choose: by llama.cpp's field `lora`, or by the model's name, `MODEL:ADAPTER` or `ADAPTER` alone. Where a
//! request says neither, the defaults count: those of the command line, until `/lora-adapters` changes them. An adapter that replaces norms is
//! alone and the same for all requests: those that ask for another scale are refused.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::App;
use super::body::ok;
use super::error::ApiError;
use super::fields::Fields;
use super::read::body_of;
use crate::handle::EngineHandle;

/// Largest scale that a request may ask for: with far larger ones, nothing that is computed is a number any more.
const MAX_SCALE: f32 = 100.0;

/// The adapters of a server.
pub(super) struct Loras {
    adapters: Vec<Named>,
    /// Whether requests choose; else all have what the command line gives.
    are_chosen: bool,
    /// What sequences multiply each by where a request does not say; nothing where they do not choose.
    defaults: RwLock<Vec<f32>>,
}

/// One of them.
struct Named {
    /// What its folder or its file is called, without `.gguf`; its path where several are called so.
    name: String,
    path: String,
    /// What the command line multiplies it by.
    given: f32,
}

impl Loras {
    /// Those that sequences of `engine` choose, or the one that all share.
    pub(super) fn of(engine: &EngineHandle) -> Loras {
        let prepared = engine.prepared();
        let are_chosen = prepared.model.lora_scales.is_some();
        let loras = prepared.loras.iter().filter(|lora| are_chosen || lora.n_norms > 0);
        let mut adapters: Vec<Named> = loras.map(|lora| Named::new(&lora.path, lora.scale)).collect();
        let names: Vec<String> = adapters.iter().map(|adapter| adapter.name.clone()).collect();
        for adapter in &mut adapters {
            if names.iter().filter(|name| **name == adapter.name).count() > 1 {
                adapter.name.clone_from(&adapter.path);
            }
        }
        let defaults = RwLock::new(adapters.iter().filter(|_| are_chosen).map(|adapter| adapter.given).collect());
        Loras { adapters, are_chosen, defaults }
    }

    /// Their names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().map(|adapter| adapter.name.as_str())
    }

    /// What sequences multiply each by where a request does not say.
    pub(super) fn defaults(&self) -> Vec<f32> {
        self.defaults.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the adapter that is called `name`, alone or behind `:` and a name for which `is_model` holds.
    pub(super) fn named(&self, name: &str, is_model: impl Fn(&str) -> bool) -> Option<usize> {
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        let is_named = |own: &Named| {
            let before = bare.strip_suffix(own.name.as_str());
            before.is_some_and(|before| before.is_empty() || before.strip_suffix(':').is_some_and(&is_model))
        };
        self.adapters.iter().position(is_named)
    }

    /// That one alone, which a model's name asks for. Given to count for nothing, it counts whole.
    pub(super) fn alone(&self, index: usize) -> Result<Vec<f32>, ApiError> {
        let scale = |(own, adapter): (usize, &Named)| match (own == index, adapter.given == 0.0) {
            (true, true) => 1.0,
            (true, false) => adapter.given,
            (false, _) => 0.0,
        };
        self.chosen(self.adapters.iter().enumerate().map(scale).collect(), "model")
    }

    /// What sequences multiply the adapters by for a request that asks for `scales`, in its field `what`.
    fn chosen(&self, scales: Vec<f32>, what: &str) -> Result<Vec<f32>, ApiError> {
        if self.are_chosen {
            return Ok(scales);
        }
        match self.adapters.iter().zip(&scales).find(|(adapter, scale)| adapter.given != **scale) {
            Some((Named { name, given, .. }, scale)) => {
                let reason = format!("asks for {scale} of `{name}`, which replaces norms: all requests share it, and have {given} of it");
                Err(ApiError::unsupported(what, reason))
            }
            None => Ok(Vec::new()),
        }
    }

    /// Objects with `id` and `scale`; those that are not named count for nothing, as llama.cpp has it. Errors call the list `what`.
    pub(super) fn read_list(&self, list: Vec<Value>, what: &str) -> Result<Vec<f32>, ApiError> {
        let mut scales = vec![0.0; self.adapters.len()];
        for (index, entry) in list.into_iter().enumerate() {
            let mut entry = Fields::of_value(entry, &format!("{what}[{index}]"))?;
            let id = entry.count("id")?.ok_or_else(|| ApiError::field(&entry.name("id"), "is missing"))?;
            let scale = entry.number("scale")?.ok_or_else(|| ApiError::field(&entry.name("scale"), "is missing"))?;
            let Some(own) = scales.get_mut(id as usize) else {
                let n_adapters = self.adapters.len();
                return Err(ApiError::field(
                    &entry.name("id"),
                    format!("is {id}, and this server has {n_adapters} LoRA adapters, from 0 on"),
                ));
            };
            if scale.abs() > MAX_SCALE {
                return Err(ApiError::field(&entry.name("scale"), format!("must be from -{MAX_SCALE} to {MAX_SCALE}")));
            }
            *own = scale;
            entry.finish()?;
        }
        self.chosen(scales, what)
    }
}

impl Named {
    fn new(path: &str, given: f32) -> Named {
        let path_of = Path::new(path);
        let is_file = path_of.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let name = if is_file { path_of.file_stem() } else { path_of.file_name() };
        let name = name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned());
        Named { name, path: path.to_owned(), given }
    }
}

/// The adapters with their defaults, as llama.cpp's server lists them.
pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let defaults = app.loras.defaults();
    let described = |(id, Named { name, path, given }): (usize, &Named)| {
        let scale = defaults.get(id).unwrap_or(given);
        json!({ "id": id, "name": name, "path": path, "scale": scale })
    };
    ok(&app.loras.adapters.iter().enumerate().map(described).collect::<Value>())
}

/// Changes the defaults, from the next request on.
pub(super) async fn change(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let list = serde_json::from_slice(&body_of(request).await?)
        .map_err(|_| ApiError::invalid("the body must be a JSON list of objects with id and scale"))?;
    let scales = app.loras.read_list(list, "adapters")?;
    *app.loras.defaults.write().unwrap_or_else(PoisonError::into_inner) = scales;
    Ok(ok(&json!({ "success": true })))
}
