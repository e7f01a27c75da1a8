// The k largest logits of each segment of each row, best first; ties go to the lower token; NaN counts as the largest of all.
//
// params      one per dispatch
// logits      [n_rows, vocab_size] f32, read as bits: a float comparison would lose a NaN
// candidates  [n_rows, n_segments, k] of (logit bits, token); (0, NO_TOKEN) where a segment has fewer than k
//
// One workgroup per segment. Each lane holds the best of its own logits, and those of its chunks of them; pass by pass the best lane
// gives up its one and looks for the next in that one's chunk and among the other chunks' bests. The host merges the segments.

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
const CHUNK: u32 = 16u; // logits of one lane
const NO_TOKEN: u32 = 0xffffffffu;
const NO_LAST: u32 = 0xffffffffu; // place of the one before the first

// Rank of a logit: larger numbers for larger floats, both zeros alike, the largest number for every NaN. No rank is 0.
var<workgroup> ranks: array<u32, SEGMENT>;
var<workgroup> chunk_bests: array<vec2<u32>, 128>; // [LANES, chunks of a lane]: rank and place in the segment
var<workgroup> bests: array<vec2<u32>, 64>;        // of each lane

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

// The best of a chunk of this lane's logits that comes after `last` (rank, place); rank 0 where none is left.
fn best_of_chunk(lane: u32, chunk: u32, count: u32, last: vec2<u32>) -> vec2<u32> {
    var best = vec2<u32>(0u, NO_TOKEN);
    let end = min(count, (chunk + 1u) * CHUNK * LANES);
    for (var i = chunk * CHUNK * LANES + lane; i < end; i += LANES) {
        let rank = ranks[i];
        // Places rise within a lane: the first of equals stays.
        if rank > best.x && (last.y == NO_LAST || rank < last.x || (rank == last.x && i > last.y)) {
            best = vec2<u32>(rank, i);
        }
    }
    return best;
}

// The best of all chunks of this lane, whose first best is at `first_chunk`.
fn best_of_lane(first_chunk: u32, n_chunks: u32) -> vec2<u32> {
    var best = vec2<u32>(0u, NO_TOKEN);
    for (var chunk = first_chunk; chunk < first_chunk + n_chunks; chunk++) {
        if chunk_bests[chunk].x > best.x {
            best = chunk_bests[chunk];
        }
    }
    return best;
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
    let n_chunks = SEGMENT / CHUNK / LANES;
    let first_chunk = lane * n_chunks;
    for (var chunk = 0u; chunk < n_chunks; chunk++) {
        chunk_bests[first_chunk + chunk] = best_of_chunk(lane, chunk, count, vec2<u32>(0xffffffffu, NO_LAST));
    }
    var best = best_of_lane(first_chunk, n_chunks);
    for (var pass_index = 0u; pass_index < params.k; pass_index++) {
        bests[lane] = best;
        for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
            workgroupBarrier(); // the bests of the level above are written
            if lane < stride {
                let mine = bests[lane];
                let other = bests[lane + stride];
                if other.x > mine.x || (other.x == mine.x && other.y < mine.y) {
                    bests[lane] = other;
                }
            }
        }
        workgroupBarrier(); // the best of all is written
        let winner = bests[0];
        if lane == 0u {
            var candidate = vec2<u32>(0u, NO_TOKEN);
            if winner.x > 0u {
                candidate = vec2<u32>(logits[row_begin + segment_begin + winner.y], segment_begin + winner.y);
            }
            candidates[index * params.k + pass_index] = candidate;
        }
        if winner.x > 0u && winner.y % LANES == lane {
            let chunk = winner.y / LANES / CHUNK;
            chunk_bests[first_chunk + chunk] = best_of_chunk(lane, chunk, count, winner);
            best = best_of_lane(first_chunk, n_chunks);
        }
        workgroupBarrier(); // the best is read by all lanes, and may be overwritten
    }
}
