//! Speculative decoding: texts are those of plain decoding, whatever is drafted; forwards are fewer where drafts are right, and drafts
//! that are wrong leave no trace.

use tierflow::device::{Device, DeviceChoice};
use tierflow::engine::{Engine, TextFiles};
use tierflow::error::{Error, Result};
use tierflow::plan::{ExpertCacheRule, PlanOptions, ResidentLayers};
use tierflow::session::{DraftSource, DraftStatistics, FinishReason, GenerateOptions, Generated, Speculation};
use tierflow::stream::{BatchToken, Lane, Logits, LogitsRequest, MAX_TOKENS_TOGETHER};
use tierflow::text::{Candidate, Constraint, Sampler, SamplingSettings};
use tierflow::units::Bytes;
use tierflow::{Sequence, TokenStream};

use xtask::models::LlamaShape;

use crate::common;
use crate::models::families;
use crate::stream::{
    GPU, TestModel, at_most, executor_sets, forward, greedy, has_gpu, ids, model_of, open, options, rest_of, shapes, tokens,
};

/// As the costs say, and drafts of these lengths whatever they cost.
const NGRAM: Speculation = Speculation { source: DraftSource::NgramSimple, most: MAX_TOKENS_TOGETHER - 1, least: 0 };
const FORCED: Speculation = Speculation { least: 1, ..NGRAM };
const LONG: Speculation = Speculation { least: MAX_TOKENS_TOGETHER - 1, ..NGRAM };

/// Plans with room for drafts, and where the layers of [`options`] are: some stream to adapters, or all are resident.
fn plans() -> [PlanOptions; 2] {
    [ResidentLayers::AtMost(2), ResidentLayers::Auto].map(|resident_layers| PlanOptions {
        resident_layers,
        logit_rows: MAX_TOKENS_TOGETHER,
        ..options()
    })
}

/// A host that computes with the least budget: it streams from disk.
fn open_streaming_host(model: &TestModel) -> Engine {
    let some = |bytes| PlanOptions { max_memory: [(Device::Cpu, bytes)].into(), ..plans()[0].clone() };
    let opened = match open(model, &[Device::Cpu], some(Bytes(1))) {
        Err(Error::DoesNotFit { needed, .. }) => open(model, &[Device::Cpu], some(needed)),
        opened => opened,
    };
    let engine = opened.unwrap();
    assert!(engine.plan().streamed_chunks().next().is_some());
    engine
}

/// What tokens are drawn by.
const SAMPLINGS: [&str; 4] = ["greedy", "sampled", "sampled from few", "penalised"];

fn sampler(sampling: &str) -> Sampler {
    let settings = match sampling {
        "sampled" => SamplingSettings { temperature: 0.8, ..SamplingSettings::default() },
        "sampled from few" => SamplingSettings { temperature: 1.5, top_k: 0, ..SamplingSettings::default() },
        "penalised" => SamplingSettings { repeat_penalty: 1.3, repeat_last_n: 8, ..SamplingSettings::greedy() },
        _ => SamplingSettings::greedy(),
    };
    let sampler = Sampler::new(settings, 7);
    if sampling == "sampled from few" { sampler.constrained(Box::new(Few)) } else { sampler }
}

/// Allows three tokens, which repeat each other often, and often not.
#[derive(Debug)]
struct Few;

impl Constraint for Few {
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        candidates.retain(|candidate| candidate.token < 3);
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
}

/// A model whose next token depends on the last one alone: greedy texts soon go round in a circle.
fn circling_model() -> TestModel {
    model_of(&LlamaShape { sliding_window: Some(1), ..LlamaShape::tiny() })
}

/// What a session generates, and what drafts brought.
fn generated(engine: &mut Engine, prompt: &[u32], sampler: Sampler, options: GenerateOptions) -> (Vec<Generated>, DraftStatistics) {
    let mut session = engine.session();
    let mut generation = pollster::block_on(session.generate(prompt, sampler, options)).unwrap();
    let steps = std::iter::from_fn(|| pollster::block_on(generation.next()).unwrap()).collect();
    (steps, generation.drafts())
}

