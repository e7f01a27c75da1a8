//! A test model as a GGUF file, version 3: metadata, tokenizer and tensors as llama.cpp's converter lays them out.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::encode::GgufType;
use super::hugging_face::write_whole;
use super::parts::{PART_VALUES, write_parts};
use super::shape::{Family, LlamaShape, Role, RopeScaling, Tensor};
use super::vocabulary;
use super::weights::Values;

const ALIGNMENT: usize = 32;

/// Writes the model of `seed` as `file`, whose folder is made where it is missing. Matrices are stored as `dtype`, vectors as F32.
pub fn write_gguf(file: &Path, shape: &LlamaShape, seed: u64, dtype: GgufType) -> io::Result<()> {
    write_mixed_gguf(file, shape, seed, Dtypes { layers: dtype, head: dtype })
}

/// How the matrices of a file are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtypes {
    /// All but the head, which is the embedding where the two are one.
    pub layers: GgufType,
    /// The head: llama-quantize gives it more bits than the rest, Q6_K in files that it calls Q4_0 and Q4_1.
    pub head: GgufType,
}

/// As [`write_gguf`], with a dtype of its own for the head.
pub fn write_mixed_gguf(file: &Path, shape: &LlamaShape, seed: u64, dtypes: Dtypes) -> io::Result<()> {
    shape.check()?;
    let tensors = shape.tensors();
    check_rows(&tensors, shape, dtypes)?;
    let factors = shape.rope_frequency_factors();
    write_file(file, shape, &whole_pairs(shape, dtypes), factors.as_deref(), &tensors, seed, dtypes)
}

/// As [`write_gguf`], in `n_parts` files `STEM-00001-of-0000N.gguf` of `folder`, which are returned: what `llama-gguf-split` makes of the
/// one file. Tensors go to the parts in equal numbers.
pub fn write_split_gguf(
    folder: &Path,
    stem: &str,
    shape: &LlamaShape,
    seed: u64,
    dtype: GgufType,
    n_parts: usize,
) -> io::Result<Vec<PathBuf>> {
    shape.check()?;
    let dtypes = Dtypes { layers: dtype, head: dtype };
    let tensors = shape.tensors();
    check_rows(&tensors, shape, dtypes)?;
    let factors = shape.rope_frequency_factors();
    let n_tensors = tensors.len() + usize::from(factors.is_some());
    let mut files = Vec::new();
    for (index, own) in tensors.chunks(tensors.len().div_ceil(n_parts)).enumerate() {
        let mut pairs = if index == 0 { whole_pairs(shape, dtypes) } else { Pairs::default() };
        pairs.u16("split.no", index as u16);
        pairs.u16("split.count", n_parts as u16);
        pairs.i32("split.tensors.count", n_tensors as i32);
        let file = folder.join(format!("{stem}-{:05}-of-{n_parts:05}.gguf", index + 1));
        write_file(&file, shape, &pairs, factors.as_deref().filter(|_| index == 0), own, seed, dtypes)?;
        files.push(file);
    }
    Ok(files)
}

/// Whether all rows are whole blocks.
fn check_rows(tensors: &[Tensor], shape: &LlamaShape, dtypes: Dtypes) -> io::Result<()> {
    let block_len = |tensor: &Tensor| type_of(tensor, shape, dtypes).block().0;
    if let Some(tensor) = tensors.iter().find(|tensor| tensor.shape.len() > 1 && !tensor.n_columns().is_multiple_of(block_len(tensor))) {
        let reason = format!("the rows of {} are no multiple of {} values", tensor.name, block_len(tensor));
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(())
}

/// Writes one file: its pairs, its tensors, after the frequency factors of rotary embeddings where it has them.
fn write_file(
    file: &Path,
    shape: &LlamaShape,
    pairs: &Pairs,
    factors: Option<&[f32]>,
    tensors: &[Tensor],
    seed: u64,
    dtypes: Dtypes,
) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let head = head(shape, pairs, tensors, factors, dtypes);
    write_whole(file, |output| {
        output.write_all(&head)?;
        output.write_all(&padding(head.len()))?;
        if let Some(factors) = factors {
            write_padded(output, GgufType::F32, factors)?;
        }
        tensors.iter().try_for_each(|tensor| write_tensor(output, shape, tensor, seed, type_of(tensor, shape, dtypes)))
    })
}

