// output[t, output_row_begin + r] = sum over k of weight[r, k] * input[t, k], where n_columns is no multiple of 4.
//
// params  one per product of a dispatch; bound in shared/products_1.wgsl
// weight  [n_rows, n_columns] F32, F16 or BF16 as stored; the first row begins at weight_begin
// input   [n_tokens, n_columns] f32
// output  [n_tokens, output_stride] f32, replaced, or added to (accumulates); bound there too
// grid    not read; bound there too
//
// One invocation per row and token; z counts the tokens. Models have no such shapes; the plain variant keeps them right.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> input: array<f32>;

override DTYPE: u32 = 0u;

fn weight_at(index: u32) -> f32 {
    if DTYPE == F32 {
        return bitcast<f32>(weight[params[0].weight_begin * 64u + index]);
    }
    let word = weight[params[0].weight_begin * 64u + index / 2u];
    let pair = select(decode_bf16(word), decode_f16(word), DTYPE == F16);
    return select(pair.x, pair.y, (index & 1u) == 1u);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = (workgroup.x + workgroup.y * n_workgroups.x) * 64u + local;
    let token = workgroup.z;
    if row >= params[0].n_rows || token >= params[0].n_tokens {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < params[0].n_columns; k++) {
        sum = fma(weight_at(row * params[0].n_columns + k), input[token * params[0].n_columns + k], sum);
    }
    store(0u, token, row, sum);
}