fn with(speculation: Speculation, n_tokens: usize) -> GenerateOptions {
    GenerateOptions { speculation, ..at_most(n_tokens) }
}

fn n_decoded(drafts: &DraftStatistics) -> usize {
    drafts.n_forwards() + drafts.n_accepted
}

/// Draws what a script says.
#[derive(Debug, Clone)]
struct Script {
    tokens: Vec<u32>,
    n_drawn: usize,
}

impl Constraint for Script {
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        let next = self.tokens.get(self.n_drawn).copied().unwrap_or(0);
        candidates.retain(|candidate| candidate.token == next);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        assert_eq!(self.tokens.get(self.n_drawn), Some(&token), "the sampler goes on token by token");
        self.n_drawn += 1;
        Ok(())
    }
}

fn scripted(tokens: &[u32]) -> Sampler {
    greedy().constrained(Box::new(Script { tokens: tokens.to_vec(), n_drawn: 0 }))
}

/// Fails where tokens behind `prompt`, each computed alone and then several together, do not have the same logits, bit for bit.
#[track_caller]
fn assert_together_is_alone(engine: &mut Engine, prompt: &[BatchToken], next: &[BatchToken], what: &str) {
    forward(engine, prompt, &[prompt.len() - 1]);
    let alone: Vec<Vec<u32>> = next.iter().map(|token| common::bits(&forward(engine, &[*token], &[0])[0])).collect();
    for n_tokens in 2..=next.len() {
        let rows: Vec<usize> = (0..n_tokens).collect();
        let together: Vec<Vec<u32>> = forward(engine, &next[..n_tokens], &rows).iter().map(|logits| common::bits(logits)).collect();
        assert!(together == alone[..n_tokens], "{n_tokens} tokens {what}");
    }
}

#[test]
fn tokens_of_one_sequence_together_are_bit_for_bit_what_each_is_alone() {
    for shape in shapes() {
        let model = model_of(&shape);
        for executors in executor_sets() {
            let all = tokens(0, 20 + MAX_TOKENS_TOGETHER as u32);
            let (prompt, next) = all.split_at(20);
            let mut engine = open(&model, executors, plans()[0].clone()).unwrap();
            assert_together_is_alone(&mut engine, prompt, next, &format!("on {executors:?}, {shape:?}"));
        }
    }
}

#[test]
fn tokens_of_mixtures_of_experts_are_too() {
    let root = tempfile::tempdir().unwrap();
    let place = |(position, token)| BatchToken { token, sequence: 0, position };
    let (prompt, next): (Vec<_>, Vec<_>) =
        ((0..11).zip(1..).map(place).collect(), (11..).zip([12, 13, 12, 5, 30, 7, 1, 2]).map(place).collect());
    for family in ["mixtral", "gpt_oss"] {
        let folder = families::written(root.path(), family);
        let mut devices = vec![(DeviceChoice::Cpu, ExpertCacheRule::Never)];
        if has_gpu() {
            devices.extend([(DeviceChoice::Gpu, ExpertCacheRule::Never), (DeviceChoice::Gpu, ExpertCacheRule::Always)]);
        }
        for (device, expert_cache) in devices {
            let some = PlanOptions { ctx_size: Some(32), ubatch_size: Some(16), expert_cache, ..PlanOptions::default() };
            let some = PlanOptions { logit_rows: MAX_TOKENS_TOGETHER, ..some };
            let builder = Engine::builder(&folder).plan_options(some).device(device).text(TextFiles::Skip);
            let mut engine = pollster::block_on(builder.open()).unwrap();
            assert_together_is_alone(&mut engine, &prompt, &next, &format!("of {family} on {device:?}, expert cache {expert_cache:?}"));
        }
    }
}

