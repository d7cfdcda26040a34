//! The status file of a program under `backbeat run`: JSON lines that the program appends and that go into its claims.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use backbeat_sdk::{Help, State, Task};
use serde::Deserialize;
use tempfile::NamedTempFile;

/// The environment variable that names the file.
pub(crate) const PATH_VARIABLE: &str = "BACKBEAT_STATUS_FILE";
/// The maximum length of a line; a longer one is skipped.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// The maximum that one call reads, so that a program that floods the file does not block this one.
const MAX_READ_BYTES: u64 = 1024 * 1024;
/// The maximum length of the notes in a valid claim.
const MAX_NOTES_BYTES: usize = 4_096;

/// The status file and the read position.
pub(crate) struct StatusFile {
    file: NamedTempFile,
    reader: File,
    /// A line that is not complete yet.
    incomplete_line: Vec<u8>,
    line_number: u64,
}

/// One line of the file. Each field is optional; a field that is absent keeps its value.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusUpdate {
    state: Option<State>,
    progress: Option<f64>,
    notes: Option<String>,
    help: Option<Help>,
}

impl StatusFile {
    pub(crate) fn new() -> std::io::Result<Self> {
        let file = NamedTempFile::with_prefix("backbeat-status-")?;
        let reader = file.reopen()?;
        Ok(Self { file, reader, incomplete_line: Vec::new(), line_number: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Applies the lines that were appended since the last call to `task`; returns true if there was anything to read.
    /// Invalid lines are logged and skipped.
    pub(crate) fn read(&mut self, task: &Task) -> bool {
        let before = self.incomplete_line.len();
        let read = self.reader.by_ref().take(MAX_READ_BYTES).read_to_end(&mut self.incomplete_line);
        if let Err(error) = read {
            tracing::warn!(%error, "cannot read the status file");
        }
        let read = self.incomplete_line.len() - before;
        let bytes = std::mem::take(&mut self.incomplete_line);
        let mut lines = bytes.split(|byte| *byte == b'\n');
        // The bytes after the last newline are the beginning of the next line.
        let incomplete = lines.next_back().unwrap_or_default();
        for line in lines {
            self.process_line(line, task);
        }
        if incomplete.len() > MAX_LINE_BYTES {
            tracing::warn!(
                line = self.line_number + 1,
                "a line of the status file is longer than {MAX_LINE_BYTES} bytes"
            );
        } else {
            self.incomplete_line = incomplete.to_vec();
        }
        read > 0
    }

    /// Applies everything up to the end of the file to `task`, including a last line without a newline.
    pub(crate) fn read_to_end(&mut self, task: &Task) {
        while self.read(task) {}
        let last = std::mem::take(&mut self.incomplete_line);
        self.process_line(&last, task);
    }

    fn process_line(&mut self, line: &[u8], task: &Task) {
        self.line_number += 1;
        match parse(line) {
            Ok(None) => {}
            Ok(Some(update)) => update.apply(task),
            Err(error) => tracing::warn!(
                line = self.line_number,
                %error,
                "invalid line in the status file; expected a JSON object with state, progress, notes, help"
            ),
        }
    }
}

/// Parses a line; `None` if it is blank.
fn parse(line: &[u8]) -> Result<Option<StatusUpdate>, serde_json::Error> {
    if line.iter().all(u8::is_ascii_whitespace) { Ok(None) } else { serde_json::from_slice(line).map(Some) }
}

impl StatusUpdate {
    fn apply(self, task: &Task) {
        task.update(|status| {
            status.state = self.state.unwrap_or(status.state);
            status.progress = self.progress.map_or(status.progress, |progress| progress.clamp(0.0, 1.0));
            if let Some(mut notes) = self.notes {
                notes.truncate(notes.floor_char_boundary(MAX_NOTES_BYTES));
                status.notes = notes;
            }
            status.help = self.help.or(status.help);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_line_sets_the_fields_that_it_names() {
        let line = |text: &str| parse(text.as_bytes());
        let update = line(r#"{"state": "review", "progress": 0.5, "help": "requested"}"#);
        let expected =
            StatusUpdate { state: Some(State::Review), progress: Some(0.5), notes: None, help: Some(Help::Requested) };
        assert_eq!(update.expect("the line is valid"), Some(expected));
        assert_eq!(line(" ").expect("a blank line is valid"), None);
    }

    #[test]
    fn status_line_that_is_invalid_is_refused_with_the_reason() {
        let line = |text: &str| parse(text.as_bytes());
        for (invalid, reason) in [
            (r#"{"state": "sleeping"}"#, "unknown variant `sleeping`"),
            (r#"{"mood": "good"}"#, "unknown field `mood`, expected one of"),
            ("half", "expected value"),
            (r#"{"progress": "much"}"#, "expected f64"),
        ] {
            let error = line(invalid).expect_err("the line is invalid").to_string();
            assert!(error.contains(reason), "{invalid}: {error}");
        }
    }
}
