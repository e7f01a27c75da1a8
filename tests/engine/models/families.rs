//! Small models of every family whose answers transformers gave (`tests/golden/families.py`): their weights are made from a hash, and
//! stored as a folder and as llama.cpp's converter would.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What the script wrote about one model.
#[derive(Deserialize)]
pub struct Golden {
    /// How the folder's tensors are stored.
    pub dtype: String,
    config: Value,
    tensors: Vec<Tensor>,
    /// What the folder's names lack, where it was saved without its head.
    #[serde(default)]
    lacks: String,
    gguf: Option<Gguf>,
    /// How it pools, of one that makes embeddings.
    pooling: Option<String>,
    /// Layers behind the pooling, if there are any.
    #[serde(default)]
    dense: Vec<Tensor>,
    cases: Value,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    base: f32,
    scale: f32,
    /// Whether its values are bytes from `base` on, `scale` different ones.
    #[serde(default)]
    is_bytes: bool,
}

#[derive(Deserialize)]
struct Gguf {
    architecture: String,
    keys: Map<String, Value>,
    tensors: Vec<GgufTensor>,
    /// Those that converters make of the config.
    #[serde(default)]
    vectors: Vec<GgufVector>,
}

#[derive(Deserialize)]
struct GgufVector {
    name: String,
    values: Vec<f32>,
}

/// A tensor of a GGUF file, made of one of the folder's.
#[derive(Deserialize)]
struct GgufTensor {
    name: String,
    /// `{}` stands for the number of each expert.
    from: String,
    /// Experts whose matrices it has.
    #[serde(default)]
    experts: usize,
    /// Of the rows of MXFP4, or of the values of a bias, the first and the step to the next.
    every: Option<[usize; 2]>,
    /// Whether each expert's matrix is transposed first.
    #[serde(default)]
    turned: bool,
    /// Which half of each expert's rows it has, if not all of them.
    half: Option<usize>,
    /// Heads whose rows are permuted to interleaved pairs.
    permuted_heads: Option<usize>,
    /// Heads of a matrix that has queries, keys and values of each; all queries become neighbours, and so on.
    heads_of_parts: Option<usize>,
    /// Of how many heads it has a matrix each, where it has these one behind the other.
    heads: Option<usize>,
    /// Whether columns become rows; of each head for itself where there are several.
    #[serde(default)]
    transposed: bool,
    /// Which rows, or which columns, it is made of, where those are some of them or in another order.
    #[serde(default)]
    rows: Vec<usize>,
    #[serde(default)]
    columns: Vec<usize>,
    /// Whether it is minus the exponential.
    #[serde(default)]
    negated_exp: bool,
    add: f32,
}

/// Writes the golden model `name` into `root`, as a folder of that name and where it can as GGUF; the folder.
pub fn written(root: &Path, name: &str) -> PathBuf {
    Golden::of(name).write(root, name);
    root.join(name)
}

