//! Chats in a terminal: what is typed, what is answered, what is kept, and where each goes.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tierflow::engine::Engine;
use tierflow::machine::Measure;
use tierflow::{DeviceChoice, Error, GenerateOptions, Sampler, SamplingSettings};

use crate::common::program::{Home, text};
use crate::typing::{Stream, Terminal};

/// Kinds of terminals that rustyline edits lines on, and that it does not.
const TERMS: [&str; 2] = ["xterm-256color", "dumb"];

fn chat_on(home: &Home, term: &str, stdout: Stream, more: &[&str]) -> Terminal {
    let model = home.folder_model();
    let mut command = home.command(&[&["run", &model, "--device", "cpu", "-n", "6", "--ignore-eos"], more].concat());
    command.env("TERM", term).env("HOME", home.path(""));
    let mut terminal = Terminal::start(command, stdout, Stream::Terminal);
    terminal.wait_for(">>> ");
    terminal
}

/// A chat whose answers are on the terminal.
fn chat(home: &Home, more: &[&str]) -> Terminal {
    chat_on(home, "dumb", Stream::Terminal, more)
}

/// The messages in a file that `/save` wrote.
fn saved(home: &Home, terminal: &mut Terminal, name: &str) -> Vec<(String, String)> {
    let path = home.path(name);
    let shown = terminal.ask(&format!("/save {}", text(&path)));
    assert!(shown.contains("messages are in"), "{shown}");
    let value: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(value["schema"], "tierflow.chat/1");
    let of = |message: &Value| (message["role"].as_str().unwrap().to_owned(), message["content"].as_str().unwrap().to_owned());
    value["messages"].as_array().unwrap().iter().map(of).collect()
}

fn roles(messages: &[(String, String)]) -> String {
    messages.iter().map(|(role, _)| role.chars().next().unwrap()).collect()
}

/// The seed that `/stats` shows.
fn seed(terminal: &mut Terminal) -> String {
    let shown = terminal.ask("/stats");
    shown.split("seed ").nth(1).unwrap_or_else(|| panic!("{shown}")).split(' ').next().unwrap().to_owned()
}

