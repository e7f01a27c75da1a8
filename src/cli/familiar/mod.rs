//! Command lines as users of llama.cpp and ollama write them, rewritten to what clap reads: short flags of several letters
//! (clap would take `-ngl 20` for `-n gl`), other names, a value after a switch, no subcommand at all. Options without effect here are
//! removed and noted; options that do not exist here are refused with what to use instead. Knows what clap knows of each subcommand.

mod ranges;
mod table;

use std::ffi::{OsStr, OsString};
use std::iter::Peekable;
use std::path::Path;
use std::vec::IntoIter;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, Id};

use crate::hub::looks_like_model_ref;
use table::{ABSENT, ABSENT_VERBS, IDLE, RENAMED, Takes};

/// Words that a switch may be followed by.
const SWITCH_WORDS: [&str; 6] = ["on", "off", "true", "false", "yes", "no"];

/// Words that llama.cpp's own switches may be followed by.
const LLAMA_SWITCH_WORDS: [&str; 7] = ["on", "off", "auto", "true", "false", "0", "1"];

/// A command line that clap reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// The arguments, program name first.
    pub arguments: Vec<OsString>,
    /// Notes for the user on the rewriting, a line each.
    pub notes: Vec<String>,
    /// Switches that are said to be off, whatever the environment says.
    pub revoked: Vec<Id>,
}

impl Rewritten {
    /// `command` without the environment of the switches that are said to be off.
    pub fn without_revoked(&self, command: Command) -> Command {
        let verb = self.arguments.get(1).and_then(|verb| verb.to_str()).unwrap_or_default();
        self.revoked.iter().fold(command, |command, id| command.mut_subcommand(verb, |it| it.mut_arg(id, |arg| arg.env(None::<&str>))))
    }
}

/// Rewrites `arguments` (program name first) for `command`, the whole program's.
///
/// # Errors
/// The error for a flag or a subcommand that does not exist here, with what to use instead, in clap's style.
pub fn rewrite(arguments: impl IntoIterator<Item = OsString>, command: &Command) -> Result<Rewritten, clap::Error> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    put_verb(&mut arguments, command)?;
    let verb = arguments.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let Some(subcommand) = command.find_subcommand(verb) else { return Ok(Rewritten { arguments, ..Rewritten::default() }) };
    let rest = arguments.split_off(2).into_iter().peekable();
    // By its own name from here on.
    arguments[1] = subcommand.get_name().into();
    let done = Rewritten { arguments, ..Rewritten::default() };
    let mut rewriter = Rewriter { command, subcommand, rest, done, switches: Vec::new(), lists_devices: false };
    rewriter.run()?;
    Ok(rewriter.done)
}

/// Whether a word can only be meant as a model, not as part of a prompt.
pub fn names_a_model(word: &OsStr) -> bool {
    let path = Path::new(word);
    let is_model_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    is_model_file || path.join("config.json").exists()
}

/// Makes the second argument a subcommand that is here: the one that is meant where it is left out or goes by another name.
fn put_verb(arguments: &mut Vec<OsString>, command: &Command) -> Result<(), clap::Error> {
    let Some(first) = arguments.get(1).map(|word| word.to_string_lossy().into_owned()) else { return Ok(()) };
    if command.find_subcommand(&first).is_some() || ["-h", "--help", "-V", "--version"].contains(&&*first) {
        return Ok(());
    }
    match &*first {
        // `help run` is `run --help`.
        "help" => {
            arguments.remove(1);
            arguments.push("--help".into());
        }
        "-cl" | "--cache-list" => arguments[1] = "ls".into(),
        _ => {
            if let Some((_, hint)) = ABSENT_VERBS.iter().find(|(names, _)| names.contains(&&*first)) {
                return Err(refusal(command, ErrorKind::InvalidSubcommand, &format!("there is no subcommand '{first}'"), Some(hint)));
            }
            if first.starts_with('-') || names_a_model(&arguments[1]) || looks_like_model_ref(&first) {
                arguments.insert(1, "run".into());
            }
        }
    }
    Ok(())
}

