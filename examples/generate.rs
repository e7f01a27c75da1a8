//! Answers one question: the likeliest token every time, through the model's chat template where it has one.
//!
//! Run: `cargo run --release --example generate -- MODEL "Why is the sky blue?"`

use tierflow::{ChatMessage, Engine, Error, GenerateOptions, Sampler, SamplingSettings};

fn main() -> tierflow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or_else(|| Error::InvalidArgument {
        option: "MODEL".into(),
        reason: "name a folder with safetensors or a .gguf file".into(),
    })?;
    let question = arguments.next().unwrap_or_else(|| "Why is the sky blue?".into());
    println!("{}", pollster::block_on(answer(&model, &question))?);
    Ok(())
}

async fn answer(model: &str, question: &str) -> tierflow::Result<String> {
    let mut engine = Engine::builder(model).open().await?;
    let prompt = match engine.chat_template() {
        Some(_) => engine.encode_chat(&[ChatMessage::new("user", question)])?,
        None => engine.encode(question)?,
    };
    let mut session = engine.session();
    let sampler = Sampler::new(SamplingSettings::greedy(), 0);
    let options = GenerateOptions { max_tokens: Some(64), ..GenerateOptions::default() };
    let mut generation = session.generate(&prompt, sampler, options).await?;
    let mut text = String::new();
    while let Some(step) = generation.next().await? {
        text.push_str(&step.text);
    }
    Ok(text)
}
