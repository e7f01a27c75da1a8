//! Working memory of the host's operations that is kept from one operation to the next: memory that is new to a process costs more than the
//! products of a few tokens.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a piece of working memory that is kept, at most.
const MOST_BYTES: usize = 1 << 20;

/// A kind of working memory, which says how many bytes a piece has.
pub(super) trait Working: Default {
    fn n_bytes(&self) -> usize;
}

/// Pieces that nobody uses.
pub(super) struct Pool<W>(Mutex<Vec<W>>);

impl<W: Working> Pool<W> {
    pub(super) const fn new() -> Pool<W> {
        Pool(Mutex::new(Vec::new()))
    }

    /// A piece that comes back when it is dropped.
    pub(super) fn take(&'static self) -> Kept<W> {
        let piece = self.pieces().pop().unwrap_or_default();
        Kept { piece, pool: self }
    }

    fn pieces(&self) -> MutexGuard<'_, Vec<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece in use.
pub(super) struct Kept<W: Working + 'static> {
    piece: W,
    pool: &'static Pool<W>,
}

impl<W: Working> Deref for Kept<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.piece
    }
}

impl<W: Working> DerefMut for Kept<W> {
    fn deref_mut(&mut self) -> &mut W {
        &mut self.piece
    }
}

impl<W: Working> Drop for Kept<W> {
    fn drop(&mut self) {
        let piece = std::mem::take(&mut self.piece);
        if piece.n_bytes() <= MOST_BYTES {
            self.pool.pieces().push(piece);
        }
    }
}

/// Empties `values` and makes room for `n` of them: whoever fills them then allocates nothing.
pub(super) fn clear_for<T>(values: &mut Vec<T>, n: usize) {
    values.clear();
    values.reserve(n);
}
