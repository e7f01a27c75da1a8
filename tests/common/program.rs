//! Runs the built program in a clean environment, on small seeded models.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use xtask::models::{GgufType, LlamaShape, Stored, write_gguf, write_hf, write_hf_headers};

/// No run of a small model takes so long.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// A folder with models, and caches of its own.
pub struct Home {
    folder: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// The answer.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl Home {
    pub fn new() -> Home {
        Home { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A tiny model as a folder with safetensors.
    pub fn folder_model(&self) -> String {
        let folder = self.path("folder");
        write_hf(&folder, &LlamaShape::tiny(), 1, Stored::BF16, 2).expect("a model");
        text(&folder)
    }

    /// The same, of which each token sees itself alone: greedy texts soon go round in a circle.
    pub fn circling_model(&self) -> String {
        let folder = self.path("circling");
        write_hf(&folder, &LlamaShape { sliding_window: Some(1), ..LlamaShape::tiny() }, 1, Stored::BF16, 1).expect("a model");
        text(&folder)
    }

    /// A tiny model as a GGUF file, matrices in `dtype`.
    pub fn gguf_model(&self, dtype: GgufType) -> String {
        let file = self.path("tiny.gguf");
        write_gguf(&file, &LlamaShape::tiny(), 1, dtype).expect("a model");
        text(&file)
    }

    /// A model whose forwards take some milliseconds: 26 MB in F32, with room for long answers.
    pub fn larger_model(&self) -> String {
        let shape = LlamaShape { hidden_size: 256, ffn_size: 1024, n_layers: 6, head_size: 64, context_length: 4096, ..LlamaShape::tiny() };
        let file = self.path("larger.gguf");
        write_gguf(&file, &shape, 1, GgufType::F32).expect("a model");
        text(&file)
    }

    /// The headers of an 8 B model, and the description of a machine that is too small for it: what README plans.
    pub fn readme_example(&self) -> (String, String) {
        let model = self.path("llama-3.1-8b");
        write_hf_headers(&model, &LlamaShape::eight_billion(), Stored::BF16, 1).expect("a model's headers");
        (text(&model), text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/devices/rx7600-16gb.json")))
    }

    /// The program with `arguments`, in an environment that holds none of the user's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierflow"));
        self.clean(&mut command);
        command.args(arguments);
        command
    }

    /// Takes the user's settings out of the environment of `command`.
    pub fn clean(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let is_hub = ["HF_", "HUGGING", "TRANSFORMERS_"].iter().any(|prefix| text.starts_with(prefix));
            if text.starts_with("TIERFLOW_") || is_hub || text == "RUST_LOG" || text == "NO_COLOR" {
                command.env_remove(&name);
            }
        }
        command.env("TIERFLOW_CACHE", self.path("cache")).env("HF_HOME", self.path("hub")).env("XDG_RUNTIME_DIR", self.folder.path());
        // Each home would measure the machine anew, while other tests load it.
        command.env("XDG_CONFIG_HOME", self.path("config")).env("XDG_STATE_HOME", self.path("state")).env("TIERFLOW_NO_MEASURE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        wait(self.command(arguments).spawn().expect("the program"))
    }

    /// The answer of a run that must succeed.
    #[track_caller]
    pub fn stdout(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        ran.stdout
    }

    /// The JSON of a run that must succeed; its `schema` must be `schema`.
    #[track_caller]
    pub fn json(&self, schema: &str, arguments: &[&str]) -> Value {
        let value: Value = serde_json::from_str(&self.stdout(arguments)).expect("JSON on stdout");
        assert_eq!(value["schema"], schema, "{arguments:?}");
        value
    }

    /// What a run says on stderr that must fail with `code`.
    #[track_caller]
    pub fn refusal(&self, code: i32, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        ran.stderr
    }
}

/// Waits for `child`, which must end by itself within the time limit.
#[track_caller]
pub fn wait(child: Child) -> Ran {
    wait_after(Vec::new(), child)
}

/// As [`wait`], for a child of whose stdout `first` was read already.
#[track_caller]
pub fn wait_after(mut first: Vec<u8>, child: Child) -> Ran {
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let output: Output = receiver.recv_timeout(TIME_LIMIT).unwrap_or_else(|_| panic!("process {id} runs too long")).expect("its output");
    first.extend(output.stdout);
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(first).expect("UTF-8 on stdout"),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether there is an adapter; where there is none, says so, and fails with `REQUIRE_GPU=1`.
pub fn has_gpu() -> bool {
    let found = !pollster::block_on(tierflow::gpu::list()).expect("listing adapters").is_empty();
    if !found {
        assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|value| value != "1"), "REQUIRE_GPU=1, but there is no adapter");
        eprintln!("SKIP: no adapter; on Debian `apt-get install mesa-vulkan-drivers` gives a software one");
    }
    found
}

/// `cpu`, and `gpu` where there is one.
pub fn devices() -> Vec<&'static str> {
    if has_gpu() { vec!["cpu", "gpu"] } else { vec!["cpu"] }
}

/// The size that a refusal names as the least, as it would be typed.
#[track_caller]
pub fn least(refusal: &str) -> String {
    let rest = refusal.split("needs at least ").nth(1).unwrap_or_else(|| panic!("no size in: {refusal}"));
    rest.split(", has").next().expect("a size").replace(' ', "")
}

pub fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}
