//! Finds the start positions of newly assigned partitions.

use std::collections::BTreeMap;
use std::time::Duration;

use backbeat_broker::list_offsets;
use backbeat_schemas::{BeatFrame, BeatIndex};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};

use super::frame_table::{FrameTable, TableError};
use super::group::GroupConsumer;
use super::timeouts::QUERY_TIMEOUT;
use crate::core::{CommittedOffset, PartitionAggregator};

/// The partitions whose aggregator has not started.
#[derive(Debug, Default)]
pub(crate) struct StartPositions {
    /// By partition, the committed offset, once fetched.
    pending: BTreeMap<i32, Option<CommittedOffset>>,
    /// The log start offset of every partition of the topic.
    log_starts: BTreeMap<i32, i64>,
    /// A beat at or before all the start positions, once found.
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

    /// Fetches the committed offsets that are not known yet, and the log start offsets of `topic`.
    pub(crate) fn fetch_committed(&mut self, consumer: &GroupConsumer, topic: &str) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, _) in self.pending.iter().filter(|(_, committed)| committed.is_none()) {
            list.add_partition(topic, *partition);
        }
        if list.count() == 0 {
            return Ok(());
        }
        let all = partitions(consumer, topic)?;
        self.log_starts.extend(list_offsets(consumer, topic, all, Offset::Beginning, QUERY_TIMEOUT)?);
        for element in consumer.committed_offsets(list, QUERY_TIMEOUT)?.elements() {
            let partition = element.partition();
            let committed = match element.offset() {
                Offset::Offset(offset) => CommittedOffset::parse(offset, element.metadata()),
                // Never committed: start at the log start offset, as `auto.offset.reset=earliest` would.
                _ => CommittedOffset { offset: self.log_starts.get(&partition).copied().unwrap_or(0), downbeat: None },
            };
            tracing::info!(partition, ?committed, "determined the offset to start from");
            self.pending.insert(partition, Some(committed));
        }
        Ok(())
    }

    /// Returns the aggregators whose start positions are found in the frames read so far.
    pub(crate) fn resolve(&mut self, table: &mut FrameTable) -> Result<Vec<(i32, PartitionAggregator)>, TableError> {
        if self.earliest.is_none() {
            self.earliest = self.find_earliest(table)?;
        }
        let Some(earliest) = self.earliest else { return Ok(Vec::new()) };
        table.ensure_covers(earliest)?;
        table.poll(Duration::ZERO)?;
        let mut aggregators = Vec::new();
        for (partition, committed) in &self.pending {
            let Some(committed) = committed else { continue };
            if let Some(aggregator) = committed.start_aggregator(*partition, table.frames(), &self.log_starts) {
                let log_start = self.log_starts.get(partition).copied().unwrap_or(0);
                if committed.offset > log_start && committed.verified_downbeat(*partition, table.frames()).is_none() {
                    tracing::warn!(partition, offset = committed.offset, from_beat = %aggregator.arrival_beat(), "offsets were reset: this partition's windows before this beat are not read");
                }
                tracing::info!(partition, from_beat = %aggregator.arrival_beat(), offset = aggregator.next_offset(), "aggregator starts");
                aggregators.push((*partition, aggregator));
            }
        }
        for (partition, _) in &aggregators {
            self.remove(*partition);
        }
        Ok(aggregators)
    }

    /// Searches once for all partitions, because each seek costs a round trip and there may be many partitions. Searches
    /// nothing if the table has the committed downbeats of all.
    fn find_earliest(&self, table: &mut FrameTable) -> Result<Option<BeatIndex>, TableError> {
        let verified = |(partition, committed): (&i32, &Option<CommittedOffset>)| {
            committed.as_ref()?.verified_downbeat(*partition, table.frames())
        };
        let verified: Option<Vec<BeatIndex>> = self.pending.iter().map(verified).collect();
        if let Some(earliest) = verified.and_then(|downbeats| downbeats.into_iter().min()) {
            return Ok(Some(earliest));
        }
        let reached = |frame: &BeatFrame| {
            let reaches =
                |committed: &CommittedOffset, partition| committed.starts_by(frame, partition, &self.log_starts);
            self.pending.iter().any(|(partition, known)| known.is_some_and(|committed| reaches(&committed, *partition)))
        };
        Ok(table.find_first(reached)?.map(|frame| frame.beat_index))
    }
}

/// Fetches the log start offset and the high watermark of every partition of `topic`.
pub(crate) fn watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
) -> KafkaResult<BTreeMap<i32, (i64, i64)>> {
    partitions(consumer, topic)?
        .into_iter()
        .map(|id| Ok((id, consumer.fetch_watermarks(topic, id, QUERY_TIMEOUT)?)))
        .collect()
}

fn partitions<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str) -> KafkaResult<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), QUERY_TIMEOUT)?;
    Ok(metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id).collect())
}
