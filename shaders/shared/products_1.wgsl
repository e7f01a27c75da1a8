// A dispatch of one product.

@group(0) @binding(0) var<uniform> params: array<Params, N_PRODUCTS>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<storage, read> grid: array<u32>;

const N_PRODUCTS: u32 = 1u;

fn store(product: u32, token: u32, row: u32, value: f32) {
    let index = token * params[0].output_stride + params[0].output_row_begin + row;
    if params[0].accumulates != 0u {
        output[index] += value;
    } else {
        output[index] = value;
    }
}
