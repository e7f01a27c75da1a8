//! Which models are loaded: on demand, one at a time, and unloaded after a while, the least recently used first where room is needed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{LoadModel, ModelsSettings, Room, ServedModel};
use crate::device::Device;
use crate::error::Error;
use crate::handle::{EngineEnd, EngineHandle};
use crate::server::ServerSettings;
use crate::server::app::{App, is_named, now};
use crate::server::error::ApiError;
use crate::server::keep_alive::KeepAlive;
use crate::server::metrics::{Gauges, Metrics};
use crate::server::pool::ending;
use crate::units::Bytes;

/// Between two looks at who is idle.
const PAUSE: Duration = Duration::from_millis(200);
/// Most names that an error lists.
const MAX_NAMES: usize = 20;

/// All models of a server.
pub(super) struct Models {
    pub(super) entries: Vec<Entry>,
    load: Arc<LoadModel>,
    /// Whoever has it may load.
    turn: tokio::sync::Mutex<()>,
    keep_alive: KeepAlive,
    server: ServerSettings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) started: u64,
    is_closed: AtomicBool,
}

/// A model.
pub(super) struct Entry {
    pub(super) model: ServedModel,
    loaded: Mutex<Option<Loaded>>,
}

/// A model that is loaded. Whoever answers with it has a share of its `app`.
struct Loaded {
    app: Arc<App>,
    end: EngineEnd,
    keep_alive: KeepAlive,
    last_used: Instant,
}

/// What is told of a model that is loaded.
pub(super) struct State {
    pub(super) app: Arc<App>,
    /// Seconds until it is unloaded; `None` where it stays.
    pub(super) secs_left: Option<u64>,
}

impl Entry {
    fn loaded(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model, where it is loaded.
    pub(super) fn state(&self) -> Option<State> {
        let loaded = self.loaded();
        let Loaded { app, keep_alive, last_used, .. } = loaded.as_ref()?;
        let left = |keep: Duration| keep.saturating_sub(last_used.elapsed()).as_secs();
        let secs_left = if let KeepAlive::For(keep) = keep_alive { Some(left(*keep)) } else { None };
        Some(State { app: Arc::clone(app), secs_left })
    }

    /// The model for an answer, where it is loaded.
    fn app(&self, keep_alive: Option<KeepAlive>) -> Option<Arc<App>> {
        let mut loaded = self.loaded();
        let loaded = loaded.as_mut()?;
        loaded.last_used = Instant::now();
        loaded.keep_alive = keep_alive.unwrap_or(loaded.keep_alive);
        Some(Arc::clone(&loaded.app))
    }

    /// Takes the model away where nobody uses it and `is_due`, and returns what tells of its end.
    fn take_idle(&self, is_due: impl FnOnce(&Loaded) -> bool) -> Option<EngineEnd> {
        let mut loaded = self.loaded();
        let state = loaded.as_mut()?;
        if Arc::strong_count(&state.app) > 1 {
            state.last_used = Instant::now();
            return None;
        }
        loaded.take_if(|loaded| is_due(loaded)).map(|loaded| loaded.end)
    }
}

impl Models {
    pub(super) fn new(settings: ModelsSettings, metrics: Arc<Metrics>) -> Models {
        let ModelsSettings { models, load, keep_alive, server } = settings;
        let entries = models.into_iter().map(|model| Entry { model, loaded: Mutex::new(None) }).collect();
        let (load, turn) = (Arc::from(load), tokio::sync::Mutex::new(()));
        Models { entries, load, turn, keep_alive, server, metrics, started: now(), is_closed: AtomicBool::new(false) }
    }

    /// The number of the model of that name.
    pub(super) fn index_of(&self, name: &str) -> Result<usize, ApiError> {
        let is_it = |entry: &Entry| is_named(name, &entry.model.name, &entry.model.other_names);
        self.entries.iter().position(is_it).ok_or_else(|| {
            let names: Vec<&str> = self.entries.iter().map(|entry| entry.model.name.as_str()).take(MAX_NAMES).collect();
            ApiError::no_model(name, &names.join("`, `"))
        })
    }

