//! The last stable offsets of `statusclaims`: where a line is drawn.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::{Broker, Reader, TopicName};

/// Asks for the ends of `statusclaims`. All its calls block.
pub struct ClaimEnds {
    consumer: Reader,
    topic: String,
}

impl ClaimEnds {
    /// A client of its own for the questions.
    pub fn new(broker: &Broker) -> Result<Self, KafkaError> {
        Ok(Self { consumer: broker.reader()?, topic: broker.topics().name(TopicName::StatusClaims) })
    }

    /// The partitions of `statusclaims`, by the broker that leads them.
    pub fn partitions(&self, timeout: Duration) -> Result<BTreeMap<i32, Vec<i32>>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), timeout)?;
        let mut by_leader = BTreeMap::<i32, Vec<i32>>::new();
        for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
            by_leader.entry(partition.leader()).or_default().push(partition.id());
        }
        Ok(by_leader)
    }

    /// The ends of `partitions`, all led by one broker, as (partition, offset); none if it does not answer.
    pub fn read(&self, partitions: &[i32], timeout: Duration) -> Vec<(i32, i64)> {
        let mut list = TopicPartitionList::new();
        let added = partitions.iter().try_for_each(|p| list.add_partition_offset(&self.topic, *p, Offset::End));
        match added.and_then(|()| self.consumer.offsets_for_times(list, timeout)) {
            Ok(answer) => answer
                .elements()
                .iter()
                .filter_map(|found| match (found.offset(), found.error()) {
                    (Offset::Offset(offset), Ok(())) => Some((found.partition(), offset)),
                    (offset, error) => {
                        tracing::warn!(partition = found.partition(), ?offset, ?error, "this end is not to be had now");
                        None
                    }
                })
                .collect(),
            Err(error) => {
                tracing::warn!(%error, topic = self.topic, ?partitions, "the ends of these partitions are not to be had now");
                Vec::new()
            }
        }
    }
}
