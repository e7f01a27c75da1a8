//! Memory whose size a model or a context decides: where the system has it not, that is an error and no abort.

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;

use crate::error::{Error, Result};
use crate::units::Bytes;

/// So many zeros, for `what`. The system gives them when they are first touched.
///
/// # Errors
/// [`Error::Io`] where the system has not so much memory.
pub(crate) fn zeroed<T: Zeroable>(len: usize, what: &str) -> Result<Vec<T>> {
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    if bytes > isize::MAX as u64 {
        return Err(refused(bytes, what));
    }
    try_zeroed_vec(len).map_err(|()| refused(bytes, what))
}

/// Makes `values` so long; what is new is zero.
///
/// # Errors
/// As of [`zeroed`].
pub(crate) fn resize<T: Zeroable + Copy>(values: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    values.try_reserve_exact(len.saturating_sub(values.len())).map_err(|_| refused(bytes, what))?;
    values.resize(len, T::zeroed());
    Ok(())
}

fn refused(bytes: u64, what: &str) -> Error {
    let reason = std::io::ErrorKind::OutOfMemory.into();
    Error::io("allocate", format!("{} of host memory for {what}", Bytes(bytes)), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_has_not_is_an_error_that_says_what_it_was_for() {
        assert_eq!(zeroed::<f32>(3, "numbers").unwrap(), [0.0; 3]);
        let mut values = vec![1.0_f32];
        resize(&mut values, 3, "numbers").unwrap();
        assert_eq!(values, [1.0, 0.0, 0.0]);
        resize(&mut values, 1, "numbers").unwrap();
        assert_eq!(values, [1.0]);
        for len in [1 << 45, usize::MAX / 4, usize::MAX] {
            for reason in [zeroed::<f32>(len, "the cache").unwrap_err(), resize(&mut values, len, "the cache").unwrap_err()] {
                let text = reason.to_string();
                assert!(text.contains("of host memory for the cache") && reason.exit_code() == 1, "{text}");
            }
        }
    }
}
