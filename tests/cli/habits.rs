//! Command lines of llama.cpp and ollama: they do the same here, or the error says what does.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use xtask::models::GgufType;

use crate::common::program::{Home, Ran, text, wait};

/// The options of a short greedy answer as JSON.
const SHORT: [&str; 7] = ["--device", "cpu", "--temp", "0", "-n", "4", "--json"];

fn with_stdin(home: &Home, arguments: &[&str], input: &str) -> Ran {
    let mut child = home.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    wait(child)
}

fn with_variables(home: &Home, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = home.command(arguments);
    wait(command.envs(variables.iter().copied()).spawn().unwrap())
}

/// Tokens of the prompt and of the answer.
#[track_caller]
fn tokens(ran: &Ran) -> (u64, Value) {
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    (json["prompt_tokens"].as_u64().unwrap(), json["tokens"].clone())
}

/// The launcher of the Python package gets its arguments as they are, and its exit status is the program's.
#[cfg(unix)]
#[test]
fn launch_is_the_launcher_of_the_python_package() {
    use std::os::unix::fs::PermissionsExt;

    let home = Home::new();
    let python = home.path("python");
    std::fs::write(&python, "#!/bin/sh\n[ \"$1\" = -c ] && exit 0\necho \"$@\"\nexit 7\n").unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let arguments = ["launch", "--num_processes", "2", "-m", "job", "--help"];
    let ran = with_variables(&home, &arguments, &[("TIERFLOW_PYTHON", python.to_str().unwrap())]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "-m tierflow.launch --num_processes 2 -m job --help\n"));
    let ran = with_variables(&home, &["launch", "job.py"], &[("TIERFLOW_PYTHON", "/no/such/python")]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("/no/such/python cannot import"), "{}", ran.stderr);
}

#[test]
fn the_last_of_a_repeated_option_counts() {
    let home = Home::new();
    let model = home.folder_model();
    let json =
        home.json("tierflow.run/1", &[&["run", &model, "-p", "x", "-n", "9"], &SHORT[..], &["-n", "2", "--n-predict", "3"]].concat());
    assert_eq!(json["tokens"].as_array().unwrap().len(), 3);
    let json = home.json("tierflow.plan/5", &["plan", &model, "-c", "128", "-c", "256", "--device", "gpu:7", "--device", "cpu", "--json"]);
    assert!(json["plan"].to_string().contains("\"ctx_size\":256"));
    let twice = ["plan", &model, "--device", "cpu", "--max-memory", "cpu=1KiB", "--max-memory", "cpu=1GiB"];
    let ran = home.run(&twice);
    assert_eq!((ran.code, ran.stderr.matches("--max-memory is given more than once").count()), (Some(0), 1), "{}", ran.stderr);
}

