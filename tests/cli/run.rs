//! `tierflow run`: what reaches stdout, and what chooses it.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tierflow::DeviceChoice;
use tierflow::engine::Engine;
use tierflow::machine::Measure;
use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;
use tierflow::text::{ChatMessage, TemplateInput, Tokenizer, Written};
use xtask::models::{GgufType, LlamaShape, Stored, write_hf};

use crate::common::program::{Home, Ran, devices, has_gpu, text, wait};

const GREEDY: [&str; 4] = ["--temp", "0", "-n", "12"];

/// `run MODEL -p hello` with `more`, as JSON.
fn answer(home: &Home, model: &str, more: &[&str]) -> Value {
    let arguments: Vec<&str> = ["run", model, "-p", "hello", "--json"].iter().chain(more).copied().collect();
    home.json("tierflow.run/1", &arguments)
}

fn with_stdin(home: &Home, arguments: &[&str], input: &str) -> Ran {
    let mut child = home.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    wait(child)
}

#[test]
fn stdout_carries_the_answer_and_nothing_else() {
    let home = Home::new();
    for model in [home.folder_model(), home.gguf_model(GgufType::Q8_0)] {
        for device in devices() {
            let more = [&GREEDY[..], &["--device", device]].concat();
            let json = answer(&home, &model, &more);
            let ran = home.run(&[&["run", &model, "-p", "hello"], &more[..]].concat());
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            assert_eq!(ran.stdout, format!("{}\n", json["text"].as_str().unwrap()), "{model} on {device}");
            assert!(ran.stderr.contains("[ Prompt: ") && ran.stderr.contains(" peak "), "{}", ran.stderr);
            assert_eq!(json["tokens"].as_array().unwrap().len(), 12);
            assert_eq!(json["finish_reason"], "length");
            for memory in json["memory"].as_array().unwrap() {
                assert!(memory["peak"].as_u64() <= memory["budget"].as_u64(), "{memory}");
            }
        }
    }
}

#[test]
fn greedy_answers_are_the_same_wherever_the_model_lives() {
    let home = Home::new();
    for model in [home.folder_model(), home.gguf_model(GgufType::F32)] {
        let expected = &answer(&home, &model, &[&GREEDY[..], &["--device", "cpu"]].concat())["tokens"];
        if has_gpu() {
            for budgets in ["gpu:0=1GiB", "gpu:0=1MiB,cpu=1MiB", "gpu:0=1MiB,cpu=0"] {
                let found = &answer(&home, &model, &[&GREEDY[..], &["--device", "gpu", "--max-memory", budgets]].concat())["tokens"];
                assert_eq!(found, expected, "{model} with {budgets}");
            }
        }
    }
}

#[test]
fn a_prompt_becomes_tokens_before_anything_is_loaded() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::F32);
    let builder = Engine::builder(&model).device(DeviceChoice::Cpu).measure(Measure::Never);
    let mut prepared = pollster::block_on(builder.prepare()).unwrap();
    let messages = [ChatMessage::new("user", "hello")];
    let tokens = prepared.text().unwrap().encode_chat(&messages, &TemplateInput::default(), Written::Parsed).unwrap();
    assert_eq!(answer(&home, &model, &["-n", "1", "--device", "cpu"])["prompt_tokens"], tokens.len());
    let engine = pollster::block_on(prepared.load(&|_| {})).unwrap();
    assert_eq!(engine.encode_chat(&messages).unwrap(), tokens);
}

#[test]
fn an_answer_that_is_cut_off_says_why() {
    let home = Home::new();
    let model = home.folder_model();
    let stderr = |more: &[&str]| home.run(&[&["run", &model, "-p", "hello", "--raw", "--temp", "0", "--ignore-eos"], more].concat()).stderr;
    assert!(stderr(&["-n", "3"]).contains("\ncut off: -n 3 allows no more tokens\n"));
    assert!(stderr(&["-c", "64"]).contains("\ncut off: the context of 64 positions is full; -c N makes it longer\n"));
    assert!(!stderr(&["-c", "64", "-q"]).contains("cut off"));
    // It ends by itself.
    let text = home.stdout(&["run", &model, "-p", "hello", "--raw", "--temp", "0", "-n", "3", "--ignore-eos"]);
    let stop: String = text.trim_end().chars().take(1).collect();
    assert!(!stderr(&["-n", "9", "--stop", &stop]).contains("cut off"), "{text:?}");
}

