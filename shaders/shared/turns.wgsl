
// What value `i` of a head turns with: its partner, and the sine's part of it.
struct Turn {
    partner: u32,
    cosine: f32,
    sine: f32,
}

fn turn_of(t: u32, i: u32) -> Turn {
    if i >= params.rotary_size {
        return Turn(i, 1.0, 0.0);
    }
    let n_pairs = params.rotary_size / 2u;
    var pair = i / 2u;
    var is_first = i % 2u == 0u;
    var distance = 1u;
    if params.pairing == HALVES {
        pair = i % n_pairs;
        is_first = i < n_pairs;
        distance = n_pairs;
    }
    let angle = cos_sin[t * n_pairs + pair];
    if is_first {
        return Turn(i + distance, angle.x, -angle.y);
    }
    return Turn(i - distance, angle.x, angle.y);
}
