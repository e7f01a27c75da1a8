//! The hub client against a small hub on loopback: fetching, resuming, refusing, finding again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tierflow::error::Error;
use tierflow::hub::{HubConfig, ModelRef, Token, cached, list_cached, parse_model_ref, pull, pull_anew};
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
    /// Closes every answer after this many bytes.
    AlwaysDropAfter(usize),
    /// As `DropAfter`, and answers every request with the whole file.
    DropAfterAndIgnoreRange(usize),
    /// Sends one byte less than the HEAD answer announced, with a matching length.
    Short,
    /// Answers the first two requests for bytes with 503.
    BusyTwice,
    /// Answers every request for bytes with 429 and asks for an hour's wait.
    BusyForAnHour,
    /// Sends files compressed, although nobody asked for that.
    Compressed,
    /// Answers 416 where bytes are asked for from another place than the start.
    RefuseRange,
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
    /// The etag of every file, where it is not made of its length.
    etag: Option<String>,
}

impl TestHub {
    fn start(files: &[(&str, &[u8])], behaviour: Behaviour) -> TestHub {
        TestHub::start_site(files, behaviour, false, String::new())
    }

    fn start_site(files: &[(&str, &[u8])], behaviour: Behaviour, gated: bool, store: String) -> TestHub {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        TestHub::serve(Site { files, behaviour, gated, store, etag: None })
    }

    /// A hub with one model file, whose etag is `etag`.
    fn start_with_etag(bytes: &[u8], etag: &str, behaviour: Behaviour) -> TestHub {
        let files = BTreeMap::from([("m-Q8_0.gguf".to_owned(), bytes.to_vec())]);
        TestHub::serve(Site { files, behaviour, gated: false, store: String::new(), etag: Some(etag.to_owned()) })
    }

    fn serve(site: Site) -> TestHub {
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
    let etag = site.etag.clone().unwrap_or_else(|| format!("etag-{}", name.len() * 1000 + bytes.len()));
    let etag = format!("ETag: \"{etag}\"");
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
    let cut = match site.behaviour {
        Behaviour::DropAfter(limit) | Behaviour::DropAfterAndIgnoreRange(limit) if count == 1 => Some(limit),
        Behaviour::AlwaysDropAfter(limit) => Some(limit),
        _ => None,
    };
    if let Some(limit) = cut {
        let head = format!("HTTP/1.1 {status}\r\n{range_line}\r\nContent-Length: {}\r\n\r\n", rest.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&rest[..limit]).unwrap();
        return;
    }
    match site.behaviour {
        Behaviour::BusyForAnHour => send(stream, "429 Too Many Requests", &["Retry-After: 3600"], b""),
        Behaviour::Compressed => send(stream, status, &[&range_line, "Content-Encoding: gzip"], rest),
        Behaviour::RefuseRange if range.is_some() => send(stream, "416 Range Not Satisfiable", &[], b""),
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

    let (heads, gets) = (hub.requests("HEAD").len(), hub.requests("GET").len());
    let again = pull(&config, &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((again.path, again.fetched), (pulled.path, Bytes::ZERO));
    // The sizes distinguish a whole file from a partial one.
    assert_eq!(
        (hub.requests("HEAD").len(), hub.requests("GET").len()),
        (heads + 2, gets + 1),
        "only listing and sizes are asked for again"
    );
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
    assert!(matches!(&error, Error::Network { reason, .. } if reason.contains("offers 3 bytes")), "{error}");
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

/// The blobs of the one repository, by name.
fn blobs(cache: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(cache.join("models--org--name/blobs")).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
    let mut names: Vec<String> = entries.iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_server_that_compresses_is_refused() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Compressed);
    let cache = tempfile::tempdir().unwrap();
    let error = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("encoded as `gzip`") && error.contains("m-Q8_0.gguf"), "{error}");
    assert!(blobs(cache.path()).is_empty());
}

#[test]
fn a_range_that_the_server_does_not_have_begins_at_the_start() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::RefuseRange);
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("etag-1011000.incomplete"), vec![7; 900_000]).unwrap();
    let pulled = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), weights);
    let gets = hub.requests("GET /org");
    assert!(gets.len() == 2 && gets[0].contains("range=900000 ") && gets[1].contains("range=0 "), "{gets:?}");
}