fn type_of(tensor: &Tensor, shape: &LlamaShape, dtypes: Dtypes) -> GgufType {
    let head = if shape.tied { "token_embd.weight" } else { "output.weight" };
    match tensor.shape.len() {
        0 | 1 => GgufType::F32,
        _ if tensor.role == Role::Router => GgufType::F32,
        _ if tensor.gguf_name == head => dtypes.head,
        _ => dtypes.layers,
    }
}

fn size_bytes(tensor: &Tensor, dtype: GgufType) -> usize {
    let (block_len, block_bytes) = dtype.block();
    tensor.n_values() / block_len * block_bytes
}

fn padding(len: usize) -> Vec<u8> {
    vec![0; len.next_multiple_of(ALIGNMENT) - len]
}

/// Everything before the tensors' bytes.
fn head(shape: &LlamaShape, pairs: &Pairs, tensors: &[Tensor], factors: Option<&[f32]>, dtypes: Dtypes) -> Vec<u8> {
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64 + u64::from(factors.is_some())).to_le_bytes());
    head.extend(pairs.n.to_le_bytes());
    head.extend(&pairs.bytes);
    let mut offset = 0;
    let mut entry = |name: &str, shape: &[usize], dtype: GgufType, size: usize| {
        push_string(&mut head, name);
        head.extend((shape.len() as u32).to_le_bytes());
        head.extend(shape.iter().rev().flat_map(|dimension| (*dimension as u64).to_le_bytes()));
        head.extend(dtype.code().to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset += size.next_multiple_of(ALIGNMENT);
    };
    if let Some(factors) = factors {
        entry("rope_freqs.weight", &[factors.len()], GgufType::F32, factors.len() * 4);
    }
    for tensor in tensors {
        let dtype = type_of(tensor, shape, dtypes);
        entry(&tensor.gguf_name, &tensor.shape, dtype, size_bytes(tensor, dtype));
    }
    head
}

/// The metadata of a whole model.
fn whole_pairs(shape: &LlamaShape, dtypes: Dtypes) -> Pairs {
    let mut pairs = Pairs::default();
    model_pairs(&mut pairs, shape, dtypes.layers);
    tokenizer_pairs(&mut pairs, shape);
    pairs
}

fn model_pairs(pairs: &mut Pairs, shape: &LlamaShape, dtype: GgufType) {
    let family = match shape.family {
        Family::Llama => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Qwen3Moe(_) => "qwen3moe",
    };
    let key = |name: &str| format!("{family}.{name}");
    pairs.string("general.architecture", family);
    pairs.string("general.name", "seeded test model");
    pairs.u32("general.file_type", dtype.file_type());
    pairs.u32("general.quantization_version", 2);
    pairs.size(&key("vocab_size"), shape.vocab_size);
    pairs.size(&key("context_length"), shape.context_length);
    pairs.size(&key("embedding_length"), shape.hidden_size);
    pairs.size(&key("block_count"), shape.n_layers);
    pairs.size(&key("feed_forward_length"), shape.ffn_size);
    pairs.size(&key("attention.head_count"), shape.n_heads);
    pairs.size(&key("attention.head_count_kv"), shape.n_kv_heads);
    pairs.size(&key("attention.key_length"), shape.head_size);
    pairs.size(&key("attention.value_length"), shape.head_size);
    pairs.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    pairs.size(&key("rope.dimension_count"), shape.head_size);
    pairs.f32(&key("rope.freq_base"), shape.rope_theta as f32);
    if let Family::Qwen3Moe(experts) = shape.family {
        pairs.size(&key("expert_count"), experts.n_experts);
        pairs.size(&key("expert_used_count"), experts.n_used);
        pairs.size(&key("expert_feed_forward_length"), experts.ffn_size);
    }
    if let Some(window) = shape.sliding_window {
        pairs.size(&key("attention.sliding_window"), window);
    }
    if let Some(RopeScaling::Linear { factor }) = shape.rope_scaling {
        pairs.string(&key("rope.scaling.type"), "linear");
        pairs.f32(&key("rope.scaling.factor"), factor as f32);
    }
}

