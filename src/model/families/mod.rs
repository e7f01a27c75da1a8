//! The families of models that run here: one file each, one row each in [`FAMILIES`].

mod arcee;
mod bert;
mod cohere;
mod decoder;
mod deepseek_v2;
mod deepseek_v3;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod experts;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod glm4_moe;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granitemoe;
mod internlm3;
mod lfm2;
mod lfm2_moe;
mod llama;
mod llama4;
mod mistral;
mod mixtral;
mod nearest;
mod nemotron;
mod nomic_bert;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::config_gguf::Keys;
use super::config_json::Fields;
use super::limits::MAX_LAYERS;
use super::{Model, ModelConfig};
use crate::error::{Error, Result};
use crate::units::listed;
use crate::weights::{Metadata, Order, TensorId};

pub(super) use nearest::nearest;

/// All families.
pub static FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &olmo2::FAMILY,
    &smollm3::FAMILY,
    &granite::FAMILY,
    &gpt2::FAMILY,
    &starcoder2::FAMILY,
    &stablelm::FAMILY,
    &nemotron::FAMILY,
    &olmo3::FAMILY,
    &exaone4::FAMILY,
    &glm4::FAMILY,
    &ernie4_5::FAMILY,
    &seed_oss::FAMILY,
    &internlm3::FAMILY,
    &arcee::FAMILY,
    &phi::FAMILY,
    &gpt_neox::FAMILY,
    &cohere::FAMILY,
    &lfm2::FAMILY,
    &qwen3_5::FAMILY,
    &bert::FAMILY,
    &mixtral::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &olmoe::FAMILY,
    &granitemoe::FAMILY,
    &glm4_moe::FAMILY,
    &ernie4_5_moe::FAMILY,
    &nomic_bert::FAMILY,
    &gpt_oss::FAMILY,
    &dots1::FAMILY,
    &lfm2_moe::FAMILY,
    &qwen3_5_moe::FAMILY,
    &qwen3_next::FAMILY,
    &gemma4::FAMILY,
    &gemma4::MIXTURE,
    &deepseek_v3::FAMILY,
    &deepseek_v2::FAMILY,
    &llama4::FAMILY,
];

/// Finds a tensor of some name and shape, or says what is wrong with it.
pub type Tensors<'a> = dyn Fn(&str, &[u64]) -> Result<TensorId> + 'a;

/// Modules of a layer: see [`Family::layer_modules`].
type Modules = &'static [(&'static str, &'static str)];

/// A family of models: what its config and its tensors are called, and what its layers compute.
pub struct Family {
    /// What messages and JSON call it; `model_type` in config.json.
    pub name: &'static str,
    /// What people call its models.
    pub models: &'static str,
    /// Its language models in config.json's `architectures`.
    classes: &'static [&'static str],
    /// What its modules are called in Hugging Face checkpoints.
    pub names: Names,
    /// Its `general.architecture` in GGUF files.
    pub gguf: &'static [&'static str],
    /// What GGUF files of the family name otherwise than [most](super::gguf_names): what it is there and in Hugging Face checkpoints; parts
    /// of a layer by their names in it.
    pub(super) gguf_names: &'static [(&'static str, &'static str)],
    /// What config.json says, by the defaults of transformers' config class.
    pub(super) from_json: fn(&Fields<'_>) -> Result<ModelConfig>,
    /// What GGUF metadata say.
    pub(super) from_gguf: fn(&Keys<'_>) -> Result<ModelConfig>,
    /// Its matrices that are stored otherwise than each for itself, row by row.
    pub(super) stored: fn(&ModelConfig) -> Vec<Stored>,
    /// Its units and their operations; tensor names as Hugging Face checkpoints write them.
    pub(super) model: fn(&ModelConfig, &Tensors<'_>) -> Result<Model>,
    /// What the names of transformers' classes begin with.
    pub class_prefix: &'static str,
    /// The modules of a layer in transformers, in groups and in the order of registration, itself first: what its name ends with, and
    /// its class, in which `{}` stands for the prefix.
    pub layer_modules: &'static [Modules],
}

/// What the modules of a family's models are called, those of a layer relative to it.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The embedding.
    pub embedding: &'static str,
    /// The table of what is added to the embedding by position, where positions are learned.
    pub positions: Option<&'static str>,
    /// The list of the layers.
    pub layers: &'static str,
    /// The attention part of a layer.
    pub attention: &'static str,
    /// The feed-forward part of a layer.
    pub ffn: &'static str,
    /// The last norm.
    pub norm: &'static str,
    /// Its class, in which `{}` stands for the prefix.
    pub norm_class: &'static str,
    /// The frequencies of the rotary embedding, where there is one.
    pub rotary: Option<&'static str>,
    /// The head.
    pub head: &'static str,
    /// What checkpoints call it that were written before transformers did.
    pub former_head: Option<&'static str>,
}

/// Those of Llama, and of most.
pub(super) const LLAMA_NAMES: Names = Names {
    embedding: "model.embed_tokens",
    positions: None,
    layers: "model.layers",
    attention: "self_attn",
    ffn: "mlp",
    norm: "model.norm",
    norm_class: "{}RMSNorm",
    rotary: Some("model.rotary_emb"),
    head: "lm_head",
    former_head: None,
};

impl Names {
    /// The module that holds all but the head.
    pub fn base(&self) -> &'static str {
        self.layers.split('.').next().unwrap_or_default()
    }

    /// The embedding's matrix.
    pub fn embedding_weight(&self) -> String {
        format!("{}.weight", self.embedding)
    }

    /// The head's matrix.
    pub fn head_weight(&self) -> String {
        format!("{}.weight", self.head)
    }
}