#[test]
fn tokens_are_those_of_plain_decoding() {
    let model = circling_model();
    let prompt = ids(&tokens(0, 12));
    let mut totals = SAMPLINGS.map(|_| [0, 0]);
    let mut compare = |engine: &mut Engine, place: &str| {
        for (sampling, [n_drafted, n_accepted]) in SAMPLINGS.iter().zip(&mut totals) {
            let (n_tokens, speculations) = if *sampling == "greedy" { (40, &[FORCED, LONG, NGRAM][..]) } else { (20, &[FORCED, LONG][..]) };
            // Probabilities are the same to the bit, too.
            let n_logprobs = (*sampling == "sampled from few").then_some(2);
            let options = |speculation| GenerateOptions { n_logprobs, ..with(speculation, n_tokens) };
            let (expected, plain) = generated(engine, &prompt, sampler(sampling), options(Speculation::default()));
            assert!(expected.iter().all(|step| step.logprobs.is_some() == n_logprobs.is_some()));
            assert_eq!((plain.n_drafted, plain.forwards[0]), (0, n_tokens - 1));
            for &speculation in speculations {
                let (found, drafts) = generated(engine, &prompt, sampler(sampling), options(speculation));
                assert_eq!(found, expected, "{sampling} with {speculation:?}, {place}");
                assert_eq!(n_decoded(&drafts), n_tokens - 1, "each token comes of a forward or a draft: {drafts:?}");
                *n_drafted += drafts.n_drafted;
                *n_accepted += drafts.n_accepted;
            }
        }
    };
    for executors in executor_sets() {
        // Several devices only where some of it streams.
        for plan in plans().into_iter().take(if executors.len() > 1 { 1 } else { 2 }) {
            let mut engine = open(&model, executors, plan).unwrap();
            let place = format!("{executors:?}, {} chunks stream", engine.plan().streamed_chunks().count());
            compare(&mut engine, &place);
        }
    }
    compare(&mut open_streaming_host(&model), "the host from disk");
    let [greedy, _, few, _] = totals;
    // Right and wrong drafts were tried.
    assert!(greedy[1] > 0 && few[1] > 0 && few[1] < few[0], "{totals:?}");
}

#[test]
fn a_copy_takes_fewer_forwards() {
    let model = model_of(&shapes()[0]);
    let prompt = ids(&tokens(0, 24));
    // The prompt's own middle: the prompt's forward gives the first token, and two of them are needed to recognise it.
    let copied = &prompt[4..23];
    for executors in executor_sets() {
        for plan in plans() {
            let mut engine = open(&model, executors, plan).unwrap();
            // Of which something was computed: uploads are ahead.
            let last_forward = |engine: &Engine| {
                let spans = engine.trace().spans().into_iter().filter(|span| !matches!(span.lane, Lane::Fetch | Lane::Upload));
                spans.map(|span| span.forward + 1).max().unwrap_or(0)
            };
            let (_, plain) = generated(&mut engine, &prompt, scripted(copied), at_most(copied.len()));
            assert_eq!((plain.n_forwards(), last_forward(&engine)), (18, 19), "{executors:?}");
            for (most, n_forwards) in [(7, 4), (3, 6), (1, 10)] {
                let speculation = Speculation { most, least: most, ..NGRAM };
                let before = last_forward(&engine);
                let (found, drafts) = generated(&mut engine, &prompt, scripted(copied), with(speculation, copied.len()));
                assert_eq!(found.iter().map(|step| step.token).collect::<Vec<_>>(), copied, "{executors:?}");
                // What was traced counts the prompt's forward, too.
                let traced = last_forward(&engine) - before;
                assert_eq!((drafts.n_forwards(), traced), (n_forwards, n_forwards + 1), "{executors:?}: {drafts:?}");
            }
        }
    }
}

