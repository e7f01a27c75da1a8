//! Files that change while a model is open: an error that names the file, and no signal.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use tierflow::error::Error;
use tierflow::model::Checkpoint;
use tierflow::platform::{ByteSource, IoMode, open_source};
use tierflow::weights::TensorId;
use xtask::models::{GgufType, LlamaShape, Stored, write_gguf, write_hf};

fn opened(io: IoMode) -> (tempfile::TempDir, PathBuf, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_gguf(&path, &LlamaShape::tiny(), 1, GgufType::BF16).unwrap();
    let checkpoint = Checkpoint::open(&path, io).unwrap();
    (folder, path, checkpoint)
}

fn read_all(checkpoint: &Checkpoint) -> Result<(), Error> {
    for (id, tensor) in (0..).map(TensorId).zip(&checkpoint.catalog.tensors) {
        checkpoint.read(id, 0, &mut vec![0; tensor.size_bytes.0 as usize])?;
    }
    Ok(())
}

fn must_be_changed(result: Result<(), Error>, file: &str) {
    match result {
        Err(Error::FileChanged { path, .. }) => assert!(path.contains(file), "{path}"),
        other => panic!("{other:?} is not FileChanged"),
    }
}

#[test]
fn truncation_under_use_is_an_error() {
    for io in [IoMode::Pread, IoMode::Mmap] {
        let (_folder, path, checkpoint) = opened(io);
        read_all(&checkpoint).unwrap();
        let len = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
        must_be_changed(read_all(&checkpoint), "tiny.gguf");
        assert!(checkpoint.view(TensorId(0), 0, 16).is_none(), "a changed file is not shown");
    }
}

#[test]
fn what_is_deleted_replaced_or_touched_under_use_is_read_on() {
    for io in [IoMode::Pread, IoMode::Mmap] {
        let (folder, path, checkpoint) = opened(io);
        let mut before = vec![0; 64];
        checkpoint.read(TensorId(0), 0, &mut before).unwrap();
        let check = || {
            read_all(&checkpoint).unwrap();
            let mut now = vec![0; 64];
            checkpoint.read(TensorId(0), 0, &mut now).unwrap();
            assert_eq!(now, before);
            assert_eq!(checkpoint.view(TensorId(0), 0, 64).is_some(), io == IoMode::Mmap);
        };
        OpenOptions::new().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        check();
        let other = folder.path().join("other.gguf");
        write_gguf(&other, &LlamaShape::tiny(), 2, GgufType::BF16).unwrap();
        fs::rename(other, &path).unwrap();
        check();
        fs::remove_file(path).unwrap();
        check();
    }
}

#[test]
fn other_bytes_under_use_are_an_error() {
    for io in [IoMode::Pread, IoMode::Mmap] {
        let (folder, path, checkpoint) = opened(io);
        let other = folder.path().join("other.gguf");
        write_gguf(&other, &LlamaShape::tiny(), 2, GgufType::BF16).unwrap();
        assert_eq!(fs::metadata(&other).unwrap().len(), fs::metadata(&path).unwrap().len());
        fs::write(&path, fs::read(other).unwrap()).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        must_be_changed(read_all(&checkpoint), "tiny.gguf");
        assert!(checkpoint.view(TensorId(0), 0, 16).is_none(), "a changed file is not shown");
    }
}

#[test]
fn the_shard_that_changed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_hf(folder.path(), &LlamaShape::tiny(), 1, Stored::F16, 3).unwrap();
    let checkpoint = Checkpoint::open(folder.path(), IoMode::Pread).unwrap();
    let shard = folder.path().join("model-00002-of-00003.safetensors");
    OpenOptions::new().write(true).open(&shard).unwrap().set_len(1000).unwrap();
    must_be_changed(read_all(&checkpoint), "model-00002-of-00003.safetensors");
}

/// A view outlives its check: here the file is cut between the two. The child must end with a message and code 1, not by a signal.
#[cfg(unix)]
#[test]
fn truncation_under_a_view_ends_in_a_message() {
    const CHILD: &str = "TIERFLOW_TEST_TRUNCATED_VIEW";
    if let Some(path) = std::env::var_os(CHILD) {
        touch_truncated_view(Path::new(&path));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let this = std::env::current_exe().unwrap();
    let name = "bad_models::changed::truncation_under_a_view_ends_in_a_message";
    let output = std::process::Command::new(this).args(["--exact", name, "--nocapture"]).env(CHILD, &path).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{:?} {stderr}", output.status);
    assert!(stderr.contains("weights.bin changed while it was in use"), "{stderr}");
}

#[cfg(unix)]
fn touch_truncated_view(path: &Path) {
    tierflow::platform::guard_maps("");
    let source: std::sync::Arc<dyn ByteSource> = open_source(path, IoMode::Mmap).unwrap();
    let view = source.view(0, 1 << 20).unwrap();
    OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
    let sum: u64 = view.iter().map(|byte| u64::from(*byte)).sum();
    panic!("the cut part could be read: {sum}");
}
