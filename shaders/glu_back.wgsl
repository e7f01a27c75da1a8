// Of y = activated(gate) * up: of_gate[i] += upward[i] * up[i] * slope of the activation at gate[i], of_up[i] += upward[i] * activated(gate[i]).
// Clamped silu has no slope here.
//
// params   one per dispatch
// gate     [n_values] f32
// up       [n_values] f32
// upward   [n_values] f32: the gradient of y
// of_gate  [n_values] f32, added to
// of_up    [n_values] f32, added to
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read> upward: array<f32>;
@group(0) @binding(4) var<storage, read_write> of_gate: array<f32>;
@group(0) @binding(5) var<storage, read_write> of_up: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_values {
        return;
    }
    of_gate[index] += upward[index] * up[index] * slope_of(gate[index]);
    of_up[index] += upward[index] * activated(gate[index]);
}
