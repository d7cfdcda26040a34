//! Offsets of several partitions in one request.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

/// Fetches an offset of each of `partitions` of `topic`, with one request to each partition leader: the log start offset
/// for [`Offset::Beginning`], and the last stable offset for [`Offset::End`]. Blocks. Fails if one cannot be fetched.
pub fn list_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    at: Offset,
    timeout: Duration,
) -> KafkaResult<BTreeMap<i32, i64>> {
    let mut query = TopicPartitionList::new();
    for partition in partitions {
        query.add_partition_offset(topic, partition, at)?;
    }
    if query.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let answer = consumer.offsets_for_times(query, timeout)?;
    let offset = |found: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        found.error()?;
        match found.offset() {
            Offset::Offset(offset) if offset >= 0 => Ok((found.partition(), offset)),
            _ => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OffsetNotAvailable)),
        }
    };
    answer.elements().into_iter().map(offset).collect()
}
