//! An idempotent producer that never blocks its caller.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use crate::client_log::count_client_error;
use crate::{Broker, log_client_error};

/// The largest latency that the histogram distinguishes: an hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;
/// The histogram's precision: 1 %.
const SIGNIFICANT_DIGITS: u8 = 2;

/// The delivery counts of a group of records.
#[derive(Debug, Default)]
pub struct Deliveries {
    outstanding: AtomicI64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

impl Deliveries {
    /// Returns the number of records sent that are neither acknowledged nor failed yet.
    pub fn outstanding(&self) -> i64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Returns the number of records that Kafka acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Returns the number of records that could not be delivered.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }
}

/// A record to send.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outgoing<'a> {
    /// The topic's full name.
    pub topic: &'a str,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// The headers, as (name, value).
    pub headers: &'a [(&'a str, String)],
}

/// The producer's local queue is full: retry when some of its records were delivered.
#[derive(Debug, thiserror::Error)]
#[error("the local queue of records to send is full")]
pub struct QueueFull;

/// An idempotent producer. Sending never blocks; the outcome is counted in the record's [`Deliveries`].
#[derive(Clone)]
pub struct Sender {
    producer: ThreadedProducer<DeliveryContext>,
}

struct DeliveryContext {
    /// The time from sending to acknowledgement, in microseconds.
    latency: Mutex<Histogram<u64>>,
}

/// A record in flight.
struct InFlight {
    sent_at: Instant,
    deliveries: Arc<Deliveries>,
}

impl ClientContext for DeliveryContext {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        let InFlight { sent_at, deliveries } = *in_flight;
        match result {
            Ok(_) => {
                let micros = u64::try_from(sent_at.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.latency.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
                deliveries.acknowledged.fetch_add(1, Ordering::AcqRel)
            }
            Err((error, _)) => {
                count_client_error(error);
                tracing::error!(%error, "a record was not delivered");
                deliveries.failed.fetch_add(1, Ordering::AcqRel)
            }
        };
        deliveries.outstanding.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Sender {
    /// Creates a producer that retries each record for at most `delivery_timeout`; `None` is without limit.
    pub fn new(broker: &Broker, delivery_timeout: Option<Duration>) -> Result<Self, KafkaError> {
        let mut config = broker.producer_settings();
        config.set("message.timeout.ms", delivery_timeout.map_or(0, |limit| limit.as_millis()).to_string());
        config.set("linger.ms", "2");
        config.set("queue.buffering.max.messages", "200000");
        config.set("compression.type", "lz4");
        let latency = Histogram::new_with_max(MAX_LATENCY_US, SIGNIFICANT_DIGITS).expect("the bounds are valid");
        Ok(Self { producer: config.create_with_context(DeliveryContext { latency: Mutex::new(latency) })? })
    }

    /// Queues `record`, and counts its outcome in `deliveries`. A record that can never be sent, such as one that is
    /// too large, counts as failed at once.
    pub fn send(&self, record: Outgoing<'_>, deliveries: &Arc<Deliveries>) -> Result<(), QueueFull> {
        let in_flight = Box::new(InFlight { sent_at: Instant::now(), deliveries: Arc::clone(deliveries) });
        let mut message = BaseRecord::<[u8], [u8], _>::with_opaque_to(record.topic, in_flight).payload(record.value);
        if let Some(key) = record.key {
            message = message.key(key);
        }
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            message =
                message.headers(record.headers.iter().fold(headers, |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value.as_bytes()) })
                }));
        }
        deliveries.outstanding.fetch_add(1, Ordering::AcqRel);
        let error = match self.producer.send(message) {
            Ok(()) => return Ok(()),
            Err((error, _)) => error,
        };
        deliveries.outstanding.fetch_sub(1, Ordering::AcqRel);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
            return Err(QueueFull);
        }
        // The record is too large, or the producer has a fatal error: a retry would fail as well.
        tracing::error!(%error, topic = record.topic, bytes = record.value.len(), "a record cannot be sent");
        deliveries.failed.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Returns the producer's fatal error, if it has one. Such a producer cannot send any more: create another one.
    pub fn fatal_error(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// Returns the time from [`Sender::send`] to Kafka's acknowledgement at `quantile` (0 to 1), over all records so
    /// far. Zero if none was acknowledged.
    pub fn latency(&self, quantile: f64) -> Duration {
        let latency = &self.producer.client().context().latency;
        Duration::from_micros(latency.lock().unwrap_or_else(PoisonError::into_inner).value_at_quantile(quantile))
    }

    /// Waits until all queued records are acknowledged or failed, at most `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.producer.flush(timeout)
    }
}
