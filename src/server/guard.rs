//! Who may ask: the key, the host that a request names, and the web page that it comes from.
//!
//! A web page anywhere can have the browser send requests to this machine. The browser says which page it is (`Origin`), and unless that
//! page is allowed, the request is refused. A page can also have its own name point to this machine (DNS rebinding), where the browser
//! sees one origin: then the request names a foreign host, and on a loopback address it is refused.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::ServerSettings;
use super::error::{ApiError, Dialect, shaped};
use super::metrics::Metrics;
use super::read::drain;

/// A key that is never shown.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key, as requests will carry it.
    pub fn new(key: impl Into<String>) -> ApiKey {
        ApiKey(key.into())
    }

    /// Whether `given` is the key. How long it takes tells nothing but its length.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

/// What all requests pass, whatever model they ask.
pub(super) struct Gate {
    pub(super) guard: Guard,
    pub(super) metrics: Arc<Metrics>,
}

/// What requests are held to.
pub(super) struct Guard {
    api_key: Option<ApiKey>,
    origins: Vec<String>,
    is_local: bool,
}

/// Paths that need no key: they tell nothing but that there is a server.
const OPEN_PATHS: [&str; 2] = ["/", "/health"];

impl Gate {
    pub(super) fn new(settings: &ServerSettings, is_local: bool) -> Gate {
        let guard = Guard::new(settings.api_key.clone(), settings.origins.clone(), is_local);
        Gate { guard, metrics: Arc::default() }
    }
}

impl Guard {
    fn new(api_key: Option<ApiKey>, origins: Vec<String>, is_local: bool) -> Guard {
        Guard { api_key, origins: origins.into_iter().map(|origin| origin.trim_end_matches('/').to_owned()).collect(), is_local }
    }

    fn check_host(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if !self.is_local || names_this_machine(host) {
            return Ok(());
        }
        let message = "the Host of the request is not this machine; ask by 127.0.0.1 or localhost";
        Err(ApiError::new(StatusCode::FORBIDDEN, message))
    }

    /// The origin that the response must name, where the request comes from a page that may ask.
    fn check_origin(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
        let text = origin.to_str().unwrap_or_default();
        if self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(text)) {
            return Ok(Some(origin.clone()));
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_own = text.split_once("://").is_some_and(|(_, of_page)| !host.is_empty() && of_page.eq_ignore_ascii_case(host));
        if is_own {
            return Ok(None);
        }
        Err(ApiError::new(StatusCode::FORBIDDEN, "web pages of this Origin may not ask; the server must be started with it as allowed"))
    }

    fn check_key(&self, request: &Request) -> Result<(), ApiError> {
        let Some(key) = self.api_key.as_ref().filter(|_| !OPEN_PATHS.contains(&request.uri().path())) else { return Ok(()) };
        let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| bearer_token(value.as_bytes()));
        let given = bearer.or(request.headers().get("x-api-key").map(HeaderValue::as_bytes));
        if given.is_some_and(|given| key.is(given)) { Ok(()) } else { Err(ApiError::bad_key()) }
    }
}

/// `Bearer TOKEN`.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Whether a `Host` is this machine's: a loopback address or `localhost`, with any port.
fn names_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Lets a request through that may ask, and finishes every response: errors get their shape, pages of other origins what their browser
/// wants to see.
pub(super) async fn guarded(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.uri().path());
    let guard = &gate.guard;
    let origin = match guard.check_host(request.headers()).and_then(|()| guard.check_origin(request.headers())) {
        Ok(origin) => origin,
        Err(error) => {
            drain(request.into_body()).await;
            return finished(&gate, error.into_response(), dialect, None);
        }
    };
    // Browsers ask before they send a request, without a key.
    if request.method() == Method::OPTIONS && origin.is_some() {
        return finished(&gate, preflight(request.headers()), dialect, origin);
    }
    let response = match guard.check_key(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            drain(request.into_body()).await;
            error.into_response()
        }
    };
    finished(&gate, response, dialect, origin)
}

fn preflight(headers: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let allowed = asked.unwrap_or(HeaderValue::from_static("authorization, content-type"));
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    response.headers_mut().insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

fn finished(gate: &Gate, response: Response, dialect: Dialect, origin: Option<HeaderValue>) -> Response {
    let mut response = shaped(response, dialect);
    gate.metrics.count_response(response.status());
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_s_names_are_its_own() {
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:80", "[::1]", "a.localhost:1", "localhost."] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "[fe80::1]:80", "0.0.0.0"] {
            assert!(!names_this_machine(host), "{host}");
        }
    }

    #[test]
    fn origins_are_the_page_s_own_or_allowed() {
        let headers = |host: &'static str, origin: &'static str| {
            let pairs = [(header::HOST, HeaderValue::from_static(host)), (header::ORIGIN, HeaderValue::from_static(origin))];
            HeaderMap::from_iter(pairs)
        };
        let guard = Guard::new(None, vec!["http://app.example/".into()], true);
        assert_eq!(guard.check_origin(&headers("localhost:1", "http://app.example")).unwrap().unwrap(), "http://app.example");
        assert!(guard.check_origin(&headers("localhost:1", "http://localhost:1")).unwrap().is_none());
        for origin in ["http://localhost:2", "http://evil.example", "null", "http://app.example.evil"] {
            assert!(guard.check_origin(&headers("localhost:1", origin)).is_err(), "{origin}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        assert!(!format!("{:?}", ApiKey::new("secret")).contains("secret"));
        assert!(ApiKey::new("secret").is(b"secret") && !ApiKey::new("secret").is(b"secreu") && !ApiKey::new("secret").is(b"secre"));
        assert_eq!(bearer_token(b"bearer  x "), Some(&b"x"[..]));
        assert_eq!([bearer_token(b"Basic x"), bearer_token(b"x")], [None, None]);
    }
}
