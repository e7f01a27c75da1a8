//! The hub client against a small hub on loopback: fetching, resuming, refusing, finding again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tierflow::error::Error;
use tierflow::hub::{HubConfig, ModelRef, Token, cached, list_cached, parse_model_ref, pull};
use tierflow::units::Bytes;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_test";

/// What the hub does when a file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    /// Keeps its word.
    Plain,
    /// Closes the first answer after this many bytes.
    DropAfter(usize),
    /// As `DropAfter`, and answers every request with the whole file.
    DropAfterAndIgnoreRange(usize),
    /// Sends one byte less than the HEAD answer announced, with a matching length.
    Short,
    /// Answers the first two requests for bytes with 503.
    BusyTwice,
    /// Sends the reader to the other server.
    RedirectToStore,
}

/// What a test may look at afterwards.
#[derive(Debug, Default)]
struct Log {
    /// "METHOD path range=… token=…" of every request.
    requests: Vec<String>,
    /// Answers with bytes so far, by path.
    bodies: HashMap<String, usize>,
}

struct TestHub {
    address: String,
    log: Arc<Mutex<Log>>,
}

#[derive(Clone)]
struct Site {
    files: BTreeMap<String, Vec<u8>>,
    behaviour: Behaviour,
    gated: bool,
    store: String,
}

impl TestHub {
    fn start(files: &[(&str, &[u8])], behaviour: Behaviour) -> TestHub {
        TestHub::start_site(files, behaviour, false, String::new())
    }

    fn start_site(files: &[(&str, &[u8])], behaviour: Behaviour, gated: bool, store: String) -> TestHub {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let site = Site { files, behaviour, gated, store };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = Arc::clone(&log);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (site, log) = (site.clone(), Arc::clone(&shared));
                std::thread::spawn(move || answer(stream, &site, &log));
            }
        });
        TestHub { address, log }
    }

    fn requests(&self, method: &str) -> Vec<String> {
        self.log.lock().unwrap().requests.iter().filter(|line| line.starts_with(method)).cloned().collect()
    }

    fn config(&self, cache: &Path) -> HubConfig {
        HubConfig {
            endpoint: self.address.clone(),
            cache_dir: cache.to_owned(),
            token: Some(Token(TOKEN.into())),
            offline: false,
            retry_delay: Duration::from_millis(1),
        }
    }
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, site: &Site, log: &Mutex<Log>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let token = header("authorization").is_some();
    log.lock().unwrap().requests.push(format!("{method} {path} range={} token={token}", range.unwrap_or(0)));
    if site.gated && !token {
        return send(&mut stream, "401 Unauthorized", &[], b"");
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let siblings: Vec<_> = site.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let known = rest == "org/name/revision/main";
        return if known { send(&mut stream, "200 OK", &[], body.as_bytes()) } else { send(&mut stream, "404 Not Found", &[], b"") };
    }
    let prefix = format!("/org/name/resolve/{COMMIT}/");
    let name = path.strip_prefix(&prefix).or_else(|| path.strip_prefix("/store/"));
    let Some((name, bytes)) = name.and_then(|name| site.files.get_key_value(name)) else {
        return send(&mut stream, "404 Not Found", &[], b"");
    };
    let etag = format!("ETag: \"etag-{}\"", name.len() * 1000 + bytes.len());
    if path.starts_with(&prefix) && site.behaviour == Behaviour::RedirectToStore {
        let linked = format!("X-Linked-{etag}\r\nX-Linked-Size: {}", bytes.len());
        let location = format!("Location: {}/store/{name}", site.store);
        return send(&mut stream, "302 Found", &[&linked, &location], b"moved");
    }
    if method == "HEAD" {
        let head = format!("HTTP/1.1 200 OK\r\n{etag}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
        stream.write_all(head.as_bytes()).unwrap();
        return;
    }
    send_file(&mut stream, site, log, &path, bytes, range);
}

