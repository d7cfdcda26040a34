//! How a command says what it found.

use std::io::{ErrorKind, Write};

use serde_json::Value;

/// The exit code when what was asked for was done, and found something wrong.
pub(crate) const FOUND: u8 = 3;

/// The exit code that shells give programs which SIGPIPE ended.
const READER_GONE: i32 = 141;

/// The flag of every command that says something.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct OutputArgs {
    /// For people, or JSON: one object a line.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

impl OutputArgs {
    /// Prints `text`, or the same as `json`.
    pub(crate) fn say(self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        match self.output {
            Output::Text => print(format!("{}\n", text()).as_bytes()),
            Output::Json => print(format!("{}\n", json()).as_bytes()),
        }
    }
}

/// Writes `bytes` to standard output. Where nobody reads it any more, as in `backbeat audit | head`, the program ends.
pub(crate) fn print(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(READER_GONE),
        Err(error) => {
            tracing::error!(%error, "writing to standard output");
            std::process::exit(1);
        }
    }
}
