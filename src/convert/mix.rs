//! Which tensor becomes what: the names of llama.cpp's file types, and its rules for which tensors get more bits
//! (`llama_tensor_get_type_impl` of llama-quant.cpp), but those of Falcon and those that need an importance matrix.

use std::fmt;
use std::str::FromStr;

use super::ConvertOptions;
use super::input::{Input, InputTensor};
use crate::dtype::DType;
use crate::error::Error;
use crate::units::listed;

/// What a file is as a whole, under llama.cpp's name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileType(&'static Row);

#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    /// What most matrices become.
    dtype: DType,
    mix: Mix,
    /// `enum llama_ftype` of llama.h.
    number: u32,
}

/// Which matrices of layers become something else.
#[derive(Debug, PartialEq, Eq)]
enum Mix {
    /// None.
    Plain,
    /// Some of the first layers'.
    Small,
    /// Those that matter most, in every third layer and in the first and last ones.
    Medium,
}

static FILE_TYPES: [Row; 16] = [
    row("f32", DType::F32, Mix::Plain, 0),
    row("f16", DType::F16, Mix::Plain, 1),
    row("bf16", DType::BF16, Mix::Plain, 32),
    row("q8_0", DType::Q8_0, Mix::Plain, 7),
    row("q4_0", DType::Q4_0, Mix::Plain, 2),
    row("q4_1", DType::Q4_1, Mix::Plain, 3),
    row("q5_0", DType::Q5_0, Mix::Plain, 8),
    row("q5_1", DType::Q5_1, Mix::Plain, 9),
    row("q4_k_s", DType::Q4K, Mix::Small, 14),
    row("q4_k_m", DType::Q4K, Mix::Medium, 15),
    row("q4_k", DType::Q4K, Mix::Medium, 15),
    row("q5_k_s", DType::Q5K, Mix::Small, 16),
    row("q5_k_m", DType::Q5K, Mix::Medium, 17),
    row("q5_k", DType::Q5K, Mix::Medium, 17),
    row("q6_k", DType::Q6K, Mix::Plain, 18),
    row("mxfp4", DType::MXFP4, Mix::Plain, 38),
];

const fn row(name: &'static str, dtype: DType, mix: Mix, number: u32) -> Row {
    Row { name, dtype, mix, number }
}

impl FileType {
    /// Its number in `enum llama_ftype` of llama.h, as `general.file_type` says it.
    pub fn number(self) -> u32 {
        self.0.number
    }

    /// What most matrices become.
    pub fn dtype(self) -> DType {
        self.0.dtype
    }

    /// The names of all, for messages.
    pub fn names() -> String {
        listed(&FILE_TYPES.each_ref().map(|row| row.name))
    }
}

impl FromStr for FileType {
    type Err = Error;

    /// By its name, in letters of any size.
    fn from_str(text: &str) -> Result<FileType, Error> {
        let found = FILE_TYPES.iter().find(|row| row.name.eq_ignore_ascii_case(text)).map(FileType);
        found.ok_or_else(|| Error::InvalidArgument {
            option: "the type".into(),
            reason: format!("`{text}` cannot be written; known are {}", FileType::names()),
        })
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name)
    }
}

/// Chooses for one tensor after the other, in the order of the layers.
pub(super) struct Chooser<'a> {
    input: &'a Input,
    options: ConvertOptions,
    has_output: bool,
    /// Matrices of values, or those that hold them, in all and so far.
    n_values: u64,
    values: u64,
    /// Down projections so far.
    downs: u64,
}

/// Parts of the names of matrices that are not quantised: small, or a gate that decides.
const KEPT: [&str; 9] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
    "position_embd",
];

