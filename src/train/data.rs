//! What is trained on: lines of JSON become tokens, each with whether its prediction is trained.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::engine::ModelText;
use crate::error::{Error, Result};
use crate::text::{ChatMessage, GenerationPrompt, Special, TemplateInput, Tokenizer};

/// Bytes of a record, at most.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Which tokens' predictions are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Those of answers: of an assistant's messages, of completions; of plain texts all.
    #[default]
    Answers,
    /// All but a record's first token.
    All,
}

/// How records become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOptions {
    /// Which tokens are trained.
    pub train_on: TrainOn,
    /// Tokens of an example, at most.
    pub seq_len: usize,
    /// Whether longer records are cut to that; otherwise they are left out and counted.
    pub truncates: bool,
}

/// One record as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Of each token, whether its prediction by those before it is trained. The first has none.
    pub is_trained: Vec<bool>,
}

/// Tokens, and what is to be predicted after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// After each token the one that is to be predicted there, or `None` where nothing is trained.
    pub targets: Vec<Option<u32>>,
}

impl From<&Example> for Sequence {
    fn from(example: &Example) -> Sequence {
        let next = example.tokens.iter().zip(&example.is_trained).skip(1).map(|(token, is_trained)| is_trained.then_some(*token));
        Sequence { tokens: example.tokens.clone(), targets: next.chain([None]).take(example.tokens.len()).collect() }
    }
}

/// Tokens that are to be predicted.
pub(super) fn n_targets(sequences: &[Sequence]) -> usize {
    sequences.iter().flat_map(|sequence| &sequence.targets).flatten().count()
}

/// The examples of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataSet {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// Records that were left out, being too long.
    pub n_too_long: usize,
    /// Records that were cut.
    pub n_truncated: usize,
}

impl Example {
    fn push(&mut self, tokens: Vec<u32>, is_trained: bool) {
        self.is_trained.resize(self.tokens.len() + tokens.len(), is_trained);
        self.tokens.extend(tokens);
        if let Some(first) = self.is_trained.first_mut() {
            *first = false;
        }
    }

    /// Tokens whose prediction is trained.
    pub fn n_trained(&self) -> usize {
        self.is_trained.iter().filter(|is_trained| **is_trained).count()
    }
}

impl DataSet {
    /// Reads a file with a JSON object in each line: `messages`, which go through the model's chat template, with `tools` where there are
    /// some; or `text`; or `prompt` and `completion`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] that names the line of a record that is none of these or has no answer, and where no record is
    /// left.
    pub fn read(path: &Path, text: &ModelText, options: DataOptions) -> Result<DataSet> {
        let file = File::open(path).map_err(|error| Error::io("open", path.display(), error))?;
        DataSet::of_lines(BufReader::new(file), &path.display().to_string(), text, options)
    }

