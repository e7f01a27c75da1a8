//! How `-h` and `--help` show options: `-h` the common ones on one screen, `--help` all of them in groups, the common ones first.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// The groups of options by clap's names for them. Options in none of them are about the output; words stand before all groups.
const GROUPS: [(&str, &str); 8] = [
    ("Model", "model_flag hf_repo hf_file revision force alias"),
    ("Server", "host port api_key allow_remote cors queue cache_ram embeddings models_dir keep_alive"),
    ("Prompt", "prompt file stdin system system_file tokens raw think no_think hide_thinking no_special no_parse_special"),
    ("Tests", "n_prompt n_gen pg n_depth repetitions"),
    (
        "Training",
        "data out epochs steps batch accumulate seq_len truncate packing train_on lora_r lora_alpha target full dtype modules_to_save mixed_precision dropout lr scheduler warmup optimizer \
         weight_decay grad_clip eval_data eval_every save_every resume logging_dir",
    ),
    (
        "Sampling",
        "predict seed temp top_k top_p min_p repeat_penalty presence_penalty frequency_penalty repeat_last_n logit_bias stop ignore_eos \
         grammar grammar_file json_schema json_schema_file regex",
    ),
    ("Memory", "max_memory ctx_size context_shift keep no_context_shift fit kv_dtype kv_size batch_size ubatch_size"),
    (
        "Placement",
        "device n_gpu_layers threads devices objective mix device_map plan no_split strict n_seqs io lookahead slots upload \
         n_cpu_moe cpu_moe override_tensor expert_cache expert_misses expert_profile spec_type model_draft device_draft draft_max draft_min kernels no_measure gpu_timeout virtual_gpus cache_dir measure tune",
    ),
];

/// What `-h` leaves out.
const RARE: &str = "lora model_flag hf_repo hf_file system_file stdin raw no_parse_special seed top_k top_p min_p repeat_penalty presence_penalty frequency_penalty repeat_last_n logit_bias stop \
                    ignore_eos fit kv_dtype kv_size batch_size ubatch_size objective mix device_map plan no_split strict n_seqs threads io lookahead \
                    slots upload n_cpu_moe cpu_moe override_tensor expert_cache expert_misses expert_profile spec_type model_draft device_draft draft_max draft_min kernels no_measure gpu_timeout virtual_gpus cache_dir export_device_map \
                    steps truncate packing seq_len save_every accumulate train_on lora_alpha dtype modules_to_save mixed_precision dropout scheduler warmup optimizer weight_decay grad_clip \
                    eval_data eval_every logging_dir export_plan trace cache_save cache_load context_shift keep no_context_shift no_history think no_think hide_thinking alias cors queue cache_ram embeddings models_dir keep_alive grammar grammar_file json_schema json_schema_file regex";

/// What `-h` of one command leaves out besides.
const RARE_IN: [(&str, &str); 1] = [("plan", "batch lora_r target full")];

/// What the long help ends with.
const TWINS: &str = "Every option can be set in the environment: --ctx-size is TIERFLOW_CTX_SIZE.\n\
                     Your own defaults are written by: tierflow config";

/// How much of the options a help shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// The common ones, in one list, since with headings they would not fit a screen.
    Short,
    /// All, in groups.
    Long,
}

impl Length {
    /// What the command line asks for, where it asks for help.
    pub(super) fn wanted(arguments: &[OsString]) -> Length {
        let is_long = arguments.get(1).is_some_and(|first| first == "help") || arguments.iter().any(|argument| argument == "--help");
        if is_long { Length::Long } else { Length::Short }
    }
}

/// `command` with a help of that length in all subcommands.
pub(super) fn with_help(command: Command, length: Length) -> Command {
    command.mut_subcommands(|subcommand| {
        let help = Arg::new("help").short('h').long("help").action(ArgAction::Help);
        let subcommand = subcommand.disable_help_flag(true).arg(help.help("Print help: -h the daily options, --help all"));
        let has_options = subcommand.get_arguments().any(|arg| arg.get_env().is_some());
        let rare = RARE_IN.iter().find(|(name, _)| *name == subcommand.get_name()).map_or("", |(_, ids)| ids);
        let subcommand = with_help(subcommand.mut_args(|arg| placed(arg, length, rare)), length);
        if has_options { subcommand.after_long_help(TWINS) } else { subcommand }
    })
}

/// An option where the help of a command has it, `rare` being those that are so in this command.
fn placed(arg: Arg, length: Length, rare: &str) -> Arg {
    let id = arg.get_id().to_string();
    let is_among = |ids: &str| ids.split_whitespace().any(|among| among == id);
    let is_rare = arg.is_hide_short_help_set() || is_among(RARE) || is_among(rare);
    let arg = arg.hide_env(true).hide_short_help(is_rare);
    // Words without a flag are clap's own first group.
    if arg.is_positional() {
        return arg;
    }
    let group = GROUPS.iter().find(|(_, ids)| is_among(ids)).map(|(heading, _)| *heading);
    // In one list too, the options of a group stand together; then come those of the output, and the help itself.
    let mut grouped = GROUPS.iter().flat_map(|(_, ids)| ids.split_whitespace());
    let order = if id == "help" { usize::MAX } else { grouped.position(|among| among == id).unwrap_or(usize::MAX - 1) };
    let arg = arg.display_order(order);
    match length {
        Length::Short => arg,
        Length::Long => arg.help_heading(group.unwrap_or("Output")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn the_long_help_is_asked_for_by_name() {
        for (line, length) in
            [("run m -h", Length::Short), ("run --help", Length::Long), ("help run", Length::Long), ("run help", Length::Short)]
        {
            let arguments: Vec<OsString> = ["tierflow"].into_iter().chain(line.split(' ')).map(OsString::from).collect();
            assert_eq!(Length::wanted(&arguments), length, "{line}");
        }
    }

    #[test]
    fn what_is_grouped_or_rare_is_an_option() {
        let command = Cli::command();
        let is_option = |id: &str| command.get_subcommands().flat_map(Command::get_arguments).any(|arg| arg.get_id() == id);
        for id in GROUPS.iter().flat_map(|(_, ids)| ids.split_whitespace()).chain(RARE.split_whitespace()) {
            assert!(is_option(id), "{id}");
        }
        for (name, ids) in RARE_IN {
            let own = command.find_subcommand(name).unwrap();
            assert!(ids.split_whitespace().all(|id| own.get_arguments().any(|arg| arg.get_id() == id)), "{name}: {ids}");
        }
    }
}
