//! What a chat template can call, and what it may use up. Knows no model and no message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters};

use super::template_functions::{strftime_now, tojson};
use super::template_source::{CHECK, Prepared};
use crate::platform::limited::Deadline;

/// Time for one rendering.
pub(super) const TIME_LIMIT: Duration = Duration::from_millis(1000);
/// Instructions for one rendering; a conversation of a thousand messages takes some hundred thousand.
const FUEL: u64 = 5_000_000;
/// Calls inside calls.
const MAX_RECURSION: usize = 100;
/// Bytes of one value, with all that is in it.
const MAX_VALUE_BYTES: usize = 4 << 20;
/// Bytes of all values that were given a name, one after the other.
const MAX_NAMED_BYTES: usize = 256 << 20;
/// Bytes printed, into the result or into texts that are used further.
const MAX_PRINTED_BYTES: usize = 16 << 20;
/// Bytes of the template's own text printed, at most.
const MAX_PLAIN_BYTES: usize = 256 << 20;
/// Bytes that one call of a filter may come to.
const MAX_PRODUCT: usize = 64 << 20;
/// Values inside values.
const MAX_DEPTH: usize = 32;

/// An environment for one rendering of `prepared`, with Hugging Face's whitespace rules, functions and filters.
pub(super) fn environment(prepared: Prepared) -> Result<Environment<'static>, Error> {
    let meter = Arc::new(Meter::new(prepared.plain_bytes));
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses these messages: {message}")))
    });
    environment.add_function("strftime_now", |format: &str| strftime_now(format));
    environment.add_filter("tojson", tojson);
    limit_printing(&mut environment, &meter);
    limit_growth(&mut environment, &meter);
    environment.add_template_owned("chat", prepared.source)?;
    Ok(environment)
}

/// Counts what is printed.
fn limit_printing(environment: &mut Environment<'static>, meter: &Arc<Meter>) {
    let printing = Arc::clone(meter);
    environment.set_formatter(move |out, state, value| {
        printing.print(value)?;
        minijinja::escape_formatter(out, state, value)
    });
}

/// Weighs what is named, and what goes into the filters whose result can be larger than all that goes in.
fn limit_growth(environment: &mut Environment<'static>, meter: &Arc<Meter>) {
    let naming = Arc::clone(meter);
    environment.add_function(CHECK, move |values: Rest<Value>| naming.name(&values).map(|()| Value::UNDEFINED));
    for (name, filter) in [
        ("replace", Value::from_function(filters::replace)),
        ("join", Value::from_function(filters::join)),
        ("format", Value::from_function(filters::format)),
        ("indent", Value::from_function(filters::indent)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("list", Value::from_function(filters::list)),
        ("string", Value::from_function(filters::string)),
        ("sort", Value::from_function(filters::sort)),
        ("pprint", Value::from_function(filters::pprint)),
    ] {
        let meter = Arc::clone(meter);
        environment.add_filter(name, move |state: &mut State<'_, '_>, arguments: Rest<ValueOrKwargs>| {
            let arguments = arguments.into_values();
            if name == "format" {
                check_widths(arguments.first())?;
            }
            meter.product(&arguments)?;
            filter.call(state, &arguments)
        });
    }
    let meter = Arc::clone(meter);
    environment.set_unknown_method_callback(move |state, value, method, arguments| {
        if matches!(method, "replace" | "join" | "format") {
            let all: Vec<Value> = std::iter::once(value).chain(arguments).cloned().collect();
            meter.product(&all)?;
        }
        if method == "format" {
            check_widths(Some(value))?;
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
    });
    environment.add_function("debug", || Err::<Value, Error>(too_much("debug() is not available")));
}

/// What one rendering has used up.
#[derive(Debug)]
struct Meter {
    deadline: Deadline,
    /// What one pass over the template prints without being asked.
    plain_bytes: usize,
    checks: AtomicUsize,
    named_bytes: AtomicUsize,
    printed_bytes: AtomicUsize,
}

impl Meter {
    fn new(plain_bytes: usize) -> Meter {
        let zero = AtomicUsize::default;
        Meter { deadline: Deadline::after(TIME_LIMIT), plain_bytes, checks: zero(), named_bytes: zero(), printed_bytes: zero() }
    }

    /// Values were given names. Every turn of a loop and every call of a macro passes here.
    fn name(&self, values: &[Value]) -> Result<(), Error> {
        self.in_time()?;
        let checks = self.checks.fetch_add(1, Ordering::Relaxed);
        if checks.saturating_mul(self.plain_bytes) > MAX_PLAIN_BYTES {
            return Err(too_much("it prints too much"));
        }
        for value in values {
            let bytes = weigh(value, MAX_VALUE_BYTES)?;
            let named = self.named_bytes.fetch_add(bytes, Ordering::Relaxed);
            if named > MAX_NAMED_BYTES {
                return Err(too_much("its values are too large"));
            }
        }
        Ok(())
    }

    /// A value is printed.
    fn print(&self, value: &Value) -> Result<(), Error> {
        let bytes = weigh(value, MAX_PRINTED_BYTES)?;
        if self.printed_bytes.fetch_add(bytes, Ordering::Relaxed) > MAX_PRINTED_BYTES {
            return Err(too_much("it prints too much"));
        }
        self.in_time()
    }

    /// A filter is called that can make of each part of one argument all of another.
    fn product(&self, arguments: &[Value]) -> Result<(), Error> {
        self.in_time()?;
        let mut product = 1usize;
        for argument in arguments {
            // A number can be a width.
            let number = argument.as_usize().unwrap_or(0);
            product = product.saturating_mul(weigh(argument, MAX_VALUE_BYTES)?.max(number).saturating_add(1));
        }
        if product > MAX_PRODUCT { Err(too_much("the result of a filter would be too large")) } else { Ok(()) }
    }

    fn in_time(&self) -> Result<(), Error> {
        if self.deadline.has_passed() { Err(too_much("it takes too long")) } else { Ok(()) }
    }
}

/// A format may not ask for fields of more than three digits' width.
fn check_widths(format: Option<&Value>) -> Result<(), Error> {
    let format = format.and_then(Value::as_str).unwrap_or_default();
    let widths = format.split(|character: char| !character.is_ascii_digit());
    if widths.map(str::len).max() > Some(3) { Err(too_much("the result of a format would be too large")) } else { Ok(()) }
}

/// Bytes of `value` and all that is in it; an error above `limit`.
fn weigh(value: &Value, limit: usize) -> Result<usize, Error> {
    let mut left = limit;
    weigh_into(value, &mut left, MAX_DEPTH)?;
    Ok(limit - left)
}

fn weigh_into(value: &Value, left: &mut usize, depth: usize) -> Result<(), Error> {
    let mut take = |bytes: usize| -> Result<(), Error> {
        *left = left.checked_sub(bytes).ok_or_else(|| too_much("one of its values is too large"))?;
        Ok(())
    };
    match value.kind() {
        ValueKind::String | ValueKind::Bytes => take(value.as_bytes().map_or(0, <[u8]>::len)),
        kind @ (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => {
            // Asked first: going through a list of a hundred million would take longer than it may.
            take(value.len().unwrap_or(0).saturating_mul(16))?;
            let depth = depth.checked_sub(1).ok_or_else(|| too_much("its values are nested too deep"))?;
            for item in value.try_iter()? {
                weigh_into(&item, left, depth)?;
                if kind == ValueKind::Map {
                    weigh_into(&value.get_item(&item)?, left, depth)?;
                }
            }
            Ok(())
        }
        _ => take(8),
    }
}

fn too_much(fault: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, fault)
}
