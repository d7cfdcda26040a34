//! Checks that the schema registry is the one that the log was written with.

use std::thread;
use std::time::{Duration, Instant};

use backbeat_schemas::{BarReport, BeatFrame, Header, Record, WriterSchema};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use crate::schema_cache::UNKNOWN_AFTER;
use crate::{Broker, FetchError, Reader, Registry, TopicName, WatchedReader, assign, is_transient, list_offsets};

const RETRY_PAUSE: Duration = Duration::from_secs(1);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// The schema registry is not the one that a topic was written with.
#[derive(Debug, thiserror::Error)]
#[error(
    "the schema registry does not have schema {id} of the newest record in {topic}: it has lost or renumbered its schemas, or \
     it is another one. docs/operations.md, \"Recovery\", says how to restore them"
)]
pub struct OtherRegistry {
    topic: String,
    id: u32,
}

/// Checks that the registry has the schemas of the newest frame and the newest report, if there are any. Call it before a
/// schema is registered: an empty registry would give new schemas ids that records of the log already have. Waits while Kafka
/// or the registry is unavailable.
pub async fn check_log(broker: &Broker, registry: &Registry) -> Result<(), OtherRegistry> {
    check_topic::<BeatFrame>(broker, registry, TopicName::BeatFrames).await?;
    check_topic::<BarReport>(broker, registry, TopicName::BarReports).await
}

async fn check_topic<R: Record>(broker: &Broker, registry: &Registry, topic: TopicName) -> Result<(), OtherRegistry> {
    let topic = broker.topics().name(topic);
    let Some(id) = newest_schema_id(broker, &topic).await else { return Ok(()) };
    // A replica of the registry may not have a new schema yet.
    let deadline = Instant::now() + UNKNOWN_AFTER;
    loop {
        match registry.fetch(id).await {
            Ok(text) if WriterSchema::<R>::parse(&text).is_ok() => return Ok(()),
            Ok(_) => return Err(OtherRegistry { topic, id }),
            Err(FetchError::Unknown(_)) if Instant::now() >= deadline => return Err(OtherRegistry { topic, id }),
            Err(error) => tracing::warn!(%error, topic, "waiting for the schema of the newest record"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Returns the schema id of the newest record in `topic`, which has one partition. Waits while Kafka is unavailable.
async fn newest_schema_id(broker: &Broker, topic: &str) -> Option<u32> {
    loop {
        let (broker, topic) = (broker.clone(), topic.to_owned());
        let (sender, found) = oneshot::channel();
        // Not a blocking task of Tokio, for which the program would have to wait when it is stopped.
        thread::spawn(move || sender.send(read_newest_schema_id(&broker, &topic)));
        match found.await.expect("the thread sends a result") {
            Ok(id) => return id,
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                tracing::warn!("cannot check the schemas of the log, since an ACL to read it is missing");
                return None;
            }
            Err(error) => tracing::warn!(%error, "waiting for the newest record"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn read_newest_schema_id(broker: &Broker, topic: &str) -> KafkaResult<Option<u32>> {
    let reader = WatchedReader::new(broker, topic, Broker::random_access_reader)?;
    let offset = |at| -> KafkaResult<i64> {
        Ok(list_offsets(&reader, topic, [0], at, KAFKA_TIMEOUT)?.get(&0).copied().unwrap_or(0))
    };
    let (start, end) = (offset(Offset::Beginning)?, offset(Offset::End)?);
    // The last offsets may be those of control records and of aborted transactions.
    let mut distance = 2;
    loop {
        let from = (end - distance).max(start);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::Offset(from))?;
        assign(&reader, &assignment)?;
        let newest = if from < end { read_to(&reader, end)? } else { None };
        if newest.is_some() || from == start {
            return Ok(newest);
        }
        distance *= 16;
    }
}

/// Reads to the offset `end`, and returns the schema id of the last record before it.
fn read_to(reader: &Reader, end: i64) -> KafkaResult<Option<u32>> {
    let deadline = Instant::now() + KAFKA_TIMEOUT;
    let mut newest = None;
    loop {
        match reader.poll(POLL) {
            Some(Ok(message)) if message.offset() < end => {
                let header = message.payload().and_then(|value| Header::split(value).ok());
                newest = header.map(|(header, _)| header.schema_id);
            }
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(newest),
            Some(Err(error)) if !is_transient(&error) => return Err(error),
            Some(Err(_)) | None if Instant::now() >= deadline => return Err(KafkaError::NoMessageReceived),
            Some(Err(_)) | None => {}
        }
    }
}