#[test]
fn wrong_drafts_leave_no_trace() {
    for shape in shapes() {
        let model = model_of(&shape);
        // Every pair of it stands there twice, and comes to be followed by something else.
        let prompt = [1u32, 2, 3, 1, 2, 4, 1, 2, 5, 9, 8];
        let script = [1u32, 2, 6, 1, 2, 7, 1, 2, 8, 1, 2, 9, 1, 2];
        for executors in executor_sets() {
            let bits_after = |engine: &mut Engine, speculation| {
                let mut session = engine.session();
                let mut generation =
                    pollster::block_on(session.generate(&prompt, scripted(&script), with(speculation, script.len()))).unwrap();
                while pollster::block_on(generation.next()).unwrap().is_some() {}
                let drafts = generation.drafts();
                assert_eq!(session.tokens(), [&prompt[..], &script[..13]].concat());
                let mut bits = Vec::new();
                for token in [script[13], 40, 41] {
                    let Logits::All(logits) = pollster::block_on(session.append(&[token], LogitsRequest::All)).unwrap() else { panic!() };
                    bits.push(common::bits(&logits));
                }
                (bits, drafts)
            };
            let mut engine = open(&model, executors, plans()[0].clone()).unwrap();
            let (expected, _) = bits_after(&mut engine, Speculation::default());
            for speculation in [FORCED, LONG] {
                let (found, drafts) = bits_after(&mut engine, speculation);
                assert!(found == expected, "{speculation:?} on {executors:?}, {shape:?}");
                assert!(drafts.n_drafted >= drafts.n_accepted + 3, "{drafts:?}");
            }
        }
    }
}

#[test]
fn an_answer_ends_where_plain_decoding_ends_it() {
    let model = model_of(&shapes()[0]);
    let prompt = ids(&tokens(0, 24));
    let copied = [&prompt[4..23], &prompt[4..23], &prompt[4..23]].concat();
    for executors in executor_sets() {
        let mut engine = open(&model, executors, plans()[0].clone()).unwrap();
        let mut ended = |max_tokens, speculation| {
            let mut session = engine.session();
            let options = GenerateOptions { max_tokens, speculation, ..GenerateOptions::default() };
            let mut generation = pollster::block_on(session.generate(&prompt, scripted(&copied), options)).unwrap();
            let mut full = Vec::new();
            let mut found = Vec::new();
            loop {
                full.push(generation.is_context_full());
                match pollster::block_on(generation.next()).unwrap() {
                    Some(step) => found.push(step),
                    None => break,
                }
            }
            let finish = generation.finish_reason();
            (found, full, finish, session.tokens().to_vec())
        };
        // In the middle of drafts, at their ends, and at the end of the context of 64.
        for max_tokens in [1, 2, 3, 9, 10, 11, 18].map(Some).into_iter().chain([None]) {
            let expected = ended(max_tokens, Speculation::default());
            for speculation in [FORCED, LONG] {
                assert!(ended(max_tokens, speculation) == expected, "{max_tokens:?} with {speculation:?} on {executors:?}");
            }
            assert_eq!(expected.2, Some(FinishReason::Length));
            assert_eq!(expected.0.len(), max_tokens.unwrap_or(64 + 1 - prompt.len()));
        }
    }
}

#[test]
fn a_stop_string_in_a_draft_ends_the_text() {
    let home = common::program::Home::new();
    let options = PlanOptions { logit_rows: MAX_TOKENS_TOGETHER, ..PlanOptions::default() };
    let builder = Engine::builder(home.folder_model()).device(DeviceChoice::Cpu).plan_options(options).ctx_size(128);
    let mut engine = pollster::block_on(builder.open()).unwrap();
    let prompt = engine.encode("one two three four five six seven eight nine ten, one two three four").unwrap();
    // The tokens after the first half, which are drafted from the second.
    let copied = prompt[4..prompt.len() / 2].to_vec();
    assert!(copied.len() > 16, "{} tokens", copied.len());
    let text = |steps: &[Generated]| steps.iter().map(|step| step.text.as_str()).collect::<String>();
    let (whole, _) = generated(&mut engine, &prompt, scripted(&copied), at_most(copied.len()));
    let whole = text(&whole);
    let n_chars = whole.chars().count();
    let mut n_accepted = 0;
    for begin in 2..n_chars - 2 {
        let stop: String = whole.chars().skip(begin).take(2).collect();
        let options = |speculation| GenerateOptions { stop: vec![stop.clone()], ..with(speculation, copied.len()) };
        let (expected, _) = generated(&mut engine, &prompt, scripted(&copied), options(Speculation::default()));
        let (found, drafts) = generated(&mut engine, &prompt, scripted(&copied), options(LONG));
        assert_eq!(found, expected, "stopped at {stop:?}");
        assert!(!text(&found).contains(&stop));
        n_accepted += drafts.n_accepted;
    }
    assert!(n_accepted > 5 * n_chars, "{n_accepted} tokens were drafted rightly in {n_chars} answers");
}

