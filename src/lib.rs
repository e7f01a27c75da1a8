//! tierflow runs language models that are larger than the GPU's memory, on any vendor's GPU.
//!
//! Weights are stored where there is room: on the GPU, in host memory or on disk. Those that are not on the GPU stream through a small
//! ring of slots, so that the next chunk arrives while the GPU computes with the present one. Where a weight is stored never changes the
//! answer.
//!
//! ```no_run
//! use tierflow::{Bytes, ChatMessage, Device, Engine, GenerateOptions, Sampler, SamplingSettings};
//!
//! # async fn example() -> tierflow::Result<()> {
//! let mut engine = Engine::builder("model.gguf").max_memory(Device::Gpu(0), Bytes::gib(4)).open().await?;
//! println!("{}", engine.plan());
//! let prompt = engine.encode_chat(&[ChatMessage::new("user", "Why is the sky blue?")])?;
//! let mut session = engine.session();
//! let sampler = Sampler::new(SamplingSettings::greedy(), 0);
//! let mut generation = session.generate(&prompt, sampler, GenerateOptions::default()).await?;
//! while let Some(step) = generation.next().await? {
//!     print!("{}", step.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The library prints nothing. Its functions that wait are `async` and need no particular executor: `pollster::block_on` will do.
//! The folder `examples/` has five whole programs.
//!
//! # A reader's route
//!
//! Seven files show how it works, from the outside in:
//!
//! 1. [`engine`] opens a model and runs forwards; [`session`] makes tokens of them.
//! 2. [`plan`] decides from headers, rates and budgets where every weight is stored and which device computes with it.
//! 3. [`plan::Schedule`] lists the steps of one forward: uploads, computations, transfers.
//! 4. [`stream`] walks the schedule: its overlap loop starts each upload before the step that needs it.
//! 5. [`model`] says which operations a unit consists of.
//! 6. [`kernels`] has a file for each operation: its parameters, its dispatch, and a reference on the CPU.
//! 7. `shaders/` has the WGSL that the kernels dispatch.
//!
//! Each of these values is made from the one before it; all are plain data that can be printed:
//! [`Catalog`](weights::Catalog) → [`Plan`] → [`Schedule`](plan::Schedule) → executors → [`Trace`](stream::Trace).
pub mod accelerate;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub mod cli;
#[cfg(not(target_arch = "wasm32"))]
pub mod convert;
pub mod device;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod gpu;
#[cfg(not(target_arch = "wasm32"))]
pub mod handle;
pub mod host;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub mod hub;
pub mod kernels;
pub mod lora;
pub mod machine;
pub mod model;
pub mod plan;
pub mod platform;
#[cfg(all(feature = "server", not(target_arch = "wasm32")))]
pub mod server;
pub mod session;
pub mod stream;
pub mod text;
pub mod train;
pub mod units;
pub mod weights;

pub use device::{Device, DeviceChoice, DeviceSpec, MaxMemory};
pub use dtype::DType;
pub use engine::{Engine, EngineBuilder, LoadProgress, LoadedModel, MemoryUse, ModelText, Prepared, TextFiles};
pub use error::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
pub use handle::{EngineEnd, EngineHandle, Positions, Sequence, TokenStream};
pub use plan::{CacheDType, KvDType, Plan, PlanOptions};
pub use session::{DraftSource, FinishReason, GenerateOptions, Generated, Generation, Session, Speculation};
pub use text::{ChatMessage, Sampler, SamplingSettings, TemplateInput};
pub use units::Bytes;
