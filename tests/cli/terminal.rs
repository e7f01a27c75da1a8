//! Reports in a terminal of few columns: lines that fit it, and colours unless the user wants none.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};

use xtask::models::GgufType;

use crate::common::program::{Home, least, text};

/// What `command` shows on a terminal of 24 rows and `columns` columns, on stdout and stderr.
fn shown(command: Command, columns: u16) -> String {
    let (shown, status) = shown_with_status(command, columns);
    assert!(status.success(), "{shown}");
    shown
}

/// The same with how it ended.
fn shown_with_status(mut command: Command, columns: u16) -> (String, ExitStatus) {
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut its) = (0, 0);
    // SAFETY: both numbers and the size are valid for the call, the name is not asked for, and the settings are the system's.
    let failed = unsafe { libc::openpty(&mut ours, &mut its, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(failed, 0, "no terminal: {}", std::io::Error::last_os_error());
    // SAFETY: the call above opened them, and nobody else has them.
    let (ours, its) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
    command.stdin(Stdio::null()).stdout(its.try_clone().unwrap()).stderr(its);
    // SAFETY: both calls may be made between fork and exec. The terminal becomes that of the program alone, whatever the tests run on.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(1, libc::TIOCSCTTY as _, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    // It keeps the terminal open otherwise.
    drop(command);
    let mut bytes = Vec::new();
    let mut terminal = File::from(ours);
    let mut part = [0; 4096];
    // Where nobody has the other side any more, Linux says so by an error.
    while let Ok(n) = terminal.read(&mut part) {
        if n == 0 {
            break;
        }
        bytes.extend(&part[..n]);
    }
    let status = child.wait().unwrap();
    (String::from_utf8(bytes).unwrap().replace("\r\n", "\n"), status)
}

/// Without the codes of colours.
fn plain(shown: &str) -> String {
    let mut parts = shown.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

fn longest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

#[test]
fn reports_fit_the_terminal_and_are_coloured_there() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q8_0);
    for arguments in
        [&["plan", &model, "--max-memory", "cpu=1MiB"][..], &["devices"], &["inspect", &model], &["run", &model, "-p", "x", "-n", "1"]]
    {
        let of_columns = |columns: u16| shown(home.command(arguments), columns);
        let narrow = of_columns(60);
        assert!(narrow.contains("\u{1b}[1m"), "{narrow:?}");
        // Of one token no rate of generation is known, and a bar has its numbers from the first frame on.
        assert!(!narrow.contains("Generation:") && !narrow.contains("0 B/0 B"), "{narrow:?}");
        assert!(longest(&plain(&narrow)) <= 60 || arguments[0] == "run", "{arguments:?}: {narrow}");
        let mut without_colour = home.command(arguments);
        without_colour.env("NO_COLOR", "1");
        assert!(!shown(without_colour, 60).contains("\u{1b}[1m"), "{arguments:?}");
    }
    let [narrow, wide] = [50, 200].map(|columns| plain(&shown(home.command(&["inspect", &model]), columns)));
    assert!(longest(&narrow) <= 50 && longest(&wide) > 80, "{narrow}{wide}");
    // Headings go on below, too.
    let words = |text: &str| {
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        words.sort();
        words
    };
    assert_eq!(words(&narrow), words(&wide), "{narrow}{wide}");
}

#[test]
fn the_plan_of_the_readme_fits_a_terminal_of_80_by_24() {
    let home = Home::new();
    let (model, machine) = home.readme_example();
    let shown = plain(&shown(home.command(&["plan", &model, "--devices", &machine]), 80));
    // The command stands above, the next prompt below.
    assert!(longest(&shown) <= 80 && shown.lines().count() <= 22, "{shown}");
    assert!(shown.contains("  gpu:0  ") && shown.contains("  more memory  ") && !shown.contains("--measure"), "{shown}");
}

#[test]
fn an_answer_is_wrapped_on_a_terminal_and_nowhere_else() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::F32);
    let arguments = ["run", &model, "-p", "hello", "-n", "120", "--temp", "0", "--ignore-eos", "-q", "--device", "cpu"];
    let text = home.stdout(&arguments);
    assert!(longest(&text) > 60, "the answer needs no wrapping: {text:?}");
    let answer = shown(home.command(&arguments), 60);
    // A word that moves to the next line is taken back first.
    assert!(longest(&answer) <= 60 + "\u{1b}[59D\u{1b}[K".len(), "{answer:?}");
}

