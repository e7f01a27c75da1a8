//! Files that the user names: what stands at the path is written, as the shell's `>` would, and never replaced by something else.
#![cfg(unix)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use xtask::models::GgufType;

use crate::common::program::{Home, Ran, text, wait};

/// The commands that write a file, each before the file's name.
fn writers(model: &str) -> [Vec<&str>; 4] {
    [
        vec!["run", model, "-p", "x", "-n", "1", "--device", "cpu", "--trace"],
        vec!["bench", model, "-p", "2", "-n", "1", "-r", "1", "--device", "cpu", "--trace"],
        vec!["plan", model, "--device", "cpu", "--export-device-map"],
        vec!["logits", model, "--tokens", "1,2", "--device", "cpu", "--out"],
    ]
}

/// Runs the program in a shell that does `before` first; `"$@"` are program and arguments.
fn run_in_shell(home: &Home, script: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new("sh");
    home.clean(&mut command);
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_tierflow")]).args(arguments);
    wait(command.spawn().unwrap())
}

#[test]
fn new_files_have_the_mode_that_the_umask_leaves_and_old_ones_keep_theirs() {
    let home = Home::new();
    let model = home.folder_model();
    for (index, arguments) in writers(&model).into_iter().enumerate() {
        let file = text(&home.path(&format!("out-{index}")));
        let mode = || fs::metadata(&file).unwrap().mode() & 0o7777;
        let named = [&arguments[..], &[&file]].concat();
        for (umask, expected) in [("027", 0o640), ("077", 0o640)] {
            let ran = run_in_shell(&home, &format!("umask {umask}; exec \"$@\""), &named);
            assert_eq!((ran.code, mode()), (Some(0), expected), "{named:?} {}", ran.stderr);
        }
    }
}

#[test]
fn a_fifo_and_a_link_stay_what_they_are() {
    let home = Home::new();
    let model = home.folder_model();
    for (index, arguments) in writers(&model).into_iter().enumerate() {
        let (fifo, link, target) = (home.path("fifo"), home.path("link"), home.path(&format!("target-{index}")));
        for old in [&fifo, &link] {
            let _ = fs::remove_file(old);
        }
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        symlink(&target, &link).unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap().len()
        });
        for path in [&fifo, &link] {
            home.stdout(&[&arguments[..], &[&text(path)]].concat());
        }
        assert!(reader.join().unwrap() > 10, "{arguments:?}: the FIFO got the text");
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo(), "{arguments:?}");
        assert!(link.is_symlink() && target.metadata().unwrap().len() > 10, "{arguments:?}");
    }
}

#[test]
fn standard_streams_and_descriptors_are_written_to() {
    let home = Home::new();
    let model = home.folder_model();
    let arguments = ["plan", &model, "--device", "cpu", "--export-device-map"];
    let is_map = |text: &str| {
        let map = serde_json::Deserializer::from_str(text).into_iter::<Value>().next();
        matches!(map, Some(Ok(Value::Object(map))) if map.values().all(|home| home == "cpu"))
    };
    let piped = home.stdout(&[&arguments[..], &["/dev/stdout"]].concat());
    assert!(is_map(&piped) && piped.contains("cpu computes"), "{piped}");
    let ran = home.run(&[&arguments[..], &["/dev/stderr"]].concat());
    assert!(is_map(&ran.stderr) && ran.code == Some(0), "{}", ran.stderr);

    // The map first, the plan behind it, and what the file held before them.
    let file = home.path("both");
    fs::write(&file, "{}\n").unwrap();
    let mut command = home.command(&[&arguments[..], &["/dev/stdout"]].concat());
    let stdout: Stdio = File::options().append(true).open(&file).unwrap().into();
    assert_eq!(wait(command.stdout(stdout).spawn().unwrap()).code, Some(0));
    let both = fs::read_to_string(&file).unwrap();
    assert!(both.starts_with("{}\n") && is_map(&both[3..]) && both.contains("cpu computes"), "{both}");

    let ran = run_in_shell(&home, "\"$@\" 3>&1 >/dev/null", &[&arguments[..], &["/dev/fd/3"]].concat());
    assert!(ran.code == Some(0) && is_map(&ran.stdout), "{ran:?}");
    assert!(Path::new("/dev/stdout").is_symlink(), "it still is what it was");
}

