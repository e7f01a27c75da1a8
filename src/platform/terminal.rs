//! The user's terminal: how the line editor keeps it while stdout is a file or a pipe.

use std::fs::File;
use std::io;

/// Puts a terminal in the place of stdout where stdout is none, for libraries that draw on nothing else, and yields the former
/// stdout. The terminal is that of stderr, else that of stdin; without either, drawings go to stderr.
///
/// # Errors
/// Those of the system, where it has no descriptor left.
#[cfg(unix)]
pub(crate) fn take_stdout_apart() -> io::Result<Option<File>> {
    use std::io::{IsTerminal, Write};
    use std::os::fd::AsFd;
    if io::stdout().is_terminal() {
        return Ok(None);
    }
    let mut stdout = io::stdout().lock();
    stdout.flush()?;
    let former = stdout.as_fd().try_clone_to_owned()?;
    let stdin = io::stdin();
    let is_drawn_on_stdin = !io::stderr().is_terminal() && stdin.is_terminal() && is_writable(stdin.as_fd());
    let drawn_on = if is_drawn_on_stdin { stdin.as_fd().try_clone_to_owned()? } else { io::stderr().as_fd().try_clone_to_owned()? };
    rustix::stdio::dup2_stdout(drawn_on)?;
    Ok(Some(former.into()))
}

#[cfg(unix)]
fn is_writable(stream: std::os::fd::BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_getfl(stream).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::RDWR))
}

/// As above; here the console is opened by its own name.
#[cfg(not(unix))]
pub(crate) fn take_stdout_apart() -> io::Result<Option<File>> {
    Ok(None)
}