#[test]
fn errors_fit_the_terminal() {
    let home = Home::new();
    let model = home.folder_model();
    for arguments in [
        &["run", &model, "hi", "--top-k", "many"][..],
        &["run", &model, "hi", "-sm", "row"],
        &["plan", &model, "--device-map", "no_such_map"],
        &["run", "no-such-model", "hi"],
        &["run", &model, "-c", "8", "a prompt that is longer than its context"],
    ] {
        let (shown, status) = shown_with_status(home.command(arguments), 60);
        // A path is not broken.
        let lines: Vec<&str> = shown.lines().filter(|line| !line.contains('/')).collect();
        assert!(!status.success() && lines.len() > 1 && longest(&plain(&lines.join("\n"))) <= 60, "{arguments:?}: {shown}");
    }
}

#[test]
fn a_terminal_does_not_obey_what_stands_in_a_file() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::F32);
    let bytes = std::fs::read(&model).unwrap();
    let (name, evil) = (b"seeded test model", b"see\x1b[2Jsts\x07 model");
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let mut changed = bytes.clone();
    changed[at..at + name.len()].copy_from_slice(evil);
    std::fs::write(&model, changed).unwrap();
    for arguments in
        [&["plan", &model, "--device", "cpu"][..], &["inspect", &model], &["run", &model, "-p", "x", "-n", "1", "--device", "cpu"]]
    {
        let on_terminal = shown(home.command(arguments), 80);
        assert!(on_terminal.contains("see\u{241b}[2Jsts\u{2407} model") && !on_terminal.contains("\u{1b}[2J"), "{on_terminal:?}");
        let ran = home.run(arguments);
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains("see\u{1b}[2Jsts\u{7} model"), "elsewhere text is as it is: {ran:?}");
    }
}

#[test]
fn models_are_listed_without_their_paths_where_those_do_not_fit() {
    let home = Home::new();
    let snapshot = home.path("hub/hub/models--org--name/snapshots/c0ffee");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(home.path("hub/hub/models--org--name/refs")).unwrap();
    std::fs::write(home.path("hub/hub/models--org--name/refs/main"), "c0ffee").unwrap();
    std::fs::write(snapshot.join("m-Q4_0.gguf"), "GGUF").unwrap();
    let path = text(&snapshot);
    assert!(home.stdout(&["ls"]).contains(&path));
    assert!(shown(home.command(&["ls"]), 300).contains(&path));
    let narrow = plain(&shown(home.command(&["ls"]), 60));
    assert!(
        narrow.contains("\norg/name:m-Q4_0.gguf   4 B\n") && !narrow.contains(&path) && narrow.contains("\npaths: tierflow ls --json "),
        "{narrow}"
    );
}

#[test]
fn warnings_and_the_table_of_bench_fit_the_terminal() {
    let home = Home::new();
    let model = home.folder_model();
    std::fs::write(home.path("folder/generation_config.json"), r#"{"top_p": 7}"#).unwrap();
    let answer = plain(&shown(home.command(&["run", &model, "-p", "x", "-n", "1", "--device", "cpu"]), 60));
    // A path is not broken.
    let warned = answer.lines().skip_while(|line| !line.contains("WARN")).take_while(|line| !line.contains("layers"));
    let warned: Vec<&str> = warned.filter(|line| !line.contains('/')).collect();
    assert!(warned.concat().ends_with("and is ignored") && longest(&warned.join("\n")) <= 60, "{answer}");

    let gguf = home.gguf_model(GgufType::F32);
    let bench = |budget: &str| home.command(&["bench", &gguf, "--device", "cpu", "-p", "4", "-n", "2", "-r", "1", "--max-memory", budget]);
    let refused = shown_with_status(bench("cpu=2KiB"), 300).0;
    let budget = format!("cpu={}", least(&refused));
    let [narrow, wide] = [80, 300].map(|columns| plain(&shown(bench(&budget), columns)));
    assert!(wide.contains("| from disk/forward |") && !narrow.contains("| from disk/forward |"), "{narrow}{wide}");
    // Before the first line, the bar of loading is taken away.
    let table: Vec<&str> = narrow.lines().skip_while(|line| !line.contains("| size |")).skip(1).collect();
    let below = table.iter().filter(|line| line.starts_with("  ") && line.contains("/forward")).count();
    assert!(below >= 2 && longest(&table.join("\n")) <= 80, "{narrow}");
}