#[test]
fn a_server_that_drops_every_connection_and_every_range_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines: Vec<String> =
                BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let first = lines.first().cloned().unwrap_or_default();
            if first.contains("/api/models/") {
                let body = serde_json::json!({ "sha": COMMIT, "siblings": [{ "rfilename": "m-Q8_0.gguf" }] }).to_string();
                send(&mut stream, "200 OK", &[], body.as_bytes());
            } else if lines.iter().any(|line| line.to_lowercase().starts_with("range:")) {
                send(&mut stream, "416 Range Not Satisfiable", &[], b"");
            } else {
                // Enough to count as a step forward.
                let body = if first.starts_with("HEAD") { String::new() } else { "x".repeat(500_000) };
                let head = "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 1000000\r\n\r\n";
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let config =
        HubConfig { endpoint: address, cache_dir: cache.path().into(), token: None, offline: false, retry_delay: Duration::from_millis(1) };
    let error = pull(&config, &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("416"), "{error}");
}

#[test]
fn a_server_that_drops_every_connection_at_once_is_given_up() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights())], Behaviour::AlwaysDropAfter(100));
    let cache = tempfile::tempdir().unwrap();
    let error = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("the connection"), "{error}");
    assert_eq!(hub.requests("GET /org").len(), 5);
    // What came is not lost.
    assert_eq!(fs::metadata(cache.path().join("models--org--name/blobs/etag-1011000.incomplete")).unwrap().len(), 500);
}

#[test]
fn what_has_another_hash_than_the_hub_names_is_no_blob() {
    let weights = weights();
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--org--name/blobs");
    let digest = sha256(&weights);
    let right = TestHub::start_with_etag(&weights, &digest, Behaviour::Plain);
    // What an earlier fetch left is not of this file: seen at the end, and fetched once more.
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{digest}.incomplete")), vec![7; 900_000]).unwrap();
    let pulled = pull(&right.config(cache.path()), &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((fs::read(&pulled.path).unwrap(), pulled.fetched), (weights.clone(), Bytes(1_100_000)));
    assert_eq!(blobs(cache.path()), [digest]);

    let other = tempfile::tempdir().unwrap();
    let wrong = TestHub::start_with_etag(&weights, &sha256(b"another file"), Behaviour::Plain);
    let error = pull(&wrong.config(other.path()), &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains(&sha256(&weights)) && error.contains(&sha256(b"another file")), "{error}");
    assert!(blobs(other.path()).is_empty(), "neither a blob nor what a later fetch would go on from");
}

#[test]
fn a_file_that_was_cut_on_disk_is_fetched_again() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    let path = pull(&config, &model("org/name"), &mut quiet()).unwrap().path;
    let blob = cache.path().join("models--org--name/blobs/etag-1011000");
    fs::OpenOptions::new().write(true).open(&blob).unwrap().set_len(1000).unwrap();
    let again = pull(&config, &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((again.fetched, fs::read(&path).unwrap()), (Bytes(weights.len() as u64), weights.clone()));
    // A copy that was cut, where there are no links: the blob is whole, so nothing is fetched.
    fs::remove_file(&path).unwrap();
    fs::write(&path, &weights[..1000]).unwrap();
    let again = pull(&config, &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((again.fetched, fs::read(&path).unwrap()), (Bytes::ZERO, weights));
    assert_eq!(blobs(cache.path()), ["etag-1011000"]);
}

#[test]
fn a_pull_by_force_fetches_what_is_there() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    let path = pull(&config, &model("org/name"), &mut quiet()).unwrap().path;
    fs::write(&path, vec![7; weights.len()]).unwrap();
    assert_eq!(pull(&config, &model("org/name"), &mut quiet()).unwrap().fetched, Bytes::ZERO, "its size is right");
    fs::write(cache.path().join("models--org--name/blobs/etag-1011000.incomplete"), [7; 100]).unwrap();
    let anew = pull_anew(&config, &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((anew.fetched, fs::read(&anew.path).unwrap()), (Bytes(weights.len() as u64), weights));
    assert_eq!((anew.path, blobs(cache.path())), (path, vec!["etag-1011000".to_owned()]));
    let offline = HubConfig { offline: true, ..config };
    assert!(pull_anew(&offline, &model("org/name"), &mut quiet()).unwrap_err().to_string().contains("HF_HUB_OFFLINE"));
}

#[test]
fn a_hub_that_is_down_is_not_needed_for_what_is_in_the_cache() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let up = hub.config(cache.path());
    let down = HubConfig { endpoint: "http://127.0.0.1:9".into(), ..up.clone() };
    assert!(pull(&down, &model("org/name"), &mut quiet()).unwrap_err().to_string().contains("network"));
    let pulled = pull(&up, &model("org/name"), &mut quiet()).unwrap();
    let again = pull(&down, &model("org/name:Q8_0"), &mut quiet()).unwrap();
    assert_eq!((&again.path, again.commit.as_str(), again.fetched), (&pulled.path, COMMIT, Bytes::ZERO));
    assert!(pull_anew(&down, &model("org/name"), &mut quiet()).is_err());
    assert!(pull(&down, &model("org/name:Q4_0"), &mut quiet()).unwrap_err().to_string().contains("network"));
    // An answer that says no is not an outage.
    assert!(pull(&up, &model("org/other"), &mut quiet()).unwrap_err().to_string().contains("404"));
}

#[test]
fn waits_are_reported_and_an_hour_is_not_waited_for() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::BusyTwice);
    let cache = tempfile::tempdir().unwrap();
    let mut n_waits = 0;
    pull(&hub.config(cache.path()), &model("org/name"), &mut |progress| n_waits += usize::from(progress.waiting.is_some())).unwrap();
    assert_eq!(n_waits, 2);
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::BusyForAnHour);
    let cache = tempfile::tempdir().unwrap();
    let error = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap_err().to_string();
    assert!(error.contains("429") && error.contains("3600 s"), "{error}");
    assert_eq!(hub.requests("GET /org").len(), 1);
}

