
// What the norms of rows have in common.

struct Params {
    n_rows: u32,
    hidden_size: u32,
    epsilon: f32,
    weight_offset: f32,
}