/// What is under way.
struct Rewriter<'a> {
    /// The whole program's.
    command: &'a Command,
    subcommand: &'a Command,
    rest: Peekable<IntoIter<OsString>>,
    done: Rewritten,
    /// Switches that are on, and where among the arguments they stand.
    switches: Vec<(Id, usize)>,
    /// llama.cpp's `--list-devices` takes the place of all else.
    lists_devices: bool,
}

impl Rewriter<'_> {
    fn run(&mut self) -> Result<(), clap::Error> {
        while let Some(argument) = self.rest.next() {
            if argument == "--" {
                self.done.arguments.push(argument);
                self.done.arguments.extend(self.rest.by_ref());
                break;
            }
            let is_flag = |text: &str| {
                text.strip_prefix('-').is_some_and(|rest| rest.starts_with(|letter: char| letter == '-' || letter.is_alphabetic()))
            };
            match argument.to_str() {
                Some(text) if is_flag(text) => {
                    let text = text.to_owned();
                    self.flag(&text)?;
                }
                // Words, numbers below zero, and what is no UTF-8.
                _ => self.done.arguments.push(argument),
            }
        }
        self.drop_revoked();
        self.note_budgets();
        if self.lists_devices {
            self.done.arguments.splice(1.., ["devices".into()]);
        }
        Ok(())
    }

    /// Rewrites one flag, and takes what belongs to it.
    fn flag(&mut self, text: &str) -> Result<(), clap::Error> {
        let (typed, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        // llama.cpp takes `--ctx_size` for `--ctx-size`, as Python's programs do.
        let name = if typed.starts_with("--") { typed.replace('_', "-") } else { typed.to_owned() };
        if name == "--list-devices" {
            self.lists_devices = true;
            return Ok(());
        }
        if name == "--lora-scaled" && find(self.subcommand, "--lora").is_some() {
            self.scaled_adapters(value);
            return Ok(());
        }
        if let Some(arg) = find(self.subcommand, &name) {
            self.known(arg, &name, value);
            return Ok(());
        }
        let renamed = RENAMED.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
        let renamed = renamed.and_then(|ours| Some((ours, find(self.subcommand, ours.split('=').next()?)?)));
        if let Some((ours, arg)) = renamed {
            self.known(arg, ours, value);
            return Ok(());
        }
        if let Some(idle) = IDLE.iter().find(|idle| idle.names.contains(&&*name)) {
            self.skip_value(idle.takes, value.is_some());
            self.note(format!("{typed} changes nothing here: {}", idle.why));
            return Ok(());
        }
        if let Some((_, hint)) = ABSENT.iter().find(|(names, _)| names.contains(&&*name)) {
            return Err(self.unknown(typed, Some(hint)));
        }
        if let Some(hint) = self.elsewhere(&name) {
            return Err(self.unknown(typed, Some(&hint)));
        }
        if name.starts_with("--") || name.len() == 2 || self.is_joined(&name, value) {
            self.done.arguments.push(text.into());
            return Ok(());
        }
        let first = name[1..].chars().next().unwrap_or_default();
        let short = find(self.subcommand, &format!("-{first}")).filter(|arg| takes_value(arg));
        let hint = short.map(|_| format!("a value of -{first} is written apart: -{first} {}", &name[1 + first.len_utf8()..]));
        Err(self.unknown(&name, hint.as_deref()))
    }

    /// llama.cpp's `--lora-scaled FILE SCALE`, or of newer ones `FILE:SCALE,…`, as `--lora FILE=SCALE`.
    fn scaled_adapters(&mut self, value: Option<&str>) {
        let Some(value) = value.map(OsString::from).or_else(|| self.rest.next()) else {
            return self.done.arguments.push("--lora".into());
        };
        let is_number = |text: &str| text.parse::<f32>().is_ok();
        let pair =
            |text: &'_ str| text.rsplit_once(':').filter(|(_, scale)| is_number(scale)).map(|(file, scale)| format!("{file}={scale}"));
        let listed = value.to_str().and_then(|value| value.split(',').map(pair).collect::<Option<Vec<_>>>());
        let scaled = listed.unwrap_or_default().into_iter().map(OsString::from).collect::<Vec<_>>();
        let behind = if scaled.is_empty() { self.rest.next_if(|next| next.to_str().is_some_and(is_number)) } else { None };
        let alone = scaled.is_empty().then(|| match behind {
            Some(scale) => [value, "=".into(), scale].into_iter().collect(),
            None => value,
        });
        self.done.arguments.extend(scaled.into_iter().chain(alone).flat_map(|adapter| ["--lora".into(), adapter]));
    }

    /// Takes over a flag that the subcommand has, called `name` there, with its value.
    fn known(&mut self, arg: &Arg, name: &str, value: Option<&str>) {
        let is_list = arg.get_value_delimiter() == Some(',');
        let listed = |value: &str| if is_list { ranges::expanded(value) } else { None };
        if takes_value(arg) && value.is_none() && !name.contains('=') {
            self.done.arguments.push(name.into());
            let expanded = self.rest.peek().and_then(|next| listed(next.to_str()?));
            if expanded.is_some() || arg.is_allow_hyphen_values_set() {
                let next = self.rest.next();
                self.done.arguments.extend(expanded.map(OsString::from).or(next));
            }
            return;
        }
        if takes_value(arg) || name.contains('=') {
            let joined = value.map(|value| format!("={}", listed(value).unwrap_or_else(|| value.to_owned()))).unwrap_or_default();
            self.done.arguments.push(format!("{name}{joined}").into());
            return;
        }
        // The word behind a switch is its value where it is such a word, and never the prompt.
        let is_long = name.starts_with("--");
        let behind = self.rest.next_if(|next| is_long && value.is_none() && SWITCH_WORDS.iter().any(|word| next == word));
        let word = value.or_else(|| behind.as_ref()?.to_str());
        match (arg.get_action(), word) {
            (ArgAction::SetTrue, word) => self.switch(arg, name, word),
            (_, Some(word)) => self.done.arguments.push(format!("{name}={word}").into()),
            (_, None) => self.done.arguments.push(name.into()),
        }
    }

    /// Takes over a switch that clap knows as on or not there. What is said of it last counts, also over the environment.
    fn switch(&mut self, arg: &Arg, name: &str, word: Option<&str>) {
        let id = arg.get_id();
        match word {
            Some("off" | "false" | "no" | "0") => self.done.revoked.push(id.clone()),
            None | Some("on" | "true" | "yes" | "1") => {
                self.done.revoked.retain(|revoked| revoked != id);
                self.switches.push((id.clone(), self.done.arguments.len()));
                self.done.arguments.push(name.into());
            }
            Some(other) => self.done.arguments.push(format!("{name}={other}").into()),
        }
    }

    /// Takes the switches out again that are off in the end.
    fn drop_revoked(&mut self) {
        let dropped: Vec<usize> =
            self.switches.iter().filter(|(id, _)| self.done.revoked.contains(id)).map(|(_, position)| *position).collect();
        let mut position = 0..;
        self.done.arguments.retain(|_| position.next().is_none_or(|position| !dropped.contains(&position)));
    }

    fn skip_value(&mut self, takes: Takes, is_joined: bool) {
        match takes {
            Takes::Value if !is_joined => drop(self.rest.next()),
            // llama-bench takes lists of them.
            Takes::Switch if !is_joined => {
                let is_word = |text: &str| LLAMA_SWITCH_WORDS.contains(&text);
                drop(self.rest.next_if(|next| next.to_str().is_some_and(|text| text.split(',').all(is_word))));
            }
            _ => {}
        }
    }

    /// Whether clap reads `name`, a dash and several letters, as it is meant: `-n4`, `-n-1`, `-qv`.
    fn is_joined(&self, name: &str, value: Option<&str>) -> bool {
        let mut letters = name[1..].chars();
        let is_switch = |letter: char| find(self.subcommand, &format!("-{letter}")).is_some_and(|arg| !takes_value(arg));
        if value.is_none() && letters.clone().all(is_switch) {
            return true;
        }
        let has_value = letters.next().and_then(|first| find(self.subcommand, &format!("-{first}"))).is_some_and(takes_value);
        has_value && value.is_none() && letters.as_str().parse::<f64>().is_ok()
    }

    fn note(&mut self, note: String) {
        if !self.done.notes.contains(&note) {
            self.done.notes.push(note);
        }
    }

    /// A budget that another one silently takes back would be a trap: of all options, only this one names several things.
    fn note_budgets(&mut self) {
        let is_budget = |argument: &OsString| argument.to_str().is_some_and(|text| text.split('=').next() == Some("--max-memory"));
        if self.done.arguments.iter().take_while(|argument| *argument != "--").filter(|argument| is_budget(argument)).count() > 1 {
            self.note("--max-memory is given more than once, and the last counts; one names all devices: gpu:0=4GiB,cpu=8GiB".into());
        }
    }

    /// Which other subcommands have a flag that is called `name`, here or by others.
    fn elsewhere(&self, name: &str) -> Option<String> {
        // What stands behind one of several levels is clap's to read.
        if self.subcommand.has_subcommands() {
            return None;
        }
        let ours = RENAMED.iter().find(|(theirs, _)| *theirs == name).map_or(name, |(_, ours)| ours.split('=').next().unwrap_or(ours));
        // What `config` takes are the options of others.
        let others = self.command.get_subcommands().filter(|other| other.get_name() != "config" && find(other, ours).is_some());
        let others: Vec<String> = others.map(|other| format!("`tierflow {}`", other.get_name())).collect();
        (!others.is_empty()).then(|| format!("it is an option of {}", others.join(", ")))
    }

    fn unknown(&self, name: &str, hint: Option<&str>) -> clap::Error {
        refusal(self.subcommand, ErrorKind::UnknownArgument, &format!("unknown flag '{name}'"), hint)
    }
}

