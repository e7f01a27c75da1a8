//! Where answers go: to stdout as they come. A terminal wraps words there, and shows control characters instead of obeying them.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IsTerminal, Write};

use crate::cli::terminal::{Stream, harmless};
use crate::cli::wrap::Wrap;
use crate::error::{Error, Result};
use crate::platform;

/// Stdout, whatever a line editor draws on.
pub(super) struct Output {
    /// Stdout as the program got it, where a terminal took its place.
    apart: Option<File>,
    is_terminal: bool,
    wrap: Option<Wrap>,
}

impl Output {
    /// Stdout as it is.
    pub(super) fn stdout() -> Output {
        Output { apart: None, is_terminal: io::stdout().is_terminal(), wrap: None }
    }

    /// Leaves a line editor a terminal in the place of stdout.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub(super) fn beside_editor() -> Result<Output> {
        let apart = platform::take_stdout_apart().map_err(|source| Error::io("set apart", "stdout", source))?;
        Ok(Output { is_terminal: apart.is_none() && io::stdout().is_terminal(), apart, wrap: None })
    }

    /// Begins an answer, in the width that the terminal has now.
    pub(super) fn begin(&mut self, word_wrap: bool) {
        let columns = Stream::Stdout.width().filter(|_| word_wrap && self.is_terminal);
        self.wrap = columns.and_then(Wrap::new);
    }

    /// Writes a part of an answer at once.
    ///
    /// # Errors
    /// [`Error::Io`] naming stdout.
    pub(super) fn write(&mut self, text: &str) -> Result<()> {
        let text = if self.is_terminal { harmless(text) } else { Cow::Borrowed(text) };
        let text = match &mut self.wrap {
            Some(wrap) => Cow::Owned(wrap.push(&text)),
            None => text,
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
