//! The chart of the README: bars of tokens per second, a panel for each place and test, light or dark as the page is.

use std::fmt::Write;

use super::report::{Row, Test, rate};

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 20.0;
/// Between the two columns: decoding at the left, prompts at the right.
const GAP: f64 = 40.0;
/// Room for the names before the bars and for the figures behind them.
const NAMES: f64 = 176.0;
const FIGURES: f64 = 50.0;
const BAR: f64 = 16.0;
const BAR_STEP: f64 = 20.0;
const HEADING: f64 = 44.0;
/// Between two dtypes of weights in one panel.
const GROUP_GAP: f64 = 10.0;
const PANEL_GAP: f64 = 26.0;

/// Colours by class; the page's scheme chooses between the two sets.
const STYLE: &str = "text{fill:#24292f;font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}\
.title{font-weight:600}.note{fill:#656d76}.figure{font-variant-numeric:tabular-nums}\
.own{fill:#1a7f64}.llama{fill:#9aa4b2}.accelerate{fill:#d29b5a}.line{stroke:#d0d7de}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#8d96a0}.own{fill:#3fb68f}.llama{fill:#6e7b8b}.accelerate{fill:#b47b3c}.line{stroke:#3d444d}}";

/// All rows of one place and one kind of test.
struct Panel<'a> {
    place: &'a str,
    rows: Vec<&'a Row>,
}

impl Panel<'_> {
    fn height(&self) -> f64 {
        let bars: usize = self.rows.iter().map(|row| row.outcomes.len()).sum();
        HEADING + bars as f64 * BAR_STEP + self.rows.len().saturating_sub(1) as f64 * GROUP_GAP
    }
}

/// Draws the rows; of several prompts at one place the longest.
pub fn svg(rows: &[Row]) -> String {
    let mut places: Vec<&str> = Vec::new();
    for row in rows {
        if !places.contains(&row.place.as_str()) {
            places.push(&row.place);
        }
    }
    let mut body = String::new();
    let mut y = MARGIN;
    for place in places {
        let columns =
            [panel(rows, place, |test| matches!(test, Test::Decode(_))), panel(rows, place, |test| matches!(test, Test::Prompt(_)))];
        let width = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;
        for (column, panel) in columns.iter().enumerate() {
            draw(panel, MARGIN + column as f64 * (width + GAP), y, width, &mut body);
        }
        y += columns.iter().map(Panel::height).fold(0.0, f64::max) + PANEL_GAP;
    }
    let height = y - PANEL_GAP + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>Tokens per second of tierflow and of other programs</title>\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}

fn panel<'a>(rows: &'a [Row], place: &'a str, is_wanted: impl Fn(Test) -> bool) -> Panel<'a> {
    let of_place = || rows.iter().filter(|row| row.place == place && is_wanted(row.test) && !row.outcomes.is_empty());
    let length = |row: &Row| match row.test {
        Test::Prompt(n_tokens) | Test::Decode(n_tokens) => n_tokens,
    };
    let longest = of_place().map(length).max();
    Panel { place, rows: of_place().filter(|row| Some(length(row)) == longest).collect() }
}

fn draw(panel: &Panel, left: f64, top: f64, width: f64, svg: &mut String) {
    let Some(first) = panel.rows.first() else { return };
    let largest =
        panel.rows.iter().flat_map(|row| &row.outcomes).map(|outcome| outcome.median()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let _ =
        writeln!(svg, "<text class=\"title\" x=\"{left}\" y=\"{}\">{}, tokens per second</text>", top + 12.0, escaped(&first.test.title()));
    let _ = writeln!(svg, "<text class=\"note\" x=\"{left}\" y=\"{}\">{}</text>", top + 30.0, escaped(panel.place));
    let begin = left + NAMES;
    let mut y = top + HEADING;
    let _ = writeln!(svg, "<line class=\"line\" x1=\"{begin}\" x2=\"{begin}\" y1=\"{y}\" y2=\"{:.1}\"/>", top + panel.height());
    for row in &panel.rows {
        for (index, outcome) in row.outcomes.iter().enumerate() {
            let length = outcome.median() / largest * (width - NAMES - FIGURES);
            let baseline = y + BAR - 4.0;
            if index == 0 {
                let _ = writeln!(svg, "<text class=\"note\" x=\"{left}\" y=\"{baseline}\">{}</text>", escaped(&row.weights));
            }
            let name = begin - 8.0;
            let _ = writeln!(svg, "<text text-anchor=\"end\" x=\"{name}\" y=\"{baseline}\">{}</text>", escaped(short(&outcome.name)));
            let class = class_of(&outcome.name);
            let _ = writeln!(svg, "<rect class=\"{class}\" x=\"{begin}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>");
            let figure = rate(outcome.median());
            let _ = writeln!(svg, "<text class=\"figure\" x=\"{:.1}\" y=\"{baseline}\">{figure}</text>", begin + length + 6.0);
            y += BAR_STEP;
        }
        y += GROUP_GAP;
    }
}

/// The name without its program, where a word behind the comma distinguishes the bars of one panel.
fn short(name: &str) -> &str {
    name.split_once(", ").map_or(name, |(_, rest)| if name.starts_with("tierflow") { rest } else { name })
}

fn class_of(name: &str) -> &'static str {
    match name {
        name if name.starts_with("llama.cpp") => "llama",
        name if name.starts_with("accelerate") => "accelerate",
        _ => "own",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Outcome;

    fn row(place: &str, test: Test, rates: [f64; 2]) -> Row {
        let outcome = |name: &str, rate: f64| Outcome { name: name.into(), samples_ts: vec![rate] };
        let outcomes = vec![outcome("tierflow", rates[0]), outcome("llama.cpp", rates[1])];
        Row { weights: "Q4_1".into(), place: place.into(), test, outcomes }
    }

    #[test]
    fn bars_are_as_long_as_their_rates() {
        let svg = svg(&[row("CPU", Test::Decode(32), [200.0, 100.0])]);
        let lengths: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect"))
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(lengths.len(), 2);
        assert!((lengths[0] - 2.0 * lengths[1]).abs() < 0.11, "{lengths:?}");
    }

    #[test]
    fn only_the_longest_prompt_is_drawn() {
        let svg = svg(&[row("CPU <0>", Test::Prompt(512), [3.0, 2.0]), row("CPU <0>", Test::Prompt(128), [5.0, 7.0])]);
        assert!(svg.contains("prompt of 512") && !svg.contains("prompt of 128"), "{svg}");
        assert!(svg.contains("CPU &lt;0&gt;"), "{svg}");
    }
}
