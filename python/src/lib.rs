//! The native module of the Python package `tierflow`: engines, training, plans and Accelerate's rules, as the package's Python calls them.
//!
//! Options and results that are not numbers cross as JSON, and what Python's users see of them is made in `python/tierflow/`. Nothing here
//! waits with the interpreter's lock held, and each wait looks for signals (`wait`). Threads of the engine never touch Python: their log
//! lines and their progress are fetched by whoever waits.

mod accelerate;
mod engine;
mod errors;
mod logs;
mod numbers;
mod options;
mod plan;
mod process;
mod stage;
mod train;
mod wait;

use pyo3::prelude::*;

/// What `tierflow._tierflow` has.
#[pymodule]
fn _tierflow(module: &Bound<'_, PyModule>) -> PyResult<()> {
    logs::start();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<engine::Answer>()?;
    module.add_class::<stage::Stage>()?;
    module.add_class::<accelerate::Tree>()?;
    module.add_class::<train::Trainer>()?;
    module.add_class::<train::Optimizer>()?;
    module.add_function(wrap_pyfunction!(plan::plan, module)?)?;
    module.add_function(wrap_pyfunction!(plan::devices, module)?)?;
    module.add_function(wrap_pyfunction!(stage::devices_for, module)?)?;
    module.add_function(wrap_pyfunction!(stage::divide, module)?)?;
    module.add_function(wrap_pyfunction!(accelerate::module_tree, module)?)?;
    module.add_function(wrap_pyfunction!(accelerate::sizes, module)?)?;
    module.add_function(wrap_pyfunction!(accelerate::maximum_sizes, module)?)?;
    module.add_function(wrap_pyfunction!(accelerate::max_memory, module)?)?;
    module.add_function(wrap_pyfunction!(accelerate::balanced_memory, module)?)?;
    module.add_function(wrap_pyfunction!(accelerate::infer, module)?)?;
    module.add_function(wrap_pyfunction!(accelerate::check, module)?)?;
    Ok(())
}
