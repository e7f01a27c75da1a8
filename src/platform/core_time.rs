//! How long the program's threads ran, and how long they waited for a core that other programs used.

/// Time of all threads of the process since they began, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CoreTime {
    ran: f64,
    waited: f64,
}

impl CoreTime {
    /// Of the threads that the process has now; `None` where the system does not report it. On Linux from `/proc/self/task/*/schedstat`,
    /// whose first two fields are nanoseconds on a core and nanoseconds of waiting for one (Documentation/scheduler/sched-stats.rst).
    /// Threads of idle priority wait by design, and do not count.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn now() -> Option<CoreTime> {
        let threads = std::fs::read_dir("/proc/self/task").ok()?.flatten().map(|thread| thread.path());
        let text = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let counts = threads.filter(|thread| !makes_way(&text(thread.join("stat"))));
        let times: Vec<CoreTime> = counts.filter_map(|thread| parse(&text(thread.join("schedstat")))).collect();
        let sum = |of: fn(&CoreTime) -> f64| times.iter().map(of).sum();
        (!times.is_empty()).then(|| CoreTime { ran: sum(|time| time.ran), waited: sum(|time| time.waited) })
    }

    /// As above.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn now() -> Option<CoreTime> {
        None
    }

    /// The share of the time since `before` in which threads that could have run waited for a core, 0 to 1. Threads that ended since
    /// are not counted.
    pub fn waited_since(self, before: CoreTime) -> f64 {
        let (ran, waited) = ((self.ran - before.ran).max(0.0), (self.waited - before.waited).max(0.0));
        if ran + waited > 0.0 { waited / (ran + waited) } else { 0.0 }
    }
}

/// The share from `before` to now; `None` where the system does not report it.
pub fn waited_since(before: Option<CoreTime>) -> Option<f64> {
    Some(CoreTime::now()?.waited_since(before?))
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn parse(schedstat: &str) -> Option<CoreTime> {
    let mut fields = schedstat.split_whitespace().map(|field| field.parse::<u64>().ok());
    let mut secs = || Some(fields.next()?? as f64 / 1e9);
    Some(CoreTime { ran: secs()?, waited: secs()? })
}

/// Whether a thread takes a core only where all others leave one, by its `/proc/…/stat` (proc_pid_stat(5)): the 41st field is the
/// scheduling policy, and the second one is a name in brackets.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn makes_way(stat: &str) -> bool {
    let behind_name = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    behind_name.split_whitespace().nth(38).and_then(|policy| policy.parse().ok()) == Some(libc::SCHED_IDLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_what_was_added() {
        let at = |ran, waited| CoreTime { ran, waited };
        assert_eq!(at(4.0, 2.0).waited_since(at(1.0, 1.0)), 0.25);
        assert_eq!(at(1.0, 1.0).waited_since(at(1.0, 1.0)), 0.0);
        assert_eq!(at(0.5, 2.0).waited_since(at(1.0, 1.0)), 1.0, "a thread ended");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_first_two_fields_count_and_others_are_no_time() {
        assert_eq!(parse("1500000000 500000000 7\n"), Some(CoreTime { ran: 1.5, waited: 0.5 }));
        assert_eq!([parse(""), parse("1"), parse("1 x 3")], [None; 3]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_that_yield_to_others_make_way() {
        let of_this_thread = || std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
        assert!(!makes_way(&of_this_thread()) && !makes_way("") && !makes_way("7 (a"));
        let yielding = std::thread::spawn(move || {
            crate::platform::yield_to_others();
            of_this_thread()
        });
        assert!(makes_way(&yielding.join().unwrap()));
    }
}
