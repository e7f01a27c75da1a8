//! The subcommands that report: tables for people, JSON for programs, files for other tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;
use tierflow::text::{Special, Tokenizer};
use xtask::models::GgufType;

use crate::common::program::{Home, devices, has_gpu, text, wait};

#[test]
fn devices_and_doctor_show_host_and_disk() {
    let home = Home::new();
    for (schema, command) in [("tierflow.devices/1", "devices"), ("tierflow.doctor/2", "doctor")] {
        let names: Vec<Value> =
            home.json(schema, &[command, "--json"])["devices"].as_array().unwrap().iter().map(|one| one["device"].clone()).collect();
        assert!(names.contains(&"cpu".into()) && names.contains(&"disk".into()), "{names:?}");
        let adapters = home.json(schema, &[command, "--json"])["adapters"].clone();
        if command == "doctor" && has_gpu() {
            let [least, most] = [0, 1].map(|end| adapters[0]["subgroup_lanes"][end].as_u64().unwrap());
            assert!(
                adapters[0]["device"] == "gpu:0" && least <= most && adapters[0]["workgroup_lanes"].as_u64() >= Some(256),
                "{adapters}"
            );
        }
        let table = home.stdout(&[command]);
        assert!(table.contains("\ncpu ") && table.contains("\ndisk "), "{table}");
        assert!(!table.contains('\u{1b}'));
    }
}

