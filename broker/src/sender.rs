//! An idempotent producer that never blocks its caller.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedHeaders, DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};

use crate::broker::MAX_CLAIM_BATCH_BYTES;
use crate::client_log::count_client_error;
use crate::client_watch::probe;
use crate::{Broker, ClientWatch, TopicName, log_client_error};

/// The largest latency that the histogram distinguishes: an hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;
/// The histogram's precision: 1 %.
const SIGNIFICANT_DIGITS: u8 = 2;
/// The records that a producer holds until Kafka has acknowledged them, in KiB.
const MAX_QUEUE_KIB: &str = "65536";
/// The maximum time in which a lost client returns its undelivered records.
const PURGE_TIMEOUT: Duration = Duration::from_secs(2);
const PURGE_POLL: Duration = Duration::from_millis(5);
/// The interval at which a flush checks whether the client was replaced.
const FLUSH_CHECK_INTERVAL: Duration = Duration::from_millis(500);

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

    /// Counts an outstanding record as failed.
    fn record_failure(&self) {
        self.failed.fetch_add(1, Ordering::AcqRel);
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A record for the idempotent producer.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProducerRecord<'a> {
    /// The topic's full name.
    pub topic: &'a str,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// The headers, as (name, value).
    pub headers: &'a [(&'a str, String)],
    /// The record's timestamp in a topic with `CreateTime`, in milliseconds; by default the time of sending.
    pub timestamp_ms: Option<i64>,
}

/// The idempotent producer's local queue is full: retry when some of its records were delivered.
#[derive(Debug, thiserror::Error)]
#[error("the local queue of records to send is full")]
pub struct QueueFull;

/// An idempotent producer. Sending never blocks; the outcome is counted in the record's [`Deliveries`].
///
/// A Kafka client that has lost its brokers is replaced, and its successor sends the unacknowledged records again. A
/// record may then be in its topic twice.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

type Producer = ThreadedProducer<DeliveryContext>;

struct Shared {
    settings: Settings,
    /// The current client. Locked for writing only while the client is replaced.
    producer: RwLock<Arc<Producer>>,
    latency: Arc<Mutex<Histogram<u64>>>,
}

/// The settings of the client and of its successors.
struct Settings {
    broker: Broker,
    /// A topic that the client writes to.
    topic: String,
    delivery_timeout: Option<Duration>,
}

struct DeliveryContext {
    /// The time from sending to acknowledgement, in microseconds.
    latency: Arc<Mutex<Histogram<u64>>>,
    /// True while the client is replaced: records that are purged then go to the successor.
    is_replaced: AtomicBool,
    purged: Mutex<Vec<OwnedRecord>>,
}

/// A record in flight.
struct InFlight {
    sent_at: Instant,
    deliveries: Arc<Deliveries>,
}

/// A record that a lost client did not deliver, to be sent by its successor.
struct OwnedRecord {
    topic: String,
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    timestamp_ms: Option<i64>,
    headers: Option<OwnedHeaders>,
    in_flight: Box<InFlight>,
}

