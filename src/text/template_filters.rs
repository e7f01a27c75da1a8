//! Filters and tests of Jinja2 that the engine lacks or has otherwise. Knows no template and limits nothing but widths.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State};

use super::template_methods;

/// Characters of a line that words are wrapped into.
const MAX_LINE: usize = 1 << 16;
/// Bytes that wrapping may add between lines.
const MAX_WRAPPED_BYTES: usize = 16 << 20;

/// Adds all of them.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("wordcount", |text: String| words(&text).count());
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordwrap", wordwrap);
    environment.add_filter("striptags", |text: String| striptags(&text));
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("center", |text: String, width: Option<i64>| template_methods::center(&text, width));
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter("forceescape", |state: &mut State<'_, '_>, value: Value| minijinja::filters::escape(state, &value));
    environment.add_test("iterable", |value: &Value| is_iterable(value));
    environment.add_test("sequence", |value: &Value| is_iterable(value));
    environment.add_test("callable", |value: &Value| is_callable(value));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
}

/// The arguments of a filter behind the value that it is applied to, each by its position or its name.
pub(super) struct Options {
    positional: Vec<Value>,
    named: Option<Kwargs>,
}

impl Options {
    pub(super) fn new(arguments: Rest<ValueOrKwargs>) -> Options {
        let mut positional = arguments.into_values();
        let named = positional.last().and_then(|last| Kwargs::try_from(last.clone()).ok());
        if named.is_some() {
            positional.pop();
        }
        Options { positional, named }
    }

    /// The argument, unless it is none or not given.
    pub(super) fn get(&self, index: usize, name: &str) -> Result<Option<Value>, Error> {
        let named = self.named.as_ref().map(|named| named.get::<Option<Value>>(name)).transpose()?.flatten();
        Ok(self.positional.get(index).cloned().or(named).filter(|value| !value.is_none() && !value.is_undefined()))
    }

    /// The argument as a whole number.
    fn whole(&self, index: usize, name: &str, default: usize) -> Result<usize, Error> {
        let Some(value) = self.get(index, name)? else { return Ok(default) };
        value.as_usize().ok_or_else(|| invalid(format!("{name} must be a whole number, not {value}")))
    }

    /// Refuses names that nothing asked for.
    pub(super) fn finish(&self) -> Result<(), Error> {
        self.named.as_ref().map_or(Ok(()), Kwargs::assert_all_used)
    }
}

fn invalid(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// What is not there has none of anything.
fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        Some(length) => Ok(length),
        None if value.is_undefined() => Ok(0),
        None => Err(invalid(format!("{} has no length", value.kind()))),
    }
}

/// Python can go through texts, lists, maps and what is not there, but not through none, truth values and numbers.
fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) && (value.is_undefined() || value.try_iter().is_ok())
}

/// Functions and macros. They are objects that are no lists and no maps.
fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}

/// A text's number, or `default` where it has none; in the base that is given.
fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Value {
    let default = || default.clone().unwrap_or_else(|| Value::from(0));
    match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => truncated(f64::try_from(value.clone()).ok()).unwrap_or_else(default),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim().replace('_', "");
            let base = base.unwrap_or(10);
            let digits = match base {
                16 => text.strip_prefix("0x").or(text.strip_prefix("0X")),
                8 => text.strip_prefix("0o").or(text.strip_prefix("0O")),
                2 => text.strip_prefix("0b").or(text.strip_prefix("0B")),
                _ => None,
            };
            let whole = if (2..=36).contains(&base) { i128::from_str_radix(digits.unwrap_or(&text), base).ok() } else { None };
            whole.map(Value::from).or_else(|| truncated(text.parse().ok())).unwrap_or_else(default)
        }
        _ => default(),
    }
}

/// The whole part of a number that has one.
fn truncated(number: Option<f64>) -> Option<Value> {
    number.filter(|number| number.is_finite() && number.abs() < 1e30).map(|number| Value::from(number.trunc() as i128))
}

