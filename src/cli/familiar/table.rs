//! Options and commands of llama.cpp and ollama as tables: their names here, those without effect here, and what to use instead of others.

/// Flags that have another name here. A flag that the subcommand itself has is not looked up.
pub(super) const RENAMED: [(&str, &str); 32] = [
    ("-a", "--alias"),
    ("-cmoe", "--cpu-moe"),
    ("-ncmoe", "--n-cpu-moe"),
    ("-ot", "--override-tensor"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-dev", "--device"),
    ("-devd", "--device-draft"),
    ("-md", "--model-draft"),
    ("-hfd", "--model-draft"),
    ("-hf", "--hf-repo"),
    ("-jf", "--json-schema-file"),
    ("-hff", "--hf-file"),
    ("-hfr", "--hf-repo"),
    ("-ngl", "--n-gpu-layers"),
    ("-np", "--n-seqs"),
    ("-pg", "--pg"),
    ("-sys", "--system"),
    ("-sysf", "--system-file"),
    ("-ub", "--ubatch-size"),
    ("-r", "--stop"),
    ("-no-cnv", "--raw"),
    ("--no-conversation", "--raw"),
    ("--mmap", "--io=mmap"),
    ("--no-mmap", "--io=pread"),
    ("-dio", "--io=pread"),
    ("--direct-io", "--io=pread"),
    ("-ndio", "--io=pread"),
    ("--no-direct-io", "--io=pread"),
    ("--log-verbose", "--verbose"),
    ("--log-disable", "--quiet"),
    ("--no-show-timings", "--quiet"),
];

/// What follows a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// The next flag or word.
    Nothing,
    /// A value.
    Value,
    /// `on`, `off` or `auto`, which may be left out.
    Switch,
}

/// Flags without effect here.
pub(super) struct Idle {
    pub(super) names: &'static [&'static str],
    pub(super) takes: Takes,
    /// Why that is so.
    pub(super) why: &'static str,
}

pub(super) const IDLE: [Idle; 22] = [
    Idle { names: &["-fa", "--flash-attn"], takes: Takes::Switch, why: "attention is always computed that way" },
    Idle { names: &["-fit"], takes: Takes::Switch, why: "every plan fits; --fit asks for one in which nothing streams" },
    Idle { names: &["-cnv", "--conversation"], takes: Takes::Nothing, why: "without a prompt, a terminal starts a chat" },
    Idle { names: &["-st", "--single-turn"], takes: Takes::Nothing, why: "with a prompt, there is one answer" },
    Idle { names: &["--jinja", "--no-jinja"], takes: Takes::Nothing, why: "the model's own template counts; --raw leaves it out" },
    Idle { names: &["--warmup", "--no-warmup"], takes: Takes::Nothing, why: "nothing is computed before the prompt" },
    Idle { names: &["--mlock"], takes: Takes::Nothing, why: "weights in memory are not locked there" },
    Idle { names: &["-tb", "--threads-batch"], takes: Takes::Value, why: "--threads counts for prompts, too" },
    Idle { names: &["--keep"], takes: Takes::Value, why: "it is --context-shift's, which `run` has alone" },
    Idle { names: &["--context-shift"], takes: Takes::Nothing, why: "an answer ends where its context is full; `run` alone shifts it" },
    Idle { names: &["--prio", "--prio-batch", "--poll", "--poll-batch"], takes: Takes::Value, why: "threads are the system's to order" },
    Idle { names: &["--perf", "--no-perf", "--show-timings"], takes: Takes::Nothing, why: "rates are always shown; -q leaves them out" },
    Idle { names: &["--display-prompt", "--no-display-prompt"], takes: Takes::Nothing, why: "a prompt is never printed" },
    Idle { names: &["--prompt-cache-all"], takes: Takes::Nothing, why: "the answer is kept with the prompt" },
    Idle { names: &["--no-escape"], takes: Takes::Nothing, why: "prompts are always taken as they are" },
    Idle { names: &["--simple-io"], takes: Takes::Nothing, why: "off a terminal, text comes plain" },
    Idle { names: &["-kvo", "--kv-offload"], takes: Takes::Nothing, why: "the KV cache lies where attention is computed" },
    Idle {
        names: &["-cb", "--cont-batching", "-nocb", "--no-cont-batching"],
        takes: Takes::Nothing,
        why: "sequences always go side by side",
    },
    Idle {
        names: &["--spec-ngram-size-n", "--spec-ngram-size-m", "--spec-ngram-check-rate", "--spec-ngram-min-hits"],
        takes: Takes::Value,
        why: "the last four to two tokens are looked up, each time",
    },
    Idle { names: &["-dt", "--defrag-thold"], takes: Takes::Value, why: "the KV cache has no gaps" },
    Idle { names: &["-nr", "--no-repack", "--repack"], takes: Takes::Nothing, why: "weights stay as they are stored" },
    Idle { names: &["--swa-full", "--check-tensors", "--no-host", "--op-offload"], takes: Takes::Nothing, why: "there is no such choice" },
];

