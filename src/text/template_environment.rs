//! What a chat template can call, and what it may use up. Knows no model and no message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters};

use super::template_filters;
use super::template_json::{float, tojson};
use super::template_methods;
use super::template_operators::{PRODUCT, REMAINDER};
use super::template_source::{CHECK, Prepared};
use super::template_time::strftime_now;
use crate::platform::limited::Deadline;

/// Instructions for one rendering; a conversation of a thousand messages takes some hundred thousand.
const FUEL: u64 = 5_000_000;
/// Calls inside calls.
const MAX_RECURSION: usize = 100;
/// Values inside values.
const MAX_DEPTH: usize = 32;
/// Values of a list that is made by repeating one.
const MAX_REPEATED_VALUES: usize = 1 << 20;

/// What one rendering may use up. What goes in is let out again: each limit grows with the conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Time for all of it.
    pub time: Duration,
    /// Bytes of the result.
    pub output: usize,
    /// Bytes of one value, with all that is in it.
    value: usize,
    /// Bytes of all values that were given a name, one after the other.
    named: usize,
    /// Bytes printed, into the result or into texts that are used further.
    printed: usize,
    /// Bytes of the template's own text printed, at most.
    plain: usize,
    /// Bytes that one call of a filter may come to.
    product: usize,
}

impl Limits {
    /// The limits for a conversation of so many bytes.
    pub(super) fn new(bytes: usize) -> Limits {
        let seconds = u64::try_from(bytes >> 20).unwrap_or(0) + 1;
        Limits {
            time: Duration::from_secs(seconds),
            output: 16 << 20,
            value: (4 << 20) + 4 * bytes,
            named: (256 << 20) + 64 * bytes,
            printed: (16 << 20) + 4 * bytes,
            plain: 256 << 20,
            product: (64 << 20) + 16 * bytes,
        }
    }
}

/// An environment for one rendering of `prepared`, with Hugging Face's whitespace rules, functions and filters.
pub(super) fn environment(prepared: Prepared, limits: Limits) -> Result<Environment<'static>, Error> {
    let meter = Arc::new(Meter::new(prepared.plain_bytes, limits));
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
    template_filters::add(&mut environment);
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
        if value.is_number() && !value.is_integer() {
            let number = f64::try_from(value.clone())?;
            return if number.is_finite() {
                out.write_str(&float(number)).map_err(Error::from)
            } else {
                minijinja::escape_formatter(out, state, value)
            };
        }
        minijinja::escape_formatter(out, state, value)
    });
}

