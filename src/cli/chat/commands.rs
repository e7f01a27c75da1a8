//! Parses the lines of a chat into messages and commands.

use crate::cli::similar::nearest;

/// The marks around a text of several lines.
pub(super) const BLOCK: &str = "\"\"\"";

/// A line, or the text between two marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Nothing,
    Message(String),
    Bye,
    Help,
    Clear,
    Statistics,
    Regenerate,
    /// The system message: a text, or none to show it.
    System(Option<String>),
    /// A setting with its value; without a name all are shown.
    Set(Option<(String, String)>),
    Show(String),
    Save(String),
    Load(String),
    /// What is wrong with a command.
    Refused(String),
}

/// The commands with what `/help` says of them, the daily ones first.
const COMMANDS: [(&str, &str, &str); 11] = [
    ("/help", "", "this"),
    ("/bye", "", "end; so does Ctrl-D"),
    ("/clear", "", "forget what was said"),
    ("/regen", "", "answer the last question again, with another seed"),
    ("/system", "[TEXT]", "show the system message, or set it; \"\" sets none"),
    ("/set", "[NAME VALUE]", "show the settings, or set one, as /set temp 0.2"),
    ("/save", "FILE", "write the conversation to FILE as JSON"),
    ("/load", "FILE", "go on with the conversation in FILE"),
    ("/stats", "", "what the last answer cost"),
    ("/show", "[WHAT]", "info, parameters, system or template"),
    ("/?", "", "as /help"),
];

/// Commands of other programs, and what to do here.
const FOREIGN: [(&str, &str); 6] = [
    ("/read", "-f FILE asks what a file holds, and a pasted text may have several lines"),
    ("/image", "images are not read"),
    ("/exec", "there is no such command here"),
    ("/model", "end the chat and start it with another model"),
    ("/pull", "tierflow pull NAME fetches a model"),
    ("/list", "tierflow ls lists the models"),
];

/// The text of `/help`.
pub(super) fn help() -> String {
    let mut text = String::new();
    for (name, value, meaning) in &COMMANDS[..COMMANDS.len() - 1] {
        let command = format!("{name} {value}");
        text.push_str(&format!("  {command:<20} {meaning}\n"));
    }
    text.push_str(&format!("  {:<20} a message of several lines; one that begins with / too\n", "\"\"\" … \"\"\""));
    text.push_str("  Ctrl-C               stop the answer\n");
    text
}

/// The names of the commands.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, ..)| *name)
}

/// Whether `line` opens a text of several lines that it does not close.
pub(super) fn opens_block(line: &str) -> bool {
    let text = line.trim();
    let value = match text.starts_with('/') {
        true => text.split_once(BLOCK).map(|(command, rest)| (command.trim(), rest)),
        false => text.strip_prefix(BLOCK).map(|rest| ("", rest)),
    };
    value.is_some_and(|(command, rest)| matches!(command, "" | "/system" | "/set system") && !rest.contains(BLOCK))
}

/// Reads a line, or several that a block holds together.
pub(super) fn parse(text: &str) -> Input {
    let text = text.trim();
    if !text.starts_with('/') {
        return match unquoted(text) {
            message if message.trim().is_empty() => Input::Nothing,
            message => Input::Message(message.to_owned()),
        };
    }
    let (command, value) = text.split_once(char::is_whitespace).map_or((text, ""), |(command, value)| (command, value.trim()));
    match (command, value) {
        ("/bye" | "/exit" | "/quit", _) => Input::Bye,
        ("/help" | "/?", _) => Input::Help,
        ("/clear" | "/reset", _) => Input::Clear,
        ("/stats", _) => Input::Statistics,
        ("/regen" | "/regenerate", _) => Input::Regenerate,
        ("/system", "") => Input::System(None),
        ("/system", value) => Input::System(Some(unquoted(value).to_owned())),
        ("/set", "") => Input::Set(None),
        ("/set", value) => set(value),
        ("/show", what) => Input::Show(what.to_owned()),
        ("/save", "") | ("/load", "") => Input::Refused(format!("{command} FILE: name a file")),
        ("/save", file) => Input::Save(unquoted(file).to_owned()),
        ("/load", file) => Input::Load(unquoted(file).to_owned()),
        _ => Input::Refused(unknown(command)),
    }
}

