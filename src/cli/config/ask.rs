//! The questions of `tierflow config` on a terminal. Reads and writes what the caller gives it.

use std::io::{BufRead, Write};

use super::edit::Change;
use super::file::ConfigFile;
use super::setting::Setting;
use crate::error::{Error, Result};
use crate::machine;
use crate::platform::cache_folder;

/// The answer that takes a setting out of the file.
const NOTHING: &str = "none";

/// One question.
#[derive(Debug)]
pub(super) struct Question {
    /// The setting that it is about.
    name: &'static str,
    /// What is asked.
    text: &'static str,
    /// Answers with what they mean.
    choices: Vec<(String, String)>,
    /// What holds without an answer where the setting has no default.
    otherwise: String,
}

/// The questions, with `devices` (names and what they are) as choices.
pub(super) fn questions(devices: Vec<(String, String)>) -> Vec<Question> {
    let choice = |word: &str, meaning: &str| (word.to_owned(), meaning.to_owned());
    let question = |name, text, choices, otherwise: &str| Question { name, text, choices, otherwise: otherwise.to_owned() };
    let mut computing = vec![choice("auto", "GPUs and the host share the layers, as their measured rates say")];
    computing.extend(devices.iter().cloned());
    let objectives = vec![choice("latency", "one conversation"), choice("throughput", "many sequences at once")];
    let folder = cache_folder().map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default();
    vec![
        question("device", "What computes?", computing, ""),
        question("max-memory", "How much memory may be used of each device, as gpu:0=6GiB,cpu=12GiB?", devices, "what there is"),
        question("objective", "What are plans made for?", objectives, ""),
        question("ctx-size", "How many positions has the context? 0 takes the model's, less where the budgets demand it.", Vec::new(), ""),
        question("cache-dir", "In which folder are measured rates kept?", Vec::new(), &folder),
    ]
}

/// This machine's devices that may have a budget, with their names and memory.
pub(super) fn devices() -> Vec<(String, String)> {
    // A machine whose drivers fail still has a host; `tierflow devices` says what is wrong with them.
    let adapters = pollster::block_on(machine::adapters()).unwrap_or_default();
    let specs = adapters.into_iter().map(|found| found.spec).chain([machine::host_spec()]);
    specs
        .map(|spec| {
            let memory = spec.capacity.map(|bytes| format!(", {bytes}")).unwrap_or_default();
            (spec.device.to_string(), format!("{}{memory}", spec.name))
        })
        .collect()
}

/// Asks every question until its answer is allowed. An empty answer keeps what the file says, else the default.
///
/// # Errors
/// [`Error::Interrupted`] where the input ends before the questions do; [`Error::Io`].
pub(super) fn ask(questions: &[Question], file: &ConfigFile, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let settings = Setting::all();
    for question in questions {
        let Some(setting) = settings.iter().find(|setting| setting.name() == question.name) else { continue };
        let said = file.values().get(question.name).map(|value| value.to_string_lossy().into_owned());
        let value = ask_one(question, setting, said.as_deref(), input, output)?;
        if value != said {
            changes.push(Change { setting: setting.clone(), value });
        }
    }
    Ok(changes)
}

/// Asks a question of yes or no; an empty answer is a no, and so is the end of the input.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn yes(question: &str, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<bool> {
    let failed = |reason| Error::io("use", "the terminal", reason);
    loop {
        write!(output, "{question} [y/N]: ").and_then(|()| output.flush()).map_err(failed)?;
        let mut line = String::new();
        input.read_line(&mut line).map_err(failed)?;
        match line.trim().to_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "" | "n" | "no" => return Ok(false),
            _ => {}
        }
    }
}

