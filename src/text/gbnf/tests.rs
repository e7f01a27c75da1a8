//! Grammars that people use, what they allow, and what is refused of others.

use proptest::prelude::*;

use super::vocabulary::TokenBytes;
use super::*;
use crate::text::sampler::Candidate;

const JSON: &str = r#"
# Any object.
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;

const ARITHMETIC: &str = r#"
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"#;

fn grammar(text: &str) -> Gbnf {
    Gbnf::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

/// Whether a grammar allows all texts that it must, and none of the others.
fn check(text: &str, allowed: &[&str], refused: &[&str]) {
    let grammar = grammar(text);
    for (texts, expected) in [(allowed, true), (refused, false)] {
        for text in texts {
            assert_eq!(grammar.allows(text).unwrap(), expected, "{text:?}");
        }
    }
}

#[test]
fn json_is_read_as_llama_cpp_reads_it() {
    let allowed = [r#"{}"#, r#"{"a": [1, -2.5e1, {"b": "ü\n\u00e4 😀"}], "c":null}"#, "{\n  \"a\":true}"];
    check(JSON, &allowed, &["", "[]", "{", r#"{"a"}"#, r#"{"a": 01}"#, r#"{"a": "\x"}"#, "{\"a\": \"\n\"}", "{}}", r#"{"a":1,}"#]);
}

#[test]
fn rules_call_each_other_and_repeat() {
    check(ARITHMETIC, &["a=1\n", "(1 +x_1)*2=y\n7=8\n", "((a))=((b))\n"], &["a=1", "=1\n", "(a=1\n", "a+=1\n", "A=1\n"]);
    check("root ::= \"ab\"{2} [0-9]{1,3} \"x\"{2,} .?", &["abab1xx", "abab123xxxx€"], &["ab1xx", "abab1234xx", "abab1x", "abab1xx€€"]);
    check("root ::= (\"a\" | \"b\" \"c\")+ \"a\"\n", &["aa", "bca", "abcbcaa"], &["a", "bc", "ba"]);
}

#[test]
fn every_way_through_the_rules_counts() {
    // What a lexer would take for a name goes on as something else.
    check("root ::= [a-z]+ \"x\"", &["ax", "xx", "axxax"], &["x", "xa"]);
    check("root ::= \"in\" | word \"!\"\nword ::= [a-z] word | [a-z]", &["in", "in!", "int!"], &["int", "i", "!"]);
    check("root ::= a a a\na ::= \"x\"? (\"y\" \"x\")?", &["", "xxx", "xyxxyx", "yxyx"], &["xxxx", "yy"]);
    // Palindromes, which no automaton without a stack reads.
    check("root ::= \"a\" root \"a\" | \"b\" root \"b\" | \"c\"", &["c", "abacaba"], &["abacab", "cc", ""]);
    check("root ::= (\"a\"*)* \"b\"", &["b", "aaab"], &["", "a"]);
}

#[test]
fn sets_are_of_characters() {
    check("root ::= [あ-んア-ン一-龯]+", &["こんにちは", "世界"], &["", "hello", "こんa"]);
    check("root ::= [^a-z\\n]", &["A", "é", "😀", "\0"], &["a", "\n", "AA"]);
    check(r#"root ::= "\x41\u00e9\U0001F600" [\]\-^]"#, &["Aé😀]", "Aé😀-", "Aé😀^"], &["Aé😀\\"]);
    check("root ::= [a-] \"1\"", &["a1", "-1"], &["b1"]);
}

#[test]
fn lines_may_begin_with_a_bar_and_end_with_a_comment() {
    check("root ::= \"a\" # one\n  | \"b\"\n\r\n# two\nx-1 ::= \"c\"\n", &["a", "b"], &["c"]);
}

fn error_of(text: &str) -> GbnfError {
    Gbnf::parse(text).expect_err(text)
}

#[test]
fn errors_name_the_line() {
    for (text, line, words) in [
        ("", 1, "no rule `root`"),
        ("a ::= \"x\"", 1, "no rule `root`"),
        ("root ::= \"a\"\n\nb ::= c", 3, "no rule `c`"),
        ("root ::= \"a\nb\"", 1, "no `\"` at its end"),
        ("root ::= [a", 1, "no `]`"),
        ("root ::=\n[z-a]", 2, "is empty"),
        ("root ::= []", 1, "empty set"),
        ("root ::= (\"a\"\n\"b\"", 2, "`)`"),
        ("root ::= \"a\" )", 1, "`)` stands"),
        ("root = \"a\"", 1, "`::=`"),
        ("root ::= *", 1, "nothing that could be repeated"),
        ("root ::= \"a\"{3,2}", 1, "least number above"),
        ("root ::= \"a\"{99999}", 1, "repetitions"),
        ("root ::= \"\\q\"", 1, "escape"),
        ("root ::= \"\\xg1\"", 1, "hexadecimal"),
        ("root ::= \"\\ud800\"", 1, "hexadecimal digits of a character"),
        ("root ::= <[1]>", 1, "tokens"),
        ("root ::= \"a\"\nroot ::= \"b\"", 2, "line 1 already"),
        ("root ::= \"x\" a\n\na ::= a \"y\" | \"z\"", 3, "`a` begins with itself"),
        ("root ::= w root \"x\" | \"y\"\nw ::= [ ]*", 1, "`root` begins with itself"),
    ] {
        let error = error_of(text);
        assert!(error.line == line && error.reason.contains(words), "{text:?}: {error}");
    }
}

#[test]
fn what_is_too_large_is_refused() {
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(200), ")".repeat(200));
    assert!(error_of(&deep).reason.contains("groups"));
    assert!(error_of(&format!("root ::= {}", "[a-z]{10000} ".repeat(30))).reason.contains("elements"));
    assert!(error_of(&"#".repeat(MAX_GRAMMAR_BYTES + 1)).reason.contains("longer"));
    // Rules in any order are checked in time that grows with their number.
    let chain: String = (0..20_000).map(|n| format!("a{n} ::= a{}\n", n + 1)).collect();
    grammar(&format!("root ::= a0 \"x\"\n{chain}a20000 ::= \"y\"?"));
    // Each of many optional parts may be the last one.
    assert!(grammar("root ::= (\"a\"? \"b\"?){10000}").constraint(&Arc::new(TokenBytes::new(Vec::new(), Vec::new()))).is_err());
    assert!(grammar("root ::= root").allows("").is_ok_and(|is_allowed| !is_allowed), "nothing begins");
}

fn tokens() -> Arc<TokenBytes> {
    let texts = [
        "", "{", "{\"", "\"", "a", "ab", "abc", "\":", ":", " ", "}", "\"}", "1", "12", "1}", "[", "[[", "],", "true", "2", "\\", "\\u",
        "\u{e9}", "}}", "\n", "<end>", ",", "]", ",\"",
    ];
    let bytes = texts.iter().map(|text| text.as_bytes().into()).chain([[0xc3].as_slice().into(), [0xa9].as_slice().into()]).collect();
    Arc::new(TokenBytes::new(bytes, vec![25]))
}

/// Tokens that a constraint leaves.
fn left(constraint: &mut dyn Constraint, n_tokens: u32) -> Vec<u32> {
    let mut candidates = (0..n_tokens).map(|token| Candidate { token, logit: 0.0 }).collect();
    constraint.keep_allowed(&mut candidates).expect("followed");
    candidates.iter().map(|candidate| candidate.token).collect()
}

#[test]
fn tokens_are_allowed_that_begin_an_allowed_text() {
    let (grammar, tokens) = (grammar(JSON), tokens());
    let mut seed = 1u64;
    for _ in 0..200 {
        let mut constraint = grammar.constraint(&tokens).unwrap();
        let mut matcher = Matcher::new(Arc::clone(&grammar.0)).unwrap();
        let mut state = matcher.begin();
        for _ in 0..30 {
            let reaches = |matcher: &mut Matcher, token: u32| {
                let bytes = tokens.bytes(token);
                bytes.iter().try_fold(state, |state, byte| matcher.step(state, *byte).unwrap()).filter(|_| !bytes.is_empty())
            };
            let mut expected: Vec<u32> = (0..31).filter(|token| reaches(&mut matcher, *token).is_some()).collect();
            if matcher.is_whole(state) {
                expected.push(25);
                expected.sort_unstable();
            }
            let allowed = left(constraint.as_mut(), 31);
            assert_eq!(allowed, expected);
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let token = allowed[(seed >> 33) as usize % allowed.len()];
            constraint.accept(token).unwrap();
            if token == 25 {
                break;
            }
            state = reaches(&mut matcher, token).unwrap();
        }
    }
}

#[test]
fn what_is_forgotten_changes_nothing() {
    let grammar = grammar(JSON);
    let mut matcher = Matcher::new(Arc::clone(&grammar.0)).unwrap();
    let mut state = matcher.begin();
    for byte in br#"{"a": [[{"b": [12, {"c": "x\u00e4"}]}]]}"#.iter() {
        state = matcher.step(state, *byte).unwrap().expect("allowed");
        state = matcher.forget_all_but(state).unwrap();
    }
    assert!(matcher.is_whole(state) && matcher.step(state, b'}').unwrap().is_none());
}

proptest! {
    #[test]
    fn no_text_panics(text in "(root ::= )?[a-c\"\\[\\]()|*+?{}0-9,:= \n\\\\.^#x-]{0,60}", read in "[a-c0-9]{0,8}") {
        if let Ok(grammar) = Gbnf::parse(&text) {
            let _ = grammar.allows(&read);
            let _ = grammar.constraint(&tokens());
        }
    }

    /// Expressions without recursion, compared with a reader of the same expressions that tries every way.
    #[test]
    fn random_expressions_allow_what_backtracking_finds(expression in expression(), text in "[ab]{0,6}") {
        let allowed = grammar(&format!("root ::= {}", expression.written())).allows(&text).unwrap();
        let ends = expression.ends(text.as_bytes(), 0);
        prop_assert_eq!(allowed, ends.contains(&text.len()), "{} on {:?}", expression.written(), text);
    }
}

#[derive(Debug, Clone)]
enum Expression {
    Text(String),
    Either(Vec<Expression>),
    Both(Vec<Expression>),
    Star(Box<Expression>),
    Times(Box<Expression>, usize, usize),
}

fn expression() -> impl Strategy<Value = Expression> {
    let leaf = "[ab]{0,2}".prop_map(Expression::Text);
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..3).prop_map(Expression::Either),
            proptest::collection::vec(inner.clone(), 1..3).prop_map(Expression::Both),
            inner.clone().prop_map(|one| Expression::Star(one.into())),
            (inner, 0usize..3, 0usize..3).prop_map(|(one, least, more)| Expression::Times(one.into(), least, least + more)),
        ]
    })
}

