//! llama.cpp's short flags of several letters (`-ngl 20`), rewritten to long ones before clap reads the arguments:
//! clap would take `-ngl` for `-n gl`.

use std::ffi::OsString;

/// The short flags and what they stand for.
const SHORT_FLAGS: [(&str, &str); 12] = [
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-dev", "--device"),
    ("-fa", "--flash-attn"),
    ("-hf", "--hf-repo"),
    ("-hff", "--hf-file"),
    ("-hfr", "--hf-repo"),
    ("-ngl", "--n-gpu-layers"),
    ("-np", "--n-seqs"),
    ("-sys", "--system"),
    ("-sysf", "--system-file"),
    ("-ub", "--ubatch-size"),
];

/// Flags whose value may begin with a dash because it is a text; the argument after them is no flag.
const TEXT_FLAGS: [&str; 4] = ["-sys", "--prompt", "--system", "--stop"];

/// Values that the next argument may be where a flag's value can be left out.
const SWITCH_VALUES: [&str; 5] = ["on", "off", "auto", "0", "1"];

/// Rewrites the short flags among `arguments` (program name first). What follows `--` or is a text stays as it is.
pub fn expand(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter().peekable();
    let mut expanded = Vec::new();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == "--" {
            expanded.push(argument);
            break;
        }
        let is_text_flag = TEXT_FLAGS.contains(&&*text) || text == "-p";
        match long_form(&text) {
            Some(long) if long == "--flash-attn" => {
                // clap cannot tell an optional value from the model's name: join them with `=`.
                let value = arguments.next_if(|next| SWITCH_VALUES.iter().any(|value| next == value));
                let value = value.map(|value| format!("={}", value.to_string_lossy())).unwrap_or_default();
                expanded.push(format!("{long}{value}").into());
            }
            Some(long) => expanded.push(long.into()),
            None => expanded.push(argument),
        }
        if is_text_flag {
            expanded.extend(arguments.next());
        }
    }
    expanded.extend(arguments);
    expanded
}

/// `-ngl=20` becomes `--n-gpu-layers=20`.
fn long_form(argument: &str) -> Option<String> {
    let (flag, value) = match argument.find('=') {
        Some(at) => argument.split_at(at),
        None => (argument, ""),
    };
    let (_, long) = SHORT_FLAGS.iter().find(|(short, _)| *short == flag)?;
    Some(format!("{long}{value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand_text(arguments: &[&str]) -> Vec<String> {
        let arguments = arguments.iter().map(OsString::from);
        expand(arguments).into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn every_row_is_rewritten_apart_and_joined() {
        for (short, long) in SHORT_FLAGS {
            assert_eq!(expand_text(&["tierflow", "run", short, "v"]), ["tierflow", "run", long, "v"]);
            assert_eq!(expand_text(&["tierflow", &format!("{short}=v")]), ["tierflow", &format!("{long}=v")]);
        }
    }

    #[test]
    fn texts_and_what_follows_two_dashes_stay() {
        assert_eq!(expand_text(&["t", "--", "-ngl", "-hf"]), ["t", "--", "-ngl", "-hf"]);
        assert_eq!(expand_text(&["t", "-p", "-ngl", "-ngl", "3"]), ["t", "-p", "-ngl", "--n-gpu-layers", "3"]);
        assert_eq!(expand_text(&["t", "-sys", "-fa"]), ["t", "--system", "-fa"]);
    }

    #[test]
    fn other_flags_stay() {
        for flag in ["-n", "-nglx", "-c4", "--ngl", "-n=-1", "-", "-hfx=3"] {
            assert_eq!(expand_text(&["t", flag]), ["t", flag]);
        }
    }

    #[test]
    fn a_switch_takes_its_value_and_nothing_else() {
        assert_eq!(expand_text(&["t", "-fa", "on", "m"]), ["t", "--flash-attn=on", "m"]);
        assert_eq!(expand_text(&["t", "-fa", "m"]), ["t", "--flash-attn", "m"]);
    }
}
