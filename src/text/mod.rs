//! Text in, text out: tokenizer, chat template, sampling, stop strings. Knows no device and computes no logits.

mod chat_message;
mod chat_template;
mod defaults;
mod detokenizer;
mod embedding;
mod files;
mod gguf_repairs;
mod gguf_vocabulary;
mod pieces;
mod plain_text;
mod pre_tokenizer;
mod sampler;
mod sampling;
mod sentence_piece;
mod stop;
mod template_environment;
mod template_filters;
mod template_json;
mod template_methods;
mod template_operators;
mod template_source;
mod template_time;
mod tokenizer;
mod tokenizer_json;
mod tokenizer_json_checks;
mod word_piece;

pub use chat_message::{ChatMessage, TemplateInput};
pub use chat_template::{ChatTemplate, GenerationPrompt};
pub use defaults::ModelDefaults;
pub use detokenizer::Detokenizer;
pub use embedding::{EmbeddingSettings, Pooling};
pub use sampler::{Candidate, Sampler};
pub use sampling::{LogitsNeeded, SamplingFlags, SamplingSettings, fresh_seed};
pub use stop::{StopOutcome, StopStrings};
pub use tokenizer::{Special, Tokenizer, Written};