#[test]
fn a_shift_in_a_draft_goes_on_as_without() {
    let model = model_of(&shapes()[0]);
    let (long, short) = (ids(&tokens(0, 40)), ids(&tokens(0, 16)));
    let copied = long[4..36].to_vec();
    for executors in executor_sets() {
        let mut engine = open(&model, executors, plans()[0].clone()).unwrap();
        let mut shifted = |speculation| {
            let mut session = engine.session();
            let options = GenerateOptions { speculation, ..GenerateOptions::default() };
            let mut generation = pollster::block_on(session.generate(&long, scripted(&copied), options)).unwrap();
            let mut found = Vec::new();
            for n_tokens in 0..32 {
                // Before the context is full, too: in the midst of a draft.
                if n_tokens == 9 || generation.is_context_full() {
                    pollster::block_on(generation.shift(&short)).unwrap();
                }
                found.push(pollster::block_on(generation.next()).unwrap().expect("a token"));
            }
            drop(generation);
            let Logits::All(logits) = pollster::block_on(session.append(&[3], LogitsRequest::All)).unwrap() else { panic!() };
            (found, session.tokens().to_vec(), common::bits(&logits))
        };
        let expected = shifted(Speculation::default());
        for speculation in [FORCED, LONG] {
            assert!(shifted(speculation) == expected, "{speculation:?} on {executors:?}");
        }
    }
}

#[test]
fn sequences_of_a_handle_draft_beside_each_other() {
    let model = circling_model();
    let prompts: Vec<Vec<u32>> = (0..3).map(|sequence| ids(&tokens(sequence, 20 + sequence))).collect();
    for executors in executor_sets() {
        for plan in plans() {
            let mut engine = open(&model, executors, plan).unwrap();
            let mut alone = |prompt: &Vec<u32>, sampling| -> Vec<u32> {
                generated(&mut engine, prompt, sampler(sampling), at_most(24)).0.iter().map(|step| step.token).collect()
            };
            let expected = SAMPLINGS.map(|sampling| -> Vec<Vec<u32>> { prompts.iter().map(|prompt| alone(prompt, sampling)).collect() });
            let handle = engine.spawn().unwrap();
            for (sampling, expected) in SAMPLINGS.into_iter().zip(expected) {
                // One of them without drafts.
                let speculations = [FORCED, Speculation::default(), LONG];
                let start = |((sequence, prompt), speculation): ((&mut Sequence, &Vec<u32>), Speculation)| {
                    sequence.generate(prompt.clone(), sampler(sampling), with(speculation, 24)).unwrap()
                };
                let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
                let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(&prompts).zip(speculations).map(start).collect();
                let found: Vec<Vec<u32>> = streams.iter_mut().map(rest_of).collect();
                assert_eq!(found, expected, "{sampling} on {executors:?}");
                assert!(streams.iter().all(|stream| n_decoded(&stream.drafts()) == 23));
                assert_eq!(streams[1].drafts().n_drafted, 0);
            }
        }
    }
}

#[test]
fn copies_beside_each_other_take_fewer_forwards() {
    let model = model_of(&shapes()[0]);
    for executors in executor_sets().into_iter().filter(|executors| executors[0] == GPU) {
        let engine = open(&model, executors, plans()[0].clone()).unwrap();
        let handle = engine.spawn().unwrap();
        let prompts: Vec<Vec<u32>> = (0..2).map(|sequence| ids(&tokens(sequence, 24))).collect();
        let mut sequences: Vec<Sequence> = (0..2).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        let start = |(sequence, prompt): (&mut Sequence, &Vec<u32>)| {
            sequence.generate(prompt.clone(), scripted(&prompt[4..23]), with(FORCED, 19)).unwrap()
        };
        let mut streams: Vec<TokenStream> = sequences.iter_mut().zip(&prompts).map(start).collect();
        for (stream, prompt) in streams.iter_mut().zip(&prompts) {
            assert_eq!(rest_of(stream), prompt[4..23]);
            assert!(stream.drafts().n_forwards() < 12 && stream.finish_reason() == Some(FinishReason::Length), "{:?}", stream.drafts());
        }
    }
}

