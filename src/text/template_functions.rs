//! Functions and filters that Hugging Face gives to chat templates and the template engine lacks. Limits nothing but their results.

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::platform::clock::unix_seconds;

/// Bytes that `tojson` may make.
const MAX_JSON_BYTES: usize = 4 << 20;
const MAX_INDENT: usize = 16;

/// `value` as Python's `json.dumps(value, ensure_ascii=False)` writes it: a space behind commas and colons, nothing escaped for HTML.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options change nothing here.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut json = Capped::new(MAX_JSON_BYTES);
    let written = match indent.map(|indent| indent.min(MAX_INDENT)) {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonFormatter)),
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
    };
    let failed = |fault: String| Error::new(ErrorKind::InvalidOperation, format!("tojson fails: {fault}"));
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(json.bytes).map(Value::from_safe_string).map_err(|error| failed(error.to_string()))
}

/// A writer that refuses more than so many bytes.
#[derive(Debug)]
pub(super) struct Capped {
    /// What was written.
    pub bytes: Vec<u8>,
    limit: usize,
}

impl Capped {
    pub(super) fn new(limit: usize) -> Capped {
        Capped { bytes: Vec::new(), limit }
    }
}

impl io::Write for Capped {
    fn write(&mut self, new: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + new.len() > self.limit {
            return Err(io::Error::other(format!("it prints more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(new);
        Ok(new.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python's spacing of JSON on one line.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The present time in UTC, written as C's `strftime` does. Knows the fields that templates use.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let failed = |fault: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now fails: {fault}"));
    let seconds = unix_seconds().ok_or_else(|| failed("there is no clock here"))?;
    strftime(format, seconds).map_err(|fault| failed(&fault))
}

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let of = |names: &[&'static str], index: u64| usize::try_from(index).ok().and_then(|index| names.get(index)).copied().unwrap_or("");
    let (weekday, month_name) = (of(&DAYS, days % 7), of(&MONTHS, month - 1));
    let short = |name: &str| name.chars().take(3).collect::<String>();
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut field = rest.next();
        let unpadded = field == Some('-');
        if unpadded {
            field = rest.next();
        }
        let two = |value: u64| if unpadded { value.to_string() } else { format!("{value:02}") };
        text.push_str(&match field {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => short(weekday),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => short(month_name),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => return Err(format!("the field %{} is not known", other.map(String::from).unwrap_or_default())),
        });
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_c_writes_them() {
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %a %A %b %B", 0).unwrap(), "1970-01-01 00:00:00 Thu Thursday Jan January");
        assert_eq!(strftime("%d %b %Y, %I:%M %p", 1_709_210_096).unwrap(), "29 Feb 2024, 12:34 PM");
        assert_eq!(strftime("%-d/%-m %%", 1_709_337_600).unwrap(), "2/3 %");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn json_is_spaced_as_python_spaces_it() {
        let list = Value::from(vec![Value::from(1), Value::from("<é>")]);
        let value = Value::from_pairs([("a", list), ("b", Value::from_pairs([("c", ())]))]);
        let text = |options: &[(&str, Value)]| tojson(&value, options.iter().cloned().collect()).unwrap().to_string();
        assert_eq!(text(&[]), r#"{"a": [1, "<é>"], "b": {"c": null}}"#);
        assert!(text(&[("indent", Value::from(2))]).starts_with("{\n  \"a\": [\n    1,"));
    }
}
