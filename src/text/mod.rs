//! Text in, text out: tokenizer, chat template, sampling, stop strings. Knows no device and computes no logits.

#[cfg(feature = "forms")]
mod channels;
mod chat_message;
mod chat_template;
mod constraint;
mod defaults;
mod dense;
mod detokenizer;
mod embedding;
mod files;
#[cfg(feature = "forms")]
pub(crate) mod forms;
mod gbnf;
mod gguf_repairs;
mod gguf_vocabulary;
mod logprobs;
mod penalties;
mod pieces;
mod plain_text;
mod pre_tokenizer;
mod rank_file;
mod reasoning;
mod sampler;
mod sampling;
mod sentence_piece;
mod sentence_piece_file;
mod stop;
mod template_environment;
mod template_filters;
mod template_json;
mod template_methods;
mod template_operators;
mod template_source;
mod template_time;
mod to_gguf;
mod tokenizer;
mod tokenizer_json;
mod tokenizer_json_checks;
mod tools;
mod word_piece;

pub use chat_message::{ChatMessage, TemplateInput, thinking_variables};
pub use chat_template::{ChatTemplate, GenerationPrompt};
pub use constraint::{Constraint, FormError};
pub use defaults::ModelDefaults;
pub use dense::Dense;
pub use detokenizer::Detokenizer;
pub use embedding::{EmbeddingSettings, Pooling};
#[cfg(feature = "forms")]
pub use forms::{AnswerForm, FormVocabulary, FormWish};
pub use gbnf::{Gbnf, GbnfError, MAX_GRAMMAR_BYTES, TokenBytes};
pub use logprobs::TokenLogprobs;
pub use reasoning::{ReasoningFormat, ReasoningSplitter, Segment};
pub use sampler::{Candidate, Sampler};
pub use sampling::{LogitsNeeded, SamplingFlags, SamplingSettings, fresh_seed};
pub use stop::{StopOutcome, StopStrings};
#[cfg(feature = "server")]
pub(crate) use template_time::strftime;
pub use to_gguf::text_keys;
pub use tokenizer::{Special, Tokenizer, Written};
#[cfg(feature = "forms")]
pub use tools::CallGrammar;
pub use tools::{Call, CallBody, CallPart, CallPiece, CallTeller, Said, Told, ToolCall, ToolChoice, ToolFormat, ToolSplitter, Tools};
