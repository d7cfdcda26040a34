//! The start position of a partition's aggregator: the window to start with, found from the committed offset.

use std::collections::BTreeMap;

use backbeat_schemas::{BeatFrame, BeatIndex};

use super::{Frames, PartitionAggregator, is_retained};

/// The committed offset of a partition, and from its metadata the downbeat whose boundary it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The committed offset.
    pub offset: i64,
    /// The downbeat, if the metadata has one. A reset of the group's offsets changes the offset, but keeps the metadata
    /// or removes it, so the downbeat may belong to another offset.
    pub downbeat: Option<i64>,
}

impl CommittedOffset {
    /// Parses the metadata committed with `offset`. Metadata in another format is ignored.
    pub fn parse(offset: i64, metadata: &str) -> Self {
        Self { offset, downbeat: metadata.strip_prefix("1:").and_then(|downbeat| downbeat.parse().ok()) }
    }

    /// Returns the metadata to commit.
    pub fn metadata(&self) -> String {
        self.downbeat.map_or_else(String::new, |downbeat| format!("1:{downbeat}"))
    }

    /// Returns true if the start position may lie at or before the beat of `frame`: the frame is at or after the
    /// committed downbeat, or a window that opens with it could be aggregated. If it is true of a frame, it is true of
    /// all later frames, so that a binary search finds the first.
    pub fn starts_by(&self, frame: &BeatFrame, partition: i32, log_starts: &BTreeMap<i32, i64>) -> bool {
        self.downbeat.is_some_and(|downbeat| frame.beat_index.get() >= downbeat)
            || self.allows_start(frame, partition, log_starts)
    }

    /// Creates the aggregator of `partition` at its start position, or returns `None` if `frames` does not reach that
    /// far yet. `frames` must reach back to the window before that of the first frame for which [`Self::starts_by`] is true. `log_starts`
    /// has the log start offsets of all partitions.
    ///
    /// The start position is the committed downbeat if its boundary equals the committed offset. Otherwise the offset
    /// was reset or never committed, and the start position is the first downbeat at or after the offset whose window
    /// and the window before it are retained in every partition.
    pub fn start_aggregator(
        &self,
        partition: i32,
        frames: &Frames,
        log_starts: &BTreeMap<i32, i64>,
    ) -> Option<PartitionAggregator> {
        let start = self.start(partition, frames, log_starts)?;
        Some(PartitionAggregator::new(partition, start, frames, log_starts.get(&partition).copied().unwrap_or(0)))
    }

    fn start(&self, partition: i32, frames: &Frames, log_starts: &BTreeMap<i32, i64>) -> Option<BeatIndex> {
        let (first, last) = (frames.first()?.beat_index, frames.last()?.beat_index);
        if self.downbeat.is_some_and(|downbeat| downbeat > last.get()) {
            // The downbeat was committed, so its frame is in the log and will be in the table.
            return None;
        }
        if let Some(downbeat) = self.verified_downbeat(partition, frames) {
            return Some(downbeat);
        }
        let after = frames.range(first, last.plus(1)).find(|frame| self.allows_start(frame, partition, log_starts))?;
        let downbeat = frames.downbeat_from(after.beat_index)?;
        let Some(before) = downbeat.previous() else { return Some(downbeat) };
        let previous = frames.window_of(before).and_then(|previous| frames.get(previous.from));
        // The log's first window has none before it.
        if previous.is_none_or(|opening| is_retained(opening, log_starts)) {
            Some(downbeat)
        } else {
            frames.downbeat_from(downbeat.plus(1))
        }
    }

    /// Returns the committed downbeat if its frame is in `frames` and its boundary equals the committed offset: then it is
    /// the start position.
    pub fn verified_downbeat(&self, partition: i32, frames: &Frames) -> Option<BeatIndex> {
        let downbeat = BeatIndex::try_from(self.downbeat?).ok()?;
        let frame = frames.get(downbeat)?;
        (frame.downbeat && frame.boundary(partition) == self.offset).then_some(downbeat)
    }

    /// Returns true if a window that opens with `frame` would lie at or after the committed offset and be retained in
    /// every partition.
    fn allows_start(&self, frame: &BeatFrame, partition: i32, log_starts: &BTreeMap<i32, i64>) -> bool {
        frame.boundary(partition) >= self.offset && is_retained(frame, log_starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, frames_of_partitions};

    /// Returns the start position of partition 0, among bars of two beats with boundaries 0, 1, 2, … in partition 0 and
    /// 0, 10, 20, … in partition 1.
    fn start(offset: i64, downbeat: Option<i64>, log_starts: [i64; 2]) -> Option<BeatIndex> {
        let frames = frames_of_partitions(2, 0, &[&[0, 1, 2, 3, 4, 5, 6], &[0, 10, 20, 30, 40, 50, 60]]);
        CommittedOffset { offset, downbeat }.start(
            0,
            &frames,
            &BTreeMap::from([(0, log_starts[0]), (1, log_starts[1])]),
        )
    }

    #[test]
    fn committed_metadata_round_trips_and_foreign_metadata_is_ignored() {
        let committed = CommittedOffset { offset: 7, downbeat: Some(12) };
        assert_eq!(CommittedOffset::parse(7, &committed.metadata()), committed);
        for foreign in ["", "12", "2:12", "1:", "1:x", "1:99999999999999999999"] {
            assert_eq!(CommittedOffset::parse(7, foreign), CommittedOffset { offset: 7, downbeat: None }, "{foreign}");
        }
    }

    #[test]
    fn committed_downbeat_is_trusted_only_if_its_boundary_is_the_offset() {
        assert_eq!(start(2, Some(2), [0, 0]), Some(beat(2)));
        assert_eq!(start(4, Some(2), [0, 0]), Some(beat(4)), "a reset moved the offset");
        assert_eq!(start(2, Some(2), [3, 0]), Some(beat(2)), "the aggregator marks this window as not retained");
    }

    #[test]
    fn offset_without_metadata_starts_at_the_first_retained_window_after_it() {
        assert_eq!(start(0, None, [0, 0]), Some(beat(0)));
        assert_eq!(start(1, None, [0, 0]), Some(beat(2)));
        assert_eq!(start(0, None, [0, 11]), Some(beat(4)), "the window before beat 2 is not retained");
        assert_eq!(start(0, None, [0, 21]), Some(beat(6)));
        assert_eq!(start(0, None, [0, 20]), Some(beat(4)));
    }

    #[test]
    fn start_position_past_the_table_is_not_known_yet() {
        assert_eq!(start(8, Some(8), [0, 0]), None);
        assert_eq!(start(8, None, [0, 0]), None);
    }
}
