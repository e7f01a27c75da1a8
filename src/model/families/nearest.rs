//! Which family a model of an unknown one resembles, by the names of its tensors.

use std::collections::BTreeSet;

use super::{FAMILIES, Family};
use crate::model::gguf_names::translate;
use crate::units::listed;

/// Modules that a sentence names of those that differ.
const N_NAMED: usize = 4;

/// A sentence about the known family whose modules are most like those of the tensors `names`, and about how they differ: all that can be
/// said from names. `None` where none is like them at all.
pub(in crate::model) fn nearest<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    let candidates = FAMILIES.iter().map(|family| {
        let (known, found) = (known(family), found(family, names.clone()));
        let n_shared = known.intersection(&found).count();
        (family, n_shared as f64 / known.union(&found).count().max(1) as f64, known, found)
    });
    // Of equals, the first is the simplest.
    let nearest = candidates.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let (family, likeness, known, found) = nearest;
    if likeness == 0.0 {
        return None;
    }
    let differences = [("it lacks", &known - &found), ("it has besides", &found - &known)];
    let told: Vec<String> =
        differences.iter().filter(|(_, names)| !names.is_empty()).map(|(what, names)| format!("{what} {}", some_of(names))).collect();
    Some(match told.as_slice() {
        [] => format!("its tensors are named exactly as those of `{}`", family.name),
        told => format!("the nearest of these by its tensors is `{}`: {}", family.name, told.join("; ")),
    })
}

/// What a family has tensors in, a layer's number as N.
fn known(family: &Family) -> BTreeSet<String> {
    let names = &family.names;
    let of_layer = family.layer_modules.iter().copied().flatten();
    let ends = ["Linear", "Conv1D", "Conv1d", "LayerNorm", "LayerNorm1P", "RMSNorm", "Router", "Experts"];
    let holds_tensors = |class: &str| ends.iter().any(|end| class.ends_with(end));
    let of_layer = of_layer.filter(|(_, class)| holds_tensors(class)).map(|(member, _)| format!("{}.N{member}", names.layers));
    [names.embedding, names.norm].into_iter().chain(names.positions).map(str::to_owned).chain(of_layer).collect()
}

/// The same of what is stored, as the family would name it; without the head, which may be the embedding.
fn found<'a>(family: &Family, names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let modules = names.filter_map(|name| {
        let name = translate(name, family);
        // Experts may have a tensor each, or one for all.
        let module = match name.find(".experts.") {
            Some(at) => &name[..at + ".experts".len()],
            None => name.rsplit_once('.').map_or(name.as_str(), |(module, _)| module),
        };
        let numbered = module.split('.').map(|part| if part.parse::<u32>().is_ok() { "N" } else { part });
        Some(numbered.collect::<Vec<_>>().join(".")).filter(|module| module != family.names.head)
    });
    modules.collect()
}

fn some_of(names: &BTreeSet<String>) -> String {
    let mut some: Vec<String> = names.iter().take(N_NAMED).map(|name| format!("`{name}`")).collect();
    if names.len() > N_NAMED {
        some.push(format!("{} more", names.len() - N_NAMED));
    }
    listed(&some.iter().map(String::as_str).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_family_and_the_differences_are_named() {
        let llama = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let rest = ["post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        let mut names: Vec<String> =
            llama.iter().chain(&rest).flat_map(|part| (0..2).map(move |layer| format!("model.layers.{layer}.{part}.weight"))).collect();
        names.extend(["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].map(str::to_owned));
        let told = |names: &[String]| nearest(names.iter().map(String::as_str));
        assert_eq!(told(&names).unwrap(), "its tensors are named exactly as those of `llama`");
        names.push("model.layers.0.mlp.router.weight".into());
        let reason = told(&names).unwrap();
        assert_eq!(reason, "the nearest of these by its tensors is `llama`: it has besides `model.layers.N.mlp.router`");
        let parts = ["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"];
        let mut gguf: Vec<String> = parts.map(|part| format!("blk.0.{part}.weight")).into();
        gguf.push("position_embd.weight".into());
        assert!(told(&gguf).unwrap().contains("`gpt2`: it lacks `transformer.ln_f` and `transformer.wte`"));
        assert_eq!(told(&["encoder.weight".into()]), None);
    }
}
