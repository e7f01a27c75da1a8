//! From a request to its fields: bodies have a length and a time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::LengthLimitError;

use super::MAX_BODY_BYTES;
use super::app::App;
use super::embeddings::check_generates;
use super::error::ApiError;
use super::fields::Fields;
use super::pool::ending;

/// A body that is not here after that is given up.
const MAX_BODY_TIME: Duration = Duration::from_secs(60);
/// A body that nobody wants is given up after that.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(1);
/// It is read where it is no longer.
const MAX_DRAINED_BYTES: usize = 256 << 10;

/// Reads a short body that nobody wants: a client that keeps its connection would find it closed at its next request.
pub(super) async fn drain(body: Body) {
    let _ = tokio::time::timeout(MAX_DRAIN_TIME, axum::body::to_bytes(body, MAX_DRAINED_BYTES)).await;
}

/// The body of a request.
pub(super) async fn body_of(request: Request) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {MAX_BODY_BYTES} bytes, the most that is read"));
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(MAX_BODY_TIME, axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if std::error::Error::source(&error).is_some_and(|source| source.is::<LengthLimitError>()) => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::invalid(format!("the body cannot be read: {error}"))),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

/// Reads the body's fields with `read`, on a thread of its own: templates and tokenizers take their time with long texts.
pub(super) async fn read<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    read: impl FnOnce(&App, &mut Fields) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body = body_of(request).await?;
    let app = Arc::clone(app);
    let task = move || {
        let mut fields = Fields::of_request(&body)?;
        let read = read(&app, &mut fields)?;
        fields.finish()?;
        Ok(read)
    };
    tokio::task::spawn_blocking(task).await.map_err(|_| ApiError::bug("reading the request failed"))?
}

/// As [`read`], for work that needs a sequence: refused at once where the server ends.
pub(super) async fn read_work<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    reader: impl FnOnce(&App, &mut Fields) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if app.pool.is_closed() {
        return Err(ending());
    }
    check_generates(app)?;
    read(app, request, reader).await
}
