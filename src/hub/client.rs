//! Requests to a hub: redirects without leaking the token, repetition where the server is busy. Knows no cache.

use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::config::{HubConfig, Token};
use super::model_ref::{ModelRef, is_safe_file_name, is_safe_revision};
use crate::error::{Error, Result, Setting};
use crate::units::Bytes;

/// How often a request is tried in all before its last error is reported.
pub(super) const ATTEMPTS: u32 = 5;
/// The same where the model is in the cache, whatever the hub would say.
pub(super) const ATTEMPTS_BESIDE_CACHE: u32 = 2;
/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 10;
/// The longest answer of the hub's API that is read.
const MAX_LISTING_BYTES: u64 = 64 << 20;
/// The longest wait between two attempts: hubs count requests in windows of five minutes. A server that asks for a longer one is
/// not waited for.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(300);
/// The longest etag that is a blob's name as it is.
const MAX_BLOB_NAME: usize = 128;

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
    /// Names the content.
    pub etag: String,
    /// The name of the blob in the cache: the etag, where it can be a file's name.
    pub blob: String,
    pub size: Bytes,
}

impl FileInfo {
    /// The SHA-256 of the content in hexadecimal digits, where the etag is one, as it is of all large files of a hub.
    pub fn sha256(&self) -> Option<&str> {
        let is_digest = self.etag.len() == 64 && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then_some(&self.etag)
    }
}

/// Why one attempt failed, whether another one may help, and after how long.
#[derive(Debug)]
pub(super) struct Failure {
    /// Apart, since results that hold it are passed on often.
    pub error: Box<Error>,
    /// What happened without the advice of `error`, which counts once no other attempt follows; `None` where there is none in it.
    reason: Option<String>,
    pub retry: Retry,
    /// Whether the hub could not be reached or failed, as opposed to an answer that refuses.
    pub is_outage: bool,
}

impl Failure {
    /// One that no other attempt can mend.
    pub fn for_good(error: Error) -> Failure {
        Failure { error: Box::new(error), reason: None, retry: Retry::Never, is_outage: false }
    }

    /// One of a connection, which another attempt may mend.
    pub fn passing(error: Error) -> Failure {
        Failure { error: Box::new(error), reason: None, retry: Retry::Soon, is_outage: true }
    }
}

