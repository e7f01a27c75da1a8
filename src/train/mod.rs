//! Fine-tuning: an adapter of low rank beside a frozen model, which may be larger than the memory; or the model's own weights, of one that fits.
//!
//! A step reads the weights twice for a whole batch: forward, which keeps what each unit has read, and back, which computes each unit anew and
//! carries the gradient through its operations ([`crate::model::Op`]). Products with transposed weights decode the stored rows, some at a
//! time. All sums have one order, so that the same seed gives the same adapter, bit for bit, on any number of threads and wherever the
//! weights are.

mod adapter;
mod attention;
mod curve;
mod data;
mod dense;
mod gpu;
mod kept;
mod optim;
mod own_loop;
mod pass;
mod planning;
mod saved;
mod trainer;
mod vjp;
mod weights;
mod whole;

pub use adapter::{Adapter, Layer, LoraOptions};
pub use curve::curve_svg;
pub use data::{DataOptions, DataSet, Example, Sequence, TrainOn};
pub use gpu::GpuUse;
pub use optim::{Gradients, Optimizer, OptimizerKind, Scheduler};
pub use own_loop::LossOptions;
pub use planning::{TrainingDevice, TrainingPlan};
pub use trainer::{MixedPrecision, Progress, StepReport, TrainOptions, Trainer};
