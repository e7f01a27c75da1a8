//! Work in parts, in a browser's worker: alone, or with other workers that share its memory.
//!
//! The standard library here knows of no other thread: it allocates and locks as if it were alone. So the others only ever run a
//! part: they read what the engine's worker has written before, and write into the part and into scratch that belongs to them.
//! Parts are taken, and all is made visible to each other, by JavaScript's atomics, between calls that the compiler knows nothing
//! of. [`Alone`] sees to it that nothing is allocated elsewhere.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;

/// What the stack of another worker takes. Parts call little deeply.
const STACK_BYTES: usize = 256 << 10;

/// How work gets to the other workers: has [`run_part`] called with the address of a job for each of its parts, and returns when all
/// are done.
pub type Spread = fn(job: usize, n_parts: usize);

thread_local! {
    /// The number of workers, and how they get their work.
    static SHARING: Cell<(usize, Spread)> = const { Cell::new((1, |_, _| {})) };
    /// The stacks of the other workers.
    static STACKS: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// From now on, work spreads over `n_threads` workers with this one. Yields where the stacks of the others end.
pub fn share(n_threads: usize, spread: Spread) -> Vec<usize> {
    let n_others = n_threads.saturating_sub(1);
    let stacks: &mut [u128] = Vec::leak(vec![0; n_others * STACK_BYTES / size_of::<u128>()]);
    let Range { start, end } = stacks.as_ptr_range();
    STACKS.set((start as usize, end as usize));
    SHARING.set((n_others + 1, spread));
    (1..=n_others).map(|other| start as usize + other * STACK_BYTES).collect()
}

/// Threads that take parts of what this thread hands out.
pub fn n_sharing_threads() -> usize {
    SHARING.get().0
}

/// Allocates for the engine's worker, and ends any other that wants memory.
#[derive(Debug)]
pub struct Alone;

#[expect(unsafe_code, reason = "an allocator is unsafe to implement; this one passes all on")]
// SAFETY: as that of `System`; a worker that is ended gets no answer.
unsafe impl GlobalAlloc for Alone {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        expect_alone();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        expect_alone();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        expect_alone();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        expect_alone();
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Ends a worker that is not the engine's. It is known by its stack.
fn expect_alone() {
    let here = 0_u8;
    let (begin, end) = STACKS.get();
    if (begin..end).contains(&(&raw const here as usize)) {
        core::arch::wasm32::unreachable();
    }
}

/// Parts that are handed out.
struct Job<'a> {
    /// Does one of them, on one of the workers.
    work: &'a (dyn Fn(usize, usize) + Sync),
}

/// Runs a part of a job on the worker with this number.
///
/// # Safety
/// `job` was given to [`Spread`], which has not returned; no part of it is run twice, and each worker has another number.
#[expect(unsafe_code, reason = "a job lies where its address says")]
pub unsafe fn run_part(job: usize, thread: usize, part: usize) {
    // SAFETY: the caller vouches for it.
    let job = unsafe { &*(job as *const Job<'_>) };
    (job.work)(thread, part);
}

/// An address that all workers may use.
struct Address<T>(*mut T);

impl<T> Address<T> {
    /// The value at `index`.
    fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

#[expect(unsafe_code, reason = "parts and scratch are told apart by their numbers")]
// SAFETY: what lies there is `Send`, and no two workers use the same index.
unsafe impl<T: Send> Sync for Address<T> {}

/// Calls `work` with each part of `values`, whose number comes with it; all parts but the last are of length `part_len`. Each thread
/// has a `scratch` of its own; `work` must neither allocate nor free memory.
pub fn for_each_part<T: Send, S: Send>(
    values: &mut [T],
    part_len: usize,
    scratch: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, usize, &mut [T]) + Sync + Send,
) {
    let (len, (n_threads, spread)) = (values.len(), SHARING.get());
    let n_parts = len.div_ceil(part_len);
    if n_threads == 1 || n_parts < 2 {
        let mut scratch = scratch();
        return values.chunks_mut(part_len).enumerate().for_each(|(part, values)| work(&mut scratch, part, values));
    }
    let mut scratches: Vec<S> = (0..n_threads).map(|_| scratch()).collect();
    let (values, scratches) = (Address(values.as_mut_ptr()), Address(scratches.as_mut_ptr()));
    let run = |thread: usize, part: usize| {
        let begin = part * part_len;
        #[expect(unsafe_code, reason = "the compiler cannot see that parts do not overlap")]
        // SAFETY: `thread < n_threads` and `part < n_parts`; no worker has the number of another, no part is run twice, and parts
        // do not overlap. Both slices outlive the call of `spread`.
        let (scratch, values) =
            unsafe { (&mut *scratches.at(thread), std::slice::from_raw_parts_mut(values.at(begin), part_len.min(len - begin))) };
        work(scratch, part, values);
    };
    let job = Job { work: &run };
    spread(&raw const job as usize, n_parts);
}

/// As [`for_each_part`], for parts that are each worth another thread.
pub fn for_each_large_part<T: Send, S: Send>(
    parts: &mut [T],
    scratch: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, usize, &mut T) + Sync + Send,
) {
    for_each_part(parts, 1, scratch, |scratch, index, part| part.iter_mut().for_each(|part| work(scratch, index, part)));
}