impl ClientContext for DeliveryContext {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        let is_purged = |error: &KafkaError| {
            use RDKafkaErrorCode::{PurgeInflight, PurgeQueue};
            let is_purged = matches!(error.rdkafka_error_code(), Some(PurgeInflight | PurgeQueue));
            is_purged && self.is_replaced.load(Ordering::Acquire)
        };
        match result {
            Ok(_) => {
                let micros = u64::try_from(in_flight.sent_at.elapsed().as_micros()).unwrap_or(u64::MAX);
                lock(&self.latency).saturating_record(micros);
                in_flight.deliveries.acknowledged.fetch_add(1, Ordering::AcqRel);
                in_flight.deliveries.outstanding.fetch_sub(1, Ordering::AcqRel);
            }
            Err((error, record)) if is_purged(error) => lock(&self.purged).push(OwnedRecord {
                topic: record.topic().to_owned(),
                key: record.key().map(<[u8]>::to_vec),
                value: record.payload().unwrap_or_default().to_vec(),
                timestamp_ms: record.timestamp().to_millis(),
                headers: record.headers().map(BorrowedHeaders::detach),
                in_flight,
            }),
            Err((error, _)) => {
                count_client_error(error);
                tracing::error!(%error, "a record was not delivered");
                in_flight.deliveries.record_failure();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Settings {
    fn create(&self, latency: &Arc<Mutex<Histogram<u64>>>) -> Result<Arc<Producer>, KafkaError> {
        let mut config = self.broker.producer_settings();
        config.set("message.timeout.ms", self.delivery_timeout.map_or(0, |limit| limit.as_millis()).to_string());
        config.set("linger.ms", "2");
        config.set("queue.buffering.max.messages", "200000");
        config.set("queue.buffering.max.kbytes", MAX_QUEUE_KIB);
        config.set("compression.type", "lz4");
        if self.topic == self.broker.topics().name(TopicName::StatusClaims) {
            config.set("message.max.bytes", MAX_CLAIM_BATCH_BYTES);
        }
        let context = DeliveryContext {
            latency: Arc::clone(latency),
            is_replaced: AtomicBool::default(),
            purged: Mutex::default(),
        };
        Ok(Arc::new(config.create_with_context(context)?))
    }
}

impl Shared {
    /// Watches the current client, and replaces it if it is lost, for as long as a sender exists.
    fn watch(self: &Arc<Self>) {
        let Settings { broker, topic, .. } = &self.settings;
        let producer = Arc::clone(&self.producer.read().unwrap_or_else(PoisonError::into_inner));
        let shared = Arc::downgrade(self);
        let on_lost = move || {
            if let Some(shared) = shared.upgrade() {
                shared.replace();
            }
        };
        ClientWatch::start(broker, topic, &producer, |producer, topic| probe(producer.client(), topic), on_lost);
    }

    fn replace(self: &Arc<Self>) {
        let successor = match self.settings.create(&self.latency) {
            Ok(successor) => successor,
            Err(error) => return tracing::error!(%error, "cannot create a kafka client in place of one that is lost"),
        };
        {
            let mut producer = self.producer.write().unwrap_or_else(PoisonError::into_inner);
            let lost = std::mem::replace(&mut *producer, Arc::clone(&successor));
            lost.context().is_replaced.store(true, Ordering::Release);
            lost.purge(PurgeConfig::default().queue().inflight());
            let deadline = Instant::now() + PURGE_TIMEOUT;
            while lost.in_flight_count() > 0 && Instant::now() < deadline {
                thread::sleep(PURGE_POLL);
            }
            let records = std::mem::take(&mut *lock(&lost.context().purged));
            tracing::info!(records = records.len(), "sending the undelivered records of a lost kafka client again");
            for record in records {
                resend(&successor, record);
            }
        }
        self.watch();
    }
}

/// Queues a record with `producer`.
fn enqueue(
    producer: &Producer,
    ProducerRecord { topic, key, value, timestamp_ms, .. }: ProducerRecord<'_>,
    headers: Option<OwnedHeaders>,
    in_flight: Box<InFlight>,
) -> Result<(), KafkaError> {
    let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, in_flight).payload(value);
    if let Some(key) = key {
        record = record.key(key);
    }
    if let Some(timestamp_ms) = timestamp_ms {
        record = record.timestamp(timestamp_ms);
    }
    if let Some(headers) = headers {
        record = record.headers(headers);
    }
    producer.send(record).map_err(|(error, _)| error)
}

fn resend(producer: &Producer, OwnedRecord { topic, key, value, timestamp_ms, headers, in_flight }: OwnedRecord) {
    let deliveries = Arc::clone(&in_flight.deliveries);
    // The successor's queue is as long as the lost client's.
    let record = ProducerRecord { topic: &topic, key: key.as_deref(), value: &value, timestamp_ms, headers: &[] };
    if let Err(error) = enqueue(producer, record, headers, in_flight) {
        tracing::error!(%error, topic, "a record cannot be sent again");
        deliveries.record_failure();
    }
}

impl Sender {
    /// Creates an idempotent producer that writes to `topic`, among others, and retries each record for at most
    /// `delivery_timeout`; `None` is without limit.
    pub fn new(broker: &Broker, topic: TopicName, delivery_timeout: Option<Duration>) -> Result<Self, KafkaError> {
        let settings = Settings { broker: broker.clone(), topic: broker.topics().name(topic), delivery_timeout };
        let latency = Histogram::new_with_max(MAX_LATENCY_US, SIGNIFICANT_DIGITS).expect("the bounds are valid");
        let latency = Arc::new(Mutex::new(latency));
        let producer = RwLock::new(settings.create(&latency)?);
        let shared = Arc::new(Shared { settings, producer, latency });
        shared.watch();
        Ok(Self { shared })
    }

    /// Queues `record`, and counts its outcome in `deliveries`. A record that can never be sent, such as one that is
    /// too large, counts as failed at once.
    pub fn send(&self, record: ProducerRecord<'_>, deliveries: &Arc<Deliveries>) -> Result<(), QueueFull> {
        // Locked only while the client is replaced.
        let Ok(producer) = self.shared.producer.try_read() else { return Err(QueueFull) };
        let in_flight = Box::new(InFlight { sent_at: Instant::now(), deliveries: Arc::clone(deliveries) });
        let headers = (!record.headers.is_empty()).then(|| {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            record
                .headers
                .iter()
                .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_bytes()) }))
        });
        deliveries.outstanding.fetch_add(1, Ordering::AcqRel);
        let Err(error) = enqueue(&producer, record, headers, in_flight) else {
            return Ok(());
        };
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
            deliveries.outstanding.fetch_sub(1, Ordering::AcqRel);
            return Err(QueueFull);
        }
        // The record is too large, or the idempotent producer has a fatal error: a retry would fail as well.
        tracing::error!(%error, topic = record.topic, bytes = record.value.len(), "a record cannot be sent");
        deliveries.record_failure();
        Ok(())
    }

    /// Returns the fatal error of the idempotent producer, if it has one. It can then send nothing more: create another
    /// one.
    pub fn fatal_error(&self) -> Option<String> {
        self.producer().client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// Returns the time from [`Sender::send`] to Kafka's acknowledgement at `quantile` (0 to 1), over all records so
    /// far. Zero if none was acknowledged.
    pub fn latency(&self, quantile: f64) -> Duration {
        Duration::from_micros(lock(&self.shared.latency).value_at_quantile(quantile))
    }

    /// Waits until all queued records are acknowledged or failed, at most `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        let deadline = Instant::now() + timeout;
        loop {
            let producer = self.producer();
            // In several calls, since the client may be replaced meanwhile.
            let limit = FLUSH_CHECK_INTERVAL.min(deadline.saturating_duration_since(Instant::now()));
            match producer.flush(limit) {
                Ok(()) if Arc::ptr_eq(&producer, &self.producer()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                _ => {}
            }
        }
    }

    fn producer(&self) -> Arc<Producer> {
        Arc::clone(&self.shared.producer.read().unwrap_or_else(PoisonError::into_inner))
    }
}
