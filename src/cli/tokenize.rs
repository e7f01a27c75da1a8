//! `tierflow tokenize`: the ids and pieces of a text, as `llama-tokenize` prints them. Loads no weights.

use std::io::{self, IsTerminal};

use crate::cli::args::TokenizeArgs;
use crate::cli::locate::locate;
use crate::cli::prompt::{read_file, read_limited};
use crate::cli::terminal::{Stream, Visibility, note, print, print_json};
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::platform::IoMode;
use crate::text::{Special, Tokenizer};

/// Prints one token a line, or as the options say.
///
/// # Errors
/// Those of reading headers and the tokenizer; [`Error::InvalidArgument`] where the text is given twice.
pub fn run(args: &TokenizeArgs) -> Result<()> {
    let source = args.source()?;
    let text = read_text(args)?;
    let path = locate(&source, Visibility::Auto)?;
    let tokenizer = Tokenizer::open(&Checkpoint::open(&path, IoMode::Pread)?)?;
    let special = if args.no_special { Special::Leave } else { Special::Add };
    let ids = if args.no_parse_special { tokenizer.encode_plain(&text, special)? } else { tokenizer.encode(&text, special)? };
    let pieces: Vec<String> = ids.iter().map(|&id| piece(&tokenizer, id)).collect();
    if args.json {
        let tokens = ids.iter().zip(&pieces).map(|(id, piece)| serde_json::json!({"id": id, "piece": piece}));
        return print_json(&serde_json::json!({
            "schema": "tierflow.tokenize/1",
            "ids": ids,
            "tokens": tokens.collect::<Vec<_>>(),
            "count": ids.len(),
        }));
    }
    let mut out = match args.ids {
        true => format!("[{}]\n", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
        false => ids.iter().zip(&pieces).map(|(id, piece)| format!("{id:6} -> '{piece}'\n")).collect(),
    };
    if args.show_count {
        out.push_str(&format!("Total number of tokens: {}\n", ids.len()));
    }
    print(&Stream::Stdout.shown(&out))
}

/// The text of one token: special ones as they are written, bytes that are no character by themselves as U+FFFD.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    let text = tokenizer.piece(id);
    if text.is_empty() { tokenizer.token_text(id).unwrap_or_default() } else { text }
}

/// The text that is given by a word, an option, a file or stdin, and by one of them only.
fn read_text(args: &TokenizeArgs) -> Result<String> {
    let word = args.text()?.or(args.prompt.clone());
    match (word.as_deref(), args.file.as_deref()) {
        (Some("-") | None, None) => {
            if io::stdin().is_terminal() {
                note("type the text; Ctrl-D ends it\n");
            }
            read_limited(io::stdin().lock(), "stdin")
        }
        (Some(text), None) if !args.stdin => Ok(text.to_owned()),
        (None, Some(path)) if !args.stdin => read_file(path),
        _ => Err(Error::InvalidArgument {
            option: "TEXT".into(),
            reason: "the text is given twice; give TEXT, -p, -f or --stdin, and only one of them".into(),
        }),
    }
}