#[test]
fn no_more_threads_start_than_run_at_once() {
    let home = Home::new();
    let model = home.folder_model();
    let n_threads = std::thread::available_parallelism().unwrap();
    let ran = home.run(&[&["run", &model, "-p", "x", "-t", "5000"], &SHORT[..]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches(&format!("--threads 5000: {n_threads} are started")).count(), 1, "{}", ran.stderr);
}

#[test]
fn minus_one_is_a_value() {
    let home = Home::new();
    let model = home.folder_model();
    let start = [&["run", &model, "-p", "x"], &SHORT[..]].concat();
    let plain = tokens(&home.run(&start));
    for more in
        [&["-ngl", "-1"][..], &["-c", "-1"], &["--top-k", "-1"], &["-s", "-1"], &["-t", "-1"], &["-np", "-1"], &["--repeat-last-n", "-1"]]
    {
        assert_eq!(tokens(&home.run(&[&start[..], more].concat())), plain, "{more:?}");
    }
    assert_eq!(tokens(&home.run(&[&start[..], &["-ngl=-1", "-c=-1"]].concat())), plain);
}

#[test]
fn flags_of_llama_cpp_are_obeyed_noted_or_called_unknown() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::F32);
    let start = [&["run", &model, "-p", "x"], &SHORT[..]].concat();
    let plain = tokens(&home.run(&start));
    let idle = ["-fa", "on", "--mlock", "--no-mmap", "-cnv", "-st", "--jinja", "--no-warmup", "-tb", "2", "--no_warmup"];
    let ran = home.run(&[&start[..], &idle].concat());
    assert_eq!(tokens(&ran), plain);
    for flag in ["-fa", "--mlock", "-cnv", "-st", "--jinja", "--no-warmup", "-tb"] {
        assert_eq!(ran.stderr.matches(&format!("{flag} changes nothing here")).count(), 1, "{flag}: {}", ran.stderr);
    }
    assert_eq!(home.run(&[&start[..], &idle, &["-q"]].concat()).stderr, "");
    for (flag, value) in [
        ("--samplers", "top_k"),
        ("--rope-scale", "2"),
        ("-ts", "1,1"),
        ("-sm", "row"),
        ("-mg", "0"),
        ("-nkvo", ""),
        ("-mu", "https://example.org/m.gguf"),
        ("-xyz", ""),
    ] {
        for command in ["run", "plan", "bench"] {
            let refusal = home.refusal(2, &[command, &model, flag, value]);
            assert!(refusal.contains(&format!("unknown flag '{flag}'")), "{command} {flag}: {refusal}");
        }
    }
    let draft = home.refusal(2, &["run", &model, "x", "-ngld", "9"]);
    assert!(draft.contains("unknown flag '-ngld'") && draft.contains("--device-draft"), "{draft}");
    for line in [
        &["run", &model, "x", "-n", "1", "--spec-type", "ngram-simple", "--draft", "16", "--draft-min", "0", "--spec-ngram-size-n", "12"],
        &["-m", &model, "-p", "x", "-n", "1", "-no-cnv", "-dev", "none"][..],
        &["run", "-m", &model, "x", "--gpu-layers", "0", "--max-tokens", "1"],
        &["run", "-m", &model, "-md", &model, "-devd", "cpu", "-p", "x", "-n", "1", "-j", "{}"],
    ] {
        assert_eq!(home.run(line).code, Some(0), "{line:?}");
    }
    assert!(home.stdout(&["--list-devices"]).contains("\ncpu "));
    assert!(tokens(&home.run(&[&["run", &model, "-p", "--list-devices"], &SHORT[..]].concat())).0 > 1, "a prompt is a prompt");
    // Free memory is another number every time.
    let names = |arguments: &[&str]| -> Vec<String> {
        home.stdout(arguments).lines().map(|line| line.split("  ").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names(&["bench", "--list-devices"])[..2], names(&["devices"])[..2]);
}

