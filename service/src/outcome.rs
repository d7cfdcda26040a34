//! How a program ends.

use std::process::ExitCode;

/// The exit code of `outcome`; an error is logged, in one line with its causes.
pub fn conclude(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}
