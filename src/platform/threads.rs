//! The threads that share the host's cores.

use crate::error::Result;

/// Starts the threads on which the host computes: `n_threads`, else one for each that runs at once (`RAYON_NUM_THREADS` where that
/// is set). A system that refuses some is asked for no more. Only the first call starts any.
///
/// # Errors
/// [`crate::error::Error::Io`] where the system gives none at all.
#[cfg(not(target_arch = "wasm32"))]
pub fn start_threads(n_threads: Option<usize>) -> Result<()> {
    use std::io::ErrorKind;
    use std::sync::OnceLock;

    use crate::error::Error;

    static STARTED: OnceLock<Result<(), (ErrorKind, String)>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let wanted = n_threads.unwrap_or_else(usual_number).max(1);
        pool::start(wanted).map_err(|fault| (fault.kind(), format!("{fault}; raise the limit of processes (ulimit -u)")))
    });
    let failed = |(kind, fault): &(ErrorKind, String)| Error::io("start", "a thread", std::io::Error::new(*kind, fault.clone()));
    started.as_ref().map_err(failed).copied()
}

/// The one thread there is computes.
///
/// # Errors
/// None.
#[cfg(target_arch = "wasm32")]
pub fn start_threads(_n_threads: Option<usize>) -> Result<()> {
    Ok(())
}

/// As rayon has it.
#[cfg(not(target_arch = "wasm32"))]
fn usual_number() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.trim().parse().ok());
    asked.filter(|n_threads| *n_threads > 0).unwrap_or_else(super::n_threads)
}

#[cfg(not(target_arch = "wasm32"))]
mod pool {
    use std::io;
    use std::sync::mpsc::{Sender, channel};

    use rayon::{ThreadBuilder, ThreadPoolBuilder};

    /// Makes rayon's pool of as many of `wanted` threads as the system gives. They are started before the pool, which would not
    /// live through a refusal; a pool that was made elsewhere stays, and the threads end.
    pub(super) fn start(wanted: usize) -> io::Result<()> {
        let mut waiting = waiting_threads(wanted)?;
        if waiting.len() < wanted {
            tracing::warn!("the system gives {} of {wanted} threads", waiting.len());
        }
        let made = ThreadPoolBuilder::new().num_threads(waiting.len()).spawn_handler(|thread| {
            let next = waiting.pop().ok_or(io::ErrorKind::WouldBlock)?;
            next.send(thread).map_err(|_| io::ErrorKind::BrokenPipe.into())
        });
        if let Err(fault) = made.build_global() {
            tracing::debug!("threads: {fault}");
        }
        Ok(())
    }

    /// Threads that wait for what they are to be: at least one, and no more than the system gives.
    fn waiting_threads(wanted: usize) -> io::Result<Vec<Sender<ThreadBuilder>>> {
        let mut waiting = Vec::new();
        for index in 0..wanted {
            let (sender, receiver) = channel::<ThreadBuilder>();
            let job = move || receiver.into_iter().take(1).for_each(ThreadBuilder::run);
            match std::thread::Builder::new().name(format!("tierflow-{index}")).spawn(job) {
                Ok(_) => waiting.push(sender),
                Err(fault) if waiting.is_empty() => return Err(fault),
                Err(_) => break,
            }
        }
        // Some are needed beside these: for reading, for a driver, and to end by Ctrl-C.
        if waiting.len() < wanted && waiting.len() > 1 {
            waiting.truncate(waiting.len().div_ceil(2));
        }
        Ok(waiting)
    }
}
