//! The HTTP server, with limits that slow and idle clients cannot exceed.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::Shutdown;

/// The largest number of connections to one port, far below the file descriptors that a process has (1,024 often). One more
/// closes the oldest that has sent no request, or the oldest of all.
const MAX_CONNECTIONS: usize = 256;
/// The time in which a client must send the head of a request, from the connection or the last response on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// The time for the requests in progress after a shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after a failure to accept a connection, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection that was accepted.
struct Connection {
    task: AbortHandle,
    has_sent_request: Arc<AtomicBool>,
}

/// Serves `routes` until `shutdown`, then finishes the requests in progress, within three seconds.
pub async fn serve(listener: TcpListener, routes: Router, shutdown: Shutdown) -> io::Result<()> {
    serve_at_most(MAX_CONNECTIONS, listener, routes, shutdown).await
}

/// Serves as [`serve`] does, with at most `limit` connections.
pub async fn serve_at_most(limit: usize, listener: TcpListener, routes: Router, shutdown: Shutdown) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    let mut connections = VecDeque::<Connection>::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an http connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        make_room(&mut connections, limit);
        let has_sent_request = Arc::<AtomicBool>::default();
        let (routes, sent) = (TowerToHyperService::new(routes.clone()), Arc::clone(&has_sent_request));
        let service = service_fn(move |request| {
            sent.store(true, Ordering::Relaxed);
            routes.call(request)
        });
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        // Its errors are the client's: a connection that was cut, or no HTTP.
        let task = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        connections.push_back(Connection { task, has_sent_request });
    }
    drop(listener);
    if timeout(STOP_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("the http server closes connections whose clients are slow");
        for connection in connections {
            connection.task.abort();
        }
    }
    Ok(())
}

/// Closes a connection if there are `limit`.
fn make_room(connections: &mut VecDeque<Connection>, limit: usize) {
    if connections.len() < limit {
        return;
    }
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() >= limit {
        let is_idle = |connection: &Connection| !connection.has_sent_request.load(Ordering::Relaxed);
        let closed = connections.iter().position(is_idle).unwrap_or(0);
        if let Some(closed) = connections.remove(closed) {
            closed.task.abort();
        }
    }
}
