//! A chat template's source, looked over before it is compiled: limits on its nesting, and a check put behind every tag that names a value.
//! Evaluates nothing.

use std::ops::Range;

use super::template_operators::{PRODUCT, REMAINDER, with_calls};

/// The function that the checks call with the values just named.
pub(super) const CHECK: &str = "__within_bounds";

/// A template in use has some tens of kilobytes at most.
pub(super) const MAX_SOURCE_BYTES: usize = 256 << 10;
/// Brackets inside brackets in one tag.
const MAX_BRACKETS: usize = 64;
/// Words and signs in one tag, which bound the depth of its syntax tree.
const MAX_LEXEMES: usize = 4096;
/// `elif` branches of all conditions, which nest in the syntax tree.
const MAX_ELIFS: usize = 1024;

/// A source that is safe to compile.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The source with a check behind each tag that names values.
    pub source: String,
    /// Bytes of text outside tags: what one pass over the source can print without a check.
    pub plain_bytes: usize,
}

/// Looks `source` over and adds the checks.
pub(super) fn prepare(source: &str) -> Result<Prepared, String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("has {} bytes, more than {MAX_SOURCE_BYTES}", source.len()));
    }
    if let Some(name) = [CHECK, PRODUCT, REMAINDER].into_iter().find(|name| source.contains(name)) {
        return Err(format!("uses the reserved name {name}"));
    }
    // Jinja2 reads all line ends as this one.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.as_str();
    let mut prepared = Prepared { source: String::with_capacity(source.len()), plain_bytes: 0 };
    let mut elifs = 0;
    let mut rest = source;
    while let Some(at) = find_opening(rest) {
        let (plain, tagged) = rest.split_at(at);
        prepared.source.push_str(plain);
        prepared.plain_bytes += plain.len();
        let tag = Tag::read(tagged)?;
        elifs += usize::from(tag.name() == Some("elif"));
        if elifs > MAX_ELIFS {
            return Err(format!("has more than {MAX_ELIFS} elif branches"));
        }
        tag.write(&mut prepared.source);
        if tag.kind != Kind::Block {
            prepared.plain_bytes += tag.strings_bytes();
        }
        rest = tagged.get(tag.text.len()..).unwrap_or_default();
    }
    prepared.source.push_str(rest);
    prepared.plain_bytes += rest.len();
    Ok(prepared)
}