/// Flags that do not exist here, and what to use instead.
pub(super) const ABSENT: [(&[&str], &str); 44] = [
    (
        &["--modelfile", "--license", "--parameters"],
        "inspect shows what a model is made of; in a chat, /show parameters and /show template",
    ),
    (&["-ts", "--tensor-split"], "--max-memory gpu:0=6GiB,gpu:1=4GiB bounds each GPU; --device-map balanced shares evenly"),
    (&["-sm", "--split-mode"], "layers are split among GPUs; --device gpu:0 takes one alone"),
    (&["-mg", "--main-gpu"], "--device gpu:N chooses the GPU"),
    (&["-nkvo", "--no-kv-offload"], "the KV cache lies where attention is computed; --max-memory bounds it"),
    (&["-fitt", "--fit-target", "--gpu-memory-utilization"], "--max-memory gpu:0=6GiB says how much may be used"),
    (&["-fitc", "--fit-ctx"], "-c N demands a context of N positions"),
    (&["-lm", "--load-mode"], "--io mmap|pread says how weights are read"),
    (&["-mu", "--model-url"], "name the file with -m, or a model on the hub with -hf ORG/NAME:QUANT"),
    (&["-dr", "--docker-repo"], "-hf ORG/NAME:QUANT fetches from a Hugging Face hub"),
    (&["-hft", "--hf-token"], "set HF_TOKEN, which no list of processes shows"),
    (&["--offline"], "set HF_HUB_OFFLINE=1"),
    (&["-cl", "--cache-list"], "tierflow ls"),
    (&["-i", "--interactive", "-if", "--interactive-first", "-ins", "--instruct", "-mli"], "without a prompt, a terminal starts a chat"),
    (&["-e", "--escape"], "prompts are taken as they are; bash writes a line break as $'one\\ntwo'"),
    (&["-bf", "--binary-file"], "-f FILE reads the prompt"),
    (&["-sp", "--special"], "special tokens are not printed"),
    (&["-lv", "--verbosity", "--log-verbosity"], "-v says more, -q less, RUST_LOG in detail"),
    (&["--log-file"], "all but the answer goes to stderr: 2> FILE keeps it"),
    (&["-co", "--color", "--log-colors"], "NO_COLOR=1 turns colours off"),
    (&["-o", "--output-file"], "the answer alone goes to stdout: > FILE keeps it"),
    (&["-oe", "--output-err"], "the report goes to stdout: > FILE keeps it"),
    (&["-ngld", "-td", "-cd"], "--device-draft says where the small model of --model-draft is; its context is no longer than the model's"),
    (&["-mm", "--mmproj", "-mmu", "--image", "--audio", "--video"], "models of texts alone run"),
    (&["--lora-init-without-apply"], "adapters count from the first request on; --lora DIR=0 leaves one out until a request asks for it"),
    (&["--control-vector", "--control-vector-scaled"], "control vectors do not run; --lora adds adapters"),
    (
        &["--chat-template", "--chat-template-file", "--in-prefix", "--in-suffix", "--in-prefix-bos"],
        "the model's own template counts; --raw leaves it out",
    ),
    (
        &["--samplers", "--sampler-seq", "--sampling-seq", "--typical", "--mirostat", "--top-nsigma"],
        "--temp, --top-k, --top-p, --min-p, --logit-bias and the penalties are the sampling that there is",
    ),
    (&["--xtc-probability", "--xtc-threshold", "--dry-multiplier", "--dynatemp-range"], "--top-p and --min-p are what comes near"),
    (&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"], "positions are scaled as the model says"),
    (&["--verbose-prompt"], "tierflow tokenize MODEL TEXT shows the tokens of a text"),
    (&["--completion-bash"], "tierflow completions bash"),
    (
        &["-rea", "--reasoning", "--reasoning-budget", "--reasoning-format"],
        "--think and --no-think; --hide-thinking prints the answer alone",
    ),
    (&["--insecure"], "HF_ENDPOINT names another hub, also one on plain http"),
    (&["-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict", "--numa"], "taskset and numactl bind a program to cores"),
    (&["--no-op-offload"], "--device cpu lets the host compute everything"),
    (&["--nowordwrap"], "words are wrapped on a terminal alone: | cat leaves lines whole"),
    (
        &["--load-in-8bit", "--load-in-4bit", "--quantize", "--quantization", "--fp16", "--bf16", "--dtype", "--torch-dtype"],
        "weights are used as they are stored; name a model that is stored so, as in -hf ORG/NAME:Q8_0",
    ),
    (&["--offload-folder", "--offload-dir"], "what fits nowhere is read from the model's own files"),
    (&["--override-kv"], "what the model's file says counts"),
    (&["--do-sample"], "--temp above 0 samples, --temp 0 takes the likeliest token"),
    (&["--format"], "--json-schema '{}' holds the answer to JSON, or to a schema; --json prints it with statistics"),
    (&["--keepalive"], "a model is unloaded when the program ends; of several, `serve` unloads those that --keep-alive says"),
    (&["--host", "--port", "--api-key"], "they are of the server: tierflow serve MODEL"),
];

/// Subcommands that do not exist here, and what to use instead.
pub(super) const ABSENT_VERBS: [(&[&str], &str); 4] = [
    (&["version"], "tierflow --version"),
    (&["ps", "stop"], "no model stays loaded when a command ends; `tierflow ls` lists those in the cache"),
    (
        &["rm", "remove", "delete"],
        "models lie in the cache of Hugging Face: delete the folder that `tierflow ls` shows, or use its own `hf cache rm`",
    ),
    (&["create", "cp", "push"], "models are used as they are: a folder, a .gguf file, or ORG/NAME:QUANT on a hub"),
];
