//! What computes: kernels, the host, engines resident and streamed, on the adapter that there is. `REQUIRE_GPU=1` fails without one.

#[path = "../common/mod.rs"]
mod common;
mod drafts;
mod embed;
mod examples;
mod experts;
mod golden;
mod gpu;
mod host;
mod kernels;
mod lora;
mod machine;
mod models;
mod preemption;
#[path = "../common/reference.rs"]
mod reference;
mod sequences;
mod sources;
mod stages;
mod stream;
mod train;