/// Where the next `{%`, `{{` or `{#` stands.
fn find_opening(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{%" | b"{{" | b"{#"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `{% … %}`
    Block,
    /// `{{ … }}`
    Print,
    /// `{# … #}`, and raw blocks from beginning to end.
    Verbatim,
}

/// One tag and the words and signs in it.
#[derive(Debug)]
struct Tag<'a> {
    kind: Kind,
    /// All of it, with its braces.
    text: &'a str,
    lexemes: Vec<Lexeme<'a>>,
    /// Where the mark that ends it begins, in `text`.
    end_mark: usize,
}

#[derive(Debug)]
pub(super) struct Lexeme<'a> {
    pub text: &'a str,
    /// Where it stands in the tag.
    pub at: Range<usize>,
    /// Brackets around it.
    depth: usize,
}

impl<'a> Tag<'a> {
    /// Reads the tag at the beginning of `text`. One without an end is all the rest: the compiler will complain about it.
    fn read(text: &'a str) -> Result<Tag<'a>, String> {
        let kind = match text.get(..2) {
            Some("{%") => Kind::Block,
            Some("{{") => Kind::Print,
            _ => return Ok(Tag::verbatim(text, text.find("#}").map_or(text.len(), |end| end + 2))),
        };
        let mut tag = Tag { kind, text, lexemes: Vec::new(), end_mark: text.len() };
        let (mut at, mut depth) = (2, 0);
        if text.get(at..).is_some_and(|rest| rest.starts_with(['-', '+'])) {
            at += 1;
        }
        while let Some((rest, character)) = text.get(at..).and_then(|rest| Some((rest, rest.chars().next()?))) {
            if let Some(len) = end_mark(kind, rest, depth) {
                tag.text = beginning(text, at + len);
                tag.end_mark = at;
                break;
            }
            if character.is_whitespace() {
                at += character.len_utf8();
                continue;
            }
            let len = lexeme_len(rest, character);
            match character {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = usize::saturating_sub(depth, 1),
                _ => {}
            }
            if depth > MAX_BRACKETS || tag.lexemes.len() >= MAX_LEXEMES {
                return Err(format!("has a tag with more than {MAX_LEXEMES} words or {MAX_BRACKETS} brackets inside each other"));
            }
            tag.lexemes.push(Lexeme { text: beginning(rest, len), at: at..at + len, depth });
            at += len;
        }
        if tag.name() == Some("raw") && kind == Kind::Block {
            return Ok(Tag::verbatim(text, end_of_raw(text, tag.text.len())));
        }
        Ok(tag)
    }

    fn verbatim(text: &'a str, len: usize) -> Tag<'a> {
        Tag { kind: Kind::Verbatim, text: beginning(text, len), lexemes: Vec::new(), end_mark: len }
    }

    fn name(&self) -> Option<&'a str> {
        self.lexemes.first().map(|lexeme| lexeme.text)
    }

    /// Bytes of all texts in quotes.
    fn strings_bytes(&self) -> usize {
        self.lexemes.iter().filter(|lexeme| lexeme.text.starts_with(['"', '\''])).map(|lexeme| lexeme.text.len()).sum()
    }

    /// Writes the tag, and behind it the check of what it names. The check takes over the mark that trims what follows.
    fn write(&self, source: &mut String) {
        let (body, end) = self.text.split_at(self.end_mark);
        let body = with_calls(body, &self.lexemes, usize::from(self.kind == Kind::Block));
        let body = body.as_str();
        let name = self.lexemes.first().filter(|_| self.kind == Kind::Block && !end.is_empty());
        // Hugging Face's own tags around what the model is to learn: they print nothing.
        let plain = match name.map(|name| name.text) {
            Some("generation") => Some("if true"),
            Some("endgeneration") => Some("endif"),
            _ => None,
        };
        if let (Some(plain), Some(name)) = (plain, name) {
            let after = body.get(name.at.end..).unwrap_or_default();
            source.push_str(&[beginning(body, name.at.start), plain, after, end].concat());
            return;
        }
        let targets = self.targets();
        if name.is_none() || targets.is_empty() {
            source.push_str(&[body, end].concat());
            return;
        }
        source.push_str(&format!("{body}%}}{{% do {CHECK}({}) {end}", targets.join(", ")));
    }

    /// What the tag gives a value to.
    fn targets(&self) -> Vec<&'a str> {
        let lexemes = &self.lexemes;
        let position = |text: &str, depth: usize| lexemes.iter().position(|lexeme| lexeme.depth == depth && lexeme.text == text);
        match self.name() {
            Some("set") => position("=", 0).map_or(Vec::new(), |equals| self.names(1..equals)),
            Some("for") => position("in", 0).or(position("in", 1)).map_or(Vec::new(), |at| self.names(1..at)),
            Some("macro" | "call" | "with") => self.named_before_values(),
            _ => Vec::new(),
        }
    }

    /// Names and dotted names among the lexemes of `range`: `a, ns.b` gives both.
    fn names(&self, range: Range<usize>) -> Vec<&'a str> {
        let lexemes = self.lexemes.get(range).unwrap_or_default();
        let mut names: Vec<Range<usize>> = Vec::new();
        let mut joins = false;
        for lexeme in lexemes {
            match lexeme.text {
                "." => joins = true,
                "," | "(" | ")" | "[" | "]" => joins = false,
                _ => {
                    match names.last_mut().filter(|_| joins) {
                        Some(last) => last.end = lexeme.at.end,
                        None => names.push(lexeme.at.clone()),
                    }
                    joins = false;
                }
            }
        }
        names.into_iter().filter_map(|range| self.text.get(range)).collect()
    }

    /// Parameters of a macro or a call's body, and the names of `with`: each stands first or behind a comma, at the list's own depth.
    fn named_before_values(&self) -> Vec<&'a str> {
        let (first, depth) = match self.name() {
            Some("with") => (1, 0),
            Some("call") if self.lexemes.get(1).is_some_and(|lexeme| lexeme.text == "(") => (2, 1),
            Some("macro") => (3, 1),
            _ => return Vec::new(),
        };
        let list = self.lexemes.get(first..).unwrap_or_default();
        let list = list.split(|lexeme| depth == 1 && lexeme.text == ")" && lexeme.depth == 0).next().unwrap_or_default();
        let is_name = |lexeme: &&Lexeme<'_>| lexeme.text.starts_with(|character: char| character.is_alphabetic() || character == '_');
        let parts = list.split(|lexeme| lexeme.text == "," && lexeme.depth == depth);
        parts.filter_map(|part| part.first()).filter(is_name).map(|lexeme| lexeme.text).collect()
    }
}

