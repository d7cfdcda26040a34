//! How a command says what it found.

use serde_json::Value;

/// The exit code when what was asked for was done, and found something wrong.
pub(crate) const FOUND: u8 = 3;

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
    #[allow(clippy::print_stdout, reason = "it is the command's output")]
    pub(crate) fn say(self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        match self.output {
            Output::Text => println!("{}", text()),
            Output::Json => println!("{}", json()),
        }
    }
}