fn tokenizer_pairs(pairs: &mut Pairs, shape: &LlamaShape) {
    // `enum llama_token_type`.
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const UNUSED: i32 = 5;
    let mut tokens = vocabulary::tokens();
    let mut types = vec![NORMAL; vocabulary::end_of_text()];
    types.resize(tokens.len(), CONTROL);
    // GGUF wants a name for every row of the embedding.
    tokens.extend((tokens.len()..shape.vocab_size).map(|id| format!("[UNUSED{id}]")));
    types.resize(tokens.len(), UNUSED);
    pairs.string("tokenizer.ggml.model", "gpt2");
    pairs.string("tokenizer.ggml.pre", "default");
    pairs.strings("tokenizer.ggml.tokens", &tokens);
    pairs.i32s("tokenizer.ggml.token_type", &types);
    pairs.strings("tokenizer.ggml.merges", &vocabulary::merges());
    pairs.size("tokenizer.ggml.bos_token_id", vocabulary::end_of_text());
    pairs.size("tokenizer.ggml.eos_token_id", vocabulary::end_of_turn());
    pairs.size("tokenizer.ggml.padding_token_id", vocabulary::end_of_text());
    pairs.bool("tokenizer.ggml.add_bos_token", false);
    pairs.string("tokenizer.chat_template", vocabulary::chat_template());
}

/// Writes a tensor row by row; rows of queries and keys come from where GGUF's order takes them.
fn write_tensor(output: &mut dyn Write, shape: &LlamaShape, tensor: &Tensor, seed: u64, dtype: GgufType) -> io::Result<()> {
    let values = Values::new(seed, tensor);
    // A vector of biases is permuted value by value: its "rows" are single values.
    let (n_heads, row_len) = match tensor.role {
        Role::Rotated { n_heads } => (Some(n_heads), tensor.shape[1]),
        Role::Bias { n_heads } => (n_heads, 1),
        Role::Plain | Role::Router | Role::Norm => (None, tensor.n_columns()),
    };
    let n_rows = tensor.n_values() / row_len;
    let part_rows = (PART_VALUES / row_len).max(1);
    write_parts(output, n_rows.div_ceil(part_rows), |part| {
        let mut row_values = vec![0.0; row_len];
        let mut bytes = Vec::new();
        for row in (part * part_rows..n_rows).take(part_rows) {
            let source = if n_heads.is_some() && shape.family == Family::Llama { source_row(row, shape.head_size) } else { row };
            values.fill(source * row_len, &mut row_values);
            dtype.encode(&row_values, &mut bytes);
        }
        bytes
    })?;
    output.write_all(&padding(size_bytes(tensor, dtype)))
}

/// Where row `row` of a GGUF's queries or keys is in the Hugging Face order: rows (i, i + head_size/2) of a head, which are a pair there,
/// become interleaved (`LlamaModel.permute` of llama.cpp's converter).
fn source_row(row: usize, head_size: usize) -> usize {
    let (head, within) = (row / head_size, row % head_size);
    head * head_size + within / 2 + within % 2 * (head_size / 2)
}

fn write_padded(output: &mut dyn Write, dtype: GgufType, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::new();
    dtype.encode(values, &mut bytes);
    output.write_all(&bytes)?;
    output.write_all(&padding(bytes.len()))
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Key-value pairs as GGUF writes them; the numbers are those of `enum gguf_type`.
#[derive(Default)]
struct Pairs {
    n: u64,
    bytes: Vec<u8>,
}

impl Pairs {
    fn key(&mut self, key: &str, kind: u32) {
        self.n += 1;
        push_string(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn u16(&mut self, key: &str, value: u16) {
        self.key(key, 2);
        self.bytes.extend(value.to_le_bytes());
    }

    fn i32(&mut self, key: &str, value: i32) {
        self.key(key, 5);
        self.bytes.extend(value.to_le_bytes());
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    fn size(&mut self, key: &str, value: usize) {
        self.u32(key, value as u32);
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(u8::from(value));
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        push_string(&mut self.bytes, value);
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, values.len());
        values.iter().for_each(|value| push_string(&mut self.bytes, value));
    }

    fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::source_row;

    #[test]
    fn pairs_become_interleaved() {
        let rows: Vec<usize> = (0..16).map(|row| source_row(row, 8)).collect();
        assert_eq!(rows, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
    }
}
