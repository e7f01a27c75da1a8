//! Where the prompt and the system message come from: a flag, words, a file, and a pipe.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::cli::args::RunArgs;
use crate::cli::terminal::note;
use crate::error::{Error, Result};
use crate::units::Bytes;

/// The longest text that is read from a pipe or a file.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// How long a pipe beside a prompt may stay silent before a note says what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The prompt; `None` where the user sits at a terminal and gave none, which starts a chat. A pipe's text goes before the prompt
/// that is given beside it, as ollama joins them.
///
/// # Errors
/// [`Error::InvalidArgument`] where it is given twice or empty, [`Error::Io`] where it cannot be read or is no UTF-8.
pub fn read_prompt(args: &RunArgs) -> Result<Option<String>> {
    let stdin = io::stdin();
    read_prompt_beside(args, (!stdin.is_terminal()).then_some(stdin))
}

/// How a prompt is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Words,
    Option,
}

/// As [`read_prompt`]; `pipe` is stdin where it is no terminal.
fn read_prompt_beside(args: &RunArgs, pipe: Option<impl Read + Send + 'static>) -> Result<Option<String>> {
    let invalid = |reason: &str| Error::InvalidArgument { option: "--prompt".into(), reason: reason.into() };
    let words = args.words().1;
    let given = match (words.is_empty(), args.generation.prompt.as_deref(), args.generation.file.as_deref()) {
        (true, None, None) => None,
        (false, None, None) => {
            let not_text = || invalid("the prompt is no UTF-8; give it in a file with -f, in UTF-8");
            Some((words.join(OsStr::new(" ")).into_string().map_err(|_| not_text())?, Way::Words))
        }
        (true, Some(text), None) => Some((text.to_owned(), Way::Option)),
        (true, None, Some(path)) => Some((read_file(path)?, Way::Option)),
        _ => return Err(invalid("the prompt is given twice; give PROMPT, -p or -f, and only one of them")),
    };
    let text = match (given, pipe) {
        (None, None) => return Ok(None),
        (None, Some(pipe)) => read_limited(pipe, "stdin")?,
        (Some((text, _)), None) if text == "-" => read_limited(io::stdin().lock(), "stdin")?,
        (Some((text, _)), None) => text,
        (Some((text, _)), Some(pipe)) if text == "-" => read_limited(pipe, "stdin")?,
        (Some((text, way)), Some(pipe)) => joined(Beside::read(pipe).text(way, args.quiet)?, text, args.quiet),
    };
    if text.is_empty() {
        return Err(invalid("the prompt is empty; give -p TEXT, -f FILE or a pipe on stdin"));
    }
    Ok(Some(text))
}

/// A pipe's text followed by the prompt, with a note about that on stderr.
fn joined(beside: String, prompt: String, quiet: bool) -> String {
    if beside.trim().is_empty() {
        return prompt;
    }
    if !quiet {
        note(&format!("the text on stdin ({}) goes before the prompt\n", Bytes(beside.len() as u64)));
    }
    format!("{beside}\n\n{prompt}")
}

/// A pipe that is read to its end by a thread of its own, which first signals that something has come.
struct Beside {
    life: Receiver<()>,
    text: Receiver<Result<String>>,
}

impl Beside {
    fn read(mut pipe: impl Read + Send + 'static) -> Beside {
        let ((lives, life), (sender, text)) = (channel(), channel());
        std::thread::spawn(move || {
            let mut first = [0; 1];
            let outcome = pipe.read(&mut first);
            // Nobody may be listening any more.
            let _ = lives.send(());
            let text = match outcome {
                Ok(n_read) => read_limited(first[..n_read].chain(pipe), "stdin"),
                Err(source) => Err(Error::io("read", "stdin", source)),
            };
            let _ = sender.send(text);
        });
        Beside { life, text }
    }

    /// The text. Words are ollama's way, which reads a pipe to its end; programs that give llama.cpp's `-p` may leave a pipe open
    /// for ever, so that beside an option only a pipe counts that says something in time.
    fn text(self, way: Way, quiet: bool) -> Result<String> {
        if self.life.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let word = match way {
                Way::Words => "waiting for the end of stdin, whose text goes before the prompt; < /dev/null where there is none\n",
                Way::Option => "stdin is open and says nothing: the prompt goes without it\n",
            };
            if !quiet {
                note(word);
            }
            if way == Way::Option {
                return Ok(String::new());
            }
        }
        self.text.recv().unwrap_or_else(|_| Ok(String::new()))
    }
}

