// What kernels of the loss have in common.

struct Params {
    n_rows: u32,
    width: u32,  // logits of a row that are here
    first: u32,  // the token of the first of them
    factor: f32, // what the loss is multiplied by
    slope: f32,  // what products were multiplied by to become logits
    cap: f32,    // the cap that they then went through; 0: none
}
