//! Which files of a repository make up the model asked for. Knows names only: a file's name says which quantisation it has, and
//! whether that can be read, [`DType`] says.

use std::path::{Path, PathBuf};

use super::model_ref::{ModelRef, is_safe_file_name};
use super::quantisation::{dtypes_by_preference, quantisation_of};
use crate::error::{Error, Result};

/// The small files that belong to a safetensors model.
const COMPANIONS: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tiktoken.model",
    "modules.json",
    "config_sentence_transformers.json",
];

/// The index of a model in several shards.
const INDEX: &str = "model.safetensors.index.json";

/// The files of one model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Their names in the repository, small ones first.
    pub files: Vec<String>,
    /// What to open, relative to the snapshot: a `.gguf`, or the empty name for the folder itself.
    pub open: String,
}

impl Chosen {
    /// The file `name`, with the other parts among `names` where it is one of several.
    fn gguf(name: &str, names: &[String]) -> Chosen {
        let is_part = |other: &&String| other.ends_with(".gguf") && total_of(other) == total_of(name) && stem_of(other) == stem_of(name);
        let mut files: Vec<String> = match total_of(name) {
            Some(_) => names.iter().filter(is_part).cloned().collect(),
            None => vec![name.to_owned()],
        };
        files.sort();
        let open = files.first().map_or(name, String::as_str).to_owned();
        Chosen { files, open }
    }

    /// What to open, in the folder `snapshot`.
    pub fn path_in(&self, snapshot: &Path) -> PathBuf {
        if self.open.is_empty() { snapshot.to_owned() } else { snapshot.join(&self.open) }
    }

    /// Whether all shards that the names promise (`…-00001-of-00003…`) are among the files. Of a cache false while a fetch is under way.
    pub fn is_complete(&self) -> bool {
        let shards: Vec<(u32, u32)> = self.files.iter().filter_map(|name| shard_of(name)).collect();
        shards.iter().all(|&(_, total)| (1..=total).all(|index| shards.contains(&(index, total))))
            && (self.files.iter().all(|name| name != INDEX) || !shards.is_empty())
    }
}

/// Chooses among the names in a repository: the file asked for; else the `.gguf` of the quantisation asked for; else
/// the first runnable `.gguf`; else the safetensors at the top with what belongs to them.
pub(super) fn choose_files(model: &ModelRef, names: &[String]) -> Result<Chosen> {
    let chosen = match &model.wanted {
        Some(wanted) => choose_wanted(model, wanted, names)?,
        None => choose_default(model, names)?,
    };
    match chosen.files.iter().find(|name| !is_safe_file_name(name)) {
        Some(name) => Err(refusal(model, &format!("the repository has a file {name:?}, which leads out of the cache; do not trust it"))),
        None => Ok(chosen),
    }
}

/// Whether none of `names` can be what `model` means, as in a cache that does not hold it (yet).
pub(super) fn holds_no_candidate(model: &ModelRef, names: &[String]) -> bool {
    match &model.wanted {
        Some(wanted) => !names.contains(wanted) && names_with_tag(ggufs(names), wanted).is_empty(),
        None => safetensors(names).is_none() && ggufs(names).is_empty(),
    }
}

/// A doubt about the chosen files, in words: the name gives a quantisation that cannot be read. A file that was asked for by name may be misnamed.
pub(super) fn doubt(chosen: &Chosen) -> Option<String> {
    let quantisation = quantisation_of(&chosen.open).filter(|quantisation| quantisation.dtype().is_none())?;
    Some(format!("{} is called {quantisation}, which tierflow does not read", chosen.open))
}

fn choose_wanted(model: &ModelRef, wanted: &str, names: &[String]) -> Result<Chosen> {
    if let Some(name) = names.iter().find(|name| *name == wanted) {
        return match name.ends_with(".gguf") {
            true => Ok(Chosen::gguf(name, names)),
            false => Err(refusal(model, &format!("{name} is no .gguf; name one, or the repository alone for its safetensors"))),
        };
    }
    match names_with_tag(ggufs(names), wanted).as_slice() {
        [name] => readable(model, name, names),
        [] => Err(refusal(model, &format!("the repository has no {wanted}; {}", listing(names)))),
        several => Err(refusal(model, &format!("{wanted} may be {}; name the file", several.join(" or ")))),
    }
}

fn choose_default(model: &ModelRef, names: &[String]) -> Result<Chosen> {
    let ggufs = ggufs(names);
    for dtype in dtypes_by_preference() {
        let rank = |name: &&str| quantisation_of(name).filter(|it| it.dtype() == Some(dtype)).map(|it| it.rank());
        let best = ggufs.iter().filter_map(rank).min();
        match ggufs.iter().filter(|name| best.is_some() && rank(name) == best).copied().collect::<Vec<_>>().as_slice() {
            [] => {}
            [name] => return Ok(Chosen::gguf(name, names)),
            several => return Err(refusal(model, &format!("it may be {}; name the file", several.join(" or ")))),
        }
    }
    if let Some(chosen) = safetensors(names) {
        return Ok(chosen);
    }
    match ggufs.as_slice() {
        [name] => readable(model, name, names),
        _ => Err(refusal(model, &format!("none of its files runs here: {}", listing(names)))),
    }
}

