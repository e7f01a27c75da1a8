//! `--override-tensor`: llama.cpp's way to say which experts the CPU computes, read as layers.

use std::collections::BTreeSet;
use std::str::FromStr;

use regex::Regex;

/// No model has more layers.
const MAX_LAYERS: usize = 1024;
/// The matrices of a layer's experts in GGUF files: three, or two where gate and up are one.
const EXPERTS: [&[&str]; 2] = [&["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"], &["ffn_gate_up_exps", "ffn_down_exps"]];
/// What is computed together with a layer's experts.
const BESIDE_EXPERTS: [&str; 8] =
    ["ffn_norm", "ffn_gate_inp", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"];
/// What is computed with attention.
const ATTENTION: [&str; 5] = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"];
/// Parts of no layer that could be meant; rows of the embedding are gathered by the CPU in any case.
const GLOBAL: [&str; 2] = ["output_norm", "output"];

/// `REGEX=DEVICE,REGEX=DEVICE…`, which gives tensors by their names in GGUF files to devices; the first expression that matches counts.
#[derive(Debug, Clone)]
pub struct OverrideTensors(Vec<(Regex, Where)>);

/// Where tensors go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Cpu,
    /// Where everything else is.
    Gpu,
}

impl FromStr for OverrideTensors {
    type Err = String;

    fn from_str(text: &str) -> Result<OverrideTensors, String> {
        let rule = |part: &str| {
            let (pattern, device) = part.rsplit_once('=').ok_or_else(|| format!("`{part}` is no REGEX=DEVICE, as in exps=CPU"))?;
            let device = match device.to_ascii_lowercase() {
                cpu if cpu == "cpu" => Where::Cpu,
                gpu if ["gpu", "cuda", "vulkan", "metal", "rocm", "sycl"].iter().any(|name| gpu.starts_with(name)) => Where::Gpu,
                _ => return Err(format!("`{device}` is no device of it; write CPU, or GPU for what stays with everything else")),
            };
            let pattern = Regex::new(pattern).map_err(|error| format!("`{pattern}` is no regular expression: {error}"))?;
            Ok((pattern, device))
        };
        text.split(',').map(rule).collect::<Result<_, _>>().map(OverrideTensors)
    }
}

impl OverrideTensors {
    /// The layers whose experts the CPU computes.
    ///
    /// # Errors
    /// A text that names what cannot be placed so: experts in part, and what is no expert.
    pub fn layers(&self) -> Result<BTreeSet<usize>, String> {
        let refused = |name: String| Err(format!("gives {name} to the CPU; it places experts, and --device-map FILE.json other parts"));
        if let Some(name) = GLOBAL.iter().map(|name| format!("{name}.weight")).find(|name| self.is_on_cpu(name)) {
            return refused(name);
        }
        let mut layers = BTreeSet::new();
        for layer in 0..MAX_LAYERS {
            let of_layer = |name: &&str| format!("blk.{layer}.{name}.weight");
            let on_cpu = |name: &&str| self.is_on_cpu(&of_layer(name));
            if let Some(name) = ATTENTION.iter().find(|name| on_cpu(name)) {
                return refused(of_layer(name));
            }
            if EXPERTS.iter().any(|names| names.iter().all(on_cpu)) {
                layers.insert(layer);
            } else if let Some(name) = EXPERTS.iter().copied().flatten().chain(&BESIDE_EXPERTS).find(|name| on_cpu(name)) {
                return Err(format!("gives {} to the CPU without the other experts of its layer; write exps", of_layer(name)));
            }
        }
        match layers.is_empty() {
            true if self.0.iter().any(|(_, device)| *device == Where::Cpu) => {
                Err(r"names no experts, which are called blk.0.ffn_up_exps.weight and so on; exps=CPU means all, blk\.[0-9]\..*exps=CPU ten layers".into())
            }
            _ => Ok(layers),
        }
    }

    fn is_on_cpu(&self, name: &str) -> bool {
        self.0.iter().find(|(pattern, _)| pattern.is_match(name)).is_some_and(|(_, device)| *device == Where::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str) -> Result<BTreeSet<usize>, String> {
        text.parse::<OverrideTensors>()?.layers()
    }

    #[test]
    fn layers_are_those_whose_experts_match() {
        for (text, wanted) in [
            ("exps=CPU", (0..MAX_LAYERS).collect()),
            (r".ffn_.*_exps.=CPU", (0..MAX_LAYERS).collect()),
            (r"blk\.(1|3)\.ffn_.*_exps\.weight=cpu", vec![1, 3]),
            (r"blk\.[0-9]\..*exps=CPU", (0..10).collect()),
            (r"blk\.([2-9]|\d\d+)\.ffn.*exps=CUDA0,exps=CPU", vec![0, 1]),
            (r"blk\.7\.ffn_=CPU", vec![7]),
            ("exps=GPU", vec![]),
        ] {
            assert_eq!(layers(text).unwrap(), wanted.into_iter().collect(), "{text}");
        }
    }

    #[test]
    fn what_is_no_set_of_experts_is_refused_by_name() {
        for (text, words) in [
            ("exps", "no REGEX=DEVICE"),
            ("(=CPU", "no regular expression"),
            ("exps=TPU", "`TPU`"),
            (".*=CPU", "output_norm.weight"),
            ("attn=CPU", "blk.0.attn_norm.weight"),
            ("ffn_up_exps=CPU", "blk.0.ffn_up_exps.weight"),
            (r"ffn_up\.=CPU", "blk.0.ffn_up.weight"),
            ("experts=CPU", "names no experts"),
        ] {
            let refused = layers(text).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }
}
