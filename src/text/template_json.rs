//! Values of templates as Python writes them: `json.dumps` and numbers. Knows no template.

use std::io::{self, Write};

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind};

use super::template_filters::Options;

/// Bytes that one call may make.
const MAX_JSON_BYTES: usize = 16 << 20;
/// Spaces of indentation, at most.
const MAX_INDENT: usize = 16;
/// Values inside values.
const MAX_DEPTH: usize = 64;

/// `value` as transformers' own `tojson` writes it (`chat_template_utils.py`): Python's
/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, nothing escaped for HTML.
pub(super) fn tojson(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let options = Options::new(arguments);
    let indent = options.get(1, "indent")?.map(|indent| match indent.as_usize() {
        Some(spaces) => " ".repeat(spaces.min(MAX_INDENT)),
        None => indent.as_str().unwrap_or_default().chars().take(MAX_INDENT).collect(),
    });
    let separators = options.get(2, "separators")?;
    let separator = |index: usize, default: &str| {
        let given = separators.as_ref().and_then(|pair| pair.get_item_by_index(index).ok());
        given.and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_else(|| default.to_owned())
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let mut writer = Json {
        out: Capped::new(MAX_JSON_BYTES),
        between: separator(0, if indent.is_some() { "," } else { ", " }),
        behind_key: separator(1, ": "),
        ascii: is_true(options.get(0, "ensure_ascii")?),
        sorted: is_true(options.get(3, "sort_keys")?),
        indent,
    };
    options.finish()?;
    writer.value(value, 0).map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson fails: {error}")))?;
    String::from_utf8(writer.out.bytes).map(Value::from).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Writes JSON with Python's options.
struct Json {
    out: Capped,
    between: String,
    behind_key: String,
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("its values are nested too deep"));
        }
        match value.kind() {
            ValueKind::Map => self.map(value, depth),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            _ => {
                let word = scalar(value).ok_or_else(|| io::Error::other(format!("{} is not JSON serializable", value.kind())))?;
                self.out.write_all(word.as_bytes())
            }
        }
    }

    fn map(&mut self, map: &Value, depth: usize) -> io::Result<()> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        for key in map.try_iter().map_err(io::Error::other)? {
            let value = map.get_item(&key).map_err(io::Error::other)?;
            let name = match key.as_str() {
                Some(name) => name.to_owned(),
                None => scalar(&key).ok_or_else(|| io::Error::other("keys must be texts, numbers or none"))?,
            };
            entries.push((name, value));
        }
        if self.sorted {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let items = entries.into_iter().map(|(name, value)| (Some(name), value)).collect();
        self.items(("{", "}"), items, depth)
    }

    fn list(&mut self, list: &Value, depth: usize) -> io::Result<()> {
        let items = list.try_iter().map_err(io::Error::other)?.map(|item| (None, item)).collect();
        self.items(("[", "]"), items, depth)
    }

    /// Items between brackets, those of a map with their names.
    fn items(&mut self, (open, close): (&str, &str), items: Vec<(Option<String>, Value)>, depth: usize) -> io::Result<()> {
        self.out.write_all(open.as_bytes())?;
        let is_empty = items.is_empty();
        for (index, (name, item)) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.write_all(self.between.as_bytes())?;
            }
            self.line(depth + 1)?;
            if let Some(name) = name {
                self.text(&name)?;
                self.out.write_all(self.behind_key.as_bytes())?;
            }
            self.value(&item, depth + 1)?;
        }
        if !is_empty {
            self.line(depth)?;
        }
        self.out.write_all(close.as_bytes())
    }

    /// A new line where there is an indentation.
    fn line(&mut self, depth: usize) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        let line = format!("\n{}", indent.repeat(depth));
        self.out.write_all(line.as_bytes())
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('"');
        for character in text.chars() {
            match character {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\u{8}' => quoted.push_str("\\b"),
                '\u{c}' => quoted.push_str("\\f"),
                _ if character < ' ' || (self.ascii && !matches!(character, ' '..='~')) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        quoted.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => quoted.push(character),
            }
        }
        quoted.push('"');
        self.out.write_all(quoted.as_bytes())
    }
}

/// A value without parts, as JSON has it; `None` for what JSON has not.
fn scalar(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::None => Some("null".into()),
        ValueKind::Bool => Some(if value.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number if value.is_integer() => Some(value.to_string()),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(|number| match number {
            _ if number.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            _ => float(number),
        }),
        _ => None,
    }
}

/// A finite number as Python's `repr` writes it: an exponent has a sign and two digits.
pub(super) fn float(number: f64) -> String {
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
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

impl Write for Capped {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        // Of Python 3's repr.
        for (number, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-7, "1e-07"),
            (1.5e-10, "1.5e-10"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (1e100, "1e+100"),
        ] {
            assert_eq!(float(number), text);
        }
    }
}