/// Whether a failed request is worth repeating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// After the client's own, growing wait.
    Soon,
    /// After the wait that the server asked for.
    After(Duration),
    /// At once, from the first byte on: the server does not have the range that was asked for.
    FromStart,
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
    /// # Errors
    /// [`Error::InvalidArgument`] where the token is none.
    pub fn new(config: &HubConfig) -> Result<Client> {
        if let Some(token) = &config.token {
            check_token(token)?;
        }
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
        Ok(Client {
            agent: builder.build().new_agent(),
            endpoint: config.endpoint.clone(),
            token: config.token.clone(),
            retry_delay: config.retry_delay,
        })
    }

    /// `GET /api/models/{repo}/revision/{revision}`: the commit and the names of its files. Tries `attempts` times.
    pub fn list_files(&self, model: &ModelRef, attempts: u32) -> Result<Listing, Failure> {
        if !is_safe_revision(&model.revision) {
            return Err(Failure::for_good(Error::InvalidArgument {
                option: Setting::Revision.into(),
                reason: format!("`{}` is no branch, tag or commit", model.revision),
            }));
        }
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, model.repo, encode(&model.revision, ""));
        let text = self.with_retries(attempts, || {
            let mut response = self.send(Method::Get, &url, None)?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
            body.map_err(|reason| broken(&url, &reason))
        })?;
        let unusable = |reason: String| Failure::for_good(network(&url, reason));
        let info: RepoInfo = serde_json::from_str(&text)
            .map_err(|reason| unusable(format!("the answer is not that of a Hugging Face hub ({reason}); check HF_ENDPOINT")))?;
        if !is_safe_file_name(&info.sha) || info.sha.contains('/') {
            return Err(unusable(format!("the hub names a commit {:?}, which is none", info.sha)));
        }
        Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(|sibling| sibling.rfilename).collect() })
    }

    /// The address of a file at a commit.
    pub fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, encode(file, "/"))
    }

    /// Asks for etag and size of a file. The hub puts them beside its redirect to the store that has the bytes.
    pub fn file_info(&self, url: &str) -> Result<FileInfo, Failure> {
        self.with_retries(ATTEMPTS, || {
            let response = self.send(Method::Head, url, None)?;
            let headers = response.headers();
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).map(plain_etag);
            let size = match header(headers, "x-linked-size") {
                // The length of a redirect is not that of the file.
                None if response.status().is_success() => header(headers, "content-length"),
                size => size,
            };
            let missing = |what: &str| {
                let reason = format!("the server sends no usable {what}: it is no Hugging Face hub; check HF_ENDPOINT");
                Failure::for_good(network(url, reason))
            };
            let etag = etag.filter(|etag| !etag.is_empty()).ok_or_else(|| missing("etag"))?;
            let size = size.and_then(|size| size.parse().ok()).map(Bytes).ok_or_else(|| missing("length"))?;
            Ok(FileInfo { etag: etag.to_owned(), blob: blob_name(etag), size })
        })
    }

    /// Asks for the bytes of a file from `offset` on. The answer may still be the whole file.
    pub fn open(&self, url: &str, offset: Bytes) -> Result<Response<Body>, Failure> {
        self.send(Method::Get, url, (offset > Bytes::ZERO).then_some(offset))
    }

    /// Tries until it succeeds, fails for good, or has failed `attempts` times.
    fn with_retries<T>(&self, attempts: u32, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut failed = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => {
                    failed += 1;
                    std::thread::sleep(self.wait_before_next(failure, failed, attempts)?);
                }
            }
        }
    }

    /// How long to wait before the next of `attempts`, which is also logged; the failure where there is none.
    pub fn wait_before_next(&self, failure: Failure, failed_attempts: u32, attempts: u32) -> Result<Duration, Failure> {
        if failure.retry == Retry::Never || failed_attempts >= attempts {
            return Err(failure);
        }
        let own = self.retry_delay.saturating_mul(1 << (failed_attempts - 1).min(16));
        let wait = match failure.retry {
            Retry::After(asked) if asked > MAX_RETRY_DELAY => return Err(too_long_a_wait(failure, asked)),
            Retry::After(asked) => asked.max(own),
            Retry::FromStart => Duration::ZERO,
            Retry::Never | Retry::Soon => own,
        };
        let wait = wait.min(MAX_RETRY_DELAY);
        let why = if matches!(failure.retry, Retry::After(_)) { ", as the server asks" } else { "" };
        let next = failed_attempts + 1;
        let reason = failure.reason.unwrap_or_else(|| failure.error.to_string());
        tracing::warn!("{reason}; attempt {next} of {attempts} follows in {:.1} s{why}", wait.as_secs_f64());
        Ok(wait)
    }

    /// One request with its redirects. The token goes to the hub's own origin only.
    fn send(&self, method: Method, url: &str, range_start: Option<Bytes>) -> Result<Response<Body>, Failure> {
        let mut target = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(method, &target, range_start)?;
            let status = response.status().as_u16();
            let answers_head = method == Method::Head && response.headers().contains_key("x-linked-etag");
            if !matches!(status, 301 | 302 | 303 | 307 | 308) || answers_head {
                return match status {
                    416 if range_start.is_some() => Err(no_such_range(&target)),
                    400.. => Err(refused(&target, &response, self.token.is_some())),
                    _ => demand_plain(&target, response),
                };
            }
            let location = header(response.headers(), "location").unwrap_or_default();
            target = resolve_location(&target, location)
                .ok_or_else(|| Failure::for_good(network(&target, format!("redirects to {location:?}, which is refused"))))?;
        }
        Err(Failure::for_good(network(url, format!("more than {MAX_REDIRECTS} redirects"))))
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
        request.call().map_err(|reason| broken(url, &reason))
    }
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

pub(super) fn network(url: &str, reason: impl Into<String>) -> Error {
    // What a store's signed address carries behind `?` is a right of access and no one's business.
    Error::Network { url: url.split('?').next().unwrap_or(url).to_owned(), reason: reason.into() }
}

/// A connection that failed or broke; another attempt may do.
fn broken(url: &str, reason: &ureq::Error) -> Failure {
    let retry = match reason {
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => Retry::Soon,
        _ => Retry::Never,
    };
    let error = network(url, format!("{reason}; check the network, or HF_ENDPOINT for another hub"));
    Failure { error: Box::new(error), reason: Some(network(url, reason.to_string()).to_string()), retry, is_outage: true }
}

/// A server that compresses although it was asked not to: sizes, ranges and hashes are those of the file as it is.
fn demand_plain(url: &str, response: Response<Body>) -> Result<Response<Body>, Failure> {
    match header(response.headers(), "content-encoding").map(str::trim) {
        Some(encoding) if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") => {
            let reason = format!(
                "the server sends the file encoded as `{encoding}`, although it was asked for the file as it is; \
                 turn compression off in the mirror, or set HF_ENDPOINT to another"
            );
            Err(Failure::for_good(network(url, reason)))
        }
        _ => Ok(response),
    }
}

