//! Several models behind one address. Each is loaded when a request names it, and has then all that a server of one model has (`App`); it
//! is unloaded when nobody has asked it for a while, or earlier where another one needs its room (`loaded`). Requests go to it as they are
//! (`paths`).

mod loaded;
mod paths;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;

use super::guard::Gate;
use super::keep_alive::KeepAlive;
use super::{ServerSettings, connections, opened, routes};
use crate::device::Device;
use crate::error::Result;
use crate::handle::EngineHandle;
use crate::units::Bytes;
use loaded::Models;

/// A model that a server has, loaded or not.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// The name that it is asked for by.
    pub name: String,
    /// Other names of it.
    pub other_names: Vec<String>,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// When they were changed last, in seconds since 1970.
    pub modified: u64,
}

/// The room that a model is loaded into.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// What the models take that are loaded already.
    pub taken: BTreeMap<Device, Bytes>,
    /// Whether more room can be made, by unloading others.
    pub can_grow: bool,
}

/// Loads the model of that number. Where it had better have more room, which can be made, it is `None`. Called on a thread of its own, for
/// one model at a time.
pub type LoadModel = dyn Fn(usize, &Room) -> Result<Option<EngineHandle>> + Send + Sync;

/// What a server of several models is told.
pub struct ModelsSettings {
    /// The models, by number.
    pub models: Vec<ServedModel>,
    /// What loads them.
    pub load: Box<LoadModel>,
    /// How long they stay loaded, where requests do not say so.
    pub keep_alive: KeepAlive,
    /// What concerns all of them; the names in it are not looked at.
    pub server: ServerSettings,
}

/// Answers requests on `listener` until `stop` is ready, each by the model that it names; then finishes the answers under way, and returns.
///
/// It needs a runtime of tokio with its clock and its I/O.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) where the listener cannot be used.
pub async fn serve_models(listener: TcpListener, settings: ModelsSettings, stop: impl Future<Output = ()>) -> Result<()> {
    let (listener, is_local) = opened(listener)?;
    let gate = Arc::new(Gate::new(&settings.server, is_local));
    let models = Arc::new(Models::new(settings, Arc::clone(&gate.metrics)));
    let router = routes::behind(gate, paths::router(Arc::clone(&models)));
    let drained = async {
        tokio::select! {
            () = stop => {}
            () = models.unload_idle() => {}
        }
        models.close();
        models.drained().await;
    };
    connections::serve(listener, router, drained).await;
    Ok(())
}