#[test]
fn what_does_not_run_is_not_fetched() {
    for (asked, files) in [
        ("org/name:Q1_0", &["m-Q1_0.gguf", "m-Q8_0.gguf"][..]),
        ("org/name", &["m-Q1_0.gguf"]),
        ("org/name:Q8_0", &["s-Q8_0-00001-of-00002.gguf"]),
    ] {
        let files: Vec<(&str, &[u8])> = files.iter().map(|name| (*name, &b"GGUF"[..])).collect();
        let hub = TestHub::start(&files, Behaviour::Plain);
        let cache = tempfile::tempdir().unwrap();
        let error = pull(&hub.config(cache.path()), &model(asked), &mut quiet()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(files[0].0), "{error}");
        assert_eq!(hub.requests("").len(), 1, "only the listing was asked for");
    }
}

#[test]
fn a_split_gguf_is_fetched_whole() {
    let names = ["q8/s-Q8_0-00001-of-00002.gguf", "q8/s-Q8_0-00002-of-00002.gguf", "s-Q4_0.gguf"];
    let hub = TestHub::start(&names.map(|name| (name, &b"GGUF"[..])), Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    let pulled = pull(&config, &model("org/name:Q8_0"), &mut quiet()).unwrap();
    assert!(pulled.path.ends_with(names[0]) && pulled.path.with_file_name("s-Q8_0-00002-of-00002.gguf").exists(), "{pulled:?}");
    assert_eq!(blobs(cache.path()).len(), 1, "both parts have the same bytes");
    assert_eq!(cached(&config, &model("org/name:Q8_0")).unwrap(), Some(pulled.path.clone()));
    fs::remove_file(pulled.path.with_file_name("s-Q8_0-00002-of-00002.gguf")).unwrap();
    assert_eq!(cached(&config, &model("org/name:Q8_0")).unwrap(), None, "a part is missing");
}

#[test]
fn odd_etags_are_kept_under_safe_names() {
    for (etag, name) in
        [("5f3a.61b", "5f3a.61b"), ("ab/x+==", "ab%2Fx%2B%3D%3D"), ("../../x", "%2E%2E%2F%2E%2E%2Fx"), ("-mtime=1 ", "-mtime%3D1%20")]
    {
        let hub = TestHub::start_with_etag(b"GGUF", etag, Behaviour::Plain);
        let cache = tempfile::tempdir().unwrap();
        let config = hub.config(cache.path());
        let pulled = pull(&config, &model("org/name"), &mut quiet()).unwrap();
        assert_eq!((fs::read(&pulled.path).unwrap(), blobs(cache.path())), (b"GGUF".to_vec(), vec![name.to_owned()]), "{etag}");
        assert_eq!(pull(&config, &model("org/name"), &mut quiet()).unwrap().fetched, Bytes::ZERO, "{etag}");
    }
}

#[test]
fn a_token_that_is_none_is_called_that_and_sent_to_nobody() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { token: Some(Token("hf_sécret".into())), ..hub.config(cache.path()) };
    let error = pull(&config, &model("org/name"), &mut quiet()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("HF_TOKEN") && error.to_string().contains("'é'") && !error.to_string().contains("cret"), "{error}");
    assert!(hub.requests("").is_empty());
}

