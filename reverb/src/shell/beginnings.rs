//! Where the folds of newly assigned partitions begin.

use std::collections::BTreeMap;

use backbeat_schemas::{BeatFrame, BeatIndex};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};

use super::frame_table::{FrameTable, TableError};
use super::group::{GroupConsumer, Position};
use super::timeouts::QUERY_TIMEOUT;
use crate::core::Fold;

/// The partitions that have no fold yet.
#[derive(Debug, Default)]
pub(crate) struct Beginnings {
    pending: BTreeMap<i32, Beginning>,
    /// The start of the log of every partition of the topic.
    lows: BTreeMap<i32, i64>,
}

/// What is known of one.
#[derive(Debug, Clone, Copy)]
enum Beginning {
    /// Not even what was committed.
    Unknown,
    /// What was committed: an offset, and the downbeat in its metadata.
    Committed { offset: i64, downbeat: Option<i64> },
    /// The first downbeat at or after this beat.
    At(BeatIndex),
}

impl Beginnings {
    pub(crate) fn add(&mut self, partition: i32) {
        self.pending.insert(partition, Beginning::Unknown);
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
        let mut folds = Vec::new();
        for (partition, beginning) in self.pending.clone() {
            let beat = match beginning {
                Beginning::Unknown => None,
                Beginning::Committed { offset, downbeat } => self.beat(partition, offset, downbeat, table)?,
                Beginning::At(beat) => Some(beat),
            };
            let Some(beat) = beat else { continue };
            self.pending.insert(partition, Beginning::At(beat));
            if let Some(start) = table.downbeat_from(beat)? {
                let line = table.frames().get(start).map_or(0, |frame| frame.line(partition));
                tracing::info!(partition, from_beat = %start, offset = line, "fold begins");
                folds.push((partition, Fold::new(partition, start, line, self.low(partition))));
                self.pending.remove(&partition);
            }
        }
        Ok(folds)
    }

    /// The beat at or after which the first downbeat is the beginning; `None` while there is none.
    ///
    /// The metadata is trusted only where its downbeat's line is the committed offset; a reset changes
    /// one without the other. Otherwise it is the oldest window at or after the offset whose claims are
    /// retained in every partition.
    fn beat(
        &self,
        partition: i32,
        offset: i64,
        downbeat: Option<i64>,
        table: &mut FrameTable,
    ) -> Result<Option<BeatIndex>, TableError> {
        if let Some(downbeat) = downbeat {
            let found = table.find(|frame| frame.beat_index.get() >= downbeat)?;
            let trusted = found.filter(|frame| {
                frame.beat_index.get() == downbeat && frame.downbeat && frame.line(partition) == offset
            });
            if let Some(frame) = trusted {
                return Ok(Some(frame.beat_index));
            }
            tracing::info!(partition, offset, downbeat, "the group was reset: looking for the first whole window");
        }
        let whole = |frame: &BeatFrame| self.lows.iter().all(|(partition, low)| frame.line(*partition) >= *low);
        let found = table.find(|frame| frame.line(partition) >= offset && whole(frame))?;
        Ok(found.map(|frame| frame.beat_index))
    }

    fn low(&self, partition: i32) -> i64 {
        self.lows.get(&partition).copied().unwrap_or(0)
    }
}
