//! DeepSeek V2: attention of V3, and experts that are chosen by softmax, of some groups or of all. Defaults are those of transformers'
//! `DeepseekV2Config`.

use super::decoder::{self, LLAMA};
use super::deepseek_v3::{self, GGUF_NAMES, LATENT_ATTENTION};
use super::glm4_moe::{self, SHARED_EXPERTS};
use super::{EXPERTS_AND_NORMS, Family, LLAMA_NAMES};
use crate::error::{Error, Result};
use crate::model::config_json::Fields;
use crate::model::{ExpertGroups, Experts, ModelConfig, RopePairing, Scores, Variant};

pub(super) static FAMILY: Family = Family {
    name: "deepseek_v2",
    models: "DeepSeek V2",
    classes: &["DeepseekV2ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["deepseek2"],
    gguf_names: GGUF_NAMES,
    from_json,
    from_gguf: deepseek_v3::from_gguf,
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "DeepseekV2",
    layer_modules: &[LATENT_ATTENTION, EXPERTS_AND_NORMS, SHARED_EXPERTS],
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    for switch in ["norm_topk_prob", "mlp_bias"] {
        fields.refuse_switch(switch)?;
    }
    let config = deepseek_v3::latent_decoder(fields, &FAMILY, RopePairing::Interleaved)?;
    let experts = glm4_moe::of_deepseek_json(fields, config.n_layers, 0)?;
    let groups = match fields.string("topk_method")?.unwrap_or("greedy") {
        "greedy" => None,
        // A group is as good as its best expert.
        "group_limited_greedy" => experts.groups.map(|groups| ExpertGroups { n_best: 1, ..groups }),
        other => {
            let reason = format!("topk_method `{other}` is not supported; supported are greedy and group_limited_greedy");
            return Err(Error::UnsupportedModel { path: fields.path.to_owned(), reason });
        }
    };
    let experts = Experts { scores: Scores::Softmax, has_selection_bias: false, normalises: false, groups, ..experts };
    Ok(ModelConfig { variant: Variant { experts: Some(experts), ..config.variant }, ..config })
}
