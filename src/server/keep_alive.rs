//! How long a model stays loaded that nobody asks, in Ollama's words: `5m`, `1h30m`, `0`, seconds, and below 0 for ever.

use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

/// How long a model stays loaded that nobody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// So long after its last answer.
    For(Duration),
    /// Until others need its room.
    Forever,
}

/// Longer ones stand for ever: clocks end somewhere.
const MAX_SECS: f64 = 1e9;

impl Default for KeepAlive {
    fn default() -> KeepAlive {
        KeepAlive::For(Duration::from_secs(5 * 60))
    }
}

impl KeepAlive {
    fn of_secs(secs: f64) -> Option<KeepAlive> {
        match secs {
            _ if secs.is_nan() => None,
            _ if !(0.0..=MAX_SECS).contains(&secs) => Some(KeepAlive::Forever),
            _ => Some(KeepAlive::For(Duration::from_secs_f64(secs))),
        }
    }

    /// What a request says, in a text or as seconds.
    pub(super) fn of_value(value: &Value) -> Option<KeepAlive> {
        match value {
            Value::String(text) => text.parse().ok(),
            value => KeepAlive::of_secs(value.as_f64()?),
        }
    }
}

impl FromStr for KeepAlive {
    type Err = String;

    fn from_str(text: &str) -> Result<KeepAlive, String> {
        let wrong = || format!("`{text}` is no duration; write one as in 30s, 5m or 1h30m, 0 for none, or -1 for ever");
        if let Ok(secs) = text.parse() {
            return KeepAlive::of_secs(secs).ok_or_else(wrong);
        }
        let (is_negative, mut rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        if rest.is_empty() {
            return Err(wrong());
        }
        let mut secs = 0.0;
        while !rest.is_empty() {
            let n_digits = rest.find(|char: char| !char.is_ascii_digit() && char != '.').ok_or_else(wrong)?;
            let number: f64 = rest[..n_digits].parse().map_err(|_| wrong())?;
            rest = &rest[n_digits..];
            let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
            let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(wrong)?;
            secs += number * factor;
            rest = &rest[unit.len()..];
        }
        KeepAlive::of_secs(if is_negative { -1.0 } else { secs }).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_ollama_reads_them() {
        let secs = |secs: f64| Ok(KeepAlive::For(Duration::from_secs_f64(secs)));
        for (text, expected) in [("5m", secs(300.0)), ("1h30m", secs(5400.0)), ("1.5s", secs(1.5)), ("200ms", secs(0.2)), ("0", secs(0.0))]
        {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for forever in ["-1", "-1m", "99999999999", "99999999999h"] {
            assert_eq!(forever.parse(), Ok(KeepAlive::Forever), "{forever}");
        }
        for wrong in ["", "m", "5x", "5 m", "nan", "-", "1..2s", "five"] {
            assert!(wrong.parse::<KeepAlive>().is_err(), "{wrong}");
        }
        assert_eq!(KeepAlive::of_value(&serde_json::json!(30)), secs(30.0).ok());
        assert_eq!(KeepAlive::of_value(&serde_json::json!([])), None);
    }
}
