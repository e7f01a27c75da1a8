//! Turns the signal of a truncated map into a message, where a program asks for it: a table of live maps that a signal handler can read
//! without locks.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Live maps at most: four times the shards of the largest published checkpoints.
const N_SLOTS: usize = 1024;
/// Bytes of a path that are kept; the end of a longer one is what names the file.
const NAME_BYTES: usize = 256;
/// `start` of a slot that is free, and of one whose fields are being written. No map begins at either.
const FREE: usize = 0;
const RESERVED: usize = 1;

static SLOTS: [Slot; N_SLOTS] = [const { Slot::new() }; N_SLOTS];
/// The handler before the guard's, once that is installed.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// What the message ends with.
static ADVICE: OnceLock<&'static str> = OnceLock::new();

/// From now on a file that is truncated under its map ends the process with a message, which ends with `advice` (128 bytes of it, at
/// most). Without it the system's signal ends the process.
pub fn guard_maps(advice: &'static str) {
    let _ = ADVICE.set(advice);
    PREVIOUS.get_or_init(install);
}

/// A map's entry in the table, for as long as the map lives.
pub(super) struct Guard(&'static Slot);

impl Guard {
    /// Enters the map of `len` bytes at `start` under the name `path`; `None` where the table is full.
    pub(super) fn new(start: usize, len: usize, path: &str) -> Option<Guard> {
        let slot = SLOTS.iter().find(|slot| slot.start.compare_exchange(FREE, RESERVED, Ordering::AcqRel, Ordering::Relaxed).is_ok())?;
        let tail = path.as_bytes();
        let tail = tail.get(tail.len().saturating_sub(NAME_BYTES)..).unwrap_or_default();
        for (kept, byte) in slot.name.iter().zip(tail) {
            kept.store(*byte, Ordering::Relaxed);
        }
        slot.name_len.store(tail.len(), Ordering::Relaxed);
        slot.end.store(start.saturating_add(len), Ordering::Relaxed);
        // Release: whoever sees this start also sees the fields above.
        slot.start.store(start, Ordering::Release);
        Some(Guard(slot))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(FREE, Ordering::Release);
    }
}

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    name_len: AtomicUsize,
    name: [AtomicU8; NAME_BYTES],
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            start: AtomicUsize::new(FREE),
            end: AtomicUsize::new(0),
            name_len: AtomicUsize::new(0),
            name: [const { AtomicU8::new(0) }; NAME_BYTES],
        }
    }

    fn contains(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        start > RESERVED && address >= start && address < self.end.load(Ordering::Relaxed)
    }
}

/// Installs the handler and returns the one before it.
fn install() -> libc::sigaction {
    // SAFETY: a zeroed `sigaction` is a valid value of this plain C struct; both pointers live through the call;
    // the handler keeps to what is allowed in a signal handler (atomics, `write`, `sigaction`, `_exit`).
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut previous: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous);
        previous
    }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the system passes a valid `siginfo_t`, and a bus error fills its address.
    let address = unsafe { (*info).si_addr() } as usize;
    if let Some(slot) = SLOTS.iter().find(|slot| slot.contains(address)) {
        report(slot);
        // SAFETY: `_exit` is allowed in a signal handler and does not return.
        unsafe { libc::_exit(1) }
    }
    // Not our map: with the previous handler in place the same access fails again and goes to whom it belongs.
    // SAFETY: a zeroed `sigaction` means the default action; the pointers live through the call.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::from_ref(PREVIOUS.get().unwrap_or(&default)), std::ptr::null_mut());
    }
}

/// Writes the message without allocating.
fn report(slot: &Slot) {
    const AFTER: &[u8] = b" changed while it was in use: truncated under its mapping, or its disk failed; load the model again";
    let mut message = [0u8; NAME_BYTES + AFTER.len() + 160];
    let advice = ADVICE.get().copied().unwrap_or_default().bytes().take(128);
    let name = slot.name.iter().take(slot.name_len.load(Ordering::Relaxed)).map(|byte| byte.load(Ordering::Relaxed));
    let text = b"error: ".iter().copied().chain(name).chain(AFTER.iter().copied()).chain(advice).chain(*b"\n");
    let mut len = 0;
    for (place, byte) in message.iter_mut().zip(text) {
        *place = byte;
        len += 1;
    }
    // SAFETY: `len` bytes of the buffer are written, and `write` is allowed in a signal handler. A failed write cannot be helped.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), len);
    }
}
