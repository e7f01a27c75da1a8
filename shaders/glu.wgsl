// output[i] = activated(gate[i]) * up[i], with up clamped and moved by 1 where the activation is clamped silu.
//
// params  one per dispatch
// gate    [n_values] f32
// up      [n_values] f32
// output  [n_values] f32
//
// One invocation per value.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(64)
fn main(invocation: Invocation) {
    let index = item_of(invocation);
    if index >= params.n_values {
        return;
    }
    let factor = select(up[index], clamp(up[index], -7.0, 7.0) + 1.0, ACTIVATION == 7u);
    output[index] = activated(gate[index]) * factor;
}