impl Family {
    /// The class of the whole language model in transformers.
    pub fn class(&self) -> &'static str {
        self.classes.first().copied().unwrap_or_default()
    }

    /// Whether its layers have experts.
    pub fn is_mixture(&self) -> bool {
        self.layer_modules.iter().copied().flatten().any(|(member, _)| member.ends_with(".experts"))
    }

    /// The class of a layer in transformers.
    pub fn layer_class(&self) -> String {
        let class = self.layer_modules.iter().copied().flatten().next().map_or("", |(_, class)| class);
        class.replace("{}", self.class_prefix)
    }
}

/// How a matrix is stored, and the bias with its name.
pub(super) struct Stored {
    /// What the name of its module ends with.
    pub(super) suffix: &'static str,
    /// The matrices that it holds, the rows of one behind those of the other; a part is called `name:part`. Empty: it is one.
    pub(super) parts: Vec<(&'static str, usize)>,
    /// The order that folders have it in, where it is another: `Conv1D` of transformers has it transposed.
    pub(super) order: Option<Order>,
    /// Whether GGUF files have it in that order, too.
    pub(super) is_so_in_gguf: bool,
}

impl Stored {
    /// Several matrices one behind the other.
    pub(super) fn stacked(suffix: &'static str, parts: Vec<(&'static str, usize)>) -> Stored {
        Stored { suffix, parts, order: None, is_so_in_gguf: false }
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class_prefix)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.name == other.name
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// The family called `name`.
pub fn by_name(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name).copied()
}

/// Models with a `model_type` of their own that are of a family in all else.
const OTHER_MODEL_TYPES: [(&str, &str); 1] = [("kimi_k2", "deepseek_v3")];

/// The family whose models have this `model_type`.
fn by_model_type(name: &str) -> Option<&'static Family> {
    by_name(OTHER_MODEL_TYPES.iter().find(|(other, _)| *other == name).map_or(name, |(_, family)| family))
}

/// The family that config.json names by `model_type` or by `architectures`.
///
/// # Errors
/// [`Error::UnsupportedModel`] where it is none of [`FAMILIES`].
pub(super) fn of_json(fields: &Fields<'_>, hint: Hint<'_>) -> Result<&'static Family> {
    let classes: Vec<&str> = match fields.get("architectures") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(fields.error("architectures is not a list of names")),
    };
    let named = fields.string("model_type")?;
    let of_class = |class: &&str| FAMILIES.iter().find(|family| family.classes.contains(class)).copied();
    let by_class = classes.iter().find_map(of_class);
    let unsupported = |kind: &str, name: &str| Error::UnsupportedModel {
        path: fields.path.to_owned(),
        reason: format!("{kind} `{name}` is not supported; supported are {} language models{}", names_of_all(), hinted(hint)),
    };
    if let (None, Some(class)) = (by_class, classes.first()) {
        return Err(unsupported("architecture", class));
    }
    match (named, by_class) {
        (Some(name), _) => by_model_type(name).ok_or_else(|| unsupported("model_type", name)),
        (None, Some(family)) => Ok(family),
        (None, None) => Err(fields.error("says neither model_type nor architectures")),
    }
}

