//! Where answers go: to stdout as they come, with words wrapped where that is a terminal.

use std::fs::File;
use std::io::{self, Write};

use super::wrap::Wrap;
use crate::cli::terminal::Stream;
use crate::error::{Error, Result};
use crate::platform;

/// Stdout, whatever the line editor draws on.
pub(super) struct Output {
    /// Stdout as the program got it, where a terminal took its place.
    apart: Option<File>,
    wrap: Option<Wrap>,
}

impl Output {
    /// Leaves the line editor a terminal in the place of stdout.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub(super) fn open() -> Result<Output> {
        let apart = platform::take_stdout_apart().map_err(|source| Error::io("set apart", "stdout", source))?;
        Ok(Output { apart, wrap: None })
    }

    /// Begins an answer, in the width that the terminal has now.
    pub(super) fn begin(&mut self, word_wrap: bool) {
        let columns = Stream::Stdout.width().filter(|_| word_wrap && self.apart.is_none());
        self.wrap = columns.and_then(Wrap::new);
    }

    /// Writes a part of an answer at once.
    ///
    /// # Errors
    /// [`Error::Io`] naming stdout.
    pub(super) fn write(&mut self, text: &str) -> Result<()> {
        let text = match &mut self.wrap {
            Some(wrap) => wrap.push(text),
            None => text.to_owned(),
        };
        let written = match &mut self.apart {
            Some(file) => file.write_all(text.as_bytes()),
            None => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
            }
        };
        written.map_err(|source| Error::io("write to", "stdout", source))
    }

    /// Ends the answer's last line.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub(super) fn end(&mut self) -> Result<()> {
        self.write("\n")
    }
}
