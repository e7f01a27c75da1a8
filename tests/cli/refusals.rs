//! Refusals: the exit code says which kind of error it is, the text what is wrong and where.

use std::fs;
use std::path::Path;

use xtask::models::{GgufType, LlamaShape, write_gguf};

use crate::common::program::{Home, devices, has_gpu, least, text};

#[test]
fn bad_usage_is_2() {
    let home = Home::new();
    let model = home.folder_model();
    for (arguments, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["run"], "no model is named"),
        (&["run", &model, "-p", "x", "--max-memory", "tpu=1GiB"], "tpu"),
        (&["run", &model, "-p", "x", "--temp", "-1"], "--temp"),
        (&["run", &model, "-p", "x", "--top-p", "NaN"], "--top-p"),
        (&["run", &model, "-p", "x", "-n", "-5"], "--predict"),
        (&["run", &model, "-p", "x", "--device", "gpu:x"], "gpu:x"),
        (&["run", &model, "-p", ""], "the prompt is empty"),
        (&["run", &model, "-p", "x", "--stop", ""], "--stop"),
        (&["run", "no-such-model", "-p", "x"], "no-such-model"),
        (&["logits", &model], "--tokens"),
        (&["completions", "tcsh"], "tcsh"),
    ] {
        let refusal = home.refusal(2, arguments);
        assert!(refusal.contains(word), "{arguments:?}: {refusal}");
    }
}

#[test]
fn a_budget_too_small_is_3_and_the_least_that_it_names_works() {
    let home = Home::new();
    let model = home.folder_model();
    let budgets = if has_gpu() { &[("cpu", ""), ("gpu:0", ""), ("gpu:0", ",cpu=0")][..] } else { &[("cpu", "")] };
    for (device, more) in budgets {
        for ctx_size in ["0", "64", "512"] {
            let run = |size: &str| format!("{device}={size}{more}");
            let small = run("1KiB");
            let arguments =
                |budget| ["run", &model, "-p", "hi", "-n", "3", "--device", &device[..3], "-c", ctx_size, "--max-memory", budget];
            let refusal = home.refusal(3, &arguments(&small));
            assert!(refusal.contains(&format!("does not fit {device}")) && refusal.contains("--max-memory"), "{refusal}");
            home.stdout(&arguments(&run(&least(&refusal))));
        }
    }
}

#[test]
fn what_a_refusal_says_to_set_is_enough_and_a_step_less_is_not() {
    let home = Home::new();
    let model = home.folder_model();
    let devices = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/devices/rx7600-16gb.json"));
    let maps = [("gpu.json", r#"{"": 0}"#), ("cpu.json", r#"{"": "cpu"}"#)].map(|(name, map)| {
        fs::write(home.path(name), map).unwrap();
        text(&home.path(name))
    });
    let asked: [&[&str]; 13] = [
        &[],
        &["--strict"],
        &["--fit"],
        &["-ngl", "all"],
        &["-c", "8192"],
        &["-c", "256", "-ub", "128", "--kv-dtype", "f32"],
        &["-np", "4", "-c", "128"],
        &["--slots", "8"],
        &["--objective", "throughput"],
        &["--device-map", "sequential"],
        &["--device-map", "balanced", "--strict"],
        &["--device-map", &maps[0]],
        &["--device-map", &maps[1]],
    ];
    let mut n_refused = 0;
    for asked in asked {
        for (device, budgets) in
            [("gpu", "gpu:0=2KiB"), ("gpu", "gpu:0=60KiB"), ("auto", "gpu:0=2KiB,cpu=2KiB"), ("auto", "gpu:0=60KiB,cpu=40KiB")]
        {
            let plan = |budgets: &str| {
                let arguments = ["plan", &model, "--devices", &devices, "--device", device, "--max-memory", budgets];
                home.run(&[&arguments, asked].concat())
            };
            let refused = plan(budgets);
            if refused.code == Some(0) {
                continue;
            }
            n_refused += 1;
            let what = format!("{asked:?} with {device} and {budgets}: {}", refused.stderr);
            assert_eq!(refused.code, Some(3), "{what}");
            let budgets = refused.stderr.split("set --max-memory ").nth(1).unwrap_or_else(|| panic!("{what}"));
            let budgets = budgets.split(", or ").next().expect("budgets").trim();
            assert_eq!(plan(budgets).code, Some(0), "{what}");
            let needed = least(&refused.stderr);
            let less = budgets.replacen(&needed, &a_step_less(&needed), 1);
            assert!(less != budgets && plan(&less).code == Some(3), "{what}: {less}");
        }
    }
    assert!(n_refused >= 26, "{n_refused} refusals");
}

