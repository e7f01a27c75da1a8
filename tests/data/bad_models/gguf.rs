//! Attacks on GGUF files: each row breaks a valid small file in one place.

use std::fs::{self, OpenOptions};

use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;

use super::must_refuse;

const U32: u32 = 4;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

/// A GGUF file as its parts, each of which can be made to lie.
#[derive(Clone)]
pub struct Gguf {
    magic: [u8; 4],
    version: [u8; 4],
    n_tensors: Option<u64>,
    n_pairs: Option<u64>,
    pairs: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<(Vec<u8>, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn array(kind: u32, claimed: u64, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &claimed.to_le_bytes(), bytes].concat()
}

impl Gguf {
    /// Two tensors and every key that the Llama family needs.
    pub fn valid() -> Gguf {
        let mut file = Gguf {
            magic: *b"GGUF",
            version: 3u32.to_le_bytes(),
            n_tensors: None,
            n_pairs: None,
            pairs: vec![(text("general.architecture"), STRING, text("llama"))],
            tensors: vec![
                (text("token_embd.weight"), vec![32, 4], 0, 0),
                (text("blk.0.attn_q.weight"), vec![32, 32], 8, 512),
                (text("rope_freqs.weight"), vec![8], 0, 1600),
            ],
            data: [vec![0; 1600], 1f32.to_le_bytes().repeat(8)].concat(),
        };
        for (key, value) in [
            ("context_length", 128u32),
            ("embedding_length", 32),
            ("block_count", 1),
            ("feed_forward_length", 64),
            ("attention.head_count", 2),
            ("rope.dimension_count", 16),
        ] {
            file.set(&format!("llama.{key}"), U32, value.to_le_bytes());
        }
        file.set("llama.attention.layer_norm_rms_epsilon", F32, 1e-5f32.to_le_bytes());
        let tokens = array(STRING, 4, &["a", "b", "c", "d"].map(text).concat());
        file.set("tokenizer.ggml.tokens", ARRAY, tokens);
        file
    }

    fn set(&mut self, key: &str, kind: u32, value: impl AsRef<[u8]>) {
        self.pairs.retain(|(name, ..)| *name != text(key));
        self.pairs.push((text(key), kind, value.as_ref().to_vec()));
    }

    fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, U32, value.to_le_bytes());
    }

    /// Says that it has eight experts, so many for each token.
    fn be_mixture(&mut self, n_used: u32) {
        self.set_u32("llama.expert_count", 8);
        self.set_u32("llama.expert_used_count", n_used);
    }

    /// Makes it a file of this architecture with 2^62 layers.
    fn be_endless(&mut self, architecture: &str) {
        for (key, ..) in &mut self.pairs {
            let name = String::from_utf8(key[8..].to_vec()).expect("keys are UTF-8");
            *key = text(&name.replace("llama.", &format!("{architecture}.")));
        }
        self.set("general.architecture", STRING, text(architecture));
        self.set(&format!("{architecture}.block_count"), U64, (1u64 << 62).to_le_bytes());
    }

    fn remove(&mut self, key: &str) {
        self.pairs.retain(|(name, ..)| *name != text(key));
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.magic, self.version].concat();
        bytes.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.n_pairs.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.pairs {
            bytes.extend([&key[..], &kind.to_le_bytes(), value].concat());
        }
        for (name, dimensions, kind, offset) in &self.tensors {
            bytes.extend(name);
            bytes.extend((dimensions.len() as u32).to_le_bytes());
            bytes.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

type Attack = (&'static str, &'static str, fn(&mut Gguf));

/// Name, words of the error, and what is broken.
const ATTACKS: &[Attack] = &[
    ("magic", "first bytes are not `GGUF`", |f| f.magic = *b"GGML"),
    ("version 0", "version 0", |f| f.version = [0; 4]),
    ("version 1", "version 1", |f| f.version = [1, 0, 0, 0]),
    ("version 99", "version 99", |f| f.version = [99, 0, 0, 0]),
    ("big-endian", "big-endian", |f| f.version = [0, 0, 0, 3]),
    ("tensor count 2^63", "tensors", |f| f.n_tensors = Some(1 << 63)),
    ("tensor count 2^64-1", "tensors", |f| f.n_tensors = Some(u64::MAX)),
    ("one tensor too many", "tensor 3", |f| f.n_tensors = Some(4)),
    ("pair count 2^63", "metadata pairs", |f| f.n_pairs = Some(1 << 63)),
    ("pair count one less", "", |f| f.n_pairs = Some(f.pairs.len() as u64 - 1)),
    ("key length 2^64-1", "key of metadata pair 0", |f| f.pairs[0].0 = u64::MAX.to_le_bytes().to_vec()),
    ("key length beyond limit", "key of metadata pair 0", |f| f.pairs[0].0 = text(&"k".repeat(70_000))),
    ("key length lies by one", "", |f| f.pairs[0].0[0] += 1),
    ("key not UTF-8", "not UTF-8", |f| f.pairs[0].0[8] = 0xFF),
    ("duplicate key", "there twice", |f| f.pairs.push(f.pairs[1].clone())),
    ("value type unknown", "unknown type 77", |f| f.pairs[1].1 = 77),
    ("string length 2^63", "general.architecture", |f| f.pairs[0].2 = (1u64 << 63).to_le_bytes().to_vec()),
    ("string length 2^40", "general.architecture", |f| f.pairs[0].2 = (1u64 << 40).to_le_bytes().to_vec()),
    ("architecture not UTF-8", "architecture", |f| {
        f.set("general.architecture", STRING, [&[2, 0, 0, 0, 0, 0, 0, 0, 0xC3][..], &[0x28]].concat())
    }),
    ("bool of 2", "bool of value 2", |f| f.set("general.flag", BOOL, [2])),
    ("nested array", "unsupported type 9", |f| f.set("a", ARRAY, array(ARRAY, 1, &array(U32, 1, &[0; 4])))),
    ("array of unknown type", "unsupported type 55", |f| f.set("a", ARRAY, array(55, 1, &[0; 4]))),
    ("array length 2^63", "elements", |f| f.set("a", ARRAY, array(U32, 1 << 63, &[0; 4]))),
    ("array length 2^61", "elements", |f| f.set("a", ARRAY, array(U64, 1 << 61, &[0; 4]))),
    ("array of strings lies", "elements", |f| f.set("a", ARRAY, array(STRING, 1 << 40, &[0; 4]))),
    ("array u64 out of range", "out of range", |f| f.set("a", ARRAY, array(U64, 1, &[0xFF; 8]))),
    ("name length 2^64-1", "name of tensor 0", |f| f.tensors[0].0 = u64::MAX.to_le_bytes().to_vec()),
    ("name of 64 bytes", "name of tensor 0", |f| f.tensors[0].0 = text(&"n".repeat(64))),
    ("name with NUL", "unusable name", |f| f.tensors[0].0 = text("token\0embd")),
    ("name empty", "unusable name", |f| f.tensors[0].0 = text("")),
    ("duplicate name", "two tensors are named", |f| f.tensors[1].0 = text("token_embd.weight")),
    ("duplicate after translation", "two tensors are named", |f| f.tensors[1].0 = text("model.embed_tokens.weight")),
    ("five dimensions", "5 dimensions", |f| f.tensors[0].1 = vec![1; 5]),
    ("2^32-1 dimensions", "dimensions", |f| f.tensors[0].1 = vec![0; 200]),
    ("dimension 2^40", "absurd shape", |f| f.tensors[0].1 = vec![1 << 40, 1]),
    ("dimension 2^64-1", "absurd shape", |f| f.tensors[0].1 = vec![u64::MAX]),
    ("product overflows", "absurd shape", |f| f.tensors[0].1 = vec![1 << 32, 1 << 32]),
    ("product overflows beside zero", "absurd shape", |f| f.tensors[0].1 = vec![1 << 33, 1 << 33, 0]),
    ("type NVFP4", "NVFP4", |f| f.tensors[1].2 = 40),
    ("type Q8_1", "Q8_1", |f| f.tensors[1].2 = 9),
    ("type Q8_K", "Q8_K", |f| f.tensors[1].2 = 15),
    ("type removed", "unknown type 4", |f| f.tensors[1].2 = 4),
    ("type unknown", "unknown type 4294967295", |f| f.tensors[1].2 = u32::MAX),
    ("row no whole block", "no whole blocks", |f| f.tensors[1].1 = vec![33, 32]),
    ("offset misaligned", "no multiple of 32", |f| f.tensors[1].3 = 513),
    ("offset beyond end", "ends beyond", |f| f.tensors[1].3 = 1 << 30),
    ("offset 2^64-32", "ends beyond", |f| f.tensors[1].3 = u64::MAX - 31),
    ("last tensor cut", "ends beyond", |f| f.data.truncate(1610)),
    ("data cut in half", "ends beyond", |f| f.data.truncate(800)),
    ("tensors overlap", "overlap", |f| f.tensors[1].3 = 480),
    ("tensors at one place", "overlap", |f| f.tensors[2].3 = 0),
    ("alignment 0", "power of two", |f| f.set_u32("general.alignment", 0)),
    ("alignment 3", "power of two", |f| f.set_u32("general.alignment", 3)),
    ("alignment 2^31", "power of two", |f| f.set_u32("general.alignment", 1 << 31)),
    ("alignment 2^63", "power of two", |f| f.set("general.alignment", U64, (1u64 << 63).to_le_bytes())),
    ("alignment of text", "must be an integer", |f| f.set("general.alignment", STRING, text("32"))),
    ("no architecture", "general.architecture", |f| f.remove("general.architecture")),
    ("architecture unknown", "`gptj`", |f| f.set("general.architecture", STRING, text("gptj"))),
    ("architecture a number", "must be a string", |f| f.set("general.architecture", U32, [0; 4])),
    ("experts of no token", "`llama.expert_used_count` is missing", |f| f.set_u32("llama.expert_count", 8)),
    ("experts 2^40", "number of experts is 1099511627776", |f| {
        f.set("llama.expert_count", U64, (1u64 << 40).to_le_bytes());
        f.set_u32("llama.expert_used_count", 2);
    }),
    ("experts of a token above all", "experts of a token is 9", |f| f.be_mixture(9)),
    ("experts without tensors", "`model.layers.0.mlp.experts.0.w1.weight` is missing", |f| f.be_mixture(2)),
    ("experts of another number", "shape [7, 64, 32] where the config demands [8, 64, 32]", |f| {
        f.be_mixture(2);
        f.tensors.push((text("blk.0.ffn_gate_exps.weight"), vec![32, 64, 7], 8, 1632));
        f.data.extend(vec![0; 7 * 64 * 34]);
    }),
    ("no mixture of this architecture", "a mixture of 8 experts of architecture `smollm3`", |f| {
        f.set("general.architecture", STRING, text("smollm3"));
        f.set_u32("smollm3.expert_count", 8);
    }),
    ("split", "part 1 of 3 of a split model, but its name", |f| f.set_u32("split.count", 3)),
    ("split, part 2^62", "split.no is 4611686018427387904", |f| {
        f.set_u32("split.count", 3);
        f.set("split.no", U64, (1u64 << 62).to_le_bytes());
    }),
    ("block_count missing", "llama.block_count", |f| f.remove("llama.block_count")),
    ("block_count 0", "number of layers is 0", |f| f.set_u32("llama.block_count", 0)),
    ("block_count 2^32-1", "number of layers is 4294967295", |f| f.set_u32("llama.block_count", u32::MAX)),
    ("block_count 2^62", "number of layers is 4611686018427387904", |f| f.be_endless("llama")),
    ("block_count 2^62 of gemma2", "number of layers is 4611686018427387904", |f| f.be_endless("gemma2")),
    ("block_count 2^62 of gemma3", "number of layers is 4611686018427387904", |f| f.be_endless("gemma3")),
    ("block_count 2^62 of smollm3", "number of layers is 4611686018427387904", |f| f.be_endless("smollm3")),
    ("block_count text", "llama.block_count", |f| f.set("llama.block_count", STRING, text("1"))),
    ("context_length 0", "context length is 0", |f| f.set_u32("llama.context_length", 0)),
    ("context_length 2^32-1", "context length", |f| f.set_u32("llama.context_length", u32::MAX)),
    ("embedding_length 0", "hidden size is 0", |f| {
        f.set_u32("llama.embedding_length", 0);
        f.set_u32("llama.attention.key_length", 16);
    }),
    ("head_count 0", "head_count 0", |f| f.set_u32("llama.attention.head_count", 0)),
    ("head_count 3", "not divisible", |f| f.set_u32("llama.attention.head_count", 3)),
    ("head_count per layer", "layer to layer", |f| f.set("llama.attention.head_count", ARRAY, array(U32, 2, &[2, 0, 0, 0, 1, 0, 0, 0]))),
    ("head_count_kv 0", "key and value heads is 0", |f| f.set_u32("llama.attention.head_count_kv", 0)),
    ("head_count_kv 3", "cannot share", |f| f.set_u32("llama.attention.head_count_kv", 3)),
    ("key_length odd", "must be even", |f| {
        f.set_u32("llama.attention.key_length", 15);
        f.set_u32("llama.rope.dimension_count", 15);
    }),
    ("key_length 2^32-1", "4294967295", |f| f.set_u32("llama.attention.key_length", u32::MAX)),
    ("value_length differs", "value_length", |f| f.set_u32("llama.attention.value_length", 8)),
    ("partial rotary", "dimension_count", |f| f.set_u32("llama.rope.dimension_count", 8)),
    ("epsilon NaN", "epsilon", |f| f.set("llama.attention.layer_norm_rms_epsilon", F32, f32::NAN.to_le_bytes())),
    ("epsilon negative", "epsilon", |f| f.set("llama.attention.layer_norm_rms_epsilon", F32, (-1f32).to_le_bytes())),
    ("theta infinite", "rotary embedding is inf", |f| f.set("llama.rope.freq_base", F32, f32::INFINITY.to_le_bytes())),
    ("rope scaling unknown", "`ntk`", |f| f.set("llama.rope.scaling.type", STRING, text("ntk"))),
    ("rope scaling without its factor", "`yarn` lacks its factor", |f| f.set("llama.rope.scaling.type", STRING, text("yarn"))),
    ("rope scaling negative", "factor", |f| f.set("llama.rope.scaling.factor", F32, (-2f32).to_le_bytes())),
    ("vocab_size lies", "vocab_size is 99", |f| f.set_u32("llama.vocab_size", 99)),
    ("more tokens than rows", "tokenizer has 5 tokens", |f| {
        f.set("tokenizer.ggml.tokens", ARRAY, array(STRING, 5, &["a", "b", "c", "d", "e"].map(text).concat()));
    }),
    ("tokens of numbers", "tokenizer.ggml.tokens", |f| f.set("tokenizer.ggml.tokens", ARRAY, array(U32, 1, &[0; 4]))),
    ("no embedding", "token_embd.weight", |f| f.tensors[0].0 = text("other.weight")),
    ("rope frequency factor zero", "rotary frequency factor 3 is 0", |f| f.data[1612..1616].fill(0)),
    ("rope frequency factor NaN", "rotary frequency factor 0 is NaN", |f| f.data[1600..1604].fill(0xFF)),
    ("rope frequency factors of wrong type", "must be F32", |f| f.tensors[2].2 = 1),
];

#[test]
fn the_unbroken_file_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("valid.gguf");
    fs::write(&path, Gguf::valid().bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path, IoMode::Pread).unwrap();
    assert_eq!((checkpoint.config.vocab_size, checkpoint.config.head_size), (4, 16));
    assert!(checkpoint.expect("model.embed_tokens.weight", &[4, 32]).is_ok(), "dimensions are turned round");
}

