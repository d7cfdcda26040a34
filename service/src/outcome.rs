//! The result of a program as its exit code.

use std::process::ExitCode;

use tokio::runtime::Runtime;

/// Converts a program's result into its exit code; an error is logged in one line with its causes, and gives 1.
pub fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a program to completion on a new tokio runtime, and returns its exit code as [`exit_code`] does.
pub fn block_on(program: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let result = Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(program));
    exit_code(result.map(|()| ExitCode::SUCCESS))
}