/// The family that a GGUF file's metadata name.
///
/// # Errors
/// [`Error::UnsupportedModel`] where it is none of [`FAMILIES`]; [`Error::InvalidFile`] of a mixture without a number of experts.
pub(super) fn of_gguf(metadata: &Metadata, hint: Hint<'_>) -> Result<&'static Family> {
    let unsupported = |reason: String| Err(Error::UnsupportedModel { path: metadata.path.clone(), reason });
    let Some(name) = metadata.string("general.architecture")? else {
        return Err(Error::invalid_file(&metadata.path, "metadata key `general.architecture` is missing"));
    };
    let named = || FAMILIES.iter().copied().filter(|family| family.gguf.contains(&name));
    if named().next().is_none() {
        return unsupported(format!("architecture `{name}` is not supported; supported are {}{}", names_of_all(), hinted(hint)));
    }
    // Files of some mixtures are called as those of the dense models that they are like.
    let n_experts = metadata.unsigned(&format!("{name}.expert_count"))?.unwrap_or(0);
    match named().find(|family| family.is_mixture() == (n_experts > 0)) {
        Some(family) => Ok(family),
        None if n_experts > 0 => unsupported(format!("a mixture of {n_experts} experts of architecture `{name}` is not supported")),
        None => Err(Error::invalid_file(&metadata.path, format!("metadata key `{name}.expert_count` is missing or 0"))),
    }
}

/// What the tensors of a model say about its family, where its config says nothing that is known.
pub(super) type Hint<'a> = &'a dyn Fn() -> Option<String>;

fn hinted(hint: Hint<'_>) -> String {
    hint().map(|hint| format!("; {hint}")).unwrap_or_default()
}

fn names_of_all() -> String {
    listed(&FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>())
}

/// Of each layer whether it is none of every `n`th. Sizes are checked after a family has read its config: of more layers than any model
/// may have, those are enough.
fn all_but_every(n: usize, n_layers: usize) -> Vec<bool> {
    (1..=n_layers.min(MAX_LAYERS)).map(|layer| !layer.is_multiple_of(n)).collect()
}

/// The modules of a layer of Llama and what is built like it.
const DECODER_LAYER: &[Modules] = &[ATTENTION, FEED_FORWARD_AND_NORMS];

/// A layer itself, and its attention.
const ATTENTION: Modules = &[
    ("", "{}DecoderLayer"),
    (".self_attn", "{}Attention"),
    (".self_attn.q_proj", "Linear"),
    (".self_attn.k_proj", "Linear"),
    (".self_attn.v_proj", "Linear"),
    (".self_attn.o_proj", "Linear"),
];

/// What norms queries and keys in it.
const QUERY_KEY_NORMS: Modules = &[(".self_attn.q_norm", "{}RMSNorm"), (".self_attn.k_norm", "{}RMSNorm")];

/// Experts in place of a feed-forward part, and norms.
const EXPERTS_AND_NORMS: Modules = &[
    (".mlp", "{}SparseMoeBlock"),
    (".mlp.gate", "{}TopKRouter"),
    (".mlp.experts", "{}Experts"),
    (".mlp.experts.act_fn", "SiLUActivation"),
    (".input_layernorm", "{}RMSNorm"),
    (".post_attention_layernorm", "{}RMSNorm"),
];

const FEED_FORWARD_AND_NORMS: Modules = &[
    (".mlp", "{}MLP"),
    (".mlp.gate_proj", "Linear"),
    (".mlp.up_proj", "Linear"),
    (".mlp.down_proj", "Linear"),
    (".mlp.act_fn", "SiLUActivation"),
    (".input_layernorm", "{}RMSNorm"),
    (".post_attention_layernorm", "{}RMSNorm"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_a_list() {
        assert_eq!(names_of_all().matches(", ").count() + 2, FAMILIES.len());
        assert!(names_of_all().starts_with("llama, mistral, qwen2, qwen3, ") && names_of_all().contains(" and "));
        assert!(by_name("llama").is_some() && by_name("Llama").is_none());
    }
}