#[test]
fn a_text_that_is_not_utf8_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin1.gguf");
    let mut file = Gguf::valid();
    file.set("general.license", STRING, [&[5, 0, 0, 0, 0, 0, 0, 0][..], b"lic\xe9\xe9"].concat());
    fs::write(&path, file.bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path, IoMode::Pread).unwrap();
    assert_eq!(checkpoint.metadata.as_ref().unwrap().string("general.license").unwrap(), Some("lic\u{fffd}\u{fffd}"));
}

/// Some writers give each layer its number, or one number in an array.
#[test]
fn arrays_of_one_number_are_that_number() {
    const I32: u32 = 5;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arrays.gguf");
    let open_with = |key: &str, values: &[i32]| {
        let mut file = Gguf::valid();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.set(key, ARRAY, array(I32, values.len() as u64, &bytes));
        fs::write(&path, file.bytes()).unwrap();
        Checkpoint::open(&path, IoMode::Pread)
    };
    fs::write(&path, Gguf::valid().bytes()).unwrap();
    let config = Checkpoint::open(&path, IoMode::Pread).unwrap().config;
    let (n_kv_heads, ffn_size) = (config.n_kv_heads as i32, config.ffn_size as i32);
    for n in [1, 3] {
        assert_eq!(open_with("llama.attention.head_count_kv", &vec![n_kv_heads; n]).unwrap().config, config);
        assert_eq!(open_with("llama.feed_forward_length", &vec![ffn_size; n]).unwrap().config, config);
    }
    for values in [&[][..], &[n_kv_heads, n_kv_heads + 1], &[-1, -1]] {
        assert!(open_with("llama.attention.head_count_kv", values).is_err(), "{values:?}");
    }
}