/// The file `name`, unless it is called by a quantisation that cannot be read. A name without one says nothing against it; the header
/// will tell.
fn readable(model: &ModelRef, name: &str, names: &[String]) -> Result<Chosen> {
    match quantisation_of(name) {
        Some(quantisation) if quantisation.dtype().is_none() => {
            Err(refusal(model, &format!("{name} is quantised as {quantisation}, which tierflow does not read; {}", listing(names))))
        }
        _ => Ok(Chosen::gguf(name, names)),
    }
}

/// The models in the GGUF format, a split one by its first part; no vision projectors.
fn ggufs(names: &[String]) -> Vec<&str> {
    let is_model = |name: &&str| name.ends_with(".gguf") && !name.contains("mmproj") && shard_of(name).is_none_or(|(index, _)| index == 1);
    names.iter().map(String::as_str).filter(is_model).collect()
}

/// Those whose name ends in the quantisation `tag`, in any case: `model-q4_0.gguf`, `Model.Q4_0.gguf`, `Q4_0/model.gguf`.
fn names_with_tag<'a>(mut names: Vec<&'a str>, tag: &str) -> Vec<&'a str> {
    let tag = tag.to_ascii_lowercase();
    names.retain(|name| {
        let stem = stem_of(name).to_ascii_lowercase();
        let ends = stem.strip_suffix(tag.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_', '/']));
        ends || stem.split('/').rev().skip(1).any(|folder| folder == tag)
    });
    names
}

/// The name of a `.gguf` without that ending, and without the number of a part.
pub(super) fn stem_of(name: &str) -> &str {
    let stem = name.strip_suffix(".gguf").unwrap_or(name);
    match (shard_of(name), stem.rsplit_once("-of-").and_then(|(rest, _)| rest.rsplit_once('-'))) {
        (Some(_), Some((whole, _))) => whole,
        _ => stem,
    }
}

fn safetensors(names: &[String]) -> Option<Chosen> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let weights: Vec<&String> = if has(INDEX) {
        let is_part = |name: &&String| name.as_str() == INDEX || (name.starts_with("model-") && is_top_safetensors(name));
        names.iter().filter(is_part).collect()
    } else if has("model.safetensors") {
        names.iter().filter(|name| *name == "model.safetensors").collect()
    } else {
        let all: Vec<&String> = names.iter().filter(|name| is_top_safetensors(name)).collect();
        if all.len() == 1 { all } else { Vec::new() }
    };
    if weights.is_empty() || !has("config.json") {
        return None;
    }
    let companions = COMPANIONS.iter().filter(|name| has(name)).map(|name| (*name).to_owned());
    let of_modules = names.iter().filter(|name| is_of_module(name)).cloned();
    Some(Chosen { files: companions.chain(of_modules).chain(weights.into_iter().cloned()).collect(), open: String::new() })
}

/// Whether the file belongs to a module of sentence-transformers, whose folders are numbered: `1_Pooling/config.json`.
fn is_of_module(name: &str) -> bool {
    let Some((folder, "config.json" | "model.safetensors")) = name.split_once('/') else { return false };
    folder.split_once('_').is_some_and(|(number, _)| !number.is_empty() && number.chars().all(|digit| digit.is_ascii_digit()))
}

fn is_top_safetensors(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains('/')
}

/// `(index, total)` of a name such as `model-00001-of-00003.safetensors`.
fn shard_of(name: &str) -> Option<(u32, u32)> {
    let (stem, _) = name.rsplit_once('.')?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (_, index) = rest.rsplit_once('-')?;
    let total: u32 = total.parse().ok()?;
    // No model has more shards; a larger number is a name that means to waste time.
    Some((index.parse().ok()?, total)).filter(|_| total <= 10_000)
}

/// Of how many shards `name` is one.
fn total_of(name: &str) -> Option<u32> {
    shard_of(name).map(|(_, total)| total)
}

fn listing(names: &[String]) -> String {
    let weights: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| name.ends_with(".gguf") || name.ends_with(".safetensors")).collect();
    if weights.is_empty() {
        return "it has neither .gguf nor .safetensors files".into();
    }
    let shown = weights.iter().take(30).copied().collect::<Vec<_>>().join(", ");
    let more = if weights.len() > 30 { format!(" and {} more", weights.len() - 30) } else { String::new() };
    let runnable: Vec<String> = dtypes_by_preference().iter().map(ToString::to_string).collect();
    format!("it has {shown}{more}; tierflow runs {} and safetensors", runnable.join(", "))
}