fn send_file(stream: &mut TcpStream, site: &Site, log: &Mutex<Log>, path: &str, bytes: &[u8], range: Option<usize>) {
    let count = {
        let mut log = log.lock().unwrap();
        let count = log.bodies.entry(path.to_owned()).or_default();
        *count += 1;
        *count
    };
    let start = range.filter(|_| !matches!(site.behaviour, Behaviour::DropAfterAndIgnoreRange(_)));
    let rest = &bytes[start.unwrap_or(0)..];
    let (status, range_line) = match start {
        Some(start) => ("206 Partial Content", format!("Content-Range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len())),
        None => ("200 OK", "X-Nothing: 1".to_owned()),
    };
    match site.behaviour {
        Behaviour::DropAfter(limit) | Behaviour::DropAfterAndIgnoreRange(limit) if count == 1 => {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", rest.len());
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&rest[..limit]).unwrap();
        }
        Behaviour::Short => send(stream, status, &[&range_line], &rest[1..]),
        Behaviour::BusyTwice if count <= 2 => send(stream, "503 Service Unavailable", &["Retry-After: 0"], b""),
        _ => send(stream, status, &[&range_line], rest),
    }
}

fn send(stream: &mut TcpStream, status: &str, headers: &[&str], body: &[u8]) {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\n{lines}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // The reader may have hung up, which is its right.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn weights() -> Vec<u8> {
    (0..1_000_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn model(text: &str) -> ModelRef {
    parse_model_ref(text).unwrap()
}

fn quiet() -> impl FnMut(tierflow::hub::Progress<'_>) {
    |_| {}
}

#[test]
fn a_pull_fills_the_standard_cache_and_a_second_one_fetches_nothing() {
    let weights = weights();
    let hub = TestHub::start(&[("config.json", b"{}"), ("model.safetensors", &weights), ("README.md", b"no")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    let mut last = None;
    let pulled = pull(&config, &model("org/name"), &mut |progress| last = Some((progress.file.to_owned(), progress.done))).unwrap();

    let root = cache.path().join("models--org--name");
    assert_eq!(pulled.path, root.join("snapshots").join(COMMIT));
    assert_eq!((pulled.commit.as_str(), pulled.fetched), (COMMIT, Bytes(weights.len() as u64 + 2)));
    assert_eq!(last, Some(("model.safetensors".to_owned(), Bytes(weights.len() as u64))));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
    assert!(!pulled.path.join("README.md").exists());
    let mut blobs: Vec<_> = fs::read_dir(root.join("blobs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    blobs.sort();
    assert_eq!(blobs, ["etag-1017000", "etag-11002"]);
    #[cfg(unix)]
    assert_eq!(fs::read_link(pulled.path.join("config.json")).unwrap(), Path::new("../../blobs/etag-11002"));

    let before = hub.requests("").len();
    let again = pull(&config, &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((again.path, again.fetched), (pulled.path, Bytes::ZERO));
    assert_eq!(hub.requests("").len(), before + 1, "only the listing is asked for again");
}

#[test]
fn a_dropped_connection_is_resumed_where_it_ended() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::DropAfter(300_000));
    let cache = tempfile::tempdir().unwrap();
    let pulled = pull(&hub.config(cache.path()), &model("org/name:Q8_0"), &mut quiet()).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), weights);
    assert_eq!(pulled.fetched, Bytes(weights.len() as u64), "nothing is fetched twice");
    let gets = hub.requests("GET /org");
    assert!(gets.len() == 2 && gets[1].contains("range=300000 "), "{gets:?}");
}

#[test]
fn a_fetch_goes_on_from_what_an_earlier_process_left() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("etag-1011000.incomplete"), &weights[..900_000]).unwrap();
    let pulled = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), weights);
    assert_eq!(pulled.fetched, Bytes(100_000));
    assert!(!blobs.join("etag-1011000.incomplete").exists());
}

#[test]
fn a_server_without_ranges_starts_again() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::DropAfterAndIgnoreRange(400_000));
    let cache = tempfile::tempdir().unwrap();
    let pulled = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), weights);
}

#[test]
fn a_busy_server_is_asked_again() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::BusyTwice);
    let cache = tempfile::tempdir().unwrap();
    let pulled = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap();
    assert_eq!(fs::read(pulled.path).unwrap(), b"GGUF");
    assert_eq!(hub.requests("GET /org").len(), 3);
}

#[test]
fn a_wrong_length_is_refused_and_leaves_no_blob() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Short);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    let error = pull(&config, &model("org/name"), &mut quiet()).unwrap_err();
    assert!(matches!(&error, Error::Network { fault, .. } if fault.contains("offers 3 bytes")), "{error}");
    assert_eq!(fs::read_dir(cache.path().join("models--org--name/blobs")).unwrap().count(), 0);
    assert_eq!(cached(&config, &model("org/name")).unwrap(), None);
}

#[test]
fn a_redirect_to_another_host_gets_no_token() {
    let weights = weights();
    let files: [(&str, &[u8]); 1] = [("m-Q8_0.gguf", &weights)];
    let store = TestHub::start(&files, Behaviour::DropAfter(100));
    let hub = TestHub::start_site(&files, Behaviour::RedirectToStore, true, store.address.clone());
    let cache = tempfile::tempdir().unwrap();
    let pulled = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), weights);
    assert!(hub.requests("").iter().all(|line| line.ends_with("token=true")), "{:?}", hub.requests(""));
    assert!(store.requests("").iter().all(|line| line.ends_with("token=false")), "{:?}", store.requests(""));
    assert!(store.requests("GET")[1].contains("range=100 "), "the range survives the redirect");
}

