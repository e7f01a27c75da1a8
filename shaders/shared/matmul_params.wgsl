
// Params of one matrix product.
struct Params {
    n_rows: u32,
    n_columns: u32,
    n_tokens: u32,
    output_stride: u32,
    output_row_begin: u32,
    dtype: u32, // chosen at pipeline creation, as DTYPE
    weight_begin: u32, // in 256 bytes
    accumulates: u32,
}
