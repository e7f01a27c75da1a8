//! ERNIE 4.5, the dense models: Llama whose heads turn by neighbours. Defaults are those of transformers' `Ernie4_5Config`.

use super::decoder::{self, LLAMA};
use super::{DECODER_LAYER, Family, LLAMA_NAMES};
use crate::error::Result;
use crate::model::config_json::{Defaults, Fields};
use crate::model::{ModelConfig, RopeConfig, RopePairing};

pub(super) static FAMILY: Family = Family {
    name: "ernie4_5",
    models: "ERNIE 4.5 (dense)",
    classes: &["Ernie4_5ForCausalLM"],
    names: LLAMA_NAMES,
    gguf: &["ernie4_5"],
    gguf_names: &[],
    from_json,
    from_gguf: |keys| keys.decoder(&FAMILY, RopePairing::Interleaved),
    stored: |_| Vec::new(),
    model: |config, tensor| decoder::model(config, tensor, &LLAMA),
    class_prefix: "Ernie4_5",
    layer_modules: DECODER_LAYER,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = Defaults {
        n_kv_heads: Some(2),
        head_size: Some(128),
        context_length: 131_072,
        epsilon: 1e-5,
        rope_theta: 500_000.0,
        tied: true,
        ..Defaults::default()
    };
    let config = fields.decoder(&FAMILY, &defaults)?;
    let [attention_bias, attention_output_bias, ffn_bias] = [fields.bool("use_bias")?.unwrap_or(false); 3];
    let rope = RopeConfig { pairs: RopePairing::Interleaved, ..config.rope };
    Ok(ModelConfig { attention_bias, attention_output_bias, ffn_bias, rope, ..config })
}