    /// The only model, or the only one that is loaded.
    pub(super) fn only(&self) -> Option<usize> {
        let loaded: Vec<usize> = (0..self.entries.len()).filter(|index| self.entries[*index].loaded().is_some()).collect();
        match (self.entries.len(), loaded.as_slice()) {
            (1, _) => Some(0),
            (_, [one]) => Some(*one),
            _ => None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// A model for an answer, loaded where it is not. Loading goes on where the client leaves meanwhile: another one may wait, too.
    pub(super) async fn app(self: &Arc<Models>, index: usize, keep_alive: Option<KeepAlive>) -> Result<Arc<App>, ApiError> {
        if self.is_closed() {
            return Err(ending());
        }
        if let Some(app) = self.entries[index].app(keep_alive) {
            return Ok(app);
        }
        let models = Arc::clone(self);
        let loading = tokio::spawn(async move { models.loaded(index, keep_alive).await });
        loading.await.map_err(|_| ApiError::bug("loading the model failed"))?
    }

    async fn loaded(&self, index: usize, keep_alive: Option<KeepAlive>) -> Result<Arc<App>, ApiError> {
        let _turn = self.turn.lock().await;
        let entry = &self.entries[index];
        loop {
            if self.is_closed() {
                return Err(ending());
            }
            if let Some(app) = entry.app(keep_alive) {
                return Ok(app);
            }
            let taken = self.taken();
            let can_grow = self.entries.iter().any(|entry| entry.state().is_some());
            let is_idle = self.least_recently_used().is_some();
            match self.try_load(index, Room { taken, can_grow: can_grow && is_idle }).await {
                Ok(Some(engine)) => return self.put(index, engine, keep_alive).await,
                Ok(None) => {}
                Err(Error::DoesNotFit { .. }) if can_grow => {}
                Err(error) => return Err(error.into()),
            }
            if !self.make_room().await {
                // Whoever used the others has ended, or has begun.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn try_load(&self, index: usize, room: Room) -> Result<Option<EngineHandle>, Error> {
        let load = Arc::clone(&self.load);
        let loaded = tokio::task::spawn_blocking(move || load(index, &room)).await;
        loaded.unwrap_or_else(|_| Err(Error::internal("loading a model panicked")))
    }

    async fn put(&self, index: usize, engine: EngineHandle, keep_alive: Option<KeepAlive>) -> Result<Arc<App>, ApiError> {
        let entry = &self.entries[index];
        let (model_name, other_names) = (entry.model.name.clone(), entry.model.other_names.clone());
        let settings = ServerSettings { model_name, other_names, ..self.server.clone() };
        let end = engine.end();
        let app = Arc::new(App::new(engine, settings, Arc::clone(&self.metrics)).await?);
        let keep_alive = keep_alive.unwrap_or(self.keep_alive);
        *entry.loaded() = Some(Loaded { app: Arc::clone(&app), end, keep_alive, last_used: Instant::now() });
        if self.is_closed() {
            app.pool.close();
        }
        Ok(app)
    }

    /// What loaded models take of each device, as planned.
    fn taken(&self) -> BTreeMap<Device, Bytes> {
        let mut taken = BTreeMap::new();
        for state in self.entries.iter().filter_map(Entry::state) {
            for device in &state.app.engine.plan().devices {
                *taken.entry(device.device).or_insert(Bytes::ZERO) += device.used.total();
            }
        }
        taken
    }

    /// The model that nobody uses and that was not used for the longest time.
    fn least_recently_used(&self) -> Option<&Entry> {
        let idle = |entry: &&Entry| entry.loaded().as_ref().is_some_and(|loaded| Arc::strong_count(&loaded.app) == 1);
        self.entries.iter().filter(idle).min_by_key(|entry| entry.loaded().as_ref().map(|loaded| loaded.last_used))
    }

    /// Unloads a model that nobody uses; whether there was one.
    async fn make_room(&self) -> bool {
        let end = self.least_recently_used().and_then(|entry| entry.take_idle(|_| true));
        let has_room = end.is_some();
        if let Some(end) = end {
            // Only then is its memory free.
            let _ = tokio::task::spawn_blocking(move || end.wait()).await;
        }
        has_room
    }

    /// Unloads models whose time is over, for ever.
    pub(super) async fn unload_idle(&self) {
        loop {
            tokio::time::sleep(PAUSE).await;
            for entry in &self.entries {
                let is_due = |loaded: &Loaded| matches!(loaded.keep_alive, KeepAlive::For(keep) if loaded.last_used.elapsed() >= keep);
                entry.take_idle(is_due);
            }
        }
    }

    fn apps(&self) -> Vec<Arc<App>> {
        self.entries.iter().filter_map(Entry::state).map(|state| state.app).collect()
    }

    /// Takes no further requests.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.apps().iter().for_each(|app| app.pool.close());
    }

    /// Waits until no answer is under way.
    pub(super) async fn drained(&self) {
        for app in self.apps() {
            app.pool.drained().await;
        }
    }

    /// What is so now of those that are loaded.
    pub(super) fn gauges(&self) -> Gauges {
        self.apps().iter().map(|app| app.gauges()).sum()
    }
}
