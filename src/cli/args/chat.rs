//! The options of `tierflow run` that a chat knows.

use clap::Args;

/// How a chat goes.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Refuse what a full context has no room for, instead of letting the oldest turns of a chat leave it
    #[arg(long, env = "TIERFLOW_NO_CONTEXT_SHIFT")]
    pub no_context_shift: bool,
    /// Keep nothing that is typed in a chat for later chats
    #[arg(long, env = "TIERFLOW_NO_HISTORY")]
    pub no_history: bool,
}
