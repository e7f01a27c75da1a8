//! Mixtures of experts in a model's config, and how checkpoints store the matrices of all experts: as one matrix each for gate, up and down
//! projection, whose rows are those of the first expert, then those of the second, and so on.

use serde::Serialize;

use super::config_gguf::Keys;
use super::config_json::Fields;
use super::limits::MAX_LAYERS;
use super::{ExpertGroups, Scores};
use crate::error::Result;

/// The experts that a layer has in place of a feed-forward part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Experts {
    /// Experts of a layer.
    pub n_experts: usize,
    /// Experts that each token takes.
    pub n_used: usize,
    /// Width of an expert's feed-forward part.
    pub ffn_size: usize,
    /// An expert that every token takes besides, if there is one.
    pub shared: Option<SharedExpert>,
    /// What the scores of experts are.
    pub scores: Scores,
    /// Whether router and experts have biases.
    pub has_bias: bool,
    /// Whether a bias is added to the scores that experts are chosen by.
    pub has_selection_bias: bool,
    /// Whether the weights of a token's experts are divided by their sum.
    pub normalises: bool,
    /// What they are multiplied by.
    pub scale: f32,
    /// Whether what experts read is multiplied by the weights, and not what they give.
    pub weighs_inputs: bool,
    /// Where a token's experts are of some groups only.
    pub groups: Option<ExpertGroups>,
    /// Whether they stand beside a plain feed-forward part, each with norms of its own, and the router norms what it reads and has a factor for
    /// each expert.
    pub beside_plain: bool,
    /// Which layers have experts, the others a plain feed-forward part; `None`: all.
    pub layers: Option<Vec<bool>>,
    /// What their tensors are called.
    #[serde(skip)]
    pub names: &'static ExpertNames,
}

/// An expert that every token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SharedExpert {
    /// Width of its feed-forward part.
    pub ffn_size: usize,
    /// Whether it is multiplied by a sigmoid of its own.
    pub is_gated: bool,
}

/// What the tensors of experts are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The router in the feed-forward part of a layer.
    pub router: &'static str,
    /// The selection bias there.
    pub selection_bias: &'static str,
    /// The experts there.
    pub experts: &'static str,
    /// Gate, up and down projection of one expert, where each has tensors of its own.
    pub each: [&'static str; 3],
    /// The shared expert there, and what gates it, if anything does.
    pub shared: [&'static str; 2],
    /// What tensors of a layer were called before, beside what they are called now: ends of their modules.
    pub former: &'static [(&'static str, &'static str)],
}

/// Those of Qwen's, and of most.
pub(super) const QWEN_EXPERTS: ExpertNames = ExpertNames {
    router: "gate",
    selection_bias: "gate.e_score_correction_bias",
    experts: "experts",
    each: ["gate_proj", "up_proj", "down_proj"],
    shared: ["shared_expert", "shared_expert_gate"],
    former: &[],
};

/// Those of DeepSeek's, and of what is built like them.
pub(super) const DEEPSEEK_EXPERTS: ExpertNames = ExpertNames { shared: ["shared_experts", ""], former: &[GGUF_BIAS], ..QWEN_EXPERTS };

/// The selection bias of GGUF files, whose names end with a word of their own.
pub(super) const GGUF_BIAS: (&str, &str) = (".e_score_correction.bias", ".e_score_correction_bias");

/// The stacked matrices in [`ExpertNames::experts`]: gate and up projection are parts of one, as transformers has them.
pub(super) const STACKED: [&str; 3] = ["gate_up_proj:gate", "gate_up_proj:up", "down_proj"];

impl Experts {
    /// As many experts as a config says, each of whose layers has them, and nothing else.
    pub(super) fn plain(n_experts: usize, n_used: usize, ffn_size: usize) -> Experts {
        Experts {
            n_experts,
            n_used,
            ffn_size,
            shared: None,
            scores: Scores::Softmax,
            has_bias: false,
            has_selection_bias: false,
            normalises: true,
            scale: 1.0,
            weighs_inputs: false,
            groups: None,
            beside_plain: false,
            layers: None,
            names: &QWEN_EXPERTS,
        }
    }

    /// What the configs of most say; `n_used` where one leaves it out.
    pub(super) fn of_json(fields: &Fields<'_>, n_used: usize) -> Result<Experts> {
        let n_experts = match (fields.unsigned("num_experts")?, fields.unsigned("num_local_experts")?) {
            (Some(n), _) | (None, Some(n)) => n,
            (None, None) => fields.required("num_experts")?,
        };
        let ffn_size = match fields.unsigned("moe_intermediate_size")? {
            Some(size) => size,
            None => fields.required("intermediate_size")?,
        };
        Ok(Experts::plain(n_experts, fields.unsigned("num_experts_per_tok")?.unwrap_or(n_used), ffn_size))
    }

    /// The same with one more that every token takes, times a sigmoid of its own, as configs of Qwen's mixtures say; `ffn_size` where one
    /// leaves it out.
    pub(super) fn with_gated_of_json(self, fields: &Fields<'_>, ffn_size: usize) -> Result<Experts> {
        let ffn_size = fields.unsigned("shared_expert_intermediate_size")?.unwrap_or(ffn_size);
        Ok(Experts { shared: Some(SharedExpert { ffn_size, is_gated: true }), ..self })
    }

    /// As [`Experts::with_gated_of_json`], of files.
    pub(super) fn with_gated_of_gguf(self, keys: &Keys<'_>) -> Result<Experts> {
        let ffn_size = keys.required("expert_shared_feed_forward_length")?;
        Ok(Experts { shared: Some(SharedExpert { ffn_size, is_gated: true }), ..self })
    }

    /// What the metadata of most say.
    pub(super) fn of_gguf(keys: &Keys<'_>) -> Result<Experts> {
        let ffn_size = match keys.unsigned("expert_feed_forward_length")? {
            Some(size) => size,
            None => keys.required("feed_forward_length")?,
        };
        let experts = Experts::plain(keys.required("expert_count")?, keys.required("expert_used_count")?, ffn_size);
        // Converters write 0, or nothing, where there is no factor.
        let scale = keys.float("expert_weights_scale")?.filter(|scale| *scale != 0.0).unwrap_or(1.0);
        Ok(Experts { normalises: keys.bool("expert_weights_norm")?.unwrap_or(experts.normalises), scale: scale as f32, ..experts })
    }

    /// The same experts in some of `n_layers` layers. Sizes are checked later: of more layers than any model may have, those are enough.
    pub(super) fn in_layers(self, n_layers: usize, has_experts: impl Fn(usize) -> bool) -> Experts {
        let layers: Vec<bool> = (0..n_layers.min(MAX_LAYERS)).map(has_experts).collect();
        Experts { layers: layers.contains(&false).then_some(layers), ..self }
    }

    /// Whether layer `layer` has them.
    pub fn are_in(&self, layer: usize) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.get(layer).copied().unwrap_or(false))
    }

    /// Rows and columns of one expert's matrix in each of the three stacked ones, where the residual stream is `hidden_size` wide.
    pub(super) fn shapes(&self, hidden_size: usize) -> [[usize; 2]; 3] {
        [[self.ffn_size, hidden_size], [self.ffn_size, hidden_size], [hidden_size, self.ffn_size]]
    }
}