#[test]
fn the_seed_decides_what_is_sampled() {
    let home = Home::new();
    let model = home.folder_model();
    for device in devices() {
        let sampled = |seed: &str| {
            let json = answer(&home, &model, &["--device", device, "--temp", "1.5", "--top-k", "0", "-n", "24", "-s", seed]);
            (json["tokens"].clone(), json["seed"].as_u64().unwrap())
        };
        assert_eq!(sampled("7"), sampled("7"), "{device}");
        assert_ne!(sampled("7").0, sampled("8").0, "{device}");
        // A random seed is reported, and it is the one that was used.
        let (tokens, seed) = sampled("-1");
        assert_eq!(sampled(&seed.to_string()).0, tokens, "{device}");
    }
}

#[test]
fn a_small_model_drafts_what_the_model_draws() {
    let home = Home::new();
    let (model, other) = (home.circling_model(), home.folder_model());
    let count = |json: &Value, key: &str| json["statistics"]["drafts"][key].as_u64().unwrap();
    for device in devices() {
        for sampling in [&["--temp", "0"][..], &["--temp", "1", "-s", "3"]] {
            let start = [&["-n", "40", "--ignore-eos", "--device", device], sampling].concat();
            let plain = answer(&home, &model, &start);
            for (draft, more) in [(&model, &["--draft-min", "3"][..]), (&other, &["--draft-min", "1"]), (&other, &[])] {
                let found = answer(&home, &model, &[&start[..], &["-md", draft, "--max-memory", "cpu=200MiB"], more].concat());
                assert_eq!((&found["tokens"], &found["text"]), (&plain["tokens"], &plain["text"]), "{sampling:?} on {device}");
                assert_eq!(count(&found, "forwards") + count(&found, "accepted"), 39, "{found}");
                assert!(sampling != ["--temp", "0"] || draft != &model || count(&found, "forwards") <= 12, "{found}");
            }
        }
    }
    let start = ["run", &model, "-p", "hello", "--device", "cpu", "--temp", "0", "-n", "40", "--ignore-eos", "--model-draft"];
    let ran = home.run(&[&start[..], &[&model, "--draft-min", "2"]].concat());
    assert!(ran.code == Some(0) && ran.stderr.contains(" tokens/forward, "), "{}", ran.stderr);
    let more = home.path("more");
    write_hf(&more, &LlamaShape { vocab_size: 352, ..LlamaShape::tiny() }, 1, Stored::BF16, 1).unwrap();
    // Room for more tokens is no other vocabulary.
    let with_more = home.run(&[&start[..], &[more.to_str().unwrap(), "--draft-min", "2"]].concat());
    assert_eq!((with_more.code, with_more.stdout), (Some(0), ran.stdout), "{}", with_more.stderr);
    let refusal = home.refusal(2, &[&start[..], &[&model, "--spec-type", "ngram-simple"]].concat());
    assert!(refusal.contains("leave out one of them"), "{refusal}");
}

