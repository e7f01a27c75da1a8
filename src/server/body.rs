//! Bodies of responses: JSON at once, or pieces as they come, through a short queue. A client that leaves ends what makes the pieces; one that
//! reads slowly holds up nobody but itself, and one that reads nothing for long is let go.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Pieces that wait to be sent.
const MAX_PIECES: usize = 16;
/// A client that takes no piece for so long is let go.
const MAX_STALL: Duration = Duration::from_secs(120);

/// A response of JSON.
pub(super) fn json_response(status: StatusCode, value: &Value) -> Response {
    typed(status, "application/json", Body::from(value.to_string()))
}

/// The response of a request that went well.
pub(super) fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value)
}

/// An event of a stream that has no name (`text/event-stream`).
pub(super) fn data_event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// An event of a stream that has a name, which its data begins with as their type.
pub(super) fn named_event(kind: &str, fields: Value) -> String {
    let mut data = json!({ "type": kind });
    for (name, value) in fields.as_object().into_iter().flatten() {
        data[name] = value.clone();
    }
    format!("event: {kind}\ndata: {data}\n\n")
}

pub(super) fn typed(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Where pieces go.
pub(super) struct Pieces(mpsc::Sender<Bytes>);

/// The client is gone, or reads nothing.
pub(super) struct Gone;

impl Pieces {
    /// Sends a piece; empty ones are left out.
    pub(super) async fn send(&self, piece: String) -> Result<(), Gone> {
        if piece.is_empty() {
            return Ok(());
        }
        self.0.send_timeout(piece.into(), MAX_STALL).await.map_err(|_| Gone)
    }

    /// Ready when the client is gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A response whose pieces come later, from whoever has the other end.
pub(super) fn streamed(content_type: &'static str) -> (Pieces, Response) {
    let (sender, receiver) = mpsc::channel(MAX_PIECES);
    let mut response = typed(StatusCode::OK, content_type, Body::from_stream(Received(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies would collect the pieces otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (Pieces(sender), response)
}

struct Received(mpsc::Receiver<Bytes>);

impl Stream for Received {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}
