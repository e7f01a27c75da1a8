//! `tierflow serve`: the model as a server. stderr has the plan and the address.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use crate::cli::args::{Key, ModelSource, ServeArgs};
use crate::cli::embed::ROWS_PER_FORWARD;
use crate::cli::expert_profile;
use crate::cli::locate::locate_or_fetch;
use crate::cli::model::{Placement, load_with_draft, prepare_with_draft, warn_of_vain_drafts};
use crate::cli::plan_text::note_plan;
use crate::cli::serve_many;
use crate::cli::terminal::{Visibility, note};
use crate::device::Device;
use crate::engine::{Engine, Prepared};
use crate::error::{Error, Result};
use crate::lora::Scales;
use crate::plan::PlanOptions;
use crate::platform::{asked_to_end, host_memory};
use crate::server::{ApiKey, ServerSettings, serve};
use crate::units::Bytes;

/// Of the host's memory, the share that conversations without a sequence have by default, and the most of it: llama.cpp's default.
const CACHE_RAM_SHARE: u64 = 16;
const MAX_CACHE_RAM: Bytes = Bytes::gib(8);
/// Sequences where no number was asked for: as many as llama.cpp's server has.
const N_SEQS: usize = 4;
/// Threads that read requests; their texts go through template and tokenizer there.
pub(super) const N_READERS: usize = 4;

/// Serves until Ctrl-C or SIGTERM, then finishes the answers under way; a second Ctrl-C ends at once.
///
/// # Errors
/// [`Error::InvalidArgument`] for an address that others reach without a key; those of listening, of planning and of loading.
pub fn run(args: &ServeArgs) -> Result<()> {
    if args.models_dir.is_some() || !args.more_models.is_empty() {
        return serve_many::run(args);
    }
    let visibility = if args.quiet { Visibility::Hidden } else { Visibility::Auto };
    if args.keep_alive.is_some() {
        let reason = "is of several models; the one that is served stays loaded".into();
        return Err(Error::InvalidArgument { option: "--keep-alive".into(), reason });
    }
    let source = args.model.source()?;
    Placement::of(&args.placement, PlanOptions::default())?;
    let listener = checked_listener(args)?;
    let path = locate_or_fetch(&source, visibility)?;
    let (prepared, draft, makes_embeddings) = prepare_any(args, &path)?;
    if !args.quiet {
        note_plan(&prepared.summary());
    }
    warn_of_vain_drafts(&prepared, &args.placement.drafts.speculation());
    let settings = settings_of(args, &source, &path)?;
    let engine = load_with_draft(prepared, draft, visibility)?.spawn_reopening(reopen(args, &path, makes_embeddings))?;
    let runtime = runtime(N_READERS)?;
    let address = listener.local_addr().map_err(|error| Error::io("listen on", &args.host, error))?;
    note(&format!("`{}` is served on http://{address}\n", settings.model_name));
    let served = runtime.block_on(serve(listener, engine.clone(), settings, stop(args.quiet)));
    if let Some(file) = &args.placement.expert_profile {
        expert_profile::write(file, runtime.block_on(engine.ask(Engine::expert_profile))?.as_ref())?;
    }
    // Requests that are being read have no client any more.
    runtime.shutdown_background();
    served
}

/// Checks who may ask, and listens.
pub(super) fn checked_listener(args: &ServeArgs) -> Result<TcpListener> {
    check_origins(&args.cors)?;
    args.api_key.as_ref().map_or(Ok(()), check_key)?;
    args.sampling.flags()?;
    // The port is taken before minutes of loading, not after.
    listen(args)
}

/// A runtime for a server, with so many threads beside its own.
pub(super) fn runtime(n_threads: usize) -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(n_threads).build();
    runtime.map_err(|error| Error::io("start", "the server's thread", error))
}

/// Plans the model for several sequences that generate, or for embeddings, one at a time and without the head.
fn prepare(args: &ServeArgs, path: &Path, makes_embeddings: bool) -> Result<(Prepared, Option<Engine>)> {
    if makes_embeddings {
        let options = PlanOptions { logit_rows: ROWS_PER_FORWARD, ..PlanOptions::default() };
        let placement = Placement::of(&args.placement, options)?.of_one_sequence();
        return Ok((pollster::block_on(placement.builder(path)?.without_head().text_first().prepare())?, None));
    }
    let placement = Placement::of(&args.placement, PlanOptions { n_seqs: N_SEQS, ..PlanOptions::default() })?;
    prepare_with_draft(&args.placement, Visibility::Hidden, || {
        Ok(placement.clone().builder(path)?.lora_scales(Scales::Chosen).text_first())
    })
}

/// Plans the model for what it is made for: whether that is embeddings stands at the end.
pub(super) fn prepare_any(args: &ServeArgs, path: &Path) -> Result<(Prepared, Option<Engine>, bool)> {
    let (prepared, draft) = prepare(args, path, args.embeddings)?;
    // Of an encoder, that is known only now.
    let makes_embeddings = !prepared.model.has_head();
    if makes_embeddings && !args.embeddings {
        let (prepared, draft) = prepare(args, path, true)?;
        return Ok((prepared, draft, true));
    }
    Ok((prepared, draft, makes_embeddings))
}

