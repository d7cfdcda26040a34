//! Output of commands: text or JSON on standard output, and the exit code of a failed check.

use std::borrow::Cow;
use std::fmt::Write as _;
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
            Output::Text => print_line(&text()),
            Output::Json => print_line(&json().to_string()),
        }
    }

    /// Prints a summary of the results. It goes to the log if standard output has a JSON object for each of them.
    pub(crate) fn print_summary(self, summary: &str) {
        match self.output {
            Output::Text => print_line(summary),
            Output::Json => tracing::info!("{summary}"),
        }
    }
}

/// Prints `text` and a newline. Agents choose parts of it, so whatever may move the cursor, change colors or reorder the
/// line in a terminal is printed as its escape sequence in JSON, where it can be in strings only.
pub(crate) fn print_line(text: &str) {
    print_bytes(format!("{}\n", inert(text)).as_bytes());
}

pub(crate) fn inert(text: &str) -> Cow<'_, str> {
    // Control characters, and those that change the direction of text (Unicode's Bidi_Control).
    let is_active = |char: char| {
        (char.is_control() && char != '\n')
            || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().fold(String::with_capacity(text.len()), |mut escaped, char| {
        if is_active(char) {
            // Each of them is in the basic plane, so one unit of UTF-16 suffices.
            let _ = write!(escaped, "\\u{:04x}", u32::from(char));
        } else {
            escaped.push(char);
        }
        escaped
    });
    Cow::Owned(escaped)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_a_terminal_would_obey_is_escaped_and_stays_valid_json() {
        // ESC, CSI as one character, and a right-to-left override.
        let hostile = "a\u{1b}[2Jb\u{9b}2Jc\u{202e}d\u{e9}";
        assert_eq!(inert(hostile), "a\\u001b[2Jb\\u009b2Jc\\u202ed\u{e9}");
        let json = serde_json::json!({ "agent_id": hostile });
        let printed = inert(&json.to_string()).into_owned();
        assert!(!printed.chars().any(|char| char.is_control() || char == '\u{202e}'), "{printed}");
        assert_eq!(serde_json::from_str::<Value>(&printed).expect("valid JSON"), json);
        assert!(matches!(inert("two\nlines"), Cow::Borrowed(_)));
    }
}