    /// The same of lines that are not in a file; errors call them `name`.
    ///
    /// # Errors
    /// As of [`DataSet::read`].
    pub fn of_lines(mut reader: impl BufRead, name: &str, text: &ModelText, options: DataOptions) -> Result<DataSet> {
        let mut data = DataSet::default();
        for number in 1.. {
            let mut line = Vec::new();
            let n_read = reader.by_ref().take(MAX_RECORD_BYTES).read_until(b'\n', &mut line);
            if n_read.map_err(|error| Error::io("read", name, error))? == 0 {
                break;
            }
            if line.len() as u64 == MAX_RECORD_BYTES {
                return Err(at_line(name, number, "is longer than 64 MiB"));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let example = example(&line, text, options.train_on).map_err(|reason| at_line(name, number, &reason))?;
            data.add(example, options);
        }
        if data.examples.is_empty() {
            let reason = match data.n_too_long {
                0 => "holds no record".to_owned(),
                n => format!(
                    "all of its {n} records have more than {} tokens; train with longer sequences, or truncate them",
                    options.seq_len
                ),
            };
            return Err(Error::invalid_file(name, reason));
        }
        Ok(data)
    }

    fn add(&mut self, mut example: Example, options: DataOptions) {
        if example.tokens.len() > options.seq_len {
            example.tokens.truncate(options.seq_len);
            example.is_trained.truncate(options.seq_len);
            if !options.truncates || example.n_trained() == 0 {
                self.n_too_long += 1;
                return;
            }
            self.n_truncated += 1;
        }
        self.examples.push(example);
    }

    /// The examples in groups that are computed as one: each by itself, or, with `most_tokens`, as many together as have no more tokens. The longest come
    /// first, each goes to the group that it fills best.
    pub fn groups(&self, most_tokens: Option<usize>) -> Vec<Vec<usize>> {
        let Some(most_tokens) = most_tokens else { return (0..self.examples.len()).map(|index| vec![index]).collect() };
        let mut by_len: Vec<usize> = (0..self.examples.len()).collect();
        by_len.sort_by_key(|index| std::cmp::Reverse(self.examples[*index].tokens.len()));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        // Tokens that groups have room for, and which groups.
        let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for index in by_len {
            let len = self.examples[index].tokens.len();
            let best = open.range(len..).next().map(|(room, _)| *room);
            let (group, room) = match best.and_then(|room| Some((open.get_mut(&room)?.pop()?, room))) {
                Some(found) => found,
                None => {
                    groups.push(Vec::new());
                    (groups.len() - 1, most_tokens.max(len))
                }
            };
            if let Some(room) = best.filter(|room| open[room].is_empty()) {
                open.remove(&room);
            }
            groups[group].push(index);
            open.entry(room - len).or_default().push(group);
        }
        groups
    }

    /// An order of `n` groups of examples in epoch `epoch`, from 0 on.
    pub fn order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(u64::MAX - epoch);
        for last in (1..order.len()).rev() {
            // A share of the whole range: a bias of 2⁻³², and the same on every platform.
            let index = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
            order.swap(last, index as usize);
        }
        order
    }
}

fn at_line(name: &str, number: u64, reason: &str) -> Error {
    Error::invalid_file(name, format!("line {number}: {reason}"))
}

/// The example of a record, or what is wrong with it.
fn example(line: &[u8], text: &ModelText, train_on: TrainOn) -> Result<Example, String> {
    let record: Value = serde_json::from_slice(line).map_err(|error| format!("is not JSON: {error}"))?;
    let Value::Object(record) = record else { return Err("is not a JSON object".into()) };
    let tokenizer = text.tokenizer().ok_or("there is no tokenizer")?;
    let trains_all = train_on == TrainOn::All;
    let mut example = Example { tokens: Vec::new(), is_trained: Vec::new() };
    if let Some(messages) = record.get("messages") {
        of_messages(messages, &record, text, tokenizer, trains_all, &mut example)?;
    } else if let Some(plain) = record.get("text") {
        let plain = plain.as_str().ok_or("`text` is not a text")?;
        example.push(encode(tokenizer, plain, Special::Add)?, true);
        end(tokenizer, &mut example);
    } else if record.contains_key("prompt") || record.contains_key("completion") {
        let part = |name: &str| record.get(name).and_then(Value::as_str).ok_or(format!("`{name}` is missing or not a text"));
        let (prompt, completion) = (part("prompt")?, part("completion")?);
        if completion.trim().is_empty() {
            return Err("`completion` is empty, there is nothing to learn".into());
        }
        example.push(encode(tokenizer, prompt, Special::Add)?, trains_all);
        example.push(encode(tokenizer, completion, Special::Leave)?, true);
        end(tokenizer, &mut example);
    } else {
        return Err("has none of `messages`, `text`, and `prompt` with `completion`".into());
    }
    if example.n_trained() == 0 {
        return Err("holds no text to learn".into());
    }
    Ok(example)
}

