//! The result of a program as its exit code.

use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Runtime;

/// The time that threads of a program have to end, after the program itself has.
const THREADS_TIMEOUT: Duration = Duration::from_secs(1);

/// Converts a program's result into its exit code; an error is logged in one line with its causes, and gives 1.
pub fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a program to completion on a new tokio runtime, and returns its exit code as [`exit_code`] does.
pub fn block_on(program: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let run = |runtime: Runtime| {
        let result = runtime.block_on(program);
        // A thread that hangs in a Kafka client must not keep the program from ending.
        runtime.shutdown_timeout(THREADS_TIMEOUT);
        result
    };
    let result = Runtime::new().map_err(anyhow::Error::from).and_then(run);
    exit_code(result.map(|()| ExitCode::SUCCESS))
}