#[test]
fn tokenize_shows_ids_and_pieces() {
    let home = Home::new();
    for model in [home.folder_model(), home.gguf_model(GgufType::Q8_0)] {
        let tokenizer = Tokenizer::open(&Checkpoint::open(Path::new(&model), IoMode::Pread).unwrap()).unwrap();
        let special = tokenizer.token_text(tokenizer.eos_tokens()[0]).unwrap();
        let prompt = format!("héllo {special}");
        let ids = |more: &[&str]| -> Vec<u32> {
            let json = home.json("tierflow.tokenize/1", &[&["tokenize", &model, &prompt, "--json"], more].concat());
            json["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let parsed = ids(&[]);
        assert_eq!(parsed, tokenizer.encode(&prompt, Special::Add).unwrap());
        assert_eq!(ids(&["--no-special"]), tokenizer.encode(&prompt, Special::Leave).unwrap());
        let plain = ids(&["--no-parse-special"]);
        assert_eq!(plain, tokenizer.encode_plain(&prompt, Special::Add).unwrap());
        assert!(plain.len() > parsed.len() && tokenizer.decode(&plain).ends_with(&prompt));
        let list = home.stdout(&["tokenize", "-m", &model, &prompt, "--ids"]);
        assert_eq!(list, format!("{parsed:?}\n"));
        let lines = home.stdout(&["tokenize", &model, "-p", &prompt, "--show-count"]);
        let last = format!("{:6} -> '{special}'\nTotal number of tokens: {}\n", parsed.last().unwrap(), parsed.len());
        assert!(lines.ends_with(&last), "{lines}");
        assert_eq!(home.run(&["tokenize", &model, "a", "-f", "b"]).code, Some(2));
    }
}

#[test]
fn embed_prints_a_vector_for_each_text() {
    let home = Home::new();
    let model = home.folder_model();
    let vectors = |json: &Value| -> Vec<Vec<f64>> {
        let of = |one: &Value| one["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        json["embeddings"].as_array().unwrap().iter().map(of).collect()
    };
    let json = home.json("tierflow.embed/1", &["embed", &model, "a cat", "a dog", "--json", "--pooling", "last"]);
    assert_eq!((&json["pooling"], &json["normalized"]), (&"last".into(), &true.into()));
    let both = vectors(&json);
    assert!(both.iter().all(|vector| (vector.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-5));
    assert_ne!(both[0], both[1]);
    let file = home.path("texts.txt");
    fs::write(&file, "a cat\n\na dog\n").unwrap();
    let of_file = home.json("tierflow.embed/1", &["embed", &model, "-f", file.to_str().unwrap(), "--json", "--pooling", "last"]);
    assert_eq!(vectors(&of_file), both);
    let lines = home.stdout(&["embed", "-m", &model, "a cat", "--pooling", "last"]);
    let printed: Vec<f64> = lines.split_whitespace().map(|value| value.parse().unwrap()).collect();
    assert_eq!(printed.len(), both[0].len());
    assert!(printed.iter().zip(&both[0]).all(|(a, b)| (a - b).abs() < 1e-6));
    let raw = vectors(&home.json("tierflow.embed/1", &["embed", &model, "a cat", "--json", "--pooling", "mean", "--no-normalize"]));
    assert!((raw[0].iter().map(|value| value * value).sum::<f64>() - 1.0).abs() > 1e-3);
    let noted = home.run(&["embed", &model, "a cat"]);
    assert!(noted.stderr.contains("does not say how it pools"), "{}", noted.stderr);
    assert!(home.refusal(2, &["embed", &model, "a", "--prompt-name", "query"]).contains("no prompt `query`"));
    assert!(home.refusal(2, &["embed", &model, "a", "-f", "b"]).contains("given twice"));
}

/// The program on a machine whose Vulkan loader finds no driver.
fn without_adapters(home: &Home, arguments: &[&str]) -> Command {
    let mut command = home.command(arguments);
    command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
    command
}

#[test]
fn everything_but_gpus_works_without_adapters() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q4_1);
    let ran = |arguments: &[&str]| wait(without_adapters(&home, arguments).spawn().unwrap());
    let devices = ran(&["devices"]);
    if devices.stdout.contains("gpu:0") {
        return; // Adapters that are no Vulkan drivers cannot be hidden.
    }
    assert_eq!(devices.code, Some(0), "{}", devices.stderr);
    assert!(devices.stdout.contains("No adapter was found") && devices.stdout.contains("--device cpu"), "{}", devices.stdout);
    for arguments in [&["doctor"][..], &["inspect", &model], &["plan", &model], &["run", &model, "-p", "x", "-n", "2"]] {
        let ran = ran(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stdout.is_empty());
    }
    for more in [&["--device", "gpu"][..], &["--max-memory", "gpu:0=1GiB"]] {
        let ran = ran(&[&["run", &model, "-p", "x"], more].concat());
        assert_eq!(ran.code, Some(4), "{}", ran.stderr);
        assert!(ran.stderr.contains("install a Vulkan driver"), "{}", ran.stderr);
    }
}

#[test]
fn inspect_counts_what_the_model_holds() {
    let home = Home::new();
    // Layer: q 64×64, k and v 32×64, o 64×64, gate, up and down 160×64, two norms of 64. Then embedding, head, last norm.
    let n_parameters = 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64 + 2 * 64) + 2 * 320 * 64 + 64;
    // Vectors, nine of 64 values, stay as they are stored.
    for (model, head_bytes, value_bytes) in
        [(home.folder_model(), 320 * 64 * 2, 2), (home.gguf_model(GgufType::Q8_0), 320 * 64 / 32 * 34, 4)]
    {
        let json = home.json("tierflow.inspect/1", &["inspect", &model, "--json"]);
        assert_eq!(json["n_parameters"], n_parameters);
        assert_eq!(json["kv_bytes_per_token"]["f32"], 4 * 2 * 32 * 4);
        let largest = &json["largest_unit"];
        assert_eq!(largest["size_bytes"].as_u64().unwrap(), (3 * 160 * 64 * head_bytes / (320 * 64)).max(head_bytes) as u64);
        let f32_row = json["at_dtype"].as_array().unwrap().iter().find(|row| row["dtype"] == "F32").unwrap();
        assert_eq!(f32_row["weights"], 4 * (n_parameters - 9 * 64) + value_bytes * 9 * 64);
        assert_eq!(json["as_stored"]["weights"], json["size_bytes"]);
        let text = home.stdout(&["inspect", &model]);
        assert!(text.contains("4 layers, hidden 64, ffn 160") && text.contains("\nas it is "), "{text}");
        assert_eq!(json["as_stored"]["resident_4k"], resident(&home, &model), "{model}");
    }
}

/// Bytes that a plan puts on an adapter with room for everything, with a context of 4096.
fn resident(home: &Home, model: &str) -> Value {
    let machine = home.path("machine.json");
    let gpu = r#"{"device": "gpu:0", "name": "large", "kind": "discrete", "capacity": "1TiB", "limits": {"max_buffer_bytes": "1TiB", "max_binding_bytes": "1TiB"}}"#;
    fs::write(
        &machine,
        format!(r#"{{"schema": "tierflow.devices/1", "devices": [{gpu}, {{"device": "cpu", "name": "host", "capacity": "1TiB"}}]}}"#),
    )
    .unwrap();
    let machine = text(&machine);
    let arguments = ["plan", model, "--devices", &machine, "--device", "gpu", "-ngl", "all", "-c", "4096"];
    // What is known of another machine, its file says.
    assert!(!home.stdout(&arguments).contains("--measure"));
    let used = home.json("tierflow.plan/5", &[&arguments[..], &["--json"]].concat())["plan"]["devices"][0]["used"].clone();
    used.as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>().into()
}

#[test]
fn options_that_do_not_do_what_one_hopes_for_are_reported() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q8_0);
    let stderr = |more: &[&str]| home.run(&[&["plan", &model, "--device", "cpu"], more].concat()).stderr;
    assert_eq!(stderr(&["-c", "64", "-ngl", "0"]), "");
    assert!(stderr(&["-c", "100000"]).contains("--ctx-size 100000: the model was trained for 512 positions"));
    for (ctx_size, shown) in [("100", "context 100 of 512\n"), ("512", "context 512\n"), ("100000", "context 100000 (trained for 512)\n")] {
        assert!(home.stdout(&["plan", &model, "-c", ctx_size]).contains(shown), "{shown}");
    }
    assert!(stderr(&["-ngl", "9"]).contains("--n-gpu-layers: no GPU computes"));
    let json = home.json("tierflow.plan/5", &["plan", &model, "-c", "128", "-ub", "100000", "-b", "4096", "--json"]);
    assert_eq!(json["plan"]["forward"]["n_tokens"], 128);
}