/// The first `len` bytes of `text`; all of it where it has fewer.
fn beginning(text: &str, len: usize) -> &str {
    text.get(..len).unwrap_or(text)
}

/// The length of the mark that ends a tag, if one stands here.
fn end_mark(kind: Kind, rest: &str, depth: usize) -> Option<usize> {
    let marks = match kind {
        Kind::Block => ["%}", "-%}", "+%}"],
        Kind::Print | Kind::Verbatim => ["}}", "-}}", "+}}"],
    };
    // `}}` can also close two maps.
    let may_end = kind == Kind::Block || depth == 0;
    marks.into_iter().find(|mark| may_end && rest.starts_with(mark)).map(str::len)
}

/// Bytes of the word, number, quoted text or sign at the beginning of `rest`, whose first character is `character`.
fn lexeme_len(rest: &str, character: char) -> usize {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    if is_word(character) {
        return rest.find(|character| !is_word(character)).unwrap_or(rest.len());
    }
    if !matches!(character, '"' | '\'') {
        // Of the signs of two characters only these matter: a comparison is no assignment.
        let double = ["==", "!=", "<=", ">=", "**", "//"].iter().any(|sign| rest.starts_with(sign));
        return if double { 2 } else { character.len_utf8() };
    }
    let mut escaped = false;
    for (at, next) in rest.char_indices().skip(1) {
        match next {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if next == character => return at + next.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Where the raw block ends whose first tag has `first` bytes: behind its `{% endraw %}`.
fn end_of_raw(text: &str, first: usize) -> usize {
    let mut from = first;
    while let Some(at) = text.get(from..).and_then(|rest| rest.find("{%")).map(|at| at + from) {
        let inside = text.get(at + 2..).unwrap_or_default().trim_start_matches(['-', '+']).trim_start();
        if inside.starts_with("endraw") {
            return inside.find("%}").map_or(text.len(), |end| text.len() - inside.len() + end + 2);
        }
        from = at + 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, proptest};

    use super::*;

    proptest! {
        #[test]
        fn any_source_is_prepared_or_refused_and_loses_nothing(
            parts in prop::collection::vec("\\{%|%\\}|\\{\\{|\\}\\}|\\{#|#\\}|-|\\+|set|for|in|raw|endraw|macro|with|=|,|\\(|\\)|'|\"|\\\\| |a|\\.b|é|\n|3|\\*", 0..40),
        ) {
            let text = parts.concat();
            if let Ok(prepared) = prepare(&text) {
                // Taking the checks out again gives back what went in: the end mark of a tag moved behind its check.
                let mut source = prepared.source;
                while let Some(at) = source.find(&format!("%}}{{% do {CHECK}(")) {
                    let len = source[at..].find(") ").unwrap() + 2;
                    source.replace_range(at..at + len, "");
                }
                assert_eq!(without_calls(source), without_calls(text));
            }
        }
    }

    /// `text` less what calls for products add and take away.
    fn without_calls(text: String) -> String {
        text.replace(PRODUCT, "").replace(REMAINDER, "").replace(['*', '%', '(', ')', ','], "")
    }

    fn source(text: &str) -> String {
        prepare(text).unwrap().source.replace(CHECK, "ok")
    }

    #[test]
    fn checks_stand_behind_what_names_values_and_keep_its_trimming() {
        for (before, after) in [
            ("a{%- set x = 1 -%} b", "a{%- set x = 1 %}{% do ok(x) -%} b"),
            ("{% set ns.x = y == 'a=b' %}", "{% set ns.x = y == 'a=b' %}{% do ok(ns.x) %}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b = 1, 2 %}{% do ok(a, b) %}"),
            ("{% for k, v in m.items() if k != ',' %}", "{% for k, v in m.items() if k != ',' %}{% do ok(k, v) %}"),
            ("{% macro f(a, b='x,y', c=[1,2]) %}", "{% macro f(a, b='x,y', c=[1,2]) %}{% do ok(a, b, c) %}"),
            ("{% with a = f(1, 2), b = 3 +%}", "{% with a = f(1, 2), b = 3 %}{% do ok(a, b) +%}"),
            ("{% call(u) f(x) %}", "{% call(u) f(x) %}{% do ok(u) %}"),
            ("{%- generation -%}x{% endgeneration %}", "{%- if true -%}x{% endif %}"),
        ] {
            assert_eq!(source(before), after);
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for text in [
            "plain { text } %}",
            "{{ {'a': {'b': 1}} }}{{ '}}' }}",
            "{# {% set x = 1 %} #}",
            "{% raw %}{% set x = 1 %}{{{% endraw %}",
            "{% set x %}text{% endset %}",
            "{% macro f() %}{% endmacro %}",
            "{% if a %}{% elif b %}{% else %}{% endif %}",
            "{{ unclosed",
            "{% set",
            "{{ '\\'}}' }} é {{ x",
        ] {
            assert_eq!(source(text), text);
        }
    }

    #[test]
    fn products_and_remainders_become_calls() {
        for (before, after) in [
            ("{{ '=' * n }}", "{{ mul('=' , n) }}"),
            ("{{ a + b * c - d }}", "{{ a + mul(b , c) - d }}"),
            ("{{ 2 * 3 * 4 }}", "{{ mul(mul(2 , 3) , 4) }}"),
            ("{{ 7 / 2 * 3 % 2 // 1 }}", "{{ (rem(mul((7 / 2) , 3) , 2) // 1) }}"),
            ("{{ -a * -b ** 2 }}", "{{ mul(-a , -b ** 2) }}"),
            ("{{ (a * b)[c % d].e|length % 2 == 0 }}", "{{ rem((mul(a , b))[rem(c , d)].e|length , 2) == 0 }}"),
            ("{{ '%s' % (a, b) ~ 'x' }}", "{{ rem('%s' , (a, b)) ~ 'x' }}"),
            ("{%- set x = a % b if c else d * 2 -%}", "{%- set x = rem(a , b) if c else mul(d , 2) %}{% do ok(x) -%}"),
            ("{% for i in range(n * 2) if i % 2 %}", "{% for i in range(mul(n , 2)) if rem(i , 2) %}{% do ok(i) %}"),
            ("{{ f(*args, k=a*b, **more) }}", "{{ f(*args, k=mul(a,b), **more) }}"),
            ("{% if not a % 2 and b in c * 2 %}", "{% if not rem(a , 2) and b in mul(c , 2) %}"),
            ("{{ 2 ** 5 / 2 }}", "{{ 2 ** 5 / 2 }}"),
            ("{{ '100 % * 2' }} 5 % 2 {# a * b #}", "{{ '100 % * 2' }} 5 % 2 {# a * b #}"),
        ] {
            assert_eq!(source(before).replace(PRODUCT, "mul").replace(REMAINDER, "rem"), after);
        }
        assert_eq!(source("a\r\nb\rc"), "a\nb\nc");
    }

    #[test]
    fn hostile_sources_are_refused() {
        let elifs = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(2000));
        for (text, reason) in [
            (format!("{{{{ {}1{} }}}}", "(".repeat(15_000), ")".repeat(15_000)), "brackets"),
            (format!("{{{{ {} }}}}", "not ".repeat(10_000)), "words"),
            (format!("{{{{ 1{} }}}}", "+1".repeat(10_000)), "words"),
            ("x".repeat(MAX_SOURCE_BYTES + 1), "bytes"),
            (elifs, "elif"),
            (format!("{{% set {CHECK} = 1 %}}"), "reserved"),
            (format!("{{{{ {PRODUCT}(1, 2) }}}}"), "reserved"),
        ] {
            let error = prepare(&text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
