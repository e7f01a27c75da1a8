//! The line editor: prompts, blocks of several lines, and the history of earlier chats in a file that nobody else reads.

use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use super::commands::{BLOCK, opens_block};
use crate::cli::terminal::note;
use crate::error::{Error, Result};
use crate::platform;

const PROMPT: &str = ">>> ";
const CONTINUED: &str = "... ";
/// Lines that are kept, and the longest of them: the file stays below a few megabytes.
const LINES_MAX: usize = 1000;
const LINE_BYTES_MAX: usize = 4096;

/// Reads what the user types.
pub(super) struct LineEditor {
    editor: Editor<(), FileHistory>,
    /// Where lines are kept, once that is known and has not failed.
    file: Option<PathBuf>,
}

impl LineEditor {
    /// With the lines of earlier chats in reach, unless `is_kept` forbids to keep any.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no terminal to edit on.
    pub(super) fn new(is_kept: bool) -> Result<LineEditor> {
        let config = Config::builder().max_history_size(LINES_MAX).map_err(terminal_failed)?.history_ignore_space(true).build();
        let history = FileHistory::with_config(&config);
        let editor = Editor::with_history(config, history).map_err(terminal_failed)?;
        let mut editor = LineEditor { editor, file: None };
        if is_kept {
            editor.file = platform::state_folder().map(|folder| folder.join("history"));
            editor.load();
        }
        Ok(editor)
    }

    /// What was typed up to its end, several lines where a block holds them together. `None` at the end of input.
    ///
    /// # Errors
    /// [`Error::Io`] where the terminal fails.
    pub(super) fn read(&mut self) -> Result<Option<String>> {
        loop {
            let mut text = match self.editor.readline(PROMPT) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    note("Ctrl-D or /bye ends the chat\n");
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(terminal_failed(error)),
            };
            if !opens_block(&text) {
                return Ok(Some(text));
            }
            loop {
                let line = match self.editor.readline(CONTINUED) {
                    Ok(line) => line,
                    Err(ReadlineError::Interrupted) => break,
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(terminal_failed(error)),
                };
                text.push('\n');
                text.push_str(line.trim_end_matches('\r'));
                if line.trim_end().ends_with(BLOCK) {
                    return Ok(Some(text));
                }
            }
        }
    }

    /// Keeps `text` within reach, and where `on_disk` for later chats too.
    pub(super) fn remember(&mut self, text: &str, on_disk: bool) {
        if text.len() > LINE_BYTES_MAX {
            return;
        }
        let is_new = self.editor.add_history_entry(text).unwrap_or(false);
        if let Some(file) = self.file.as_deref().filter(|_| is_new && on_disk)
            && let Err(reason) = keep(&mut self.editor, file)
        {
            tracing::warn!("lines are not kept for later chats: {}: {reason}", file.display());
            self.file = None;
        }
    }

    /// What cannot be read is said, and left as it is.
    fn load(&mut self) {
        let Some(file) = self.file.as_deref().filter(|file| file.exists()) else { return };
        if let Err(reason) = self.editor.load_history(file) {
            tracing::warn!("lines of earlier chats cannot be read: {}: {reason}", file.display());
            self.file = None;
        }
    }
}

fn keep(editor: &mut Editor<(), FileHistory>, file: &Path) -> rustyline::Result<()> {
    if let Some(folder) = file.parent() {
        platform::create_private_folder(folder)?;
    }
    editor.append_history(file)
}

fn terminal_failed(error: ReadlineError) -> Error {
    Error::io("read from", "the terminal", std::io::Error::other(error))
}
