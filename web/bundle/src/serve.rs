//! A server of files for this machine's browser: `GET` and `HEAD`, ranges, the types that modules and wasm need. Any static
//! host does as much.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::range::{Asked, asked};

/// No request's head is longer.
const MAX_HEAD_BYTES: u64 = 16 << 10;
/// Isolate the page from other origins, so that its workers may share memory.
const ISOLATION: &str = "Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Embedder-Policy: require-corp\r\n";
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// What is served.
struct Site {
    /// Canonical, so that nothing outside of it can hide behind a link.
    folder: PathBuf,
    /// Files at `/models/NAME`.
    models: Vec<(String, PathBuf)>,
}

/// A request, as far as it matters here.
struct Request {
    method: String,
    path: String,
    range: Option<String>,
    keeps_open: bool,
}

/// Serves until the program is ended; prints the address first.
///
/// # Errors
/// In words, where the folder or the port is not to be had.
pub fn serve(folder: &Path, port: u16, models: Vec<(String, PathBuf)>) -> Result<(), String> {
    let folder = folder.canonicalize().map_err(|error| format!("cannot open {}: {error}", folder.display()))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| format!("cannot listen at port {port}: {error}"))?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    println!("http://127.0.0.1:{port}/page/");
    for (name, _) in &models {
        println!("http://127.0.0.1:{port}/models/{name}");
    }
    let site = Arc::new(Site { folder, models });
    for stream in listener.incoming().flatten() {
        let site = Arc::clone(&site);
        // A connection that breaks is its browser's business.
        std::thread::spawn(move || converse(&site, &stream));
    }
    Ok(())
}

fn converse(site: &Site, stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        answer(site, &request, stream)?;
        if !request.keeps_open {
            break;
        }
    }
    Ok(())
}

/// The next request; `None` where there is no more, or none that can be understood.
fn read_request(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Request>> {
    let mut head = reader.take(MAX_HEAD_BYTES);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else { return Ok(None) };
    let path = decoded(target.split(['?', '#']).next().unwrap_or_default());
    let mut request = Request { method: method.to_owned(), path, range: None, keeps_open: version == "HTTP/1.1" };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.split_once(':') else { return Ok(Some(request)) };
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("range", range) => request.range = Some(range.to_owned()),
            ("connection", "close") => request.keeps_open = false,
            _ => {}
        }
    }
}

fn answer(site: &Site, request: &Request, mut stream: &TcpStream) -> std::io::Result<()> {
    if request.method != "GET" && request.method != "HEAD" {
        return refuse(stream, "405 Method Not Allowed", "Allow: GET, HEAD\r\n");
    }
    if let Some(folder) = site.folder_without_slash(&request.path) {
        return refuse(stream, "301 Moved Permanently", &format!("Location: {folder}/\r\n"));
    }
    let Some((path, mut file)) = site.find(&request.path).and_then(|path| File::open(&path).ok().map(|file| (path, file))) else {
        return refuse(stream, "404 Not Found", "");
    };
    let metadata = file.metadata()?;
    let len = metadata.len();
    let (status, part) = match asked(request.range.as_deref(), len) {
        Asked::All => ("200 OK", 0..len),
        Asked::Part(part) => ("206 Partial Content", part),
        Asked::Beyond => return refuse(stream, "416 Range Not Satisfiable", &format!("Content-Range: bytes */{len}\r\n")),
    };
    let mut head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{ISOLATION}", type_of(&path), part.end - part.start);
    if status.starts_with("206") {
        head.push_str(&format!("Content-Range: bytes {}-{}/{len}\r\n", part.start, part.end - 1));
    }
    let written = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    head.push_str(&format!("ETag: \"{len:x}-{:x}\"\r\nAccept-Ranges: bytes\r\nCache-Control: no-cache\r\n\r\n", written.as_nanos()));
    stream.write_all(head.as_bytes())?;
    if request.method == "GET" {
        file.seek(SeekFrom::Start(part.start))?;
        std::io::copy(&mut file.take(part.end - part.start), &mut stream)?;
    }
    stream.flush()
}

