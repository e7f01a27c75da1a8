//! Follows a text through a grammar, byte by byte and all ways at once. A way is a stack of what is still to come; stacks share what they
//! have in common, and the set of them is a state. Where a byte leads from a state is found once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::rules::{Element, Rules};

/// Most ways that are followed from one byte to the next.
const MAX_WAYS: usize = 20_000;
/// Most states, and most places in all their stacks.
const MAX_STATES: usize = 1 << 16;
const MAX_PLACES: usize = 1 << 20;

/// A text that is whole: nothing is to come.
const WHOLE: u32 = 0;
/// Where a byte leads that was not looked at yet, and one that is not allowed.
const UNKNOWN: u32 = u32::MAX;
const NOWHERE: u32 = u32::MAX - 1;

/// There are too many ways to read a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyWays;

impl fmt::Display for TooManyWays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there are too many ways to read one text by it")
    }
}

/// A place in a stack: an element that comes next, and the place that comes after its alternative.
type Place = (u32, u32);

pub(super) struct Matcher {
    rules: Arc<Rules>,
    /// Bytes that no rule tells apart have one class.
    classes: [u8; 256],
    n_classes: usize,
    places: Vec<Place>,
    place_ids: HashMap<Place, u32>,
    /// The places on top of the stacks of each state.
    states: Vec<Arc<[u32]>>,
    state_ids: HashMap<Arc<[u32]>, u32>,
    /// Where the bytes of each class lead from each state.
    next: Vec<u32>,
    begin: u32,
}

impl Matcher {
    pub(super) fn new(rules: Arc<Rules>) -> Result<Matcher, TooManyWays> {
        let (classes, n_classes) = classes_of(&rules);
        let mut matcher = Matcher {
            rules,
            classes,
            n_classes,
            places: vec![(u32::MAX, WHOLE)],
            place_ids: HashMap::new(),
            states: Vec::new(),
            state_ids: HashMap::new(),
            next: Vec::new(),
            begin: 0,
        };
        let begins = matcher.rules.alternatives[matcher.rules.root as usize].iter().map(|begin| (*begin, WHOLE)).collect();
        let tops = matcher.tops(begins)?;
        matcher.begin = matcher.state(tops)?;
        Ok(matcher)
    }

    /// The state before the first byte.
    pub(super) fn begin(&self) -> u32 {
        self.begin
    }

    /// Whether the text may end there.
    pub(super) fn is_whole(&self, state: u32) -> bool {
        self.states[state as usize].first() == Some(&WHOLE)
    }

    /// Where `byte` leads; `None` where it is not allowed.
    pub(super) fn step(&mut self, state: u32, byte: u8) -> Result<Option<u32>, TooManyWays> {
        let index = state as usize * self.n_classes + usize::from(self.classes[usize::from(byte)]);
        let next = match self.next[index] {
            UNKNOWN => self.find(state, byte)?,
            known => known,
        };
        self.next[index] = next;
        Ok((next != NOWHERE).then_some(next))
    }

    fn find(&mut self, state: u32, byte: u8) -> Result<u32, TooManyWays> {
        let mut ways = Vec::new();
        for &top in self.states[state as usize].iter().filter(|top| **top != WHOLE) {
            let (element, after) = self.places[top as usize];
            if let Element::Byte(set) = self.rules.elements[element as usize]
                && self.rules.sets[set as usize].contains(byte)
            {
                ways.push((element + 1, after));
            }
        }
        let tops = self.tops(ways)?;
        if tops.is_empty() { Ok(NOWHERE) } else { self.state(tops) }
    }