/// The system message, where one is given.
///
/// # Errors
/// As [`read_prompt`].
pub fn read_system(args: &RunArgs) -> Result<Option<String>> {
    match (&args.generation.system, &args.generation.system_file) {
        (Some(_), Some(_)) => Err(Error::InvalidArgument {
            option: "--system".into(),
            reason: "the system message is given twice; give -sys or -sysf, and only one of them".into(),
        }),
        (None, Some(path)) => read_file(path).map(Some),
        (text, None) => Ok(text.clone()),
    }
}

/// The text of a file.
///
/// # Errors
/// [`Error::Io`] where it cannot be read or is no UTF-8.
pub fn read_file(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|source| Error::io("open", &name, source))?;
    read_limited(file, &name)
}

/// Reads UTF-8 text, without the line break that editors and `echo` leave at its end.
///
/// # Errors
/// As [`read_file`].
pub fn read_limited(reader: impl Read, name: &str) -> Result<String> {
    let mut text = String::new();
    reader.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text).map_err(|source| Error::io("read", name, source))?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        return Err(Error::invalid_file(name, format!("is longer than a prompt may be ({MAX_TEXT_BYTES} bytes)")));
    }
    let end = text.strip_suffix('\n').map_or(text.len(), |rest| rest.strip_suffix('\r').unwrap_or(rest).len());
    text.truncate(end);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Run {
        #[command(flatten)]
        args: RunArgs,
    }

    fn beside(arguments: &[&str], pipe: Option<&'static str>) -> Result<Option<String>> {
        read_prompt_beside(&Run::parse_from(["run"].iter().chain(arguments)).args, pipe.map(str::as_bytes))
    }

    fn prompt(arguments: &[&str]) -> Result<Option<String>> {
        beside(arguments, None)
    }

    #[test]
    fn prompts_come_from_one_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.txt");
        std::fs::write(&path, "two\nlines\r\n").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(prompt(&["m", "hello"]).unwrap().as_deref(), Some("hello"));
        assert_eq!(prompt(&["-m", "m", "hello"]).unwrap().as_deref(), Some("hello"));
        assert_eq!(prompt(&["m", "why", "is", "the", "sky", "blue?"]).unwrap().as_deref(), Some("why is the sky blue?"));
        assert_eq!(prompt(&["-m", "m", "why", "not"]).unwrap().as_deref(), Some("why not"));
        assert_eq!(prompt(&["m", "-p", "hello\n"]).unwrap().as_deref(), Some("hello\n"));
        assert_eq!(prompt(&["m", "-f", path]).unwrap().as_deref(), Some("two\nlines"));
        assert_eq!(prompt(&["m"]).unwrap(), None);
        assert_eq!(prompt(&["m", "-p", "a", "-f", path]).unwrap_err().exit_code(), 2);
        assert_eq!(prompt(&["m", "a", "-p", "b"]).unwrap_err().exit_code(), 2);
        assert_eq!(prompt(&["m", "-p", ""]).unwrap_err().exit_code(), 2);
        assert_eq!(prompt(&["m", "-f", "/no/such/file"]).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn a_pipes_text_goes_before_the_prompt() {
        for (arguments, pipe, expected) in [
            (&["m"][..], "text\n", "text"),
            (&["m", "-"], "text\n", "text"),
            (&["m", "-p", "-"], "text\n", "text"),
            (&["m", "Summarise"], "text\n", "text\n\nSummarise"),
            (&["m", "Summarise", "this"], "text", "text\n\nSummarise this"),
            (&["m", "-p", "Summarise"], "text\n", "text\n\nSummarise"),
            (&["m", "-p", "Summarise"], "", "Summarise"),
            (&["m", "Summarise"], "\n", "Summarise"),
        ] {
            assert_eq!(beside(arguments, Some(pipe)).unwrap().as_deref(), Some(expected), "{arguments:?} {pipe:?}");
        }
        assert_eq!(beside(&["m"], Some("")).unwrap_err().exit_code(), 2);
    }

    /// A pipe that never says anything and never ends.
    struct Silent(std::sync::mpsc::Receiver<()>);

    impl Read for Silent {
        fn read(&mut self, _bytes: &mut [u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(0)
        }
    }

    #[test]
    fn a_silent_pipe_does_not_hold_up_a_prompt_of_an_option() {
        let (_open, silence) = std::sync::mpsc::channel();
        let args = Run::parse_from(["run", "m", "-p", "hello"]).args;
        assert_eq!(read_prompt_beside(&args, Some(Silent(silence))).unwrap().as_deref(), Some("hello"));
    }

    #[test]
    fn text_that_is_none_is_refused() {
        assert!(matches!(read_limited(&b"\xff\xfe"[..], "stdin"), Err(Error::Io { .. })));
        assert_eq!(read_limited(&b"a\n\n"[..], "stdin").unwrap(), "a\n");
    }
}
