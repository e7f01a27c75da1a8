//! The chat: a prompt line, history, `/bye`, `/clear`, `/stats`. Ctrl-C stops the answer, not the program.

use std::io::Write;
use std::sync::atomic::Ordering;

use rustyline::error::ReadlineError;

use crate::cli::run::{Settings, answer, no_tokenizer};
use crate::cli::statistics::Statistics;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::text::{ChatMessage, GenerationPrompt, Special};

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
        eprintln!("{HELP}");
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
            "/help" | "/?" => eprintln!("{HELP}"),
            "/clear" => history.clear(),
            "/stats" => match &last {
                Some(statistics) => eprint!("{}\n{}", statistics.line(settings.seed), statistics.memory_lines()),
                None => eprintln!("nothing was answered yet"),
            },
            command if command.starts_with('/') => eprintln!("`{command}` is no command; {HELP}"),
            prompt => {
                let _ = editor.add_history_entry(prompt);
                history.push(ChatMessage::new("user", prompt));
                settings.interrupted.store(false, Ordering::Relaxed);
                let tokens = conversation(session.engine(), settings, system, &history)?;
                let mut stdout = std::io::stdout().lock();
                let mut write = |text: &str| {
                    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
                    written.map_err(|source| Error::io("write to", "stdout", source))
                };
                match pollster::block_on(answer(&mut session, settings, &tokens, &mut write)) {
                    Ok(answer) => {
                        write("\n")?;
                        history.push(ChatMessage::new("assistant", answer.text));
                        last = Some(answer.statistics);
                    }
                    Err(error @ Error::ContextFull { .. }) => {
                        history.pop();
                        eprintln!("error: {error}; /clear begins anew");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// The whole conversation as tokens; what the cache holds of it is not computed again.
fn conversation(engine: &Engine, settings: &Settings, system: Option<&str>, history: &[ChatMessage]) -> Result<Vec<u32>> {
    let tokenizer = engine.tokenizer().ok_or_else(|| no_tokenizer(engine))?;
    match engine.chat_template() {
        Some(template) if !settings.raw => {
            let system = system.map(|system| ChatMessage::new("system", system));
            let messages: Vec<ChatMessage> = system.into_iter().chain(history.iter().cloned()).collect();
            tokenizer.encode(&template.render(&messages, GenerationPrompt::Add)?, Special::Leave)
        }
        _ => {
            let text: Vec<&str> = history.iter().map(|message| message.content.as_str()).collect();
            tokenizer.encode(&text.join("\n"), Special::Add)
        }
    }
}

fn terminal_failed(error: ReadlineError) -> Error {
    Error::io("read from", "the terminal", std::io::Error::other(error))
}
