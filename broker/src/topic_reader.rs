//! A reader of all partitions of a topic, outside any consumer group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backbeat_schemas::{Header, Record};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::client_watch::WatchedReader;
use crate::{Broker, Lookup, Registry, SchemaCache, TopicName, assign, is_transient};

const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const SCHEMA_POLL: Duration = Duration::from_millis(10);

/// The position at which a topic reader starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// The log start offset of each partition.
    Beginning,
    /// The given number of offsets before the end of each partition.
    Last(i64),
    /// The given offsets, by partition; the log start offset for partitions without one, and for offsets below it.
    Offsets(Vec<i64>),
}

/// An event of a topic reader.
#[derive(Debug)]
pub enum TopicEvent<R> {
    /// A record.
    Record(TopicRecord<R>),
    /// Every partition has been read to its end. Returned once.
    End,
}

/// A record and its position.
#[derive(Debug)]
pub struct TopicRecord<R> {
    /// The record's partition.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The decoded record; the reason if it is undecodable.
    pub record: Result<R, String>,
}

/// A reader of all partitions of a topic of records of type `R`. All its calls block.
pub struct TopicReader<R> {
    consumer: WatchedReader,
    topic: String,
    /// The offset of the next record of each partition.
    positions: BTreeMap<i32, i64>,
    schemas: SchemaCache<R>,
    /// The partitions that have not been read to their end yet.
    unread: BTreeSet<i32>,
}

impl<R: Record + 'static> TopicReader<R> {
    /// Creates a reader of `topic` that starts at `from`. Partitions added later are not read.
    pub fn new(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        topic: TopicName,
        from: &ReadFrom,
    ) -> Result<Self, KafkaError> {
        let topic = broker.topics().name(topic);
        let consumer = WatchedReader::new(broker, &topic, Broker::reader)?;
        let metadata = consumer.fetch_metadata(Some(&topic), QUERY_TIMEOUT)?;
        let found = metadata.topics().first();
        // The topic does not exist, or ACLs do not allow to describe it.
        if let Some(code) = found.and_then(MetadataTopic::error) {
            return Err(KafkaError::MetadataFetch(code.into()));
        }
        let partitions: BTreeSet<i32> =
            found.into_iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id).collect();
        let mut positions = BTreeMap::new();
        for partition in &partitions {
            let (low, high) = consumer.fetch_watermarks(&topic, *partition, QUERY_TIMEOUT)?;
            let offset = match from {
                ReadFrom::Beginning => low,
                ReadFrom::Last(count) => (high - count).max(low),
                ReadFrom::Offsets(offsets) => offsets.get(*partition as usize).map_or(low, |offset| low.max(*offset)),
            };
            positions.insert(*partition, offset);
        }
        let schemas = SchemaCache::new(registry.clone(), runtime.clone());
        let reader = Self { consumer, topic, positions, schemas, unread: partitions };
        reader.assign_positions()?;
        Ok(reader)
    }

    fn assign_positions(&self) -> Result<(), KafkaError> {
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in &self.positions {
            assignment.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        assign(&self.consumer, &assignment)
    }

    /// Returns the next event, or `None` if none arrives within `timeout`. Waits longer for a record's schema.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<TopicEvent<R>>, KafkaError> {
        if self.consumer.replace_if_lost()? {
            self.assign_positions()?;
        }
        match self.consumer.poll(timeout) {
            None => Ok(None),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let was_unread = self.unread.remove(&partition);
                Ok((was_unread && self.unread.is_empty()).then_some(TopicEvent::End))
            }
            Some(Err(error)) if is_transient(&error) => Ok(None),
            Some(Err(error)) => Err(error),
            Some(Ok(message)) => {
                let (partition, offset) = (message.partition(), message.offset());
                self.positions.insert(partition, offset + 1);
                let key = message.key().map(<[u8]>::to_vec);
                let record = self.decode(message.payload().unwrap_or_default());
                Ok(Some(TopicEvent::Record(TopicRecord { partition, offset, key, record })))
            }
        }
    }

    fn decode(&self, value: &[u8]) -> Result<R, String> {
        let (header, body) = Header::split(value).map_err(|error| error.to_string())?;
        loop {
            match self.schemas.lookup(header.schema_id) {
                Lookup::Known(schema) => return schema.decode(body).map_err(|error| error.to_string()),
                Lookup::Incompatible(error) => return Err(error.to_string()),
                Lookup::Unknown => return Err(format!("schema id {} is not known to the registry", header.schema_id)),
                Lookup::Pending => std::thread::sleep(SCHEMA_POLL),
            }
        }
    }
}
