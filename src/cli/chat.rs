//! The chat: a prompt line, history, `/bye`, `/clear`, `/stats`. Ctrl-C stops the answer, not the program.

use std::io::Write;
use std::sync::atomic::Ordering;

use rustyline::error::ReadlineError;

use crate::cli::run::{Settings, answer, encode_messages};
use crate::cli::statistics::Statistics;
use crate::cli::terminal::note;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::text::ChatMessage;

const HELP: &str = "/bye ends, /clear forgets the conversation, /stats shows what the last answer cost, /help this; Ctrl-C stops an answer";

/// Reads prompts until `/bye` or the end of input.
///
/// # Errors
/// Those of the engine; a full context ends the answer, not the chat.
pub(super) fn run(engine: &mut Engine, settings: &Settings, system: Option<&str>, quiet: bool) -> Result<()> {
    let mut editor = rustyline::DefaultEditor::new().map_err(terminal_failed)?;
    let mut history: Vec<ChatMessage> = Vec::new();
    let mut last: Option<Statistics> = None;
    let mut session = engine.session();
    if !quiet {
        note(&format!("{HELP}\n"));
    }
    loop {
        let line = match editor.readline(">>> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(terminal_failed(error)),
        };
        match line.trim() {
            "" => continue,
            "/bye" | "/exit" | "/quit" => return Ok(()),
            "/help" | "/?" => note(&format!("{HELP}\n")),
            "/clear" => history.clear(),
            "/stats" => match &last {
                Some(statistics) => note(&format!("{}\n{}", statistics.line(settings.seed), statistics.memory_lines())),
                None => note("nothing was answered yet\n"),
            },
            command if command.starts_with('/') => note(&format!("`{command}` is no command; {HELP}\n")),
            prompt => {
                let _ = editor.add_history_entry(prompt);
                history.push(ChatMessage::new("user", prompt));
                settings.interrupted.store(false, Ordering::Relaxed);
                let tokens = match conversation(session.engine(), settings, system, &history) {
                    Ok(tokens) => tokens,
                    // The template or the tokenizer refuses this message; the chat goes on without it.
                    Err(error @ Error::Text { .. }) => {
                        history.pop();
                        note(&format!("error: {error}\n"));
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let mut stdout = std::io::stdout().lock();
                let mut write = |text: &str| {
                    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
                    written.map_err(|source| Error::io("write to", "stdout", source))
                };
                match pollster::block_on(answer(&mut session, settings, &tokens, &mut write)) {
                    Ok(answer) => {
                        write("\n")?;
                        if let Some(cut) = answer.cut.filter(|_| !quiet) {
                            note(&format!("{cut}\n"));
                        }
                        history.push(ChatMessage::new("assistant", answer.text));
                        last = Some(answer.statistics);
                    }
                    Err(error @ Error::ContextFull { .. }) => {
                        history.pop();
                        note(&format!("error: {error}; /clear begins anew\n"));
                    }
                    // Stopped before the first word: the question counts as not asked.
                    Err(Error::Interrupted) => {
                        history.pop();
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// The whole conversation as tokens; what the cache holds of it is not computed again.
fn conversation(engine: &Engine, settings: &Settings, system: Option<&str>, history: &[ChatMessage]) -> Result<Vec<u32>> {
    let system = system.map(|system| ChatMessage::new("system", system));
    let messages: Vec<ChatMessage> = system.into_iter().chain(history.iter().cloned()).collect();
    encode_messages(engine, settings, &messages)
}

fn terminal_failed(error: ReadlineError) -> Error {
    Error::io("read from", "the terminal", std::io::Error::other(error))
}
