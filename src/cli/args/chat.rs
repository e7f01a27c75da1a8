//! The options of `tierflow run` that a chat knows.

use clap::Args;

use super::parse_whole;

/// How a chat goes.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Refuse a message for which the context has no room, instead of dropping the oldest turns of the chat
    #[arg(long, env = "TIERFLOW_NO_CONTEXT_SHIFT")]
    pub no_context_shift: bool,
    /// Let the oldest tokens leave a full context, so that an answer goes on
    ///
    /// Half of those behind the first --keep leave, and the others are computed anew. In a chat the oldest turns leave whole, and it needs no
    /// option.
    #[arg(long, env = "TIERFLOW_CONTEXT_SHIFT", conflicts_with = "no_context_shift")]
    pub context_shift: bool,
    /// Tokens at the beginning that --context-shift keeps; -1 for the whole prompt
    #[arg(long, env = "TIERFLOW_KEEP", default_value_t = 0, allow_negative_numbers = true, value_name = "N", value_parser = parse_whole)]
    pub keep: i64,
    /// Do not keep lines typed in a chat for later chats
    #[arg(long, env = "TIERFLOW_NO_HISTORY")]
    pub no_history: bool,
}
