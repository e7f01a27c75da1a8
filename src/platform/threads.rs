//! The threads that share the host's cores.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

#[cfg(not(target_arch = "wasm32"))]
use super::process_limits;
use crate::error::Result;

/// The result of starting them.
#[cfg(not(target_arch = "wasm32"))]
static STARTED: std::sync::OnceLock<Result<(), (std::io::ErrorKind, String)>> = std::sync::OnceLock::new();

/// Starts the threads on which the host computes: `n_threads`, else one for each that runs at once (`RAYON_NUM_THREADS` where that
/// is set). A system that refuses some is asked for no more. Only the first call starts any.
///
/// # Errors
/// [`crate::error::Error::Io`] where the system gives none at all.
#[cfg(not(target_arch = "wasm32"))]
pub fn start_threads(n_threads: Option<usize>) -> Result<()> {
    use crate::error::Error;

    let started = STARTED.get_or_init(|| {
        let wanted = n_threads.unwrap_or_else(usual_number).max(1);
        process_limits::spare_memory();
        pool::start(wanted).map_err(|reason| (reason.kind(), with_limits(&reason)))
    });
    let failed = |(kind, reason): &(std::io::ErrorKind, String)| Error::io("start", "a thread", std::io::Error::new(*kind, reason.clone()));
    started.as_ref().map_err(failed).copied()
}

/// Threads on which the host computes: those of the pool that this thread computes with, or that [`start_threads`] would start.
#[cfg(not(target_arch = "wasm32"))]
pub fn n_compute_threads() -> usize {
    // Rayon would start threads of its own to answer.
    if STARTED.get().is_some() { rayon::current_num_threads() } else { usual_number() }
}

/// This worker, and those that share its memory.
#[cfg(target_arch = "wasm32")]
pub fn n_compute_threads() -> usize {
    super::n_sharing_threads()
}

/// The error of a thread that the system refused, and the limits that may be why.
#[cfg(not(target_arch = "wasm32"))]
fn with_limits(reason: &std::io::Error) -> String {
    let memory = process_limits::memory().map(|memory| format!(" or of address space (ulimit -v, {} now)", memory.total));
    format!("{reason}; raise the limit of processes (ulimit -u){}", memory.unwrap_or_default())
}

/// The error of a thread for `what` that the system refused.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn refused(what: &str, reason: &std::io::Error) -> crate::error::Error {
    crate::error::Error::io("start", format!("a thread for {what}"), std::io::Error::new(reason.kind(), with_limits(reason)))
}

/// Runs `work` among `n_threads` threads of its own: what the host computes in it spreads over these instead of those that
/// [`start_threads`] started. They end with it.
///
/// # Errors
/// [`crate::error::Error::Io`] where the system gives no thread.
#[cfg(not(target_arch = "wasm32"))]
pub fn among_n_threads<R: Send>(n_threads: usize, work: impl FnOnce() -> R + Send) -> Result<R> {
    let pool = pool::of(n_threads.max(1)).map_err(|reason| refused("a part of the work", &reason))?;
    Ok(pool.install(work))
}

/// Threads that wait for disks, beside those that compute: a disk is fast only when it is asked for several things at once.
#[derive(Debug, Default)]
pub struct Readers {
    #[cfg(not(target_arch = "wasm32"))]
    pool: Option<rayon::ThreadPool>,
}

impl Readers {
    /// Starts as many as the system gives of `n_threads`; where it gives none, and in a browser, whoever reads does it alone.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn start(n_threads: usize) -> Readers {
        Readers { pool: pool::of(n_threads).inspect_err(|reason| tracing::warn!("threads that read: {reason}")).ok() }
    }

    /// The one thread there is reads.
    #[cfg(target_arch = "wasm32")]
    pub fn start(_n_threads: usize) -> Readers {
        Readers::default()
    }

    /// Runs `read`, whose parallel iterators are shared out among these threads.
    pub fn run<R: Send>(&self, read: impl FnOnce() -> R + Send) -> R {
        #[cfg(not(target_arch = "wasm32"))]
        if let Some(pool) = &self.pool {
            return pool.install(read);
        }
        read()
    }
}

/// Polls the future on this thread, which sleeps while it waits.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
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

    use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

    /// Makes rayon's pool of as many of `wanted` threads as the system gives; a pool that was made elsewhere stays, and the
    /// threads end.
    pub(super) fn start(wanted: usize) -> io::Result<()> {
        let (n_threads, spawn) = spawner(wanted)?;
        if let Err(reason) = ThreadPoolBuilder::new().num_threads(n_threads).spawn_handler(spawn).build_global() {
            tracing::debug!("threads: {reason}");
        }
        Ok(())
    }

    /// A pool beside rayon's, of as many of `wanted` threads as the system gives.
    pub(super) fn of(wanted: usize) -> io::Result<ThreadPool> {
        let (n_threads, spawn) = spawner(wanted)?;
        ThreadPoolBuilder::new().num_threads(n_threads).spawn_handler(spawn).build().map_err(io::Error::other)
    }

    /// Threads for a pool, and their number. They are started before the pool, which would not live through a refusal.
    fn spawner(wanted: usize) -> io::Result<(usize, impl FnMut(ThreadBuilder) -> io::Result<()>)> {
        let mut waiting = waiting_threads(wanted)?;
        if waiting.len() < wanted {
            tracing::warn!("the system gives {} of {wanted} threads", waiting.len());
        }
        let n_threads = waiting.len();
        let spawn = move |thread| {
            let next = waiting.pop().ok_or(io::ErrorKind::WouldBlock)?;
            next.send(thread).map_err(|_| io::ErrorKind::BrokenPipe.into())
        };
        Ok((n_threads, spawn))
    }

    /// Threads that wait for their work: at least one, and no more than the system gives.
    fn waiting_threads(wanted: usize) -> io::Result<Vec<Sender<ThreadBuilder>>> {
        let mut waiting = Vec::new();
        for index in 0..wanted {
            let (sender, receiver) = channel::<ThreadBuilder>();
            let job = move || receiver.into_iter().take(1).for_each(ThreadBuilder::run);
            match std::thread::Builder::new().name(format!("tierflow-{index}")).spawn(job) {
                Ok(_) => waiting.push(sender),
                Err(reason) if waiting.is_empty() => return Err(reason),
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