/// On a terminal without colours, words stand around what is thought; in the next prompt the template finds it by its name.
#[test]
fn a_chat_shows_what_the_model_thinks_and_keeps_it_apart() {
    let home = Home::new();
    let model = home.folder_model();
    let template = "{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}\n{% endfor %}\
        {{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}";
    std::fs::write(std::path::Path::new(&model).join("chat_template.jinja"), template).unwrap();
    let mut command = home.command(&["run", &model, "--device", "cpu", "-n", "6", "--ignore-eos", "--temp", "0"]);
    command.env("TERM", "dumb").env("NO_COLOR", "1").env("HOME", home.path(""));
    let mut terminal = Terminal::start(command, Stream::Terminal, Stream::Terminal);
    terminal.wait_for(">>> ");
    assert!(terminal.ask("hello").contains("Thinking..."));
    let path = home.path("chat.json");
    terminal.ask(&format!("/save {}", text(&path)));
    let value: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let kept = &value["messages"][1];
    assert!(kept["content"] == "" && kept["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()), "{kept}");
    assert!(terminal.ask("/set nothink").contains("off"));
    assert!(!terminal.ask("hello again").contains("Thinking..."));
    terminal.type_line("/bye");
}

#[test]
fn stdout_carries_the_answers_alone_where_it_is_no_terminal() {
    for term in TERMS {
        let home = Home::new();
        let mut terminal = chat_on(&home, term, Stream::Pipe, &["--temp", "0"]);
        for line in ["hello", "/stats", "/hepl", "/set temp 0.5", "again"] {
            terminal.ask(line);
        }
        let messages = saved(&home, &mut terminal, "chat.json");
        terminal.type_line("/bye");
        let (status, stdout, _) = terminal.end();
        assert!(status.success());
        assert_eq!(roles(&messages), "uaua");
        assert_eq!(stdout, format!("{}\n{}\n", messages[1].1, messages[3].1), "TERM={term}");
    }
}

#[test]
fn the_prompt_is_on_the_terminal_where_both_streams_are_none() {
    let home = Home::new();
    let model = home.folder_model();
    let mut command = home.command(&["run", &model, "--device", "cpu", "-n", "4", "-q"]);
    command.env("TERM", "xterm");
    let mut terminal = Terminal::start(command, Stream::Pipe, Stream::Pipe);
    terminal.wait_for(">>> ");
    terminal.type_line("/nothing");
    terminal.wait_for(">>> ");
    terminal.type_line("/bye");
    let (status, stdout, stderr) = terminal.end();
    assert!(status.success());
    assert_eq!(stdout, "");
    assert!(stderr.contains("/nothing is no command") && !stderr.contains(">>>"), "{stderr}");
}

#[test]
fn commands_that_are_none_are_never_sent() {
    let home = Home::new();
    let mut terminal = chat(&home, &[]);
    for (line, hint) in [
        ("/hepl", "did you mean /help?"),
        ("/etc/passwd", "/help lists them"),
        ("/set colour red", "there is no such setting"),
        ("/set num_ctx 8", "the context is laid out when the model loads"),
        ("/set temp -1", "out of range"),
        ("/save", "name a file"),
        ("/load /no/such/file", "cannot read /no/such/file"),
        ("/show weather", "there is info"),
        ("/regen", "nothing was asked yet"),
        ("/stats", "nothing was answered yet"),
        ("/help", "/regen"),
        ("/show info", "0 messages, 0 of"),
    ] {
        let shown = terminal.ask(line);
        assert!(shown.contains(hint), "{line}: {shown}");
    }
    assert_eq!(saved(&home, &mut terminal, "chat.json"), []);
}

#[test]
fn blocks_are_one_message_and_may_begin_with_a_slash() {
    let home = Home::new();
    let mut terminal = chat(&home, &["-n", "1"]);
    for line in ["\"\"\"one", "  two"] {
        terminal.type_line(line);
        terminal.wait_for("... ");
    }
    terminal.ask("three\"\"\"");
    terminal.ask("\"\"\"/bye\"\"\"");
    let messages = saved(&home, &mut terminal, "chat.json");
    assert_eq!((messages[0].1.as_str(), messages[2].1.as_str()), ("one\n  two\nthree", "/bye"));
}

#[test]
fn seeds_are_new_for_every_answer_unless_one_is_given() {
    let home = Home::new();
    let mut terminal = chat(&home, &["--temp", "2"]);
    let mut seeds = Vec::new();
    for line in ["hello", "hello", "/regen"] {
        terminal.ask(line);
        seeds.push(seed(&mut terminal));
    }
    assert!(seeds[0] != seeds[1] && seeds[1] != seeds[2] && seeds[0] != seeds[2], "{seeds:?}");
    terminal.ask("/set seed 7");
    terminal.ask("hello");
    assert_eq!(seed(&mut terminal), "7");
    terminal.ask("/clear");
    terminal.ask("hello");
    assert_eq!(seed(&mut terminal), "7");
    let first = saved(&home, &mut terminal, "first.json");
    terminal.ask("/regen");
    let second = saved(&home, &mut terminal, "second.json");
    assert_eq!((roles(&first), &first[0]), (roles(&second), &second[0]));
    assert_ne!(first[1], second[1], "the same answer again");
}

#[test]
fn settings_and_the_system_message_are_what_the_next_answer_is_made_with() {
    let home = Home::new();
    let mut terminal = chat(&home, &["-sys", "Be brief."]);
    assert!(terminal.ask("/set parameter num_predict 2").contains("predict           2"));
    assert!(terminal.ask("/set").contains("seed              new for every answer"));
    terminal.ask("/set verbose");
    let shown = terminal.ask("hello");
    assert!(shown.contains("[ Prompt: "), "{shown}");
    assert!(terminal.ask("/system").contains("system message: Be brief."));
    assert_eq!(roles(&saved(&home, &mut terminal, "one.json")), "sua");
    terminal.ask("/system \"\"");
    assert_eq!(roles(&saved(&home, &mut terminal, "two.json")), "ua");
    terminal.ask("/set system Be long.");
    assert_eq!(saved(&home, &mut terminal, "three.json")[0], ("system".to_owned(), "Be long.".to_owned()));
}

#[test]
fn a_saved_conversation_goes_on_where_it_was() {
    let home = Home::new();
    let mut terminal = chat(&home, &["--temp", "0", "-sys", "Be brief."]);
    terminal.ask("hello");
    let before = saved(&home, &mut terminal, "chat.json");
    terminal.ask("and now?");
    let whole = saved(&home, &mut terminal, "whole.json");
    drop(terminal);
    let mut terminal = chat(&home, &["--temp", "0"]);
    let shown = terminal.ask(&format!("/load {}", text(&home.path("chat.json"))));
    assert!(shown.contains("2 messages of"), "{shown}");
    assert_eq!(saved(&home, &mut terminal, "again.json"), before);
    terminal.ask("and now?");
    assert_eq!(saved(&home, &mut terminal, "again.json"), whole, "the answer is the one that it was");
    // What is no conversation is neither loaded nor written over.
    std::fs::write(home.path("notes"), "mine").unwrap();
    let notes = text(&home.path("notes"));
    assert!(terminal.ask("/save ~/home.json").contains("4 messages are in ~/home.json"));
    assert!(home.path("home.json").is_file());
    assert!(terminal.ask(&format!("/load {notes}")).contains("is no conversation"));
    assert!(terminal.ask(&format!("/save {notes}")).contains("something else"));
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "mine");
    assert_eq!(saved(&home, &mut terminal, "again.json"), whole);
}

#[test]
fn the_oldest_turns_leave_a_full_context() {
    let home = Home::new();
    let mut terminal = chat(&home, &["-c", "128", "-n", "8", "-sys", "S"]);
    let mut left = 0;
    for turn in 0..8 {
        let shown = terminal.ask(&format!("question number {turn}"));
        left += usize::from(shown.contains("the context of 128 tokens is full: the") && shown.contains("left it"));
        assert!(!shown.contains("error"), "{shown}");
    }
    assert!(left > 0, "nothing ever left");
    assert_eq!(roles(&saved(&home, &mut terminal, "chat.json")), format!("s{}", "ua".repeat(8)), "what left is still saved");
    let shown = terminal.ask(&"too long ".repeat(40));
    assert!(shown.contains("error: the prompt has") && shown.contains("as it was"), "{shown}");
    assert_eq!(roles(&saved(&home, &mut terminal, "chat.json")), format!("s{}", "ua".repeat(8)));
    let shown = terminal.ask("short");
    assert!(!shown.contains("error"), "{shown}");
}

#[test]
fn an_answer_goes_on_while_turns_can_leave() {
    let home = Home::new();
    let mut terminal = chat(&home, &["-c", "128", "-n", "4"]);
    for turn in 0..4 {
        terminal.ask(&format!("number {turn}"));
    }
    terminal.ask("/set predict -1");
    let shown = terminal.ask("go on");
    assert!(shown.contains("left it"), "{shown}");
    assert!(shown.contains("cut off: the context of 128 positions is full"), "{shown}");
    // A kilobyte at the most, but more than would have fitted behind all four turns.
    let answer = saved(&home, &mut terminal, "chat.json").pop().unwrap().1;
    assert!(!answer.is_empty());
}

#[test]
fn without_shifts_a_full_context_refuses() {
    let home = Home::new();
    let mut terminal = chat(&home, &["-c", "128", "-n", "8", "--no-context-shift"]);
    let refused = (0..12).find(|turn| {
        let shown = terminal.ask(&format!("question number {turn}"));
        assert!(!shown.contains("left it"), "{shown}");
        shown.contains("error: the prompt has")
    });
    let n_before = refused.expect("a refusal");
    assert_eq!(roles(&saved(&home, &mut terminal, "chat.json")), "ua".repeat(n_before));
}

#[test]
fn lines_are_kept_for_the_user_alone_unless_forbidden() {
    let home = Home::new();
    let file = home.path("state").join("tierflow").join("history");
    let mut terminal = chat(&home, &["-n", "1", "--no-history"]);
    terminal.ask("secret one");
    drop(terminal);
    assert!(!file.exists());
    let mut terminal = chat(&home, &["-n", "1"]);
    terminal.ask("kept");
    terminal.ask(&"x".repeat(3000));
    terminal.ask("/set nohistory");
    terminal.ask("secret two");
    drop(terminal);
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.contains("kept") && !kept.contains("secret"), "{kept}");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    // The next chat has it: two keys up from a new line.
    let mut terminal = chat_on(&home, "xterm", Stream::Pipe, &["-n", "1"]);
    terminal.type_keys("\u{1b}[A\u{1b}[A\u{1b}[A");
    terminal.wait_for("kept");
    drop(terminal);
    // A file that cannot be read is no reason not to chat.
    std::fs::write(&file, [0xff, 0xfe, b'\n']).unwrap();
    let mut terminal = chat(&home, &["-n", "1"]);
    terminal.ask("hello");
}

