//! Reads the text of a grammar.

use std::collections::HashMap;

use super::rules::{ByteSet, Element, Rules, complement, utf8_of};
use super::{GbnfError, MAX_GRAMMAR_BYTES};

/// Most elements of a grammar, repetitions written out.
const MAX_ELEMENTS: usize = 200_000;
/// Most times that something may be demanded or allowed to follow itself.
const MAX_REPETITIONS: u32 = 10_000;
/// Most groups inside each other.
const MAX_DEPTH: usize = 100;

type Result<T> = std::result::Result<T, GbnfError>;

/// A rule that was named.
struct Named<'a> {
    name: &'a str,
    /// Where it was named first.
    mentioned: usize,
    defined: Option<usize>,
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    rules: Rules,
    /// By number; those that repetitions and groups need have no name.
    named: HashMap<u32, Named<'a>>,
    ids: HashMap<&'a str, u32>,
    sets: HashMap<ByteSet, u32>,
    characters: HashMap<Vec<(u32, u32)>, Element>,
}

/// Reads a grammar.
pub(super) fn parse(text: &str) -> Result<Rules> {
    let (rules, ids) = (Rules::default(), HashMap::new());
    let mut parser = Parser { rest: text, line: 1, rules, named: HashMap::new(), ids, sets: HashMap::new(), characters: HashMap::new() };
    if text.len() > MAX_GRAMMAR_BYTES {
        return parser.wrong(format!("the grammar is longer than {MAX_GRAMMAR_BYTES} bytes"));
    }
    parser.skip_space(true);
    while !parser.rest.is_empty() {
        parser.rule()?;
        parser.skip_space(true);
    }
    parser.finish()
}

fn is_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '-' || char == '_'
}

