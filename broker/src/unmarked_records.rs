//! Records of transactions that Kafka has ended without a marker: docs/design.md, "Lost markers".

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::{Broker, TopicName, WatchedReader, assign, is_transient, list_offsets};

const TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A reader of records that no marker has committed or aborted. All its calls block.
pub struct UnmarkedRecords {
    consumer: WatchedReader,
}

/// A record of a single-partition topic.
#[derive(Debug)]
pub struct UnmarkedRecord {
    /// The topic.
    pub topic: String,
    /// The offset.
    pub offset: i64,
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
}

impl UnmarkedRecords {
    /// Creates a reader. `watched` is the topic by which its Kafka client is watched.
    pub fn new(broker: &Broker, watched: TopicName) -> KafkaResult<Self> {
        let topic = broker.topics().name(watched);
        Ok(Self { consumer: WatchedReader::new(broker, &topic, Broker::uncommitted_reader)? })
    }

    /// Returns the first record of `topic` that no marker has committed or aborted. `last_stable_offset` fetches that of the
    /// topic, after its high watermark. Call it when no transaction is open.
    pub fn first<E: From<KafkaError>>(
        &mut self,
        topic: &str,
        last_stable_offset: impl FnOnce() -> Result<i64, E>,
    ) -> Result<Option<UnmarkedRecord>, E> {
        self.consumer.replace_if_lost()?;
        let high_watermark = list_offsets(&self.consumer, topic, [0], Offset::End, TIMEOUT)?.get(&0).copied();
        let start = last_stable_offset()?;
        if high_watermark.is_none_or(|end| end <= start) {
            return Ok(None);
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::Offset(start))?;
        assign(&self.consumer, &assignment)?;
        let found = self.poll_first(topic);
        assign(&self.consumer, &TopicPartitionList::new())?;
        Ok(Some(found?))
    }

    fn poll_first(&self, topic: &str) -> KafkaResult<UnmarkedRecord> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
                    let value = message.payload().unwrap_or_default().to_vec();
                    return Ok(UnmarkedRecord { topic: topic.to_owned(), offset: message.offset(), key, value });
                }
                Some(Err(error)) if !is_transient(&error) && !matches!(error, KafkaError::PartitionEOF(_)) => {
                    return Err(error);
                }
                Some(Err(_)) | None => {}
            }
        }
        Err(KafkaError::NoMessageReceived)
    }
}
