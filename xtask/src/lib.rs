//! What the development tasks and the tests share.
pub mod models;
