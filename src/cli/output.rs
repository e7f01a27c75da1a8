//! Where answers go: to stdout as they come. A terminal wraps words there, shows control characters instead of obeying them, and has what
//! the model thinks before its answer dimmed; where stdout is no terminal, that goes to stderr.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IsTerminal, Write};

use crate::cli::terminal::{Stream, harmless};
use crate::cli::wrap::Wrap;
use crate::error::{Error, Result};
use crate::platform;
use crate::text::Segment;

/// Stdout, whatever a line editor draws on.
pub(super) struct Output {
    /// Stdout as the program got it, where a terminal took its place.
    apart: Option<File>,
    is_terminal: bool,
    wrap: Option<Wrap>,
    /// Whether what a model thinks is printed at all.
    shows_reasoning: bool,
    /// Whether the last that was written is reasoning.
    is_reasoning: bool,
}

/// Around reasoning where there is no dimmed text, in ollama's words.
const REASONING_BEGINS: &str = "Thinking...\n";
const REASONING_ENDS: &str = "\n...done thinking.\n\n";

impl Output {
    /// Stdout as it is.
    pub(super) fn stdout(shows_reasoning: bool) -> Output {
        Output { apart: None, is_terminal: io::stdout().is_terminal(), wrap: None, shows_reasoning, is_reasoning: false }
    }

    /// Leaves a line editor a terminal in the place of stdout.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub(super) fn beside_editor(shows_reasoning: bool) -> Result<Output> {
        let apart = platform::take_stdout_apart().map_err(|source| Error::io("set apart", "stdout", source))?;
        let is_terminal = apart.is_none() && io::stdout().is_terminal();
        Ok(Output { apart, is_terminal, wrap: None, shows_reasoning, is_reasoning: false })
    }

    /// Begins an answer, in the width that the terminal has now.
    pub(super) fn begin(&mut self, word_wrap: bool) {
        let columns = Stream::Stdout.width().filter(|_| word_wrap && self.is_terminal);
        self.wrap = columns.and_then(Wrap::new);
        self.is_reasoning = false;
    }

    /// Writes a part of what a model writes at once.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub(super) fn write_segment(&mut self, segment: &Segment) -> Result<()> {
        match segment {
            Segment::Reasoning(_) if !self.shows_reasoning => Ok(()),
            Segment::Reasoning(text) => {
                let begins = !std::mem::replace(&mut self.is_reasoning, true);
                if begins && !self.dims() {
                    self.write_reasoning(REASONING_BEGINS)?;
                }
                self.write_reasoning(text)
            }
            Segment::Answer(text) => {
                self.end_reasoning()?;
                self.write(text)
            }
        }
    }

    fn end_reasoning(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_reasoning) {
            return Ok(());
        }
        self.write_reasoning(if self.dims() { "\n\n" } else { REASONING_ENDS })
    }

    /// Where reasoning goes.
    fn reasoning_stream(&self) -> Stream {
        if self.is_terminal { Stream::Stdout } else { Stream::Stderr }
    }

    fn dims(&self) -> bool {
        self.reasoning_stream().has_colour()
    }

    fn write_reasoning(&mut self, text: &str) -> Result<()> {
        let dims = self.dims();
        if self.reasoning_stream() == Stream::Stderr {
            // As every note, it is lost where nobody reads them.
            let mut stderr = io::stderr().lock();
            let text = if io::stderr().is_terminal() { harmless(text) } else { Cow::Borrowed(text) };
            let _ = stderr.write_all(dimmed(&text, dims).as_bytes());
            return Ok(());
        }
        let text = self.laid_out(text);
        self.write_out(&dimmed(&text, dims))
    }

    /// Writes a part of an answer at once.
    ///
    /// # Errors
    /// [`Error::Io`] naming stdout.
    pub(super) fn write(&mut self, text: &str) -> Result<()> {
        let text = self.laid_out(text);
        self.write_out(&text)
    }

    /// `text` as the terminal gets it.
    fn laid_out(&mut self, text: &str) -> String {
        let text = if self.is_terminal { harmless(text) } else { Cow::Borrowed(text) };
        match &mut self.wrap {
            Some(wrap) => wrap.push(&text),
            None => text.into_owned(),
        }
    }

    fn write_out(&mut self, text: &str) -> Result<()> {
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
        if std::mem::take(&mut self.is_reasoning) && self.reasoning_stream() == Stream::Stderr {
            self.write_reasoning("\n")?;
        }
        self.write("\n")
    }
}

/// `text`, dimmed by itself, so that nothing stays dimmed where an answer is interrupted.
fn dimmed(text: &str, dims: bool) -> Cow<'_, str> {
    if dims && !text.is_empty() { Cow::Owned(format!("\u{1b}[2m{text}\u{1b}[22m")) } else { Cow::Borrowed(text) }
}
