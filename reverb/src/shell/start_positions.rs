//! Where the aggregators of newly assigned partitions begin.

use std::collections::BTreeMap;
use std::time::Duration;

use backbeat_schemas::{BeatFrame, BeatIndex};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};

use super::frame_table::{FrameTable, TableError};
use super::group::GroupConsumer;
use super::timeouts::QUERY_TIMEOUT;
use crate::core::{Committed, PartitionAggregator};

/// The partitions that have no aggregator yet.
#[derive(Debug, Default)]
pub(crate) struct StartPositions {
    /// What was committed for each, once that is known.
    pending: BTreeMap<i32, Option<Committed>>,
    /// The start of the log of every partition of the topic.
    lows: BTreeMap<i32, i64>,
    /// A beat at or before the beginning of each of them, once it was found.
    earliest: Option<BeatIndex>,
}

impl StartPositions {
    pub(crate) fn add(&mut self, partition: i32) {
        self.pending.insert(partition, None);
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
        for (partition, _) in self.pending.iter().filter(|(_, committed)| committed.is_none()) {
            list.add_partition(topic, *partition);
        }
        if list.count() == 0 {
            return Ok(());
        }
        self.lows.extend(watermarks(consumer, topic)?.into_iter().map(|(partition, (low, _))| (partition, low)));
        for element in consumer.committed_offsets(list, QUERY_TIMEOUT)?.elements() {
            let partition = element.partition();
            let committed = match element.offset() {
                Offset::Offset(offset) => Committed::parse(offset, element.metadata()),
                // Never committed: from the beginning, as `auto.offset.reset=earliest` says.
                _ => Committed { offset: self.lows.get(&partition).copied().unwrap_or(0), downbeat: None },
            };
            tracing::info!(partition, ?committed, "position");
            self.pending.insert(partition, Some(committed));
        }
        Ok(())
    }

    /// The aggregators that can begin now, as far as the frames tell.
    pub(crate) fn locate(&mut self, table: &mut FrameTable) -> Result<Vec<(i32, PartitionAggregator)>, TableError> {
        if self.earliest.is_none() {
            self.earliest = self.find_earliest(table)?;
        }
        let Some(earliest) = self.earliest else { return Ok(Vec::new()) };
        table.cover(earliest)?;
        table.follow(Duration::ZERO)?;
        let mut aggregators = Vec::new();
        for (partition, committed) in &self.pending {
            let Some(committed) = committed else { continue };
            if let Some(aggregator) = committed.aggregator(*partition, table.frames(), &self.lows) {
                tracing::info!(partition, from_beat = %aggregator.arrival(), offset = aggregator.next_offset(), "aggregator begins");
                aggregators.push((*partition, aggregator));
            }
        }
        for (partition, _) in &aggregators {
            self.remove(*partition);
        }
        Ok(aggregators)
    }

    /// One search for all of them: each seek costs a round trip, and there may be many partitions.
    fn find_earliest(&self, table: &mut FrameTable) -> Result<Option<BeatIndex>, TableError> {
        let reached = |frame: &BeatFrame| {
            let reaches = |committed: &Committed, partition| committed.reached_by(frame, partition, &self.lows);
            self.pending.iter().any(|(partition, known)| known.is_some_and(|committed| reaches(&committed, *partition)))
        };
        Ok(table.find(reached)?.map(|frame| frame.beat_index))
    }
}

/// The first offset and the end of every partition of `topic`.
pub(crate) fn watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
) -> KafkaResult<BTreeMap<i32, (i64, i64)>> {
    let metadata = consumer.fetch_metadata(Some(topic), QUERY_TIMEOUT)?;
    let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id);
    partitions.map(|id| Ok((id, consumer.fetch_watermarks(topic, id, QUERY_TIMEOUT)?))).collect()
}
