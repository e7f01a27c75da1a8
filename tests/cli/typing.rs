//! A terminal of its own for the program, and a user who types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Nothing that is waited for takes so long.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// The program in a terminal of 80 columns and 24 lines.
pub struct Terminal {
    child: Child,
    master: File,
    shown: Receiver<Vec<u8>>,
    /// What was shown and not yet waited for.
    unread: String,
}

/// Where a stream of the program goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Terminal,
    Pipe,
}

impl Terminal {
    /// Starts `command` with stdin on a terminal, which controls it, and the other streams where they are said to go.
    pub fn start(mut command: Command, stdout: Stream, stderr: Stream) -> Terminal {
        let (master, slave) = open();
        let stream = |goes: Stream| match goes {
            Stream::Terminal => Stdio::from(slave.try_clone().unwrap()),
            Stream::Pipe => Stdio::piped(),
        };
        command.stdin(slave.try_clone().unwrap()).stdout(stream(stdout)).stderr(stream(stderr));
        // SAFETY: both calls may be made between fork and exec, and touch no memory of this process.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY as _, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the program");
        let (sender, shown) = channel();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The end of the last process on it is an error of the system's.
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, master, shown, unread: String::new() }
    }

    pub fn type_line(&mut self, line: &str) {
        self.type_keys(&format!("{line}\r"));
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// What is shown up to `text`, and `text` itself, after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + TIME_LIMIT;
        loop {
            if let Some(at) = self.unread.find(text) {
                return self.unread.drain(..at + text.len()).collect();
            }
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.unread.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("`{text}` does not come after: {}", self.unread),
            }
        }
    }

    /// Types `line` and yields what is shown until the next prompt.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.type_line(line);
        // The editor echoes the line behind its prompt, and asks anew at the beginning of a line.
        self.wait_for("\r\n");
        self.wait_for(">>> ")
    }

    /// Waits for the end, and yields the code with what went to pipes.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, String, String) {
        let rest = |stream: Option<&mut dyn Read>| {
            let mut text = String::new();
            stream.map(|stream| stream.read_to_string(&mut text).unwrap());
            text
        };
        let stdout = rest(self.child.stdout.as_mut().map(|stream| stream as &mut dyn Read));
        let stderr = rest(self.child.stderr.as_mut().map(|stream| stream as &mut dyn Read));
        (self.child.wait().unwrap(), stdout, stderr)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let mut size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointers are to values of this frame, and those that may be null are.
    let failed = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null_mut(), &raw mut size) };
    assert_eq!(failed, 0, "no terminal: {}", std::io::Error::last_os_error());
    // The program is not to hold the other end, or nobody would hear of its end.
    // SAFETY: both descriptors are new and nobody else's.
    unsafe {
        libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(slave, libc::F_SETFD, libc::FD_CLOEXEC);
        (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}
