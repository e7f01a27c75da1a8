//! `/set`: what of a chat can be changed while it runs, under the names of the command line, of ollama and of llama.cpp.

use clap::ValueEnum;

use crate::cli::args::Thinking;
use crate::cli::run::Settings;
use crate::error::{Error, Result};
use crate::text::{ModelDefaults, SamplingSettings, StopStrings};

/// Settings of the screen and the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manners {
    /// Lines are kept for later chats.
    pub(super) history: bool,
    /// Words go to the next line whole.
    pub(super) word_wrap: bool,
    /// The statistics of an answer are printed after it.
    pub(super) verbose: bool,
}

/// Sets `name` to `value` and returns a line that says so; `default` leaves the choice to the model, then to the program.
///
/// # Errors
/// [`Error::InvalidArgument`] where the name or the value is none; nothing has changed then.
pub(super) fn set(settings: &mut Settings, manners: &mut Manners, model: &ModelDefaults, name: &str, value: &str) -> Result<String> {
    let name = name.trim_start_matches('-').to_lowercase().replace('_', "-");
    let value = if value == "default" { None } else { Some(value) };
    let mut flags = settings.flags.clone();
    match name.as_str() {
        "temp" | "temperature" => flags.temperature = number(&name, value)?,
        "top-k" => flags.top_k = all_if_negative(number(&name, value)?, 0),
        "top-p" => flags.top_p = number(&name, value)?,
        "min-p" => flags.min_p = number(&name, value)?,
        "repeat-penalty" | "repetition-penalty" => flags.repeat_penalty = number(&name, value)?,
        "presence-penalty" => flags.presence_penalty = number(&name, value)?,
        "frequency-penalty" => flags.frequency_penalty = number(&name, value)?,
        "repeat-last-n" => flags.repeat_last_n = all_if_negative(number(&name, value)?, u32::MAX),
        "seed" | "s" => settings.seed = number::<i64>(&name, value)?.and_then(|seed| u64::try_from(seed).ok()),
        "predict" | "n-predict" | "num-predict" | "max-tokens" | "n" => {
            settings.generate.max_tokens = number::<i64>(&name, value)?.and_then(|most| usize::try_from(most).ok());
        }
        "stop" => settings.generate.stop = stops(value)?,
        "think" => settings.thinking = thinking(&name, value)?,
        "nothink" | "no-think" => settings.thinking = Some(Thinking::False),
        "ignore-eos" => settings.generate.ignore_eos = value.map_or(Ok(false), |value| switch(&name, value))?,
        "history" => manners.history = switch(&name, value.unwrap_or(""))?,
        "nohistory" | "no-history" => manners.history = false,
        "wordwrap" | "word-wrap" => manners.word_wrap = switch(&name, value.unwrap_or(""))?,
        "nowordwrap" | "no-word-wrap" => manners.word_wrap = false,
        "verbose" => manners.verbose = switch(&name, value.unwrap_or(""))?,
        "quiet" => manners.verbose = !switch(&name, value.unwrap_or(""))?,
        _ => return Err(no_setting(&name)),
    }
    settings.sampling = SamplingSettings::merged(model, &flags)?;
    settings.flags = flags;
    Ok(list(settings, *manners).into_iter().filter(|(_, line)| line.0.contains(&name.as_str())).map(|(text, _)| text).collect())
}

/// All settings, one a line.
pub(super) fn shown(settings: &Settings, manners: Manners) -> String {
    list(settings, manners).into_iter().map(|(text, _)| text).collect()
}

/// The names of a setting, its own first.
struct Names(&'static [&'static str]);

fn list(settings: &Settings, manners: Manners) -> Vec<(String, Names)> {
    let sampling = &settings.sampling;
    let on = |is_on: bool| if is_on { "on" } else { "off" }.to_owned();
    let seed = settings.seed.map_or_else(|| "new for every answer".to_owned(), |seed| seed.to_string());
    let most = settings.generate.max_tokens.map_or_else(|| "until the model ends".to_owned(), |most| most.to_string());
    let last_n = if sampling.repeat_last_n == u32::MAX { "all".to_owned() } else { sampling.repeat_last_n.to_string() };
    let thinking = match settings.thinking {
        None => "as the model's template has it".to_owned(),
        Some(Thinking::True | Thinking::False) => on(settings.thinking == Some(Thinking::True)),
        Some(effort) => effort.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default(),
    };
    let stop = settings.generate.stop.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" ");
    [
        (sampling.temperature.to_string(), Names(&["temp", "temperature"])),
        (sampling.top_k.to_string(), Names(&["top-k"])),
        (sampling.top_p.to_string(), Names(&["top-p"])),
        (sampling.min_p.to_string(), Names(&["min-p"])),
        (sampling.repeat_penalty.to_string(), Names(&["repeat-penalty", "repetition-penalty"])),
        (sampling.presence_penalty.to_string(), Names(&["presence-penalty"])),
        (sampling.frequency_penalty.to_string(), Names(&["frequency-penalty"])),
        (last_n, Names(&["repeat-last-n"])),
        (seed, Names(&["seed", "s"])),
        (most, Names(&["predict", "n-predict", "num-predict", "max-tokens", "n"])),
        (if stop.is_empty() { "nothing".to_owned() } else { stop }, Names(&["stop"])),
        (on(settings.generate.ignore_eos), Names(&["ignore-eos"])),
        (thinking, Names(&["think", "nothink", "no-think"])),
        (on(manners.history), Names(&["history", "nohistory", "no-history"])),
        (on(manners.word_wrap), Names(&["wordwrap", "word-wrap", "nowordwrap", "no-word-wrap"])),
        (on(manners.verbose), Names(&["verbose", "quiet"])),
    ]
    .into_iter()
    .map(|(value, names)| (format!("  {:<17} {value}\n", names.0[0]), names))
    .collect()
}

