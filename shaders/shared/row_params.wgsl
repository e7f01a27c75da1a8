
struct Params {
    n_tokens: u32,
    width: u32,
}