#[test]
fn refusals_name_the_address_and_the_way_out() {
    let hub = TestHub::start_site(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain, true, String::new());
    let cache = tempfile::tempdir().unwrap();
    let with_token = hub.config(cache.path());
    let error = pull(&with_token, &model("org/other"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("/api/models/org/other") && error.contains("404") && error.contains("spelling"), "{error}");

    let without_token = HubConfig { token: None, ..with_token.clone() };
    let error = pull(&without_token, &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");

    let error = pull(&with_token, &model("org/name:Q4_0"), &mut quiet()).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().contains("m-Q8_0.gguf")), (2, true), "{error}");

    let nowhere = HubConfig { endpoint: "http://127.0.0.1:9".into(), ..with_token };
    let error = pull(&nowhere, &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:9/api") && error.contains("network"), "{error}");
}

#[test]
fn names_that_lead_out_of_the_cache_write_nothing() {
    for name in ["../../../escaped-Q8_0.gguf", "/escaped-Q8_0.gguf", "a\\..\\escaped-Q8_0.gguf"] {
        let hub = TestHub::start(&[(name, b"GGUF")], Behaviour::Plain);
        let cache = tempfile::tempdir().unwrap();
        let inner = cache.path().join("inner");
        let error = pull(&hub.config(&inner), &model("org/name"), &mut quiet()).unwrap_err().to_string();
        assert!(error.contains("leads out of the cache"), "{name}: {error}");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn offline_uses_the_cache_and_asks_no_one() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let online = hub.config(cache.path());
    let offline = HubConfig { offline: true, ..online.clone() };
    let error = pull(&offline, &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    let pulled = pull(&online, &model("org/name"), &mut quiet()).unwrap();
    let before = hub.requests("").len();
    assert_eq!(pull(&offline, &model("org/name:q8_0"), &mut quiet()).unwrap().path, pulled.path);
    assert_eq!(hub.requests("").len(), before);
}

#[test]
fn two_pulls_at_once_both_succeed() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| pull(&config, &model("org/name"), &mut quiet()))).collect();
        for each in pulls {
            assert_eq!(fs::read(each.join().unwrap().unwrap().path).unwrap(), weights);
        }
    });
    let blobs = fs::read_dir(cache.path().join("models--org--name/blobs")).unwrap();
    assert_eq!(blobs.count(), 1, "no partial file is left");
}

#[test]
fn a_cache_written_by_python_is_found_and_half_a_model_is_not() {
    let cache = tempfile::tempdir().unwrap();
    let hub = TestHub::start(&[], Behaviour::Plain);
    let config = hub.config(cache.path());
    assert!(list_cached(&config).unwrap().is_empty());
    let root = cache.path().join("models--org--some--name");
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    fs::create_dir_all(cache.path().join("datasets--org--name/snapshots/x")).unwrap();
    for name in ["config.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors"] {
        fs::write(snapshot.join(name), "12345").unwrap();
    }
    let asked = ModelRef { repo: "org/some--name".into(), ..model("org/name") };
    assert_eq!(cached(&config, &asked).unwrap(), None);
    fs::write(snapshot.join("model-00001-of-00002.safetensors"), "12345").unwrap();
    assert_eq!(cached(&config, &asked).unwrap(), Some(snapshot.clone()));
    let listed = list_cached(&config).unwrap();
    assert_eq!((listed.len(), listed[0].repo.as_str(), listed[0].size, &listed[0].path), (1, "org/some--name", Bytes(20), &snapshot));
}

#[test]
fn the_program_pulls_and_lists() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let tierflow = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierflow"));
        command.args(arguments).env("HF_ENDPOINT", &hub.address).env("HF_HUB_CACHE", cache.path()).env_remove("HF_HUB_OFFLINE");
        command.output().unwrap()
    };
    let pulled = tierflow(&["pull", "org/name:Q8_0"]);
    let path = String::from_utf8(pulled.stdout).unwrap();
    assert!(pulled.status.success() && path.ends_with("m-Q8_0.gguf\n"), "{path}{}", String::from_utf8_lossy(&pulled.stderr));
    let listed = String::from_utf8(tierflow(&["ls"]).stdout).unwrap();
    assert!(listed.starts_with("MODEL") && listed.contains("org/name:m-Q8_0.gguf") && !listed.contains('\u{1b}'), "{listed}");
    let json: serde_json::Value = serde_json::from_slice(&tierflow(&["ls", "--json"]).stdout).unwrap();
    assert_eq!(json["models"][0]["files"][0], "m-Q8_0.gguf");
    let failed = tierflow(&["pull", "org/other"]);
    assert_eq!((failed.status.code(), failed.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("error: http://"));
    assert_eq!(tierflow(&["pull", "nonsense"]).status.code(), Some(2));
    assert_eq!(tierflow(&["nonsense"]).status.code(), Some(2));
    assert!(String::from_utf8_lossy(&tierflow(&["completions", "bash"]).stdout).contains("_tierflow"));
}
