//! Sends invalid claims to the dead-letter topic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backbeat_broker::{Deliveries, ProducerRecord, QueueFull, Sender, TopicName, Topics};
use backbeat_schemas::InvalidClaim;

use super::events::DeadLettersLost;
use super::metrics::Metrics;
use super::recompute::InvalidRecord;
use crate::core::RawRecord;

const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// A producer of dead letters.
#[derive(Clone)]
pub(crate) struct DeadLetterProducer {
    pub(crate) sender: Sender,
    pub(crate) topics: Topics,
}

impl DeadLetterProducer {
    /// Sends the record at `offset` of `partition`, and counts its outcome in `deliveries`.
    pub(crate) fn send(
        &self,
        partition: i32,
        offset: i64,
        reason: &InvalidClaim,
        raw: &RawRecord,
        deliveries: &Arc<Deliveries>,
    ) -> Result<(), QueueFull> {
        let source = self.topics.name(TopicName::StatusClaims);
        let topic = self.topics.name(TopicName::DeadLetters);
        let key = format!("{source}/{partition}/{offset}");
        let mut headers = vec![
            ("reason", reason.reason().to_owned()),
            ("detail", reason.to_string()),
            ("topic", source),
            ("partition", partition.to_string()),
            ("offset", offset.to_string()),
            // In a header, a null key and an empty key cannot be told apart.
            ("key", raw.key.as_ref().map_or("null".to_owned(), |key| String::from_utf8_lossy(key).into_owned())),
        ];
        if let Some(cut) = &raw.cut_value {
            headers.extend([("bytes", cut.bytes.to_string()), ("sha256", hex::encode(cut.sha256))]);
        }
        let value = raw.value.as_deref().unwrap_or_default();
        let record = ProducerRecord { topic: &topic, key: Some(key.as_bytes()), value, headers: &headers };
        self.sender.send(record, deliveries)
    }
}

/// The dead letters of shares that the merge reads itself. It writes them as the shares' owners would: no report counts an
/// invalid claim whose record could still be lost.
pub(crate) struct DeadLetters<'p> {
    producer: &'p DeadLetterProducer,
    timeout: Duration,
    deliveries: Arc<Deliveries>,
    /// True if one could not be queued within the timeout.
    is_incomplete: bool,
}

/// Dead letters were not acknowledged in time.
#[derive(Debug, thiserror::Error)]
#[error("kafka has not acknowledged the dead letters of claims that were read again")]
pub(crate) struct Unacknowledged;

impl<'p> DeadLetters<'p> {
    /// `timeout` bounds each wait for room in the queue, and that for the acknowledgements.
    pub(crate) fn new(producer: &'p DeadLetterProducer, timeout: Duration) -> Self {
        Self { producer, timeout, deliveries: Arc::default(), is_incomplete: false }
    }

    /// Sends one, and waits while the queue is full.
    pub(crate) fn send(&mut self, InvalidRecord { partition, offset, reason, raw }: &InvalidRecord) {
        let deadline = Instant::now() + self.timeout;
        while let Err(QueueFull) = self.producer.send(*partition, *offset, reason, raw, &self.deliveries) {
            if self.is_incomplete || Instant::now() >= deadline {
                self.is_incomplete = true;
                return;
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Waits until Kafka has acknowledged or refused all. One that it refused was logged and is counted, and holds up no
    /// report.
    pub(crate) fn finish(self, metrics: &Metrics) -> Result<(), Unacknowledged> {
        let deadline = Instant::now() + self.timeout;
        while self.deliveries.outstanding() > 0 && Instant::now() < deadline {
            std::thread::sleep(RETRY_PAUSE);
        }
        DeadLettersLost { count: self.deliveries.failed() }.emit(metrics);
        if self.is_incomplete || self.deliveries.outstanding() > 0 { Err(Unacknowledged) } else { Ok(()) }
    }
}
