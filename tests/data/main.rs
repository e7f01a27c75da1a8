//! What is plain data in and plain data out: files, texts, plans, schedules, and the source itself. No adapter is asked for.

mod bad_models;
mod convert;
mod device_maps;
#[path = "../engine/models/families.rs"]
mod families;
mod haystack;
mod hub;
mod layers;
mod lora;
#[path = "../common/models.rs"]
mod models;
mod plan;
mod planner;
mod quantised;
mod readme;
mod scaled;
mod schedule;
mod shaders;
mod text;
mod weights;
