//! Models whose files are handed in one by one, as a browser has them: the same as from a path.

use std::path::Path;
use std::sync::Arc;

use tierflow::error::{Error, Result};
use tierflow::model::Checkpoint;
use tierflow::platform::{ByteSource, DirectBuffer, IoMode};
use tierflow::stream::{Logits, LogitsRequest};
use tierflow::text::{Special, Tokenizer};
use tierflow::{DeviceChoice, Engine};
use xtask::models::{GgufType, LlamaShape, Stored, write_gguf, write_hf, write_split_gguf};

const SEED: u64 = 23;

/// A file in memory.
#[derive(Debug)]
struct InMemory {
    name: String,
    bytes: Vec<u8>,
}

impl ByteSource for InMemory {
    fn path(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = offset as usize..offset as usize + buffer.len();
        let bytes = self.bytes.get(range).ok_or_else(|| Error::invalid_file(&self.name, "is read past its end"))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// All files of `folder` but those called `without`, in reverse order: none is asked for.
fn sources_of(folder: &Path, without: &str) -> Vec<Arc<dyn ByteSource>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_by(|a, b| b.cmp(a));
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let given = paths.iter().filter(|path| name(path) != without);
    given.map(|path| Arc::new(InMemory { name: name(path), bytes: std::fs::read(path).unwrap() }) as Arc<dyn ByteSource>).collect()
}

fn logits(builder: tierflow::EngineBuilder) -> Vec<f32> {
    let mut engine = pollster::block_on(builder.device(DeviceChoice::Cpu).open()).unwrap();
    let tokens = engine.encode("abc").unwrap();
    let mut session = engine.session();
    let Logits::All(logits) = pollster::block_on(session.append(&tokens, LogitsRequest::All)).unwrap() else { panic!("all logits") };
    logits
}

#[test]
fn a_model_from_sources_is_the_model_from_its_path() {
    let root = tempfile::tempdir().unwrap();
    let (shards, gguf, split) = (root.path().join("shards"), root.path().join("gguf"), root.path().join("split"));
    write_hf(&shards, &LlamaShape::tiny(), SEED, Stored::BF16, 2).unwrap();
    std::fs::create_dir(&gguf).unwrap();
    write_gguf(&gguf.join("tiny.gguf"), &LlamaShape::tiny(), SEED, GgufType::Q8_0).unwrap();
    write_split_gguf(&split, "tiny", &LlamaShape::tiny(), SEED, GgufType::Q8_0, 3).unwrap();
    for folder in [&shards, &gguf, &split] {
        let by_path = Checkpoint::open(folder, IoMode::Pread).unwrap();
        let checkpoint = Arc::new(Checkpoint::from_sources(sources_of(folder, "")).unwrap());
        assert_eq!(checkpoint.catalog.tensors, by_path.catalog.tensors);
        assert!(checkpoint.catalog.shards.iter().all(|shard| !shard.path.contains('/')), "files are called as they were given");
        let encode = |checkpoint: &Checkpoint| Tokenizer::open(checkpoint).unwrap().encode("what?", Special::Add).unwrap();
        assert_eq!(encode(&checkpoint), encode(&by_path));
        assert_eq!(logits(Engine::builder_of(checkpoint)), logits(Engine::builder(folder)), "{}", folder.display());
    }
}

#[test]
fn what_is_missing_among_sources_is_named() {
    let root = tempfile::tempdir().unwrap();
    write_hf(root.path(), &LlamaShape::tiny(), SEED, Stored::BF16, 2).unwrap();
    for (without, expected) in [
        ("model-00002-of-00002.safetensors", "names the shard `model-00002-of-00002.safetensors`, which was not given with it"),
        ("config.json", "there is no config.json"),
        ("model.safetensors.index.json", "holds 2 safetensors files but no model.safetensors.index.json"),
    ] {
        let error = Checkpoint::from_sources(sources_of(root.path(), without)).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. }) && error.to_string().contains(expected), "{error}");
    }
    let without_tokenizer = Checkpoint::from_sources(sources_of(root.path(), "tokenizer.json")).unwrap();
    assert!(Tokenizer::open(&without_tokenizer).unwrap_err().to_string().contains("no tokenizer.json"));
    assert!(Checkpoint::from_sources(Vec::new()).is_err());
}

#[test]
fn a_source_without_a_way_past_the_cache_is_read_plainly() {
    let source = InMemory { name: "bytes".into(), bytes: (0..=255).collect() };
    let mut buffer = DirectBuffer::default();
    assert_eq!(source.read_direct(250, 5, &mut buffer).unwrap(), [250, 251, 252, 253, 254]);
    assert!(source.read_direct(250, 7, &mut buffer).is_err());
    assert!(source.view(0, 1).is_none());
}
