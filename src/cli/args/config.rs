//! The arguments of `tierflow config`: the settings themselves, as every command takes them.

use clap::{Args, Subcommand};

use super::PlacementArgs;

/// `tierflow config`
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ConfigArgs {
    /// What to do other than writing.
    #[command(subcommand)]
    pub action: Option<ConfigAction>,
    /// Settings to write; without any, they are asked for.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Write a new file with the defaults
    ///
    /// Asks before it replaces an existing one.
    #[arg(long)]
    pub default: bool,
    /// With --default: do not ask
    #[arg(short, long, requires = "default")]
    pub yes: bool,
}

/// What `tierflow config` does other than writing.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigAction {
    /// Print every setting, its value, and where the value comes from
    Show(Box<ConfigShowArgs>),
    /// Print the path of the config file
    Path,
}

/// `tierflow config show`
#[derive(Debug, Clone, Args)]
pub struct ConfigShowArgs {
    /// Settings as a command would be given them.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Print the settings as JSON
    #[arg(long, env = "TIERFLOW_JSON")]
    pub json: bool,
}