/// The new value of one setting; `said` is what the file says.
fn ask_one(
    question: &Question,
    setting: &Setting,
    said: Option<&str>,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
) -> Result<Option<String>> {
    let kept = said.map(str::to_owned).or(setting.default());
    let can_go = said.is_some() && setting.default().is_none();
    let width = question.choices.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
    let mut text = format!("\n{}\n", question.text);
    for (word, meaning) in &question.choices {
        text.push_str(&format!("  {word:width$}  {meaning}\n"));
    }
    if can_go {
        text.push_str(&format!("  {NOTHING:width$}  {}\n", question.otherwise));
    }
    let prompt = format!("{} [{}]: ", question.name, kept.as_deref().unwrap_or(&question.otherwise));
    text.push_str(&prompt);
    loop {
        output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|reason| Error::io("write to", "the terminal", reason))?;
        let mut line = String::new();
        if input.read_line(&mut line).map_err(|reason| Error::io("read from", "the terminal", reason))? == 0 {
            return Err(Error::Interrupted);
        }
        let answer = line.trim();
        match setting.check(answer) {
            _ if answer.is_empty() => return Ok(kept),
            _ if can_go && answer == NOTHING => return Ok(None),
            Ok(()) => return Ok(Some(answer.to_owned())),
            Err(reason) => text = format!("  {reason}\n{prompt}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, ConfigFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        (folder, ConfigFile::load_from(path).unwrap())
    }

    /// The changes as `name=value` and what was written on the terminal.
    fn answer(file: &str, lines: &str) -> (Result<Vec<String>>, String) {
        let (_folder, file) = config(file);
        let devices = vec![("gpu:0".into(), "A GPU, 8.0 GiB".into()), ("cpu".into(), "A CPU, 16.0 GiB".into())];
        let mut output = Vec::new();
        let changes = ask(&questions(devices), &file, &mut lines.as_bytes(), &mut output);
        let texts = changes.map(|changes| {
            let text = |change: Change| format!("{}={}", change.setting.name(), change.value.as_deref().unwrap_or("-"));
            changes.into_iter().map(text).collect()
        });
        (texts, String::from_utf8(output).unwrap())
    }

    #[test]
    fn enter_takes_the_defaults() {
        let (changes, asked) = answer("", "\n\n\n\n\n");
        assert_eq!(changes.unwrap(), ["device=auto", "objective=latency", "ctx-size=0"]);
        assert!(
            asked.contains("\n  gpu:0  A GPU, 8.0 GiB\n  cpu    A CPU, 16.0 GiB\n")
                && asked.contains("device [auto]: ")
                && asked.contains("max-memory [what there is]: "),
            "{asked}"
        );
        assert!(!asked.contains("none"), "{asked}");
    }

    #[test]
    fn enter_keeps_what_the_file_says_and_none_takes_it_out() {
        let file = "device = \"cpu\"\nmax-memory = \"cpu=1GiB\"\nobjective = \"throughput\"\nctx-size = 64\n";
        let (changes, asked) = answer(file, "\n\n\n\n\n");
        assert!(changes.unwrap().is_empty());
        assert!(
            asked.contains("device [cpu]: ") && asked.contains("max-memory [cpu=1GiB]: ") && asked.contains("ctx-size [64]: "),
            "{asked}"
        );
        assert_eq!(answer(file, "\nnone\n\n\n\n").0.unwrap(), ["max-memory=-"]);
    }

    #[test]
    fn a_wrong_answer_is_reported_and_asked_for_again() {
        let (changes, asked) = answer("", "tpu\ngpu:1\ngpu:1=5MiB\n\n-2\n 4096 \n/tmp/rates\n");
        let expected = ["device=gpu:1", "max-memory=gpu:1=5MiB", "objective=latency", "ctx-size=4096", "cache-dir=/tmp/rates"];
        assert_eq!(changes.unwrap(), expected);
        assert!(
            asked.contains("`tpu` computes nothing; write auto, gpu, gpu:N, cpu, cuda, cuda:N, xpu or mps\ndevice [auto]: "),
            "{asked}"
        );
        assert!(asked.contains("give a whole number from 0 on, or -1 for the default"), "{asked}");
    }

    #[test]
    fn only_a_yes_is_one() {
        for (lines, expected) in [("y\n", true), ("what\nYES\n", true), ("\n", false), ("n\n", false), ("", false)] {
            let mut output = Vec::new();
            assert_eq!(yes("Replace it?", &mut lines.as_bytes(), &mut output).unwrap(), expected, "{lines:?}");
            assert!(output.starts_with(b"Replace it? [y/N]: "));
        }
    }

    #[test]
    fn an_end_of_input_changes_nothing() {
        assert!(matches!(answer("", "cpu\n").0, Err(Error::Interrupted)));
    }
}