impl<'a> Parser<'a> {
    fn wrong<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(GbnfError { line: self.line, reason: reason.into() })
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next()?;
        self.rest = chars.as_str();
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Leaves out white space and comments, up to the end of the line or beyond.
    fn skip_space(&mut self, beyond_line: bool) {
        while let Some(char) = self.peek() {
            match char {
                '#' => self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]),
                ' ' | '\t' | '\r' => self.rest = &self.rest[1..],
                '\n' if beyond_line => drop(self.next()),
                _ => return,
            }
        }
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T> {
        match self.peek() {
            Some('\n') | None => self.wrong(format!("{wanted} is missing at the end")),
            Some(char) => self.wrong(format!("`{}` stands where {wanted} is expected", char.escape_debug())),
        }
    }

    fn name(&mut self) -> Result<&'a str> {
        let (name, rest) = self.rest.split_at(self.rest.find(|char| !is_name(char)).unwrap_or(self.rest.len()));
        if name.is_empty() {
            return self.unexpected("the name of a rule");
        }
        self.rest = rest;
        Ok(name)
    }

    fn id_of(&mut self, name: &'a str) -> u32 {
        let (line, next) = (self.line, self.rules.alternatives.len() as u32);
        let id = *self.ids.entry(name).or_insert(next);
        if id == next {
            self.rules.alternatives.push(Vec::new());
            self.named.insert(id, Named { name, mentioned: line, defined: None });
        }
        id
    }

    fn rule(&mut self) -> Result<()> {
        let line = self.line;
        let name = self.name()?;
        self.skip_space(false);
        if !self.takes("::=") {
            return self.unexpected("`::=`");
        }
        let id = self.id_of(name);
        if let Some(named) = self.named.get_mut(&id) {
            if let Some(other) = named.defined {
                return self.wrong(format!("the rule `{name}` stands in line {other} already"));
            }
            named.defined = Some(line);
        }
        self.skip_space(true);
        let alternatives = self.alternatives(0)?;
        self.define(id, alternatives)?;
        match self.peek() {
            None | Some('\n') => Ok(()),
            Some(_) => self.unexpected("an element of a rule"),
        }
    }

    fn define(&mut self, id: u32, alternatives: Vec<Vec<Element>>) -> Result<()> {
        for alternative in alternatives {
            self.rules.alternatives[id as usize].push(self.rules.elements.len() as u32);
            self.rules.elements.extend(alternative);
            self.rules.elements.push(Element::End);
            self.check_size(0)?;
        }
        Ok(())
    }

    fn check_size(&self, n_more: usize) -> Result<()> {
        if self.rules.elements.len() + n_more > MAX_ELEMENTS {
            return self.wrong(format!("the grammar has more than {MAX_ELEMENTS} elements, with its repetitions written out"));
        }
        Ok(())
    }

    /// A rule without a name.
    fn unnamed(&mut self, alternatives: Vec<Vec<Element>>) -> Result<Element> {
        let id = self.rules.alternatives.len() as u32;
        self.rules.alternatives.push(Vec::new());
        self.define(id, alternatives)?;
        Ok(Element::Rule(id))
    }

    /// What stands between `|`; inside groups over several lines.
    fn alternatives(&mut self, depth: usize) -> Result<Vec<Vec<Element>>> {
        let mut alternatives = vec![self.sequence(depth)?];
        loop {
            let (rest, line) = (self.rest, self.line);
            // The next line may begin with `|`, which begins no rule.
            self.skip_space(true);
            if !self.takes("|") {
                (self.rest, self.line) = (rest, line);
                return Ok(alternatives);
            }
            self.skip_space(true);
            alternatives.push(self.sequence(depth)?);
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Element>> {
        let (mut sequence, mut last) = (Vec::new(), None);
        loop {
            let begin = sequence.len();
            match self.peek() {
                Some('"') => self.literal(&mut sequence)?,
                Some('[') => sequence.push(self.set()?),
                Some('.') => {
                    self.next();
                    sequence.push(self.characters(complement(Vec::new()))?);
                }
                Some('(') => sequence.push(self.group(depth)?),
                Some(char) if is_name(char) => {
                    let name = self.name()?;
                    sequence.push(Element::Rule(self.id_of(name)));
                }
                Some('*' | '+' | '?' | '{') => {
                    let Some(begin) = last else { return self.wrong("there is nothing that could be repeated") };
                    let (least, most) = self.repetition()?;
                    let repeated = sequence.split_off(begin);
                    self.repeat(&mut sequence, repeated, least, most)?;
                    last = Some(begin);
                    self.skip_space(depth > 0);
                    continue;
                }
                Some('<' | '!') => return self.wrong("tokens by name or number are not supported; write what they stand for"),
                _ => return Ok(sequence),
            }
            last = Some(begin);
            self.check_size(sequence.len())?;
            self.skip_space(depth > 0);
        }
    }

    fn group(&mut self, depth: usize) -> Result<Element> {
        if depth >= MAX_DEPTH {
            return self.wrong(format!("there are more than {MAX_DEPTH} groups inside each other"));
        }
        self.next();
        self.skip_space(true);
        let alternatives = self.alternatives(depth + 1)?;
        self.skip_space(true);
        match self.takes(")") {
            true => self.unnamed(alternatives),
            false => self.unexpected("`)`"),
        }
    }

    /// How often something may follow itself.
    fn repetition(&mut self) -> Result<(u32, Option<u32>)> {
        match self.next() {
            Some('*') => return Ok((0, None)),
            Some('+') => return Ok((1, None)),
            Some('?') => return Ok((0, Some(1))),
            _ => {}
        }
        self.skip_space(true);
        let least = self.number()?;
        self.skip_space(true);
        let mut most = Some(least);
        if self.takes(",") {
            self.skip_space(true);
            most = if self.peek() == Some('}') { None } else { Some(self.number()?) };
            self.skip_space(true);
        }
        match self.takes("}") {
            false => self.unexpected("`}`"),
            true if most.is_some_and(|most| most < least) => self.wrong("a repetition has a least number above its most"),
            true => Ok((least, most)),
        }
    }

    fn number(&mut self) -> Result<u32> {
        let (digits, rest) = self.rest.split_at(self.rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(self.rest.len()));
        if digits.is_empty() {
            return self.unexpected("a number");
        }
        self.rest = rest;
        match digits.parse() {
            Ok(number) if number <= MAX_REPETITIONS => Ok(number),
            _ => self.wrong(format!("{MAX_REPETITIONS} repetitions are the most")),
        }
    }

    fn repeat(&mut self, sequence: &mut Vec<Element>, repeated: Vec<Element>, least: u32, most: Option<u32>) -> Result<()> {
        let one = match repeated.as_slice() {
            [one] => *one,
            _ => self.unnamed(vec![repeated])?,
        };
        self.check_size(sequence.len() + least as usize)?;
        sequence.extend((0..least).map(|_| one));
        let Some(most) = most else {
            let again = Element::Rule(self.rules.alternatives.len() as u32);
            sequence.push(self.unnamed(vec![vec![one, again], Vec::new()])?);
            return Ok(());
        };
        let mut further = None;
        for _ in least..most {
            let with_further = [one].into_iter().chain(further).collect();
            further = Some(self.unnamed(vec![with_further, Vec::new()])?);
        }
        sequence.extend(further);
        Ok(())
    }

    fn literal(&mut self, sequence: &mut Vec<Element>) -> Result<()> {
        self.next();
        loop {
            match self.peek() {
                None | Some('\n') => return self.wrong("a text has no `\"` at its end"),
                Some('"') => {
                    self.next();
                    return Ok(());
                }
                Some(_) => {
                    let char = self.character()?;
                    for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                        sequence.push(self.byte((byte, byte)));
                    }
                    self.check_size(sequence.len())?;
                }
            }
        }
    }

    fn byte(&mut self, (first, last): (u8, u8)) -> Element {
        let mut set = ByteSet::default();
        set.insert(first, last);
        self.bytes(set)
    }

    fn bytes(&mut self, set: ByteSet) -> Element {
        let next = self.rules.sets.len() as u32;
        let index = *self.sets.entry(set).or_insert(next);
        if index == next {
            self.rules.sets.push(set);
        }
        Element::Byte(index)
    }

    /// A set in brackets.
    fn set(&mut self) -> Result<Element> {
        self.next();
        let is_complement = self.takes("^");
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None | Some('\n') => return self.wrong("a set has no `]` at its end"),
                Some(']') => break,
                Some(_) => {}
            }
            let first = self.character()?;
            let mut last = first;
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.next();
                last = self.character()?;
            }
            if last < first {
                return self.wrong(format!("the range from `{}` to `{}` is empty", first.escape_debug(), last.escape_debug()));
            }
            ranges.push((first as u32, last as u32));
        }
        self.next();
        let ranges = if is_complement { complement(ranges) } else { complement(complement(ranges)) };
        if ranges.is_empty() {
            return self.wrong("an empty set allows nothing");
        }
        self.characters(ranges)
    }

    /// One of the characters in `ranges`, which do not overlap.
    fn characters(&mut self, ranges: Vec<(u32, u32)>) -> Result<Element> {
        if let Some(known) = self.characters.get(&ranges) {
            return Ok(*known);
        }
        let (single, longer): (Vec<_>, Vec<_>) = utf8_of(&ranges).into_iter().partition(|sequence| sequence.len() == 1);
        let mut set = ByteSet::default();
        single.iter().flatten().for_each(|(first, last)| set.insert(*first, *last));
        let mut alternatives = if single.is_empty() { Vec::new() } else { vec![vec![self.bytes(set)]] };
        alternatives.extend(longer.into_iter().map(|sequence| sequence.into_iter().map(|range| self.byte(range)).collect::<Vec<_>>()));
        let element = match alternatives.as_slice() {
            [one] if one.len() == 1 => one[0],
            _ => self.unnamed(alternatives)?,
        };
        self.characters.insert(ranges, element);
        Ok(element)
    }

    /// A character, which may be written as an escape.
    fn character(&mut self) -> Result<char> {
        match self.next() {
            Some('\\') => {}
            Some(char) => return Ok(char),
            None => return self.unexpected("a character"),
        }
        let n_digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(char) if char.is_ascii_punctuation() => return Ok(char),
            _ => return self.wrong("an escape is none of \\n, \\r, \\t, \\xHH, \\uHHHH, \\UHHHHHHHH and signs as in \\\""),
        };
        let digits = self.rest.get(..n_digits).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let char = digits.and_then(|digits| char::from_u32(u32::from_str_radix(digits, 16).ok()?));
        let Some(char) = char else { return self.wrong(format!("an escape needs {n_digits} hexadecimal digits of a character")) };
        self.rest = &self.rest[n_digits..];
        Ok(char)
    }

    /// Checks that all rules are there, and that none begins with itself.
    fn finish(mut self) -> Result<Rules> {
        let Some(&root) = self.ids.get("root") else { return self.wrong("there is no rule `root`, which an answer must be") };
        let missing = self.named.values().filter(|named| named.defined.is_none()).min_by_key(|named| named.mentioned);
        if let Some(Named { name, mentioned: line, .. }) = missing {
            return Err(GbnfError { line: *line, reason: format!("there is no rule `{name}`") });
        }
        if let Some(Named { name, defined: Some(line), .. }) = self.left_recursive() {
            let reason = format!("the rule `{name}` begins with itself; write what it begins with first, and repeat the rest");
            return Err(GbnfError { line: *line, reason });
        }
        self.rules.root = root;
        Ok(self.rules)
    }

    /// A rule that can begin with itself and go on behind that.
    fn left_recursive(&self) -> Option<&Named<'a>> {
        let begins = self.rules.begins();
        let components = components(&begins);
        let has_rest = |(id, begins): (usize, &Vec<(u32, bool)>)| {
            let is_wrong = |&&(other, has_rest): &&(u32, bool)| has_rest && components[id] == components[other as usize];
            begins.iter().find(is_wrong).map(|_| components[id])
        };
        let wrong = begins.iter().enumerate().find_map(has_rest)?;
        let of_it = self.named.iter().filter(|(id, _)| components[**id as usize] == wrong);
        of_it.map(|(_, named)| named).min_by_key(|named| named.defined)
    }
}