/// Everybody may read what a plain program's umask lets everybody read, also where another process holds the lock.
#[cfg(unix)]
#[test]
fn blobs_and_refs_have_the_mode_of_any_new_file() {
    use std::os::unix::fs::MetadataExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    for is_locked in [false, true] {
        let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
        let cache = tempfile::tempdir().unwrap();
        let locks = cache.path().join(".locks/models--org--name");
        fs::create_dir_all(&locks).unwrap();
        let lock = fs::File::create(locks.join("etag-11004.lock")).unwrap();
        if is_locked {
            lock.lock().unwrap();
        }
        let pulled = pull(&hub.config(cache.path()), &model("org/name"), &mut quiet()).unwrap();
        let plain = cache.path().join("plain");
        fs::write(&plain, "").unwrap();
        let root = cache.path().join("models--org--name");
        for path in [pulled.path, root.join("refs/main"), root.join("blobs/etag-11004")] {
            assert_eq!(mode(&path), mode(&plain), "{}", path.display());
        }
        assert_eq!(blobs(cache.path()), ["etag-11004"]);
    }
}

#[test]
fn what_a_killed_process_wrote_for_itself_is_used_or_removed() {
    let weights = weights();
    let hub = TestHub::start(&[("m-Q8_0.gguf", &weights)], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    let folder = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&folder).unwrap();
    let orphan = |name: &str, n_bytes: usize| {
        let path = folder.join(format!("etag-1011000{name}.incomplete"));
        fs::write(&path, &weights[..n_bytes]).unwrap();
        path
    };
    orphan("", 1000);
    orphan("AbC123", 400_000);
    orphan("dEf456", 300_000);
    // One of a process that lives, and one of another blob.
    let alive = fs::File::open(orphan("ghi789", 900_000)).unwrap();
    alive.lock().unwrap();
    fs::write(folder.join("etag-1011000-longer.incomplete"), "x").unwrap();
    let pulled = pull(&config, &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((fs::read(&pulled.path).unwrap(), pulled.fetched), (weights.clone(), Bytes(600_000)));
    assert_eq!(blobs(cache.path()), ["etag-1011000", "etag-1011000-longer.incomplete", "etag-1011000ghi789.incomplete"]);
    drop(alive);
    assert_eq!(pull(&config, &model("org/name"), &mut quiet()).unwrap().fetched, Bytes::ZERO);
    assert_eq!(blobs(cache.path()), ["etag-1011000", "etag-1011000-longer.incomplete"]);
}

#[test]
fn a_cache_that_takes_no_note_of_the_revision_still_has_the_model() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    let path = pull(&config, &model("org/name"), &mut quiet()).unwrap().path;
    let refs = cache.path().join("models--org--name/refs");
    fs::remove_dir_all(&refs).unwrap();
    // Nobody, not even root, can make a file in a file.
    fs::write(&refs, "").unwrap();
    let again = pull(&config, &model("org/name"), &mut quiet()).unwrap();
    assert_eq!((again.path, again.fetched), (path, Bytes::ZERO));
}

