//! Answers in channels (gpt-oss) that have a form: the model thinks as it likes, in messages of the channel `analysis`, and what keeps to a form is
//! the message that answers, or the one that calls a function. What stands before a message is one of a few headers.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::forms::{AnswerForm, failed};
use super::reasoning::{CHANNEL_MARKS, END, END_OF_MESSAGE, MAX_HEADER_BYTES, MESSAGE, called};
use super::{Candidate, Constraint, FormError, Special, Tokenizer};
use crate::error::Result;

/// What begins a message behind another one; a chat template has written that of the first one.
const NEXT_MESSAGE: &str = "<|start|>assistant";
const REASONING: &str = "<|channel|>analysis<|message|>";
const ANSWER: &str = "<|channel|>final<|message|>";

/// What the messages of an answer must be.
pub(super) struct Channels {
    tokenizer: Tokenizer,
    /// Tokens that set messages apart, of which some files have a few as text.
    marks: Vec<(u32, &'static str)>,
    /// What ends a message of reasoning.
    end: u32,
    /// Tokens that reasoning has none of: the other marks, and what ends answers.
    foreign: BTreeSet<u32>,
    /// What ends a call, where that ends the answer too.
    end_of_call: Option<u32>,
    reasoning: Header,
    messages: Vec<Message>,
    /// Whether one of the messages must come; if not, everything else may.
    is_demanded: bool,
}

/// The tokens before a message: of the first of an answer, and of a later one.
struct Header([Vec<u32>; 2]);

/// A message whose text has a form.
struct Message {
    /// The function that it calls.
    function: Option<String>,
    header: Header,
    form: AnswerForm,
}

/// One answer on its way.
struct InChannels {
    rules: Arc<Channels>,
    state: State,
}

enum State {
    /// Anything may come; this is the header of a message, or its text.
    Free(Vec<u8>),
    /// So many tokens of a header came; these messages may follow, without a number the one of reasoning.
    Header {
        is_first: bool,
        n_came: usize,
        ways: Vec<Option<usize>>,
    },
    Reasoning,
    Message {
        index: usize,
        constraint: Box<dyn Constraint>,
    },
}

impl Channels {
    /// Of an answer whose text has a form.
    ///
    /// # Errors
    /// Where the vocabulary lacks a mark.
    pub(super) fn of_answer(tokenizer: &Tokenizer, form: AnswerForm) -> std::result::Result<Channels, FormError> {
        Channels::of(tokenizer, vec![(None, form)], true)
    }

    /// Of an answer that may call functions, or must, each with a form of its arguments.
    ///
    /// # Errors
    /// Where the vocabulary lacks a mark.
    pub(super) fn of_calls(
        tokenizer: &Tokenizer,
        functions: Vec<(String, AnswerForm)>,
        is_demanded: bool,
    ) -> std::result::Result<Channels, FormError> {
        Channels::of(tokenizer, functions.into_iter().map(|(name, form)| (Some(name), form)).collect(), is_demanded)
    }

