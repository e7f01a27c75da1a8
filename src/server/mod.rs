//! The HTTP server: a model or several, asked in the APIs of OpenAI, Anthropic, Ollama and llama.cpp. Knows no options and no files.
//!
//! A request passes the guard (`guard`: key, host, origin), its body is read field by field (`fields`), which becomes work for one or
//! several answers (`work`); the work waits for a sequence (`pool`), is generated (`answer`), and goes out in the API's shape, whole or
//! as it comes (`deliver`, `body`). Each API has a module with its requests and its shape. Errors are one type, which knows the shapes of the APIs (`error`).
//! Of several models (`models`), each has all that a server of one has, while it is loaded.

mod answer;
mod anthropic;
mod app;
mod batch;
mod body;
mod connections;
mod deliver;
mod embeddings;
mod error;
mod facts;
mod fields;
mod grammar;
mod guard;
mod keep_alive;
mod llama_cpp;
mod local;
mod loras;
mod messages;
mod metrics;
mod models;
mod ollama;
mod openai;
mod pages;
mod pool;
mod read;
mod responses;
mod routes;
mod scored;
mod tools;
mod work;

use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::handle::EngineHandle;
use crate::session::Speculation;
use crate::text::SamplingFlags;
use crate::units::Bytes;
use app::App;
pub use batch::{BatchAnswer, answer_batch};
pub use guard::ApiKey;
use guard::Gate;
pub use keep_alive::KeepAlive;
pub use local::{LocalResponse, LocalServer};
pub use models::{LoadModel, ModelsSettings, Room, ServedModel, serve_models};

/// Longest body of a request, in bytes.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Most connections at a time; others wait to be accepted.
pub const MAX_CONNECTIONS: usize = 256;

/// What a server is told beside its model.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    /// The name that the model is asked for by.
    pub model_name: String,
    /// Other names of it.
    pub other_names: Vec<String>,
    /// The key that requests must carry; `None` lets everyone ask.
    pub api_key: Option<ApiKey>,
    /// Origins of web pages that may ask, as browsers write them (`http://localhost:3000`), or `*`.
    pub origins: Vec<String>,
    /// Requests that may wait for a sequence; more are refused.
    pub n_waiting: usize,
    /// How tokens are chosen where a request says nothing; what is missing here is as the model wants it.
    pub sampling: SamplingFlags,
    /// Whether tokens of answers are drafted.
    pub speculation: Speculation,
    /// Host memory for what is cached of conversations whose sequences others take ([`EngineHandle::keep_histories`]).
    pub cache_ram: Bytes,
}

/// Answers requests on `listener` until `stop` is ready, then finishes the answers under way, and returns. All sequences of the plan are
/// taken. On a loopback address, only requests that name this machine as their host are answered.
///
/// It needs a runtime of tokio with its clock and its I/O.
///
/// # Errors
/// [`Error::Io`] where the listener cannot be used; [`Error::AllSequencesInUse`] where others have sequences of the engine.
pub async fn serve(listener: TcpListener, engine: EngineHandle, settings: ServerSettings, stop: impl Future<Output = ()>) -> Result<()> {
    let (listener, is_local) = opened(listener)?;
    let gate = Arc::new(Gate::new(&settings, is_local));
    let app = Arc::new(App::new(engine, settings, Arc::clone(&gate.metrics)).await?);
    let router = routes::behind(gate, routes::routes().with_state(Arc::clone(&app)));
    let drained = async {
        stop.await;
        app.pool.close();
        app.pool.drained().await;
    };
    connections::serve(listener, router, drained).await;
    Ok(())
}

/// The listener for tokio, and whether others than this machine reach it not.
fn opened(listener: TcpListener) -> Result<(tokio::net::TcpListener, bool)> {
    let failed = |error| Error::io("listen on", "the server's address", error);
    let is_local = listener.local_addr().map_err(failed)?.ip().is_loopback();
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((tokio::net::TcpListener::from_std(listener).map_err(failed)?, is_local))
}