#[test]
fn throughput_is_reported_of_all_sequences_and_a_prompt_is_one() {
    let home = Home::new();
    let model = home.gguf_model(GgufType::Q8_0);
    let arguments = ["plan", &model, "--device", "cpu", "--objective", "throughput", "-np", "4", "-c", "64"];
    let json = home.json("tierflow.plan/5", &[&arguments[..], &["--json"]].concat());
    let workload = &json["explanation"]["forecast"]["decode"]["workload"];
    assert_eq!((&workload["n_tokens"], &workload["n_logit_rows"]), (&4.into(), &4.into()));
    assert!(home.stdout(&arguments).contains(" of 4 sequences together"));
    // One prompt takes the memory of one sequence.
    let of_run = |more: &[&str]| {
        let arguments = ["run", &model, "-p", "Hi", "-n", "2", "-c", "64", "--device", "cpu", "--max-memory", "cpu=64MiB", "--json"];
        home.json("tierflow.run/1", &[&arguments[..], more].concat())["memory"].clone()
    };
    assert_eq!(of_run(&["--objective", "throughput"]), of_run(&[]));
}

#[test]
fn more_memory_is_reported_in_rates_and_positions_and_sequences_have_room() {
    let home = Home::new();
    let (model, machine) = home.readme_example();
    let planned = |more: &[&str]| {
        let arguments = ["plan", &model, "--devices", &machine, "--json"];
        home.json("tierflow.plan/5", &[&arguments[..], more].concat())
    };
    let more = |context: &[&str]| planned(context)["explanation"]["with_more"].clone();
    let of_cpu = more(&[]).as_array().unwrap().iter().find(|more| more["device"] == "cpu").unwrap().clone();
    assert!(of_cpu["open_ctx_size"].as_u64() > of_cpu["ctx_size"].as_u64(), "{of_cpu}");
    assert!(more(&["-c", "4096"]).as_array().unwrap().iter().all(|more| more["open_ctx_size"].is_null()));
    let plan = planned(&["--objective", "throughput", "--mix", "256:256"])["plan"].clone();
    assert!(plan["n_seqs"].as_u64() > Some(1) && plan["ctx_size"].as_u64() >= Some(512), "{plan}");
}

