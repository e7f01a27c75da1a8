//! Continues a text token by token, sampled with the model's own settings, and shows each token as it comes.
//!
//! Run: `cargo run --release --example stream_tokens -- MODEL "Once upon a time"`

use std::io::Write;

use tierflow::text::{SamplingFlags, fresh_seed};
use tierflow::{Engine, Error, GenerateOptions, Sampler, SamplingSettings};

fn main() -> tierflow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or_else(|| Error::InvalidArgument {
        option: "MODEL".into(),
        reason: "name a folder with safetensors or a .gguf file".into(),
    })?;
    let text = arguments.next().unwrap_or_else(|| "Once upon a time".into());
    pollster::block_on(continue_text(&model, &text))
}

async fn continue_text(model: &str, text: &str) -> tierflow::Result<()> {
    let mut engine = Engine::builder(model).open().await?;
    let prompt = engine.encode(text)?;
    let settings = SamplingSettings::merged(engine.defaults(), &SamplingFlags::default())?;
    let mut session = engine.session();
    let options = GenerateOptions { max_tokens: Some(32), ..GenerateOptions::default() };
    let mut generation = session.generate(&prompt, Sampler::new(settings, fresh_seed()), options).await?;
    while let Some(step) = generation.next().await? {
        // A token may end within a character; its text then comes with a later one.
        println!("{:>6}  {:?}", step.token, step.text);
        let _ = std::io::stdout().flush();
    }
    println!("ended by {:?} after {} tokens", generation.finish_reason(), generation.n_generated());
    Ok(())
}
