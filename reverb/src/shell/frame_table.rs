//! The table of boundaries, kept up with `beatframes`.

use std::time::Duration;

use backbeat_broker::{LogReader, ReadError};
use backbeat_schemas::{BeatFrame, BeatIndex};

use crate::core::{FrameError, Frames};

/// Frames taken in one go, so that a long log does not keep its reader from everything else.
const BATCH: usize = 10_000;

/// A table of frames and the reader that feeds it.
pub(crate) struct FrameTable {
    reader: LogReader<BeatFrame>,
    frames: Frames,
    cluster_id: String,
    /// Where to read on; `None` before the first window was asked for.
    next_offset: Option<i64>,
    /// The newest beat of the log when the table began to be read.
    newest: Option<BeatIndex>,
}

/// The table cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log itself is wrong: no later try will help.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl FrameTable {
    pub(crate) fn new(reader: LogReader<BeatFrame>, cluster_id: String) -> Self {
        Self { reader, frames: Frames::default(), cluster_id, next_offset: None, newest: None }
    }

    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }

    /// Whether it has all that was in the log when it began to be read.
    pub(crate) fn is_current(&self) -> bool {
        self.next_offset.is_some() && self.frames.last().map(|last| last.beat_index) >= self.newest
    }

    pub(crate) fn into_frames(self) -> Frames {
        self.frames
    }

    /// Takes in the frames that are there, waiting up to `timeout` for the first.
    pub(crate) fn follow(&mut self, mut timeout: Duration) -> Result<(), TableError> {
        if self.next_offset.is_none() {
            return Ok(());
        }
        for _ in 0..BATCH {
            let Some(entry) = self.reader.poll(timeout)? else { break };
            if entry.record.cluster_id != self.cluster_id {
                let (found, ours) = (entry.record.cluster_id, self.cluster_id.clone());
                return Err(FrameError::OtherCluster { found, ours }.into());
            }
            self.frames.push(entry.record)?;
            self.next_offset = Some(entry.offset + 1);
            timeout = Duration::ZERO;
        }
        Ok(())
    }

    /// The first frame that `reached` accepts, where it accepts all later ones too.
    pub(crate) fn find(&mut self, reached: impl Fn(&BeatFrame) -> bool) -> Result<Option<BeatFrame>, TableError> {
        Ok(self.search(|reader| reader.first_where(reached))?.map(|entry| entry.record))
    }

    /// The newest beat of the log, whatever the table has.
    pub(crate) fn newest_beat(&mut self) -> Result<Option<BeatIndex>, TableError> {
        Ok(self.search(LogReader::last)?.map(|entry| entry.record.beat_index))
    }

    /// Lets the reader go elsewhere, and brings it back whatever comes of it.
    fn search<T>(
        &mut self,
        search: impl FnOnce(&mut LogReader<BeatFrame>) -> Result<T, ReadError>,
    ) -> Result<T, TableError> {
        let found = search(&mut self.reader);
        if let Some(next) = self.next_offset {
            self.reader.seek(next)?;
        }
        Ok(found?)
    }

    /// Makes the table reach back to every window in which a claim that arrives on `beat` may count.
    /// What is missing comes with the next calls of [`FrameTable::follow`].
    pub(crate) fn cover(&mut self, beat: BeatIndex) -> Result<(), TableError> {
        let reaches = |first: &BeatFrame| {
            first.beat_index == BeatIndex::ZERO || beat.since(first.beat_index) >= i64::from(first.grace_beats)
        };
        if self.next_offset.is_some() && self.frames.first().is_none_or(reaches) {
            return Ok(());
        }
        let (start, newest) = self.search(|reader| {
            let Some(newest) = reader.last()? else { return Ok((reader.low()?, None)) };
            let known = Some(newest.record.beat_index);
            let oldest = beat.get() - i64::from(newest.record.grace_beats);
            // Its bar's downbeat is less than that bar back; other bars may have other lengths.
            let within = reader.first_where(|frame| frame.beat_index.get() >= oldest)?.unwrap_or(newest).record;
            let target = within.beat_index.get() - i64::from(within.bar_length);
            let start = match reader.first_where(|frame| frame.beat_index.get() >= target)? {
                Some(entry) => entry.offset,
                None => reader.low()?,
            };
            Ok((start, known))
        })?;
        self.frames = Frames::default();
        self.newest = newest;
        self.next_offset = Some(start);
        Ok(self.reader.seek(start)?)
    }

    /// Forgets everything, until a window is asked for again.
    pub(crate) fn clear(&mut self) {
        self.frames = Frames::default();
        self.next_offset = None;
    }

    /// Forgets what no claim that arrives on `beat` or later can count in.
    pub(crate) fn forget_before(&mut self, beat: BeatIndex) {
        let grace = self.frames.first().map_or(0, |first| first.grace_beats);
        if let Ok(oldest) = BeatIndex::try_from(beat.get() - i64::from(grace)) {
            self.frames.forget_before(oldest);
        }
    }
}
