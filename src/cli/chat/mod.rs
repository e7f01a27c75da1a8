//! The chat: what the user types is a message or a command. Ctrl-C stops the answer, not the program.

mod commands;
mod conversation;
mod editor;
mod settings;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::cli::output::Output;
use crate::cli::run::{Room, Settings, answer, encode_messages, warn_of_deaf_template};
use crate::cli::statistics::Statistics;
use crate::cli::terminal::note;
use crate::cli::words::text_of;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::platform;
use crate::session::Session;
use crate::text::{ChatMessage, Segment};
use commands::Input;
use conversation::Conversation;
use editor::LineEditor;
use settings::Manners;

/// How a chat begins.
pub(super) struct ChatOptions {
    /// The system message.
    pub(super) system: Option<String>,
    /// Beside the answers, only errors are printed.
    pub(super) quiet: bool,
    /// What the model thinks before an answer is printed, too.
    pub(super) shows_reasoning: bool,
    /// Lines are kept for later chats.
    pub(super) history: bool,
    /// Where the context is full, the oldest turns leave it.
    pub(super) context_shift: bool,
}

struct Chat<'a> {
    session: Session<'a>,
    settings: Settings,
    manners: Manners,
    conversation: Conversation,
    output: Output,
    context_shift: bool,
    quiet: bool,
    last: Option<(Statistics, u64)>,
    /// Answers to the same question, which a given seed would repeat.
    n_again: u64,
}

/// Reads messages and commands until `/bye` or the end of input, and returns the session.
///
/// # Errors
/// Those of the engine and of the terminal. What is wrong with a message or a command is reported, and the chat goes on.
pub(super) fn run<'a>(session: Session<'a>, settings: Settings, options: ChatOptions) -> Result<Session<'a>> {
    let output = Output::beside_editor(options.shows_reasoning)?;
    let mut editor = LineEditor::new(options.history)?;
    let mut chat = Chat {
        session,
        settings,
        manners: Manners { history: options.history, word_wrap: true, verbose: false },
        conversation: Conversation::new(options.system.filter(|text| !text.is_empty())),
        output,
        context_shift: options.context_shift,
        quiet: options.quiet,
        last: None,
        n_again: 0,
    };
    if !options.quiet {
        note("Type a message; /help lists the commands, /bye ends.\n");
    }
    while let Some(text) = editor.read()? {
        let input = commands::parse(&text);
        if input == Input::Bye {
            break;
        }
        if input != Input::Nothing {
            editor.remember(text.trim_end(), chat.manners.history);
            chat.obey(input)?;
        }
    }
    Ok(chat.session)
}

