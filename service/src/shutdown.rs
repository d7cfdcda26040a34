//! Graceful shutdown.

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

/// The request to shut down; all clones share it.
pub type Shutdown = tokio_util::sync::CancellationToken;

/// Returns a [`Shutdown`] that SIGINT and SIGTERM trigger. Call inside a tokio runtime.
pub fn on_signals() -> std::io::Result<Shutdown> {
    let shutdown = Shutdown::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut received = signal(kind)?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            received.recv().await;
            tracing::info!("shutting down");
            shutdown.cancel();
        });
    }
    Ok(shutdown)
}

/// Returns a [`Shutdown`] like [`on_signals`], for callers outside of `runtime`.
pub fn on_signals_in(runtime: &Handle) -> std::io::Result<Shutdown> {
    let _inside = runtime.enter();
    on_signals()
}
