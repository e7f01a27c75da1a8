//! `tierflow batch`: the requests of a file, answered into another one, in order. A batch that was stopped, by whatever, goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::Value;

use crate::cli::args::BatchArgs;
use crate::cli::locate::locate_or_fetch;
use crate::cli::model::{Placement, load_with_draft, prepare_with_draft};
use crate::cli::plan_text::note_plan;
use crate::cli::serve::names_of;
use crate::cli::terminal::{Visibility, note, progress_bar};
use crate::error::{Error, Result};
use crate::lora::Scales;
use crate::plan::PlanOptions;
use crate::platform::asked_to_end;
use crate::server::{BatchAnswer, MAX_BODY_BYTES, ServerSettings, answer_batch};

/// Answers what is not answered yet. Ctrl-C ends it with code 130; what is in the output by then is whole.
///
/// # Errors
/// [`Error::InvalidArgument`] where the output has answers to other requests; those of files, of planning and of loading.
pub fn run(args: &BatchArgs) -> Result<()> {
    let visibility = if args.quiet { Visibility::Hidden } else { Visibility::Auto };
    let source = args.model.source()?;
    let requests = Requests(&args.input);
    let n_requests = requests.count()?;
    let mut output = Output::open(&args.output, &args.input)?;
    if output.n_answers >= n_requests {
        note(&format!("all {n_requests} requests are answered in {}\n", args.output.display()));
        return Ok(());
    }
    let path = locate_or_fetch(&source, visibility)?;
    let placement = Placement::of(&args.placement, PlanOptions::default())?.of_many_sequences();
    let builder = || Ok(placement.clone().builder(&path)?.lora_scales(Scales::Chosen).text_first());
    let (prepared, draft) = prepare_with_draft(&args.placement, visibility, builder)?;
    if !args.quiet {
        note_plan(&prepared.summary());
    }
    let (model_name, other_names) = names_of(args.alias.as_deref(), &source, &path);
    let speculation = args.placement.drafts.speculation();
    let settings = ServerSettings { model_name, other_names, speculation, ..ServerSettings::default() };
    let engine = load_with_draft(prepared, draft, visibility)?.spawn()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::io("start", "the batch's thread", error))?;
    let mut statistics = Statistics::new(n_requests, output.n_answers, visibility);
    let lines = requests.lines()?.skip(output.n_answers as usize);
    let answered = answer_batch(engine, settings, lines, |answer| {
        output.write(&answer)?;
        statistics.count(&answer);
        Ok(())
    });
    let outcome = runtime.block_on(async {
        tokio::select! {
            answered = answered => answered,
            () = asked_to_end() => Err(Error::Interrupted),
        }
    });
    runtime.shutdown_background();
    statistics.finish(args.quiet);
    outcome
}

/// The file with requests.
struct Requests<'a>(&'a Path);

impl<'a> Requests<'a> {
    fn count(&self) -> Result<u64> {
        self.lines()?.try_fold(0, |n, line| line.map(|_| n + 1))
    }

    /// Its lines that are not blank. One that is longer than a request may be is cut, so that its answer is an error.
    fn lines(&self) -> Result<impl Iterator<Item = Result<String>> + use<'a>> {
        let path = self.0;
        let file = File::open(path).map_err(|error| Error::io("open", path.display(), error))?;
        let mut reader = BufReader::new(file);
        let lines = std::iter::from_fn(move || {
            let mut line = Vec::new();
            match reader.by_ref().take(MAX_BODY_BYTES as u64).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(Error::io("read", path.display(), error))),
            }
            let is_cut = !line.ends_with(b"\n") && line.len() == MAX_BODY_BYTES;
            if is_cut && let Err(error) = reader.skip_until(b'\n') {
                return Some(Err(Error::io("read", path.display(), error)));
            }
            Some(Ok(String::from_utf8_lossy(&line).trim().to_owned()))
        });
        Ok(lines.filter(|line| line.as_ref().map_or(true, |line| !line.is_empty())))
    }
}

/// The file with answers, one for each request in the same order.
struct Output<'a> {
    path: &'a Path,
    file: File,
    n_answers: u64,
}

impl<'a> Output<'a> {
    /// Opens it behind the answers that it has, all of which must be to the first requests of `input`. What was written of one when a
    /// batch was killed is taken away.
    fn open(path: &'a Path, input: &Path) -> Result<Output<'a>> {
        let failed = |what: &'static str| move |error| Error::io(what, path.display(), error);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed("open"))?;
        let mut requests = Requests(input).lines()?;
        let (mut n_answers, mut n_bytes) = (0, 0);
        let mut reader = BufReader::new(&file);
        loop {
            let mut line = Vec::new();
            let n_read = reader.read_until(b'\n', &mut line).map_err(failed("read"))?;
            if !line.ends_with(b"\n") {
                break;
            }
            n_answers += 1;
            let asked = requests.next().transpose()?.map(|request| custom_id(request.as_bytes()));
            if asked != Some(custom_id(&line)) {
                let reason = format!(
                    "{}: line {n_answers} answers another request than {} has in its place; give another file",
                    path.display(),
                    input.display()
                );
                return Err(Error::InvalidArgument { option: "--output".into(), reason });
            }
            n_bytes += n_read as u64;
        }
        file.set_len(n_bytes).map_err(failed("shorten"))?;
        file.seek(SeekFrom::End(0)).map_err(failed("read"))?;
        Ok(Output { path, file, n_answers })
    }

    /// Adds an answer, in one piece.
    fn write(&mut self, answer: &BatchAnswer) -> Result<()> {
        self.file.write_all(format!("{}\n", answer.line).as_bytes()).map_err(|error| Error::io("write", self.path.display(), error))
    }
}

/// The id that a request and its answer have; null where there is none.
fn custom_id(line: &[u8]) -> Value {
    serde_json::from_slice::<Value>(line).map_or(Value::Null, |line| line["custom_id"].clone())
}

/// What is shown of a batch.
struct Statistics {
    bar: ProgressBar,
    begin: Instant,
    n_answered: u64,
    n_errors: u64,
    n_tokens: u64,
}

impl Statistics {
    fn new(n_requests: u64, n_before: u64, visibility: Visibility) -> Statistics {
        let bar = progress_bar(visibility, "{pos}/{len} requests {wide_bar} {msg} {eta} left", n_requests, n_before);
        bar.reset_eta();
        Statistics { bar, begin: Instant::now(), n_answered: 0, n_errors: 0, n_tokens: 0 }
    }

    fn rate(&self) -> f64 {
        self.n_tokens as f64 / self.begin.elapsed().as_secs_f64()
    }

    fn count(&mut self, answer: &BatchAnswer) {
        self.n_answered += 1;
        self.n_errors += u64::from(answer.is_error);
        self.n_tokens += answer.n_tokens;
        self.bar.set_message(format!("{:.1} tokens/s", self.rate()));
        self.bar.inc(1);
    }

    fn finish(&self, is_quiet: bool) {
        self.bar.finish_and_clear();
        if !is_quiet {
            let Statistics { n_answered, n_errors, n_tokens, .. } = self;
            note(&format!(
                "{n_answered} requests answered, {n_errors} of them with an error; {n_tokens} tokens, {:.1} tokens/s\n",
                self.rate()
            ));
        }
    }
}
