//! The table of consecutive frames, read from `beatframes`.

use std::time::Duration;

use anyhow::Context;
use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::{BeatFrame, BeatIndex};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use crate::core::{FrameError, Frames};

/// The maximum number of frames read per poll, so that catching up on a long log does not block the caller.
const MAX_FRAMES_PER_POLL: usize = 10_000;

const POLL: Duration = Duration::from_millis(100);

/// A table of frames and the reader of `beatframes` that extends it.
pub(crate) struct FrameTable {
    reader: LogReader<BeatFrame>,
    frames: Frames,
    cluster_id: String,
    /// The offset of the next frame to read; `None` until [`FrameTable::ensure_covers`] was called.
    next_offset: Option<i64>,
    /// The newest beat of the log when the table was started.
    newest: Option<BeatIndex>,
}

/// An error of the table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log is inconsistent, so retrying does not help.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl FrameTable {
    pub(crate) fn new(reader: LogReader<BeatFrame>, cluster_id: String) -> Self {
        Self { reader, frames: Frames::default(), cluster_id, next_offset: None, newest: None }
    }

    /// Reads frames. `range` chooses, by the newest one, the beat of the first and that whose window the last one closes, by default
    /// the newest. Ends early on `stop`. Blocks.
    pub(crate) fn read(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        range: impl FnOnce(&BeatFrame) -> (BeatIndex, Option<BeatIndex>),
        stop: &Shutdown,
    ) -> anyhow::Result<Frames> {
        let mut tail = LogReader::<BeatFrame>::for_random_access(broker, registry, runtime, TopicName::BeatFrames)?;
        let newest = tail.last()?.context("no beat has been published yet")?.record;
        let (from, to) = range(&newest);
        let reader = LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?;
        let mut table = Self::new(reader, newest.cluster_id.clone());
        table.ensure_covers(from)?;
        let enough = |frames: &Frames| {
            let last = frames.last().map(|last| last.beat_index);
            let closes = to.and_then(|to| frames.window_of(to)).map(|window| window.closing);
            last >= Some(newest.beat_index) || (closes.is_some() && last >= closes)
        };
        while !enough(table.frames()) && !stop.is_cancelled() {
            table.poll(POLL)?;
        }
        Ok(table.frames)
    }

    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }

    /// Returns true if the table has every frame that the log had when the table was started.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.next_offset.is_some() && self.frames.last().map(|last| last.beat_index) >= self.newest
    }

    /// Adds the frames that are available, waiting up to `timeout` for the first.
    pub(crate) fn poll(&mut self, mut timeout: Duration) -> Result<(), TableError> {
        if self.next_offset.is_none() {
            return Ok(());
        }
        for _ in 0..MAX_FRAMES_PER_POLL {
            let Some(entry) = self.reader.poll(timeout)? else { break };
            if entry.record.cluster_id != self.cluster_id {
                let (found, expected) = (entry.record.cluster_id, self.cluster_id.clone());
                return Err(FrameError::OtherCluster { found, expected }.into());
            }
            self.frames.push(entry.record)?;
            self.next_offset = Some(entry.offset + 1);
            timeout = Duration::ZERO;
        }
        Ok(())
    }

    /// Finds the first frame of the log for which `reached` is true. It must be true of all later frames too.
    pub(crate) fn find_first(&mut self, reached: impl Fn(&BeatFrame) -> bool) -> Result<Option<BeatFrame>, TableError> {
        Ok(self.search(|reader| reader.first_where(reached))?.map(|entry| entry.record))
    }

    /// Reads the newest frame of the log, which the table may not have yet.
    pub(crate) fn newest_frame(&mut self) -> Result<Option<BeatFrame>, TableError> {
        Ok(self.search(LogReader::last)?.map(|entry| entry.record))
    }

    /// Runs a search with the reader and seeks back to the table's position, even if the search fails.
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
    /// The next calls of [`FrameTable::poll`] read the missing frames.
    pub(crate) fn ensure_covers(&mut self, beat: BeatIndex) -> Result<(), TableError> {
        let reaches = |first: &BeatFrame| {
            first.beat_index == BeatIndex::ZERO || beat.since(first.beat_index) >= i64::from(first.grace_beats)
        };
        if self.next_offset.is_some() && self.frames.first().is_none_or(reaches) {
            return Ok(());
        }
        let (start, newest) = self.search(|reader| {
            let Some(newest) = reader.last()? else { return Ok((reader.log_start()?, None)) };
            let known = Some(newest.record.beat_index);
            let oldest = beat.get() - i64::from(newest.record.grace_beats);
            // The bar's downbeat is less than this bar's length back. Other bars may have other lengths.
            let within = reader.first_where(|frame| frame.beat_index.get() >= oldest)?.unwrap_or(newest).record;
            let target = within.beat_index.get() - i64::from(within.bar_length);
            let start = match reader.first_where(|frame| frame.beat_index.get() >= target)? {
                Some(entry) => entry.offset,
                None => reader.log_start()?,
            };
            Ok((start, known))
        })?;
        self.frames = Frames::default();
        self.newest = newest;
        self.next_offset = Some(start);
        Ok(self.reader.seek(start)?)
    }

    /// Empties the table and stops reading until [`FrameTable::ensure_covers`] is called again.
    pub(crate) fn clear(&mut self) {
        self.frames = Frames::default();
        self.next_offset = None;
    }

    /// Removes the windows in which no claim that arrives on `beat` or later can count.
    pub(crate) fn drop_before(&mut self, beat: BeatIndex) {
        let grace = self.frames.first().map_or(0, |first| first.grace_beats);
        if let Ok(oldest) = BeatIndex::try_from(beat.get() - i64::from(grace)) {
            self.frames.drop_before(oldest);
        }
    }
}
