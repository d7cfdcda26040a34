//! Offsets of several partitions in one request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

/// The pause before a query with the new leader epoch, for which librdkafka has asked by then.
const METADATA_PAUSE: Duration = Duration::from_millis(20);

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
    let answer = query_offsets(consumer, &query, timeout)?;
    let offset = |found: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        found.error()?;
        match found.offset() {
            Offset::Offset(offset) if offset >= 0 => Ok((found.partition(), offset)),
            _ => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OffsetNotAvailable)),
        }
    };
    answer.elements().into_iter().map(offset).collect()
}

/// Sends `query`, and sends it anew if the leader epochs that the client knows are of before an election. A client that
/// fetches nothing hears of an election in this way only, and librdkafka (2.12.1) sends the old epoch in its own retries.
pub(crate) fn query_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    query: &TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<TopicPartitionList> {
    let deadline = Instant::now() + timeout;
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let answer = consumer.offsets_for_times(query.clone(), remaining);
        let is_fenced = |error: &KafkaError| error.rdkafka_error_code() == Some(RDKafkaErrorCode::FencedLeaderEpoch);
        if !answer.as_ref().is_err_and(is_fenced) || Instant::now() + METADATA_PAUSE >= deadline {
            return answer;
        }
        std::thread::sleep(METADATA_PAUSE);
    }
}
