//! `cargo xtask picture TRACE.json OUT.svg`: the lanes of one forward of a trace, as the README shows them.

use std::fmt::Write;
use std::path::Path;

/// Lanes from top to bottom: their name in the trace, their title, and a colour that reads on white and on black.
const LANES: [(&str, &str, &str); 4] = [
    ("fetch", "fetch (disk → host)", "#8a63d2"),
    ("upload", "upload (host → GPU)", "#d9822b"),
    ("compute", "compute (GPU)", "#2f9e6e"),
    ("stall", "stall", "#d64545"),
];
const LEFT: f64 = 170.0;
const WIDTH: f64 = 980.0;
const LANE_HEIGHT: f64 = 34.0;
const TOP: f64 = 30.0;

/// One span of the chosen forward, in milliseconds since its begin.
struct Span {
    lane: usize,
    name: String,
    start_ms: f64,
    end_ms: f64,
}

/// Draws the next to last forward of the trace.
///
/// # Errors
/// Where a file cannot be read or written, or the trace holds no forward.
pub fn draw(trace: &Path, out: &Path) -> Result<(), String> {
    let text = std::fs::read(trace).map_err(|error| format!("cannot read {}: {error}", trace.display()))?;
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", trace.display()))?;
    let spans = spans(&json).ok_or_else(|| format!("{} holds no forward of a streamed run", trace.display()))?;
    std::fs::write(out, svg(&spans)).map_err(|error| format!("cannot write {}: {error}", out.display()))
}

fn spans(json: &serde_json::Value) -> Option<Vec<Span>> {
    let events: Vec<&serde_json::Value> = json["traceEvents"].as_array()?.iter().filter(|event| event["ph"] == "X").collect();
    let computes = |event: &&&serde_json::Value| event["args"]["lane"] == "compute";
    let forward = events.iter().filter(computes).filter_map(|event| event["args"]["forward"].as_u64()).max()?.checked_sub(1)?;
    let time = |event: &serde_json::Value| Some((event["ts"].as_f64()? / 1e3, event["dur"].as_f64()? / 1e3));
    let of_forward: Vec<(f64, f64)> = events
        .iter()
        .filter(computes)
        .filter(|event| event["args"]["forward"].as_u64() == Some(forward))
        .filter_map(|event| time(event))
        .collect();
    let begin = of_forward.iter().map(|(start, _)| *start).reduce(f64::min)?;
    let end = of_forward.iter().map(|(start, length)| start + length).reduce(f64::max)?;
    let mut spans = Vec::new();
    for event in events {
        let (start, length) = time(event)?;
        let Some(lane) = LANES.iter().position(|(lane, ..)| event["args"]["lane"] == *lane) else { continue };
        if start + length > begin && start < end {
            let name = event["name"].as_str().unwrap_or_default().to_owned();
            spans.push(Span { lane, name, start_ms: start.max(begin) - begin, end_ms: (start + length).min(end) - begin });
        }
    }
    Some(spans)
}

fn svg(spans: &[Span]) -> String {
    let total_ms = spans.iter().map(|span| span.end_ms).fold(0.0, f64::max).max(1e-3);
    let x = |ms: f64| LEFT + ms / total_ms * (WIDTH - LEFT - 20.0);
    let height = TOP + LANES.len() as f64 * LANE_HEIGHT + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n\
         <title>One token: weights arrive while the GPU computes</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (lane, (_, title, _)) in LANES.iter().enumerate() {
        let y = TOP + lane as f64 * LANE_HEIGHT;
        let _ = writeln!(svg, "<text x=\"10\" y=\"{}\" fill=\"#222\">{title}</text>", y + 18.0);
        let _ = writeln!(svg, "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#ddd\"/>", WIDTH - 20.0);
    }
    for span in spans {
        let (begin, end) = (x(span.start_ms), x(span.end_ms));
        let y = TOP + span.lane as f64 * LANE_HEIGHT + 5.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{begin:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\" stroke=\"#fff\" stroke-width=\"0.4\"><title>{} {:.1} ms</title></rect>",
            (end - begin).max(0.6),
            LANE_HEIGHT - 10.0,
            LANES[span.lane].2,
            span.name,
            span.end_ms - span.start_ms
        );
    }
    let axis = TOP + LANES.len() as f64 * LANE_HEIGHT + 16.0;
    for tick in 0..=5 {
        let ms = total_ms * f64::from(tick) / 5.0;
        let anchor = if tick == 5 { "end" } else { "middle" };
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{axis}\" fill=\"#555\" text-anchor=\"{anchor}\">{ms:.0} ms</text>", x(ms));
    }
    svg.push_str("</svg>\n");
    svg
}
