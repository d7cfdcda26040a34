//! Where a partition's aggregator begins.

use std::collections::BTreeMap;

use backbeat_schemas::{BeatFrame, BeatIndex};

use super::{Frames, PartitionAggregator};

/// What is committed for a partition: an offset and, in its metadata, the downbeat that it is the boundary of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The offset.
    pub offset: i64,
    /// The downbeat. A reset changes the offset and leaves this, or takes it away.
    pub downbeat: Option<i64>,
}

impl Committed {
    /// What `metadata` says beside `offset`. Metadata that is not ours says nothing.
    pub fn parse(offset: i64, metadata: &str) -> Self {
        Self { offset, downbeat: metadata.strip_prefix("1:").and_then(|downbeat| downbeat.parse().ok()) }
    }

    /// The metadata to commit.
    pub fn metadata(&self) -> String {
        self.downbeat.map_or_else(String::new, |downbeat| format!("1:{downbeat}"))
    }

    /// Whether a aggregator may begin at `frame` or before it. If so, it holds for every later frame, too.
    pub fn reached_by(&self, frame: &BeatFrame, partition: i32, lows: &BTreeMap<i32, i64>) -> bool {
        self.downbeat.is_some_and(|downbeat| frame.beat_index.get() >= downbeat)
            || self.is_after(frame, partition, lows)
    }

    /// The aggregator of `partition`, where the logs of all partitions begin at `lows`; `None` while `frames`
    /// does not reach there. The table must reach back to the first frame that [`Self::reached_by`] accepts.
    ///
    /// The downbeat is trusted only where its boundary is the committed offset. Otherwise it is that of the
    /// oldest window at or after the offset whose claims are retained in every partition.
    pub fn aggregator(
        &self,
        partition: i32,
        frames: &Frames,
        lows: &BTreeMap<i32, i64>,
    ) -> Option<PartitionAggregator> {
        let start = self.start(partition, frames, lows)?;
        let boundary = frames.get(start)?.boundary(partition);
        Some(PartitionAggregator::new(partition, start, boundary, lows.get(&partition).copied().unwrap_or(0)))
    }

    fn start(&self, partition: i32, frames: &Frames, lows: &BTreeMap<i32, i64>) -> Option<BeatIndex> {
        let (first, last) = (frames.first()?.beat_index, frames.last()?.beat_index);
        if let Some(downbeat) = self.downbeat.and_then(|downbeat| BeatIndex::try_from(downbeat).ok()) {
            if downbeat > last {
                // It was committed, so it is in the log, and will be in the table.
                return None;
            }
            if frames.get(downbeat).is_some_and(|frame| frame.downbeat && frame.boundary(partition) == self.offset) {
                return Some(downbeat);
            }
        }
        let after = frames.range(first, last.plus(1)).find(|frame| self.is_after(frame, partition, lows))?;
        frames.downbeat_from(after.beat_index)
    }

    /// Whether a window that opens with `frame` lies at or after the offset, and is whole.
    fn is_after(&self, frame: &BeatFrame, partition: i32, lows: &BTreeMap<i32, i64>) -> bool {
        frame.boundary(partition) >= self.offset && lows.iter().all(|(other, low)| frame.boundary(*other) >= *low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, frames_of_partitions};

    /// Where the aggregator of partition 0 begins, among bars of two beats with boundaries 0, 1, 2, … in it and
    /// 0, 10, 20, … in another.
    fn start(offset: i64, downbeat: Option<i64>, lows: [i64; 2]) -> Option<BeatIndex> {
        let frames = frames_of_partitions(2, 0, &[&[0, 1, 2, 3, 4, 5, 6], &[0, 10, 20, 30, 40, 50, 60]]);
        Committed { offset, downbeat }.start(0, &frames, &BTreeMap::from([(0, lows[0]), (1, lows[1])]))
    }

    #[test]
    fn metadata_says_what_it_said_and_foreign_metadata_nothing() {
        let committed = Committed { offset: 7, downbeat: Some(12) };
        assert_eq!(Committed::parse(7, &committed.metadata()), committed);
        for foreign in ["", "12", "2:12", "1:", "1:x", "1:99999999999999999999"] {
            assert_eq!(Committed::parse(7, foreign), Committed { offset: 7, downbeat: None }, "{foreign}");
        }
    }

    #[test]
    fn metadata_is_trusted_where_its_line_is_the_offset() {
        assert_eq!(start(2, Some(2), [0, 0]), Some(beat(2)));
        assert_eq!(start(4, Some(2), [0, 0]), Some(beat(4)), "a reset moved the offset");
        assert_eq!(start(2, Some(2), [3, 0]), Some(beat(2)), "a window that lost its head is told so");
    }

    #[test]
    fn without_metadata_it_is_the_first_whole_window_at_or_after_the_offset() {
        assert_eq!(start(0, None, [0, 0]), Some(beat(0)));
        assert_eq!(start(1, None, [0, 0]), Some(beat(2)));
        assert_eq!(start(0, None, [0, 11]), Some(beat(2)));
        assert_eq!(start(0, None, [0, 21]), Some(beat(4)));
    }

    #[test]
    fn what_the_table_does_not_have_yet_is_waited_for() {
        assert_eq!(start(8, Some(8), [0, 0]), None);
        assert_eq!(start(8, None, [0, 0]), None);
    }
}
