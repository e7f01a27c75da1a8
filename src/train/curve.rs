//! The curve of a loss as SVG.

use std::fmt::Write as _;

/// Size of the picture, and what stays free around the curve.
const SIZE: [f64; 2] = [720.0, 360.0];
const MARGIN: f64 = 48.0;
/// Lines of the grid.
const N_LINES: usize = 4;

/// The losses of steps, and where given those of data that was kept apart, by their steps: `[(step, loss)]`.
pub fn curve_svg(losses: &[(u64, f64)], kept_apart: &[(u64, f64)]) -> String {
    let shown: Vec<f64> = losses.iter().chain(kept_apart).map(|(_, loss)| *loss).filter(|loss| loss.is_finite()).collect();
    let most = shown.iter().copied().fold(0.0, f64::max).max(1e-9);
    let last = losses.iter().chain(kept_apart).map(|(step, _)| *step).max().unwrap_or(1).max(2);
    let [width, height] = SIZE;
    let x = |step: u64| MARGIN + (width - 2.0 * MARGIN) * step.saturating_sub(1) as f64 / (last - 1) as f64;
    let y = |loss: f64| height - MARGIN - (height - 2.0 * MARGIN) * loss / most;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for line in 0..=N_LINES {
        let loss = most * line as f64 / N_LINES as f64;
        let (left, right, at) = (MARGIN, width - MARGIN, y(loss));
        // Writing to a text cannot fail.
        let _ = writeln!(svg, "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.3}</text>", left - 6.0, at + 4.0);
    }
    for (step, anchor) in [(1, "start"), (last, "end")] {
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">step {step}</text>", x(step), height - MARGIN + 20.0);
    }
    for (points, colour, name) in [(losses, "#3366cc", "loss"), (kept_apart, "#cc6633", "evaluation")] {
        let points: Vec<String> =
            points.iter().filter(|(_, loss)| loss.is_finite()).map(|(step, loss)| format!("{:.1},{:.1}", x(*step), y(*loss))).collect();
        if !points.is_empty() {
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"><title>{name}</title></polyline>",
                points.join(" ")
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_shows_finite_losses_alone() {
        let svg = curve_svg(&[(1, 4.0), (2, f64::NAN), (3, 2.0)], &[]);
        assert!(svg.contains("points=\"48.0,48.0 672.0,180.0\"") && !svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert!(curve_svg(&[], &[]).ends_with("</svg>\n"));
        assert_eq!(curve_svg(&[(1, 1.0)], &[(1, 2.0)]).matches("<polyline").count(), 2);
    }
}
