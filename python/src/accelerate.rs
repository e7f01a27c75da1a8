//! Accelerate's functions over module trees, which cross as JSON in the lists that torch gives.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use tierflow::accelerate::{
    Amount, BudgetSource, Budgets, DeviceMap, DeviceName, ElementType, InferOptions, LowZero, ModuleSizes, ModuleTree, NodeId, NodeKind,
    Notice, NoticeLevel, Retype, SizeSpec, TreeForm, get_balanced_memory, get_max_memory, infer_auto_device_map, maximum_sizes_as,
};
use tierflow::model::{Checkpoint, Model};
use tierflow::platform::IoMode;
use tierflow::{Error, Result};

use crate::options::locate;
use crate::wait::in_background;
use crate::{errors, process};

/// A tree of modules.
#[pyclass(frozen, module = "tierflow._tierflow")]
pub struct Tree(ModuleTree);

/// What `infer_auto_device_map` and its like are told.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    max_memory: Vec<(DeviceName, SizeSpec)>,
    /// Whether these are the free memory, not what the user gave.
    is_measured: bool,
    no_split_module_classes: Vec<String>,
    dtype: Option<ElementType>,
    special_dtypes: BTreeMap<String, ElementType>,
    clean_result: bool,
    offload_buffers: bool,
    fallback_allocation: bool,
    low_zero: bool,
}

impl Asked {
    fn read(json: &str) -> Result<Asked> {
        // Names of dtypes are the only texts that a caller may get wrong here.
        serde_json::from_str(json).map_err(|error| Error::InvalidArgument { option: "arguments".into(), reason: error.to_string() })
    }

    fn budgets(&self) -> Result<Budgets> {
        let budgets = get_max_memory(&self.max_memory)?;
        Ok(if self.is_measured { budgets.from_source(BudgetSource::Measured) } else { budgets })
    }

    fn retype(&self) -> Retype {
        Retype { dtype: self.dtype, special_dtypes: self.special_dtypes.clone() }
    }
}

/// A number as Python would have it.
fn number(amount: Amount) -> Value {
    match amount {
        Amount::Int(value) => i64::try_from(value).map_or_else(|_| json!(value as f64), |value| json!(value)),
        Amount::Float(value) => json!(value),
    }
}

fn pairs(budgets: &Budgets) -> Value {
    budgets.iter().map(|(device, amount)| json!([device, number(amount)])).collect()
}

fn notices(notices: &[Notice]) -> Value {
    let level = |notice: &Notice| match notice.level() {
        NoticeLevel::Info => "info",
        NoticeLevel::Warning => "warning",
        NoticeLevel::UserWarning => "user",
    };
    notices.iter().map(|notice| json!([level(notice), notice.to_string()])).collect()
}

fn in_python<T>(result: Result<T>) -> PyResult<T> {
    result.map_err(|error| errors::raised(&error))
}

/// The tree of a checkpoint's model, from its headers, or of the lists in JSON.
#[pyfunction]
#[pyo3(signature = (path, form))]
pub fn module_tree(py: Python<'_>, path: Option<String>, form: Option<&str>) -> PyResult<Tree> {
    if let Some(form) = form {
        let read = serde_json::from_str::<TreeForm>(form);
        let read = read.map_err(|error| Error::InvalidArgument { option: "model".into(), reason: error.to_string() });
        return in_python(read.and_then(ModuleTree::new)).map(Tree);
    }
    process::check()?;
    let path = path.unwrap_or_default();
    in_background(py, None, move |progress| {
        let checkpoint = Checkpoint::open(&locate(&path, false, progress)?, IoMode::default())?;
        let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape))?;
        ModuleTree::of_model(&checkpoint.catalog, &model)
    })
    .map(Tree)
}

#[pymethods]
impl Tree {
    /// Classes that the model says not to split.
    #[getter]
    fn no_split_modules(&self) -> Vec<String> {
        self.0.no_split_modules().to_vec()
    }
}

