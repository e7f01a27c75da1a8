//! `adapter_config.json`: what of it says how an adapter is computed, and what nothing here can compute.

use regex::Regex;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::weights::parse_python_json;

/// Largest rank: that of a matrix as wide as any model.
const MAX_RANK: usize = 1 << 24;

/// How an adapter is scaled, and what it was made for.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The model that it was trained on, as its maker names it.
    pub base_model: Option<String>,
    /// Rank of the linears that no pattern names (`r`).
    pub rank: usize,
    /// Alpha of the linears that no pattern names: they are scaled by alpha over rank (`lora_alpha`).
    pub alpha: f64,
    /// Whether they are scaled by alpha over the root of the rank instead (`use_rslora`).
    pub uses_root: bool,
    /// Other ranks, by patterns of modules' names (`rank_pattern`).
    pub ranks: Vec<(String, usize)>,
    /// Other alphas, likewise (`alpha_pattern`).
    pub alphas: Vec<(String, f64)>,
    /// Which modules it adapts (`target_modules`).
    pub targets: Targets,
    /// The share of inputs that training leaves out (`lora_dropout`).
    pub dropout: f64,
    /// Modules that are replaced whole: those whose names end in one of these (`modules_to_save`).
    pub modules_to_save: Vec<String>,
}

/// Which modules an adapter adapts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Those whose names are these, or end in `.` and one of these.
    Listed(Vec<String>),
    /// Those whose whole name matches this expression; `all-linear` means all but the head.
    Pattern(String),
}

impl Settings {
    /// Those of an adapter with one rank and one alpha.
    pub fn new(rank: usize, alpha: f64, targets: Vec<String>) -> Settings {
        let targets = Targets::Listed(targets);
        let (ranks, alphas, modules_to_save) = (Vec::new(), Vec::new(), Vec::new());
        Settings { base_model: None, rank, alpha, uses_root: false, ranks, alphas, targets, dropout: 0.0, modules_to_save }
    }

    /// Reads the bytes of the file `path`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] that names the field; [`Error::UnsupportedModel`] of adapters that are more than LoRA.
    pub fn parse(path: &str, bytes: &[u8]) -> Result<Settings> {
        let invalid = |reason: String| Error::invalid_file(path, reason);
        let value = parse_python_json(bytes).map_err(|error| invalid(format!("is not valid JSON: {error}")))?;
        let Value::Object(fields) = value else { return Err(invalid("is not a JSON object".into())) };
        let fields = Fields { path, fields: &fields };
        fields.refuse_other_kinds()?;
        let ranks: Map<String, Value> = fields.get("rank_pattern")?.unwrap_or_default();
        let alphas: Map<String, Value> = fields.get("alpha_pattern")?.unwrap_or_default();
        let settings = Settings {
            base_model: fields.get("base_model_name_or_path")?,
            rank: fields.required("r")?,
            alpha: fields.required("lora_alpha")?,
            uses_root: fields.get("use_rslora")?.unwrap_or(false),
            ranks: fields.patterns("rank_pattern", &ranks)?,
            alphas: fields.patterns("alpha_pattern", &alphas)?,
            targets: fields.targets()?,
            dropout: fields.get("lora_dropout")?.unwrap_or(0.0),
            modules_to_save: fields.get("modules_to_save")?.unwrap_or_default(),
        };
        let ranks = settings.ranks.iter().map(|(_, rank)| *rank).chain([settings.rank]);
        if let Some(rank) = ranks.into_iter().find(|rank| *rank == 0 || *rank > MAX_RANK) {
            return Err(invalid(format!("a rank (`r`, `rank_pattern`) is {rank}, it must be from 1 to {MAX_RANK}")));
        }
        let alphas = settings.alphas.iter().map(|(_, alpha)| *alpha).chain([settings.alpha]);
        match alphas.into_iter().find(|alpha| !alpha.is_finite()) {
            Some(alpha) => Err(invalid(format!("an alpha (`lora_alpha`, `alpha_pattern`) is {alpha}, it must be a number"))),
            None => Ok(settings),
        }
    }

    /// The file's text, as PEFT reads it.
    pub fn to_json(&self) -> Value {
        let ranks: Map<String, Value> = self.ranks.iter().map(|(pattern, rank)| (pattern.clone(), json!(rank))).collect();
        let alphas: Map<String, Value> = self.alphas.iter().map(|(pattern, alpha)| (pattern.clone(), number(*alpha))).collect();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.uses_root,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "target_modules": match &self.targets {
                Targets::Listed(names) => json!(names),
                Targets::Pattern(pattern) => json!(pattern),
            },
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
            "use_dora": false,
        })
    }

    /// Whether the module is replaced whole.
    pub fn saves(&self, module: &str) -> bool {
        self.modules_to_save.iter().any(|end| module.ends_with(end.as_str()))
    }

    /// The rank of the linear `module`.
    ///
    /// # Errors
    /// A text that names a pattern that is none.
    pub fn rank_of(&self, module: &str) -> Result<usize, String> {
        of_patterns("rank_pattern", &self.ranks, module).map(|rank| rank.unwrap_or(self.rank))
    }

    /// What the product with the matrices of the linear `module` is multiplied by.
    ///
    /// # Errors
    /// As of [`Settings::rank_of`].
    pub fn scaling_of(&self, module: &str) -> Result<f32, String> {
        let alpha = of_patterns("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        let rank = self.rank_of(module)? as f64;
        Ok((alpha / if self.uses_root { rank.sqrt() } else { rank }) as f32)
    }
}

