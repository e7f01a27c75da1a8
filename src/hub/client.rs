//! Requests to a hub: redirects without leaking the token, repetition where the server is busy. Knows no cache.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::config::{HubConfig, Token};
use super::model_ref::{ModelRef, is_safe_file_name, is_safe_revision};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// How often a request is tried in all before its last fault is reported.
pub(super) const ATTEMPTS: u32 = 5;
/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 10;
/// The longest answer of the hub's API that is read.
const MAX_LISTING_BYTES: u64 = 64 << 20;
/// No wait between two attempts is longer, whatever the server asks for.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// A connection to one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    retry_delay: Duration,
}

/// The files of a repository at one commit.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// What the hub says of a file before its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileInfo {
    /// Names the content; the name of the blob in the cache.
    pub etag: String,
    pub size: Bytes,
}

/// Why one attempt failed: whether another may help, and after which wait.
pub(super) struct Failure {
    pub error: Error,
    pub retry: Retry,
}

/// Whether a failed request is worth repeating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// After the client's own, growing wait.
    Soon,
    /// After the wait that the server asked for.
    After(Duration),
}

/// The part of the API's answer that matters.
#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The two kinds of request that a hub sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

impl Client {
    pub fn new(config: &HubConfig) -> Client {
        let authority = config.endpoint.split("://").nth(1).unwrap_or_default();
        let is_loopback = ["127.", "localhost", "[::1]"].iter().any(|host| authority.starts_with(host));
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tierflow/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if is_loopback {
            // No proxy serves this machine to itself.
            builder = builder.proxy(None);
        }
        Client {
            agent: builder.build().new_agent(),
            endpoint: config.endpoint.clone(),
            token: config.token.clone(),
            retry_delay: config.retry_delay,
        }
    }

    /// `GET /api/models/{repo}/revision/{revision}`: the commit and the names of its files.
    pub fn list_files(&self, model: &ModelRef) -> Result<Listing> {
        if !is_safe_revision(&model.revision) {
            return Err(Error::InvalidArgument {
                option: "--revision".into(),
                fault: format!("`{}` is no branch, tag or commit", model.revision),
            });
        }
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, model.repo, encode(&model.revision, ""));
        let text = self.with_retries(|| {
            let mut response = self.send(Method::Get, &url, None)?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
            body.map_err(|fault| broken(&url, &fault))
        })?;
        let info: RepoInfo = serde_json::from_str(&text)
            .map_err(|fault| network(&url, format!("the answer is not that of a Hugging Face hub ({fault}); check HF_ENDPOINT")))?;
        if !is_safe_file_name(&info.sha) || info.sha.contains('/') {
            return Err(network(&url, format!("the hub names a commit {:?}, which is none", info.sha)));
        }
        Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(|sibling| sibling.rfilename).collect() })
    }

    /// The address of a file at a commit.
    pub fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, encode(file, "/"))
    }

    /// Asks for etag and size of a file. The hub puts them beside its redirect to the store that has the bytes.
    pub fn file_info(&self, url: &str) -> Result<FileInfo> {
        self.with_retries(|| {
            let response = self.send(Method::Head, url, None)?;
            let headers = response.headers();
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).map(plain_etag);
            let size = match header(headers, "x-linked-size") {
                // The length of a redirect is not that of the file.
                None if response.status().is_success() => header(headers, "content-length"),
                size => size,
            };
            let missing = |what: &str| Failure {
                error: network(url, format!("the server sends no usable {what}: it is no Hugging Face hub; check HF_ENDPOINT")),
                retry: Retry::Never,
            };
            let etag = etag.filter(|etag| is_blob_name(etag)).ok_or_else(|| missing("etag"))?;
            let size = size.and_then(|size| size.parse().ok()).map(Bytes).ok_or_else(|| missing("length"))?;
            Ok(FileInfo { etag: etag.to_owned(), size })
        })
    }

    /// Asks for the bytes of a file from `offset` on. The answer may still be the whole file.
    pub fn open(&self, url: &str, offset: Bytes) -> Result<Response<Body>, Failure> {
        self.send(Method::Get, url, (offset > Bytes::ZERO).then_some(offset))
    }

    /// Tries until it succeeds, fails for good, or has failed [`ATTEMPTS`] times.
    fn with_retries<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        let mut failed = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => {
                    failed += 1;
                    self.wait_or_give_up(failure, failed)?;
                }
            }
        }
    }

    /// Waits before the next attempt, or returns the error where there is none.
    pub fn wait_or_give_up(&self, failure: Failure, failed_attempts: u32) -> Result<()> {
        if failure.retry == Retry::Never || failed_attempts >= ATTEMPTS {
            return Err(failure.error);
        }
        let own = self.retry_delay.saturating_mul(1 << (failed_attempts - 1).min(16));
        let wait = if let Retry::After(wait) = failure.retry { wait.max(own) } else { own };
        tracing::debug!("{}; trying again in {wait:?}", failure.error);
        std::thread::sleep(wait.min(MAX_RETRY_DELAY));
        Ok(())
    }

    /// One request with its redirects. The token goes to the hub's own origin only.
    fn send(&self, method: Method, url: &str, range_start: Option<Bytes>) -> Result<Response<Body>, Failure> {
        let mut target = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(method, &target, range_start)?;
            let status = response.status().as_u16();
            let answers_head = method == Method::Head && response.headers().contains_key("x-linked-etag");
            if !matches!(status, 301 | 302 | 303 | 307 | 308) || answers_head {
                return if status < 400 { Ok(response) } else { Err(refused(&target, &response, self.token.is_some())) };
            }
            let location = header(response.headers(), "location").unwrap_or_default();
            target = resolve_location(&target, location).ok_or_else(|| Failure {
                error: network(&target, format!("redirects to {location:?}, which is refused")),
                retry: Retry::Never,
            })?;
        }
        Err(Failure { error: network(url, format!("more than {MAX_REDIRECTS} redirects")), retry: Retry::Never })
    }

    fn send_once(&self, method: Method, url: &str, range_start: Option<Bytes>) -> Result<Response<Body>, Failure> {
        let mut request = match method {
            Method::Get => self.agent.get(url),
            Method::Head => self.agent.head(url),
        };
        if let (Some(token), true) = (&self.token, origin(url) == origin(&self.endpoint)) {
            request = request.header("authorization", format!("Bearer {}", token.0));
        }
        if let Some(start) = range_start {
            request = request.header("range", format!("bytes={}-", start.0));
        }
        request.call().map_err(|fault| broken(url, &fault))
    }
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

