//! Ranges as llama-bench reads them in its lists of numbers: `FIRST-LAST`, `FIRST-LAST+STEP`, `FIRST-LAST*FACTOR`.

/// No list of tests is longer by intention.
const MOST_NUMBERS: usize = 1000;

/// `list` with every number of its ranges, or `None` where it has none or one of them never ends.
pub(super) fn expanded(list: &str) -> Option<String> {
    if !list.split(',').any(|item| range(item).is_some()) {
        return None;
    }
    let mut numbers: Vec<String> = Vec::new();
    for item in list.split(',') {
        match range(item) {
            Some(range) => numbers.extend(range.numbers()?.iter().map(u32::to_string)),
            None => numbers.push(item.to_owned()),
        }
    }
    Some(numbers.join(","))
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Add(u32),
    Multiply(u32),
}

#[derive(Debug, Clone, Copy)]
struct Range {
    first: u32,
    last: u32,
    step: Step,
}

fn range(item: &str) -> Option<Range> {
    let (first, rest) = item.split_once('-')?;
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let (last, step) = match (rest.split_once('+'), rest.split_once('*')) {
        (Some((last, step)), None) => (last, Step::Add(number(step)?)),
        (None, Some((last, factor))) => (last, Step::Multiply(number(factor)?)),
        (None, None) => (rest, Step::Add(1)),
        _ => return None,
    };
    Some(Range { first: number(first)?, last: number(last)?, step })
}

impl Range {
    fn numbers(self) -> Option<Vec<u32>> {
        let mut numbers = Vec::new();
        let mut next = Some(self.first);
        while let Some(number) = next.filter(|number| *number <= self.last) {
            if numbers.last().is_some_and(|before| *before >= number) || numbers.len() == MOST_NUMBERS {
                return None;
            }
            numbers.push(number);
            next = match self.step {
                Step::Add(step) => number.checked_add(step),
                Step::Multiply(factor) => number.checked_mul(factor),
            };
        }
        Some(numbers).filter(|numbers| !numbers.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_their_numbers_and_all_else_stays() {
        for (list, numbers) in [
            ("128-512*2", "128,256,512"),
            ("1-4", "1,2,3,4"),
            ("0-99+33,7,-1", "0,33,66,99,7,-1"),
            ("5-5", "5"),
            ("1-4294967295*65536", "1,65536"),
        ] {
            assert_eq!(expanded(list).as_deref(), Some(numbers), "{list}");
        }
        for list in ["", "128,512", "-1", "1-", "-1-3", "a-b", "1-2-3", "1-8+1*2", "4-1", "0-8*2", "1-8+0", "1-8*1", "0-4000000000", "all"]
        {
            assert_eq!(expanded(list), None, "{list}");
        }
    }
}