/// A text's number, or `default` where it has none.
fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => value.as_str().and_then(|text| text.trim().replace('_', "").parse().ok()),
        _ => None,
    };
    number.map(Value::from).unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0.0)))
}

/// The first `count` places of `old` replaced by `new`; all of them without a count.
pub(super) fn replace(text: String, old: String, new: String, count: Option<i64>) -> String {
    match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => text.replacen(&old, &new, count),
        None => text.replace(&old, &new),
    }
}

/// Every line but the first, or with `first` that too, behind a number of spaces or a text; empty lines only with `blank`.
pub(super) fn indent(text: String, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = Options::new(arguments);
    let width = options.get(0, "width")?;
    let first = options.get(1, "first")?.is_some_and(|value| value.is_true());
    let blank = options.get(2, "blank")?.is_some_and(|value| value.is_true());
    options.finish()?;
    let indention = match width.as_ref().map(|width| (width.as_str(), width.as_usize())) {
        None => " ".repeat(4),
        Some((Some(text), _)) => text.to_owned(),
        Some((None, Some(spaces))) if spaces <= MAX_LINE => " ".repeat(spaces),
        Some(_) => return Err(invalid("lines cannot be indented so far")),
    };
    let mut indented = String::new();
    // A line break at the end has an empty line behind it.
    for (index, line) in format!("{text}\n").lines().enumerate() {
        if index > 0 {
            indented.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            indented.push_str(&indention);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// Runs of letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !(character.is_alphanumeric() || character == '_')).filter(|word| !word.is_empty())
}

/// The beginning of a text with an ellipsis, unless it is only `leeway` longer than it may be.
fn truncate(text: String, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = Options::new(arguments);
    let length = options.whole(0, "length", 255)?;
    let killwords = options.get(1, "killwords")?.is_some_and(|value| value.is_true());
    let end = options.get(2, "end")?.map_or_else(|| "...".to_owned(), |end| end.to_string());
    let leeway = options.whole(3, "leeway", 5)?;
    options.finish()?;
    let room =
        length.checked_sub(end.chars().count()).ok_or_else(|| invalid(format!("expected length >= that of {end:?}, got {length}")))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let cut: String = text.chars().take(room).collect();
    let kept = if killwords { cut.as_str() } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before) };
    Ok(format!("{kept}{end}"))
}

/// Lines of at most `width` characters, as Python's `textwrap.wrap(expand_tabs=False, replace_whitespace=False)` makes them of each line.
fn wordwrap(text: String, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = Options::new(arguments);
    let width = options.whole(0, "width", 79)?;
    let breaks = options.get(1, "break_long_words")?.is_none_or(|value| value.is_true());
    let wrapstring = options.get(2, "wrapstring")?.map_or_else(|| "\n".to_owned(), |text| text.to_string());
    let hyphens = options.get(3, "break_on_hyphens")?.is_none_or(|value| value.is_true());
    options.finish()?;
    if width == 0 || width > MAX_LINE {
        return Err(invalid("lines cannot be wrapped so"));
    }
    let lines: Vec<Vec<String>> = text.lines().map(|line| wrap_line(line, width, breaks, hyphens)).collect();
    let n_lines: usize = lines.iter().map(|line| line.len() + 1).sum();
    if n_lines.saturating_mul(wrapstring.len()) > MAX_WRAPPED_BYTES {
        return Err(invalid("wrapped lines would be too long"));
    }
    Ok(lines.into_iter().map(|line| line.join(&wrapstring)).collect::<Vec<String>>().join(&wrapstring))
}