#[test]
fn the_history_stays_small() {
    let home = Home::new();
    let file = home.path("state").join("tierflow").join("history");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let lines: String = (0..5000).map(|line| format!("line {line}\n")).collect();
    std::fs::write(&file, format!("#V2\n{lines}")).unwrap();
    let mut terminal = chat(&home, &["-n", "1"]);
    terminal.ask("the last");
    drop(terminal);
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.ends_with("line 4999\nthe last\n"), "{}", &kept[kept.len().saturating_sub(60)..]);
    assert!(kept.lines().count() <= 1001, "{} lines", kept.lines().count());
}

#[test]
fn words_are_wrapped_on_a_terminal_and_nowhere_else() {
    let home = Home::new();
    let long = ["--temp", "0", "-n", "120"];
    let mut terminal = chat_on(&home, "xterm", Stream::Terminal, &long);
    terminal.type_line("hello");
    terminal.wait_for("\r\n");
    let shown = terminal.wait_for(">>> ");
    let messages = saved(&home, &mut terminal, "chat.json");
    let widest = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    assert!(widest(&messages[1].1) > 80, "the answer needs no wrapping: {:?}", messages[1].1);
    let answer = shown.rsplit_once("\u{1b}[?2004h").map_or(shown.as_str(), |(answer, _)| answer);
    assert!(widest(answer) <= 80 + "\u{1b}[79D\u{1b}[K".len(), "{answer:?}");
    drop(terminal);
    let mut terminal = chat_on(&home, "xterm", Stream::Pipe, &long);
    terminal.ask("hello");
    terminal.type_line("/bye");
    assert_eq!(terminal.end().1, format!("{}\n", messages[1].1));
}