/// A tenth of the unit less.
fn a_step_less(size: &str) -> String {
    let (number, unit) = size.split_at(size.find(|c: char| c.is_ascii_alphabetic()).expect("a unit"));
    match number.parse::<f64>().expect("a number") {
        1.0 if unit == "MiB" => "1023.9KiB".into(),
        number => format!("{:.1}{unit}", number - 0.1),
    }
}

#[test]
fn a_gpu_that_is_not_there_is_4() {
    let home = Home::new();
    let model = home.folder_model();
    let refusal = home.refusal(4, &["run", &model, "-p", "x", "--device", "gpu:7"]);
    assert!(refusal.contains("gpu:7 was asked for"), "{refusal}");
    home.refusal(4, &["plan", &model, "--max-memory", "gpu:7=1GiB"]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let home = Home::new();
    let model = home.folder_model();
    let prompt = "word ".repeat(2000);
    let refusal = home.refusal(1, &["run", &model, "-p", &prompt, "--device", "cpu"]);
    assert!(refusal.contains("the context holds 512") && refusal.contains("--ctx-size"), "{refusal}");
    let tokens = vec!["1"; 600].join(",");
    for more in [&[][..], &["--all"]] {
        let refusal = home.refusal(1, &[&["logits", &model, "--tokens", &tokens, "--device", "cpu"], more].concat());
        assert!(refusal.contains("the context holds 512"), "{refusal}");
    }
}

#[test]
fn a_budget_beyond_what_there_is_is_reported() {
    let home = Home::new();
    let model = home.folder_model();
    let plan = |budgets: &str| home.run(&["plan", &model, "--max-memory", budgets]);
    let beyond = "more than the ";
    for (budgets, device) in [("cpu=100TiB", "cpu"), ("gpu:0=100TiB", "gpu:0")] {
        if device == "cpu" || has_gpu() {
            let ran = plan(budgets);
            assert!(ran.code == Some(0) && ran.stderr.contains(&format!("--max-memory {device}=100.0 TiB: {beyond}")), "{}", ran.stderr);
        }
    }
    assert!(!plan("cpu=1MiB").stderr.contains(beyond));
}

#[test]
fn a_token_out_of_the_vocabulary_is_refused() {
    let home = Home::new();
    let model = home.folder_model();
    for device in devices() {
        for tokens in ["320", "1,2,4294967295"] {
            let refusal = home.refusal(1, &["logits", &model, "--tokens", tokens, "--device", device]);
            assert!(refusal.contains("outside the vocabulary of 320"), "{refusal}");
        }
    }
}

#[test]
fn weights_that_are_not_a_number_are_reported() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::F32);
    // The last row of the last tensor, which is the head: the score of one token alone.
    let mut bytes = fs::read(&model).unwrap();
    let row = bytes.len() - 64 * 4;
    for value in bytes[row..].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(&model, bytes).unwrap();
    for device in devices() {
        for more in [
            &["run", &model, "-p", "x", "--temp", "0"][..],
            &["run", &model, "-p", "x", "--top-k", "0"],
            &["logits", &model, "--tokens", "1,2"],
        ] {
            let refusal = home.refusal(1, &[more, &["--device", device]].concat());
            assert!(refusal.contains("NaN") && refusal.contains("token 319"), "{more:?} on {device}: {refusal}");
        }
    }
}

