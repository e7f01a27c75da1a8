// Params of the products with experts: `expert_matmul::Params`.

struct Params {
    n_rows: u32, // of this slice
    n_columns: u32,
    n_tokens: u32,
    n_used: u32,
    expert_rows: u32,
    first_row: u32,
    shares_input: u32,
    slot_bytes: u32,   // a multiple of 256, as matrix_begin is
    matrix_begin: u32,
    n_experts: u32, // of all slices
}

// The slot of an expert that is in none.
const NO_SLOT: u32 = 0xffffffffu;