    /// The places of bytes, and of the end, that `ways` lead to.
    fn tops(&mut self, mut ways: Vec<Place>) -> Result<Vec<u32>, TooManyWays> {
        let rules = Arc::clone(&self.rules);
        let (mut tops, mut seen) = (Vec::new(), HashSet::new());
        while let Some((element, after)) = ways.pop() {
            if !seen.insert((element, after)) {
                continue;
            }
            if seen.len() > MAX_WAYS {
                return Err(TooManyWays);
            }
            match rules.elements[element as usize] {
                Element::Byte(_) => tops.push(self.place((element, after))?),
                Element::End if after == WHOLE => tops.push(WHOLE),
                Element::End => ways.push(self.places[after as usize]),
                Element::Rule(rule) => {
                    // Where nothing follows the rule, what comes after it is what comes after this one.
                    let is_last = rules.elements[element as usize + 1] == Element::End;
                    let after = if is_last { after } else { self.place((element + 1, after))? };
                    ways.extend(rules.alternatives[rule as usize].iter().map(|begin| (*begin, after)));
                }
            }
        }
        tops.sort_unstable();
        tops.dedup();
        Ok(tops)
    }

    fn place(&mut self, place: Place) -> Result<u32, TooManyWays> {
        let next = self.places.len();
        let id = *self.place_ids.entry(place).or_insert(next as u32);
        if id as usize == next {
            self.places.push(place);
        }
        if next > MAX_PLACES { Err(TooManyWays) } else { Ok(id) }
    }

    fn state(&mut self, tops: Vec<u32>) -> Result<u32, TooManyWays> {
        let tops: Arc<[u32]> = tops.into();
        if let Some(id) = self.state_ids.get(&tops) {
            return Ok(*id);
        }
        let id = self.states.len();
        if id > MAX_STATES {
            return Err(TooManyWays);
        }
        self.states.push(Arc::clone(&tops));
        self.state_ids.insert(tops, id as u32);
        self.next.resize(self.next.len() + self.n_classes, UNKNOWN);
        Ok(id as u32)
    }

    /// Whether so much is known of other states that it had better be forgotten.
    pub(super) fn is_large(&self) -> bool {
        self.states.len() > MAX_STATES / 2 || self.places.len() > MAX_PLACES / 2
    }

    /// Forgets all but `state`, which has another number then.
    pub(super) fn forget_all_but(&mut self, state: u32) -> Result<u32, TooManyWays> {
        let (old_places, tops) = (std::mem::take(&mut self.places), Arc::clone(&self.states[state as usize]));
        self.places = vec![(u32::MAX, WHOLE)];
        self.place_ids.clear();
        self.states.clear();
        self.state_ids.clear();
        self.next.clear();
        let mut renumbered = HashMap::from([(WHOLE, WHOLE)]);
        let mut kept = Vec::new();
        for &top in tops.iter() {
            // From the bottom of the stack to its top.
            let below = |place: &u32| Some(old_places[*place as usize].1);
            let stack: Vec<u32> = std::iter::successors(Some(top), below).take_while(|place| !renumbered.contains_key(place)).collect();
            for place in stack.into_iter().rev() {
                let (element, after) = old_places[place as usize];
                let id = self.place((element, renumbered[&after]))?;
                renumbered.insert(place, id);
            }
            kept.push(renumbered[&top]);
        }
        kept.sort_unstable();
        self.state(kept)
    }
}

/// The class of each byte, and how many there are.
fn classes_of(rules: &Rules) -> ([u8; 256], usize) {
    let (mut classes, mut n_classes) = ([0u8; 256], 1usize);
    for set in &rules.sets {
        // Each class is cut in two by a set that has some of it.
        let mut inside: HashMap<u8, u8> = HashMap::new();
        let outside: HashSet<u8> = (0..=255u8).filter(|byte| !set.contains(*byte)).map(|byte| classes[usize::from(byte)]).collect();
        for byte in (0..=255u8).filter(|byte| set.contains(*byte)) {
            let class = &mut classes[usize::from(byte)];
            if outside.contains(class) {
                *class = *inside.entry(*class).or_insert_with(|| {
                    n_classes += 1;
                    (n_classes - 1) as u8
                });
            }
        }
    }
    (classes, n_classes)
}