impl Rules {
    /// The rules that each can begin with, and whether something follows them there.
    fn begins(&self) -> Vec<Vec<(u32, bool)>> {
        let can_be_empty = self.can_be_empty();
        let of_alternative = |begin: u32| {
            let mut found = Vec::new();
            let elements = &self.elements[begin as usize..];
            for (element, following) in elements.iter().zip(&elements[1..]) {
                let Element::Rule(id) = element else { break };
                found.push((*id, *following != Element::End));
                if !can_be_empty[*id as usize] {
                    break;
                }
            }
            found
        };
        self.alternatives.iter().map(|begins| begins.iter().copied().flat_map(of_alternative).collect()).collect()
    }

    /// Whether each rule allows the empty text.
    fn can_be_empty(&self) -> Vec<bool> {
        let mut can_be_empty = vec![false; self.alternatives.len()];
        // Of each alternative of rules alone, those that are not known to be empty.
        let mut open = Vec::new();
        let mut uses: Vec<Vec<usize>> = vec![Vec::new(); self.alternatives.len()];
        let mut found = Vec::new();
        for (id, begins) in self.alternatives.iter().enumerate() {
            for &begin in begins {
                let elements = self.elements[begin as usize..].iter().take_while(|element| **element != Element::End);
                let rules: Option<Vec<u32>> =
                    elements.map(|element| if let Element::Rule(id) = element { Some(*id) } else { None }).collect();
                let Some(rules) = rules else { continue };
                rules.iter().for_each(|rule| uses[*rule as usize].push(open.len()));
                if rules.is_empty() {
                    found.push(id);
                }
                open.push((id, rules.len()));
            }
        }
        while let Some(id) = found.pop() {
            if std::mem::replace(&mut can_be_empty[id], true) {
                continue;
            }
            for &alternative in &uses[id] {
                open[alternative].1 -= 1;
                if open[alternative].1 == 0 {
                    found.push(open[alternative].0);
                }
            }
        }
        can_be_empty
    }
}

