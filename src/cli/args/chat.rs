//! The options of `tierflow run` that a chat knows.

use clap::Args;

/// How a chat goes.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Refuse a message for which the context has no room, instead of dropping the oldest turns of the chat
    #[arg(long, env = "TIERFLOW_NO_CONTEXT_SHIFT")]
    pub no_context_shift: bool,
    /// Do not keep lines typed in a chat for later chats
    #[arg(long, env = "TIERFLOW_NO_HISTORY")]
    pub no_history: bool,
}
