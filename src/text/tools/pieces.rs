//! Calls whose arguments are told as they come, of bodies that are JSON: an object with a name and arguments in that order, a list of them, or
//! the arguments alone.

/// A part of a call that is not whole yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallPiece {
    /// The function's name, where a call begins.
    pub name: Option<String>,
    /// Text of its arguments, which all together are an object.
    pub arguments: String,
}

/// Follows the text of calls.
#[derive(Debug, Clone)]
pub(super) struct CallReader {
    keys: [&'static str; 2],
    /// How deep the objects of calls are.
    level: usize,
    /// Bytes that were read.
    pub(super) n_read: usize,
    depth: usize,
    /// The beginning of the string that is open, and whether its next character is escaped.
    string: Option<usize>,
    is_escaped: bool,
    /// The latest key of a call, before its value.
    key: Option<String>,
    /// The name of the call, until its arguments begin.
    name: Option<String>,
    /// Where the arguments begin that are not told yet, where they are under way.
    arguments: Option<usize>,
    /// Calls that were begun, and those of them that are whole.
    pub(super) n_begun: usize,
    pub(super) n_whole: usize,
    /// Whether all of the body was there.
    pub(super) is_over: bool,
}

impl CallReader {
    /// For calls with these keys, in a list or alone.
    pub(super) fn new(keys: [&'static str; 2], is_list: bool) -> CallReader {
        CallReader {
            keys,
            level: 1 + usize::from(is_list),
            n_read: 0,
            depth: 0,
            string: None,
            is_escaped: false,
            key: None,
            name: None,
            arguments: None,
            n_begun: 0,
            n_whole: 0,
            is_over: false,
        }
    }

    /// For the arguments of one call of `name`, which begin at byte `begin` of the body.
    pub(super) fn of_arguments(name: &str, begin: usize) -> CallReader {
        let keys = ["name", "arguments"];
        let (key, name) = (Some(keys[1].to_owned()), Some(name.to_owned()));
        CallReader { level: 0, n_read: begin, key, name, ..CallReader::new(keys, false) }
    }

    /// What is new in `body`, the text of the calls from its beginning.
    pub(super) fn read(&mut self, body: &str) -> Vec<CallPiece> {
        let mut pieces = Vec::new();
        while let Some(char) = body[self.n_read..].chars().next().filter(|_| !self.is_over) {
            let at = self.n_read;
            self.n_read += char.len_utf8();
            match self.string {
                Some(begin) => self.in_string(&body[begin..self.n_read], char),
                None => pieces.extend(self.outside(char, at)),
            }
            if let Some(begin) = self.arguments.filter(|_| self.depth == self.level && self.string.is_none()) {
                pieces.push(CallPiece { name: None, arguments: body[begin..self.n_read].to_owned() });
                self.arguments = None;
                self.n_whole += 1;
            }
        }
        if let Some(begin) = self.arguments.as_mut().filter(|begin| **begin < self.n_read) {
            pieces.push(CallPiece { name: None, arguments: body[*begin..self.n_read].to_owned() });
            *begin = self.n_read;
        }
        pieces
    }

    fn in_string(&mut self, string: &str, char: char) {
        match char {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' => self.is_escaped = true,
            '"' => {
                self.string = None;
                if self.depth == self.level {
                    let text: Option<String> = serde_json::from_str(string).ok();
                    match &self.key {
                        None => self.key = text,
                        Some(key) if key == self.keys[0] => self.name = text,
                        Some(_) => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn outside(&mut self, char: char, at: usize) -> Option<CallPiece> {
        match char {
            '"' => self.string = Some(at),
            '{' | '[' => {
                self.depth += 1;
                let is_arguments = self.depth == self.level + 1 && char == '{' && self.key.as_deref() == Some(self.keys[1]);
                if let Some(name) = self.name.take_if(|_| is_arguments) {
                    self.arguments = Some(at);
                    self.n_begun += 1;
                    return Some(CallPiece { name: Some(name), arguments: String::new() });
                }
            }
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth < self.level {
                    (self.key, self.name) = (None, None);
                }
                self.is_over = self.depth == 0;
            }
            ',' if self.depth == self.level => self.key = None,
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names and arguments of what comes in parts of `n` characters.
    fn read(is_list: bool, text: &str, n: usize) -> Vec<(String, String)> {
        let mut reader = CallReader::new(["name", "arguments"], is_list);
        let chars: Vec<char> = text.chars().collect();
        let mut calls: Vec<(String, String)> = Vec::new();
        for end in (1..=chars.len()).filter(|end| end % n == 0 || *end == chars.len()) {
            for piece in reader.read(&chars[..end].iter().collect::<String>()) {
                match piece.name {
                    Some(name) => calls.push((name, piece.arguments)),
                    None => calls.last_mut().unwrap().1.push_str(&piece.arguments),
                }
            }
        }
        calls
    }

    #[test]
    fn arguments_are_told_as_they_come() {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        let arguments = r#"{"a}": "é\"}{", "b": [{"name": "x"}, {}], "c": {"arguments": {}}}"#;
        let one = format!(r#"{{"name": "f\n", "arguments": {arguments}}}"#);
        for n in [1, 2, 3, 7, 1000] {
            assert_eq!(read(false, &one, n), [call("f\n", arguments)]);
            assert_eq!(read(true, &format!("[{one}, {one}]"), n), [call("f\n", arguments), call("f\n", arguments)]);
            assert_eq!(read(false, r#"{"name": "f", "arguments": {"a": [1, 2"#, n), [call("f", r#"{"a": [1, 2"#)]);
            // Arguments before the name, or none, are told when all is there.
            assert_eq!(read(false, r#"{"arguments": {}, "name": "f"}"#, n), []);
            assert_eq!(read(false, r#"{"name": "f", "arguments": 3} {"name": "g", "arguments": {}}"#, n), []);
            assert_eq!(read(false, "words } ] {", n), []);
        }
    }
}