impl Expression {
    fn written(&self) -> String {
        let all = |list: &[Expression], between: &str| list.iter().map(Expression::written).collect::<Vec<_>>().join(between);
        match self {
            Expression::Text(text) => format!("\"{text}\""),
            Expression::Either(list) => format!("({})", all(list, " | ")),
            Expression::Both(list) => format!("({})", all(list, " ")),
            Expression::Star(one) => format!("({})*", one.written()),
            Expression::Times(one, least, most) => format!("({}){{{least},{most}}}", one.written()),
        }
    }

    /// Where a text may end that begins at `begin`.
    fn ends(&self, text: &[u8], begin: usize) -> Vec<usize> {
        let mut ends = match self {
            Expression::Text(own) => text[begin..].starts_with(own.as_bytes()).then_some(begin + own.len()).into_iter().collect(),
            Expression::Either(list) => list.iter().flat_map(|one| one.ends(text, begin)).collect(),
            Expression::Both(list) => {
                list.iter().fold(vec![begin], |begins, one| begins.iter().flat_map(|begin| one.ends(text, *begin)).collect())
            }
            Expression::Star(one) => times(one, text, begin, 0, text.len() + 1),
            Expression::Times(one, least, most) => times(one, text, begin, *least, *most),
        };
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

fn times(one: &Expression, text: &[u8], begin: usize, least: usize, most: usize) -> Vec<usize> {
    let (mut begins, mut ends) = (vec![begin], Vec::new());
    for n in 0..=most {
        if n >= least {
            ends.extend(&begins);
        }
        begins = begins.iter().flat_map(|begin| one.ends(text, *begin)).collect();
        begins.sort_unstable();
        begins.dedup();
    }
    ends
}