#[test]
fn answers_keep_to_forms() {
    let home = Home::new();
    let model = home.folder_model();
    let hot = ["run", &model, "-p", "hello", "--temp", "1.5", "--top-k", "0", "--device", "cpu", "-n", "200"];
    let said = |form: &[&str]| home.stdout(&[&hot[..], form].concat()).trim_end_matches('\n').to_owned();
    let grammar = "root ::= (\"ab\" | [0-9]{3}) \"!\"";
    let file = home.path("form.txt");
    let file = file.to_str().unwrap();
    for (form, text) in [("--grammar-file", grammar), ("-jf", "{\"enum\": [[1, true]]}")] {
        std::fs::write(file, text).unwrap();
        let given = if form == "-jf" { ["-j", text] } else { ["--grammar", text] };
        for (seed, form) in [("1", &[form, file]), ("2", &given)] {
            let said = said(&[&["-s", seed], &form[..]].concat());
            let is_digits = |text: &str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            let fits =
                said == "[1,true]" || said == "[1, true]" || said.strip_suffix('!').is_some_and(|text| text == "ab" || is_digits(text));
            assert!(fits, "{said:?}");
        }
    }
    let said = said(&["--regex", "(yes|no){2}"]);
    assert!(["yesyes", "yesno", "noyes", "nono"].contains(&said.as_str()), "{said:?}");
    for (form, words) in [
        (&["--grammar", "root ::= a"][..], "line 1: there is no rule `a`"),
        (&["-j", "{"], "--json-schema: is no JSON"),
        (&["-j", "[]"], "must be an object"),
        (&["--regex", "("], "--regex"),
        (&["--regex", "a", "-j", "{}"], "cannot be used with"),
        (&["--regex", "a", "--think"], "--think"),
    ] {
        let refusal = home.refusal(2, &[&hot[..], form].concat());
        assert!(refusal.contains(words), "{form:?}: {refusal}");
    }
}

#[test]
fn drafts_change_nothing_but_the_number_of_forwards() {
    let home = Home::new();
    let model = home.circling_model();
    let drafted = ["--spec-type", "ngram-simple", "--draft-min", "2"];
    let count = |json: &Value, key: &str| json["statistics"]["drafts"][key].as_u64().unwrap();
    for device in devices() {
        for sampling in [&["--temp", "0"][..], &["--temp", "0", "--repeat-penalty", "1.1"], &["--temp", "1", "-s", "3"]] {
            let start = [&["-n", "64", "--ignore-eos", "--device", device], sampling].concat();
            let plain = answer(&home, &model, &start);
            let found = answer(&home, &model, &[&start[..], &drafted].concat());
            assert_eq!((&found["tokens"], &found["text"]), (&plain["tokens"], &plain["text"]), "{sampling:?} on {device}");
            assert_eq!(count(&found, "forwards") + count(&found, "accepted"), 63, "{found}");
            assert!(sampling != ["--temp", "0"] || count(&found, "forwards") < 50, "{found}");
            assert!(plain["statistics"].get("drafts").is_none());
            for memory in found["memory"].as_array().unwrap() {
                assert!(memory["peak"].as_u64() <= memory["budget"].as_u64(), "{memory}");
            }
        }
    }
    let start = ["run", &model, "-p", "hello", "--device", "cpu", "--temp", "0", "-n", "64", "--ignore-eos"];
    let stderr = |more: &[&str]| home.run(&[&start[..], more].concat()).stderr;
    assert!(stderr(&drafted).contains(" tokens/forward, ") && !stderr(&[]).contains("tokens/forward"));
    // A saved plan has room for drafts where it was made for them.
    let file = home.path("plan.json");
    let file = file.to_str().unwrap();
    let start = ["run", &model, "-p", "hello", "--temp", "0", "-n", "64", "--ignore-eos", "--plan", file];
    for (of_plan, is_drafted) in [(&[][..], false), (&drafted, true)] {
        home.stdout(&[&["plan", &model, "--device", "cpu", "--export-plan", file], of_plan].concat());
        let ran = home.run(&[&start[..], &drafted].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.stderr.contains("nothing is drafted: the plan has room for the logits of one token"), !is_drafted, "{}", ran.stderr);
        assert_eq!(ran.stderr.contains(" 0 of 0 drafted accepted"), !is_drafted, "{}", ran.stderr);
    }
}

#[test]
fn the_prompt_comes_from_a_flag_a_word_a_file_or_a_pipe() {
    let home = Home::new();
    let model = home.folder_model();
    let file = home.path("prompt.txt");
    std::fs::write(&file, "hello\n").unwrap();
    let start = ["run", &model, "--device", "cpu", "--temp", "0", "-n", "8"];
    let run = |more: &[&str]| home.stdout(&[&start[..], more].concat());
    let expected = run(&["-p", "hello"]);
    assert_eq!(run(&["hello"]), expected);
    assert_eq!(run(&["-f", file.to_str().unwrap()]), expected);
    for more in [&[][..], &["-p", "-"]] {
        let ran = with_stdin(&home, &[&start[..], more].concat(), "hello\n");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), expected.as_str()), "{more:?}: {}", ran.stderr);
    }
    assert_ne!(run(&["-p", "other words"]), expected);
}

