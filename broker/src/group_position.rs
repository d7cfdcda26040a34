//! The position of a reader in a topic with one partition, kept as a consumer group's committed offset.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::{Broker, ClientLog, TopicName};

const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const PARTITION: i32 = 0;

/// The committed offset of a group that has no members: whoever reads for it commits, so it is to run once.
pub struct GroupPosition {
    broker: Broker,
    topic: String,
    group: String,
    /// `None` after a failed request: the next one makes a client anew.
    consumer: Option<BaseConsumer<ClientLog>>,
}

impl GroupPosition {
    /// Creates the position of `group` in `topic`.
    pub fn new(broker: &Broker, topic: TopicName, group: String) -> Self {
        Self { broker: broker.clone(), topic: broker.topics().name(topic), group, consumer: None }
    }

    /// Fetches the committed offset; `None` if the group has none. Blocks.
    pub fn fetch(&mut self) -> KafkaResult<Option<i64>> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, PARTITION);
        let committed = self.request(|consumer| consumer.committed_offsets(list.clone(), QUERY_TIMEOUT))?;
        let found = committed.find_partition(&self.topic, PARTITION);
        Ok(found.and_then(|found| if let Offset::Offset(offset) = found.offset() { Some(offset) } else { None }))
    }

    /// Commits `offset`: that of the next record to read. Blocks.
    pub fn commit(&mut self, offset: i64) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, PARTITION, Offset::Offset(offset))?;
        self.request(|consumer| consumer.commit(&list, CommitMode::Sync))
    }

    fn request<T>(&mut self, request: impl Fn(&BaseConsumer<ClientLog>) -> KafkaResult<T>) -> KafkaResult<T> {
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => self.broker.client_settings().set("group.id", &self.group).create_with_context(ClientLog)?,
        };
        let result = request(&consumer);
        self.consumer = result.is_ok().then_some(consumer);
        result
    }
}