/// Status 416: what has arrived so far is not of the file that the server has.
fn no_such_range(url: &str) -> Failure {
    let error = network(url, "416: the server has no such range of the file, which is fetched from its start");
    Failure { error: Box::new(error), reason: None, retry: Retry::FromStart, is_outage: false }
}

/// A server that asks for a wait that nobody sits through.
fn too_long_a_wait(failure: Failure, asked: Duration) -> Failure {
    let error = match *failure.error {
        Error::Network { url, reason } => {
            let reason = format!("{reason}; it asks to be left alone for {} s: try again after that", asked.as_secs());
            Error::Network { url, reason }
        }
        other => other,
    };
    Failure { error: Box::new(error), ..failure }
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
    let is_outage = matches!(status.as_u16(), 408 | 429 | 500..);
    let retry = match status.as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 => retry_after.map_or(Retry::Soon, Retry::After),
        _ => Retry::Never,
    };
    let reason = Some(network(url, status.to_string()).to_string());
    Failure { error: Box::new(network(url, format!("{status}: {advice}"))), reason, retry, is_outage }
}

/// A token goes into a header, which holds visible ASCII alone.
fn check_token(token: &Token) -> Result<()> {
    match token.0.chars().find(|letter| !letter.is_ascii_graphic()) {
        None => Ok(()),
        Some(letter) => Err(Error::InvalidArgument {
            option: "HF_TOKEN".into(),
            reason: format!("the token holds {letter:?}, which no token does; copy it again from the hub's page of access tokens"),
        }),
    }
}

/// `"abc"` and `W/"abc"` are `abc`.
fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// The name of a blob in the cache. That is the etag, as `huggingface_hub` has it, where it is a plain name; other bytes than letters,
/// digits, `-`, `_` and inner dots are percent-encoded, and an etag that is too long for a name becomes its SHA-256.
fn blob_name(etag: &str) -> String {
    let mut name = encode(etag, "");
    name = name.replace('~', "%7E");
    // Neither hidden, nor what a fetch under way or a lock is called, nor what Windows would cut off.
    if name.starts_with('.') || name.ends_with('.') || name.ends_with(".incomplete") || name.ends_with(".lock") {
        name = name.replace('.', "%2E");
    }
    if name.len() > MAX_BLOB_NAME { format!("etag-{}", hex(&Sha256::digest(etag))) } else { name }
}

/// Bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
    fn etags_become_safe_file_names() {
        assert_eq!(plain_etag("W/\"abc\""), "abc");
        for (etag, name) in [
            ("0a1b2c", "0a1b2c"),
            ("5f3a.61b", "5f3a.61b"),
            ("ab/x+==", "ab%2Fx%2B%3D%3D"),
            ("../x", "%2E%2E%2Fx"),
            ("..", "%2E%2E"),
            ("a\\b:c\0", "a%5Cb%3Ac%00"),
            ("a.incomplete", "a%2Eincomplete"),
            ("a.lock", "a%2Elock"),
        ] {
            assert_eq!(blob_name(etag), name);
        }
        let long = blob_name(&"x".repeat(129));
        assert!(long.starts_with("etag-") && long.len() == 69 && long != blob_name(&"x".repeat(130)), "{long}");
    }

    #[test]
    fn only_digests_are_checked() {
        let info = |etag: &str| FileInfo { etag: etag.into(), blob: String::new(), size: Bytes(1) };
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!((hex(&Sha256::digest(b"")), info(digest).sha256()), (digest.to_owned(), Some(digest)));
        // The hash that git gives a small file, and names that only look like one.
        for etag in ["e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", &digest[1..], &digest.replace('e', "g")] {
            assert_eq!(info(etag).sha256(), None, "{etag}");
        }
    }

    #[test]
    fn tokens_are_visible_ascii() {
        assert!(check_token(&Token("hf_Ab9".into())).is_ok());
        for (token, shown) in [("hf_ä", "'ä'"), ("hf_ a", "' '"), ("hf_\u{fffd}", "\u{fffd}"), ("hf\n_", "'\\n'")] {
            let error = check_token(&Token(token.into())).unwrap_err().to_string();
            assert!(error.starts_with("HF_TOKEN: ") && error.contains(shown) && !error.contains("hf_"), "{error}");
        }
    }

    #[test]
    fn names_are_percent_encoded() {
        assert_eq!(encode("a b/ü.txt", "/"), "a%20b/%C3%BC.txt");
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}