fn wrap_line(line: &str, width: usize, breaks: bool, hyphens: bool) -> Vec<String> {
    // Of the line that is being filled: its text and its characters.
    let (mut lines, mut current, mut length) = (Vec::new(), String::new(), 0);
    for piece in pieces(line, hyphens) {
        let n_characters = piece.chars().count();
        let is_space = piece.starts_with(char::is_whitespace);
        if length + n_characters <= width {
            // White space at the beginning of any line but the first is dropped.
            if !(is_space && length == 0 && !lines.is_empty()) {
                current.push_str(&piece);
                length += n_characters;
            }
        } else if is_space {
            lines.push(std::mem::take(&mut current));
            length = 0;
        } else if n_characters > width && breaks {
            for character in piece.chars() {
                if length == width {
                    lines.push(std::mem::take(&mut current));
                    length = 0;
                }
                current.push(character);
                length += 1;
            }
        } else {
            lines.push(std::mem::replace(&mut current, piece));
            length = n_characters;
        }
    }
    lines.push(current);
    lines.into_iter().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Words and the white space between them; words are cut behind hyphens between letters.
fn pieces(line: &str, hyphens: bool) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let characters: Vec<char> = line.chars().collect();
    for (index, &character) in characters.iter().enumerate() {
        let before = |back: usize| index.checked_sub(back).and_then(|at| characters.get(at)).copied();
        let starts = match before(1) {
            None => true,
            Some(last) if last.is_whitespace() != character.is_whitespace() => true,
            Some('-') => {
                let letters = before(2).is_some_and(char::is_alphabetic) && before(3).is_some_and(char::is_alphanumeric);
                hyphens && letters && character.is_alphabetic()
            }
            Some(_) => false,
        };
        match pieces.last_mut().filter(|_| !starts) {
            Some(piece) => piece.push(character),
            None => pieces.push(character.to_string()),
        }
    }
    pieces
}

/// A text without its tags and comments, its white space made single spaces and its entities characters (MarkupSafe's `striptags`).
fn striptags(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("<!--") {
        plain.push_str(before);
        let Some((_, after)) = comment.split_once("-->") else {
            plain.push_str("<!--");
            rest = comment;
            break;
        };
        rest = after;
    }
    plain.push_str(rest);
    let (mut bare, mut rest) = (String::new(), plain.as_str());
    while let Some((before, tag)) = rest.split_once('<') {
        let Some((_, after)) = tag.split_once('>') else { break };
        bare.push_str(before);
        rest = after;
    }
    bare.push_str(rest);
    let spaced: Vec<&str> = bare.split_whitespace().collect();
    let mut text = spaced.join(" ");
    for (entity, character) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&")] {
        text = text.replace(entity, character);
    }
    text
}

/// A text with percent signs for what a URL's path cannot have, or a map or list of pairs as a query.
fn urlencode(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(quoted(text, true));
    }
    let pair = |name: &Value, value: &Value| format!("{}={}", quoted(&name.to_string(), false), quoted(&value.to_string(), false));
    let pairs: Result<Vec<String>, Error> = match value.kind() {
        ValueKind::Map => value.try_iter()?.map(|name| Ok(pair(&name, &value.get_item(&name)?))).collect(),
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.map(|item| Ok(pair(&item.get_item_by_index(0)?, &item.get_item_by_index(1)?))).collect()
        }
        _ => return Ok(quoted(&value.to_string(), true)),
    };
    Ok(pairs?.join("&"))
}

/// Python's `urllib.parse.quote` with `/` left alone, or `quote_plus`-like without: spaces become `+` there.
fn quoted(text: &str, is_path: bool) -> String {
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => quoted.push(char::from(byte)),
            b'/' if is_path => quoted.push('/'),
            b' ' if !is_path => quoted.push('+'),
            _ => quoted.push_str(&format!("%{byte:02X}")),
        }
    }
    quoted
}

/// A number of bytes for people: `13 kB`, or with `binary` `12.7 KiB`.
fn filesizeformat(value: f64, binary: Option<bool>) -> String {
    let (base, prefixes) = match binary.unwrap_or(false) {
        true => (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]),
        false => (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]),
    };
    if value == 1.0 {
        return "1 Byte".into();
    }
    if value < base {
        return format!("{} Bytes", value.trunc());
    }
    let mut unit = base * base;
    let mut last = 0;
    while last + 1 < prefixes.len() && value >= unit {
        unit *= base;
        last += 1;
    }
    format!("{:.1} {}", base * value / unit, prefixes.get(last).copied().unwrap_or_default())
}
