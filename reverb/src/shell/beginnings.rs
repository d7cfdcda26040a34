//! Where the folds of newly assigned partitions begin.

use std::collections::BTreeMap;
use std::time::Duration;

use backbeat_schemas::{BeatFrame, BeatIndex};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};

use super::frame_table::{FrameTable, TableError};
use super::group::{GroupConsumer, Position};
use super::timeouts::QUERY_TIMEOUT;
use crate::core::{Fold, Frames};

/// The partitions that have no fold yet.
#[derive(Debug, Default)]
pub(crate) struct Beginnings {
    pending: BTreeMap<i32, Beginning>,
    /// The start of the log of every partition of the topic.
    lows: BTreeMap<i32, i64>,
    /// A beat at or before the beginning of each of them, once it was found.
    earliest: Option<BeatIndex>,
}

/// What is known of one.
#[derive(Debug, Clone, Copy)]
enum Beginning {
    /// Not even what was committed.
    Unknown,
    /// What was committed: an offset, and the downbeat in its metadata.
    Committed { offset: i64, downbeat: Option<i64> },
}

impl Beginnings {
    pub(crate) fn add(&mut self, partition: i32) {
        self.pending.insert(partition, Beginning::Unknown);
        self.earliest = None;
    }

    pub(crate) fn remove(&mut self, partition: i32) {
        self.pending.remove(&partition);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The partitions, for people.
    pub(crate) fn partitions(&self) -> Vec<i32> {
        self.pending.keys().copied().collect()
    }

    /// Asks Kafka what was committed for the partitions of `topic` of which that is not known, and
    /// where the logs begin.
    pub(crate) fn ask(&mut self, consumer: &GroupConsumer, topic: &str) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, beginning) in &self.pending {
            if matches!(beginning, Beginning::Unknown) {
                list.add_partition(topic, *partition);
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        let metadata = consumer.fetch_metadata(Some(topic), QUERY_TIMEOUT)?;
        for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
            let (low, _) = consumer.fetch_watermarks(topic, partition.id(), QUERY_TIMEOUT)?;
            self.lows.insert(partition.id(), low);
        }
        for element in consumer.committed_offsets(list, QUERY_TIMEOUT)?.elements() {
            let partition = element.partition();
            let (offset, downbeat) = match element.offset() {
                Offset::Offset(offset) => (offset, Position::downbeat(element.metadata())),
                // Never committed: from the beginning, as `auto.offset.reset=earliest` says.
                _ => (self.low(partition), None),
            };
            tracing::info!(partition, offset, ?downbeat, "committed position");
            self.pending.insert(partition, Beginning::Committed { offset, downbeat });
        }
        Ok(())
    }

    /// The folds that can begin now, as far as the frames tell.
    pub(crate) fn locate(&mut self, table: &mut FrameTable) -> Result<Vec<(i32, Fold)>, TableError> {
        if self.earliest.is_none() {
            self.earliest = self.find_earliest(table)?;
        }
        let Some(earliest) = self.earliest else { return Ok(Vec::new()) };
        table.cover(earliest)?;
        table.follow(Duration::ZERO)?;
        let mut folds = Vec::new();
        for (partition, beginning) in &self.pending {
            let Beginning::Committed { offset, downbeat } = *beginning else { continue };
            if let Some(start) = self.start(*partition, offset, downbeat, table.frames()) {
                let line = table.frames().get(start).map_or(0, |frame| frame.line(*partition));
                tracing::info!(partition, from_beat = %start, offset = line, "fold begins");
                folds.push((*partition, Fold::new(*partition, start, line, self.low(*partition))));
            }
        }
        for (partition, _) in &folds {
            self.remove(*partition);
        }
        Ok(folds)
    }

    /// One search for all of them: each seek costs a round trip, and there may be many partitions.
    fn find_earliest(&self, table: &mut FrameTable) -> Result<Option<BeatIndex>, TableError> {
        let reached = |frame: &BeatFrame| {
            self.pending.iter().any(|(partition, beginning)| match *beginning {
                Beginning::Unknown => false,
                Beginning::Committed { offset, downbeat } => {
                    downbeat.is_some_and(|downbeat| frame.beat_index.get() >= downbeat)
                        || self.is_after(frame, *partition, offset)
                }
            })
        };
        Ok(table.find(reached)?.map(|frame| frame.beat_index))
    }

    /// The downbeat at which a fold begins; `None` while the table does not reach there.
    ///
    /// The metadata is trusted only where its downbeat's line is the committed offset; a reset changes
    /// one without the other. Otherwise it is the oldest window at or after the offset whose claims are
    /// retained in every partition.
    fn start(&self, partition: i32, offset: i64, downbeat: Option<i64>, frames: &Frames) -> Option<BeatIndex> {
        let last = frames.last()?.beat_index;
        if let Some(downbeat) = downbeat.and_then(|downbeat| BeatIndex::try_from(downbeat).ok()) {
            if downbeat > last {
                // It was committed, so it is in the log, and will be in the table.
                return None;
            }
            if frames.get(downbeat).is_some_and(|frame| frame.downbeat && frame.line(partition) == offset) {
                return Some(downbeat);
            }
        }
        let mut beats = frames.range(self.earliest?, last.plus(1));
        let first = beats.find(|frame| self.is_after(frame, partition, offset))?;
        frames.downbeat_from(first.beat_index)
    }

    /// Whether a window that opens with `frame` lies at or after `offset`, and is whole.
    fn is_after(&self, frame: &BeatFrame, partition: i32, offset: i64) -> bool {
        frame.line(partition) >= offset && self.lows.iter().all(|(other, low)| frame.line(*other) >= *low)
    }

    fn low(&self, partition: i32) -> i64 {
        self.lows.get(&partition).copied().unwrap_or(0)
    }
}