fn refuse(mut stream: &TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{headers}\r\n{status}", status.len())
}

impl Site {
    /// The address of a folder that was asked for without its last slash, from which the links in it would lead elsewhere.
    fn folder_without_slash(&self, path: &str) -> Option<String> {
        let is_folder = !path.ends_with('/') && self.find(path).is_some_and(|file| file.file_name() == Some("index.html".as_ref()));
        let name = path.rsplit('/').next().unwrap_or_default();
        // A relative address, which no second slash can turn into another host.
        (is_folder && name != "index.html").then(|| name.to_owned())
    }

    /// The file at `path`, if there is one inside the folder or among the models.
    fn find(&self, path: &str) -> Option<PathBuf> {
        if let Some(name) = path.strip_prefix("/models/") {
            return self.models.iter().find(|(own, _)| own == name).map(|(_, file)| file.clone());
        }
        let mut file = self.folder.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if part == ".." || part.contains(['\\', ':', '\0']) {
                return None;
            }
            file.push(part);
        }
        if file.is_dir() {
            file.push("index.html");
        }
        file.canonicalize().ok().filter(|file| file.starts_with(&self.folder) && file.is_file())
    }
}

fn type_of(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" => "application/json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ts" | "md" | "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// Undoes percent-encoding; what is no such code stays.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_served_is_found() {
        let root = std::env::temp_dir().join(format!("web-bundle-test-{}", std::process::id()));
        let folder = root.join("dist");
        std::fs::create_dir_all(folder.join("page")).unwrap();
        std::fs::write(folder.join("page/index.html"), "page").unwrap();
        std::fs::write(root.join("secret"), "secret").unwrap();
        let folder = folder.canonicalize().unwrap();
        let site = Site { folder: folder.clone(), models: vec![("m.gguf".into(), root.join("secret"))] };
        for path in ["/page/index.html", "/page/", "/page", "//page//index.html"] {
            assert_eq!(site.find(path), Some(folder.join("page/index.html")), "{path}");
        }
        assert_eq!(site.folder_without_slash("/page"), Some("page".to_owned()), "links in it would lead elsewhere");
        for path in ["/page/", "/page/index.html", "/nothing", "/models/m.gguf", "/"] {
            assert_eq!(site.folder_without_slash(path), None, "{path}");
        }
        for path in
            ["/../secret", "/page/../../secret", "/page/..", "/nothing", "/", "/page\\..\\secret", "/models/other", "/models/../secret"]
        {
            assert_eq!(site.find(path), None, "{path}");
        }
        assert_eq!(site.find("/models/m.gguf"), Some(root.join("secret")));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn codes_are_undone_before_paths_are_judged() {
        assert_eq!(decoded("/a%20b/%2e%2E/c%"), "/a b/../c%");
        assert_eq!(decoded("%zz%4"), "%zz%4");
    }

    #[test]
    fn parts_of_files_arrive_over_one_connection() {
        let folder = std::env::temp_dir().join(format!("web-bundle-parts-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a.wasm"), b"0123456789").unwrap();
        let site = Site { folder: folder.canonicalize().unwrap(), models: Vec::new() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || converse(&site, &listener.accept().unwrap().0));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /a.wasm HTTP/1.1\r\nRange: bytes=2-4\r\n\r\nHEAD /a.wasm HTTP/1.1\r\n\r\n").unwrap();
        stream.write_all(b"GET /a.wasm HTTP/1.1\r\nrange: bytes=90-\r\n\r\nPOST / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        server.join().unwrap().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let head = "HTTP/1.1 206 Partial Content\r\nContent-Type: application/wasm\r\nContent-Length: 3\r\n";
        let part = format!("{head}{ISOLATION}Content-Range: bytes 2-4/10\r\n");
        assert!(text.starts_with(&part) && text.contains("\r\n\r\n234HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("416 Range") && text.contains("bytes */10") && text.ends_with("405 Method Not Allowed"), "{text}");
    }
}
