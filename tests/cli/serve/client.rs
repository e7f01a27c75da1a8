//! A server under test, and a client of HTTP/1.1 that does no more than these tests need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Child;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::common::program::Home;

/// Nothing that these tests wait for takes so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(5);
/// Looks before it is given up.
const N_LOOKS: usize = 24_000;

/// Looks until `found` finds something, or `None` after [`N_LOOKS`].
fn look_for<T>(mut found: impl FnMut() -> Option<T>) -> Option<T> {
    (0..N_LOOKS).find_map(|_| {
        let seen = found();
        if seen.is_none() {
            std::thread::sleep(PAUSE);
        }
        seen
    })
}

pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    /// What it writes to stderr after its address.
    pub lines: Mutex<Receiver<String>>,
    /// What it wrote before.
    pub report: String,
}

/// A response that was read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Server {
    /// Serves `model` on the host, on a free port.
    #[track_caller]
    pub fn start(home: &Home, model: &str, more: &[&str]) -> Server {
        Server::start_with(home, &[&[model], more].concat())
    }

    /// The same with these arguments.
    #[track_caller]
    pub fn start_with(home: &Home, more: &[&str]) -> Server {
        let arguments = [&["serve", "--device", "cpu", "--port", "0"], more].concat();
        let mut child = home.command(&arguments).spawn().expect("the program");
        let stderr = BufReader::new(child.stderr.take().expect("stderr"));
        let (sender, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // From here on it is ended and waited for, whatever comes.
        let mut server = Server { child, address: ([0; 4], 0).into(), lines: Mutex::new(lines), report: String::new() };
        loop {
            let line = server
                .lines
                .get_mut()
                .unwrap()
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|error| panic!("no address ({error}): {}", server.report));
            if let Some((_, address)) = line.split_once(" served on http://") {
                server.address = address.parse().expect("an address");
                return server;
            }
            server.report.push_str(&line);
            server.report.push('\n');
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends a request, with `headers` as lines, and reads nothing yet.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let host = if headers.to_ascii_lowercase().contains("host:") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let length = if method == "GET" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{length}{headers}\r\n");
        // A server that refuses a long body may close before all of it is sent.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        stream
    }

    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        Reply::read(self.send(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "", "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, "", &body.to_string())
    }

    /// The answer to a request that must succeed.
    #[track_caller]
    pub fn json(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// A value of `/metrics`.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.trim().parse().expect("a number")
    }

    /// Waits until a value of `/metrics` is `wanted`.
    #[track_caller]
    pub fn wait_for(&self, name: &str, wanted: u64) {
        let reached = look_for(|| (self.metric(name) == wanted).then_some(()));
        reached.unwrap_or_else(|| panic!("{name} stays {} instead of {wanted}", self.metric(name)));
    }

    /// Forgets what it wrote to stderr until now.
    pub fn drain_lines(&self) {
        self.lines.lock().unwrap().try_iter().for_each(drop);
    }

    /// Waits until it writes a line to stderr that has `wanted` in it.
    #[track_caller]
    pub fn wait_for_line(&self, wanted: &str) {
        let lines = self.lines.lock().unwrap();
        while !lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("no `{wanted}` ({error})")).contains(wanted) {}
    }

    /// Sends a signal of that name.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.child.id());
        assert!(std::process::Command::new("sh").args(["-c", &line]).status().expect("sh").success());
    }

    /// Waits for its end, and returns its exit code.
    #[track_caller]
    pub fn end(mut self) -> Option<i32> {
        look_for(|| self.child.try_wait().expect("a child")).expect("it does not end").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Reply {
    /// Reads a response to its end.
    #[track_caller]
    pub fn read(mut stream: TcpStream) -> Reply {
        let mut bytes = Vec::new();
        // Where the server closed before it had read all, what it said is here all the same.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).expect("UTF-8");
        let (headers, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let status = headers.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {headers}"));
        let is_chunked = headers.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Reply { status, headers: headers.to_ascii_lowercase(), body: if is_chunked { unchunked(body) } else { body.to_owned() } }
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// The data of server-sent events.
    pub fn events(&self) -> Vec<&str> {
        self.body.split("\n\n").filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: "))).collect()
    }

    /// The events that are objects; the last one is `[DONE]`.
    #[track_caller]
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        events.into_iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }
}

fn unchunked(mut body: &str) -> String {
    let mut text = Vec::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let Ok(length) = usize::from_str_radix(length, 16) else { break };
        if length == 0 || rest.len() < length {
            break;
        }
        text.extend_from_slice(&rest.as_bytes()[..length]);
        body = rest.get(length + 2..).unwrap_or_default();
    }
    String::from_utf8(text).expect("UTF-8")
}
