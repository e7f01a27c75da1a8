
struct Params {
    n_tokens: u32,
    n_used: u32,
    width: u32,
}