/// A model whose chat template opens the reasoning, or closes it where none is wanted: all that it writes is one or the other.
fn thinking_model(home: &Home) -> String {
    let model = home.folder_model();
    let template = "{% for message in messages %}{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}\
        {{ '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else '<think>\n' }}{% endif %}";
    std::fs::write(Path::new(&model).join("chat_template.jinja"), template).unwrap();
    model
}

#[test]
fn what_a_model_thinks_is_told_apart_from_its_answer() {
    let home = Home::new();
    let model = thinking_model(&home);
    let start = ["--device", "cpu", "--temp", "0", "-n", "12", "--ignore-eos"];
    let json = |more: &[&str]| answer(&home, &model, &[&start, more].concat());
    let thought = json(&[]);
    let reasoning = thought["reasoning"].as_str().unwrap().to_owned();
    assert!(thought["text"] == "" && !reasoning.trim().is_empty(), "{thought}");
    for more in [&["--think"][..], &["--think=high"], &["--no-think", "--think"]] {
        assert_eq!(json(more)["reasoning"], reasoning, "{more:?}");
    }
    for more in [&["--no-think"][..], &["--think=false"], &["--think", "--no-think"], &["--raw"]] {
        let said = json(more);
        assert!(said["reasoning"].is_null() && said["text"].as_str().is_some_and(|text| !text.is_empty()), "{more:?}: {said}");
    }
    // The answer alone is on stdout.
    let ran = |more: &[&str]| home.run(&[&["run", &model, "-p", "hello"], &start[..], more].concat());
    let shown = ran(&[]);
    assert_eq!(shown.stdout, "\n");
    assert!(shown.stderr.contains(&format!("Thinking...\n{reasoning}")), "{}", shown.stderr);
    for more in ["--hide-thinking", "-q"] {
        assert!(!ran(&[more]).stderr.contains("Thinking..."), "{more}");
    }
    assert_eq!(ran(&["--no-think"]).stdout, format!("{}\n", json(&["--no-think"])["text"].as_str().unwrap()));
}

#[test]
fn templates_that_do_not_ask_about_thinking_are_named() {
    let home = Home::new();
    let model = home.folder_model();
    let stderr = |more: &[&str]| home.run(&[&["run", &model, "-p", "x", "-n", "1", "--device", "cpu"], more].concat()).stderr;
    assert!(stderr(&["--no-think"]).contains("its chat template does not ask"));
    assert!(stderr(&["--think", "--raw"]).contains("--raw leaves its chat template out"));
    assert!(!stderr(&[]).contains("whether to think"));
}

#[test]
fn raw_leaves_the_chat_template_out() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q4_0);
    let n_prompt =
        |more: &[&str]| answer(&home, &model, &[&["--device", "cpu", "-n", "1"], more].concat())["prompt_tokens"].as_u64().unwrap();
    let (raw, plain, system) = (n_prompt(&["--raw"]), n_prompt(&[]), n_prompt(&["-sys", "Be brief."]));
    assert!(raw < plain && plain < system, "{raw} {plain} {system}");
}

#[test]
fn a_prompt_that_spells_a_special_token_can_be_plain_text() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q4_0);
    let n_prompt = |prompt: &str, more: &[&str]| {
        let arguments = [&["run", &model, "-p", prompt, "--json", "--device", "cpu", "-n", "1"], more].concat();
        home.json("tierflow.run/1", &arguments)["prompt_tokens"].as_u64().unwrap()
    };
    let tokenizer = Tokenizer::open(&Checkpoint::open(Path::new(&model), IoMode::Pread).unwrap()).unwrap();
    let special = tokenizer.token_text(tokenizer.eos_tokens()[0]).unwrap();
    for more in [&[][..], &["--raw"]] {
        let plain = [more, &["--no-parse-special"]].concat();
        assert!(n_prompt(&special, &plain) > n_prompt(&special, more), "{more:?}");
        assert_eq!(n_prompt("hello", &plain), n_prompt("hello", more), "{more:?}: the template's own tokens stay tokens");
    }
}