#[test]
fn the_config_file_may_be_a_link() {
    let home = Home::new();
    let (target, link) = (home.path("target.toml"), home.path("link.toml"));
    symlink(&target, &link).unwrap();
    for device in ["cpu", "gpu:1"] {
        let mut command = home.command(&["config", "--device", device]);
        let ran = wait(command.env("TIERFLOW_CONFIG", &link).spawn().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(link.is_symlink() && fs::read_to_string(&target).unwrap().contains(&format!("device = \"{device}\"")));
    }
}

/// A name with a letter in Latin-1, which is no UTF-8.
fn latin_1(prefix: &str, suffix: &str) -> OsString {
    OsString::from_vec([prefix.as_bytes(), b"caf\xe9", suffix.as_bytes()].concat())
}

#[test]
fn a_models_name_need_not_be_utf_8() {
    let home = Home::new();
    let model = home.path("").join(latin_1("", ".gguf"));
    fs::rename(home.gguf_model(GgufType::F32), &model).unwrap();
    let ran_with = |before: &[&str], after: &[&str], variable: &str| {
        let mut command = home.command(before);
        if variable.is_empty() {
            command.arg(&model)
        } else {
            command.env(variable, &model)
        };
        wait(command.args(after).spawn().unwrap())
    };
    for (before, after, variable) in [
        (&["plan"][..], &["--device", "cpu"][..], ""),
        (&["run", "-m"], &["--device", "cpu", "-n", "1", "-p", "x"], ""),
        (&["run", "hello"], &["--device", "cpu", "-n", "1"], "TIERFLOW_MODEL"),
        (&["inspect"], &["--json"], ""),
        (&["logits"], &["--tokens", "1", "--device", "cpu"], ""),
        (&["bench"], &["-p", "2", "-n", "1", "-r", "1", "--device", "cpu"], ""),
    ] {
        let ran = ran_with(before, after, variable);
        assert!(ran.code == Some(0) && !ran.stdout.is_empty(), "{before:?}: {}", ran.stderr);
    }
    fs::remove_file(&model).unwrap();
    let ran = ran_with(&["plan"], &[], "");
    assert!(ran.code == Some(2) && ran.stderr.contains("caf\u{fffd}.gguf"), "{}", ran.stderr);
    let mut command = home.command(&["run", "-m", "m"]);
    let ran = wait(command.arg(latin_1("a ", "")).spawn().unwrap());
    assert!(ran.code == Some(2) && ran.stderr.contains("no UTF-8"), "{}", ran.stderr);
}

#[test]
fn folders_of_caches_need_not_be_utf_8() {
    let home = Home::new();
    let folder = home.path("").join(latin_1("cache-", ""));
    // A relative folder in the config file goes from the file's own.
    fs::create_dir_all(folder.join("tierflow")).unwrap();
    fs::write(folder.join("tierflow").join("config.toml"), "cache-dir = \"rates\"\n").unwrap();
    let ran_with = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env("XDG_CONFIG_HOME", &folder).env("HF_HOME", &folder).env_remove("TIERFLOW_CACHE").output().unwrap()
    };
    for arguments in [&["doctor", "--json"][..], &["config", "show", "--json"], &["ls", "--json"]] {
        let ran = ran_with(arguments);
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice::<Value>(&ran.stdout).unwrap();
    }
    if cfg!(target_os = "linux") {
        assert!(folder.join("tierflow").join("rates").join("rates.json").exists());
        let shown = ran_with(&["config", "path"]).stdout;
        assert_eq!(Path::new(OsStr::from_bytes(shown.trim_ascii_end())), folder.join("tierflow").join("config.toml"));
    }
}

#[test]
fn a_config_file_that_nobody_named_and_that_cannot_be_read_stops_nothing() {
    let home = Home::new();
    let model = home.folder_model();
    let commands = [
        &["run", &model, "-p", "x", "-n", "1", "--device", "cpu"][..],
        &["plan", &model, "--device", "cpu"],
        &["devices"],
        &["ls"],
        &["completions", "bash"],
        &["config", "show"],
    ];
    // A folder in the file's place cannot be read even by root.
    let in_place = home.path("config").join("tierflow").join("config.toml");
    fs::create_dir_all(&in_place).unwrap();
    for arguments in commands {
        let ran = home.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches(&text(&in_place)).count(), 1, "{arguments:?}: {}", ran.stderr);
        let quiet = |variables: &[(&str, &OsStr)]| {
            let mut command = home.command(arguments);
            for name in ["XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TIERFLOW_CACHE", "HF_HOME"] {
                command.env_remove(name);
            }
            wait(command.envs(variables.iter().copied()).spawn().unwrap())
        };
        let ran = quiet(&[("HOME", OsStr::new("/dev/null"))]);
        assert!(ran.code == Some(0) && !ran.stderr.contains("config.toml"), "{arguments:?}: {}", ran.stderr);
    }
    let refused = home.refusal(1, &["config", "--device", "cpu"]);
    assert!(refused.contains(&text(&in_place)), "{refused}");
}