#[test]
fn nothing_is_drafted_where_there_is_no_room_for_it() {
    let model = model_of(&shapes()[0]);
    let prompt = ids(&tokens(0, 24));
    // Room for the logits of three tokens, which are as many as there are sequences; then for one.
    for (n_seqs, ubatch_size, most) in [(3, 64, Ok(2)), (1, 64, Err(())), (1, 1, Err(()))] {
        let plan = PlanOptions { n_seqs, ubatch_size: Some(ubatch_size), ..options() };
        let mut engine = open(&model, &[Device::Cpu], plan).unwrap();
        assert_eq!(engine.prepared().most_drafted().map_err(|_| ()), most);
        let (found, drafts) = generated(&mut engine, &prompt, scripted(&prompt[4..23]), with(FORCED, 19));
        assert_eq!((found.len(), drafts.forwards[3..].iter().sum::<usize>()), (19, 0));
        assert_eq!(drafts.n_drafted > 0, most.is_ok());
    }
}

#[test]
fn a_model_with_recurrent_states_drafts_nothing() {
    let root = tempfile::tempdir().unwrap();
    let options = PlanOptions { ctx_size: Some(48), logit_rows: MAX_TOKENS_TOGETHER, ..PlanOptions::default() };
    let builder = Engine::builder(families::written(root.path(), "lfm2")).plan_options(options).device(DeviceChoice::Cpu);
    let mut engine = pollster::block_on(builder.text(TextFiles::Skip).open()).unwrap();
    assert!(engine.prepared().most_drafted().unwrap_err().contains("recurrent states"));
    let prompt = [1u32, 2, 3, 4, 1, 2, 3, 4, 1, 2];
    let (expected, _) = generated(&mut engine, &prompt, greedy(), at_most(12));
    let (found, drafts) = generated(&mut engine, &prompt, greedy(), with(LONG, 12));
    assert_eq!((found, drafts.n_drafted, drafts.forwards[0]), (expected, 0, 11));
}

/// As the costs say, and drafts of these lengths whatever they cost.
const OF_MODEL: [Speculation; 3] = [
    Speculation { source: DraftSource::Model, ..NGRAM },
    Speculation { source: DraftSource::Model, ..FORCED },
    Speculation { source: DraftSource::Model, ..LONG },
];

