//! Hugging Face Accelerate's planner, rule by rule: the same modules on the same devices for the same budgets.
//!
//! Reproduced from accelerate 1.15.0, `accelerate/utils/modeling.py`. Defects that decide about a result are kept, and called so
//! at the line that keeps them; where upstream ends with an unintended error, a sensible answer is given instead, which is said there, too.
//! Sizes follow upstream: weights and buffers count, and activations, caches and staging do not. What tierflow itself plans with is
//! [`plan`](crate::plan::plan()), which counts all of it.
//!
//! | upstream | here |
//! |---|---|
//! | `convert_file_size_to_int` | [`convert_file_size_to_int`], [`SizeSpec`] |
//! | `dtype_byte_size` | [`ElementType`] |
//! | `compute_module_sizes`, `compute_module_total_buffer_size` | [`ModuleSizes`], [`Retype`] |
//! | `get_max_layer_size`, `calculate_maximum_sizes` | [`LargestLayer`], [`calculate_maximum_sizes`] |
//! | `find_tied_parameters` | [`ModuleTree::tied_groups`] |
//! | `get_max_memory`, given budgets | [`get_max_memory`], [`Budgets`] |
//! | `get_balanced_memory` | [`get_balanced_memory`] |
//! | `infer_auto_device_map`, `fallback_allocate` | [`infer_auto_device_map`] |
//! | `clean_device_map` | [`clean_device_map`] |
//! | `check_device_map` | [`DeviceMap::check`] |
//! | `load_checkpoint_in_model`, where a tensor finds its device | [`DeviceMap::device_of`], [`DeviceMap::placements`] |
//! | the strings of `load_checkpoint_and_dispatch` | [`DeviceMapMode`] |
//!
//! Knows no machine: budgets come from the caller.

mod amount;
mod balanced;
mod clean;
mod device_key;
mod element;
mod fallback;
mod infer;
mod map;
mod map_json;
mod max_memory;
mod mode;
mod notice;
mod of_model;
mod size_strings;
mod sizes;
mod ties;
mod tree;
mod tree_form;

pub use amount::Amount;
pub use balanced::{LowZero, get_balanced_memory};
pub use clean::clean_device_map;
pub use device_key::{DeviceKey, DeviceName};
pub use element::ElementType;
pub use infer::{InferOptions, Inferred, infer_auto_device_map};
pub use map::{DeviceMap, MatrixPlacement};
pub use max_memory::{BudgetSource, Budgets, get_max_memory};
pub use mode::DeviceMapMode;
pub use notice::{Notice, NoticeLevel};
pub use size_strings::{SizeSpec, convert_file_size_to_int};
pub use sizes::{LargestLayer, MaximumSizes, ModuleSizes, Retype, calculate_maximum_sizes, maximum_sizes_as};
pub use tree::{ModuleTree, NodeId, NodeKind, TensorForm};
pub use tree_form::{BufferForm, ModuleForm, ParameterForm, TreeForm};