impl Chat<'_> {
    fn obey(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Nothing | Input::Bye => {}
            Input::Message(text) => {
                self.n_again = 0;
                let mut asked = self.conversation.clone();
                asked.ask(&text);
                return self.reply(asked);
            }
            Input::Regenerate => {
                let mut asked = self.conversation.clone();
                if !asked.take_back_answer() {
                    note("nothing was asked yet\n");
                    return Ok(());
                }
                self.n_again += 1;
                return self.reply(asked);
            }
            Input::Help => note(&commands::help()),
            Input::Clear => self.conversation.clear(),
            Input::Statistics => self.show_statistics(),
            Input::System(None) => note(&self.system_line()),
            Input::System(Some(text)) => {
                self.conversation.system = Some(text).filter(|text| text != "\"\"" && !text.is_empty());
                note(&self.system_line());
            }
            Input::Set(None) => note(&settings::shown(&self.settings, self.manners)),
            Input::Set(Some((name, value))) => {
                let defaults = self.session.engine().defaults();
                report(settings::set(&mut self.settings, &mut self.manners, defaults, &name, &value), |text| text);
                if let Some(thinking) = self.settings.thinking.filter(|_| name.contains("think")) {
                    warn_of_deaf_template(self.session.engine().text(), self.settings.raw, thinking);
                }
            }
            Input::Show(what) => self.show(&what),
            Input::Save(file) => {
                let n_messages = self.conversation.n_messages();
                report(self.conversation.save(&path_of(&file)), |()| format!("{n_messages} messages are in {file}\n"));
            }
            Input::Load(file) => {
                let loaded = Conversation::load(&path_of(&file)).map(|loaded| self.conversation = loaded);
                let n_messages = self.conversation.n_messages();
                report(loaded, |()| format!("{n_messages} messages of {file} are loaded\n"));
            }
            Input::Refused(reason) => note(&format!("{reason}\n")),
        }
        Ok(())
    }

    /// Answers the last question of `asked`, which then is the conversation. Where it cannot be asked, all stays as it was.
    fn reply(&mut self, mut asked: Conversation) -> Result<()> {
        self.settings.interrupted.store(false, Ordering::Relaxed);
        let context = self.session.engine().plan().ctx_size;
        let mut n_left = 0;
        let outcome = self.answer(&mut asked, &mut n_left);
        match outcome {
            Ok(answer) => {
                self.output.end()?;
                if let Some(cut) = answer.cut.as_ref().filter(|_| !self.quiet) {
                    note(&format!("{cut}\n"));
                }
                note_shift(n_left, context);
                asked.answer(&answer.text, self.reasoning_of(&answer));
                self.conversation = asked;
                self.last = Some((answer.statistics, answer.seed));
                if self.manners.verbose {
                    self.show_statistics();
                }
            }
            // Stopped before the first word: the question counts as not asked.
            Err(Error::Interrupted) => {}
            Err(error @ Error::ContextFull { .. }) => {
                note(&format!("error: {}; the conversation is as it was (/clear begins anew)\n", text_of(&error)))
            }
            // The template or the tokenizer refuses this message; the chat goes on without it.
            Err(error @ (Error::Text { .. } | Error::InvalidArgument { .. })) => note(&format!("error: {}\n", text_of(&error))),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Generates the answer; `n_left` counts the turns that leave the context while it comes.
    fn answer(&mut self, asked: &mut Conversation, n_left: &mut usize) -> Result<crate::cli::run::Answer> {
        let Chat { session, settings, output, manners, context_shift, .. } = self;
        let context = session.engine().plan().ctx_size;
        let encode = |engine: &Engine, messages: &[ChatMessage]| encode_messages(engine.text(), settings, messages);
        // A quarter is free after a shift, so that the kept text is not read anew at every answer.
        let (room, comfortable) = match context_shift {
            true => (context - settings.generate.max_tokens.unwrap_or(context).min(context / 16), context - context / 4),
            false => (usize::MAX, usize::MAX),
        };
        let fitted = asked.fit(room, comfortable, &|messages| encode(session.engine(), messages))?;
        if fitted.tokens.len() <= context {
            note_shift(fitted.n_turns_left, context);
        }
        let mut shift = |engine: &Engine, n_generated: usize| {
            if !*context_shift {
                return Ok(None);
            }
            let room = comfortable.saturating_sub(n_generated);
            let mut shorter = asked.clone();
            let fitted = shorter.fit(room, room, &|messages| encode(engine, messages))?;
            if fitted.n_turns_left == 0 || fitted.tokens.len() + n_generated >= context {
                return Ok(None);
            }
            *asked = shorter;
            *n_left += fitted.n_turns_left;
            Ok(Some(Room::Prompt(fitted.tokens)))
        };
        output.begin(manners.word_wrap);
        let seed = settings.seed_of_answer(self.n_again);
        let mut write = |segment: &Segment| output.write_segment(segment);
        pollster::block_on(answer(session, settings, &fitted.tokens, seed, &mut write, &mut shift))
    }

    /// The field in which templates look for what was thought, with it.
    fn reasoning_of<'t>(&self, answer: &'t crate::cli::run::Answer) -> Option<(&'static str, &'t str)> {
        let format = self.session.engine().text().reasoning_format()?;
        (!answer.reasoning.is_empty()).then_some((format.message_field(), answer.reasoning.as_str()))
    }

    fn show_statistics(&self) {
        match &self.last {
            Some((statistics, seed)) => note(&format!("{}\n{}", statistics.line(*seed), statistics.memory_lines())),
            None => note("nothing was answered yet\n"),
        }
    }

    fn show(&self, what: &str) {
        let engine = self.session.engine();
        match what {
            "" | "info" => {
                note(&engine.prepared().summary());
                let (n_tokens, n_messages) = (self.session.tokens().len(), self.conversation.n_messages());
                note(&format!("  {n_messages} messages, {n_tokens} of {} tokens of context\n", engine.plan().ctx_size));
            }
            "parameters" => note(&settings::shown(&self.settings, self.manners)),
            "system" => note(&self.system_line()),
            "template" => match engine.chat_template() {
                Some(template) => note(&format!("{}\n", template.source())),
                None => note("the model has no chat template\n"),
            },
            other => note(&format!("/show {other}: there is info, parameters, system and template\n")),
        }
    }

    fn system_line(&self) -> String {
        self.conversation.system.as_ref().map_or_else(|| "no system message\n".to_owned(), |text| format!("system message: {text}\n"))
    }
}

/// A file's path as it is typed where no shell reads it first: `~` and `$NAME` have their meaning.
fn path_of(file: &str) -> PathBuf {
    platform::expanded(OsStr::new(file), dirs::home_dir().as_deref(), &|name| std::env::var_os(name))
}

/// Prints the outcome of a command.
fn report<T>(outcome: Result<T>, text: impl FnOnce(T) -> String) {
    match outcome {
        Ok(done) => note(&text(done)),
        Err(error) => note(&format!("error: {}\n", text_of(&error))),
    }
}

fn note_shift(n_turns: usize, context: usize) {
    match n_turns {
        0 => {}
        1 => note(&format!("the context of {context} tokens is full: the oldest turn left it (/clear begins anew)\n")),
        n => note(&format!("the context of {context} tokens is full: the {n} oldest turns left it (/clear begins anew)\n")),
    }
}