#[test]
fn a_stop_string_ends_the_answer_and_is_no_part_of_it() {
    let home = Home::new();
    let model = home.folder_model();
    let sampling = ["--device", "cpu", "--temp", "2", "-s", "3", "-n", "40"];
    let text = answer(&home, &model, &sampling)["text"].as_str().unwrap().to_owned();
    let (at, stop) = text.char_indices().skip(3).find(|(_, char)| char.is_ascii_graphic()).expect("a letter in the answer");
    let stop = stop.to_string();
    let first = text.find(&stop).unwrap().min(at);
    let stopped = answer(&home, &model, &[&sampling[..], &["--stop", &stop]].concat());
    assert_eq!((stopped["text"].as_str().unwrap(), &stopped["finish_reason"]), (&text[..first], &Value::from("stop")));
}

#[test]
fn nothing_is_generated_where_nothing_is_asked_for() {
    let home = Home::new();
    let json = answer(&home, &home.folder_model(), &["--device", "cpu", "-n", "0"]);
    assert_eq!((json["text"].as_str(), json["tokens"].as_array().map(Vec::len)), (Some(""), Some(0)));
    assert_eq!(json["finish_reason"], "length");
}

#[test]
fn an_answer_ends_where_the_context_does() {
    let home = Home::new();
    let json = answer(&home, &home.folder_model(), &["--device", "cpu", "-c", "64", "--ignore-eos", "--temp", "0"]);
    let n_tokens = json["tokens"].as_array().unwrap().len() as u64;
    // The last token needs no position: nothing is computed from it.
    assert_eq!(n_tokens + json["prompt_tokens"].as_u64().unwrap(), 65);
    assert_eq!(json["finish_reason"], "length");
}

#[test]
fn stderr_is_as_loud_as_asked() {
    let home = Home::new();
    let model = home.folder_model();
    let stderr = |more: &[&str]| home.run(&[&["run", &model, "-p", "x", "-n", "2", "--device", "cpu"], more].concat()).stderr;
    assert_eq!(stderr(&["-q"]), "");
    assert!(!stderr(&[]).contains("DEBUG"));
    assert!(stderr(&["-v"]).contains("DEBUG"));
    assert!(!stderr(&["-v"]).contains('\u{1b}'), "colours off a terminal");
    let mut command = home.command(&["run", &model, "-p", "x", "-n", "2", "--device", "cpu", "-q"]);
    assert!(wait(command.env("RUST_LOG", "tierflow=debug").spawn().unwrap()).stderr.contains("DEBUG"));
}

#[test]
fn the_drivers_are_quiet_where_there_is_no_desktop() {
    let home = Home::new();
    let model = home.folder_model();
    let mut command = home.command(&["run", &model, "-p", "x", "-n", "2", "-q"]);
    let ran = wait(command.env_remove("XDG_RUNTIME_DIR").spawn().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}

#[test]
fn options_come_from_the_environment_and_lose_to_the_command_line() {
    let home = Home::new();
    let model = home.folder_model();
    let n_tokens = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = home.command(&[&["run"], arguments].concat());
        command.envs([("TIERFLOW_DEVICE", "cpu"), ("TIERFLOW_PREDICT", "3"), ("TIERFLOW_JSON", "1")]);
        let ran = wait(command.envs(variables.iter().copied()).spawn().unwrap());
        assert_eq!(ran.code, Some(0), "{arguments:?} {variables:?}: {}", ran.stderr);
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["tokens"].as_array().unwrap().len()
    };
    let (right, wrong) = (("TIERFLOW_MODEL", model.as_str()), ("TIERFLOW_MODEL", "no-such-model"));
    assert_eq!(n_tokens(&["-p", "hello"], &[right]), 3);
    assert_eq!(n_tokens(&["-p", "hello", "-n", "2"], &[right]), 2);
    assert_eq!(n_tokens(&["hello"], &[right, ("TIERFLOW_PROMPT", "other")]), 3);
    for arguments in [&["-m", &model, "hello"][..], &[&model, "hello"], &[&model, "-p", "hello"]] {
        assert_eq!(n_tokens(arguments, &[wrong, ("TIERFLOW_HF_REPO", "no/such"), ("TIERFLOW_PROMPT", "x")]), 3, "{arguments:?}");
    }
}

