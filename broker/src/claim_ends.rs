//! The ends of `statusclaims`' partitions, from which a boundary is sampled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};

use crate::client_watch::WatchedReader;
use crate::list_offsets::query_offsets;
use crate::{Broker, Reader, TopicName};

/// A client that fetches the ends of `statusclaims`' partitions. All its calls block.
pub struct ClaimEnds {
    /// The reader. Locked only to get it, not during a query: several threads query at the same time.
    reader: Mutex<WatchedReader>,
    topic: String,
}

impl ClaimEnds {
    /// Creates a client that fetches last stable offsets.
    pub fn stable(broker: &Broker) -> Result<Self, KafkaError> {
        Self::new(broker, Broker::reader)
    }

    /// Creates a client that fetches high watermarks, which lie above the last stable offset while a transaction is open.
    pub fn high_watermarks(broker: &Broker) -> Result<Self, KafkaError> {
        Self::new(broker, Broker::uncommitted_reader)
    }

    fn new(broker: &Broker, create: fn(&Broker) -> KafkaResult<Reader>) -> KafkaResult<Self> {
        let topic = broker.topics().name(TopicName::StatusClaims);
        Ok(Self { reader: Mutex::new(WatchedReader::new(broker, &topic, create)?), topic })
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

    /// Fetches the ends of `partitions`. Asks their partition leaders, and waits for all of them. Returns (partition, offset)
    /// pairs, without the partitions whose offset cannot be fetched.
    pub fn fetch(&self, partitions: &[i32], timeout: Duration) -> Vec<(i32, i64)> {
        let mut list = TopicPartitionList::new();
        let added = partitions.iter().try_for_each(|p| list.add_partition_offset(&self.topic, *p, Offset::End));
        match added.and_then(|()| query_offsets(&*self.reader()?, &list, timeout)) {
            Ok(answer) => answer
                .elements()
                .iter()
                .filter_map(|found| match (found.offset(), found.error()) {
                    (Offset::Offset(offset), Ok(())) => Some((found.partition(), offset)),
                    (offset, error) => {
                        let partition = found.partition();
                        tracing::warn!(partition, ?offset, ?error, "cannot fetch the end of a partition");
                        None
                    }
                })
                .collect(),
            Err(error) => {
                let topic = &self.topic;
                tracing::warn!(%error, topic, ?partitions, "cannot fetch the ends of partitions");
                Vec::new()
            }
        }
    }
}
