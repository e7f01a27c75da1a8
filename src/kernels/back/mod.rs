//! Kernels of training: vector-Jacobian products, which carry the gradient of what an operation gives to what it reads, and the loss. Gradients are
//! added to what is there.

pub mod attention;
pub mod loss;
pub mod norms;
pub mod products;
pub mod values;