#[test]
fn a_word_behind_a_switch_does_not_become_the_prompt() {
    let home = Home::new();
    let model = home.folder_model();
    let start = [&["run", &model], &SHORT[..]].concat();
    let plain = tokens(&home.run(&[&start[..], &["hello"]].concat()));
    for more in [
        &["--strict", "false", "hello"][..],
        &["--no-measure", "true", "hello"],
        &["hello", "--fit", "off"],
        &["--ignore-eos", "no", "hello"],
        &["--ignore-eos=false", "hello", "--verbose=0"],
    ] {
        assert_eq!(tokens(&home.run(&[&start[..], more].concat())), plain, "{more:?}");
    }
    // What is said on the command line counts, over the environment, too.
    let tokenized = |more: &[&str]| {
        let ran =
            with_variables(&home, &[&["tokenize", &model, "<|im_end|>", "--ids"], more].concat(), &[("TIERFLOW_NO_PARSE_SPECIAL", "1")]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.stdout
    };
    let parsed = home.stdout(&["tokenize", &model, "<|im_end|>", "--ids"]);
    assert_ne!(tokenized(&[]), parsed);
    for more in [&["--no-parse-special", "off"][..], &["--no-parse-special=no"], &["--no-parse-special", "--no-parse-special=off"]] {
        assert_eq!(tokenized(more), parsed, "{more:?}");
    }
    assert_ne!(tokenized(&["--no-parse-special=off", "--no-parse-special"]), parsed);
}

#[test]
fn words_without_quotes_and_a_pipe_are_the_prompt() {
    let home = Home::new();
    let model = home.folder_model();
    let start = [&["run", &model], &SHORT[..]].concat();
    let run = |more: &[&str]| tokens(&home.run(&[&start[..], more].concat()));
    assert_eq!(run(&["why", "is", "the", "sky", "blue"]), run(&["why is the sky blue"]));
    let expected = run(&["-p", "some text\n\nSummarise it"]);
    assert_ne!(expected, run(&["Summarise it"]));
    for more in [&["Summarise it"][..], &["Summarise", "it"], &["-p", "Summarise it"]] {
        let ran = with_stdin(&home, &[&start[..], more].concat(), "some text\n");
        assert_eq!(tokens(&ran), expected, "{more:?}");
        assert_eq!(ran.stderr.matches("the text on stdin (9 B) goes before the prompt").count(), 1, "{}", ran.stderr);
        assert_eq!(with_stdin(&home, &[&start[..], more, &["-q"]].concat(), "some text\n").stderr, "");
    }
    assert_eq!(tokens(&with_stdin(&home, &[&start[..], &["-p", "Summarise it"]].concat(), "")), run(&["Summarise it"]));
}

#[test]
fn a_line_without_a_subcommand_runs() {
    let home = Home::new();
    let (folder, gguf) = (home.folder_model(), home.gguf_model(GgufType::F32));
    for model in [&folder, &gguf] {
        let expected = tokens(&home.run(&[&["run", model, "-p", "hi"], &SHORT[..]].concat()));
        for line in [&["-m", model, "-p", "hi"][..], &[model, "hi"], &["chat", model, "hi"]] {
            assert_eq!(tokens(&home.run(&[line, &SHORT[..]].concat())), expected, "{line:?}");
        }
    }
    assert_eq!(home.stdout(&["show", &gguf]), home.stdout(&["inspect", &gguf]));
    assert_eq!(home.stdout(&["list", "--json"]), home.stdout(&["ls", "--json"]));
    assert!(home.refusal(2, &["llama3.2"]).contains("tierflow run llama3.2"));
    let similar = home.refusal(2, &["bensh"]);
    assert!(similar.contains("'bench'") && !similar.contains("tierflow run"), "{similar}");
    let swapped = home.refusal(2, &["rnu", "m"]);
    assert!(swapped.contains("'run'") && !swapped.contains("tierflow run rnu"), "{swapped}");
    for (verb, hint) in [("ps", "tierflow ls"), ("rm", "hf cache rm"), ("stop", "tierflow ls"), ("version", "tierflow --version")] {
        let refusal = home.refusal(2, &[verb, "m"]);
        assert!(refusal.contains(&format!("no subcommand '{verb}'")) && refusal.contains(hint), "{refusal}");
    }
}

#[test]
fn variables_that_are_empty_are_as_unset() {
    let home = Home::new();
    let model = home.folder_model();
    let arguments = [&["run", &model, "-p", "x"], &SHORT[..]].concat();
    let plain = tokens(&home.run(&arguments));
    for name in [
        "MAX_MEMORY",
        "DEVICE",
        "CTX_SIZE",
        "DEVICE_MAP",
        "THREADS",
        "IO",
        "SEED",
        "TRACE",
        "TEMP",
        "STOP",
        "KV_DTYPE",
        "BACKENDS",
        "CONFIG",
        "CACHE",
    ] {
        assert_eq!(tokens(&with_variables(&home, &arguments, &[(&format!("TIERFLOW_{name}"), "")])), plain, "{name}");
    }
    let ran = with_variables(&home, &["plan", &model, "--device", "cpu"], &[("TIERFLOW_DEVICES", ""), ("TIERFLOW_EXPORT_DEVICE_MAP", "")]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn an_error_in_a_variable_names_the_variable() {
    let home = Home::new();
    let model = home.folder_model();
    for (name, value, option) in [
        ("TIERFLOW_CTX_SIZE", "4k", "--ctx-size"),
        ("TIERFLOW_MAX_MEMORY", "tpu=1GiB", "--max-memory"),
        ("TIERFLOW_IO", "dio", "--io"),
        ("TIERFLOW_DEVICE", "tpu", "--device"),
        ("TIERFLOW_SEED", "-5", "--seed"),
        ("TIERFLOW_TEMP", "-1", "--temp"),
        ("TIERFLOW_PREDICT", "-5", "--predict"),
    ] {
        let ran = with_variables(&home, &["run", &model, "-p", "x"], &[(name, value)]);
        let first = ran.stderr.lines().next().unwrap_or_default();
        assert!(ran.code == Some(2) && first.contains(name) && !first.contains(option), "{}", ran.stderr);
    }
    let ran = with_variables(&home, &["chat", &model, "-p", "x"], &[("TIERFLOW_CTX_SIZE", "4k")]);
    assert!(ran.code == Some(2) && ran.stderr.contains("TIERFLOW_CTX_SIZE"), "by another name of the subcommand: {}", ran.stderr);
    // Where the command line has the last word, a variable with one does not count.
    assert_eq!(with_variables(&home, &["run", &model, "-p", "x", "-n", "1"], &[("TIERFLOW_PREDICT", "-5")]).code, Some(0));
    let typed = with_variables(&home, &["run", &model, "-p", "x", "-c", "4k"], &[("TIERFLOW_CTX_SIZE", "5k")]);
    assert!(typed.code == Some(2) && typed.stderr.contains("--ctx-size") && typed.stderr.contains("4k"), "{}", typed.stderr);
    let other = with_variables(&home, &["run", &model, "-p", "x", "-t", "x"], &[("TIERFLOW_CTX_SIZE", "5k")]);
    assert!(other.code == Some(2) && other.stderr.contains("--threads"), "{}", other.stderr);
    let ran = with_variables(&home, &["run", "-p", "x"], &[("TIERFLOW_MODEL", "no-such-model")]);
    assert!(ran.code == Some(2) && ran.stderr.contains("TIERFLOW_MODEL: `no-such-model`"), "{}", ran.stderr);
}

#[test]
fn an_unknown_option_meets_only_advice_that_is_apt() {
    let home = Home::new();
    for (arguments, advice) in [
        (&["run", "m", "--nowordwrap"][..], "| cat leaves lines whole"),
        (&["run", "m", "--load_in_8bit"], "weights are used as they are stored"),
        (&["run", "m", "--torch_dtype=float16"], "weights are used as they are stored"),
        (&["run", "m", "--quantize", "q4"], "weights are used as they are stored"),
        (&["run", "m", "--fp16"], "weights are used as they are stored"),
        (&["run", "m", "--offload_folder", "x"], "read from the model's own files"),
        (&["run", "m", "--gpu-memory-utilization", "0.9"], "--max-memory"),
        (&["run", "m", "--override-kv", "a=int:1"], "what the model's file says counts"),
        (&["run", "m", "--do_sample"], "--temp 0"),
        (&["run", "m", "--in-prefix", "x"], "the model's own template counts"),
        (&["run", "m", "--export-device-map", "f.json"], "it is an option of `tierflow plan`"),
        (&["plan", "m", "-p", "x"], "it is an option of `tierflow run`"),
        (&["plan", "m", "-n", "4"], "it is an option of `tierflow run`"),
        (&["run", "m", "--no_such_thing"], "--no_such_thing"),
        (&["run", "m", "--max-mem", "1GiB"], "'--max-memory'"),
        (&["nosuch"], "tierflow run nosuch"),
    ] {
        let refusal = home.refusal(2, arguments);
        let (flag, similar) = (arguments.last().filter(|_| arguments.len() == 3), refusal.contains("similar"));
        assert!(refusal.contains(advice) && !refusal.contains("as a value"), "{arguments:?}: {refusal}");
        assert_eq!(similar, arguments.contains(&"--max-mem"), "{arguments:?}: {refusal}");
        let typed = flag.map_or("", |flag| flag.split('=').next().unwrap());
        assert!(refusal.contains(typed), "{arguments:?}: {refusal}");
    }
    let text = home.refusal(2, &["run", "m", "--what is that?"]);
    assert!(text.contains("to pass '--what is that?' as a value"), "{text}");
    for (arguments, reason) in [
        (&["run", "m", "x", "-c", "4k"][..], "give a whole number from 0 on, or -1 for the default"),
        (&["run", "m", "x", "-np", "0"], "give a whole number from 1 on, or -1 for the default"),
        (&["run", "m", "x", "-ub", "0"], "give a whole number from 1 on"),
        (&["run", "m", "x", "-t", "99999999999"], "the largest number is 4294967295"),
        (&["logits", "m", "--tokens", "1,a"], "no token id: give a whole number from 0 on"),
    ] {
        let refusal = home.refusal(2, arguments);
        assert!(refusal.contains(reason) && !refusal.contains("..="), "{arguments:?}: {refusal}");
    }
}

#[test]
fn options_are_checked_before_the_model_is_opened() {
    let home = Home::new();
    let broken = home.path("broken.gguf");
    std::fs::write(&broken, "GGUF").unwrap();
    let start = ["run", &text(&broken), "-p", "x"].map(str::to_owned);
    let start: Vec<&str> = start.iter().map(String::as_str).collect();
    for (more, option) in [
        (&["--temp", "-1"][..], "--temp"),
        (&["--top-p", "2"], "--top-p"),
        (&["--repeat-penalty", "0"], "--repeat-penalty"),
        (&["--repeat-last-n", "-2"], "--repeat-last-n"),
        (&["-n", "-5"], "--predict"),
        (&["-s", "-5"], "--seed"),
        (&["--stop", ""], "--stop"),
    ] {
        let refusal = home.refusal(2, &[&start[..], more].concat());
        assert!(refusal.contains(option) && !refusal.contains("broken.gguf"), "{refusal}");
    }
    assert!(home.refusal(1, &start).contains("broken.gguf"));
    let file = text(&broken);
    for command in [&["run", &file, "-p", "x"][..], &["plan", &file], &["bench", &file], &["logits", &file, "--tokens", "1"]] {
        for (more, reason) in [(&["-ctk", "f32", "-ctv", "f61"][..], "--cache-type-v"), (&["--no-split", "none"], "--no-split")] {
            let refusal = home.refusal(2, &[command, more].concat());
            assert!(refusal.contains(reason) && !refusal.contains("broken.gguf"), "{refusal}");
        }
        let refusal = home.refusal(1, &[command, &["--device-map", "no-such-map.json"]].concat());
        assert!(refusal.contains("no-such-map.json") && !refusal.contains("broken.gguf"), "{refusal}");
    }
    for (more, option) in [(&["-p", "0", "-n", "0"][..], "--n-prompt"), (&["-c", "64", "-d", "60", "-p", "8"], "--ctx-size")] {
        let refusal = home.refusal(2, &[&["bench", &file], more].concat());
        assert!(refusal.contains(option) && !refusal.contains("broken.gguf"), "{refusal}");
    }
}

/// What stands under each heading of a help.
fn groups(help: &str) -> Vec<(&str, String)> {
    let mut groups: Vec<(&str, String)> = Vec::new();
    for line in help.lines() {
        if let Some(heading) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            groups.push((heading, String::new()));
        } else if let Some((_, text)) = groups.last_mut() {
            text.push_str(line);
        }
    }
    groups
}

#[test]
fn help_comes_in_groups_the_daily_options_first() {
    let home = Home::new();
    let (short, long) = (home.stdout(&["run", "-h"]), home.stdout(&["run", "--help"]));
    let headings = |help| groups(help).into_iter().map(|(heading, _)| heading).collect::<Vec<&str>>();
    assert_eq!(headings(&long), ["Arguments", "Model", "Prompt", "Sampling", "Memory", "Placement", "Output"], "{long}");
    // On one screen there is no room for headings.
    assert_eq!(headings(&short), ["Arguments", "Options"], "{short}");
    for rare in ["--repeat-penalty", "--slots", "--virtual-gpus", "--upload", "--trace"] {
        assert!(!short.contains(rare) && long.contains(rare), "{rare}");
    }
    for daily in ["--max-memory", "--ctx-size", "--device ", "-ngl", "--temp", "--prompt", "--predict", "--json"] {
        assert!(short.contains(daily), "{daily}");
    }
    assert!(groups(&long)[4].1.trim_start().starts_with("--max-memory"), "{long}");
    assert_eq!(home.stdout(&["help", "run"]), long);
    assert!(long.contains("--ctx-size is TIERFLOW_CTX_SIZE") && !long.contains("[env"), "{long}");
}

#[test]
fn help_fits_into_80_columns_and_the_short_one_a_screen() {
    let home = Home::new();
    let commands = [
        "run",
        "serve",
        "batch",
        "plan",
        "devices",
        "inspect",
        "bench",
        "tokenize",
        "embed",
        "train",
        "convert",
        "logits",
        "doctor",
        "pull",
        "ls",
        "config",
        "completions",
    ];
    for command in commands.iter().map(|command| vec![*command]).chain([vec![], vec!["config", "show"], vec!["config", "path"]]) {
        for flag in ["-h", "--help"] {
            let help = home.stdout(&[&command[..], &[flag]].concat());
            let widest = help.lines().max_by_key(|line| line.chars().count()).unwrap();
            assert!(help.contains("Usage: ") && widest.chars().count() <= 80, "{command:?} {flag}: {widest}");
            // The command stands above, the next prompt below.
            assert!(flag == "--help" || help.lines().count() <= 22, "{command:?}: {help}");
        }
    }
}