impl Targets {
    /// Whether they include `module`, of a model whose head is the module `head`.
    ///
    /// # Errors
    /// A text that says why a pattern is none.
    pub fn include(&self, module: &str, head: &str) -> Result<bool, String> {
        match self {
            Targets::Listed(names) => {
                Ok(names.iter().any(|name| module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))))
            }
            Targets::Pattern(pattern) if pattern == "all-linear" => Ok(module != head),
            Targets::Pattern(pattern) => compile("target_modules", pattern, "").map(|pattern| pattern.is_match(module)),
        }
    }
}

/// What the first pattern says that a module's name, or all of it behind a dot, matches.
fn of_patterns<T: Copy>(field: &str, patterns: &[(String, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if compile(field, pattern, r"(?:.*\.)?")?.is_match(module) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// An expression that a whole name matches, behind what `before` matches.
fn compile(field: &str, pattern: &str, before: &str) -> Result<Regex, String> {
    Regex::new(&format!("^{before}(?:{pattern})$"))
        .map_err(|_| format!("`{field}` has `{}`, which is no regular expression that is supported", pattern.escape_debug()))
}

/// A number as Python writes it where it is whole.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 2f64.powi(53) { json!(value as i64) } else { json!(value) }
}

/// The fields of the file.
struct Fields<'a> {
    path: &'a str,
    fields: &'a Map<String, Value>,
}

/// What makes an adapter more than LoRA where it is set, and what it then is.
const OTHER_KINDS: [(&str, &str); 11] = [
    ("use_dora", "DoRA, which norms the sums of weights"),
    ("trainable_token_indices", "rows of embeddings that are replaced"),
    ("target_parameters", "matrices that belong to no linear, as those of experts"),
    ("layer_replication", "layers that are there several times"),
    ("lora_bias", "biases of its own"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal matrices"),
    ("alora_invocation_tokens", "activation by tokens (aLoRA)"),
    ("arrow_config", "a choice between adapters by token (Arrow)"),
    ("kasa_config", "KaSA"),
    ("monteclora_config", "MonteCLoRA"),
];

/// What matrices may be initialised from so that the model's own weights change, too.
const CHANGING_WEIGHTS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl Fields<'_> {
    /// The field `name`; `None` where it is not there, or null.
    fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|error| Error::invalid_file(self.path, format!("`{name}`: {error}")))
    }

    fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.get(name)?.ok_or_else(|| Error::invalid_file(self.path, format!("does not say `{name}`")))
    }

    fn patterns<T: DeserializeOwned>(&self, name: &str, patterns: &Map<String, Value>) -> Result<Vec<(String, T)>> {
        let parsed = patterns.iter().map(|(pattern, value)| {
            compile(name, pattern, "").map_err(|reason| Error::invalid_file(self.path, reason))?;
            let value = T::deserialize(value);
            value
                .map(|value| (pattern.clone(), value))
                .map_err(|error| Error::invalid_file(self.path, format!("`{name}`, `{}`: {error}", pattern.escape_debug())))
        });
        parsed.collect()
    }

    fn targets(&self) -> Result<Targets> {
        match self.fields.get("target_modules") {
            None | Some(Value::Null) => Ok(Targets::Listed(Vec::new())),
            Some(Value::String(pattern)) => {
                compile("target_modules", pattern, "").map_err(|reason| Error::invalid_file(self.path, reason))?;
                Ok(Targets::Pattern(pattern.clone()))
            }
            Some(_) => Ok(Targets::Listed(self.required("target_modules")?)),
        }
    }

    fn refuse_other_kinds(&self) -> Result<()> {
        let unsupported = |reason: String| {
            Err(Error::UnsupportedModel { path: self.path.to_owned(), reason: format!("{reason}; train it as plain LoRA, or merge it") })
        };
        match self.fields.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(Value::String(kind)) => {
                return unsupported(format!("`peft_type` is `{}`, and LORA alone is supported", kind.escape_debug()));
            }
            _ => return Err(Error::invalid_file(self.path, "does not say `peft_type`; an adapter's says LORA")),
        }
        let is_set = |value: &&Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        };
        if let Some((name, what)) = OTHER_KINDS.iter().find(|(name, _)| self.fields.get(*name).filter(is_set).is_some()) {
            return unsupported(format!("`{name}` is set: {what}, which is not supported"));
        }
        let bias: Option<String> = self.get("bias")?;
        if let Some(bias) = bias.filter(|bias| bias != "none") {
            return unsupported(format!("`bias` is `{}`: biases that were trained are not supported", bias.escape_debug()));
        }
        let Some(Value::String(init)) = self.fields.get("init_lora_weights") else { return Ok(()) };
        match CHANGING_WEIGHTS.iter().find(|kind| init.to_lowercase().starts_with(**kind)) {
            Some(_) => unsupported(format!(
                "`init_lora_weights` is `{}`, which changes the model's own weights; save it with path_initial_model_for_weight_conversion",
                init.escape_debug()
            )),
            None => Ok(()),
        }
    }
}