fn no_setting(name: &str) -> Error {
    let reason = match name {
        "" => "name a setting and its value; /set shows them all",
        "num-ctx" | "ctx-size" | "c" => "the context is laid out when the model loads: start with -c N",
        "num-gpu" | "n-gpu-layers" | "gpu-layers" | "ngl" => "layers are placed when the model loads: start with -ngl N",
        "num-thread" | "threads" | "t" => "threads start with the program: start with -t N",
        "format" | "noformat" => "ollama's setting has no twin here; /set shows what can be set",
        _ => "there is no such setting; /set shows them all",
    };
    invalid(name, reason)
}

fn invalid(name: &str, reason: impl Into<String>) -> Error {
    Error::InvalidArgument { option: format!("/set {name}").into(), reason: reason.into() }
}

/// ollama's `/set think`, with a value or none.
fn thinking(name: &str, value: Option<&str>) -> Result<Option<Thinking>> {
    let read = |value: &str| match value {
        "" => Ok(Thinking::True),
        other => Thinking::from_str(other, true)
            .map_err(|_| invalid(name, format!("`{other}` is none of on, off, low, medium, high and default"))),
    };
    value.map(read).transpose()
}

fn number<T: std::str::FromStr>(name: &str, value: Option<&str>) -> Result<Option<T>> {
    let read = |text: &str| text.parse().map_err(|_| invalid(name, format!("`{text}` is no number that it can be, nor `default`")));
    value.map(read).transpose()
}

/// Below zero is all, which `all` stands for.
fn all_if_negative(value: Option<i64>, all: u32) -> Option<u32> {
    value.map(|value| if value < 0 { all } else { u32::try_from(value).unwrap_or(u32::MAX) })
}

/// A bare name switches on.
fn switch(name: &str, value: &str) -> Result<bool> {
    match value {
        "" | "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        other => Err(invalid(name, format!("`{other}` is neither on nor off"))),
    }
}

/// One text, or several in quotes, in which `\n` is a line break.
fn stops(value: Option<&str>) -> Result<Vec<String>> {
    let texts = match value {
        None | Some("") => Vec::new(),
        Some(quoted) if quoted.starts_with('"') => {
            let texts = serde_json::Deserializer::from_str(quoted).into_iter::<String>().collect::<Result<Vec<_>, _>>();
            texts.map_err(|_| invalid("stop", "write each text in quotes: /set stop \"one\" \"two\""))?
        }
        Some(text) => vec![text.to_owned()],
    };
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
    StopStrings::new(texts.clone())?;
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNERS: Manners = Manners { history: true, word_wrap: true, verbose: false };

    fn changed(line: &str) -> Result<(Settings, Manners, String)> {
        let (mut settings, mut manners) = (Settings::for_tests(), MANNERS);
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        let model = ModelDefaults { top_k: Some(7), ..ModelDefaults::default() };
        let text = set(&mut settings, &mut manners, &model, name, value)?;
        Ok((settings, manners, text))
    }

    #[test]
    fn names_of_three_programs_set_the_same() {
        for (line, shown) in [
            ("temp 0.25", "  temp              0.25\n"),
            ("temperature 0.25", "  temp              0.25\n"),
            ("--temp 0", "  temp              0\n"),
            ("top_k 5", "  top-k             5\n"),
            ("top-k default", "  top-k             7\n"),
            ("top_k -1", "  top-k             0\n"),
            ("repeat_last_n -1", "  repeat-last-n     all\n"),
            ("seed 42", "  seed              42\n"),
            ("seed -1", "  seed              new for every answer\n"),
            ("num_predict 9", "  predict           9\n"),
            ("n -1", "  predict           until the model ends\n"),
            ("stop END", "  stop              \"END\"\n"),
            ("stop \"a b\" \"\\n\"", "  stop              \"a b\" \"\\n\"\n"),
            ("stop default", "  stop              nothing\n"),
            ("think", "  think             on\n"),
            ("nothink", "  think             off\n"),
            ("think high", "  think             high\n"),
            ("think default", "  think             as the model's template has it\n"),
            ("history off", "  history           off\n"),
            ("nohistory", "  history           off\n"),
            ("nowordwrap", "  wordwrap          off\n"),
            ("verbose", "  verbose           on\n"),
            ("quiet", "  verbose           off\n"),
        ] {
            assert_eq!(changed(line).unwrap_or_else(|error| panic!("{line}: {error}")).2, shown, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_set_is_refused_and_changes_nothing() {
        for (line, hint) in [
            ("temp warm", "`warm` is no number"),
            ("temp NaN", "out of range"),
            ("temp", "is no number"),
            ("top_p 1.5", "--top-p: 1.5 is out of range"),
            ("num_ctx 4096", "start with -c N"),
            ("num_gpu 3", "start with -ngl N"),
            ("colour red", "/set colour: there is no such setting"),
            ("history maybe", "neither on nor off"),
            ("think hard", "none of on, off, low"),
            ("stop \"a", "in quotes"),
        ] {
            let error = crate::cli::words::text_of(&changed(line).map(|_| ()).unwrap_err());
            assert!(error.contains(hint), "{line}: {error}");
        }
        let mut settings = Settings::for_tests();
        let before = settings.sampling.clone();
        set(&mut settings, &mut MANNERS.clone(), &ModelDefaults::default(), "temp", "-3").unwrap_err();
        assert_eq!(settings.sampling, before);
    }
}
