//! The newest beat that this node has read, in a file beside Raft's store: Kafka may come back without the newest frames.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use backbeat_schemas::BeatIndex;
use backbeat_service::write_atomically;

/// The shortest interval between two writes of the file. It is not synchronised to disk: after a power failure it may tell
/// of an older beat, and then less is noticed.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct NewestBeat {
    path: PathBuf,
    beat: Option<BeatIndex>,
    written_at: Option<Instant>,
    /// True if the last write failed, which is logged once.
    has_failed: bool,
}

impl NewestBeat {
    /// Reads the file in `directory`, if there is one.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("newest-beat");
        let beat =
            match fs::read_to_string(&path) {
                Ok(text) => Some(parse(&text).with_context(|| {
                    format!("{} has {text:?}, which is not a beat; delete the file", path.display())
                })?),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            };
        Ok(Self { path, beat, written_at: None, has_failed: false })
    }

    /// The newest beat.
    pub(crate) fn beat(&self) -> Option<BeatIndex> {
        self.beat
    }

    /// Records a beat that was read.
    pub(crate) fn record(&mut self, beat: BeatIndex) {
        if self.beat.is_some_and(|newest| newest >= beat) {
            return;
        }
        self.beat = Some(beat);
        if self.written_at.is_some_and(|at| at.elapsed() < WRITE_INTERVAL) {
            return;
        }
        self.written_at = Some(Instant::now());
        let written = write_atomically(&self.path, &format!("{beat}\n"));
        if let Err(error) = &written
            && !self.has_failed
        {
            tracing::warn!(%error, file = %self.path.display(), "cannot write the newest beat");
        }
        self.has_failed = written.is_err();
    }
}

fn parse(text: &str) -> Option<BeatIndex> {
    BeatIndex::try_from(text.trim().parse::<i64>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_beat_is_read_again_and_never_goes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut newest = NewestBeat::open(directory.path()).expect("there is no file");
        assert_eq!(newest.beat(), None);
        newest.record(BeatIndex::ZERO.plus(7));
        newest.record(BeatIndex::ZERO.plus(3));
        let newest = NewestBeat::open(directory.path()).expect("the file is valid");
        assert_eq!(newest.beat(), Some(BeatIndex::ZERO.plus(7)));
        fs::write(directory.path().join("newest-beat"), "seven").expect("the file is written");
        let error = NewestBeat::open(directory.path()).err().expect("the file is invalid").to_string();
        assert!(error.contains("\"seven\", which is not a beat"), "{error}");
    }
}
