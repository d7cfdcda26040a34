//! The last stable offsets of `statusclaims`' partitions, from which a boundary is sampled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::client_watch::WatchedReader;
use crate::{Broker, Reader, TopicName};

/// A client that fetches the last stable offsets of `statusclaims`. All its calls block.
pub struct ClaimEnds {
    /// The reader. Locked only to get it, not during a query: several threads query at the same time.
    reader: Mutex<WatchedReader>,
    topic: String,
}

impl ClaimEnds {
    /// Creates the client.
    pub fn new(broker: &Broker) -> Result<Self, KafkaError> {
        let topic = broker.topics().name(TopicName::StatusClaims);
        Ok(Self { reader: Mutex::new(WatchedReader::new(broker, &topic, Broker::reader)?), topic })
    }

    fn reader(&self) -> Result<Arc<Reader>, KafkaError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.replace_if_lost()?;
        Ok(reader.reader())
    }

    /// Returns the partitions of `statusclaims`, grouped by the id of the broker that is their partition leader.
    pub fn partitions_by_leader(&self, timeout: Duration) -> Result<BTreeMap<i32, Vec<i32>>, KafkaError> {
        let metadata = self.reader()?.fetch_metadata(Some(&self.topic), timeout)?;
        let mut by_leader = BTreeMap::<i32, Vec<i32>>::new();
        for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
            by_leader.entry(partition.leader()).or_default().push(partition.id());
        }
        Ok(by_leader)
    }

    /// Fetches the last stable offsets of `partitions`, which should all have the same partition leader. Returns
    /// (partition, offset) pairs, without the partitions whose offset cannot be fetched.
    pub fn fetch(&self, partitions: &[i32], timeout: Duration) -> Vec<(i32, i64)> {
        let mut list = TopicPartitionList::new();
        let added = partitions.iter().try_for_each(|p| list.add_partition_offset(&self.topic, *p, Offset::End));
        match added.and_then(|()| self.reader()?.offsets_for_times(list, timeout)) {
            Ok(answer) => answer
                .elements()
                .iter()
                .filter_map(|found| match (found.offset(), found.error()) {
                    (Offset::Offset(offset), Ok(())) => Some((found.partition(), offset)),
                    (offset, error) => {
                        let partition = found.partition();
                        tracing::warn!(
                            partition,
                            ?offset,
                            ?error,
                            "cannot fetch the last stable offset of a partition"
                        );
                        None
                    }
                })
                .collect(),
            Err(error) => {
                let topic = &self.topic;
                tracing::warn!(%error, topic, ?partitions, "cannot fetch the last stable offsets of partitions");
                Vec::new()
            }
        }
    }
}
