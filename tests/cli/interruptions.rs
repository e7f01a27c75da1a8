//! Runs that end early: a reader that goes away, Ctrl-C, a file that changes under the run.

use std::fs::OpenOptions;
use std::io::Read;
use std::process::{Child, Command};

use crate::common::program::{Home, Ran, devices, has_gpu, least, text, wait, wait_after};

/// Starts `arguments` and waits for the first bytes of the answer.
fn started(home: &Home, arguments: &[&str]) -> (Child, Vec<u8>) {
    let mut child = home.command(arguments).spawn().unwrap();
    let mut first = [0; 1];
    let n_read = child.stdout.as_mut().unwrap().read(&mut first).unwrap();
    if n_read == 0 {
        panic!("no answer: {:?}", wait(child));
    }
    (child, first.to_vec())
}

/// An answer that takes seconds.
fn long<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", model, "-p", "hello", "--ignore-eos", "--temp", "1"], more].concat()
}

#[test]
fn a_reader_of_stdout_that_goes_away_ends_the_run() {
    let home = Home::new();
    let model = home.larger_model();
    for device in devices() {
        let (mut child, _) = started(&home, &long(&model, &["--device", device]));
        drop(child.stdout.take());
        let ran = wait(child);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(!ran.stderr.contains("error") && !ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
}

#[test]
fn a_reader_of_stderr_that_goes_away_is_no_loss() {
    let home = Home::new();
    let model = home.folder_model();
    for arguments in
        [&["run", &model, "-p", "hello", "-n", "4", "--device", "cpu"][..], &["bench", &model, "-p", "4", "-n", "2", "-r", "1"]]
    {
        let mut child = home.command(arguments).spawn().unwrap();
        drop(child.stderr.take());
        let ran = wait(child);
        assert_eq!(ran.code, Some(0));
        assert!(!ran.stdout.is_empty());
    }
    let mut child = home.command(&["run", "no-such-model", "-p", "x"]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(wait(child).code, Some(2));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_said() {
    let home = Home::new();
    let model = home.larger_model();
    for device in devices() {
        let (child, first) = started(&home, &long(&model, &["--device", device]));
        interrupt(&child);
        let ran = wait_after(first, child);
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        assert!(ran.stdout.ends_with('\n') && ran.stderr.contains("[ Prompt: "), "{ran:?}");
        assert!(!ran.stderr.contains("error"), "{}", ran.stderr);
    }
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_of_a_conversion() {
    let home = Home::new();
    let (model, folder) = (home.larger_model(), home.path("out"));
    std::fs::create_dir(&folder).unwrap();
    let out = text(&folder.join("out.gguf"));
    let n_files = || std::fs::read_dir(&folder).unwrap().count();
    let mut child = home.command(&["convert", &model, &out, "--type", "q4_k_m"]).spawn().unwrap();
    while n_files() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(n_files(), 1, "what is written has a temporary name");
    interrupt(&child);
    let ran = wait(child);
    assert_eq!((ran.code, n_files()), (Some(130), 0), "{ran:?}");
    assert!(!ran.stderr.contains("error"), "{}", ran.stderr);
}

/// Cuts the model in half while it is read at every token.
fn truncated(home: &Home, model: &str, more: &[&str]) -> Ran {
    let (child, first) = started(home, &long(model, more));
    let file = OpenOptions::new().write(true).open(model).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    wait_after(first, child)
}

#[test]
fn a_file_that_is_truncated_under_a_run_is_named() {
    for io in ["pread", "mmap"] {
        let home = Home::new();
        let model = home.larger_model();
        let refusal = home.refusal(3, &["plan", &model, "--device", "cpu", "--max-memory", "cpu=1KiB", "-c", "2048"]);
        let budget = format!("cpu={}", least(&refusal));
        let ran = truncated(&home, &model, &["--device", "cpu", "--max-memory", &budget, "-c", "2048", "--io", io]);
        assert_truncation_is_reported(&ran, &model, io);
    }
}

#[test]
fn a_file_that_is_truncated_under_a_run_on_a_gpu_is_named() {
    if !has_gpu() {
        return;
    }
    for io in ["pread", "mmap"] {
        let home = Home::new();
        let model = home.larger_model();
        let ran = truncated(&home, &model, &["--device", "gpu", "--max-memory", "gpu:0=28MiB,cpu=0", "-c", "2048", "--io", io]);
        assert_truncation_is_reported(&ran, &model, io);
    }
}

#[track_caller]
fn assert_truncation_is_reported(ran: &Ran, model: &str, io: &str) {
    assert_eq!(ran.code, Some(1), "--io {io}: {}", ran.stderr);
    assert!(ran.stderr.contains(model) && ran.stderr.contains("error: "), "--io {io}: {}", ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "--io {io}: {}", ran.stderr);
}

/// What happens to a model while it answers: to its path, then to the folder that `Home` gives.
#[cfg(unix)]
type Fate = fn(&std::path::Path, &std::path::Path);

/// Neither a deleted nor a touched model ends an answer, whether its weights are resident or read at every token.
#[cfg(unix)]
#[test]
fn a_model_that_is_deleted_replaced_or_touched_answers_to_the_end() {
    let delete: Fate = |model, _| std::fs::remove_file(model).unwrap();
    let rename: Fate = |model, folder| std::fs::rename(model, folder.join("elsewhere.gguf")).unwrap();
    let replace: Fate = |model, folder| {
        let other = folder.join("other");
        std::fs::write(&other, "other").unwrap();
        std::fs::rename(other, model).unwrap();
    };
    let touch: Fate = |model, _| {
        OpenOptions::new().write(true).open(model).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    for (fate, io, streams, is_logged) in [
        (delete, "pread", true, false),
        (delete, "mmap", true, false),
        (delete, "pread", false, false),
        (rename, "pread", true, false),
        (replace, "pread", true, false),
        (touch, "pread", true, true),
        (touch, "mmap", true, true),
    ] {
        let home = Home::new();
        let model = home.larger_model();
        let budget = if streams {
            let refusal = home.refusal(3, &["plan", &model, "--device", "cpu", "--max-memory", "cpu=1KiB", "-c", "2048"]);
            format!("cpu={}", least(&refusal))
        } else {
            "cpu=1GiB".to_owned()
        };
        let more = ["--device", "cpu", "-c", "2048", "--io", io, "-n", "24", "--max-memory", &budget];
        let (child, first) = started(&home, &long(&model, &more));
        fate(std::path::Path::new(&model), &home.path(""));
        let ran = wait_after(first, child);
        assert_eq!(ran.code, Some(0), "{io} {budget}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("touched").count(), usize::from(is_logged), "{io} {budget}: {}", ran.stderr);
    }
}
