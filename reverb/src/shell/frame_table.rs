//! The table of consecutive frames, read from `beatframes`.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Context;
use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::{BeatFrame, BeatIndex};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use crate::core::{FrameError, Frames};

/// The maximum number of frames read per poll, so that catching up on a long log does not block the caller.
const MAX_FRAMES_PER_POLL: usize = 10_000;

/// The bars before a beat that claims which arrive on it need: that in which they may count, and the one before.
const BARS_BACK: usize = 2;

const POLL: Duration = Duration::from_millis(100);

/// A table of frames and the readers of `beatframes` that extend it.
pub(crate) struct FrameTable {
    /// Follows the end of the log.
    reader: LogReader<BeatFrame>,
    /// Searches the log and reads older frames; paused in between. A search with the other one would wait for a fetch at
    /// the end of the log in each of its steps.
    searcher: LogReader<BeatFrame>,
    frames: Frames,
    cluster_id: String,
    /// The offset of the next frame to read; `None` until [`FrameTable::ensure_covers`] was called.
    next_offset: Option<i64>,
    /// The newest beat of the log when the table was started.
    newest: Option<BeatIndex>,
    /// True if the log has no older frames than the table.
    reaches_log_start: bool,
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
    pub(crate) fn new(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        cluster_id: String,
    ) -> Result<Self, ReadError> {
        Ok(Self {
            reader: LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?,
            searcher: LogReader::for_random_access(broker, registry, runtime, TopicName::BeatFrames)?,
            frames: Frames::default(),
            cluster_id,
            next_offset: None,
            newest: None,
            reaches_log_start: false,
        })
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
        let mut table = Self::new(broker, registry, runtime, String::new())?;
        let newest = table.newest_frame()?.context("no beat has been published yet")?;
        let (from, to) = range(&newest);
        table.cluster_id = newest.cluster_id;
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
            push(&mut self.frames, entry.record, &self.cluster_id)?;
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

    /// Runs a search with its reader, which is paused then, even if the search fails.
    fn search<T>(
        &mut self,
        search: impl FnOnce(&mut LogReader<BeatFrame>) -> Result<T, ReadError>,
    ) -> Result<T, TableError> {
        let found = search(&mut self.searcher);
        self.searcher.pause()?;
        Ok(found?)
    }

    /// Makes the table reach back to every window in which a claim that arrives on `beat` may count, and to the window
    /// before them. If the table has been started, it has the missing frames on return; otherwise the next calls of
    /// [`FrameTable::poll`] read them.
    pub(crate) fn ensure_covers(&mut self, beat: BeatIndex) -> Result<(), TableError> {
        // A table whose first frames have not been polled yet may have been started for a later beat.
        if self.next_offset.is_some() && (self.reaches_log_start || self.frames.cover(beat)) {
            return Ok(());
        }
        let (start, log_start, newest) = self.search(|reader| {
            let log_start = reader.log_start()?;
            let Some(mut entry) = reader.last()? else { return Ok((log_start, log_start, None)) };
            let newest = entry.record.beat_index;
            let mut target = beat.get() - i64::from(entry.record.grace_beats);
            // A bar's downbeat is less than this bar's length back, and what is so far back lies in a bar before. Other bars may
            // have other lengths.
            for _ in 0..BARS_BACK {
                let Some(found) = reader.first_where(|frame| frame.beat_index.get() >= target)? else { break };
                entry = found;
                target = entry.record.beat_index.get() - i64::from(entry.record.bar_length);
            }
            let start =
                reader.first_where(|frame| frame.beat_index.get() >= target)?.map_or(log_start, |entry| entry.offset);
            Ok((start, log_start, Some(newest)))
        })?;
        if let Some(next) = self.next_offset {
            // The frames that the table has are needed all the while: windows close.
            self.read_again(start, next)?;
        } else {
            self.newest = newest;
            self.reader.seek(start)?;
            self.next_offset = Some(start);
        }
        self.reaches_log_start = start == log_start;
        Ok(())
    }

    /// Replaces the frames by those of the offsets `[start, end)`.
    fn read_again(&mut self, start: i64, end: i64) -> Result<(), TableError> {
        let (mut frames, mut pushed) = (Frames::default(), Ok(()));
        let cluster_id = self.cluster_id.clone();
        self.search(|reader| {
            reader.read_until(start, end, |entry| {
                pushed = push(&mut frames, entry.record, &cluster_id);
                if pushed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
        })?;
        pushed?;
        self.frames = frames;
        Ok(())
    }

    /// Empties the table and stops reading until [`FrameTable::ensure_covers`] is called again.
    pub(crate) fn clear(&mut self) {
        self.frames = Frames::default();
        self.next_offset = None;
    }

    /// Removes the windows in which no claim that arrives on `beat` or later can count, but for the last of them.
    pub(crate) fn drop_before(&mut self, beat: BeatIndex) {
        let grace = self.frames.first().map_or(0, |first| first.grace_beats);
        let oldest = BeatIndex::try_from(beat.get() - i64::from(grace)).ok();
        let before = oldest.and_then(|oldest| self.frames.window_of(oldest)?.from.previous());
        if let Some(before) = before {
            let first = self.frames.first().map(|first| first.beat_index);
            self.frames.drop_before(before);
            self.reaches_log_start &= self.frames.first().map(|first| first.beat_index) == first;
        }
    }
}

/// Appends the next frame of the log of the cluster `cluster_id`.
fn push(frames: &mut Frames, frame: BeatFrame, cluster_id: &str) -> Result<(), FrameError> {
    if frame.cluster_id != cluster_id {
        return Err(FrameError::OtherCluster { found: frame.cluster_id, expected: cluster_id.to_owned() });
    }
    frames.push(frame)
}