/// Opens the model again, where an adapter was lost.
pub(super) fn reopen(args: &ServeArgs, path: &Path, makes_embeddings: bool) -> impl FnMut() -> Result<Engine> + Send + 'static {
    let (args, path) = (args.clone(), path.to_owned());
    move || {
        let (prepared, draft) = prepare(&args, &path, makes_embeddings)?;
        load_with_draft(prepared, draft, Visibility::Hidden)
    }
}

/// Ready when the server shall end. What follows ends the program at once.
pub(super) async fn stop(is_quiet: bool) {
    asked_to_end().await;
    if !is_quiet {
        note("ending: answers under way are finished; Ctrl-C ends at once\n");
    }
    tokio::spawn(async {
        asked_to_end().await;
        std::process::exit(130);
    });
}

/// Listens on the address that was asked for, unless others reach it who must not.
fn listen(args: &ServeArgs) -> Result<TcpListener> {
    let addresses: Vec<SocketAddr> = match (args.host.as_str(), args.port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let reason = format!("`{}` is no address of this machine: {error}", args.host);
            return Err(Error::InvalidArgument { option: "--host".into(), reason });
        }
    };
    let is_local = addresses.iter().all(|address| address.ip().is_loopback());
    if !is_local && args.api_key.is_none() && !args.allow_remote {
        let reason = format!(
            "on {} everyone who reaches this machine could use the model; give --api-key KEY, which requests must carry then, or \
             --allow-remote if everyone may",
            args.host
        );
        return Err(Error::InvalidArgument { option: "--host".into(), reason });
    }
    TcpListener::bind(addresses.as_slice()).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => Error::InvalidArgument {
            option: "--port".into(),
            reason: format!("another program listens on {}:{}; give another one, or 0 for a free one", args.host, args.port),
        },
        _ => Error::io("listen on", format!("{}:{}", args.host, args.port), source),
    })
}

/// Refuses what no header can carry, without repeating it.
fn check_key(Key(key): &Key) -> Result<()> {
    if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    let reason = "a key is printable ASCII without spaces, at least one character".into();
    Err(Error::InvalidArgument { option: "--api-key".into(), reason })
}

/// Refuses what no browser sends as an origin.
fn check_origins(origins: &[String]) -> Result<()> {
    let is_origin = |origin: &str| {
        let rest = origin.split_once("://").map(|(_, rest)| rest.trim_end_matches('/'));
        origin == "*" || origin == "null" || rest.is_some_and(|host| !host.is_empty() && !host.contains('/'))
    };
    match origins.iter().find(|origin| !is_origin(origin)) {
        Some(origin) => {
            let reason = format!("`{origin}` is no origin; write it as browsers do, as in http://localhost:3000, or *");
            Err(Error::InvalidArgument { option: "--cors".into(), reason })
        }
        None => Ok(()),
    }
}

fn settings_of(args: &ServeArgs, source: &ModelSource, path: &Path) -> Result<ServerSettings> {
    let (model_name, other_names) = names_of(args.alias.as_deref(), source, path);
    Ok(ServerSettings { model_name, other_names, ..shared_settings(args)? })
}

/// What a server is told of who may ask, and how.
pub(super) fn shared_settings(args: &ServeArgs) -> Result<ServerSettings> {
    Ok(ServerSettings {
        api_key: args.api_key.clone().map(|key| ApiKey::new(key.0)),
        origins: args.cors.clone(),
        n_waiting: args.queue as usize,
        sampling: args.sampling.flags()?,
        speculation: args.placement.drafts.speculation(),
        cache_ram: cache_ram(args),
        ..ServerSettings::default()
    })
}

/// What was asked for; by default a share of the host's memory, but nothing beside a budget of it.
fn cache_ram(args: &ServeArgs) -> Bytes {
    let has_budget = args.placement.max_memory.as_ref().is_some_and(|budgets| budgets.get(Device::Cpu).is_some());
    let by_default = || if has_budget { Bytes::ZERO } else { MAX_CACHE_RAM.min(Bytes(host_memory().total.0 / CACHE_RAM_SHARE)) };
    args.cache_ram.unwrap_or_else(by_default)
}

/// The name that a model is asked for by, and its other ones. It is called as it was asked for: by the alias, by its name on the hub, else
/// by its file without `.gguf`, or its folder.
pub(super) fn names_of(alias: Option<&str>, source: &ModelSource, path: &Path) -> (String, Vec<String>) {
    let named = match source {
        ModelSource::Named(name) => name.to_string_lossy().into_owned(),
        ModelSource::Hub(model) => model.to_string(),
    };
    let file = std::path::absolute(path).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let file = file.unwrap_or_else(|| named.clone());
    let stem = file.strip_suffix(".gguf").unwrap_or(&file).to_owned();
    let is_path = Path::new(&named).exists();
    let model_name = alias.map_or_else(|| if is_path { stem.clone() } else { named.clone() }, str::to_owned);
    (model_name, vec![named, file, stem])
}
