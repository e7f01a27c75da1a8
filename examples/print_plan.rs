//! Prints where every part of a model would live and what would stream, without loading it.
//!
//! Run: `cargo run --release --example print_plan -- MODEL`

use tierflow::{Engine, Error};

fn main() -> tierflow::Result<()> {
    let model = std::env::args().nth(1).ok_or_else(|| Error::InvalidArgument {
        option: "MODEL".into(),
        reason: "name a folder with safetensors or a .gguf file".into(),
    })?;
    let prepared = pollster::block_on(Engine::builder(model).prepare())?;
    print!("{}", prepared.plan);
    for unit in &prepared.plan.units {
        println!("{:<32} {:>10}  {}", unit.name, unit.size_bytes.to_string(), unit.stored_on);
    }
    print!("{}", prepared.schedule.report(&prepared.plan));
    Ok(())
}
