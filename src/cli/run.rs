//! `tierflow run`: one prompt, or a chat. stdout carries the answer and nothing else.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Map, Value};

use crate::cli::args::{GenerationArgs, RunArgs, Thinking};
use crate::cli::ctrl_c::stopped_by_ctrl_c;
use crate::cli::form::{form_for_model, wish_of};
use crate::cli::locate::locate_or_fetch;
use crate::cli::model::{Placement, load_with_draft, prepare_with_draft, warn_of_vain_drafts};
use crate::cli::output::Output;
use crate::cli::plan_text::note_plan;
use crate::cli::prompt::{read_prompt, read_system};
use crate::cli::statistics::{Disturbance, Drafts, LayerExperts, Predicted, Statistics};
use crate::cli::terminal::{Visibility, is_closed_stdout, note, print_json};
use crate::cli::{chat, expert_profile, trace_file};
use crate::engine::{Engine, ModelText, Observed, Prepared};
use crate::error::{Error, Result};
use crate::plan::{Forwards, PlanOptions};
use crate::platform::{CoreTime, check_folder, waited_since};
use crate::session::{DraftSource, FinishReason, GenerateOptions, Session, Speculation};
use crate::text::{
    AnswerForm, ChatMessage, ChatTemplate, FormWish, ReasoningFormat, ReasoningSplitter, Sampler, SamplingFlags, SamplingSettings, Segment,
    StopStrings, TemplateInput, Written, fresh_seed, thinking_variables,
};

/// What stays the same for all prompts of a run.
pub(super) struct Settings {
    /// The sampling settings that the user gave.
    pub(super) flags: SamplingFlags,
    /// Defaults, over them the model's own settings, over those the flags.
    pub(super) sampling: SamplingSettings,
    /// `None` draws a new one for every answer.
    pub(super) seed: Option<u64>,
    pub(super) generate: GenerateOptions,
    /// What answers are held to.
    pub(super) form: Option<AnswerForm>,
    pub(super) raw: bool,
    /// Whether the model thinks before it answers; `None` leaves that to its chat template.
    pub(super) thinking: Option<Thinking>,
    pub(super) written: Written,
    pub(super) interrupted: Arc<AtomicBool>,
}