#[test]
fn ctrl_c_ends_an_answer_and_the_chat_goes_on() {
    let home = Home::new();
    let model = home.larger_model();
    for term in TERMS {
        let mut command = home.command(&["run", &model, "--device", "cpu", "--ignore-eos", "--temp", "1"]);
        command.env("TERM", term);
        let mut terminal = Terminal::start(command, Stream::Terminal, Stream::Terminal);
        terminal.wait_for(">>> ");
        terminal.type_line("hello");
        terminal.wait_for("hello");
        // The line break that the key makes, then something of the answer.
        terminal.wait_for("\r\n");
        std::thread::sleep(std::time::Duration::from_millis(300));
        terminal.type_keys("\u{3}");
        terminal.wait_for(">>> ");
        assert!(terminal.ask("/help").contains("/bye"));
        terminal.type_keys("\u{4}");
        assert!(terminal.end().0.success());
    }
}

#[test]
fn json_of_a_chat_is_refused_and_a_trace_is_of_the_last_answer() {
    let home = Home::new();
    let model = home.folder_model();
    let command = home.command(&["run", &model, "--device", "cpu", "--json"]);
    let (status, _, stderr) = Terminal::start(command, Stream::Pipe, Stream::Pipe).end();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--json") && stderr.contains("give a prompt"), "{stderr}");
    let trace = home.path("trace.json");
    let mut terminal = chat(&home, &["-n", "2", "--trace", &text(&trace)]);
    terminal.ask("hello");
    terminal.type_line("/bye");
    assert!(terminal.end().0.success());
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    assert!(trace.to_string().len() > 1000, "{trace}");
}

/// After a shift, a generation goes on as a new one goes on behind the shorter prompt and the same tokens.
#[test]
fn a_shifted_generation_goes_on_as_if_it_had_begun_with_the_shorter_prompt() {
    let home = Home::new();
    let builder = Engine::builder(home.folder_model()).device(DeviceChoice::Cpu).measure(Measure::Never).ctx_size(32);
    let mut engine = pollster::block_on(builder.open()).unwrap();
    let sampler = || Sampler::new(SamplingSettings::greedy(), 0);
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::default() };
    let (long, short): (Vec<u32>, Vec<u32>) = ((10..34).collect(), (10..20).collect());
    let mut session = engine.session();
    let mut generation = pollster::block_on(session.generate(&long, sampler(), options.clone())).unwrap();
    let mut tokens = Vec::new();
    while !generation.is_context_full() {
        tokens.push(pollster::block_on(generation.next()).unwrap().expect("a token").token);
    }
    let too_long: Vec<u32> = (10..40).collect();
    assert!(matches!(pollster::block_on(generation.shift(&too_long)), Err(Error::ContextFull { .. })));
    pollster::block_on(generation.shift(&short)).unwrap();
    assert!(!generation.is_context_full());
    let rest: Vec<u32> = (0..6).map(|_| pollster::block_on(generation.next()).unwrap().expect("a token").token).collect();
    let prompt = [&short[..], &tokens].concat();
    let mut session = engine.session();
    let mut generation = pollster::block_on(session.generate(&prompt, sampler(), options)).unwrap();
    let expected: Vec<u32> = (0..6).map(|_| pollster::block_on(generation.next()).unwrap().expect("a token").token).collect();
    assert_eq!(rest, expected);
}
