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

/// Latencies are told apart up to here, an hour, to 1 %.
const LONGEST_LATENCY_US: u64 = 3_600_000_000;
const SIGNIFICANT_DIGITS: u8 = 2;

/// What became of a group of records.
#[derive(Debug, Default)]
pub struct Deliveries {
    outstanding: AtomicI64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

impl Deliveries {
    /// Sent and neither acknowledged nor failed yet.
    pub fn outstanding(&self) -> i64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Acknowledged by Kafka.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Given up.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }
}

/// A record to send.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outgoing<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// Headers.
    pub headers: &'a [(&'a str, String)],
}

/// The local queue is full: try again when some of it has gone out.
#[derive(Debug, thiserror::Error)]
#[error("the local queue of records to send is full")]
pub struct QueueFull;

/// An idempotent producer. Sending never blocks; what became of it shows in its [`Deliveries`].
#[derive(Clone)]
pub struct Sender {
    producer: ThreadedProducer<Counts>,
}

struct Counts {
    /// Of what was acknowledged, in microseconds from sending.
    latency: Mutex<Histogram<u64>>,
}

/// A record on its way.
struct Sent {
    at: Instant,
    deliveries: Arc<Deliveries>,
}

impl ClientContext for Counts {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }
}

impl ProducerContext for Counts {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let Sent { at, deliveries } = *sent;
        match result {
            Ok(_) => {
                let micros = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
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
    /// A producer that tries each record for `give_up_after`; `None` means for ever.
    pub fn new(broker: &Broker, give_up_after: Option<Duration>) -> Result<Self, KafkaError> {
        let mut config = broker.producer();
        config.set("message.timeout.ms", give_up_after.map_or(0, |limit| limit.as_millis()).to_string());
        config.set("linger.ms", "2");
        config.set("queue.buffering.max.messages", "200000");
        config.set("compression.type", "lz4");
        let latency = Histogram::new_with_max(LONGEST_LATENCY_US, SIGNIFICANT_DIGITS).expect("bounds that it takes");
        Ok(Self { producer: config.create_with_context(Counts { latency: Mutex::new(latency) })? })
    }

    /// Queues `record`, counted in `deliveries`.
    pub fn send(&self, record: Outgoing<'_>, deliveries: &Arc<Deliveries>) -> Result<(), QueueFull> {
        let sent = Box::new(Sent { at: Instant::now(), deliveries: Arc::clone(deliveries) });
        let mut message = BaseRecord::<[u8], [u8], _>::with_opaque_to(record.topic, sent).payload(record.value);
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
        let refused = match self.producer.send(message) {
            Ok(()) => return Ok(()),
            Err((error, _)) => error,
        };
        deliveries.outstanding.fetch_sub(1, Ordering::AcqRel);
        if refused.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
            return Err(QueueFull);
        }
        // Too large, or a fatal producer: no later try would end otherwise.
        tracing::error!(error = %refused, topic = record.topic, bytes = record.value.len(), "a record cannot be sent");
        deliveries.failed.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Why this producer can send nothing any more, if so: make another.
    pub fn fatal_error(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// How long records took from [`Sender::send`] to Kafka's acknowledgement, at `quantile` (0 to 1) of those so far.
    pub fn latency(&self, quantile: f64) -> Duration {
        let latency = &self.producer.client().context().latency;
        Duration::from_micros(latency.lock().unwrap_or_else(PoisonError::into_inner).value_at_quantile(quantile))
    }

    /// Waits until everything queued was acknowledged or given up, at most `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.producer.flush(timeout)
    }
}
