// The k largest logits of each segment of each row, best first; ties go to the lower token; NaN counts as the largest of all.
//
// params      one per dispatch
// logits      [n_rows, vocab_size] f32, read as bits: a float comparison would lose a NaN
// candidates  [n_rows, n_segments, k] of (logit bits, token); (0, NO_TOKEN) where a segment has fewer than k
//
// One workgroup per segment. Pass by pass, the best that comes after the one before. The host merges the segments.

struct Params {
    n_rows: u32,
    vocab_size: u32,
    k: u32,
    n_segments: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(2) var<storage, read_write> candidates: array<vec2<u32>>;

override LANES: u32 = 64u; // a power of two, at most 64

const SEGMENT: u32 = 2048u;
const NO_TOKEN: u32 = 0xffffffffu;

// Rank of a logit: larger numbers for larger floats, both zeros alike, the largest number for every NaN. No rank is 0.
var<workgroup> ranks: array<u32, SEGMENT>;
var<workgroup> best_rank: array<u32, 64>;
var<workgroup> best_token: array<u32, 64>;

fn rank_of(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return 0xffffffffu;
    }
    if magnitude == bits || magnitude == 0u {
        return magnitude | 0x80000000u;
    }
    return ~bits;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last segment: they repeat it, since none may skip the barriers.
    let index = min(workgroup.x + workgroup.y * n_workgroups.x, params.n_rows * params.n_segments - 1u);
    let row_begin = index / params.n_segments * params.vocab_size;
    let segment_begin = index % params.n_segments * SEGMENT;
    let count = min(params.vocab_size - segment_begin, SEGMENT);

    // A lane reads only the ranks that it wrote.
    for (var i = lane; i < count; i += LANES) {
        ranks[i] = rank_of(logits[row_begin + segment_begin + i]);
    }
    var last_rank = 0xffffffffu;
    var last_token = NO_TOKEN; // of the pass before; none precedes the first
    for (var pass_index = 0u; pass_index < params.k; pass_index++) {
        var rank = 0u;
        var token = NO_TOKEN;
        for (var i = lane; i < count; i += LANES) {
            let is_later = last_token == NO_TOKEN || ranks[i] < last_rank || (ranks[i] == last_rank && segment_begin + i > last_token);
            // Tokens rise within a lane: the first of equals stays.
            if is_later && ranks[i] > rank {
                rank = ranks[i];
                token = segment_begin + i;
            }
        }
        best_rank[lane] = rank;
        best_token[lane] = token;
        for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
            workgroupBarrier(); // the bests of the level above are written
            if lane < stride {
                let other_rank = best_rank[lane + stride];
                let other_token = best_token[lane + stride];
                if other_rank > best_rank[lane] || (other_rank == best_rank[lane] && other_token < best_token[lane]) {
                    best_rank[lane] = other_rank;
                    best_token[lane] = other_token;
                }
            }
        }
        workgroupBarrier(); // the best of all is written
        // Where nothing was left, all later passes find nothing either.
        let found = best_rank[0] > 0u;
        last_rank = select(0u, best_rank[0], found);
        last_token = select(NO_TOKEN - 1u, best_token[0], found);
        if lane == 0u {
            var candidate = vec2<u32>(0u, NO_TOKEN);
            if found {
                candidate = vec2<u32>(logits[row_begin + last_token], last_token);
            }
            candidates[index * params.k + pass_index] = candidate;
        }
        workgroupBarrier(); // the best is read by all lanes, and may be overwritten
    }
}