/// Weighs what is named, and what goes into the filters whose result can be larger than all that goes in.
fn limit_growth(environment: &mut Environment<'static>, meter: &Arc<Meter>) {
    let naming = Arc::clone(meter);
    environment.add_function(CHECK, move |values: Rest<Value>| naming.name(&values).map(|()| Value::UNDEFINED));
    for (name, filter) in [
        ("replace", Value::from_function(template_filters::replace)),
        ("join", Value::from_function(filters::join)),
        ("format", Value::from_function(filters::format)),
        ("indent", Value::from_function(template_filters::indent)),
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
            meter.growth(name, &arguments)?;
            filter.call(state, &arguments)
        });
    }
    let multiplying = Arc::clone(meter);
    environment.add_function(PRODUCT, move |a: Value, b: Value| multiplying.multiply(&a, &b));
    environment.add_function(REMAINDER, remainder);
    let meter = Arc::clone(meter);
    environment.set_unknown_method_callback(move |state, value, method, arguments| {
        if let Some(result) = template_methods::call(value, method, arguments) {
            return result;
        }
        if matches!(method, "replace" | "join" | "format") {
            let all: Vec<Value> = std::iter::once(value).chain(arguments).cloned().collect();
            meter.growth(method, &all)?;
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
    limits: Limits,
    deadline: Deadline,
    /// What one pass over the template prints without being asked.
    plain_bytes: usize,
    checks: AtomicUsize,
    named_bytes: AtomicUsize,
    printed_bytes: AtomicUsize,
}

impl Meter {
    fn new(plain_bytes: usize, limits: Limits) -> Meter {
        let zero = AtomicUsize::default;
        let deadline = Deadline::after(limits.time);
        Meter { limits, deadline, plain_bytes, checks: zero(), named_bytes: zero(), printed_bytes: zero() }
    }

    /// Values were given names. Every turn of a loop and every call of a macro passes here.
    fn name(&self, values: &[Value]) -> Result<(), Error> {
        self.in_time()?;
        let checks = self.checks.fetch_add(1, Ordering::Relaxed);
        if checks.saturating_mul(self.plain_bytes) > self.limits.plain {
            return Err(too_much("it prints too much"));
        }
        for value in values {
            let bytes = weigh(value, self.limits.value)?;
            let named = self.named_bytes.fetch_add(bytes, Ordering::Relaxed);
            if named > self.limits.named {
                return Err(too_much("its values are too large"));
            }
        }
        Ok(())
    }

    /// A value is printed.
    fn print(&self, value: &Value) -> Result<(), Error> {
        let bytes = weigh(value, self.limits.printed)?;
        if self.printed_bytes.fetch_add(bytes, Ordering::Relaxed) > self.limits.printed {
            return Err(too_much("it prints too much"));
        }
        self.in_time()
    }

    /// A filter or method is called whose result can be larger than all that goes in.
    fn growth(&self, name: &str, arguments: &[Value]) -> Result<(), Error> {
        self.in_time()?;
        let len = |index: usize| arguments.get(index).and_then(Value::as_str).map_or(0, str::len);
        let bytes = match (name, arguments.first()) {
            // Each place where the old text can stand takes the new one.
            ("replace", Some(text)) if text.as_str().is_some() => {
                (len(0) / len(1).max(1)).saturating_add(1).saturating_mul(len(2).saturating_add(1)).saturating_add(len(0))
            }
            ("join", Some(list)) if list.as_str().is_none() => {
                let parts = weigh(list, self.limits.value)?;
                list.len().unwrap_or(parts).saturating_mul(len(1)).saturating_add(parts)
            }
            ("list" | "string" | "sort" | "pprint", Some(value)) => weigh(value, self.limits.value)?.saturating_mul(4),
            _ => {
                // Each part of one argument can become all of another; a number can be a width.
                let mut product = 1usize;
                for argument in arguments {
                    let number = argument.as_usize().unwrap_or(0);
                    product = product.saturating_mul(weigh(argument, self.limits.value)?.max(number).saturating_add(1));
                }
                product
            }
        };
        if bytes > self.limits.product { Err(too_much("the result of a filter would be too large")) } else { Ok(()) }
    }

    /// `a * b`: numbers, or a text or list so many times.
    fn multiply(&self, a: &Value, b: &Value) -> Result<Value, Error> {
        self.in_time()?;
        let (repeated, times) = if is_repeatable(b) { (b, a) } else { (a, b) };
        if !is_repeatable(repeated) {
            return multiply_numbers(a, b);
        }
        let impossible =
            || Error::new(ErrorKind::InvalidOperation, format!("{} cannot be multiplied by {}", repeated.kind(), times.kind()));
        let times = i64::try_from(times.clone()).map_err(|_| impossible())?;
        let times = usize::try_from(times).unwrap_or(0);
        if weigh(repeated, self.limits.value)?.saturating_mul(times) > self.limits.value {
            return Err(too_much("a repeated text or list would be too large"));
        }
        if let Some(text) = repeated.as_str() {
            return Ok(Value::from(text.repeat(times)));
        }
        let items: Vec<Value> = repeated.try_iter()?.collect();
        if items.len().saturating_mul(times) > MAX_REPEATED_VALUES {
            return Err(too_much("a repeated text or list would be too large"));
        }
        let n_items = items.len() * times;
        Ok(items.into_iter().cycle().take(n_items).collect())
    }

    fn in_time(&self) -> Result<(), Error> {
        if self.deadline.has_passed() { Err(too_much("it takes too long")) } else { Ok(()) }
    }
}

fn is_repeatable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Iterable)
}

fn multiply_numbers(a: &Value, b: &Value) -> Result<Value, Error> {
    let impossible = || Error::new(ErrorKind::InvalidOperation, format!("{} cannot be multiplied by {}", a.kind(), b.kind()));
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    if is_whole(a) && is_whole(b) {
        let whole =
            |value: &Value| if value.kind() == ValueKind::Bool { Ok(i128::from(value.is_true())) } else { i128::try_from(value.clone()) };
        return whole(a)?.checked_mul(whole(b)?).map(Value::from).ok_or_else(|| too_much("a number is too large"));
    }
    let number = |value: &Value| f64::try_from(value.clone()).map_err(|_| impossible());
    Ok(Value::from(number(a)? * number(b)?))
}

/// `a % b`: Python's formatting of a text, the remainder of numbers with the sign of `b`.
fn remainder(state: &mut State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    if a.as_str().is_some() {
        let mut arguments = vec![a];
        match b.kind() {
            ValueKind::Seq if b.is_tuple() => arguments.extend(b.try_iter()?),
            ValueKind::Map => arguments
                .push(b.try_iter()?.filter_map(|key| Some((key.as_str()?.to_owned(), b.get_item(&key).ok()?))).collect::<Kwargs>().into()),
            _ => arguments.push(b),
        }
        return state.apply_filter("format", &arguments);
    }
    let zero = || Error::new(ErrorKind::InvalidOperation, "division by zero");
    if a.is_integer() && b.is_integer() {
        let (a, b) = (i128::try_from(a)?, i128::try_from(b)?);
        let remainder = a.checked_rem(b).ok_or_else(zero)?;
        return Ok(Value::from(if remainder != 0 && (remainder < 0) != (b < 0) { remainder + b } else { remainder }));
    }
    let impossible = Error::new(ErrorKind::InvalidOperation, format!("{} has no remainder by {}", a.kind(), b.kind()));
    let (Ok(a), Ok(b)) = (f64::try_from(a), f64::try_from(b)) else { return Err(impossible) };
    if b == 0.0 {
        return Err(zero());
    }
    let remainder = a % b;
    Ok(Value::from(if remainder != 0.0 && (remainder < 0.0) != (b < 0.0) { remainder + b } else { remainder }))
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

fn too_much(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