impl Settings {
    /// The seed of an answer that comes after `n_before` others to the same question.
    pub(super) fn seed_of_answer(&self, n_before: u64) -> u64 {
        self.seed.map_or_else(fresh_seed, |seed| seed.wrapping_add(n_before))
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Settings {
        Settings {
            flags: SamplingFlags::default(),
            sampling: SamplingSettings::default(),
            seed: None,
            generate: GenerateOptions::default(),
            form: None,
            raw: false,
            thinking: None,
            written: Written::Parsed,
            interrupted: Arc::default(),
        }
    }
}

/// One answer.
pub(super) struct Answer {
    pub(super) text: String,
    /// What the model thought before it; empty where it did not, or where nothing tells it from the answer.
    pub(super) reasoning: String,
    pub(super) tokens: Vec<u32>,
    pub(super) finish: Option<FinishReason>,
    /// Why it ended before the model did.
    pub(super) cut: Option<String>,
    /// Tokens that left a full context for it.
    pub(super) n_dropped: usize,
    pub(super) seed: u64,
    pub(super) statistics: Statistics,
}

/// Answers one prompt, or chats where there is none and stdin is a terminal.
///
/// # Errors
/// Those of the engine; [`Error::Interrupted`] after Ctrl-C. A reader of stdout that goes away (`| head`) ends the run.
pub fn run(args: &RunArgs) -> Result<()> {
    match answer_or_chat(args) {
        Err(error) if is_closed_stdout(&error) => Ok(()),
        outcome => outcome,
    }
}

fn answer_or_chat(args: &RunArgs) -> Result<()> {
    let visibility = if args.quiet { Visibility::Hidden } else { Visibility::Auto };
    let source = args.source()?;
    // Options that contradict each other are refused before a model is fetched or loaded.
    let wishes = Wishes::of(&args.generation, args.placement.drafts.speculation())?;
    let placement = Placement::of(&args.placement, PlanOptions::default())?.of_one_sequence();
    args.trace.iter().map(PathBuf::as_path).chain(args.cache_files.saved()).try_for_each(check_folder)?;
    let (prompt, system) = (read_prompt(args)?, read_system(args)?);
    if prompt.is_none() && args.json {
        return Err(Error::InvalidArgument { option: "--json".into(), reason: "describes one answer, not a chat; give a prompt".into() });
    }
    let path = locate_or_fetch(&source, visibility)?;
    let builder = || Ok(placement.clone().builder(&path)?.text_first());
    let (mut prepared, draft) = prepare_with_draft(&args.placement, visibility, builder)?;
    if !args.quiet {
        note_plan(&prepared.summary());
    }
    warn_of_vain_drafts(&prepared, &wishes.generate.speculation);
    let settings = wishes.settings(prepared.text()?)?;
    let asked = match prompt {
        Some(prompt) => Some(encode_prompt(&mut prepared, &settings, prompt, system.clone())?),
        None => None,
    };
    let mut engine = load_with_draft(prepared, draft, visibility)?;
    if args.trace.is_some() {
        engine.trace().keep_many();
    }
    let settings = Settings { interrupted: stopped_by_ctrl_c(), ..settings };
    // What is thought goes to stderr where stdout is no terminal.
    let shows_reasoning = !args.generation.hide_thinking && (!args.quiet || std::io::stdout().is_terminal());
    let mut session = engine.session();
    if let Some(file) = args.cache_files.loaded() {
        pollster::block_on(session.load(file))?;
        note_loaded(&session, file, args.quiet);
    }
    let Some(tokens) = asked else {
        let options = chat::ChatOptions {
            system,
            quiet: args.quiet,
            shows_reasoning,
            history: !args.chat.no_history,
            context_shift: !args.chat.no_context_shift,
        };
        save_cache(args, &mut chat::run(session, settings, options)?)?;
        // The last answer's: each begins a trace of its own.
        return write_files(args, &engine);
    };
    let mut output = Output::stdout(shows_reasoning);
    output.begin(true);
    let mut write = |segment: &Segment| if args.json { Ok(()) } else { output.write_segment(segment) };
    let n_keep = usize::try_from(args.chat.keep).map_or(tokens.len(), |n_keep| n_keep.min(tokens.len()));
    let mut shift = |engine: &Engine, _| {
        let may_leave = args.chat.context_shift && n_keep + 2 < engine.plan().ctx_size;
        Ok(may_leave.then_some(Room::Half(n_keep)))
    };
    let answer = pollster::block_on(answer(&mut session, &settings, &tokens, settings.seed_of_answer(0), &mut write, &mut shift))?;
    if !args.json {
        output.end()?;
    }
    save_cache(args, &mut session)?;
    write_files(args, &engine)?;
    if args.json {
        print_json(&serde_json::json!({
            "schema": "tierflow.run/1",
            "text": answer.text,
            "reasoning": Some(answer.reasoning).filter(|text| !text.is_empty()),
            "tokens": answer.tokens,
            "prompt_tokens": tokens.len(),
            "finish_reason": answer.finish,
            "dropped_tokens": Some(answer.n_dropped).filter(|n_dropped| *n_dropped > 0),
            "seed": answer.seed,
            "statistics": answer.statistics,
            "memory": engine.memory_use(),
        }))?;
    } else if !args.quiet {
        answer.cut.iter().for_each(|cut| note(&format!("{cut}\n")));
        if answer.n_dropped > 0 {
            note(&format!("the context was full: {} tokens left it\n", answer.n_dropped));
        }
        note(&format!("{}\n", answer.statistics.line(answer.seed)));
        note(&answer.statistics.prediction_line());
        note(&answer.statistics.memory_lines());
    }
    if settings.interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// What the options ask of an answer, checked before there is a model.
struct Wishes {
    sampling: SamplingFlags,
    seed: Option<u64>,
    generate: GenerateOptions,
    form: Option<FormWish>,
    raw: bool,
    thinking: Option<Thinking>,
    written: Written,
}

impl Wishes {
    fn of(args: &GenerationArgs, speculation: Speculation) -> Result<Wishes> {
        let invalid = |option: &str, reason: String| Error::InvalidArgument { option: option.into(), reason };
        let out_of_range = |option: &str, value: i64| invalid(option, format!("{value} is out of range; write -1 or more"));
        let sampling = args.sampling.flags()?;
        StopStrings::new(args.stop.clone())?;
        let seed = match args.seed {
            -1 => None,
            seed => Some(u64::try_from(seed).map_err(|_| out_of_range("--seed", seed))?),
        };
        let max_tokens = match args.predict {
            // llama.cpp's -2 is until the context is full, which ends an answer here in any case.
            -1 | -2 => None,
            n => Some(usize::try_from(n).map_err(|_| out_of_range("--predict", n))?),
        };
        let generate = GenerateOptions { max_tokens, ignore_eos: args.ignore_eos, stop: args.stop.clone(), speculation, n_logprobs: None };
        let written = if args.no_parse_special { Written::Plain } else { Written::Parsed };
        if args.no_think && args.think.is_some_and(|thinking| thinking != Thinking::False) {
            return Err(invalid("--no-think", "says the opposite of --think; leave out one of them".into()));
        }
        let form = wish_of(args)?;
        let thinking = match args.think.filter(|thinking| *thinking != Thinking::False) {
            Some(_) if form.is_some() => return Err(invalid("--think", "cannot be combined with a form of the answer".into())),
            // What has a form is all answer.
            None if args.no_think || form.is_some() => Some(Thinking::False),
            _ => args.think,
        };
        Ok(Wishes { sampling, seed, generate, form, raw: args.raw, thinking, written })
    }

    /// Defaults, over them the model's own settings, over those the wishes. Nothing interrupts yet.
    fn settings(self, text: &ModelText) -> Result<Settings> {
        let sampling = SamplingSettings::merged(text.defaults(), &self.sampling)?;
        if !self.raw && text.chat_template().is_none() {
            tracing::warn!("the model has no chat template: texts go to it as they are (--raw does so without this line)");
        }
        let Wishes { sampling: flags, seed, generate, form, raw, thinking, written } = self;
        let form = form.map(|wish| form_for_model(wish, text, raw)).transpose()?;
        if let Some(thinking) = thinking.filter(|_| form.is_none()) {
            warn_of_deaf_template(text, raw, thinking);
        }
        Ok(Settings { flags, sampling, seed, generate, form, raw, thinking, written, interrupted: Arc::default() })
    }
}

/// The tokens of a conversation: through the chat template, or as it is with `--raw` or where the model has no template.
pub(super) fn encode_messages(model: &ModelText, settings: &Settings, messages: &[ChatMessage]) -> Result<Vec<u32>> {
    if settings.raw || model.chat_template().is_none() {
        let texts: Vec<Cow<'_, str>> = messages.iter().map(ChatMessage::text).collect();
        return model.encode(&texts.join("\n"), settings.written);
    }
    let variables = settings.thinking.map(template_variables).unwrap_or_default();
    model.encode_chat(messages, &TemplateInput { variables, ..TemplateInput::default() }, settings.written)
}

/// What the chat template is told of thinking.
fn template_variables(thinking: Thinking) -> Map<String, Value> {
    let is_on = thinking != Thinking::False;
    let effort = match thinking {
        Thinking::True | Thinking::False => None,
        Thinking::Low => Some("low"),
        Thinking::Medium => Some("medium"),
        Thinking::High => Some("high"),
    };
    thinking_variables(is_on, effort)
}

/// Says so where a wish cannot come true.
pub(super) fn warn_of_deaf_template(text: &ModelText, raw: bool, thinking: Thinking) {
    let variables = template_variables(thinking);
    let is_known = |template: &ChatTemplate| variables.keys().any(|name| template.source().contains(name.as_str()));
    if raw || !text.chat_template().is_some_and(is_known) {
        tracing::warn!(
            "nothing tells the model whether to think: {}",
            if raw { "--raw leaves its chat template out" } else { "its chat template does not ask" }
        );
    }
}

/// The tokens of one prompt, checked to fit the context before anything is loaded.
fn encode_prompt(prepared: &mut Prepared, settings: &Settings, prompt: String, system: Option<String>) -> Result<Vec<u32>> {
    let system = system.map(|system| ChatMessage::new("system", system));
    let messages: Vec<ChatMessage> = system.into_iter().chain([ChatMessage::new("user", prompt)]).collect();
    let tokens = encode_messages(prepared.text()?, settings, &messages)?;
    prepared.check_room(tokens.len())?;
    Ok(tokens)
}

/// What makes room for a generation whose context is full.
pub(super) enum Room {
    /// A shorter prompt.
    Prompt(Vec<u32>),
    /// Half of what stands behind so many tokens leaves.
    Half(usize),
}

/// Asked for room where the context is full, given the tokens generated so far; `None` where there is none.
pub(super) type Shift<'a> = dyn FnMut(&Engine, usize) -> Result<Option<Room>> + 'a;

/// Says what a session begins with.
fn note_loaded(session: &Session<'_>, file: &Path, is_quiet: bool) {
    if !is_quiet {
        note(&format!("{} tokens of {} are cached\n", session.tokens().len(), file.display()));
    }
}

/// Writes the session where it shall be kept, also after Ctrl-C: what was computed stays.
fn save_cache(args: &RunArgs, session: &mut Session<'_>) -> Result<()> {
    let Some(file) = args.cache_files.saved() else { return Ok(()) };
    session.cancel_with(Arc::default());
    pollster::block_on(session.save(file))
}

/// Writes what was asked for besides the answer.
fn write_files(args: &RunArgs, engine: &Engine) -> Result<()> {
    if let Some(file) = &args.trace {
        trace_file::write(file, engine)?;
    }
    args.placement.expert_profile.as_deref().map_or(Ok(()), |file| expert_profile::write(file, engine.expert_profile().as_ref()))
}

/// Generates an answer to `tokens`; every part of it that is certain goes to `write` at once, and `shift` is asked where the context is full.
pub(super) async fn answer(
    session: &mut Session<'_>,
    settings: &Settings,
    tokens: &[u32],
    seed: u64,
    write: &mut dyn FnMut(&Segment) -> Result<()>,
    shift: &mut Shift<'_>,
) -> Result<Answer> {
    session.engine().trace().clear();
    session.cancel_with(Arc::clone(&settings.interrupted));
    let (begin, begin_cores) = (Instant::now(), CoreTime::now());
    let sampler = Sampler::new(settings.sampling.clone(), seed);
    let sampler = match &settings.form {
        Some(form) => sampler.constrained(form.constraint()?),
        None => sampler,
    };
    let mut generation = session.generate(tokens, sampler, settings.generate.clone()).await?;
    let (prompt_secs, prompt_waited) = (begin.elapsed().as_secs_f64(), waited_since(begin_cores));
    let after_prompt = generation.engine().trace().summary();
    let experts_before = LayerExperts::of(generation.engine());
    let mut first_token_secs = None;
    let mut generated = Vec::new();
    let (mut text, mut reasoning) = (String::new(), String::new());
    let model = generation.engine().text();
    // What has a form is all answer, unless the model thinks beside it, in a channel.
    let is_all_answer = settings.form.is_some() && model.reasoning_format() != Some(ReasoningFormat::Channels);
    let mut splitter = match settings.raw || is_all_answer {
        true => ReasoningSplitter::new(None),
        false => model.reasoning_splitter(tokens),
    };
    let mut take = |segments: Vec<Segment>| {
        segments.iter().try_for_each(|segment| {
            match segment {
                Segment::Reasoning(part) => reasoning.push_str(part),
                Segment::Answer(part) => text.push_str(part),
            }
            write(segment)
        })
    };
    let (decode_begin, decode_cores) = (Instant::now(), CoreTime::now());
    let (mut is_shifted, mut n_dropped) = (false, 0);
    loop {
        if generation.is_context_full()
            && let Some(room) = shift(generation.engine(), generation.n_generated())?
        {
            is_shifted = true;
            let shifted = match room {
                Room::Prompt(prompt) => generation.shift(&prompt).await,
                Room::Half(n_keep) => generation.drop_half(n_keep).await.map(|n_left| n_dropped += n_left),
            };
            match shifted {
                Err(Error::Interrupted) => break,
                shifted => shifted?,
            }
        }
        let step = match generation.next().await {
            Ok(Some(step)) => step,
            // What was answered before Ctrl-C stays.
            Ok(None) | Err(Error::Interrupted) => break,
            Err(error) => return Err(error),
        };
        first_token_secs.get_or_insert_with(|| begin.elapsed().as_secs_f64());
        take(splitter.push_token(step.token, &step.text))?;
        generated.push(step.token);
        if settings.interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    take(splitter.finish())?;
    let (decode_secs, decode_waited) = (decode_begin.elapsed().as_secs_f64(), waited_since(decode_cores));
    let finish = generation.finish_reason();
    let engine = generation.engine();
    let (n_prompt, n_decoded) = (generation.n_prompt(), generated.len().saturating_sub(1));
    let n_before = tokens.len() - n_prompt;
    let prompt = Forwards::of_prompt(n_before, n_prompt, engine.plan().forward.n_tokens);
    let prompt = Observed { forwards: prompt, secs: prompt_secs, waited: prompt_waited };
    // The first token comes out of the prompt's own forward.
    let drafts = generation.drafts();
    let decoded = Forwards::of_drafted_answer(tokens.len(), n_decoded, &drafts.forwards);
    let decoded = Observed { forwards: decoded, secs: decode_secs, waited: decode_waited };
    let expected = [&prompt, &decoded].map(|observed| (observed, engine.prepared().predict_all(&observed.forwards)));
    let (experts_of_layers, experts) = LayerExperts::since(engine, &experts_before);
    let statistics = Statistics {
        n_prompt,
        prompt_secs,
        n_generated: generated.len(),
        n_decoded,
        decode_secs,
        first_token_secs: first_token_secs.unwrap_or(prompt_secs),
        prompt: after_prompt,
        all: engine.trace().summary(),
        experts,
        experts_of_layers,
        drafts: (settings.generate.speculation.source != DraftSource::None).then(|| Drafts::of(&drafts, n_decoded)),
        predicted: Predicted::of(engine.prepared(), &expected),
        disturbance: Disturbance::of(&expected),
        memory: engine.memory_use(),
    };
    // Those that a shift computes once more belong to neither.
    if !is_shifted {
        engine.learn(&[decoded, prompt]);
    }
    let cut =
        (finish == Some(FinishReason::Length)).then(|| cut_in_words(engine.plan().ctx_size, settings.generate.max_tokens, generated.len()));
    Ok(Answer { text, reasoning, tokens: generated, finish, cut, n_dropped, seed, statistics })
}

/// Why an answer ended that the model did not end.
fn cut_in_words(ctx_size: usize, max_tokens: Option<usize>, n_generated: usize) -> String {
    // The prompt's share of the context may have changed meanwhile, as turns of a chat left it.
    match max_tokens == Some(n_generated) {
        true => format!("cut off: -n {n_generated} allows no more tokens"),
        false => format!("cut off: the context of {ctx_size} positions is full; -c N makes it longer"),
    }
}
