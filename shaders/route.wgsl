// routing[t] = the n_used best experts of token t, the best first, of equal ones the first; behind them their weights: scores of their
// logits, over their sum where they are normalised, times scale and the expert's factor. Scores are softmax or sigmoid; what experts are chosen by is the score
// plus bias, and only those of the best groups of experts are, where there are several.
//
// params   one per dispatch
// logits   [n_tokens, n_experts] f32
// bias     [n_experts] f32, where HAS_BIAS is 1; anything else
// factors  [n_experts] f32, where HAS_FACTORS is 1; anything else
// routing  [n_tokens, 2, n_used] f32, numbers of experts as f32
//
// One workgroup per token. A lane has every LANES-th expert; groups are few and left to the first lane.

struct Params {
    n_tokens: u32,
    n_experts: u32, // at most MAX_EXPERTS
    n_used: u32,
    scores: u32, // 0: softmax, 1: sigmoid
    n_groups: u32,
    n_groups_used: u32,
    n_best: u32, // experts whose scores make that of a group
    normalises: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<f32>;
@group(0) @binding(4) var<storage, read_write> routing: array<f32>;

override LANES: u32 = 64u; // a power of two, at most 64
override HAS_BIAS: u32 = 0u;
override HAS_FACTORS: u32 = 0u;

const MAX_EXPERTS: u32 = 1024u;
const LEAST: f32 = -3.4028234e38;
const NOT_LEFT: u32 = 0xffffffffu; // place of none

var<workgroup> scores: array<f32, MAX_EXPERTS>;
var<workgroup> keys: array<f32, MAX_EXPERTS>;  // what experts are chosen by
var<workgroup> left: array<u32, MAX_EXPERTS>;  // 1 where the expert can be chosen
var<workgroup> best_keys: array<f32, 64>; // of each lane
var<workgroup> best_places: array<u32, 64>;

// Every lane's values become their largest, or their sum, in the first lane's.
fn reduce(lane: u32, value: f32, sums: bool) -> f32 {
    best_keys[lane] = value;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier(); // the values of the level above are written
        if lane < stride {
            let other = best_keys[lane + stride];
            best_keys[lane] = select(max(best_keys[lane], other), best_keys[lane] + other, sums);
        }
    }
    workgroupBarrier(); // the last one is written
    let result = best_keys[0];
    workgroupBarrier(); // all lanes have read it
    return result;
}

fn score_all(lane: u32, row: u32) {
    let n_experts = min(params.n_experts, MAX_EXPERTS);
    if params.scores == 1u {
        for (var e = lane; e < n_experts; e += LANES) {
            scores[e] = 1.0 / (1.0 + exp(-logits[row + e]));
        }
        return;
    }
    var largest = LEAST;
    for (var e = lane; e < n_experts; e += LANES) {
        largest = max(largest, logits[row + e]);
    }
    largest = reduce(lane, largest, false);
    var sum = 0.0;
    for (var e = lane; e < n_experts; e += LANES) {
        let power = exp(logits[row + e] - largest);
        scores[e] = power;
        sum += power;
    }
    sum = reduce(lane, sum, true);
    for (var e = lane; e < n_experts; e += LANES) {
        scores[e] /= sum;
    }
}

// The sum of the best experts of a group.
fn group_key(begin: u32, end: u32) -> f32 {
    var first = LEAST;
    var second = LEAST;
    for (var e = begin; e < end; e++) {
        let key = keys[e];
        if key > first {
            second = first;
            first = key;
        } else if key > second {
            second = key;
        }
    }
    return select(first, first + second, params.n_best > 1u && end - begin > 1u);
}

// Takes the experts of all groups but the best from those that are left.
fn keep_best_groups() {
    let size = min(params.n_experts, MAX_EXPERTS) / params.n_groups;
    // A group's first expert says whether the group is kept: 2.
    for (var used = 0u; used < params.n_groups_used; used++) {
        var best = NOT_LEFT;
        var best_key = LEAST;
        for (var g = 0u; g < params.n_groups; g++) {
            if left[g * size] == 2u {
                continue;
            }
            let key = group_key(g * size, (g + 1u) * size);
            if best == NOT_LEFT || key > best_key {
                best = g;
                best_key = key;
            }
        }
        if best != NOT_LEFT {
            left[best * size] = 2u;
        }
    }
    for (var g = 0u; g < params.n_groups; g++) {
        let is_kept = u32(left[g * size] == 2u);
        for (var e = g * size; e < (g + 1u) * size; e++) {
            left[e] = is_kept;
        }
    }
}

// The best of this lane's experts that are left, and of all lanes'.
fn best_expert(lane: u32) -> u32 {
    var place = NOT_LEFT;
    var key = LEAST;
    for (var e = lane; e < min(params.n_experts, MAX_EXPERTS); e += LANES) {
        if left[e] != 0u && (place == NOT_LEFT || keys[e] > key) {
            place = e;
            key = keys[e];
        }
    }
    best_keys[lane] = key;
    best_places[lane] = place;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier(); // the bests of the level above are written
        if lane < stride {
            let other = best_places[lane + stride];
            let other_key = best_keys[lane + stride];
            let mine = best_places[lane];
            let is_better = other_key > best_keys[lane] || (other_key == best_keys[lane] && other < mine);
            if other != NOT_LEFT && (mine == NOT_LEFT || is_better) {
                best_places[lane] = other;
                best_keys[lane] = other_key;
            }
        }
    }
    workgroupBarrier(); // the best of all is written
    let best = best_places[0];
    workgroupBarrier(); // all lanes have read it
    return min(best, params.n_experts - 1u);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Folding may add workgroups past the last token: they repeat it, since none may skip the barriers.
    let token = min(workgroup.x + workgroup.y * n_workgroups.x, params.n_tokens - 1u);
    score_all(lane, token * params.n_experts);
    for (var e = lane; e < min(params.n_experts, MAX_EXPERTS); e += LANES) {
        // No other lane reads or writes these scores before the next barrier.
        keys[e] = scores[e];
        if HAS_BIAS == 1u {
            keys[e] += bias[e];
        }
        left[e] = 1u;
    }
    workgroupBarrier(); // all keys are written
    if params.n_groups_used < params.n_groups {
        if lane == 0u {
            keep_best_groups();
        }
        workgroupBarrier(); // it is known who is left
    }
    let row = token * 2u * params.n_used;
    var sum = 0.0;
    for (var j = 0u; j < params.n_used; j++) {
        let expert = best_expert(lane);
        if lane == expert % LANES {
            left[expert] = 0u;
        }
        var weight = scores[expert];
        sum += weight;
        if HAS_FACTORS == 1u {
            weight *= factors[expert];
        }
        if lane == 0u {
            routing[row + j] = f32(expert);
            routing[row + params.n_used + j] = weight;
        }
    }
    if lane == 0u {
        let factor = select(params.scale, params.scale / (sum + 1e-20), params.normalises != 0u);
        for (var j = 0u; j < params.n_used; j++) {
            routing[row + params.n_used + j] *= factor;
        }
    }
}