/// A link to itself, which nobody can read, not even root.
#[cfg(unix)]
#[test]
fn a_repository_that_cannot_be_read_does_not_hide_the_others() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let config = hub.config(cache.path());
    pull(&config, &model("org/name"), &mut quiet()).unwrap();
    std::os::unix::fs::symlink("models--org--bad", cache.path().join("models--org--bad")).unwrap();
    let listed = list_cached(&config).unwrap();
    assert_eq!(listed.iter().map(|model| model.repo.as_str()).collect::<Vec<_>>(), ["org/name"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tierflow"));
    let ran = command.arg("ls").env("HF_HUB_CACHE", cache.path()).env_remove("RUST_LOG").output().unwrap();
    let (stdout, stderr) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    assert!(ran.status.success() && stdout.contains("org/name:m-Q8_0.gguf") && !stdout.contains("bad"), "{stdout}{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.contains("org/bad is left out")).count(), 1, "{stderr}");
}

#[test]
fn the_program_fetches_what_run_names_and_no_other_command() {
    let hub = TestHub::start(&[("m-Q8_0.gguf", b"GGUF")], Behaviour::Plain);
    let cache = tempfile::tempdir().unwrap();
    let tierflow = |arguments: &[&str], offline: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierflow"));
        command.args(arguments).env("HF_ENDPOINT", &hub.address).env("HF_HUB_CACHE", cache.path()).env("HF_HUB_OFFLINE", offline);
        let ran = command.stdin(std::process::Stdio::null()).output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    for command in [&["plan", "org/name"][..], &["bench", "org/name"], &["inspect", "org/name"]] {
        let (code, stderr) = tierflow(command, "0");
        assert!(code == Some(2) && stderr.contains("tierflow pull org/name"), "{command:?}: {stderr}");
    }
    let (code, stderr) = tierflow(&["run", "org/name", "-p", "x"], "1");
    assert!(code == Some(2) && stderr.contains("tierflow pull org/name"), "{stderr}");
    assert_eq!(hub.log.lock().unwrap().requests.len(), 0);
    // The file is fetched whole, and is then seen to be no model.
    let (code, stderr) = tierflow(&["run", "hf.co/org/name:Q8_0", "-p", "x"], "0");
    assert!(code == Some(1) && stderr.contains(&format!("fetching it from {}", hub.address)) && stderr.contains("m-Q8_0.gguf"), "{stderr}");
    let n_requests = hub.log.lock().unwrap().requests.len();
    let (_, stderr) = tierflow(&["run", "org/name", "-p", "x"], "0");
    assert!(!stderr.contains("fetching") && hub.log.lock().unwrap().requests.len() == n_requests, "{stderr}");
    let (code, stderr) = tierflow(&["run", "org/other", "-p", "x"], "0");
    assert!(code == Some(1) && stderr.contains("`org/other` is no folder or file here"), "{stderr}");
    let (code, stderr) = tierflow(&["run", "name", "-p", "x"], "0");
    assert!(code == Some(2) && stderr.contains("the cache has org/name"), "{stderr}");
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
    fs::write(path.trim_end(), "GGUX").unwrap();
    let forced = tierflow(&["pull", "org/name:Q8_0", "--force"]);
    assert_eq!((forced.status.success(), fs::read(path.trim_end()).unwrap()), (true, b"GGUF".to_vec()));
    let failed = tierflow(&["pull", "org/other"]);
    assert_eq!((failed.status.code(), failed.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("error: http://"));
    assert_eq!(tierflow(&["pull", "nonsense"]).status.code(), Some(2));
    assert_eq!(tierflow(&["nonsense"]).status.code(), Some(2));
    assert!(String::from_utf8_lossy(&tierflow(&["completions", "bash"]).stdout).contains("_tierflow"));
}
