//! Transactions: what is written in one is there as a whole, or not at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::Broker;

const POLL: Duration = Duration::from_millis(1);

/// A producer that holds a transactional id. All its calls block.
///
/// After any error the producer is of no more use: drop it and open another, which settles what was
/// left in doubt (librdkafka has no KIP-890), then read back what is there.
pub struct TransactionalProducer {
    producer: BaseProducer<Failures>,
    timeout: Duration,
}

/// Why a transaction is not known to be committed.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// Another producer has opened the same transactional id.
    #[error("another producer has taken over the transactional id: {0}")]
    Fenced(KafkaError),
    /// Anything else. Whether a commit that failed took effect is in doubt.
    #[error("the transaction failed: {0}")]
    Failed(KafkaError),
    /// The records were not acknowledged in time.
    #[error("Kafka did not acknowledge the records within {0:?}")]
    TimedOut(Duration),
}

impl TransactionError {
    /// `error`, and what librdkafka's client says of itself: a producer that was fenced while it had
    /// records to send reports them as purged, and only its fatal error says why.
    fn new(error: KafkaError, client: Option<&Client<Failures>>) -> Self {
        let code = match &error {
            KafkaError::Transaction(error) => Some(error.code()),
            other => other.rdkafka_error_code(),
        };
        let fatal = client.and_then(Client::fatal_error).map(|(code, _)| code);
        // Whatever flag comes with it: fenced is fenced.
        let fenced = [code, fatal].into_iter().flatten().any(|code| {
            matches!(
                code,
                RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::Fenced | RDKafkaErrorCode::InvalidProducerEpoch
            )
        });
        if fenced { Self::Fenced(error) } else { Self::Failed(error) }
    }
}

/// Keeps the first delivery that failed.
#[derive(Default)]
struct Failures {
    first: Arc<Mutex<Option<KafkaError>>>,
}

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
    }
}

impl TransactionalProducer {
    /// Opens `transactional_id`, which fences every producer that held it and settles what they left
    /// open, within `patience`. `timeout` bounds every commit, and is how long Kafka keeps a transaction open.
    pub fn open(
        broker: &Broker,
        transactional_id: &str,
        timeout: Duration,
        patience: Duration,
    ) -> Result<Self, TransactionError> {
        let mut config = broker.producer();
        config.set("transactional.id", transactional_id);
        config.set("transaction.timeout.ms", timeout.as_millis().to_string());
        config.set("message.timeout.ms", timeout.as_millis().to_string());
        config.set("linger.ms", "0");
        let created = config.create_with_context(Failures::default());
        let producer: BaseProducer<Failures> = created.map_err(|error| TransactionError::new(error, None))?;
        // librdkafka looks for the coordinator at once, and again only after half a second: it must be connected
        // by then.
        let connected = producer.client().fetch_cluster_id(patience).is_some();
        if !connected {
            return Err(TransactionError::TimedOut(patience));
        }
        let opened = producer.init_transactions(patience);
        opened.map_err(|error| TransactionError::new(error, Some(producer.client())))?;
        Ok(Self { producer, timeout })
    }

    /// Begins a transaction.
    pub fn begin(&mut self) -> Result<Transaction<'_>, TransactionError> {
        let begun = self.producer.begin_transaction();
        begun.map_err(|error| TransactionError::new(error, Some(self.producer.client())))?;
        Ok(Transaction { producer: &self.producer, timeout: self.timeout })
    }
}

/// An open transaction.
#[must_use = "a transaction that is not committed writes nothing"]
pub struct Transaction<'p> {
    producer: &'p BaseProducer<Failures>,
    timeout: Duration,
}

impl Transaction<'_> {
    /// Adds a record; `timestamp_ms` becomes its `CreateTime`.
    pub fn send(&mut self, topic: &str, key: &str, value: &[u8], timestamp_ms: i64) -> Result<(), TransactionError> {
        let deadline = Instant::now() + self.timeout;
        let mut record = BaseRecord::to(topic).key(key).payload(value).timestamp(timestamp_ms);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    record = back;
                    self.producer.poll(POLL);
                }
                Err((error, _)) => return Err(TransactionError::new(error, Some(self.producer.client()))),
            }
        }
    }

    /// Commits; when it returns, readers of committed records have all of it.
    pub fn commit(self) -> Result<(), TransactionError> {
        // Waiting here first spares the 100 ms that the commit's own flush takes at least.
        let deadline = Instant::now() + self.timeout;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= deadline {
                return Err(TransactionError::TimedOut(self.timeout));
            }
            self.producer.poll(POLL);
        }
        let failed = self.producer.context().first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outcome = failed.map_or_else(|| self.producer.commit_transaction(self.timeout), Err);
        outcome.map_err(|error| TransactionError::new(error, Some(self.producer.client())))
    }
}