/// An error about `model`.
pub(super) fn refusal(model: &ModelRef, reason: &str) -> Error {
    Error::InvalidArgument { option: model.to_string().into(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::super::model_ref::parse_model_ref;
    use super::*;

    fn choose(model: &str, names: &[&str]) -> Result<Chosen> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        choose_files(&parse_model_ref(model).unwrap(), &names)
    }

    #[test]
    fn a_quantisation_names_one_file() {
        let names = ["m-Q4_K_M.gguf", "m-q4_0.gguf", "m.Q8_0.gguf", "m-BF16.gguf", "mmproj-F16.gguf"];
        assert_eq!(choose("o/n:Q4_0", &names).unwrap().open, "m-q4_0.gguf");
        assert_eq!(choose("o/n:m-Q4_K_M.gguf", &names).unwrap().open, "m-Q4_K_M.gguf");
        assert_eq!(choose("o/n", &names).unwrap().open, "m.Q8_0.gguf");
        let error = choose("o/n:Q5_0", &names).unwrap_err().to_string();
        assert!(error.contains("m-q4_0.gguf"), "{error}");
        assert!(choose("o/n:F16", &names).is_err(), "BF16 is not F16 and a projector is no model");
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_name_unless_the_whole_name_was_asked_for() {
        for (model, names) in [("o/n:Q1_0", &["m-Q1_0.gguf", "m-Q8_0.gguf"][..]), ("o/n", &["m.q1_0.gguf"]), ("o/n", &["Q1_0/m.gguf"])] {
            let error = choose(model, names).unwrap_err().to_string();
            assert!(error.contains(&format!("{} is quantised as Q1_0", names[0])) && error.contains("Q8_0"), "{error}");
        }
        let asked_for = choose("o/n:m-Q1_0.gguf", &["m-Q1_0.gguf"]).unwrap();
        assert!(doubt(&asked_for).unwrap().contains("Q1_0"));
        assert_eq!(doubt(&choose("o/n", &["m-Q8_0.gguf"]).unwrap()), None);
        assert_eq!(choose("o/n", &["model.gguf"]).unwrap().open, "model.gguf");
    }

    #[test]
    fn a_split_file_is_all_of_its_parts() {
        let names = ["Q8_0/s-Q8_0-00001-of-00002.gguf", "Q8_0/s-Q8_0-00002-of-00002.gguf"];
        let shuffled = [names[1], "s-Q4_1-00001-of-00002.gguf", names[0]];
        for model in ["o/n:Q8_0", "o/n", "o/n:Q8_0/s-Q8_0-00002-of-00002.gguf"] {
            let chosen = choose(model, &shuffled).unwrap();
            assert_eq!(chosen, Chosen { files: names.map(str::to_owned).to_vec(), open: names[0].into() }, "{model}");
            assert!(chosen.is_complete());
        }
        assert!(!choose("o/n:Q4_1", &shuffled).unwrap().is_complete());
        assert!(holds_no_candidate(&parse_model_ref("o/n:Q8_0").unwrap(), &[names[1].to_owned()]));
        let error = choose("o/n:Q1_0", &["m-Q1_0-00001-of-00002.gguf", "m-Q1_0-00002-of-00002.gguf"]).unwrap_err().to_string();
        assert!(error.contains("is quantised as Q1_0"), "{error}");
    }

    #[test]
    fn two_files_of_one_quantisation_are_ambiguous() {
        let error = choose("o/n:q8_0", &["a-Q8_0.gguf", "b-Q8_0.gguf"]).unwrap_err().to_string();
        assert!(error.contains("a-Q8_0.gguf or b-Q8_0.gguf"), "{error}");
    }

    #[test]
    fn safetensors_come_with_what_belongs_to_them() {
        let names = ["README.md", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX];
        let chosen = choose("o/n", &names).unwrap();
        assert_eq!(chosen.files, ["config.json", names[2], names[3], INDEX]);
        assert_eq!(chosen.open, "");
        assert!(chosen.is_complete());
        let partial = choose("o/n", &["config.json", names[3], INDEX]).unwrap();
        assert!(!partial.is_complete());
        let chosen = choose("o/n", &["onnx/x.safetensors", "tokenizer.json", "config.json", "model.safetensors"]).unwrap();
        assert_eq!(chosen.files, ["config.json", "tokenizer.json", "model.safetensors"]);
        let of_modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"];
        let chosen = choose("o/n", &[&["a_b/config.json", "config.json", "modules.json", "model.safetensors"][..], &of_modules].concat());
        assert_eq!(chosen.unwrap().files, [&["config.json", "modules.json"][..], &of_modules, &["model.safetensors"]].concat());
    }

    #[test]
    fn a_repository_without_a_model_says_what_it_has() {
        let error = choose("o/n", &["a-Q1_0.gguf", "b-Q4_0_4_4.gguf"]).unwrap_err().to_string();
        assert!(error.contains("a-Q1_0.gguf, b-Q4_0_4_4.gguf") && error.contains("Q8_0"), "{error}");
        assert!(choose("o/n", &["README.md"]).unwrap_err().to_string().contains("neither"));
    }

    #[test]
    fn names_that_lead_out_of_the_cache_are_refused() {
        let error = choose("o/n", &["../../x-Q8_0.gguf"]).unwrap_err().to_string();
        assert!(error.contains("leads out"), "{error}");
    }
}
