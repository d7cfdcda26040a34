//! The orderly end of a program.

use tokio::signal::unix::{SignalKind, signal};

/// Says that the program is to end; clones say the same.
pub type Shutdown = tokio_util::sync::CancellationToken;

/// A [`Shutdown`] that SIGINT and SIGTERM set off. Call inside a runtime.
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
