//! Connections: accepted up to a number, each served by HTTP/1.1 with a limit of time for its headers, and ended in order when the server is.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::MAX_CONNECTIONS;

/// Headers that are not here after that end the connection.
const MAX_HEADER_TIME: Duration = Duration::from_secs(30);
/// Longest headers of a request, in bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// After a refused connection (too many open files, mostly), that long nothing is accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// When all answers are made, clients have that long to take the rest of theirs.
const MAX_FAREWELL: Duration = Duration::from_secs(10);

/// Serves until `drained` is ready: no more is wanted, and no answer is under way.
pub(super) async fn serve(listener: TcpListener, router: Router, drained: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (end, ended) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(drained);
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit)
        };
        tokio::select! {
            () = &mut drained => break,
            // Those that ended are forgotten.
            Some(_) = connections.join_next() => {}
            (accepted, permit) = accepted => match accepted {
                Ok((stream, _)) => {
                    let served = serve_connection(stream, router.clone(), ended.clone());
                    connections.spawn(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    end.send_replace(true);
    let farewell = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(MAX_FAREWELL, farewell).await.is_err() {
        tracing::warn!("some clients did not read their answers to the end");
    }
}

async fn serve_connection(stream: TcpStream, router: Router, mut ended: watch::Receiver<bool>) {
    // Tokens are small: each leaves at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY: {error}");
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(MAX_HEADER_TIME).max_buf_size(MAX_HEADER_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ends = async { drop(ended.wait_for(|ended| *ended).await) };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ends => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("a connection ended: {error}");
    }
}