#[test]
fn a_plan_is_printed_and_nothing_is_loaded() {
    let home = Home::new();
    let model = home.folder_model();
    for device in devices() {
        let arguments = ["plan", &model, "--device", device, "--max-memory", "cpu=1500KiB", "--json"];
        let json = home.json("tierflow.plan/5", &arguments);
        assert_eq!(json["plan"], home.json("tierflow.plan/5", &arguments)["plan"], "the same plan twice");
        for plan in json["plan"]["devices"].as_array().unwrap() {
            assert!(plan["budget"].is_null() || plan["device"] != device || plan["budget"].as_u64().is_some(), "{plan}");
        }
        assert!(!json["schedule"].is_null());
        let table = home.stdout(&arguments[..arguments.len() - 1]);
        assert!(!table.contains("schedule of one forward") && table.contains("\n  cpu    █"), "{table}");
        assert!(table.contains("`tierflow devices --measure` measures the rates of this machine"), "{table}");
        let with_schedule = home.stdout(&[&arguments[..arguments.len() - 1], &["--schedule"]].concat());
        let schedule = with_schedule.strip_prefix(&table).unwrap();
        assert!(schedule.starts_with("\nschedule of one forward\n") && schedule.contains("readback"), "{schedule}");
    }
    let tight = home.stdout(&["plan", &model, "--device", "cpu", "--max-memory", "cpu=300KiB"]);
    assert!(tight.contains("\n  disk   holds ") && tight.contains(" from disk per token\n"), "{tight}");
}

#[test]
fn bench_prints_rows_as_llama_bench_does() {
    let home = Home::new();
    let model = home.folder_model();
    for device in devices() {
        let arguments = ["bench", &model, "-p", "8", "-n", "4", "-r", "2", "--device", device];
        let table = home.stdout(&arguments);
        assert!(table.contains("| pp8 |") && table.contains("| tg4 |"), "{table}");
        assert!(table.lines().all(|line| line.starts_with("| ") && line.ends_with(" |")), "{table}");
        let json = home.json("tierflow.bench/1", &[&arguments[..], &["-o", "json"]].concat());
        for row in json["rows"].as_array().unwrap() {
            assert!(row["avg_ts"].as_f64().unwrap() > 0.0 && row["samples_ts"].as_array().unwrap().len() == 2, "{row}");
        }
    }
}

