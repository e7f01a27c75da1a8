
struct Params {
    n_values: u32,
}
