//! The bytes of a large tensor in parts, which all cores make side by side and one writes in order.

use std::io::{self, Write};
use std::sync::mpsc::sync_channel;
use std::thread;

/// Values of one part: few enough for a core's caches.
pub(super) const PART_VALUES: usize = 1 << 18;

/// Parts of one thread that wait to be written.
const N_WAITING: usize = 2;

/// Writes the parts 0 to `n_parts` that `make` makes.
pub(super) fn write_parts(output: &mut dyn Write, n_parts: usize, make: impl Fn(usize) -> Vec<u8> + Sync) -> io::Result<()> {
    let n_threads = thread::available_parallelism().map_or(1, usize::from).min(n_parts);
    if n_threads <= 1 {
        return (0..n_parts).try_for_each(|part| output.write_all(&make(part)));
    }
    thread::scope(|scope| {
        let make = &make;
        let lane = |first: usize| {
            let (sender, made) = sync_channel(N_WAITING);
            // Where writing has failed, nobody takes what is sent, and the thread ends.
            scope.spawn(move || (first..n_parts).step_by(n_threads).try_for_each(|part| sender.send(make(part))).ok());
            made
        };
        let lanes: Vec<_> = (0..n_threads).map(lane).collect();
        (0..n_parts).try_for_each(|part| output.write_all(&lanes[part % n_threads].recv().map_err(io::Error::other)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_written_in_order_and_writing_that_fails_ends_all() {
        for n_parts in [0, 1, 2, 7, 100] {
            let mut output = Vec::new();
            write_parts(&mut output, n_parts, |part| vec![part as u8; part % 3]).unwrap();
            let expected: Vec<u8> = (0..n_parts).flat_map(|part| vec![part as u8; part % 3]).collect();
            assert_eq!(output, expected);
        }
        let mut room = [0; 10];
        let error = write_parts(&mut &mut room[..], 50, |_| vec![1; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
