//! Work in parts, which the threads that share the host's cores take one after another.

use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// Threads that take parts of what this thread hands out.
pub fn n_sharing_threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `work` with each part of `values`, whose number comes with it; all parts but the last are of length `part_len`. Each thread
/// has a `scratch` of its own. In a browser `work` must neither allocate nor free memory, so what it needs belongs into that.
pub fn for_each_part<T: Send, S: Send>(
    values: &mut [T],
    part_len: usize,
    scratch: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, usize, &mut [T]) + Sync + Send,
) {
    values.par_chunks_mut(part_len).enumerate().for_each_init(scratch, |scratch, (part, values)| work(scratch, part, values));
}

/// As [`for_each_part`], for parts that are each worth another thread: none is given a second one before the others have one.
pub fn for_each_large_part<T: Send, S: Send>(
    parts: &mut [T],
    scratch: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, usize, &mut T) + Sync + Send,
) {
    // One by one: by itself rayon gives a thread two or more at once, and at the end the others wait longer for it.
    let parts = parts.par_iter_mut().with_max_len(1).enumerate();
    parts.for_each_init(scratch, |scratch, (index, part)| work(scratch, index, part));
}