/// A number for each node that it has in common with those that it reaches and that reach it.
fn components(edges: &[Vec<(u32, bool)>]) -> Vec<usize> {
    let mut reversed = vec![Vec::new(); edges.len()];
    for (from, to) in edges.iter().enumerate().flat_map(|(from, to)| to.iter().map(move |(to, _)| (from, *to as usize))) {
        reversed[to].push(from);
    }
    // In the order in which a walk has seen all behind them.
    let (mut order, mut is_seen) = (Vec::new(), vec![false; edges.len()]);
    for first in 0..edges.len() {
        let mut path = Vec::new();
        if !std::mem::replace(&mut is_seen[first], true) {
            path.push((first, 0));
        }
        while let Some((node, n_done)) = path.last_mut() {
            match edges[*node].get(*n_done) {
                Some(&(next, _)) => {
                    *n_done += 1;
                    if !std::mem::replace(&mut is_seen[next as usize], true) {
                        path.push((next as usize, 0));
                    }
                }
                None => order.extend(path.pop().map(|(node, _)| node)),
            }
        }
    }
    let mut components = vec![usize::MAX; edges.len()];
    for first in order.into_iter().rev() {
        let mut left = vec![first];
        while let Some(node) = left.pop() {
            if components[node] == usize::MAX {
                components[node] = first;
                left.extend(&reversed[node]);
            }
        }
    }
    components
}