/// Replaces the one occurrence of `from` in a file by `to`, which is as long.
fn replace(file: &Path, from: &str, to: &str) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the name is in the file");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_missing_tensor_is_named() {
    let home = Home::new();
    let gguf = home.gguf_model(GgufType::F32);
    replace(Path::new(&gguf), "output_norm.weight", "output_nope.weight");
    let folder = home.folder_model();
    let index = home.path("folder").join("model.safetensors.index.json");
    replace(&index, "model.norm.weight", "model.nope.weight");
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let holds = |bytes: &[u8]| bytes.windows(17).any(|window| window == b"model.norm.weight");
        if path.extension().is_some_and(|extension| extension == "safetensors") && holds(&fs::read(&path).unwrap()) {
            replace(&path, "model.norm.weight", "model.nope.weight");
        }
    }
    for model in [gguf, folder] {
        let refusal = home.refusal(1, &["inspect", &model]);
        assert!(refusal.contains(&model) && refusal.contains("norm.weight` is missing"), "{refusal}");
        home.refusal(1, &["run", &model, "-p", "x", "--device", "cpu"]);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let home = Home::new();
    let model = home.folder_model();
    let shard = home.path("folder").join("model-00002-of-00002.safetensors");
    // A folder of that name fails to read even for root.
    fs::remove_file(&shard).unwrap();
    fs::create_dir(&shard).unwrap();
    for command in [&["inspect", &model][..], &["run", &model, "-p", "x", "--device", "cpu"]] {
        assert!(home.refusal(1, command).contains(&text(&shard)));
    }
    fs::remove_dir(&shard).unwrap();
    assert!(home.refusal(1, &["inspect", &model]).contains("model-00002-of-00002.safetensors"));
    let empty = home.path("empty.gguf");
    fs::write(&empty, "").unwrap();
    assert!(home.refusal(1, &["inspect", &text(&empty)]).contains("empty.gguf"));
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let home = Home::new();
    let model = home.folder_model();
    let nowhere = text(&home.path("no/such/folder/out"));
    for command in [
        &["logits", &model, "--tokens", "1", "--out", &nowhere][..],
        &["run", &model, "-p", "x", "-n", "1", "--trace", &nowhere],
        &["run", &model, "-p", "x", "-n", "1", "--cache-save", &nowhere],
        &["bench", &model, "-p", "2", "-n", "1", "-r", "1", "--trace", &nowhere],
    ] {
        let ran = home.run(&[command, &["--device", "cpu"]].concat());
        // A folder may be misspelt, and is not made.
        assert!(ran.code == Some(1) && ran.stderr.contains(&nowhere) && ran.stderr.contains("there is no folder"), "{ran:?}");
        assert!(!home.path("no").exists() && (command[0] == "logits" || ran.stdout.is_empty()), "{ran:?}");
    }
}

#[test]
fn a_refusal_speaks_in_one_unit() {
    let home = Home::new();
    let model = home.folder_model();
    let devices = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/devices/rx7600-16gb.json"));
    let refusal = home.refusal(3, &["plan", &model, "--devices", &devices, "--device", "cpu", "-c", "100000000"]);
    assert!(refusal.contains("of this machine has ") && refusal.contains("MiB") && !refusal.contains("GiB"), "{refusal}");
}

#[test]
fn one_layer_is_one_layer() {
    let home = Home::new();
    let file = home.path("one.gguf");
    write_gguf(&file, &LlamaShape { n_layers: 1, ..LlamaShape::tiny() }, 1, GgufType::F32).unwrap();
    let model = text(&file);
    assert!(home.stdout(&["inspect", &model]).contains("  1 layer, hidden"));
    let ran = home.run(&["run", &model, "-p", "x", "-n", "1", "--device", "cpu"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("  1 layer\n"), "{}", ran.stderr);
}

#[test]
fn what_is_of_no_use_in_a_models_files_is_reported_by_file_and_key() {
    let home = Home::new();
    let model = home.folder_model();
    let file = |name: &str| home.path("folder").join(name);
    let append = |name: &str, more: &str| {
        let text = fs::read_to_string(file(name)).unwrap();
        fs::write(file(name), format!("{}, {more}}}", text.trim_end().strip_suffix('}').unwrap())).unwrap();
    };
    append("config.json", r#""rms_norm_eps": NaN, "rope_theta": Infinity, "unused": NaN"#);
    append("tokenizer_config.json", r#""chat_template": null"#);
    fs::write(file("generation_config.json"), r#"{"eos_token_id": [2, 99999]}"#).unwrap();
    fs::create_dir(file("additional_chat_templates")).unwrap();
    fs::write(file("additional_chat_templates/rag.jinja"), "{{ messages }}").unwrap();
    let ran = home.run(&["run", &model, "-p", "x", "-n", "1", "--device", "cpu"]);
    for named in [
        "config.json: `rms_norm_eps` is NaN and is ignored",
        "config.json: `rope_theta` is Infinity and is ignored",
        "generation_config.json: 99999 is named as a token",
        "additional_chat_templates: none of its chat templates (rag) is called default",
    ] {
        assert_eq!(ran.stderr.matches(named).count(), 1, "{named}: {}", ran.stderr);
    }
    assert!(ran.code == Some(0) && !ran.stderr.contains("unused"), "{}", ran.stderr);
}
