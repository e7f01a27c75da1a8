// A dispatch of two products, none of which accumulates.

@group(0) @binding(0) var<uniform> params: array<Params, N_PRODUCTS>;
@group(0) @binding(3) var<storage, read_write> output_0: array<f32>;
@group(0) @binding(4) var<storage, read_write> output_1: array<f32>;
@group(0) @binding(5) var<storage, read> grid: array<u32>;

const N_PRODUCTS: u32 = 2u;

fn store(product: u32, token: u32, row: u32, value: f32) {
    let index = token * params[product].output_stride + params[product].output_row_begin + row;
    switch product {
        case 0u: {
            output_0[index] = value;
        }
        default: {
            output_1[index] = value;
        }
    }
}
