//! What the system lets this process have: its limits of address space and of data (`ulimit -v`, `ulimit -d`), and what the machine
//! has where `/proc` does not say.

use super::HostMemory;
#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::units::Bytes;

/// What stacks of threads that start after this take, whatever of it they use: most of it is that of a chat template's thread.
#[cfg(any(target_os = "linux", target_os = "android"))]
const STACKS: Bytes = Bytes::mib(96);

/// The memory that the process's own limits leave, less stacks; `None` where there are none.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn memory() -> Option<HostMemory> {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let page_bytes = rustix::param::page_size() as u64;
    let left = |resource, used_pages: u64| {
        let limit = limit(resource)?;
        let used = used_pages.saturating_mul(page_bytes).saturating_add(STACKS.0);
        Some(HostMemory { total: Bytes(limit), available: Bytes(limit.saturating_sub(used)) })
    };
    let (all, data) = used_pages(&pages);
    [left(libc::RLIMIT_AS, all), left(libc::RLIMIT_DATA, data)].into_iter().flatten().reduce(HostMemory::and)
}

/// Below this, memory is short: what the allocator keeps for itself then matters.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SHORT_MEMORY: Bytes = Bytes::mib(1024);
/// Blocks of at least so many bytes go back to the system once they are freed, where memory is short (glibc's first threshold).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const RETURNED_BYTES: libc::c_int = 128 << 10;

/// Where address space or memory is short, lets all threads allocate from one arena: glibc reserves 64 MiB for each otherwise, and what
/// one thread has freed no other one uses. Large blocks then go back to the system at once, whatever was freed before (mallopt(3)).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn spare_memory() {
    if limit(libc::RLIMIT_AS).is_some() || super::host::host_memory().total < SHORT_MEMORY {
        for (setting, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, RETURNED_BYTES)] {
            // SAFETY: the call takes two numbers and sets one of the allocator's.
            #[expect(unsafe_code, reason = "settings of the allocator that only C reaches")]
            let _ = unsafe { libc::mallopt(setting, value) };
        }
    }
}

/// Other allocators reserve less.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn spare_memory() {}

/// Pages of address space, and of data and stacks, that `/proc/self/statm` counts: its first and its sixth number (proc(5)).
#[cfg(any(target_os = "linux", target_os = "android"))]
fn used_pages(statm: &str) -> (u64, u64) {
    let number = |index| statm.split_whitespace().nth(index).and_then(|text: &str| text.parse().ok()).unwrap_or(0);
    (number(0), number(5))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
type Resource = libc::__rlimit_resource_t;
#[cfg(any(target_os = "android", all(target_os = "linux", not(target_env = "gnu"))))]
type Resource = libc::c_int;

/// The process's limit of a resource, in bytes.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn limit(resource: Resource) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the call writes to `limit`, which is such a structure.
    #[expect(unsafe_code, reason = "a call of the system that writes one structure")]
    let done = unsafe { libc::getrlimit(resource, &raw mut limit) };
    (done == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then(|| wide(limit.rlim_cur))
}

/// The system's numbers have 32 bits on some machines.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

/// What the machine has, by a call of the system.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn machine_memory() -> Option<HostMemory> {
    let mut info = std::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the call writes to `info`, which is such a structure; all of it is numbers, so that zeros are one.
    #[expect(unsafe_code, reason = "a call of the system that writes one structure")]
    let (done, info) = unsafe { (libc::sysinfo(info.as_mut_ptr()), info.assume_init()) };
    let bytes = |units: libc::c_ulong| Bytes(wide(units).saturating_mul(wide(info.mem_unit)));
    (done == 0).then(|| HostMemory { total: bytes(info.totalram), available: bytes(info.freeram) })
}

/// Other systems are not asked.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn memory() -> Option<HostMemory> {
    None
}

/// As above.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn machine_memory() -> Option<HostMemory> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_system_call_tells_of_memory_and_statm_is_read_as_far_as_it_goes() {
        let memory = machine_memory().unwrap();
        assert!(memory.total >= memory.available && memory.available > Bytes::ZERO, "{memory:?}");
        assert_eq!(used_pages("11 22 33 44 55 66 77\n"), (11, 66));
        assert_eq!([used_pages(""), used_pages("5")], [(0, 0), (5, 0)]);
    }
}
