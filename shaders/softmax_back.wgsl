// logits[r, i] becomes the gradient of factor times the loss with respect to the product that it came from: (share - 1 of the target) * factor * slope,
// with share = exp(logit - greatest) / sum, and slope that of the functions between product and logit.
//
// params   one per dispatch
// targets  [n_rows] u32
// totals   [n_rows] of (greatest, sum, logit of the target, 0), of the whole vocabulary
// logits   [n_rows, width] f32, of the tokens from first on, read and written
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read> totals: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_rows * params.width {
        return;
    }
    let row = index / params.width;
    let logit = logits[index];
    var gradient = exp(logit - totals[row].x) / totals[row].y;
    if targets[row] == params.first + index % params.width {
        gradient -= 1.0;
    }
    var slope = params.slope;
    if params.cap > 0.0 {
        let t = logit / params.cap;
        slope *= 1.0 - t * t;
    }
    logits[index] = gradient * slope * params.factor;
}