#[test]
fn bench_takes_lists_and_prints_their_rows_as_they_come() {
    let home = Home::new();
    let model = home.folder_model();
    let start = ["bench", &model, "-p", "8,16", "-n", "0,4", "-pg", "4,2", "-d", "0,8", "-r", "1", "--device", "cpu"];
    let rows = |more: &[&str]| -> Vec<Value> {
        let lines = home.stdout(&[&start[..], more, &["-o", "jsonl"]].concat());
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let names = |rows: &[Value]| rows.iter().map(|row| row["test"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let once = ["pp8", "pp16", "tg4", "pp4+tg2", "pp8 @ d8", "pp16 @ d8", "tg4 @ d8", "pp4+tg2 @ d8"];
    assert_eq!(names(&rows(&[])), once);
    let n_threads = std::thread::available_parallelism().unwrap().get();
    let both = rows(&["-t", "1,2"]);
    let counts: Vec<u64> = both.iter().map(|row| row["n_threads"].as_u64().unwrap()).collect();
    let expected: &[u64] = if n_threads == 1 { &[1; 8] } else { &[[1; 8], [2; 8]].concat() };
    assert_eq!((counts.as_slice(), &names(&both)[both.len() - 8..]), (expected, &once.map(str::to_owned)[..]));
    for row in &both {
        assert_eq!((&row["backends"], row["samples_ts"].as_array().unwrap().len()), (&"cpu".into(), 1), "{row}");
        let n_tokens = row["n_prompt"].as_f64().unwrap() + row["n_gen"].as_f64().unwrap();
        let (secs, rate) = (row["avg_ns"].as_f64().unwrap() / 1e9, row["avg_ts"].as_f64().unwrap());
        assert!((rate * secs / n_tokens - 1.0).abs() < 1e-3, "{row}");
    }
    let table = home.stdout(&[&start[..], &["-t", "1,1", "--n-gpu-layers", "0"]].concat());
    assert!(
        table.starts_with("| model | size | backend | threads | test | t/s |\n") && table.contains("| cpu | 1 | pp4+tg2 @ d8 |"),
        "{table}"
    );
}

#[test]
fn bench_takes_ranges_and_sizes_of_batches() {
    let home = Home::new();
    let model = home.folder_model();
    let start = ["bench", &model, "-n", "0", "-r", "1", "--device", "cpu", "-o", "jsonl"];
    let rows = |more: &[&str]| -> Vec<(u64, u64)> {
        let lines = home.stdout(&[&start[..], more].concat());
        let number = |row: &Value, name: &str| row[name].as_u64().unwrap();
        let row = |line| serde_json::from_str::<Value>(line).unwrap();
        lines.lines().map(row).map(|row| (number(&row, "n_prompt"), number(&row, "n_ubatch"))).collect()
    };
    assert_eq!(rows(&["-p", "4-16*2", "-ub", "4,8"]), [(4, 4), (8, 4), (16, 4), (4, 8), (8, 8), (16, 8)]);
    assert_eq!(rows(&["-p", "3-4", "-b", "2-6+4", "-ub", "5"]), [(3, 2), (4, 2), (3, 5), (4, 5)]);
    let table = home.stdout(&["bench", &model, "-p", "4", "-n", "0", "-r", "1", "--device", "cpu", "-ub", "2,4"]);
    assert!(table.starts_with("| model | size | backend | n_ubatch | test | t/s |\n") && table.contains("| cpu | 2 | pp4 |"), "{table}");
    let refusal = home.refusal(2, &["bench", &model, "-p", "9-3"]);
    assert!(refusal.contains("`9-3` is no number, and no range"), "{refusal}");
}

#[test]
fn bench_measures_sequences_side_by_side_beside_its_predictions() {
    let home = Home::new();
    let model = home.folder_model();
    for device in devices() {
        let arguments = ["bench", &model, "-p", "8", "-n", "3", "-d", "2", "-r", "1", "-ub", "8", "-np", "1,3", "--device", device];
        let lines = home.stdout(&[&arguments[..], &["-o", "jsonl"]].concat());
        let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
        assert_eq!(names, ["pp8 @ d2", "tg3 @ d2", "pp8 @ d2 × 3", "tg3 @ d2 × 3"]);
        for (row, n_seqs) in rows.iter().zip([1.0, 1.0, 3.0, 3.0]) {
            let n_tokens = (row["n_prompt"].as_f64().unwrap() + row["n_gen"].as_f64().unwrap()) * n_seqs;
            let (secs, rate) = (row["avg_ns"].as_f64().unwrap() / 1e9, row["avg_ts"].as_f64().unwrap());
            assert!((rate * secs / n_tokens - 1.0).abs() < 1e-3 && row["n_seqs"] == n_seqs as u64, "{row}");
            assert!(row["predicted_ts"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
        }
    }
}

#[test]
fn bench_measures_drafts_beside_plain_decoding() {
    let home = Home::new();
    let model = home.circling_model();
    let start = ["bench", &model, "-p", "8", "-n", "64", "-pg", "4,64", "-d", "3", "-r", "1", "--device", "cpu", "--draft-min", "1"];
    for (more, source) in [(["--spec-type", "ngram-simple"], "ngram-simple"), (["--model-draft", &model], "model")] {
        let arguments = [&start[..], &more].concat();
        let rows = home.json("tierflow.bench/1", &[&arguments[..], &["--json"]].concat())["rows"].take();
        assert_eq!(rows.as_array().unwrap().len(), 3);
        for row in rows.as_array().unwrap() {
            let (n_tokens, drafts) = (row["n_prompt"].as_u64().unwrap() + row["n_gen"].as_u64().unwrap(), &row["drafts"]);
            if row["n_gen"] == 0 {
                assert!(drafts.is_null(), "nothing is drafted of prompts: {row}");
                continue;
            }
            assert_eq!((&drafts["source"], &drafts["n_tokens"]), (&source.into(), &n_tokens.into()), "{row}");
            assert!(drafts["avg_ts"].as_f64().unwrap() > 0.0 && drafts["samples_ts"].as_array().unwrap().len() == 1, "{row}");
            let [drafted, accepted, forwards] = ["drafted", "accepted", "forwards"].map(|name| drafts[name].as_u64().unwrap());
            assert!(accepted > 0 && accepted <= drafted && forwards < 64, "{row}");
            // A model drafts what it would say itself.
            assert!(source != "model" || drafted - accepted <= 7, "{row}");
        }
        let table = home.stdout(&arguments);
        assert!(table.starts_with("| model | size | backend | test | t/s | t/s with drafts | accepted/drafted |\n"), "{table}");
        assert!(table.lines().any(|line| line.contains("| pp8 @ d3 |") && line.ends_with("| – | – |")), "{table}");
    }
    let values = home.stdout(&[&start[..], &["--spec-type", "ngram-simple", "-o", "csv"]].concat());
    assert!(values.lines().next().unwrap().ends_with("drafts.avg_ts,drafts.stddev_ts,drafts.drafted,drafts.accepted"), "{values}");
    let refusal = home.refusal(2, &[&start[..], &["--spec-type", "ngram-simple", "-np", "2"]].concat());
    assert!(refusal.contains("--n-seqs: drafts are measured with one sequence"), "{refusal}");
}

#[test]
fn bench_names_all_devices_and_every_number_of_layers() {
    let home = Home::new();
    let model = home.folder_model();
    let start = ["bench", &model, "-p", "4", "-n", "2", "-r", "1"];
    let lines = home.stdout(&[&start[..], &["--device", "cpu", "-ngl", "auto,3", "-o", "csv"]].concat());
    let cells = |line: &str| line.split(',').map(|cell| cell.trim_matches('"').to_owned()).collect::<Vec<_>>();
    let (head, rows): (Vec<String>, Vec<Vec<String>>) = (cells(lines.lines().next().unwrap()), lines.lines().skip(1).map(cells).collect());
    let column = |name: &str| head.iter().position(|cell| cell == name).unwrap_or_else(|| panic!("no {name} in {head:?}"));
    let values = |name: &str| rows.iter().map(|row| row[column(name)].clone()).collect::<Vec<_>>();
    assert_eq!(values("n_gpu_layers"), ["-1", "-1", "3", "3"]);
    assert_eq!(values("test"), ["pp4", "tg2", "pp4", "tg2"]);
    for row in &rows {
        let empty: Vec<&String> = head.iter().zip(row).filter(|(_, cell)| cell.is_empty()).map(|(name, _)| name).collect();
        let of_drafts = ["drafts.avg_ts", "drafts.stddev_ts", "drafts.drafted", "drafts.accepted"];
        assert_eq!(empty, [&["link_bound_ts", "expert_hit_rate", "expert_host_share"], &of_drafts[..]].concat(), "{row:?}");
    }
    if has_gpu() {
        // Layers that the first adapter has no room for go to the second.
        let model = home.larger_model();
        let budgets = ["--virtual-gpus", "2", "--device-map", "sequential", "--max-memory", "gpu:0=14MiB,gpu:1=1GiB", "-c", "64"];
        let plan = home.json("tierflow.plan/5", &[&["plan", &model, "--json"], &budgets[..]].concat());
        let computing = plan["plan"]["devices"].as_array().unwrap().iter().filter(|device| device["n_executed"].as_u64() > Some(0));
        let computing: Vec<&str> = computing.map(|device| device["device"].as_str().unwrap()).collect();
        assert!(computing.len() > 1, "{computing:?}");
        let lines = home.stdout(&[&["bench", &model, "-p", "4", "-n", "2", "-r", "1", "-o", "jsonl"], &budgets[..]].concat());
        for line in lines.lines() {
            assert_eq!(serde_json::from_str::<Value>(line).unwrap()["backends"], computing.join(","));
        }
    }
}

#[test]
fn logits_are_the_same_in_text_json_and_file() {
    let home = Home::new();
    let model = home.folder_model();
    for device in devices() {
        let start = ["logits", &model, "--tokens", "1,2,3", "--device", device];
        let run = |more: &[&str]| home.json("tierflow.logits/1", &[&start[..], more, &["--json"]].concat());
        let all = run(&["--all"]);
        let positions = all["positions"].as_array().unwrap();
        assert_eq!(positions.len(), 3);
        let rows: Vec<Vec<f32>> = positions.iter().map(|one| serde_json::from_value(one["logits"].clone()).unwrap()).collect();
        assert!(rows.iter().all(|row| row.len() == 320));

        let last = run(&[]);
        assert_eq!((last["positions"].as_array().unwrap().len(), &last["positions"][0]["position"]), (1, &Value::from(2)));

        let best = run(&["--all", "--top", "1"])["positions"][2]["top"][0].clone();
        let highest = rows[2].iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(rows[2][best["token"].as_u64().unwrap() as usize], highest);
        let line = home.stdout(&[&start[..], &["--top", "1"]].concat());
        assert!(line.starts_with(&format!("2\t{}:", best["token"])), "{line}");

        assert_eq!(logits_file(&home, &model, &start), rows.concat(), "{device}");
    }
}

/// Writes the logits as safetensors, and reads them with the crate's own reader: as the one shard of a model.
fn logits_file(home: &Home, model: &str, start: &[&str]) -> Vec<f32> {
    let folder = home.path("logits");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(Path::new(model).join("config.json"), folder.join("config.json")).unwrap();
    let file = text(&folder.join("model.safetensors"));
    assert_eq!(home.stdout(&[start, &["--all", "--out", &file]].concat()), "");
    let checkpoint = Checkpoint::open(&folder, IoMode::Pread).unwrap();
    let id = checkpoint.expect("logits", &[3, 320]).unwrap();
    let mut bytes = vec![0; 3 * 320 * 4];
    checkpoint.read(id, 0, &mut bytes).unwrap();
    bytemuck::pod_collect_to_vec(&bytes)
}

#[test]
fn a_trace_shows_uploads_inside_earlier_computation() {
    if !has_gpu() {
        return;
    }
    let home = Home::new();
    let model = home.larger_model();
    let file = home.path("trace.json");
    let budgets = ["--device", "gpu", "--max-memory", "gpu:0=16MiB,cpu=0", "-c", "512", "--raw"];
    home.stdout(
        &[&["run", &model, "-p", &"hello world ".repeat(20), "-n", "8", "--temp", "0", "--trace", &text(&file)], &budgets[..]].concat(),
    );
    let trace: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let on = |lane: &str| -> Vec<(f64, f64, u64, u64)> {
        let spans = events.iter().filter(|event| event["ph"] == "X" && event["args"]["lane"] == lane);
        let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
        spans
            .map(|span| {
                let start = span["ts"].as_f64().unwrap();
                (start, start + span["dur"].as_f64().unwrap(), number(&span["args"]["chunk"]), number(&span["args"]["forward"]))
            })
            .collect()
    };
    let (fetches, uploads, computes) = (on("fetch"), on("upload"), on("compute"));
    assert!(!fetches.is_empty() && !uploads.is_empty() && !computes.is_empty());
    let is_hidden = |move_: &(f64, f64, u64, u64)| {
        computes.iter().any(|compute| compute.3 == move_.3 && compute.2 < move_.2 && compute.0 <= move_.0 && move_.1 <= compute.1)
    };
    assert!(uploads.iter().any(is_hidden), "no upload lies inside the computation of an earlier chunk\n{uploads:?}\n{computes:?}");
    assert!(fetches.iter().any(is_hidden), "no fetch lies inside the computation of an earlier chunk\n{fetches:?}\n{computes:?}");
}

#[test]
fn the_cache_is_listed() {
    let home = Home::new();
    assert_eq!(home.json("tierflow.ls/1", &["ls", "--json"])["models"], serde_json::json!([]));
    assert_eq!(home.stdout(&["ls"]), "");
}

#[test]
fn completions_are_written_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.stdout(&["completions", shell]);
        assert!(script.contains("tierflow") && script.contains("max-memory"), "{shell}");
    }
}

#[test]
fn help_and_version_are_answers() {
    let home = Home::new();
    assert!(home.stdout(&["--version"]).starts_with("tierflow "));
    for command in ["run", "plan", "devices", "inspect", "bench", "logits", "doctor", "pull", "ls", "completions"] {
        assert!(home.stdout(&[command, "--help"]).contains("Usage: tierflow"), "{command}");
    }
}

#[test]
fn convert_writes_a_file_that_runs() {
    let home = Home::new();
    let (model, out) = (home.folder_model(), text(&home.path("out.gguf")));
    let report = home.json("tierflow.convert/1", &["convert", &model, &out, "--type", "Q8_0", "--json"]);
    assert_eq!(
        (report["architecture"].as_str(), report["size_bytes"].as_u64()),
        (Some("llama"), fs::metadata(&out).ok().map(|file| file.len()))
    );
    assert!(report["tensors"]["Q8_0"].as_u64() > Some(0), "{report}");
    assert_eq!(home.stdout(&["tokenize", &out, "Hello there", "--ids"]), home.stdout(&["tokenize", &model, "Hello there", "--ids"]));
    let second = text(&home.path("second.gguf"));
    assert_eq!(home.stdout(&["convert", "-m", &out, &second, "--type", "q4_0"]).trim_end(), second);
    for (arguments, named) in [
        (vec!["convert", &model, "--type", "q8_0"], "OUT.gguf"),
        (vec!["convert", &model, &out, "--type", "q9_9"], "q4_k_m"),
        (vec!["convert", &out, &out, "--type", "f16"], "the model itself"),
    ] {
        let refusal = home.refusal(2, &arguments);
        assert!(refusal.contains(named), "{arguments:?}: {refusal}");
    }
}
