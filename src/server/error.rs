//! What goes wrong with a request: a status, a sentence, and the shape in which an API says so.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::body::json_response;
use crate::error::{Error, Fields};

/// An API that clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
}

impl Dialect {
    /// The API that has `path`.
    pub(super) fn of(path: &str) -> Dialect {
        match path {
            _ if path.starts_with("/api/") => Dialect::Ollama,
            _ if path.starts_with("/v1/messages") => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        }
    }
}

/// Why a request is refused or failed.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    /// For the user of the client.
    pub(super) message: String,
    /// The field at fault.
    param: Option<String>,
    /// OpenAI's word for it.
    code: Option<&'static str>,
}

/// Seconds after which a client may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None }
    }

    /// The request is at fault.
    pub(super) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// The field `name` of the request is at fault.
    pub(super) fn field(name: &str, reason: impl AsRef<str>) -> ApiError {
        ApiError { param: Some(name.to_owned()), code: Some("invalid_value"), ..ApiError::invalid(format!("{name}: {}", reason.as_ref())) }
    }

    /// The field `name` asks for what the server cannot do.
    pub(super) fn unsupported(name: &str, reason: impl AsRef<str>) -> ApiError {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::field(name, reason) }
    }

    pub(super) fn no_model(name: &str, served: &str) -> ApiError {
        let message = format!("there is no model `{name}`; this server has `{served}`");
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        ApiError { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }

    pub(super) fn bad_key() -> ApiError {
        let message = "the key is missing or wrong; send it as `Authorization: Bearer KEY`";
        ApiError { code: Some("invalid_api_key"), ..ApiError::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// The server is at fault.
    pub(super) fn bug(what: &str) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}; this is a bug in tierflow, please report it"))
    }

    /// It may be tried again later.
    pub(super) fn busy(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The error as the body of a response, or as an event of a stream.
    pub(super) fn body(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => {
                json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
            }
            Dialect::Anthropic => json!({ "type": "error", "error": { "type": self.kind(), "message": self.message } }),
            Dialect::Ollama => json!({ "error": self.message }),
        }
    }

    /// OpenAI's and Anthropic's word for the status.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            503 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The response in the shape of `dialect`.
    pub(super) fn response(&self, dialect: Dialect) -> Response {
        let mut response = json_response(self.status, &self.body(dialect));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

/// A response that is one of an error in the shape of `dialect`, where it has none yet.
pub(super) fn shaped(response: Response, dialect: Dialect) -> Response {
    match response.extensions().get::<ApiError>() {
        Some(error) => error.response(dialect),
        None => response,
    }
}

/// The response gets its body where the API is known ([`shaped`]).
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for ApiError {
    /// What of the request the engine or the tokenizer refuses is the request's fault, all else the server's.
    fn from(error: Error) -> ApiError {
        let message = error.to_string();
        match &error {
            Error::InvalidArgument { option, .. } => {
                ApiError { param: Some(option.in_words(&Fields)), code: Some("invalid_value"), ..ApiError::invalid(message) }
            }
            Error::ContextFull { .. } => ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(message) },
            Error::TokenOutOfVocabulary { .. } | Error::Text { .. } => ApiError::invalid(message),
            Error::AllSequencesInUse { .. } | Error::KvCacheFull { .. } => ApiError::busy(message),
            _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_request_and_of_the_server_are_told_apart() {
        let status = |error: Error| ApiError::from(error).status.as_u16();
        assert_eq!(status(Error::ContextFull { needed: 9, available: 8 }), 400);
        assert_eq!(status(Error::TokenOutOfVocabulary { token: 9, vocab_size: 8 }), 400);
        assert_eq!(status(Error::InvalidArgument { option: "x".into(), reason: "y".into() }), 400);
        assert_eq!(status(Error::AllSequencesInUse { n_seqs: 1 }), 503);
        assert_eq!(status(Error::EngineGone), 500);
    }

    #[test]
    fn each_api_reads_its_own_shape() {
        let body = |path: &str| ApiError::invalid("x").body(Dialect::of(path));
        assert_eq!(body("/api/chat"), json!({ "error": "x" }));
        assert_eq!(body("/v1/messages"), json!({ "type": "error", "error": { "type": "invalid_request_error", "message": "x" } }));
        assert!(body("/v1/completions")["error"]["message"].is_string());
    }

    #[test]
    fn openai_reads_message_type_param_and_code() {
        let error = ApiError::from(Error::ContextFull { needed: 9, available: 8 }).body(Dialect::OpenAi);
        assert_eq!(error["error"]["code"], "context_length_exceeded");
        assert_eq!(error["error"]["type"], "invalid_request_error");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains('9') && message.contains('8'), "{message}");
        assert_eq!(ApiError::field("n", "is 0").body(Dialect::OpenAi)["error"]["param"], "n");
    }
}
