//! Other workers that compute with this one, where the page may share memory.

use std::cell::RefCell;

use tierflow::platform::{self, Alone};
use wasm_bindgen::prelude::*;

/// Other workers have this code too, and must not allocate.
#[global_allocator]
static ALLOCATOR: Alone = Alone;

#[wasm_bindgen]
extern "C" {
    /// What hands out parts: `Spreader` of `threads.js`.
    pub type Spreader;

    #[wasm_bindgen(method)]
    fn spread(this: &Spreader, job: usize, n_parts: usize);
}

thread_local! {
    static SPREADER: RefCell<Option<Spreader>> = const { RefCell::new(None) };
}

/// From now on `spreader` gives parts of the work to `n_threads` workers with this one. Yields where the stacks of the others end.
#[wasm_bindgen]
pub fn share(n_threads: usize, spreader: Spreader) -> Vec<usize> {
    SPREADER.set(Some(spreader));
    platform::share(n_threads, spread)
}

fn spread(job: usize, n_parts: usize) {
    SPREADER.with_borrow(|spreader| spreader.as_ref().map_or((), |spreader| spreader.spread(job, n_parts)));
}

/// Runs a part of a job on the worker with this number, as `threads.js` has it.
#[wasm_bindgen]
pub fn run_part(job: usize, thread: usize, part: usize) {
    #[expect(unsafe_code, reason = "it is JavaScript that hands out jobs")]
    // SAFETY: the spreader calls it for each part of a job once before it returns, and each worker has a number of its own.
    unsafe {
        platform::run_part(job, thread, part);
    }
}