impl<'a> Chooser<'a> {
    pub(super) fn new(input: &'a Input, options: ConvertOptions) -> Chooser<'a> {
        let has = |name: &str| input.tensors.iter().any(|tensor| tensor.name == name);
        let n_values = input.tensors.iter().filter(|tensor| is_quantised(tensor) && holds_values(&tensor.name)).count() as u64;
        Chooser { input, options, has_output: has("output.weight"), n_values, values: 0, downs: 0 }
    }

    /// What each tensor of the input becomes.
    pub(super) fn choose(mut self) -> Vec<DType> {
        self.input.tensors.iter().map(|tensor| self.dtype_of(tensor)).collect()
    }

    fn dtype_of(&mut self, tensor: &InputTensor) -> DType {
        if !is_quantised(tensor) {
            return tensor.stored.filter(|_| tensor.keeps_dtype).unwrap_or(DType::F32);
        }
        let dtype = self.options.file_type.dtype();
        let dtype = if dtype.has_blocks() && !self.options.pure { self.mixed(tensor, dtype) } else { dtype };
        that_divides(dtype, tensor.n_columns())
    }

    /// By llama.cpp's rules, whatever the length of the rows.
    fn mixed(&mut self, tensor: &InputTensor, dtype: DType) -> DType {
        let (name, FileType(Row { mix, .. })) = (tensor.name.as_str(), self.options.file_type);
        let has_eight_experts = self.input.n_experts == 8;
        let is_embedding = ["token_embd.weight", "per_layer_token_embd.weight"].contains(&name);
        if name == "output.weight" || (is_embedding && !self.has_output) {
            return match dtype {
                DType::MXFP4 | DType::Q8_0 => DType::Q8_0,
                _ if !tensor.n_columns().is_multiple_of(dtype.block_len()) => DType::Q8_0,
                _ => DType::Q6K,
            };
        }
        if dtype == DType::MXFP4 {
            let is_expert = tensor.shape.len() > 2;
            let is_most = if self.input.n_experts > 0 { is_expert } else { !is_embedding };
            return if is_most { DType::MXFP4 } else { DType::Q8_0 };
        }
        if holds_values(name) {
            let chosen = match (mix, dtype) {
                (Mix::Medium, DType::Q4K | DType::Q5K) if takes_more_bits(self.values, self.n_values) => DType::Q6K,
                (Mix::Small, DType::Q4K) if self.values < 4 => DType::Q5K,
                _ => dtype,
            };
            self.values += 1;
            // Of models with 80 layers eight heads share a matrix of values, which is small then.
            let chosen = if self.input.n_layers == 80 && chosen == DType::Q4K { DType::Q5K } else { chosen };
            return if has_eight_experts { DType::Q8_0 } else { chosen };
        }
        if name.contains("attn_k.weight") && has_eight_experts {
            return DType::Q8_0;
        }
        if name.contains("ffn_down") {
            let layer = if self.input.n_experts > 1 { tensor.layer().unwrap_or(0) } else { self.downs };
            self.downs += 1;
            return match (mix, dtype) {
                (Mix::Medium, DType::Q4K | DType::Q5K) if takes_more_bits(layer, self.input.n_layers) => DType::Q6K,
                (Mix::Small, DType::Q4K) if layer < self.input.n_layers / 8 => DType::Q5K,
                _ => dtype,
            };
        }
        if name.contains("attn_output.weight") && has_eight_experts && dtype == DType::Q4K {
            return DType::Q5K;
        }
        dtype
    }
}

fn holds_values(name: &str) -> bool {
    ["attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"].iter().any(|part| name.contains(part))
}

/// The first and the last eighth, and of those between every third.
fn takes_more_bits(layer: u64, n_layers: u64) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

fn is_quantised(tensor: &InputTensor) -> bool {
    let name = tensor.name.as_str();
    let is_small = name == "token_types.weight" || KEPT.iter().any(|part| name.contains(part));
    tensor.shape.len() > 1 && name.ends_with("weight") && !is_small
}

/// The dtype itself, or what llama.cpp takes where its blocks do not divide the rows.
fn that_divides(dtype: DType, n_columns: u64) -> DType {
    let divides = |dtype: &DType| n_columns.is_multiple_of(dtype.block_len());
    let other = match dtype {
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        _ => DType::F16,
    };
    [dtype, other].into_iter().find(divides).unwrap_or(DType::F16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Origin;
    use crate::weights::Catalog;

    fn chosen(file_type: &str, pure: bool, has_output: bool, [n_layers, n_columns]: [u64; 2]) -> Vec<(String, DType)> {
        let tensor = |name: String, shape: Vec<u64>| InputTensor {
            name,
            shape,
            stored: None,
            keeps_dtype: false,
            origin: Origin::Values(Vec::new()),
        };
        let parts = ["attn_norm", "attn_q", "attn_v", "ffn_down"];
        let of_layer = |layer| parts.map(|part| format!("blk.{layer}.{part}.weight"));
        let outer = ["token_embd.weight", "output.weight"].into_iter().take(1 + usize::from(has_output)).map(str::to_owned);
        let names = outer.chain((0..n_layers).flat_map(of_layer));
        let shape = |name: &str| if name.contains("norm") { vec![n_columns] } else { vec![4, n_columns] };
        let input = Input {
            path: String::new(),
            architecture: "llama".into(),
            pairs: Vec::new(),
            tensors: names.map(|name| tensor(name.clone(), shape(&name))).collect(),
            catalog: Catalog::default(),
            sources: Vec::new(),
            n_layers,
            n_experts: 0,
            notes: Vec::new(),
        };
        let dtypes = Chooser::new(&input, ConvertOptions { file_type: file_type.parse().unwrap(), pure }).choose();
        input.tensors.into_iter().map(|tensor| tensor.name).zip(dtypes).collect()
    }

    fn layers_with(chosen: &[(String, DType)], part: &str, dtype: DType) -> Vec<usize> {
        let of_part = chosen.iter().filter(|(name, _)| name.contains(part));
        of_part.enumerate().filter(|(_, (_, found))| *found == dtype).map(|(layer, _)| layer).collect()
    }

    #[test]
    fn mixes_give_more_bits_where_llama_cpp_does() {
        // Read off llama-quantize's own output for a model of 30 layers whose embedding is its head.
        let medium = chosen("Q4_K_M", false, false, [30, 256]);
        let more = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29];
        assert_eq!(layers_with(&medium, "attn_v", DType::Q6K), more);
        assert_eq!(layers_with(&medium, "ffn_down", DType::Q6K), more);
        assert_eq!((&medium[0], layers_with(&medium, "attn_q", DType::Q4K).len()), (&("token_embd.weight".into(), DType::Q6K), 30));
        assert_eq!(layers_with(&medium, "attn_norm", DType::F32).len(), 30);
        let small = chosen("q4_k_s", false, true, [30, 256]);
        assert_eq!(layers_with(&small, "attn_v", DType::Q5K), [0, 1, 2, 3]);
        assert_eq!(layers_with(&small, "ffn_down", DType::Q5K), [0, 1, 2]);
        assert_eq!([small[0].1, small[1].1], [DType::Q4K, DType::Q6K]);
        assert_eq!(layers_with(&chosen("q5_k_m", false, true, [30, 256]), "attn_v", DType::Q6K), more);
        assert!(chosen("q4_k_m", true, true, [30, 256]).iter().all(|(name, dtype)| name.contains("norm") || *dtype == DType::Q4K));
    }

    #[test]
    fn rows_that_blocks_do_not_divide_become_something_else() {
        let of =
            |file_type: &str, n_columns| chosen(file_type, false, true, [8, n_columns]).iter().map(|(_, dtype)| *dtype).collect::<Vec<_>>();
        assert_eq!(of("q4_k_s", 96)[..5], [DType::Q5_0, DType::Q8_0, DType::F32, DType::Q5_0, DType::Q5_1]);
        assert_eq!(of("q8_0", 60)[..4], [DType::F16, DType::F16, DType::F32, DType::F16]);
        assert_eq!(of("mxfp4", 64)[..4], [DType::Q8_0, DType::Q8_0, DType::F32, DType::MXFP4]);
        assert_eq!(of("bf16", 60)[..3], [DType::BF16, DType::BF16, DType::F32]);
    }

    #[test]
    fn names_are_llama_cpps() {
        for row in &FILE_TYPES {
            assert_eq!(row.name.to_uppercase().parse::<FileType>().unwrap().dtype(), row.dtype);
            assert!(row.dtype.can_encode());
        }
        let reason = "q9".parse::<FileType>().unwrap_err().to_string();
        assert!(reason.contains("`q9`") && reason.contains("q4_k_m"), "{reason}");
    }
}