#[test]
fn a_sequence_is_kept_from_one_run_to_the_next() {
    let home = Home::new();
    let model = home.larger_model();
    for (device, dtype) in devices().into_iter().zip(["q8_0", "f16"]) {
        let file = text(&home.path("sequence"));
        let run = |prompt: &str, more: &[&str]| {
            let settings = [
                "--raw",
                "--temp",
                "0",
                "-n",
                "6",
                "--ignore-eos",
                "-c",
                "512",
                "--device",
                device,
                "-ctk",
                dtype,
                "-ctv",
                dtype,
                "--json",
            ];
            home.json("tierflow.run/1", &[&["run", &model, "-p", prompt], &settings[..], more].concat())
        };
        let begin = "hello world".repeat(9);
        let first = run(&begin, &["--cache-save", &file]);
        let computed = |json: &Value| json["statistics"]["n_prompt"].as_u64().unwrap();
        let n_prompt = first["prompt_tokens"].as_u64().unwrap();
        assert_eq!(computed(&first), n_prompt);
        let longer = format!("{begin} and more");
        let (plain, going_on) = (run(&longer, &[]), run(&longer, &["--cache-load", &file]));
        assert_eq!(computed(&plain), computed(&going_on) + n_prompt, "what was kept is not computed again");
        // llama.cpp's: read where it is there, and written.
        std::fs::remove_file(&file).unwrap();
        run(&begin, &["--prompt-cache", &file]);
        assert_eq!(run(&longer, &["--prompt-cache", &file, "--prompt-cache-ro", "--prompt-cache-all"])["tokens"], going_on["tokens"]);
        let other = home.run(&["run", &home.gguf_model(GgufType::F32), "-p", "x", "--device", device, "--cache-load", &file]);
        assert!(other.code == Some(1) && other.stderr.contains("was saved with other weights"), "{other:?}");
    }
    let refusal = home.refusal(2, &["run", &model, "-p", "x", "--prompt-cache", "a", "--cache-save", "b"]);
    assert!(refusal.contains("--cache-save"), "{refusal}");
    let refusal = home.refusal(1, &["run", &model, "-p", "x", "--device", "cpu", "--cache-load", &text(&home.path("nothing"))]);
    assert!(refusal.contains("nothing"), "{refusal}");
}

#[test]
fn a_full_context_is_shifted_where_that_is_asked_for() {
    let home = Home::new();
    let model = home.folder_model();
    let run = |more: &[&str]| {
        answer(&home, &model, &[&["--raw", "--temp", "0", "--ignore-eos", "-c", "64", "-n", "150", "--device", "cpu"], more].concat())
    };
    let cut = run(&[]);
    assert_eq!(cut["finish_reason"], "length");
    assert!(cut["tokens"].as_array().unwrap().len() < 64 && cut["dropped_tokens"].is_null());
    let shifted = run(&["--context-shift", "--keep", "-1"]);
    assert_eq!(shifted["tokens"].as_array().unwrap().len(), 150);
    assert!(shifted["dropped_tokens"].as_u64().unwrap() > 64, "{shifted}");
    // Room is made before what would have been the last token.
    let begin = |json: &Value| json["tokens"].as_array().unwrap()[..cut["tokens"].as_array().unwrap().len() - 1].to_vec();
    assert_eq!(begin(&shifted), begin(&cut), "it begins alike");
    let told = home.run(&[
        "run",
        &model,
        "-p",
        "hello",
        "--raw",
        "--temp",
        "0",
        "--ignore-eos",
        "-c",
        "64",
        "-n",
        "80",
        "--context-shift",
        "--device",
        "cpu",
    ]);
    assert!(told.stderr.contains("the context was full: ") && told.stderr.contains("-n 80 allows no more tokens"), "{}", told.stderr);
}