#[test]
fn tokens_that_a_model_drafts_are_those_of_plain_decoding() {
    let model = circling_model();
    // The model itself is right wherever the likeliest token is drawn; another one hardly ever is.
    let other = model_of(&LlamaShape { n_layers: 1, ..LlamaShape::tiny() });
    let prompt = ids(&tokens(0, 30));
    for executors in executor_sets() {
        for (drafting, is_right) in [(&model, true), (&other, false)] {
            for device in [Device::Cpu, GPU].into_iter().take(if executors[0] == GPU { 2 } else { 1 }) {
                let plan = PlanOptions { ubatch_size: Some(16), ..plans()[1].clone() };
                let draft = open(drafting, &[device], plan).unwrap();
                let mut engine = open(&model, executors, plans()[0].clone()).unwrap();
                engine.draft_with(draft).unwrap();
                for sampling in SAMPLINGS {
                    let place = format!("{sampling} on {executors:?}, drafts on {device}");
                    let (expected, _) = generated(&mut engine, &prompt, sampler(sampling), at_most(25));
                    for speculation in OF_MODEL {
                        let (found, drafts) = generated(&mut engine, &prompt, sampler(sampling), with(speculation, 25));
                        assert_eq!(found, expected, "{place} with {speculation:?}");
                        assert_eq!(n_decoded(&drafts), 24, "{place}: {drafts:?}");
                        if sampling == "greedy" && speculation.least > 0 {
                            assert!(!is_right || drafts.n_accepted == drafts.n_drafted, "{place}: {drafts:?}");
                            assert!(is_right || drafts.n_accepted < drafts.n_drafted, "{place}: {drafts:?}");
                        }
                        if sampling == "greedy" && is_right && speculation.least == MAX_TOKENS_TOGETHER - 1 {
                            assert_eq!(drafts.n_forwards(), 3, "{place}: {drafts:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_model_drafts_for_sequences_beside_each_other_and_after_turns() {
    let model = circling_model();
    for executors in executor_sets() {
        let mut engine = open(&model, executors, plans()[0].clone()).unwrap();
        let prompts: Vec<Vec<u32>> = (0..3).map(|sequence| ids(&tokens(sequence, 20 + sequence))).collect();
        // The second turn goes back to the middle of the first one.
        let second = |prompt: &Vec<u32>| [&prompt[..12], &[7, 8, 9]].concat();
        let mut alone = |prompt: &Vec<u32>, sampling| -> Vec<u32> {
            generated(&mut engine, prompt, sampler(sampling), at_most(24)).0.iter().map(|step| step.token).collect()
        };
        let expected: Vec<[Vec<u32>; 2]> =
            prompts.iter().zip(SAMPLINGS).map(|(prompt, sampling)| [alone(prompt, sampling), alone(&second(prompt), sampling)]).collect();
        engine.draft_with(open(&model, &[Device::Cpu], plans()[1].clone()).unwrap()).unwrap();
        let handle = engine.spawn().unwrap();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| pollster::block_on(handle.sequence()).unwrap()).collect();
        for turn in [0, 1] {
            let mut streams = Vec::new();
            for (index, sequence) in sequences.iter_mut().enumerate() {
                let prompt = if turn == 0 { prompts[index].clone() } else { second(&prompts[index]) };
                streams.push(sequence.generate(prompt, sampler(SAMPLINGS[index]), with(OF_MODEL[1 + index % 2], 24)).unwrap());
            }
            for (index, stream) in streams.iter_mut().enumerate() {
                assert_eq!(rest_of(stream), expected[index][turn], "sequence {index}, turn {turn} on {executors:?}");
                assert!(stream.drafts().n_drafted > 0 && n_decoded(&stream.drafts()) == 23, "{:?}", stream.drafts());
            }
        }
    }
}

#[test]
fn a_model_that_does_not_fit_drafts_nothing() {
    let model = circling_model();
    let open_for = |model: &TestModel, n_seqs| open(model, &[Device::Cpu], PlanOptions { n_seqs, ..plans()[1].clone() }).unwrap();
    let refusal = |draft: Engine| open_for(&model, 3).draft_with(draft).unwrap_err().to_string();
    assert!(refusal(open_for(&model, 2)).contains("2 sequences"));
    let more = model_of(&LlamaShape { vocab_size: 352, ..LlamaShape::tiny() });
    assert!(refusal(open_for(&more, 3)).contains("352"), "of models without tokenizers, the numbers of tokens are compared");
    // Where its context is full, the text goes on without it.
    let prompt = ids(&tokens(0, 20));
    let mut engine = open_for(&model, 3);
    let (expected, _) = generated(&mut engine, &prompt, greedy(), at_most(40));
    engine.draft_with(open(&model, &[Device::Cpu], PlanOptions { ctx_size: Some(32), ..plans()[1].clone() }).unwrap()).unwrap();
    let (found, drafts) = generated(&mut engine, &prompt, greedy(), with(OF_MODEL[2], 40));
    assert_eq!(found, expected);
    assert!(drafts.n_accepted > 0 && drafts.forwards[0] > 20, "{drafts:?}");
    // Without such a model, nothing is drafted.
    let (found, drafts) = generated(&mut open_for(&model, 3), &prompt, greedy(), with(OF_MODEL[2], 40));
    assert_eq!((found, drafts.n_drafted), (expected, 0));
}
