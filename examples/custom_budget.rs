//! Runs a model with less memory than it needs, as the user allows it, and shows that the budgets held.
//!
//! Run: `cargo run --release --example custom_budget -- MODEL gpu:0=40MiB,cpu=64MiB`

use tierflow::{Engine, Error, GenerateOptions, MaxMemory, Sampler, SamplingSettings};

fn main() -> tierflow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(budgets)) = (arguments.next(), arguments.next()) else {
        return Err(Error::InvalidArgument {
            option: "MODEL BUDGETS".into(),
            reason: "give a model and, say, gpu:0=40MiB,cpu=64MiB".into(),
        });
    };
    pollster::block_on(run(&model, &budgets.parse()?))
}

async fn run(model: &str, budgets: &MaxMemory) -> tierflow::Result<()> {
    let mut builder = Engine::builder(model);
    for (device, budget) in budgets.iter() {
        builder = builder.max_memory(device, budget);
    }
    let mut engine = builder.open().await?;
    print!("{}", engine.plan());

    let prompt = engine.encode("Hello")?;
    let mut session = engine.session();
    let options = GenerateOptions { max_tokens: Some(8), ..GenerateOptions::default() };
    let mut generation = session.generate(&prompt, Sampler::new(SamplingSettings::greedy(), 0), options).await?;
    while generation.next().await?.is_some() {}

    for memory in engine.memory_use() {
        let budget = memory.budget.map(|bytes| bytes.to_string()).unwrap_or_default();
        println!("{} peak {} of {budget}", memory.device, memory.peak);
    }
    let moved = engine.trace().summary();
    println!("uploaded {}, read from disk {}, {:.0} % of it behind computation", moved.uploaded, moved.fetched, moved.overlapped * 100.0);
    Ok(())
}
