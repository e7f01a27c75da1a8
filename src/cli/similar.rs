//! Finds the name that a misspelled word is close to.

/// The name that `word` may have been meant as: one that it begins, or one that it is [near](is_near) to.
pub(super) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names.into_iter().find(|name| word.chars().count() > 2 && (name.starts_with(word) || is_near(name, word)))
}

/// Whether one letter too much, missing or wrong makes the difference, or the order of the letters.
fn is_near(one: &str, other: &str) -> bool {
    let (mut one, mut other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let rest = |text: &[char], n: usize| text.get(same + n..).map(<[char]>::to_vec);
    let lens = [(1, 1), (0, 1), (1, 0)];
    if lens.into_iter().any(|(a, b)| rest(&one, a).is_some_and(|left| rest(&other, b).is_some_and(|right| left == right))) {
        return true;
    }
    one.sort_unstable();
    other.sort_unstable();
    one == other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_near_and_what_has_some_letters_in_common_is_not() {
        let names = ["bench", "run", "kv-dtype", "stop", "quiet", "prompt", "max-memory"];
        for (word, name) in [
            ("bensh", Some("bench")),
            ("rnu", Some("run")),
            ("promt", Some("prompt")),
            ("prompts", Some("prompt")),
            ("max-mem", Some("max-memory")),
            ("kv-dtpye", Some("kv-dtype")),
            ("nosuch", None),
            ("torch-dtype", None),
            ("do-sample", None),
            ("quantize", None),
            ("in-prefix", None),
            ("ru", None),
        ] {
            assert_eq!(nearest(word, names), name, "{word}");
        }
    }
}
