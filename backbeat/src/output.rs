//! Output of commands: text or JSON on standard output, and the exit code of a failed check.

use std::io::{ErrorKind, Write};

use serde_json::Value;

/// The exit code of a check that ran to its end and found a problem.
pub(crate) const EXIT_PROBLEM_FOUND: u8 = 3;

/// The exit code that shells report for a program ended by SIGPIPE.
const EXIT_BROKEN_PIPE: i32 = 141;

/// The output flag, shared by all commands that print results.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct OutputArgs {
    /// The format: text for people, or JSON with one object per line.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

impl OutputArgs {
    /// Prints a result in the chosen format, followed by a newline.
    pub(crate) fn print(self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        match self.output {
            Output::Text => print_bytes(format!("{}\n", text()).as_bytes()),
            Output::Json => print_bytes(format!("{}\n", json()).as_bytes()),
        }
    }
}

/// Writes `bytes` to standard output. Exits if its reader has closed the pipe, as in `backbeat audit | head`.
pub(crate) fn print_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(EXIT_BROKEN_PIPE),
        Err(error) => {
            tracing::error!(%error, "cannot write to standard output");
            std::process::exit(1);
        }
    }
}
