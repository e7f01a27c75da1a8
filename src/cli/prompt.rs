//! Where the prompt and the system message come from: a flag, a word, a file, or a pipe.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use crate::cli::args::RunArgs;
use crate::error::{Error, Result};

/// The longest text that is read from a pipe or a file.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// The prompt; `None` where the user sits at a terminal and gave none, which starts a chat.
///
/// # Errors
/// [`Error::InvalidArgument`] where it is given twice or empty, [`Error::Io`] where it cannot be read or is no UTF-8.
pub fn read_prompt(args: &RunArgs) -> Result<Option<String>> {
    let invalid = |fault: &str| Error::InvalidArgument { option: "--prompt".into(), fault: fault.into() };
    let not_text = || invalid("the prompt is no UTF-8; give it in a file with -f, in UTF-8");
    let word = args.words().1.map(|word| word.to_str().ok_or_else(not_text)).transpose()?;
    let text = match (word, args.generation.prompt.as_deref(), args.generation.file.as_deref()) {
        (None, None, None) if io::stdin().is_terminal() => return Ok(None),
        (None, None, None) | (Some("-"), None, None) | (None, Some("-"), None) => read_limited(io::stdin().lock(), "stdin")?,
        (Some(text), None, None) | (None, Some(text), None) => text.to_owned(),
        (None, None, Some(path)) => read_file(path)?,
        _ => return Err(invalid("the prompt is given twice; give PROMPT, -p or -f, and only one of them")),
    };
    if text.is_empty() {
        return Err(invalid("the prompt is empty; give -p TEXT, -f FILE or a pipe on stdin"));
    }
    Ok(Some(text))
}

/// The system message, where one is given.
///
/// # Errors
/// As [`read_prompt`].
pub fn read_system(args: &RunArgs) -> Result<Option<String>> {
    match (&args.generation.system, &args.generation.system_file) {
        (Some(_), Some(_)) => Err(Error::InvalidArgument {
            option: "--system".into(),
            fault: "the system message is given twice; give -sys or -sysf, and only one of them".into(),
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

    fn prompt(arguments: &[&str]) -> Result<Option<String>> {
        read_prompt(&Run::parse_from(["run"].iter().chain(arguments)).args)
    }

    #[test]
    fn prompts_come_from_one_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.txt");
        std::fs::write(&path, "two\nlines\r\n").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(prompt(&["m", "hello"]).unwrap().as_deref(), Some("hello"));
        assert_eq!(prompt(&["-m", "m", "hello"]).unwrap().as_deref(), Some("hello"));
        assert_eq!(prompt(&["m", "-p", "hello\n"]).unwrap().as_deref(), Some("hello\n"));
        assert_eq!(prompt(&["m", "-f", path]).unwrap().as_deref(), Some("two\nlines"));
        assert_eq!(prompt(&["m", "-p", "a", "-f", path]).unwrap_err().exit_code(), 2);
        assert_eq!(prompt(&["m", "a", "-p", "b"]).unwrap_err().exit_code(), 2);
        assert_eq!(prompt(&["m", "-p", ""]).unwrap_err().exit_code(), 2);
        assert_eq!(prompt(&["m", "-f", "/no/such/file"]).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn text_that_is_none_is_refused() {
        assert!(matches!(read_limited(&b"\xff\xfe"[..], "stdin"), Err(Error::Io { .. })));
        assert_eq!(read_limited(&b"a\n\n"[..], "stdin").unwrap(), "a\n");
    }
}
