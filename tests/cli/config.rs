//! The config file: which source of a setting wins, what `config` writes and shows, and what is said about a bad file.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use crate::common::program::{Home, Ran, text, wait};

/// A home whose config file is at a place of its own.
struct Configured {
    home: Home,
    path: PathBuf,
}

impl Configured {
    fn new(file: Option<&str>) -> Configured {
        let home = Home::new();
        let path = home.path("settings").join("mine.toml");
        if let Some(file) = file {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, file).unwrap();
        }
        Configured { home, path }
    }

    fn run_in(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
        let mut command = self.home.command(arguments);
        command
            .env("TIERFLOW_CONFIG", &self.path)
            .env_remove("TIERFLOW_CACHE")
            .env_remove("TIERFLOW_NO_MEASURE")
            .envs(variables.iter().copied());
        wait(command.spawn().unwrap())
    }

    #[track_caller]
    fn stdout(&self, arguments: &[&str]) -> String {
        let ran = self.run_in(&[], arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        ran.stdout
    }

    #[track_caller]
    fn refusal(&self, arguments: &[&str]) -> String {
        let ran = self.run_in(&[], arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        ran.stderr
    }

    /// Value and source of every setting.
    #[track_caller]
    fn shown(&self, variables: &[(&str, &str)], more: &[&str]) -> Value {
        let ran = self.run_in(variables, &[&["config", "show", "--json"], more].concat());
        assert_eq!(ran.code, Some(0), "{more:?}: {}", ran.stderr);
        let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((shown["schema"].as_str(), shown["path"].as_str()), (Some("tierflow.config/1"), self.path.to_str()));
        assert_eq!(shown["exists"], self.path.exists());
        shown["settings"].clone()
    }

    fn written(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let key = |name: &str| name.to_uppercase().replace('-', "_");
    for (name, default, in_file, in_environment, typed) in [
        ("device", "\"auto\"", "\"gpu:1\"", "gpu:2", "cpu"),
        ("max-memory", "null", "{ cpu = \"1GiB\" }", "cpu=2GiB", "cpu=3GiB"),
        ("objective", "\"latency\"", "\"throughput\"", "latency", "throughput"),
        ("ctx-size", "0", "64", "128", "256"),
        ("device-map", "\"auto\"", "\"balanced\"", "sequential", "balanced_low_0"),
        ("n-gpu-layers", "\"auto\"", "3", "4", "all"),
        ("mix", "\"256:256\"", "\"1:2\"", "3:4", "5:6"),
        ("strict", "false", "true", "no", "yes"),
        ("no-measure", "false", "true", "1", "false"),
        ("slots", "null", "2", "3", "4"),
        ("io", "null", "\"mmap\"", "pread", "mmap"),
    ] {
        let with = Configured::new(Some(&format!("{name} = {in_file}\n")));
        let without = Configured::new(None);
        let (variable, flag) = (format!("TIERFLOW_{}", key(name)), format!("--{name}={typed}"));
        let variables = [(variable.as_str(), in_environment)];
        let file = format!("config file {}", text(&with.path));
        let environment = format!("environment {variable}");
        let value = |text: &str| match (name, text) {
            ("max-memory", _) if text.starts_with('{') => Value::from("cpu=1GiB"),
            ("strict" | "no-measure", _) => Value::from(!["no", "false"].contains(&text)),
            _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        for (home, variables, flags, expected, source) in [
            (&without, &[][..], &[][..], default, "default"),
            (&with, &[], &[], in_file, &*file),
            (&with, &variables, &[], in_environment, &*environment),
            (&with, &variables, &[&*flag], typed, "flag"),
            (&with, &[], &[&*flag], typed, "flag"),
            (&without, &variables, &[&*flag], typed, "flag"),
            (&without, &variables, &[], in_environment, &*environment),
        ] {
            let shown = &home.shown(variables, flags)[name];
            assert_eq!((&shown["value"], &shown["source"]), (&value(expected), &source.into()), "{name} {variables:?} {flags:?}");
        }
    }
}

#[test]
fn every_command_with_a_model_reads_the_file() {
    let with = Configured::new(Some("device = \"cpu\"\nctx-size = 64\nkv-dtype = \"f16\"\n[max-memory]\ncpu = \"1KiB\"\n"));
    let model = with.home.folder_model();
    for command in [
        &["plan", &model][..],
        &["run", &model, "-p", "x"],
        &["bench", &model, "-p", "2", "-n", "2", "-r", "1"],
        &["logits", &model, "--tokens", "1"],
    ] {
        let ran = with.run_in(&[], command);
        assert_eq!(ran.code, Some(3), "{command:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("does not fit cpu"), "{}", ran.stderr);
        let roomy = [command, &["--max-memory", "cpu=1GiB"]].concat();
        with.stdout(&roomy);
        assert_eq!(with.run_in(&[("TIERFLOW_MAX_MEMORY", "cpu=1GiB")], command).code, Some(0), "{command:?}");
    }
    let plan: Value = serde_json::from_str(&with.stdout(&["plan", &model, "--max-memory", "cpu=1GiB", "--json"])).unwrap();
    let plan = plan["plan"].to_string();
    assert!(plan.contains("\"ctx_size\":64"), "{plan}");
    // llama.cpp's options for keys and for values win over the file's of both, each for itself.
    let stored = |more: &[&str]| {
        let plan = with.stdout(&[&["plan", &model, "--max-memory", "cpu=1GiB", "--json"], more].concat());
        serde_json::from_str::<Value>(&plan).unwrap()["plan"]["kv_dtype"].take()
    };
    assert_eq!(stored(&["-ctk", "f32", "-ctv", "f32"]), "f32");
}

#[test]
fn the_cache_folder_is_a_setting() {
    let with = Configured::new(Some("cache-dir = \"rates\"\n"));
    let from_file = with.path.parent().unwrap().join("rates");
    let cache = |variables: &[(&str, &str)], more: &[&str]| {
        let ran = with.run_in(variables, &[&["doctor", "--json"], more].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        PathBuf::from(serde_json::from_str::<Value>(&ran.stdout).unwrap()["cache"].as_str().unwrap())
    };
    assert_eq!(cache(&[], &[]), from_file);
    assert!(from_file.join("rates.json").exists());
    let (other, typed) = (text(&with.home.path("other")), text(&with.home.path("typed")));
    assert_eq!(cache(&[("TIERFLOW_CACHE", &other)], &[]), PathBuf::from(&other));
    assert_eq!(cache(&[("TIERFLOW_CACHE", &other)], &["--cache-dir", &typed]), PathBuf::from(&typed));
    assert_eq!(with.shown(&[("TIERFLOW_CACHE", &other)], &[])["cache-dir"]["source"], "environment TIERFLOW_CACHE");
}

#[test]
fn flags_are_written_and_the_rest_of_the_file_stays() {
    let with = Configured::new(None);
    let arguments = "config --device gpu:0 --max-memory gpu:0=6GiB,cpu=12GiB --objective latency -c 4096 --strict";
    let said = with.stdout(&arguments.split(' ').collect::<Vec<_>>());
    assert_eq!(said, format!("wrote {}\n", text(&with.path)));
    let written = with.written();
    for line in [
        "device = \"gpu:0\"",
        "max-memory = { \"gpu:0\" = \"6GiB\", cpu = \"12GiB\" }",
        "objective = \"latency\"",
        "ctx-size = 4096",
        "strict = true",
    ] {
        let (before, _) = written.split_once(&format!("\n{line}\n")).unwrap_or_else(|| panic!("no {line} in {written}"));
        assert!(before.lines().last().unwrap().starts_with("# "), "{line} is not explained: {written}");
    }
    fs::write(&with.path, written.replace("ctx-size = 4096", "ctx-size = 4096 # mine")).unwrap();
    with.stdout(&["config", "-c", "64", "--cache-dir", &text(&with.home.path("c"))]);
    let again = with.written();
    assert!(again.contains("\nctx-size = 64 # mine\n") && again.contains("device = \"gpu:0\""), "{again}");
    let shown = with.shown(&[], &[]);
    let file = Value::from(format!("config file {}", text(&with.path)));
    assert_eq!((&shown["max-memory"]["value"], &shown["max-memory"]["source"]), (&"gpu:0=6GiB,cpu=12GiB".into(), &file));
    assert_eq!((&shown["cache-dir"]["value"], &shown["strict"]["value"]), (&text(&with.home.path("c")).into(), &true.into()));
    assert_eq!(fs::read_dir(with.path.parent().unwrap()).unwrap().count(), 1, "a temporary file is left");
}

#[test]
fn the_environment_is_not_written() {
    let with = Configured::new(None);
    let ran = with.run_in(&[("TIERFLOW_DEVICE", "cpu"), ("TIERFLOW_STRICT", "1")], &["config", "-c", "64"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!with.written().contains("device =") && !with.written().contains("strict ="), "{}", with.written());
}

#[test]
fn defaults_take_the_place_of_a_file_only_where_that_is_wished() {
    // A file that is broken is replaced too.
    let broken = "device = \n";
    let with = Configured::new(Some(broken));
    let refusal = with.refusal(&["config", "--default", "--device", "cpu"]);
    assert!(refusal.contains(&text(&with.path)) && refusal.contains("--yes"), "{refusal}");
    assert_eq!(with.written(), broken);
    with.refusal(&["config", "--yes"]);
    Configured::new(None).stdout(&["config", "--default"]);
    Configured::new(Some("")).stdout(&["config", "--default"]);
    with.stdout(&["config", "--default", "--yes", "--device", "cpu"]);
    let shown = with.shown(&[], &[]);
    let plain = Configured::new(None).shown(&[], &[]);
    let file = format!("config file {}", text(&with.path));
    for (name, setting) in plain.as_object().unwrap() {
        assert_eq!(setting["source"], "default", "{name}");
        if name != "device" && setting["value"] != Value::Null && name != "cache-dir" {
            assert_eq!((&shown[name]["value"], &shown[name]["source"]), (&setting["value"], &file.clone().into()), "{name}");
        }
    }
    assert_eq!(shown["device"]["value"], "cpu");
}

#[test]
fn without_a_terminal_nothing_is_asked() {
    let with = Configured::new(None);
    let mut command = with.home.command(&["config"]);
    let ran = wait(command.env("TIERFLOW_CONFIG", &with.path).stdin(Stdio::piped()).spawn().unwrap());
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("--default") && ran.stderr.contains("--device"), "{}", ran.stderr);
    assert!(!with.path.exists());
}

#[test]
fn bad_files_are_refused_with_file_line_and_key() {
    for (file, line, key, allowed) in [
        ("device = \"cpu\"\ndevise = \"cpu\"\n", 2, "`devise`", "max-memory"),
        ("ctx-size = \"many\"\n", 1, "`ctx-size`", "a whole number"),
        ("\nobjective = \"speed\"\n", 2, "`objective`", "latency or throughput"),
        ("[max-memory]\n\"gpu:x\" = \"1GiB\"\n", 2, "`max-memory.gpu:x`", "gpu:N or cpu"),
        ("device = \"cpu\n", 1, "is no TOML", ""),
        ("version = 99\n", 1, "`version`", "newer"),
    ] {
        let with = Configured::new(Some(file));
        let place = format!("{}, line {line}", text(&with.path));
        for arguments in [&["devices"][..], &["ls"], &["run", "m"], &["config", "show"], &["config", "--device", "cpu"]] {
            let refusal = with.refusal(arguments);
            assert!(refusal.contains(&place) && refusal.contains(key) && refusal.contains(allowed), "{file}: {refusal}");
        }
        assert_eq!(with.written(), file);
        assert_eq!(with.stdout(&["config", "path"]), format!("{}\n", text(&with.path)));
        assert!(with.stdout(&["run", "--help"]).contains("--objective"));
    }
    let named = Configured::new(None);
    assert!(named.refusal(&["ls"]).contains("TIERFLOW_CONFIG"));
    let folder = Configured::new(None);
    fs::create_dir_all(&folder.path).unwrap();
    let ran = folder.run_in(&[], &["ls"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("mine.toml"), "{ran:?}");
}

#[test]
fn the_file_lies_in_the_users_config_folder() {
    let home = Home::new();
    let path = home.stdout(&["config", "path"]);
    assert!(path.trim_end().ends_with("config.toml") && path.contains("tierflow"), "{path}");
    if cfg!(target_os = "linux") {
        assert_eq!(path.trim_end(), text(&home.path("config").join("tierflow").join("config.toml")));
        home.stdout(&["config", "-c", "32"]);
        let shown = home.json("tierflow.config/1", &["config", "show", "--json"]);
        assert_eq!((&shown["settings"]["ctx-size"]["value"], &shown["exists"]), (&32.into(), &true.into()));
        let table = home.stdout(&["config", "show"]);
        let line = table.lines().find(|line| line.starts_with("ctx-size")).unwrap();
        assert!(line.contains(" 32 ") && line.ends_with(&format!("config file {}", path.trim_end())), "{line}");
        let named = home.run(&["config", "--cache-type-k", "f16"]);
        assert!(named.code == Some(2) && named.stderr.contains("--cache-type-k"), "{named:?}");
    }
}
