//! The server without a network, for programs that have the engine in their own process: requests and answers are those of the network.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, header};
use axum::response::IntoResponse;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::ServerSettings;
use super::app::App;
use super::error::{ApiError, Dialect, shaped};
use super::routes::routes;
use crate::error::{Error, Result};
use crate::handle::{EngineHandle, Positions};

/// A server that is asked by calls. All sequences of the plan are taken, and requests wait for one.
pub struct LocalServer {
    app: Arc<App>,
    service: TowerToHyperService<Router>,
}

/// An answer, whole or as it comes. When it is dropped, what makes it ends.
pub struct LocalResponse {
    /// The status of HTTP.
    pub status: u16,
    body: Body,
}

impl LocalServer {
    /// Its functions need a runtime of tokio with its clock, as [`serve`](super::serve) does.
    ///
    /// # Errors
    /// [`Error::AllSequencesInUse`] where others have sequences of the engine.
    pub async fn new(engine: EngineHandle, settings: ServerSettings) -> Result<LocalServer> {
        let app = Arc::new(App::new(engine, settings, Arc::default()).await?);
        Ok(LocalServer { service: TowerToHyperService::new(routes().with_state(Arc::clone(&app))), app })
    }

    /// Posts `body`, JSON, to `path`. Where the future is dropped, the answer ends before its next submission.
    pub async fn post(&self, path: &str, body: String) -> LocalResponse {
        let request = Request::builder().method(Method::POST).uri(path).header(header::HOST, "localhost").body(Body::from(body));
        let response = match request {
            Ok(request) => self.service.call(request).await.unwrap_or_else(|never| match never {}),
            Err(error) => ApiError::invalid(format!("the path cannot be asked for: {error}")).into_response(),
        };
        let response = shaped(response, Dialect::of(path));
        LocalResponse { status: response.status().as_u16(), body: response.into_body() }
    }

    /// Waits for a sequence, and calls `each`, on the engine's thread, with the logits after `positions` of `tokens`.
    ///
    /// # Errors
    /// Those of [`Sequence::logits`](crate::handle::Sequence::logits); [`Error::AllSequencesInUse`] where too many wait already.
    pub async fn logits(&self, tokens: Vec<u32>, positions: Positions, each: impl FnMut(Vec<f32>) + Send + 'static) -> Result<()> {
        let in_use = |_: ApiError| Error::AllSequencesInUse { n_seqs: self.app.engine.plan().n_seqs };
        let mut lease = self.app.pool.lease(&tokens, &self.app.loras.defaults()).await.map_err(in_use)?;
        lease.tokens.clear();
        lease.sequence().map_err(in_use)?.logits(tokens, positions, each).await
    }
}

impl LocalResponse {
    /// The next piece of the answer; of a stream, one or several whole events. `None` at its end.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.body.frame().await?.ok()?.into_data() {
                Ok(data) => return Some(data),
                // Trailers.
                Err(_) => continue,
            }
        }
    }

    /// All that is left of it.
    pub async fn text(mut self) -> String {
        let mut text = Vec::new();
        while let Some(piece) = self.next().await {
            text.extend_from_slice(&piece);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}
