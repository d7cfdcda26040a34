//! What a program under `backbeat run` says of itself: JSON lines in a file that it is told of.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use backbeat_sdk::{Help, State, Task};
use serde::Deserialize;
use tempfile::NamedTempFile;

/// The environment variable that names the file.
pub(crate) const VARIABLE: &str = "BACKBEAT_STATUS_FILE";
/// Of a line; what is longer is no status.
const MAX_LINE: usize = 16 * 1024;
/// Read in one go, so that a program that floods the file does not keep us.
const MAX_BYTES: u64 = 1024 * 1024;
/// Of the notes in a claim.
const MAX_NOTES: usize = 4_096;

/// The file, and how far it was read.
pub(crate) struct StatusFile {
    file: NamedTempFile,
    reader: File,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
    line: u64,
}

/// A line: each field is optional, and what is not named stays as it was.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    state: Option<State>,
    progress: Option<f64>,
    notes: Option<String>,
    help: Option<Help>,
}

impl StatusFile {
    pub(crate) fn new() -> std::io::Result<Self> {
        let file = NamedTempFile::with_prefix("backbeat-status-")?;
        let reader = file.reopen()?;
        Ok(Self { file, reader, rest: Vec::new(), line: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Tells `task` what the program has said since the last time; returns whether it has said anything. Lines that say
    /// nothing are logged and passed over.
    pub(crate) fn read(&mut self, task: &Task) -> bool {
        let before = self.rest.len();
        let read = self.reader.by_ref().take(MAX_BYTES).read_to_end(&mut self.rest);
        if let Err(error) = read {
            tracing::warn!(%error, "reading the status file");
        }
        let read = self.rest.len() - before;
        let rest = std::mem::take(&mut self.rest);
        let mut lines = rest.split(|byte| *byte == b'\n');
        // What stands behind the last line's end is the beginning of the next.
        let next = lines.next_back().unwrap_or_default();
        for line in lines {
            self.take(line, task);
        }
        if next.len() > MAX_LINE {
            tracing::warn!(line = self.line + 1, "a line of the status file is longer than {MAX_LINE} bytes");
        } else {
            self.rest = next.to_vec();
        }
        read > 0
    }

    /// Tells `task` all that is left, when nobody writes any more.
    pub(crate) fn read_to_end(&mut self, task: &Task) {
        while self.read(task) {}
        let last = std::mem::take(&mut self.rest);
        self.take(&last, task);
    }

    fn take(&mut self, line: &[u8], task: &Task) {
        self.line += 1;
        match parse(line) {
            Ok(None) => {}
            Ok(Some(line)) => line.tell(task),
            Err(error) => tracing::warn!(
                line = self.line,
                %error,
                "a line of the status file is not understood; allowed is a JSON object with state, progress, notes, help"
            ),
        }
    }
}

fn parse(line: &[u8]) -> Result<Option<Line>, serde_json::Error> {
    if line.iter().all(u8::is_ascii_whitespace) { Ok(None) } else { serde_json::from_slice(line).map(Some) }
}

impl Line {
    fn tell(self, task: &Task) {
        task.update(|status| {
            status.state = self.state.unwrap_or(status.state);
            status.progress = self.progress.map_or(status.progress, |progress| progress.clamp(0.0, 1.0));
            if let Some(mut notes) = self.notes {
                notes.truncate(notes.floor_char_boundary(MAX_NOTES));
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
    fn a_line_says_what_it_names() {
        let line = |text: &str| parse(text.as_bytes());
        let said = line(r#"{"state": "review", "progress": 0.5, "help": "requested"}"#).expect("JSON").expect("a line");
        let expected =
            Line { state: Some(State::Review), progress: Some(0.5), notes: None, help: Some(Help::Requested) };
        assert_eq!(said, expected);
        assert_eq!(line(" ").expect("nothing"), None);
        for (broken, reason) in [
            (r#"{"state": "sleeping"}"#, "unknown variant `sleeping`"),
            (r#"{"mood": "good"}"#, "unknown field `mood`, expected one of"),
            ("half", "expected value"),
            (r#"{"progress": "much"}"#, "expected f64"),
        ] {
            let error = line(broken).expect_err("it says nothing").to_string();
            assert!(error.contains(reason), "{broken}: {error}");
        }
    }
}