impl Golden {
    /// All of them with their names, in the order of these.
    pub fn all() -> Vec<(String, Golden)> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/families"));
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let name = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        paths.iter().map(name).map(|name| (name.clone(), Golden::of(&name))).collect()
    }

    /// That of this name.
    pub fn of(name: &str) -> Golden {
        let path = format!("{}/tests/golden/families/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| Ok::<_, Box<dyn std::error::Error>>(serde_json::from_slice(&std::fs::read(path)?)?);
        read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Writes a folder, and where the case has a GGUF file a folder with that, each with the answers; returns how many.
    pub fn write(&self, root: &Path, name: &str) -> usize {
        let folder = root.join(name);
        self.write_folder(&folder);
        let Some(gguf) = &self.gguf else { return 1 };
        let folder = root.join(format!("{name}-gguf"));
        self.write_gguf(gguf, &folder);
        2
    }

    fn write_answers(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("expected.json"), json!({ "cases": self.cases }).to_string()).unwrap();
    }

    fn write_folder(&self, folder: &Path) {
        self.write_answers(folder);
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let (mut header, mut data) = (Map::new(), Vec::new());
        for tensor in &self.tensors {
            let begin = data.len();
            let dtype = if tensor.is_bytes { "U8" } else { &self.dtype };
            data.extend(encode(dtype, &tensor.values(dtype)));
            let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()] });
            let name = tensor.name.strip_prefix(&self.lacks).unwrap_or(&tensor.name);
            header.insert(name.to_owned(), entry);
        }
        write_safetensors(folder, header, &data);
        if let Some(pooling) = &self.pooling {
            self.write_modules(pooling, folder);
        }
    }

    /// Those of sentence-transformers: what pools, linear layers, and what scales to the length 1.
    fn write_modules(&self, pooling: &str, folder: &Path) {
        let names = |number: usize| format!("{number}_Dense");
        let kinds = ["", "1_Pooling"].map(str::to_owned).into_iter();
        let paths = kinds.chain((2..).take(self.dense.len()).map(names)).chain([format!("{}_Normalize", self.dense.len() + 2)]);
        let kind = |path: &str| path.split_once('_').map_or("Transformer", |(_, kind)| kind).to_owned();
        let module = |path: String| json!({ "path": path, "type": format!("sentence_transformers.models.{}", kind(&path)) });
        std::fs::write(folder.join("modules.json"), Value::Array(paths.map(module).collect()).to_string()).unwrap();
        let config = |path: &Path, config: Value| {
            std::fs::create_dir_all(path).unwrap();
            std::fs::write(path.join("config.json"), config.to_string()).unwrap();
        };
        config(&folder.join("1_Pooling"), json!({ "pooling_mode": pooling }));
        for (number, tensor) in (2..).zip(&self.dense) {
            let folder = folder.join(names(number));
            let function = "torch.nn.modules.linear.Identity";
            config(&folder, json!({ "in_features": tensor.shape[1], "out_features": tensor.shape[0], "activation_function": function }));
            let data = encode(&self.dtype, &tensor.values(&self.dtype));
            let entry = json!({ "dtype": self.dtype, "shape": tensor.shape, "data_offsets": [0, data.len()] });
            write_safetensors(&folder, [("linear.weight".to_owned(), entry)].into_iter().collect(), &data);
        }
    }

    /// Blocks of MXFP4 from nibbles and scales that lie apart (`transform_nibble_layout` of llama.cpp's converter).
    fn blocks_of(&self, from: &str, [first, step]: [usize; 2]) -> (Vec<usize>, Vec<u8>) {
        let find = |name: &str| self.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let (nibbles, scales) = (find(from), find(&from.replace("_blocks", "_scales")));
        let [n_experts, n_rows, n_blocks, _] = nibbles.shape[..] else { panic!("{from}") };
        let [nibbles, scales] = [nibbles, scales].map(|tensor| encode("U8", &tensor.values("U8")));
        let mut bytes = Vec::new();
        for block in (0..n_experts * n_rows).skip(first).step_by(step).flat_map(|row| row * n_blocks..(row + 1) * n_blocks) {
            let values: Vec<u8> = nibbles[block * 16..][..16].iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
            bytes.push(scales[block]);
            bytes.extend((0..16).map(|index| values[index] | (values[index + 16] << 4)));
        }
        (vec![n_experts, n_rows / step, n_blocks * 32], bytes)
    }

    /// What a tensor of a GGUF file is made of: all experts' matrices one behind the other, where it has those.
    fn source_of(&self, entry: &GgufTensor) -> (Vec<usize>, Vec<f32>) {
        let find = |name: &str| self.tensors.iter().chain(&self.dense).find(|tensor| tensor.name == name).unwrap();
        if entry.from.contains("{}") {
            let of_experts: Vec<&Tensor> = (0..entry.experts).map(|expert| find(&entry.from.replace("{}", &expert.to_string()))).collect();
            let shape = [&[entry.experts][..], &of_experts[0].shape].concat();
            return (shape, of_experts.iter().flat_map(|tensor| tensor.values(&self.dtype)).collect());
        }
        let tensor = find(&entry.from);
        let (mut shape, mut values) = (tensor.shape.clone(), tensor.values(&self.dtype));
        if let Some([first, step]) = entry.every {
            values = values.into_iter().skip(first).step_by(step).collect();
            shape[1] /= step;
        }
        if entry.turned {
            let &[_, n_rows, n_columns] = shape.as_slice() else { panic!("{shape:?}") };
            let turn = |matrix: &[f32]| -> Vec<f32> {
                (0..n_columns).flat_map(|column| matrix.iter().skip(column).step_by(n_columns)).copied().collect()
            };
            values = values.chunks_exact(n_rows * n_columns).flat_map(turn).collect();
            shape.swap(1, 2);
        }
        if let Some(half) = entry.half {
            let len = values.len() / entry.experts / 2;
            values = values.chunks(len).skip(half).step_by(2).flatten().copied().collect();
            shape[1] /= 2;
        }
        (shape, values)
    }

    fn write_gguf(&self, gguf: &Gguf, folder: &Path) {
        self.write_answers(folder);
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(((gguf.tensors.len() + gguf.vectors.len()) as u64).to_le_bytes());
        file.extend((gguf.keys.len() as u64 + 1).to_le_bytes());
        push_text(&mut file, "general.architecture");
        file.extend(8u32.to_le_bytes());
        push_text(&mut file, &gguf.architecture);
        for (key, value) in &gguf.keys {
            push_text(&mut file, &format!("{}.{key}", gguf.architecture));
            match (value.as_str(), value.as_u64()) {
                _ if value.is_array() => push_numbers(&mut file, value.as_array().unwrap()),
                (Some(text), _) => {
                    file.extend(8u32.to_le_bytes());
                    push_text(&mut file, text);
                }
                _ if value.is_boolean() => file.extend([&7u32.to_le_bytes()[..], &[u8::from(value == true)]].concat()),
                (_, Some(number)) => file.extend([4u32.to_le_bytes(), (number as u32).to_le_bytes()].concat()),
                _ => file.extend([6u32.to_le_bytes(), (value.as_f64().unwrap() as f32).to_le_bytes()].concat()),
            }
        }
        let mut data = Vec::new();
        for entry in &gguf.tensors {
            if let (true, Some(every)) = (entry.from.ends_with("_blocks"), entry.every) {
                let (shape, bytes) = self.blocks_of(&entry.from, every);
                push_text(&mut file, &entry.name);
                file.extend((shape.len() as u32).to_le_bytes());
                file.extend(shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
                file.extend(39u32.to_le_bytes());
                file.extend((data.len() as u64).to_le_bytes());
                data.extend(bytes);
                data.resize(data.len().next_multiple_of(32), 0);
                continue;
            }
            let (mut shape, mut values) = self.source_of(entry);
            if !entry.rows.is_empty() {
                let n_columns = values.len() / shape[0];
                values = entry.rows.iter().flat_map(|row| &values[row * n_columns..][..n_columns]).copied().collect();
                shape[0] = entry.rows.len();
            }
            if let Some(n_heads) = entry.heads {
                shape = vec![n_heads, shape[0] / n_heads, shape[1]];
            }
            if shape[0] == 1 && shape.len() > 1 {
                shape.remove(0);
            }
            // As the converter has it: vectors, learned positions, kinds of texts, taps of convolutions and routers in f32.
            let is_kept = ["position_embd", "token_types", "ffn_gate_inp", ".bias"].iter().any(|name| entry.name.contains(name));
            let is_taps = matches!(shape[..], [_, 1, _]);
            if is_taps {
                shape.remove(1);
            }
            let dtype = if shape.len() == 1 || is_taps || is_kept { "F32" } else { &self.dtype };
            let [n_rows, n_columns] = [shape[0], shape.get(1).copied().unwrap_or(1)];
            if entry.transposed {
                let n_outer = shape.len() - 2;
                shape[n_outer..].reverse();
            }
            push_text(&mut file, &entry.name);
            file.extend((shape.len() as u32).to_le_bytes());
            file.extend(shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
            file.extend(match dtype {
                "F32" => 0u32.to_le_bytes(),
                "F16" => 1u32.to_le_bytes(),
                _ => 30u32.to_le_bytes(),
            });
            file.extend((data.len() as u64).to_le_bytes());
            values.iter_mut().for_each(|value| *value += entry.add);
            if entry.negated_exp {
                values.iter_mut().for_each(|value| *value = -value.exp());
            }
            if !entry.columns.is_empty() {
                let rows = values.chunks_exact(entry.columns.len());
                values = rows.flat_map(|row| entry.columns.iter().map(|column| row[*column])).collect();
            }
            if let Some(n_heads) = entry.permuted_heads {
                values = permuted(&values, n_heads, n_rows, n_columns);
            }
            if let Some(n_heads) = entry.heads_of_parts {
                let head_len = values.len() / (3 * n_heads);
                let place = |index: usize| (index % n_heads * 3 + index / n_heads) * head_len;
                values = (0..3 * n_heads).flat_map(|index| &values[place(index)..][..head_len]).copied().collect();
            }
            if let (true, Some(n_heads)) = (entry.transposed, entry.heads) {
                let n_columns = shape[1];
                let transposed = |head: &[f32]| -> Vec<f32> {
                    (0..n_columns).flat_map(|column| head.iter().skip(column).step_by(n_columns)).copied().collect()
                };
                values = values.chunks_exact(values.len() / n_heads).flat_map(transposed).collect();
            } else if entry.transposed {
                values = (0..n_columns).flat_map(|column| values.iter().skip(column).step_by(n_columns)).copied().collect();
            }
            data.extend(encode(dtype, &values));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        for vector in &gguf.vectors {
            push_text(&mut file, &vector.name);
            file.extend(1u32.to_le_bytes());
            file.extend((vector.values.len() as u64).to_le_bytes());
            file.extend(0u32.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(encode("F32", &vector.values));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        std::fs::write(folder.join("model.gguf"), file).unwrap();
    }
}

fn write_safetensors(folder: &Path, header: Map<String, Value>, data: &[u8]) {
    let mut header = Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}

impl Tensor {
    /// As the script makes them, rounded to `dtype`.
    fn values(&self, dtype: &str) -> Vec<f32> {
        let value = |uniform: f32| {
            if self.is_bytes {
                return self.base + ((uniform + 1.0) / 2.0 * self.scale).floor();
            }
            let value = self.base + self.scale * uniform;
            match dtype {
                "F16" => half::f16::from_f32(value).to_f32(),
                "BF16" => half::bf16::from_f32(value).to_f32(),
                _ => value,
            }
        };
        uniform(&self.name, self.shape.iter().product()).into_iter().map(value).collect()
    }
}

/// Numbers from -1 to 1 that a name chooses.
pub fn uniform(name: &str, n: usize) -> Vec<f32> {
    let key = name.bytes().fold(0, |key, byte| mix(key ^ u64::from(byte)));
    let hash = |index: u64| mix(key.wrapping_add(index.wrapping_mul(GOLDEN)));
    (0..n as u64).map(|index| (hash(index) >> 40) as f32 / (1u32 << 23) as f32 - 1.0).collect()
}

/// Rows of a head from NeoX order (i, i + half) to interleaved pairs (`LlamaModel.permute` of llama.cpp's converter).
fn permuted(values: &[f32], n_heads: usize, n_rows: usize, n_columns: usize) -> Vec<f32> {
    let size = n_rows / n_heads;
    let source = |row: usize| row / size * size + row % size / 2 + row % 2 * (size / 2);
    (0..n_rows).flat_map(|row| &values[source(row) * n_columns..][..n_columns]).copied().collect()
}

fn encode(dtype: &str, values: &[f32]) -> Vec<u8> {
    match dtype {
        "F32" => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        "U8" => values.iter().map(|value| *value as u8).collect(),
        "F16" => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
        "BF16" => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
        other => panic!("{other}"),
    }
}

/// An array of i32, or of bool.
fn push_numbers(bytes: &mut Vec<u8>, numbers: &[Value]) {
    if numbers.iter().all(Value::is_boolean) {
        bytes.extend([9u32, 7].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend((numbers.len() as u64).to_le_bytes());
        bytes.extend(numbers.iter().map(|value| u8::from(*value == true)));
        return;
    }
    bytes.extend([9u32, 5].into_iter().flat_map(u32::to_le_bytes));
    bytes.extend((numbers.len() as u64).to_le_bytes());
    bytes.extend(numbers.iter().flat_map(|number| (number.as_i64().unwrap() as i32).to_le_bytes()));
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
