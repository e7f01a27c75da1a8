//! Methods of Python's texts, lists and maps that the engine's own set lacks. Knows no template.

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

/// Characters that a padded text may have.
const MAX_WIDTH: usize = 1 << 16;

/// `value.method(arguments)`, or `None` where the method is not known here.
pub(super) fn call(value: &Value, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    match value.kind() {
        ValueKind::String => text_method(value.as_str()?, method, arguments),
        ValueKind::Map if method == "copy" => Some(Ok(value.clone())),
        ValueKind::Seq => list_method(value, method, arguments),
        _ => None,
    }
}

fn text_method(text: &str, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let one = |change: &dyn Fn(&str) -> Value| from_args::<(&str,)>(arguments).map(|(argument,)| change(argument));
    let none = |value: Value| from_args::<()>(arguments).map(|()| value);
    Some(match method {
        "rsplit" => rsplit(text, arguments),
        "partition" => one(&|separator| match text.split_once(separator) {
            Some((before, after)) => three(before, separator, after),
            None => three(text, "", ""),
        }),
        "rpartition" => one(&|separator| match text.rsplit_once(separator) {
            Some((before, after)) => three(before, separator, after),
            None => three("", "", text),
        }),
        "removeprefix" => one(&|prefix| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => one(&|suffix| text.strip_suffix(suffix).unwrap_or(text).into()),
        "zfill" => from_args::<(i64,)>(arguments).and_then(|(width,)| zfill(text, width)),
        "ljust" => pad(text, arguments, |_, _| 0),
        "rjust" => pad(text, arguments, |missing, _| missing),
        // CPython's `str.center` gives the odd character to the left where the width is odd, too.
        "center" => pad(text, arguments, |missing, width| missing / 2 + (missing & width & 1)),
        "swapcase" => none(swapped(text).into()),
        "casefold" => none(text.to_lowercase().replace('ß', "ss").into()),
        "index" => one(&|part| position(text, text.find(part))).and_then(found),
        "rindex" => one(&|part| position(text, text.rfind(part))).and_then(found),
        "isdecimal" => none((!text.is_empty() && text.chars().all(|character| character.is_ascii_digit())).into()),
        "isprintable" => none((!text.chars().any(char::is_control)).into()),
        "istitle" => none(is_title(text).into()),
        "isidentifier" => none(is_identifier(text).into()),
        "expandtabs" => from_args::<(Option<usize>,)>(arguments).and_then(|(width,)| expand_tabs(text, width.unwrap_or(8))),
        _ => return None,
    })
}

fn list_method(list: &Value, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    match method {
        "index" => Some(from_args::<(Value,)>(arguments).and_then(|(wanted,)| {
            let position = list.try_iter()?.position(|item| item == wanted);
            position.map(Value::from).ok_or_else(|| invalid("the value is not in the list"))
        })),
        "copy" => Some(list.try_iter().map(|items| items.collect::<Vec<Value>>().into())),
        _ => None,
    }
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn three(before: &str, separator: &str, after: &str) -> Value {
    Value::from(Tuple::from([before, separator, after].map(Value::from)))
}

/// `split` from the right; at white space where no separator is given.
fn rsplit(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(arguments)?;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let mut parts: Vec<&str> = match (separator, limit) {
        (Some(""), _) => return Err(invalid("empty separator")),
        (Some(separator), None) => text.rsplit(separator).collect(),
        (Some(separator), Some(limit)) => text.rsplitn(limit.saturating_add(1), separator).collect(),
        (None, None) => text.split_whitespace().rev().collect(),
        (None, Some(limit)) => words_from_the_right(text, limit),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The last `limit` words, last first, then what is left before them.
fn words_from_the_right(text: &str, limit: usize) -> Vec<&str> {
    let (mut rest, mut words) = (text.trim_end(), Vec::new());
    while !rest.is_empty() && words.len() < limit {
        let (before, word) = rest.rsplit_once(char::is_whitespace).unwrap_or(("", rest));
        words.push(word);
        rest = before.trim_end();
    }
    words.extend(Some(rest).filter(|rest| !rest.is_empty()));
    words
}

/// Zeros behind the sign, up to `width` characters.
fn zfill(text: &str, width: i64) -> Result<Value, Error> {
    let missing = missing(text, width)?;
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    Ok(format!("{sign}{}{digits}", "0".repeat(missing)).into())
}

/// How many characters `text` lacks to be `width` long.
fn missing(text: &str, width: i64) -> Result<usize, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    if width > MAX_WIDTH {
        return Err(invalid("a text would be padded too far"));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

/// `text` filled up to a width, with so many of the missing characters on the left as `left` says of their number and the width.
fn pad(text: &str, arguments: &[Value], left: impl Fn(usize, usize) -> usize) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(arguments)?;
    let fill = fill.unwrap_or(" ");
    if fill.chars().count() != 1 {
        return Err(invalid("the fill character must be exactly one character long"));
    }
    let missing = missing(text, width)?;
    let left = left(missing, usize::try_from(width).unwrap_or(0));
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

/// `text` in the middle of `width` characters, as the filter `center` puts it.
pub(super) fn center(text: &str, width: Option<i64>) -> Result<Value, Error> {
    pad(text, &[Value::from(width.unwrap_or(80))], |missing, width| missing / 2 + (missing & width & 1))
}

/// The position in characters of the byte `at`; -1 for none.
fn position(text: &str, at: Option<usize>) -> Value {
    at.and_then(|at| text.get(..at)).map_or(Value::from(-1), |before| Value::from(before.chars().count()))
}

fn found(position: Value) -> Result<Value, Error> {
    if position == Value::from(-1) { Err(invalid("substring not found")) } else { Ok(position) }
}

fn swapped(text: &str) -> String {
    let swap = |character: char| match character.is_uppercase() {
        true => character.to_lowercase().collect::<String>(),
        false => character.to_uppercase().collect(),
    };
    text.chars().map(swap).collect()
}

/// Every word begins with its only upper-case letter, and there is one.
fn is_title(text: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for character in text.chars() {
        if character.is_uppercase() && in_word || character.is_lowercase() && !in_word {
            return false;
        }
        in_word = character.is_uppercase() || character.is_lowercase();
        any |= in_word;
    }
    any
}

fn is_identifier(text: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    text.chars().all(is_word) && text.chars().next().is_some_and(|first| !first.is_numeric())
}

/// Spaces up to the next column that `width` divides, in place of tabs.
fn expand_tabs(text: &str, width: usize) -> Result<Value, Error> {
    if width.saturating_mul(text.matches('\t').count()) > MAX_WIDTH {
        return Err(invalid("a text would be padded too far"));
    }
    let (mut out, mut column) = (String::new(), 0);
    for character in text.chars() {
        match character {
            '\t' if width > 0 => {
                let spaces = width - column % width;
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(character);
                column = 0;
            }
            _ => {
                out.push(character);
                column += 1;
            }
        }
    }
    Ok(out.into())
}
