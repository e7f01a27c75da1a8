//! Numbers as NumPy reads and writes them: `<f4`, four bytes each.

use pyo3::prelude::*;
use pyo3::types::PyByteArray;

/// The bytes of numbers.
pub fn bytes_of<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u8> {
    values.into_iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The bytes of numbers, for Python.
pub fn array_of<'py, 'a>(py: Python<'py>, values: impl IntoIterator<Item = &'a f32>) -> Bound<'py, PyByteArray> {
    PyByteArray::new(py, &bytes_of(values))
}

/// The numbers that bytes hold.
pub fn values_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
