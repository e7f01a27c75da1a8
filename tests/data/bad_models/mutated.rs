//! Random damage: whatever the bytes are, opening returns. An error or a model, but no panic and no abort.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;
use tierflow::weights::TensorId;

use super::gguf::Gguf;
use super::hugging_face::safetensors;

const CONFIG: &str = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":160,"num_hidden_layers":1,"num_attention_heads":4,
    "vocab_size":320,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0}}"#;
const HEADER: &str = r#"{"__metadata__":{"format":"pt"},"model.norm.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
    "b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]},"ids":{"dtype":"I64","shape":[0],"data_offsets":[24,24]}}"#;
const INDEX: &str = r#"{"metadata":{},"weight_map":{"model.norm.weight":"a.safetensors","b":"a.safetensors"}}"#;

/// One change of a file's bytes.
#[derive(Debug, Clone)]
enum Damage {
    Byte(usize, u8),
    Word(usize, u64),
    Cut(usize),
    Remove(usize, usize),
    Repeat(usize, usize),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len().max(1);
        match *self {
            Damage::Byte(at, value) => bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte = value),
            Damage::Word(at, value) => bytes.iter_mut().skip(at % len).zip(value.to_le_bytes()).for_each(|(byte, new)| *byte = new),
            Damage::Cut(at) => bytes.truncate(at % len + 1),
            Damage::Remove(at, n) => drop(bytes.drain(at % len..(at % len + n % 64).min(bytes.len()))),
            Damage::Repeat(at, n) => {
                let chunk = bytes[at % len..(at % len + n % 64).min(bytes.len())].to_vec();
                bytes.splice(at % len..at % len, chunk);
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let interesting = prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|shift| 1 << shift),
        (0u32..64).prop_map(|shift| (1 << shift) - 1),
        (0u64..64).prop_map(|below| u64::MAX - below),
        0u64..100,
    ];
    let one = prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, value)| Damage::Byte(at, value)),
        (any::<usize>(), interesting).prop_map(|(at, value)| Damage::Word(at, value)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), any::<usize>()).prop_map(|(at, n)| Damage::Remove(at, n)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, n)| Damage::Repeat(at, n)),
    ];
    proptest::collection::vec(one, 1..5)
}

thread_local! {
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

/// A path in a folder that lives as long as the thread of the test.
fn scratch(file: &str) -> PathBuf {
    FOLDER.with_borrow_mut(|folder| folder.get_or_insert_with(|| tempfile::tempdir().unwrap()).path().join(file))
}

/// Opens the folder or file; where that succeeds, every tensor must be readable to its last byte.
fn open_and_read(path: &std::path::Path, io: IoMode) {
    let Ok(checkpoint) = Checkpoint::open(path, io) else {
        return;
    };
    for (id, tensor) in (0..).map(TensorId).zip(&checkpoint.catalog.tensors) {
        let mut bytes = vec![0; usize::try_from(tensor.size_bytes.0).unwrap()];
        checkpoint.read(id, 0, &mut bytes).unwrap();
        assert_eq!(tensor.dtype.size_bytes(tensor.n_values()), Some(tensor.size_bytes.0));
        assert_eq!(tensor.row_bytes() * tensor.n_rows(), tensor.size_bytes.0);
    }
}

fn write_folder(config: &[u8], weights: &[u8], index: &[u8]) -> PathBuf {
    let folder = scratch("folder");
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in [("config.json", config), ("a.safetensors", weights), ("model.safetensors.index.json", index)] {
        fs::write(folder.join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn the_undamaged_folder_opens() {
    let folder = write_folder(CONFIG.as_bytes(), &safetensors(HEADER, 24), INDEX.as_bytes());
    assert_eq!(Checkpoint::open(&folder, IoMode::Pread).unwrap().catalog.tensors.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_gguf_files_never_panic(damage in damage()) {
        let mut bytes = Gguf::valid().bytes();
        damage.iter().for_each(|one| one.apply(&mut bytes));
        let path = scratch("damaged.gguf");
        fs::write(&path, bytes).unwrap();
        open_and_read(&path, IoMode::Pread);
    }

    #[test]
    fn damaged_folders_never_panic(which in 0..3, damage in damage()) {
        let mut files = [CONFIG.as_bytes().to_vec(), safetensors(HEADER, 24), INDEX.as_bytes().to_vec()];
        let damaged = &mut files[which as usize];
        damage.iter().for_each(|one| one.apply(damaged));
        open_and_read(&write_folder(&files[0], &files[1], &files[2]), IoMode::Mmap);
    }

    #[test]
    fn random_bytes_never_panic(head in any::<[u8; 16]>(), rest in proptest::collection::vec(any::<u8>(), 0..400)) {
        let path = scratch("random.gguf");
        fs::write(&path, [b"GGUF\x03\0\0\0", &head[..], &rest].concat()).unwrap();
        open_and_read(&path, IoMode::Pread);
        open_and_read(&write_folder(CONFIG.as_bytes(), &rest, INDEX.as_bytes()), IoMode::Pread);
    }
}