/// A text ends with the token that ends texts.
fn end(tokenizer: &Tokenizer, example: &mut Example) {
    if let Some(eos) = tokenizer.eos_tokens().first().filter(|eos| example.tokens.last() != Some(eos)) {
        example.push(vec![*eos], true);
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, special: Special) -> Result<Vec<u32>, String> {
    tokenizer.encode(text, special).map_err(|error| error.to_string())
}

/// A conversation as the model's template writes it. Answers are encoded apart from what stands before them, as a prompt is.
fn of_messages(
    messages: &Value,
    record: &Map<String, Value>,
    text: &ModelText,
    tokenizer: &Tokenizer,
    trains_all: bool,
    example: &mut Example,
) -> Result<(), String> {
    let template = text.chat_template().ok_or("the model has no chat template; give `text`, or `prompt` and `completion`")?;
    let messages: Vec<ChatMessage> = serde_json::from_value(messages.clone()).map_err(|error| format!("`messages`: {error}"))?;
    let tools = record.get("tools").filter(|tools| !tools.is_null()).map(|tools| serde_json::from_value(tools.clone()));
    let tools = tools.transpose().map_err(|error| format!("`tools`: {error}"))?;
    let input = TemplateInput { tools, ..TemplateInput::default() };
    let render = |messages: &[ChatMessage], prompt| template.render_with(messages, &input, prompt).map_err(|error| error.to_string());
    let answers: Vec<usize> = (0..messages.len()).filter(|index| messages[*index].role() == "assistant").collect();
    if answers.is_empty() {
        return Err("`messages` has no message of the role `assistant`, there is nothing to learn".into());
    }
    let mut done = String::new();
    for index in answers {
        let message = &messages[index];
        let has_calls = message.fields().get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
        if message.text().trim().is_empty() && !has_calls {
            return Err(format!("message {} is an empty answer, there is nothing to learn", index + 1));
        }
        let whole = render(&messages[..=index], GenerationPrompt::Leave)?;
        // Where the words that make the model answer are none of the answer's own, its role is part of what is learnt.
        let mut before = render(&messages[..index], GenerationPrompt::Add)?;
        if !whole.starts_with(&before) {
            before = render(&messages[..index], GenerationPrompt::Leave)?;
        }
        let pieces = before.strip_prefix(&done).zip(whole.strip_prefix(&before));
        let Some((between, answer)) = pieces else {
            return Err("the model's chat template writes earlier answers otherwise than last ones; give a record for each answer".into());
        };
        example.push(encode(tokenizer, between, Special::Leave)?, trains_all);
        example.push(encode(tokenizer, answer, Special::Leave)?, true);
        done = whole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_that_the_seed_and_the_epoch_choose() {
        let order = DataSet::order(50, 7, 0);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(order, DataSet::order(50, 7, 0));
        assert!(order != DataSet::order(50, 7, 1) && order != DataSet::order(50, 8, 0) && order != sorted);
    }

    #[test]
    fn groups_are_filled_and_hold_every_example_once() {
        let lens = [5, 1, 9, 3, 3, 7, 2, 10, 4];
        let examples = lens.map(|len| Example { tokens: vec![1; len], is_trained: vec![true; len] }).into();
        let data = DataSet { examples, ..DataSet::default() };
        assert_eq!(data.groups(None), (0..9).map(|index| vec![index]).collect::<Vec<_>>());
        let groups = data.groups(Some(10));
        let total = |group: &Vec<usize>| group.iter().map(|index| lens[*index]).sum::<usize>();
        // 44 tokens do not go into four groups.
        assert!(groups.len() == 5 && groups.iter().all(|group| total(group) <= 10), "{groups:?}");
        let mut all = groups.concat();
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
        assert_eq!(data.groups(Some(4)).iter().map(total).max(), Some(10), "what is longer is alone");
    }

    #[test]
    fn long_examples_are_counted() {
        let options = DataOptions { train_on: TrainOn::Answers, seq_len: 4, truncates: false };
        let example = |answer: usize| {
            let mut example = Example { tokens: Vec::new(), is_trained: Vec::new() };
            example.push(vec![1; 3], false);
            example.push(vec![2; answer], true);
            example
        };
        let mut data = DataSet::default();
        [1, 5].into_iter().for_each(|answer| data.add(example(answer), options));
        assert_eq!((data.examples.len(), data.n_too_long, data.n_truncated), (1, 1, 0));
        let options = DataOptions { truncates: true, ..options };
        data.add(example(5), options);
        assert_eq!((data.examples[1].n_trained(), data.n_too_long, data.n_truncated), (1, 1, 1));
        data.add(example(5), DataOptions { seq_len: 3, ..options });
        assert_eq!((data.examples.len(), data.n_too_long), (2, 2), "nothing of it would be learnt");
    }
}