pub(super) fn network(url: &str, fault: impl Into<String>) -> Error {
    // What a store's signed address carries behind `?` is a right of access and no one's business.
    Error::Network { url: url.split('?').next().unwrap_or(url).to_owned(), fault: fault.into() }
}

/// A connection that failed or broke; another attempt may do.
fn broken(url: &str, fault: &ureq::Error) -> Failure {
    let retry = match fault {
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => Retry::Soon,
        _ => Retry::Never,
    };
    Failure { error: network(url, format!("{fault}; check the network, or HF_ENDPOINT for another hub")), retry }
}

/// A status of 400 or above.
fn refused(url: &str, response: &Response<Body>, had_token: bool) -> Failure {
    let status = response.status();
    let advice = match status.as_u16() {
        401 | 403 if had_token => "the token has no right to this repository; accept its terms on its page, or set another HF_TOKEN",
        401 | 403 => "the repository is gated, private or does not exist; accept its terms on its page and set HF_TOKEN",
        404 => "the hub knows no such repository, revision or file; check the spelling",
        429 => "the hub limits requests; wait a while, or set HF_TOKEN",
        500.. => "the hub is in trouble; try again later",
        _ => "the hub refuses the request",
    };
    let retry_after = header(response.headers(), "retry-after").and_then(|secs| secs.trim().parse().ok()).map(Duration::from_secs);
    let retry = match status.as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 => retry_after.map_or(Retry::Soon, Retry::After),
        _ => Retry::Never,
    };
    Failure { error: network(url, format!("{status}: {advice}")), retry }
}

/// `"abc"` and `W/"abc"` are `abc`.
fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// An etag becomes a file name, so it holds nothing but letters and digits.
fn is_blob_name(etag: &str) -> bool {
    (1..=128).contains(&etag.len()) && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    Some((scheme, rest.split(['/', '?', '#']).next()?))
}

/// The address that a `Location` means, seen from `base`; `None` where it is none or falls back to plain http.
fn resolve_location(base: &str, location: &str) -> Option<String> {
    let (scheme, authority) = origin(base)?;
    let target = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        return None;
    };
    (scheme == "http" || target.starts_with("https://")).then_some(target)
}

/// Percent-encodes all but unreserved characters and those in `keep`.
fn encode(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let letter = char::from(byte);
        if letter.is_ascii_alphanumeric() || "-._~".contains(letter) || keep.contains(letter) {
            encoded.push(letter);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_resolve_and_never_fall_back_to_http() {
        let resolve = |location| resolve_location("https://hub:8/a/b", location);
        assert_eq!(resolve("/c?d").as_deref(), Some("https://hub:8/c?d"));
        assert_eq!(resolve("//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(resolve("https://cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!((resolve("http://hub:8/c"), resolve("file:///etc/passwd"), resolve("")), (None, None, None));
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        assert_eq!(origin("http://a:1/x"), origin("http://a:1?y"));
        assert_ne!(origin("http://a:1/x"), origin("http://a:2/x"));
        assert_ne!(origin("http://a/x"), origin("https://a/x"));
        assert_ne!(origin("http://a/x"), origin("http://a.evil/x"));
        assert_ne!(origin("http://a/x"), origin("http://a@evil/x"));
    }

    #[test]
    fn etags_become_file_names_only_where_they_can() {
        assert_eq!(plain_etag("W/\"abc\""), "abc");
        assert!(is_blob_name("0a1b2c"));
        assert!(!is_blob_name("../x") && !is_blob_name("") && !is_blob_name("a/b") && !is_blob_name("a.incomplete"));
    }

    #[test]
    fn names_are_percent_encoded() {
        assert_eq!(encode("a b/ü.txt", "/"), "a%20b/%C3%BC.txt");
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}
