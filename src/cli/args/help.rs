//! How `-h` and `--help` show options: in groups, the daily ones first; what is rare, `--help` alone shows.

use clap::{Arg, ArgAction, Command};

/// The groups of options by clap's names for them. Options in none of them are about the output; words stand before all groups.
const GROUPS: [(&str, &str); 6] = [
    ("Model", "model_flag hf_repo hf_file revision force"),
    ("Prompt", "prompt file stdin system system_file tokens raw no_special no_parse_special"),
    ("Tests", "n_prompt n_gen pg n_depth repetitions"),
    ("Sampling", "predict seed temp top_k top_p min_p repeat_penalty repeat_last_n stop ignore_eos"),
    ("Memory", "max_memory ctx_size no_context_shift fit kv_dtype batch_size ubatch_size"),
    (
        "Placement",
        "device n_gpu_layers threads devices objective mix device_map plan no_split strict n_seqs io lookahead slots upload \
         kernels no_measure virtual_gpus cache_dir measure",
    ),
];

/// What `-h` leaves out.
const RARE: &str = "hf_file system_file raw no_parse_special min_p repeat_penalty repeat_last_n ignore_eos kv_dtype batch_size \
                    ubatch_size objective mix device_map plan no_split strict n_seqs io lookahead slots upload kernels \
                    no_measure virtual_gpus cache_dir trace no_context_shift no_history";

/// What the long help ends with.
const TWINS: &str = "Every option has a twin in the environment: --ctx-size is TIERFLOW_CTX_SIZE.\n\
                     Defaults of one's own are written by: tierflow config";

/// `command` with its subcommands' options in groups.
pub(super) fn grouped(command: Command) -> Command {
    command.mut_subcommands(|subcommand| {
        let help = Arg::new("help").short('h').long("help").action(ArgAction::Help);
        let subcommand = subcommand.disable_help_flag(true).arg(help.help("Print help: -h the daily options, --help all of them"));
        let has_options = subcommand.get_arguments().any(|arg| arg.get_env().is_some());
        let subcommand = grouped(subcommand.mut_args(in_its_group));
        if has_options { subcommand.after_long_help(TWINS) } else { subcommand }
    })
}

fn in_its_group(arg: Arg) -> Arg {
    let id = arg.get_id().to_string();
    let is_among = |ids: &str| ids.split_whitespace().any(|among| among == id);
    let group = GROUPS.iter().find(|(_, ids)| is_among(ids)).map(|(heading, _)| *heading);
    let arg = arg.hide_env(true).hide_short_help(is_among(RARE));
    // Words without a flag are clap's own first group.
    if arg.is_positional() { arg } else { arg.help_heading(group.unwrap_or("Output")) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn what_is_grouped_or_rare_is_an_option() {
        let command = Cli::command();
        let is_option = |id: &str| command.get_subcommands().flat_map(Command::get_arguments).any(|arg| arg.get_id() == id);
        for id in GROUPS.iter().flat_map(|(_, ids)| ids.split_whitespace()).chain(RARE.split_whitespace()) {
            assert!(is_option(id), "{id}");
        }
    }
}
