//! The program from a user's side: arguments in; stdout, stderr and exit codes out.

mod batch;
#[cfg(unix)]
mod chat;
#[path = "../common/mod.rs"]
mod common;
mod config;
mod experts;
mod files;
mod habits;
mod interruptions;
mod lora;
mod maps;
mod plans;
mod refusals;
mod reports;
mod run;
mod serve;
#[cfg(unix)]
mod terminal;
mod train;
#[cfg(unix)]
mod typing;
