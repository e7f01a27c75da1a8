//! The module tree of a [`Model`], as transformers would have it.

use std::collections::HashSet;

use crate::accelerate::{BufferForm, ElementType, ModuleForm, ModuleTree, ParameterForm, TreeForm};
use crate::error::Result;
use crate::model::{Model, ModelConfig, UnitKind};
use crate::weights::{Catalog, TensorId};

impl ModuleTree {
    /// The tree of `model` with names and classes as transformers 5 has them and the sizes that `catalog` stores, quantised ones
    /// included. A tied head has its parameter under its own name, tied to the embedding's.
    ///
    /// # Errors
    /// Those of [`ModuleTree::new`], where two tensors of the model have one name.
    pub fn of_model(catalog: &Catalog, model: &Model) -> Result<ModuleTree> {
        let prefix = model.config.family.class_prefix;
        let mut form = TreeForm {
            modules: modules(&model.config, prefix),
            params: parameters(catalog, model),
            buffers: rotary_buffers(&model.config),
            no_split_modules: vec![model.config.family.layer_class()],
            config_ties_weights: model.config.tied_embeddings,
        };
        add_missing_modules(&mut form);
        ModuleTree::new(form)
    }
}

/// Every module in the order of registration, which is not that of the computation: norms come after what they feed, and the rotary
/// embedding comes last.
fn modules(config: &ModelConfig, prefix: &str) -> Vec<ModuleForm> {
    let mut modules = Vec::new();
    let mut add = |name: String, class: &str| modules.push(ModuleForm { name, class: class.replace("{}", prefix) });
    let names = &config.family.names;
    add(String::new(), config.family.class());
    add(names.base().into(), "{}Model");
    add(names.embedding.into(), "Embedding");
    if let Some(positions) = names.positions {
        add(positions.into(), "Embedding");
    }
    add(names.layers.into(), "ModuleList");
    for layer in 0..config.n_layers {
        let name = format!("{}.{layer}", names.layers);
        let members = config.family.layer_modules.iter().copied().flatten();
        for (member, class) in members.filter(|(member, _)| has_module(config, layer, member)) {
            add(format!("{name}{member}"), class);
        }
    }
    add(names.norm.into(), names.norm_class);
    if let Some(rotary) = names.rotary {
        add(rotary.into(), "{}RotaryEmbedding");
    }
    add(names.head.into(), "Linear");
    modules
}

/// Whether a layer has this member, where some layers have attention and others something in its place.
fn has_module(config: &ModelConfig, layer: usize, member: &str) -> bool {
    let Some(recurrent) = &config.variant.recurrent else { return true };
    let absent = if config.recurrent(layer).is_some() { config.family.names.attention } else { recurrent.kind.module() };
    let inside = member.strip_prefix('.').and_then(|member| member.strip_prefix(absent));
    !inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Every tensor that the model uses, once, and the tied head's.
fn parameters(catalog: &Catalog, model: &Model) -> Vec<ParameterForm> {
    let parameter = |id: TensorId| {
        let tensor = &catalog[id];
        ParameterForm { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype: tensor.dtype.into(), tied_to: None }
    };
    let used = model.units.iter().flat_map(|unit| unit.matrices().chain(unit.vectors()));
    let mut seen = HashSet::new();
    let mut parameters: Vec<ParameterForm> = Vec::new();
    let tables = model.embeddings().map(|(table, _)| table);
    for id in tables.chain(model.positions()).chain(used).filter(|id| seen.insert(*id)) {
        let mut part = parameter(id);
        // `name:part` is rows of one stored matrix; its parts come one soon after the other.
        if let Some((whole, _)) = part.name.split_once(':') {
            if let Some(whole) = parameters.iter_mut().rfind(|other| other.name == whole) {
                // Parts may be wide otherwise than the matrix that they are of; as many values they have.
                whole.shape = match whole.shape[1..] == part.shape[1..] {
                    true => [&[whole.shape[0] + part.shape[0]][..], &part.shape[1..]].concat(),
                    false => vec![whole.shape.iter().product::<u64>() + part.shape.iter().product::<u64>()],
                };
                continue;
            }
            part.name = whole.to_owned();
        }
        parameters.push(part);
    }
    let head = model.units.iter().find(|unit| unit.kind == UnitKind::Head);
    if let (true, Some(embedding), Some(head)) = (model.config.tied_embeddings, model.embedding(), head) {
        let embedding = parameter(embedding);
        parameters.push(ParameterForm { name: format!("{}.weight", head.name), tied_to: Some(embedding.name.clone()), ..embedding });
    }
    parameters
}

/// The frequencies of the rotary embedding, which no checkpoint holds: those in use, and those before they were stretched.
fn rotary_buffers(config: &ModelConfig) -> Vec<BufferForm> {
    let shape = vec![config.head_size as u64 / 2];
    let buffer = |name: String| BufferForm { name, shape: shape.clone(), dtype: ElementType::Float(4), persistent: false };
    let of_rotary = |rotary: &str| ["inv_freq", "original_inv_freq"].map(|name| buffer(format!("{rotary}.{name}"))).into();
    config.family.names.rotary.map(of_rotary).unwrap_or_default()
}

/// Tensors may belong to modules that the list above does not know (a norm of queries); these come last in the module above them.
fn add_missing_modules(form: &mut TreeForm) {
    let mut known: HashSet<String> = form.modules.iter().map(|module| module.name.clone()).collect();
    for parameter in &form.params {
        let dots = parameter.name.match_indices('.').map(|(dot, _)| &parameter.name[..dot]);
        for name in dots {
            if known.insert(name.to_owned()) {
                form.modules.push(ModuleForm { name: name.to_owned(), class: "Module".into() });
            }
        }
    }
}