/// The option that is called `name`, dashes included.
fn find<'a>(subcommand: &'a Command, name: &str) -> Option<&'a Arg> {
    let is_called = |arg: &&Arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&long)),
        None => name.len() == 2 && arg.get_short().is_some_and(|short| name.ends_with(short)),
    };
    subcommand.get_arguments().find(is_called)
}

/// Whether a value follows: not so with switches, also those that may have one behind `=`.
fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

fn refusal(command: &Command, kind: ErrorKind, reason: &str, hint: Option<&str>) -> clap::Error {
    let hint = hint.map(|hint| format!("\n\n  tip: {hint}")).unwrap_or_default();
    clap::Error::raw(kind, format!("{reason}{hint}")).format(&mut named(command))
}

/// `command`, the program's or one of its subcommands, so that its usage names it as it is typed.
pub fn named(command: &Command) -> Command {
    let name = command.get_name();
    command.clone().bin_name(if name == "tierflow" { name.to_owned() } else { format!("tierflow {name}") })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    /// The arguments behind the program's name, and the notes.
    fn rewritten(line: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        let arguments = ["tierflow"].iter().chain(line).map(OsString::from);
        let done = rewrite(arguments, &Cli::command()).map_err(|error| error.to_string())?;
        Ok((done.arguments.into_iter().skip(1).map(|argument| argument.into_string().unwrap()).collect(), done.notes))
    }

    #[track_caller]
    fn becomes(line: &[&str], expected: &[&str]) {
        assert_eq!(rewritten(line).unwrap().0, expected, "{line:?}");
    }

    #[test]
    fn every_other_name_is_one_of_an_option() {
        let command = Cli::command();
        let subcommands: Vec<&Command> = command.get_subcommands().collect();
        for (theirs, ours) in RENAMED {
            let (name, value) = ours.split_once('=').map_or((ours, None), |(name, value)| (name, Some(value)));
            let at_home = subcommands.iter().find(|subcommand| find(subcommand, name).is_some());
            let verb = at_home.unwrap_or_else(|| panic!("{ours} is no option")).get_name();
            let more = if find(at_home.unwrap(), name).is_some_and(takes_value) && value.is_none() { &["7"][..] } else { &[] };
            becomes(&[&[verb, theirs], more].concat(), &[&[verb, ours], more].concat());
        }
    }

    #[test]
    fn nothing_that_an_option_is_called_is_idle_or_absent_everywhere() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let idle = IDLE.iter().flat_map(|idle| idle.names.iter().map(|name| (name, idle.why)));
        let absent = ABSENT.iter().flat_map(|(names, why)| names.iter().map(|name| (name, *why)));
        for (name, why) in idle.chain(absent) {
            // What `run` has is idle for other subcommands alone, and says so.
            assert!(find(run, name).is_none() || why.contains("`run`"), "{name} is an option of run");
            assert!(RENAMED.iter().all(|(theirs, _)| theirs != name), "{name} is renamed");
        }
        for (names, _) in ABSENT_VERBS {
            assert!(names.iter().all(|name| command.find_subcommand(name).is_none()));
        }
    }

    #[test]
    fn idle_flags_leave_with_their_values_and_a_note_each() {
        for (line, expected) in [
            (&["run", "m", "-fa", "on", "p"][..], &["run", "m", "p"][..]),
            (&["run", "m", "-fa", "p"], &["run", "m", "p"]),
            (&["bench", "m", "-fa", "0,1", "-p", "8"], &["bench", "m", "-p", "8"]),
            (&["run", "m", "-fa=off", "--mlock", "--mlock", "-tb", "4"], &["run", "m"]),
            (&["plan", "m", "--flash-attn", "1", "--no_warmup"], &["plan", "m"]),
        ] {
            let (arguments, notes) = rewritten(line).unwrap();
            assert_eq!(arguments, expected);
            let n_kinds = line
                .iter()
                .filter(|word| word.starts_with('-') && !expected.contains(word))
                .map(|word| word.split('=').next())
                .collect::<std::collections::BTreeSet<_>>();
            assert_eq!(notes.len(), n_kinds.len(), "{notes:?}");
            assert!(notes.iter().all(|note| note.contains(" changes nothing here: ")), "{notes:?}");
        }
    }

    #[test]
    fn absent_flags_are_called_unknown_with_what_there_is() {
        for (line, hint) in [
            (&["run", "m", "-ts", "1,1"][..], "--max-memory"),
            (&["run", "m", "-sm", "row"], "--device"),
            (&["run", "m", "-mg", "0"], "--device gpu:N"),
            (&["run", "m", "-nkvo"], "KV cache"),
            (&["run", "-mu", "https://x/y.gguf"], "-hf"),
            (&["plan", "m", "--tensor_split=3,1"], "--max-memory"),
        ] {
            let error = rewritten(line).unwrap_err();
            let flag = line.iter().find(|word| word.starts_with('-')).unwrap().split('=').next().unwrap();
            assert!(error.contains(&format!("unknown flag '{flag}'")) && error.contains(hint) && error.contains("Usage: "), "{error}");
        }
    }

    #[test]
    fn unknown_flags_of_several_letters_are_no_values_of_the_first() {
        for flag in ["-nope", "-cx", "-tsx", "-mx=3", "-smile"] {
            let error = rewritten(&["run", "m", flag]).unwrap_err();
            let name = flag.split('=').next().unwrap();
            assert!(error.contains(&format!("unknown flag '{name}'")) && error.contains("written apart"), "{error}");
        }
        assert!(!rewritten(&["run", "m", "-zz"]).unwrap_err().contains("written apart"));
        for line in [&["run", "m", "-n4", "-c=8", "-n-1", "-t", "-1", "-qv"][..], &["run", "m", "-s", "-1", "-x"]] {
            becomes(line, line);
        }
    }

    #[test]
    fn texts_and_what_follows_two_dashes_stay() {
        for (line, expected) in [
            (&["run", "m", "--", "-ngl", "-hf"][..], &["run", "m", "--", "-ngl", "-hf"][..]),
            (&["run", "m", "-p", "-ngl", "-ngl", "3"], &["run", "m", "-p", "-ngl", "--n-gpu-layers", "3"]),
            (&["run", "m", "-sys", "-fa"], &["run", "m", "--system", "-fa"]),
            (&["run", "m", "-ngl=20", "-"], &["run", "m", "--n-gpu-layers=20", "-"]),
        ] {
            becomes(line, expected);
        }
    }

    #[test]
    fn a_word_behind_a_switch_is_its_value() {
        for (line, expected) in [
            (&["run", "m", "--fit", "on", "p"][..], &["run", "m", "--fit=on", "p"][..]),
            (&["run", "m", "--strict", "true"], &["run", "m", "--strict=true"]),
            (&["run", "m", "--strict", "p"], &["run", "m", "--strict", "p"]),
            (&["run", "m", "--no_measure", "off"], &["run", "m", "--no-measure=off"]),
            (&["run", "m", "--raw", "true", "p"], &["run", "m", "--raw", "p"]),
            (&["run", "m", "--ignore-eos", "off", "p"], &["run", "m", "p"]),
            (&["run", "m", "--raw", "--ignore-eos", "-p", "x", "--ignore-eos=0", "y"], &["run", "m", "--raw", "-p", "x", "y"]),
            (&["run", "m", "--ignore-eos=off", "--ignore-eos"], &["run", "m", "--ignore-eos"]),
            (&["run", "m", "--json=true", "-v=no"], &["run", "m", "--json"]),
            (&["run", "m", "--json=maybe"], &["run", "m", "--json=maybe"]),
        ] {
            becomes(line, expected);
        }
    }

    #[test]
    fn scaled_adapters_are_adapters_with_a_scale() {
        for (line, expected) in [
            (&["run", "m", "--lora-scaled", "a", "0.5", "p"][..], &["run", "m", "--lora", "a=0.5", "p"][..]),
            (&["run", "m", "--lora-scaled", "a:0.5,b:2", "p"], &["run", "m", "--lora", "a=0.5", "--lora", "b=2", "p"]),
            (&["run", "m", "--lora-scaled=a:0.5"], &["run", "m", "--lora", "a=0.5"]),
            (&["run", "m", "--lora-scaled", "a", "p"], &["run", "m", "--lora", "a", "p"]),
            (&["run", "m", "--lora", "a", "--lora=b=2"], &["run", "m", "--lora", "a", "--lora=b=2"]),
            (&["run", "m", "--lora-scaled"], &["run", "m", "--lora"]),
        ] {
            becomes(line, expected);
        }
    }

    #[test]
    fn lists_of_numbers_may_have_ranges() {
        for (line, expected) in [
            (&["bench", "m", "-p", "128-512*2", "-n=1-3"][..], &["bench", "m", "-p", "128,256,512", "-n=1,2,3"][..]),
            (
                &["bench", "m", "-t", "1-2", "-ngl", "0-20+10", "-b", "7"],
                &["bench", "m", "-t", "1,2", "--n-gpu-layers", "0,10,20", "-b", "7"],
            ),
            (&["bench", "m", "-p", "9-3", "--json"], &["bench", "m", "-p", "9-3", "--json"]),
            (&["run", "m", "-p", "1-3", "-t", "1-3"], &["run", "m", "-p", "1-3", "-t", "1-3"]),
        ] {
            becomes(line, expected);
        }
    }

    #[test]
    fn a_line_without_a_subcommand_runs() {
        for (line, expected) in [
            (&["-m", "m", "-p", "x"][..], &["run", "-m", "m", "-p", "x"][..]),
            (&["-hf", "o/n"], &["run", "--hf-repo", "o/n"]),
            (&["m.gguf", "why"], &["run", "m.gguf", "why"]),
            (&["org/name:Q8_0"], &["run", "org/name:Q8_0"]),
            (&["--list-devices"], &["devices"]),
            (&["run", "m", "--list-devices"], &["devices"]),
            (&["run", "m", "-p", "--list-devices"], &["run", "m", "-p", "--list-devices"]),
            (&["run", "m", "--", "--list-devices"], &["run", "m", "--", "--list-devices"]),
            (&["chat", "m"], &["run", "m"]),
            (&["help", "run"], &["run", "--help"]),
            (&["help"], &["--help"]),
            (&["frobnicate"], &["frobnicate"]),
        ] {
            becomes(line, expected);
        }
        for verb in ["ps", "rm", "stop"] {
            let error = rewritten(&[verb, "m"]).unwrap_err();
            assert!(error.contains(&format!("no subcommand '{verb}'")) && error.contains("tip: "), "{error}");
        }
    }

    #[test]
    fn budgets_that_are_given_twice_are_noted() {
        let notes = rewritten(&["run", "m", "--max-memory", "cpu=1GiB", "--max_memory=gpu:0=1GiB"]).unwrap().1;
        assert!(notes.len() == 1 && notes[0].contains("the last counts"), "{notes:?}");
        assert!(rewritten(&["run", "m", "--max-memory", "cpu=1GiB"]).unwrap().1.is_empty());
    }
}