/// `NAME VALUE`, with ollama's word `parameter` before it or not.
fn set(text: &str) -> Input {
    let words = |text: &str| match text.split_once(|char: char| char.is_whitespace() || char == '=') {
        Some((name, value)) => (name.to_owned(), value.trim().to_owned()),
        None => (text.to_owned(), String::new()),
    };
    let (name, value) = words(text);
    let (name, value) = if name == "parameter" { words(&value) } else { (name, value) };
    match (name.as_str(), value.as_str()) {
        ("", _) => Input::Set(None),
        ("system", "") => Input::System(None),
        ("system", value) => Input::System(Some(unquoted(value).to_owned())),
        _ => Input::Set(Some((name, value))),
    }
}

fn unknown(command: &str) -> String {
    if let Some((_, advice)) = FOREIGN.iter().find(|(name, _)| *name == command) {
        return format!("{command} is no command here: {advice}");
    }
    let advice = nearest(command, names()).map_or_else(|| "/help lists them".to_owned(), |name| format!("did you mean {name}?"));
    format!("{command} is no command and was not sent; {advice} (\"\"\"{command} …\"\"\" sends it as a message)")
}

/// What stands between quotes, threefold ones first, where the whole is quoted.
pub(super) fn unquoted(text: &str) -> &str {
    let inner = |mark: &str| text.strip_prefix(mark).and_then(|rest| rest.strip_suffix(mark));
    match inner(BLOCK) {
        Some(block) => block.strip_prefix('\n').unwrap_or(block).trim_end_matches('\n'),
        // A message may well quote; what is set is set without its quotes.
        None if text.len() == 2 => inner("\"").unwrap_or(text),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_fits_a_terminal() {
        assert!(help().lines().all(|line| line.chars().count() <= 79) && help().lines().count() < 22, "{}", help());
    }

    fn message(text: &str) -> Input {
        Input::Message(text.to_owned())
    }

    #[test]
    fn lines_are_messages_or_commands() {
        assert_eq!(parse("  why? "), message("why?"));
        assert_eq!(parse("say \"hello\""), message("say \"hello\""));
        assert_eq!((parse(""), parse(" \t"), parse("\"\"\"\n\"\"\"")), (Input::Nothing, Input::Nothing, Input::Nothing));
        assert_eq!((parse("/bye"), parse(" /exit"), parse("/?")), (Input::Bye, Input::Bye, Input::Help));
        assert_eq!(parse("/system"), Input::System(None));
        assert_eq!(parse("/system Be brief."), Input::System(Some("Be brief.".into())));
        assert_eq!((parse("/system \"\""), parse("/set system \"\"")), (Input::System(Some("".into())), Input::System(Some("".into()))));
        assert_eq!(parse("/set"), Input::Set(None));
        for line in ["/set top_k 40", "/set parameter top_k 40", "/set top_k=40", "/set  top_k   40"] {
            assert_eq!(parse(line), Input::Set(Some(("top_k".into(), "40".into()))), "{line}");
        }
        assert_eq!(parse("/set nohistory"), Input::Set(Some(("nohistory".into(), String::new()))));
        assert_eq!(parse("/save my chat.json"), Input::Save("my chat.json".into()));
        assert_eq!(parse("/load a"), Input::Load("a".into()));
        assert!(matches!(parse("/save"), Input::Refused(_)));
    }

    #[test]
    fn blocks_hold_lines_together() {
        for open in ["\"\"\"", "\"\"\"one", "  \"\"\"/etc", "/system \"\"\"", "/set system \"\"\"a"] {
            assert!(opens_block(open), "{open}");
        }
        for closed in ["\"\"\"one\"\"\"", "one \"\"\"", "/system \"\"\"a\"\"\"", "/save \"\"\"", "\"\"", "/system"] {
            assert!(!opens_block(closed), "{closed}");
        }
        assert_eq!(parse("\"\"\"\none\n  two\n\"\"\""), message("one\n  two"));
        assert_eq!(parse("\"\"\"/bye\"\"\""), message("/bye"));
        assert_eq!(parse("/system \"\"\"a\nb\"\"\""), Input::System(Some("a\nb".into())));
    }

    #[test]
    fn what_is_no_command_meets_a_hint() {
        for (command, hint) in [
            ("/hepl", "did you mean /help?"),
            ("/sav x", "did you mean /save?"),
            ("/regne", "did you mean /regen?"),
            ("/clearr", "did you mean /clear?"),
            ("/etc/passwd", "/help lists them"),
            ("/image x.png", "images are not read"),
            ("/", "/help lists them"),
        ] {
            let Input::Refused(text) = parse(command) else { panic!("{command} is taken") };
            assert!(text.contains(hint), "{command}: {text}");
        }
    }
}
