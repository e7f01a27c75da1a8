//! A model as lists of modules and tensors, as torch gives them.

use std::collections::HashMap;

use serde::Deserialize;

use crate::accelerate::ElementType;
use crate::accelerate::tree::{NodeKind, TensorForm};

/// A model as lists; [`ModuleTree::new`](crate::accelerate::ModuleTree::new) makes a tree of it. Reads from JSON with its entries as objects or arrays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct TreeForm {
    /// Every module, a parent before its children (`named_modules`).
    pub modules: Vec<ModuleForm>,
    /// Every parameter in the order of registration, tied ones under all of their names (`named_parameters`).
    pub params: Vec<ParameterForm>,
    /// Every buffer in the order of registration (`named_buffers`).
    pub buffers: Vec<BufferForm>,
    /// Classes that the model says not to split (`_no_split_modules`).
    #[serde(default)]
    pub no_split_modules: Vec<String>,
    /// Whether the model's config says that weights are tied (`tie_word_embeddings`).
    #[serde(default)]
    pub config_ties_weights: bool,
}

/// A module.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModuleForm {
    /// Dotted name; empty for the model itself.
    pub name: String,
    /// Its class, without the package.
    pub class: String,
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ParameterForm {
    /// Dotted name, the module's included.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// The type of its values.
    pub dtype: ElementType,
    /// The first parameter that is the same object, where there is one.
    #[serde(default)]
    pub tied_to: Option<String>,
}

/// A buffer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BufferForm {
    /// Dotted name, the module's included.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// The type of its values.
    pub dtype: ElementType,
    /// Whether checkpoints hold it.
    pub persistent: bool,
}

/// All entries of the lists: parameters, then buffers, then modules, so that the members of a module come in this order.
pub(super) fn entries(form: TreeForm) -> impl Iterator<Item = (String, NodeKind)> {
    let params = form.params.into_iter().map(|param| {
        let tensor = TensorForm { n_values: n_values(&param.shape), dtype: param.dtype };
        (param.name, NodeKind::Parameter { tensor, tied_to: None })
    });
    let buffers = form.buffers.into_iter().map(|buffer| {
        let tensor = TensorForm { n_values: n_values(&buffer.shape), dtype: buffer.dtype };
        (buffer.name, NodeKind::Buffer { tensor, persistent: buffer.persistent })
    });
    let modules = form.modules.into_iter().map(|module| (module.name, NodeKind::Module { class: module.class }));
    params.chain(buffers).chain(modules)
}

fn n_values(shape: &[u64]) -> i128 {
    shape.iter().fold(1, |product: i128, size| product.saturating_mul(i128::from(*size)))
}

/// Names that are tied, the first parameter of every group in front.
pub(super) fn tied_names(params: &[ParameterForm]) -> Vec<Vec<String>> {
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut of_first: HashMap<&str, usize> = HashMap::new();
    for param in params {
        let Some(first) = &param.tied_to else { continue };
        let group = *of_first.entry(first).or_insert_with(|| {
            groups.push(vec![first.clone()]);
            groups.len() - 1
        });
        groups[group].push(param.name.clone());
    }
    groups
}
