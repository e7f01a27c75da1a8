//! GGUF tensor names as Hugging Face checkpoints write them. Names that are not listed stay as they are.

use super::families::Family;

/// `blk.3.attn_q.weight` becomes `model.layers.3.self_attn.q_proj.weight`, with the names that `family` has.
pub(crate) fn translate(name: &str, family: &Family) -> String {
    let Some((stem, kind)) = name.rsplit_once('.') else {
        return name.to_owned();
    };
    let names = &family.names;
    let outer = match stem {
        "token_embd" => Some(names.embedding),
        "position_embd" => names.positions,
        "output_norm" => Some(names.norm),
        "output" => Some(names.head),
        _ => None,
    };
    let of_family = |part: &str| family.gguf_names.iter().find(|(gguf, _)| *gguf == part).map(|(_, name)| *name);
    if let Some(outer) = outer.or_else(|| of_family(stem)) {
        return format!("{outer}.{kind}");
    }
    // Some families have other names for a whole tensor of a layer.
    let whole = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    if let Some((layer, renamed)) = whole.and_then(|(layer, rest)| Some((layer, of_family(rest)?))) {
        return format!("{}.{layer}.{renamed}", names.layers);
    }
    let in_layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match in_layer.and_then(|(layer, part)| Some((layer, of_family(part).or_else(|| layer_part(part))?))) {
        Some((layer, part)) => format!("{}.{layer}.{part}.{kind}", names.layers),
        None => name.to_owned(),
    }
}

/// The opposite: what GGUF files call the tensor that Hugging Face checkpoints of `family` call `name`; `None` where they have no name
/// for it.
pub(super) fn gguf_name(name: &str, family: &Family) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let names = &family.names;
    let outer = [
        (Some(names.embedding), "token_embd"),
        (names.positions, "position_embd"),
        (Some(names.norm), "output_norm"),
        (Some(names.head), "output"),
    ];
    let outer = outer.into_iter().find(|(module_of, _)| *module_of == Some(module)).map(|(_, gguf)| gguf);
    let of_family = |part: &str| family.gguf_names.iter().find(|(_, name)| *name == part).map(|(gguf, _)| *gguf);
    let common = |part: &str| LAYER_PARTS.iter().find(|(_, name)| *name == part).map(|(gguf, _)| *gguf);
    let in_layer = || {
        let (layer, part) = module.strip_prefix(names.layers)?.strip_prefix('.')?.split_once('.')?;
        Some(format!("blk.{layer}.{}", of_family(part).or_else(|| common(part))?))
    };
    let stem = of_family(module).or(outer).map(str::to_owned).or_else(in_layer)?;
    Some(format!("{stem}.{kind}")).filter(|gguf| translate(gguf, family) == name)
}

fn layer_part(part: &str) -> Option<&str> {
    LAYER_PARTS.iter().find(|(gguf, _)| *gguf == part).map(|(_, name)| *name)
}

/// What most families call the parts of a layer.
const LAYER_PARTS: [(&str, &str); 20] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
    ("ffn_gate_up_exps", "mlp.experts.gate_up_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

#[cfg(test)]
mod tests {
    use super::super::families::by_name;
    use super::{gguf_name, translate};

    #[test]
    fn names_become_those_of_hugging_face() {
        let of = |family: &str, name: &str| translate(name, by_name(family).unwrap());
        for (gguf, hugging_face) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.11.attn_output.bias", "model.layers.11.self_attn.o_proj.bias"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("position_embd.weight", "position_embd.weight"),
            ("blk.0.ssm_a", "blk.0.ssm_a"),
            ("blk", "blk"),
        ] {
            assert_eq!(of("llama", gguf), hugging_face);
        }
        assert_eq!(of("phi3", "blk.2.ffn_up.weight"), "model.layers.2.mlp.gate_up_proj.weight");
        assert_eq!(of("phi3", "blk.2.ffn_down.weight"), "model.layers.2.mlp.down_proj.weight");
        assert_eq!(of("qwen3_5_text", "blk.2.ssm_a"), "model.layers.2.linear_attn.A_log");
        assert_eq!(of("qwen3_5_text", "blk.2.ssm_dt.bias"), "model.layers.2.linear_attn.dt_bias");
        assert_eq!(of("bert", "token_types.weight"), "bert.embeddings.token_type_embeddings.weight");
        assert_eq!(of("bert", "blk.2.ffn_down.bias"), "bert.encoder.layer.2.output.dense.bias");
        assert_eq!(of("gpt2", "position_embd.weight"), "transformer.wpe.weight");
        assert_eq!(of("gpt2", "blk.2.ffn_down.bias"), "transformer.h.2.mlp.c_proj.bias");
    }

    #[test]
    fn names_go_back_to_those_of_gguf() {
        let of = |family: &str, name: &str| gguf_name(name, by_name(family).unwrap());
        for (family, gguf) in [
            ("llama", "token_embd.weight"),
            ("llama", "output.weight"),
            ("llama", "blk.11.attn_output.bias"),
            ("gemma2", "blk.0.ffn_norm.weight"),
            ("gemma2", "blk.0.post_attention_norm.weight"),
            ("phi3", "blk.2.ffn_up.weight"),
            ("bert", "token_types.weight"),
            ("bert", "blk.2.layer_output_norm.bias"),
            ("gpt2", "position_embd.weight"),
        ] {
            assert_eq!(of(family, &translate(gguf, by_name(family).unwrap())).as_deref(), Some(gguf), "{family}");
        }
        assert_eq!(of("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"), None);
        // A name that would mean another tensor when it is read again.
        assert_eq!(of("gemma2", "model.layers.0.mlp.experts.weight"), None);
    }
}
