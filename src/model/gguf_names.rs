//! GGUF tensor names as Hugging Face checkpoints write them. Names that are not listed stay as they are.

use super::families::Family;

/// `blk.3.attn_q.weight` becomes `model.layers.3.self_attn.q_proj.weight`, with the names that `family` has.
pub(super) fn translate(name: &str, family: &Family) -> String {
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
    let in_layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match in_layer.and_then(|(layer, part)| Some((layer, of_family(part).or_else(|| layer_part(part))?))) {
        Some((layer, part)) => format!("{}.{layer}.{part}.{kind}", names.layers),
        None => name.to_owned(),
    }
}

fn layer_part(part: &str) -> Option<&str> {
    Some(match part {
        "attn_norm" => "input_layernorm",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::families::by_name;
    use super::translate;

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
        assert_eq!(of("bert", "token_types.weight"), "bert.embeddings.token_type_embeddings.weight");
        assert_eq!(of("bert", "blk.2.ffn_down.bias"), "bert.encoder.layer.2.output.dense.bias");
        assert_eq!(of("gpt2", "position_embd.weight"), "transformer.wpe.weight");
        assert_eq!(of("gpt2", "blk.2.ffn_down.bias"), "transformer.h.2.mlp.c_proj.bias");
    }
}
