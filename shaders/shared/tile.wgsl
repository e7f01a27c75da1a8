// Tiles of a matrix product in workgroup memory. Appended to shaders that have as overrides ROWS and TOKENS, those of a tile, and LANE_ROWS and
// LANE_TOKENS, those of an invocation.

const COLUMNS: u32 = 32u;      // of a tile
const QUADS: u32 = 8u;         // COLUMNS / 4

var<workgroup> weight_tile: array<vec4<f32>, ROWS * QUADS>;  // [ROWS, QUADS], quads in the order of weight_place
var<workgroup> input_tile: array<vec4<f32>, TOKENS * QUADS>; // [TOKENS, QUADS], quads in the order of input_place

// Where a quad of a tile lies. Lanes that read one quad of different rows find them in different banks.
fn weight_place(row: u32, quad: u32) -> u32 {
    return row * QUADS + (quad ^ (row / LANE_ROWS % QUADS));
}

fn input_place(token: u32, quad: u32) -> u32 {
    return token * QUADS + (quad ^ (token / LANE_TOKENS % QUADS));
}

fn add_products(w: vec4<f32>, x: vec4<f32>, sum: f32) -> f32 {
    return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum))));
}