#[test]
fn a_pointer_of_git_lfs_is_called_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n").unwrap();
    let error = Checkpoint::open(&path, IoMode::Pread).unwrap_err().to_string();
    assert!(error.contains("git lfs pull"), "{error}");
}

#[test]
fn every_attack_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (row, reason, attack) in ATTACKS {
        let mut file = Gguf::valid();
        attack(&mut file);
        let path = folder.path().join("broken.gguf");
        fs::write(&path, file.bytes()).unwrap();
        must_refuse(row, &path, "broken.gguf", reason, &mut failures);
    }
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), ATTACKS.len(), failures.join("\n"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let bytes = Gguf::valid().bytes();
    let mut failures = Vec::new();
    for len in (1..bytes.len()).filter(|len| *len < 900 || len % 97 == 0) {
        fs::write(&path, &bytes[..len]).unwrap();
        must_refuse(&format!("cut to {len}"), &path, "cut.gguf", "is cut short", &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A small file with a huge hole behind it makes lengths plausible that no memory could hold.
#[test]
fn a_sparse_tail_does_not_fill_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let rows: [Attack; 4] = [
        ("string of 1 GiB", "general.architecture", |f| f.pairs[0].2 = (1u64 << 30).to_le_bytes().to_vec()),
        ("array of 2^33 bytes", "metadata takes more than", |f| f.pairs.insert(0, (text("a"), ARRAY, array(0, 1 << 33, &[])))),
        ("array of 2^30 strings", "metadata takes more than", |f| f.pairs.insert(0, (text("a"), ARRAY, array(STRING, 1 << 30, &[])))),
        ("2^32 tensors", "unusable name", |f| {
            f.n_tensors = Some(1 << 32);
            f.tensors.clear();
        }),
    ];
    let mut failures = Vec::new();
    for (row, reason, attack) in rows {
        let mut file = Gguf::valid();
        attack(&mut file);
        let path = folder.path().join("sparse.gguf");
        fs::write(&path, file.bytes()).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(256 << 30).unwrap();
        must_refuse(row, &path, "sparse.gguf", reason, &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