    fn of(tokenizer: &Tokenizer, forms: Vec<(Option<String>, AnswerForm)>, is_demanded: bool) -> std::result::Result<Channels, FormError> {
        let unsupported = |reason: String| FormError::Unsupported(reason);
        let known = |mark: &'static str| Some((tokenizer.token_id(mark)?, mark));
        let marks: Vec<(u32, &'static str)> = CHANNEL_MARKS.into_iter().filter_map(known).collect();
        let token_of = |mark: &str| marks.iter().find(|(_, own)| *own == mark).map(|(id, _)| *id);
        let end = token_of(END).ok_or_else(|| unsupported(format!("needs the token {END}, which the model has not")))?;
        let encode = |text: String| tokenizer.encode(&text, Special::Leave).map_err(|error| unsupported(error.to_string()));
        let header = |text: &str| Ok::<_, FormError>(Header([encode(text.to_owned())?, encode(format!("{NEXT_MESSAGE}{text}"))?]));
        let message = |(function, form): (Option<String>, AnswerForm)| {
            let header = match &function {
                Some(name) => header(&format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"))?,
                None => header(ANSWER)?,
            };
            Ok::<_, FormError>(Message { function, header, form })
        };
        let ids = marks.iter().map(|(id, _)| *id).chain(tokenizer.eos_tokens().iter().copied());
        Ok(Channels {
            foreign: ids.filter(|token| *token != end).collect(),
            end,
            end_of_call: token_of(END_OF_MESSAGE).filter(|token| tokenizer.eos_tokens().contains(token)),
            reasoning: header(REASONING)?,
            messages: forms.into_iter().map(message).collect::<std::result::Result<_, _>>()?,
            is_demanded,
            marks,
            tokenizer: tokenizer.clone(),
        })
    }

    /// The rules for one answer.
    pub(super) fn constraint(self: &Arc<Channels>) -> Box<dyn Constraint> {
        let state = if self.is_demanded { self.next_message(true) } else { State::Free(Vec::new()) };
        Box::new(InChannels { rules: Arc::clone(self), state })
    }

    fn next_message(&self, is_first: bool) -> State {
        State::Header { is_first, n_came: 0, ways: [None].into_iter().chain((0..self.messages.len()).map(Some)).collect() }
    }

    /// The tokens before a message.
    fn header(&self, way: Option<usize>, is_first: bool) -> &[u32] {
        let Header(tokens) = way.and_then(|index| self.messages.get(index)).map_or(&self.reasoning, |message| &message.header);
        &tokens[usize::from(!is_first)]
    }

    /// The text of a message begins.
    fn begin(&self, index: usize) -> Result<State> {
        Ok(State::Message { index, constraint: self.messages[index].form.constraint()? })
    }

    /// What follows a token where anything may come.
    fn after_free(&self, token: u32, header: &mut Vec<u8>) -> Result<Option<State>> {
        match self.marks.iter().find(|(id, _)| *id == token) {
            Some((_, mark)) if *mark == MESSAGE => {
                let header = String::from_utf8_lossy(header).into_owned();
                let is_called = |message: &Message| message.function.is_some() && message.function.as_deref() == called(&header);
                return self.messages.iter().position(is_called).map(|index| self.begin(index)).transpose();
            }
            Some((_, mark @ ("<|channel|>" | "<|constrain|>"))) => header.extend_from_slice(mark.as_bytes()),
            Some(_) => header.clear(),
            // What is longer than a header is text.
            None if header.len() > MAX_HEADER_BYTES => {}
            None => header.extend(self.tokenizer.bytes(token).unwrap_or_default()),
        }
        Ok(None)
    }
}

impl fmt::Debug for InChannels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InChannels")
    }
}

impl Constraint for InChannels {
    fn keep_allowed(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        match &mut self.state {
            State::Free(_) => {}
            State::Header { is_first, n_came, ways } => {
                let next: BTreeSet<u32> = ways.iter().filter_map(|way| self.rules.header(*way, *is_first).get(*n_came)).copied().collect();
                candidates.retain(|candidate| next.contains(&candidate.token));
            }
            State::Reasoning => candidates.retain(|candidate| !self.rules.foreign.contains(&candidate.token)),
            State::Message { index, constraint } => {
                let ends = self.rules.tokenizer.eos_tokens();
                let is_mark = |token: u32| self.rules.marks.iter().any(|(id, _)| *id == token);
                candidates.retain(|candidate| !is_mark(candidate.token) || ends.contains(&candidate.token));
                constraint.keep_allowed(candidates)?;
                // Of what ends answers, calls have a token of their own.
                if let Some(end) = self.rules.end_of_call.filter(|_| self.rules.messages[*index].function.is_some())
                    && candidates.iter().any(|candidate| candidate.token == end)
                {
                    candidates.retain(|candidate| candidate.token == end || !ends.contains(&candidate.token));
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        let rules = &self.rules;
        let next = match &mut self.state {
            State::Free(header) => rules.after_free(token, header)?,
            State::Header { is_first, n_came, ways } => {
                ways.retain(|way| rules.header(*way, *is_first).get(*n_came) == Some(&token));
                *n_came += 1;
                let whole = ways.iter().find(|way| rules.header(**way, *is_first).len() == *n_came);
                match (whole, ways.is_empty()) {
                    (Some(Some(index)), _) => Some(rules.begin(*index)?),
                    (Some(None), _) => Some(State::Reasoning),
                    (None, true) => return Err(failed("the token begins no message")),
                    (None, false) => None,
                }
            }
            State::Reasoning => (token == rules.end).then(|| rules.next_message(false)),
            State::Message { constraint, .. } => {
                constraint.accept(token)?;
                None
            }
        };
        if let Some(next) = next {
            self.state = next;
        }
        Ok(())
    }
}
