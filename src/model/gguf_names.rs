//! GGUF tensor names as Hugging Face checkpoints write them. Names that are not listed stay as they are.

/// `blk.3.attn_q.weight` becomes `model.layers.3.self_attn.q_proj.weight`. `own`: parts of a layer that a family calls otherwise.
pub(super) fn translate(name: &str, own: &[(&str, &str)]) -> String {
    let Some((stem, kind)) = name.rsplit_once('.') else {
        return name.to_owned();
    };
    let outer = match stem {
        "token_embd" => Some("model.embed_tokens"),
        "output_norm" => Some("model.norm"),
        "output" => Some("lm_head"),
        _ => None,
    };
    if let Some(outer) = outer {
        return format!("{outer}.{kind}");
    }
    let in_layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let of_family = |part: &str| own.iter().find(|(gguf, _)| *gguf == part).map(|(_, name)| *name);
    match in_layer.and_then(|(layer, part)| Some((layer, of_family(part).or_else(|| layer_part(part))?))) {
        Some((layer, part)) => format!("model.layers.{layer}.{part}.{kind}"),
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
    use super::translate;

    #[test]
    fn names_become_those_of_hugging_face() {
        for (gguf, hugging_face) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.11.attn_output.bias", "model.layers.11.self_attn.o_proj.bias"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("blk.0.ssm_a", "blk.0.ssm_a"),
            ("blk", "blk"),
        ] {
            assert_eq!(translate(gguf, &[]), hugging_face);
        }
        let own = [("ffn_up", "mlp.gate_up_proj")];
        assert_eq!(translate("blk.2.ffn_up.weight", &own), "model.layers.2.mlp.gate_up_proj.weight");
        assert_eq!(translate("blk.2.ffn_down.weight", &own), "model.layers.2.mlp.down_proj.weight");
    }
}
