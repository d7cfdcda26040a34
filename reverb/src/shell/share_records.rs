//! Sends what must be acknowledged before a share counts: its dead letters and its roster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backbeat_broker::{Deliveries, ProducerRecord, QueueFull, Sender, TopicName, Topics};
use backbeat_schemas::{BarRoster, InvalidClaim, wire};

use super::events::RecordsLost;
use super::metrics::Metrics;
use super::recompute::InvalidRecord;
use crate::core::RawRecord;

const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// A producer of dead letters and rosters.
#[derive(Clone)]
pub(crate) struct ShareRecordProducer {
    pub(crate) sender: Sender,
    pub(crate) topics: Topics,
    pub(crate) roster_schema: u32,
}

/// The deliveries of the dead letters and rosters of one partition, or of those that the merge reads itself.
#[derive(Debug, Default)]
pub(crate) struct ShareDeliveries {
    dead_letters: Arc<Deliveries>,
    rosters: Arc<Deliveries>,
    /// The numbers of both that Kafka has refused and that were counted.
    lost: (u64, u64),
}

impl ShareDeliveries {
    /// Returns true while Kafka has not acknowledged or refused all.
    pub(crate) fn are_outstanding(&self) -> bool {
        self.dead_letters.outstanding() > 0 || self.rosters.outstanding() > 0
    }

    /// Counts what Kafka has refused since the last call.
    pub(crate) fn count_lost(&mut self, metrics: &Metrics) {
        let lost = (self.dead_letters.failed(), self.rosters.failed());
        RecordsLost { dead_letters: lost.0 - self.lost.0, rosters: lost.1 - self.lost.1 }.emit(metrics);
        self.lost = lost;
    }
}

impl ShareRecordProducer {
    /// Sends a roster.
    pub(crate) fn send_roster(&self, roster: &BarRoster, deliveries: &ShareDeliveries) -> Result<(), QueueFull> {
        let (topic, key) = (self.topics.name(TopicName::BarRosters), roster.key());
        let value = wire(self.roster_schema, roster);
        let record = ProducerRecord {
            topic: &topic,
            key: Some(key.as_bytes()),
            value: &value,
            timestamp_ms: Some(roster.closed_at.millis()),
            ..Default::default()
        };
        self.sender.send(record, &deliveries.rosters)
    }

    /// Sends the record at `offset` of `partition` to the dead-letter topic.
    pub(crate) fn send_dead_letter(
        &self,
        partition: i32,
        offset: i64,
        reason: &InvalidClaim,
        raw: &RawRecord,
        deliveries: &ShareDeliveries,
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
        let record =
            ProducerRecord { topic: &topic, key: Some(key.as_bytes()), value, headers: &headers, timestamp_ms: None };
        self.sender.send(record, &deliveries.dead_letters)
    }
}

/// The dead letters and rosters of shares that the merge reads itself. It writes them as the shares' owners would: no report
/// counts what has a record that could still be lost.
pub(crate) struct ShareRecords<'p> {
    producer: &'p ShareRecordProducer,
    timeout: Duration,
    deliveries: ShareDeliveries,
    /// True if one could not be queued within the timeout.
    is_incomplete: bool,
}

/// Records of shares were not acknowledged in time.
#[derive(Debug, thiserror::Error)]
#[error("kafka has not acknowledged the dead letters and rosters of claims that were read again")]
pub(crate) struct Unacknowledged;

impl<'p> ShareRecords<'p> {
    /// `timeout` bounds each wait for room in the queue, and that for the acknowledgements.
    pub(crate) fn new(producer: &'p ShareRecordProducer, timeout: Duration) -> Self {
        Self { producer, timeout, deliveries: ShareDeliveries::default(), is_incomplete: false }
    }

    /// Sends a dead letter, and waits while the queue is full.
    pub(crate) fn send_dead_letter(&mut self, InvalidRecord { partition, offset, reason, raw }: &InvalidRecord) {
        self.send(|producer, deliveries| producer.send_dead_letter(*partition, *offset, reason, raw, deliveries));
    }

    /// Sends a roster, and waits while the queue is full.
    pub(crate) fn send_roster(&mut self, roster: &BarRoster) {
        self.send(|producer, deliveries| producer.send_roster(roster, deliveries));
    }

    fn send(&mut self, send: impl Fn(&ShareRecordProducer, &ShareDeliveries) -> Result<(), QueueFull>) {
        let deadline = Instant::now() + self.timeout;
        while let Err(QueueFull) = send(self.producer, &self.deliveries) {
            if self.is_incomplete || Instant::now() >= deadline {
                self.is_incomplete = true;
                return;
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Waits until Kafka has acknowledged or refused all. One that it refused was logged and is counted, and holds up no
    /// report.
    pub(crate) fn finish(mut self, metrics: &Metrics) -> Result<(), Unacknowledged> {
        let deadline = Instant::now() + self.timeout;
        while self.deliveries.are_outstanding() && Instant::now() < deadline {
            std::thread::sleep(RETRY_PAUSE);
        }
        self.deliveries.count_lost(metrics);
        if self.is_incomplete || self.deliveries.are_outstanding() { Err(Unacknowledged) } else { Ok(()) }
    }
}
