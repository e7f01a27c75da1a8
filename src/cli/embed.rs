//! `tierflow embed`: texts as vectors.

use std::io::{self, IsTerminal};

use crate::cli::args::EmbedArgs;
use crate::cli::locate::locate;
use crate::cli::model::{Placement, load_with_bar};
use crate::cli::prompt::{read_file, read_limited};
use crate::cli::terminal::{Progress, Visibility, note, print, print_json};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::PlanOptions;
use crate::text::{EmbeddingSettings, Pooling, Written};
use crate::units::Bytes;

/// Rows of hidden states that one forward yields: an encoder reads all of a text at once.
pub(super) const ROWS_PER_FORWARD: usize = 512;

/// Prints one embedding a line, its values divided by spaces, or JSON.
///
/// # Errors
/// Those of reading texts, of the tokenizer and of the engine.
pub fn run(args: &EmbedArgs) -> Result<()> {
    let source = args.source()?;
    let texts = read_texts(args)?;
    let options = PlanOptions { logit_rows: ROWS_PER_FORWARD, ..PlanOptions::default() };
    let placement = Placement::of(&args.placement, options)?.of_one_sequence();
    let builder = placement.builder(&locate(&source, Visibility::Auto)?)?;
    let mut prepared = pollster::block_on(builder.without_head().text_first().prepare())?;
    let settings = EmbeddingSettings::open(&prepared.checkpoint)?;
    let prompt = settings.prompt(args.prompt_name.as_deref())?;
    let pooling = args.pooling.map(Pooling::from).or(settings.pooling).unwrap_or_else(|| {
        note("the model does not say how it pools: the mean of all tokens is taken (--pooling)\n");
        Pooling::Mean
    });
    let is_normalized = settings.normalize && !args.no_normalize;
    let model_text = prepared.text()?;
    let encoded = texts.iter().map(|text| model_text.encode(&format!("{prompt}{text}"), Written::Plain));
    let encoded = encoded.collect::<Result<Vec<Vec<u32>>>>()?;
    encoded.iter().try_for_each(|tokens| prepared.check_room(tokens.len()))?;
    let mut engine = load_with_bar(prepared, Visibility::Auto)?;
    let embeddings = embed(&mut engine, &texts, &encoded, pooling, |engine, pooled| {
        engine.prepared().finished_embedding(settings.project(pooled), is_normalized)
    })?;
    if args.json {
        let of = |(tokens, embedding): (&Vec<u32>, &Vec<f32>)| serde_json::json!({ "n_tokens": tokens.len(), "embedding": embedding });
        return print_json(&serde_json::json!({
            "schema": "tierflow.embed/1",
            "pooling": pooling,
            "normalized": is_normalized,
            "embeddings": encoded.iter().zip(&embeddings).map(of).collect::<Vec<_>>(),
        }));
    }
    let line = |embedding: &Vec<f32>| embedding.iter().map(f32::to_string).collect::<Vec<_>>().join(" ") + "\n";
    print(&embeddings.iter().map(line).collect::<String>())
}

/// The embeddings of `encoded`; `finish` makes one of what was pooled.
fn embed(
    engine: &mut Engine,
    texts: &[String],
    encoded: &[Vec<u32>],
    pooling: Pooling,
    finish: impl Fn(&Engine, Vec<f32>) -> Result<Vec<f32>>,
) -> Result<Vec<Vec<f32>>> {
    let (bar, n_bytes) = (Progress::new(Visibility::Auto), texts.iter().map(String::len).sum::<usize>() as u64);
    let (mut embeddings, mut n_done) = (Vec::with_capacity(encoded.len()), 0);
    for (text, tokens) in texts.iter().zip(encoded) {
        bar.update("embedding", Bytes(n_done), Bytes(n_bytes));
        n_done += text.len() as u64;
        let pooled = pollster::block_on(engine.embed(tokens, pooling))?;
        embeddings.push(finish(engine, pooled)?);
    }
    bar.finish();
    Ok(embeddings)
}

/// The words, or the lines of the file or of stdin.
fn read_texts(args: &EmbedArgs) -> Result<Vec<String>> {
    let words = args.texts()?;
    let is_stdin = words.is_empty() || words == ["-"];
    let lines = match (&args.file, is_stdin) {
        (Some(path), _) if words.is_empty() => read_file(path)?,
        (None, true) => {
            if io::stdin().is_terminal() {
                note("type a text a line; Ctrl-D ends them\n");
            }
            read_limited(io::stdin().lock(), "stdin")?
        }
        (None, false) => return Ok(words),
        (Some(_), _) => {
            return Err(Error::InvalidArgument { option: "TEXT".into(), reason: "texts are given twice; give TEXT or -f".into() });
        }
    };
    let texts: Vec<String> = lines.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    match texts.is_empty() {
        true => Err(Error::InvalidArgument { option: "TEXT".into(), reason: "there is no text to embed".into() }),
        false => Ok(texts),
    }
}
