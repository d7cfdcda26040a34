//! A reader of the dead-letter topic.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::client_watch::WatchedReader;
use crate::{Broker, TopicName, assign, is_transient};

/// The topic's only partition.
const PARTITION: i32 = 0;
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// An invalid record of `statusclaims`, as its dead letter describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The dead letter's offset in the dead-letter topic.
    pub offset: i64,
    /// The instant at which it was written, in milliseconds since the Unix epoch.
    pub written_at_ms: i64,
    /// The short name of the reason.
    pub reason: String,
    /// The rule that the record breaks, in words.
    pub detail: String,
    /// The record's partition of `statusclaims`.
    pub source_partition: String,
    /// The record's offset there.
    pub source_offset: String,
    /// The record's key, usually an agent's id, with what is not UTF-8 replaced. Clients choose it.
    pub key: String,
}

/// A reader of the dead letters, outside any consumer group. All its calls block.
pub struct DeadLetterReader {
    consumer: WatchedReader,
    topic: String,
    position: i64,
}

impl DeadLetterReader {
    /// Creates a reader that starts at the last `count` offsets.
    pub fn new(broker: &Broker, count: i64) -> KafkaResult<Self> {
        let topic = broker.topics().name(TopicName::DeadLetters);
        let consumer = WatchedReader::new(broker, &topic, Broker::reader)?;
        let mut reader = Self { consumer, topic, position: 0 };
        reader.position = reader.last_offsets(count)?.0;
        reader.assign_position()?;
        Ok(reader)
    }

    /// Sets the position to the last `count` offsets, unless it is among them.
    pub fn skip_to_last(&mut self, count: i64) -> KafkaResult<()> {
        let (start, end) = self.last_offsets(count)?;
        if !(start..=end).contains(&self.position) {
            self.position = start;
            self.assign_position()?;
        }
        Ok(())
    }

    /// Returns the first of the last `count` offsets, and the end.
    fn last_offsets(&self, count: i64) -> KafkaResult<(i64, i64)> {
        let (low, high) = self.consumer.fetch_watermarks(&self.topic, PARTITION, QUERY_TIMEOUT)?;
        Ok(((high - count).max(low), high))
    }

    fn assign_position(&self) -> KafkaResult<()> {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, PARTITION, Offset::Offset(self.position))?;
        assign(&self.consumer, &assignment)
    }

    /// Returns the next dead letter, or `None` if none arrives within `timeout`.
    pub fn poll(&mut self, timeout: Duration) -> KafkaResult<Option<DeadLetter>> {
        if self.consumer.replace_if_lost()? {
            self.assign_position()?;
        }
        match self.consumer.poll(timeout) {
            None | Some(Err(KafkaError::PartitionEOF(_))) => Ok(None),
            Some(Err(error)) if is_transient(&error) => Ok(None),
            Some(Err(error)) => Err(error),
            Some(Ok(message)) => {
                self.position = message.offset() + 1;
                Ok(Some(decode(&message)))
            }
        }
    }
}

fn decode(message: &impl Message) -> DeadLetter {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    let mut headers: HashMap<String, String> =
        headers.map(|header| (header.key.to_owned(), text(header.value))).collect();
    let mut take = |name: &str| headers.remove(name).unwrap_or_default();
    DeadLetter {
        offset: message.offset(),
        written_at_ms: message.timestamp().to_millis().unwrap_or_default(),
        reason: take("reason"),
        detail: take("detail"),
        source_partition: take("partition"),
        source_offset: take("offset"),
        key: take("key"),
    }
}