/// The size of every module and tensor that counts, as JSON: `compute_module_sizes`.
#[pyfunction]
pub fn sizes(tree: &Tree, asked: &str, buffers_only: bool) -> PyResult<String> {
    let tree = &tree.0;
    let sizes = ModuleSizes::new(tree, &in_python(Asked::read(asked))?.retype());
    // Modules without tensors have no entry, and neither have tied parameters but under their first name.
    let mut sums: BTreeMap<NodeId, Amount> = BTreeMap::new();
    let counts = |kind: &NodeKind| match kind {
        NodeKind::Buffer { .. } => true,
        NodeKind::Parameter { tied_to, .. } => tied_to.is_none() && !buffers_only,
        NodeKind::Module { .. } => false,
    };
    for id in tree.nodes().filter(|id| counts(tree.kind(*id))) {
        let mut above = id;
        loop {
            *sums.entry(above).or_insert(Amount::ZERO) += sizes.of(id);
            if above == ModuleTree::ROOT {
                break;
            }
            above = tree.parent(above);
        }
    }
    let named = tree.nodes().filter_map(|id| Some((tree.name(id).to_owned(), number(*sums.get(&id)?))));
    Ok(Value::Object(named.collect()).to_string())
}

/// The whole model, the largest layer and its names, as JSON: `calculate_maximum_sizes`; of the tensors as they are stored, or of as many
/// numbers of 32 bits.
#[pyfunction]
pub fn maximum_sizes(tree: &Tree, as_float32: bool) -> String {
    let tree = &tree.0;
    let names = tree.nodes().filter(|id| as_float32 && matches!(tree.kind(*id), NodeKind::Parameter { .. }));
    let special_dtypes = names.map(|id| (tree.name(id).to_owned(), ElementType::Float(4))).collect();
    let sizes = maximum_sizes_as(tree, &Retype { dtype: None, special_dtypes });
    let layers: Vec<&str> = sizes.largest_layer.layers.iter().map(|id| tree.name(*id)).collect();
    json!([number(sizes.total), [number(sizes.largest_layer.size), layers]]).to_string()
}

/// Budgets in Accelerate's order, as JSON: `get_max_memory` of given ones.
#[pyfunction]
pub fn max_memory(asked: &str) -> PyResult<String> {
    Ok(pairs(&in_python(Asked::read(asked).and_then(|asked| asked.budgets()))?).to_string())
}

/// Balanced budgets and what there is to say, as JSON: `get_balanced_memory`.
#[pyfunction]
pub fn balanced_memory(tree: &Tree, asked: &str) -> PyResult<String> {
    let balanced = Asked::read(asked).and_then(|asked| {
        let low_zero = if asked.low_zero { LowZero::Yes } else { LowZero::No };
        get_balanced_memory(&tree.0, &asked.budgets()?, &asked.no_split_module_classes, &asked.retype(), low_zero)
    });
    let (budgets, said) = in_python(balanced)?;
    Ok(json!([pairs(&budgets), notices(&said)]).to_string())
}

/// A device map and what there is to say, as JSON: `infer_auto_device_map`.
#[pyfunction]
pub fn infer(tree: &Tree, asked: &str) -> PyResult<String> {
    let asked = in_python(Asked::read(asked))?;
    let options = InferOptions {
        no_split_module_classes: asked.no_split_module_classes.clone(),
        retype: asked.retype(),
        clean_result: asked.clean_result,
        offload_buffers: asked.offload_buffers,
        fallback_allocation: asked.fallback_allocation,
    };
    let inferred = infer_auto_device_map(&tree.0, &in_python(asked.budgets())?, &options);
    Ok(json!([inferred.map, notices(&inferred.notices)]).to_string())
}

/// Refuses a map, JSON, that leaves a tensor without a device; gives what there is to say: `check_device_map`.
#[pyfunction]
pub fn check(tree: &Tree, map: &str) -> PyResult<String> {
    let notice = in_python(DeviceMap::from_json(map, "device_map").and_then(|map| map.check(&tree.0)))?;
    Ok(notices(notice.as_slice()).to_string())
}
