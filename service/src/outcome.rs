//! How a program ends.

use std::process::ExitCode;

use tokio::runtime::Runtime;

/// The exit code of `outcome`; an error is logged, in one line with its causes.
pub fn conclude(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a program to its end, on a runtime of its own.
pub fn block_on(program: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let outcome = Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(program));
    conclude(outcome.map(|()| ExitCode::SUCCESS))
}
