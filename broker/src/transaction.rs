//! A transactional producer: the records of a transaction are all visible to committed readers, or none is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::client_log::{count_client_error, error_code};
use crate::{Broker, log_client_error};

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A producer with a transactional id. All its calls block.
///
/// After any error the producer must not be used again: drop it and open another, which resolves a transaction that is
/// in doubt (librdkafka lacks KIP-890), then read back the log to see what was committed.
pub struct TransactionalProducer {
    producer: BaseProducer<DeliveryFailures>,
    timeout: Duration,
}

/// An error after which a transaction is not known to be committed.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// Another producer has opened the same transactional id.
    #[error("fenced: another producer has opened the transactional id: {0}")]
    Fenced(KafkaError),
    /// Any other error. A failed commit is in doubt.
    #[error("the transaction failed: {0}")]
    Failed(KafkaError),
    /// Kafka did not answer in time, or did not acknowledge the records in time.
    #[error("timed out: no answer from Kafka within {0:?}")]
    TimedOut(Duration),
}

impl TransactionError {
    /// Classifies `error` and the fatal error of `client`: a producer that is fenced while it has records in flight
    /// reports them as purged, and only its fatal error has the cause.
    fn new(error: KafkaError, client: Option<&Client<DeliveryFailures>>) -> Self {
        let code = error_code(&error);
        count_client_error(&error);
        let fatal = client.and_then(Client::fatal_error).map(|(code, _)| code);
        // The code decides, whether or not librdkafka marks the error as fatal or abortable.
        let fenced = [code, fatal].into_iter().flatten().any(|code| {
            matches!(
                code,
                RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::Fenced | RDKafkaErrorCode::InvalidProducerEpoch
            )
        });
        if fenced { Self::Fenced(error) } else { Self::Failed(error) }
    }
}

/// A producer context that keeps the error of the first failed delivery.
#[derive(Default)]
struct DeliveryFailures {
    first: Arc<Mutex<Option<KafkaError>>>,
}

impl ClientContext for DeliveryFailures {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }
}

impl ProducerContext for DeliveryFailures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
    }
}

/// A transactional producer that has yet to open its transactional id: it fences nobody, and connects to Kafka
/// meanwhile.
pub struct UnopenedProducer {
    producer: BaseProducer<DeliveryFailures>,
    timeout: Duration,
}

impl UnopenedProducer {
    /// Creates a producer for `transactional_id`. `timeout` bounds each send and commit, and is the transaction
    /// timeout, after which Kafka aborts an open transaction.
    pub fn new(broker: &Broker, transactional_id: &str, timeout: Duration) -> Result<Self, TransactionError> {
        let mut config = broker.producer_settings();
        config.set("transactional.id", transactional_id);
        config.set("transaction.timeout.ms", timeout.as_millis().to_string());
        config.set("message.timeout.ms", timeout.as_millis().to_string());
        config.set("linger.ms", "0");
        let created = config.create_with_context(DeliveryFailures::default());
        Ok(Self { producer: created.map_err(|error| TransactionError::new(error, None))?, timeout })
    }

    /// Opens the transactional id, which fences every producer that has it open and aborts or completes their
    /// transactions, within `init_timeout`.
    pub fn open(self, init_timeout: Duration) -> Result<TransactionalProducer, TransactionError> {
        let Self { producer, timeout } = self;
        // Connect first: librdkafka looks up the coordinator at once, and if it is not connected yet, again only after
        // half a second.
        let connected = producer.client().fetch_cluster_id(init_timeout).is_some();
        if !connected {
            return Err(TransactionError::TimedOut(init_timeout));
        }
        match producer.init_transactions(init_timeout) {
            Ok(()) => Ok(TransactionalProducer { producer, timeout }),
            Err(error) if error_code(&error) == Some(RDKafkaErrorCode::OperationTimedOut) => {
                Err(TransactionError::TimedOut(init_timeout))
            }
            Err(error) => Err(TransactionError::new(error, Some(producer.client()))),
        }
    }
}

impl TransactionalProducer {
    /// Creates a producer as [`UnopenedProducer::new`] does and opens its transactional id at once.
    pub fn open(
        broker: &Broker,
        transactional_id: &str,
        timeout: Duration,
        init_timeout: Duration,
    ) -> Result<Self, TransactionError> {
        UnopenedProducer::new(broker, transactional_id, timeout)?.open(init_timeout)
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
    producer: &'p BaseProducer<DeliveryFailures>,
    timeout: Duration,
}

impl Transaction<'_> {
    /// Sends a record in this transaction; `timestamp_ms` becomes its `CreateTime`.
    pub fn send(&mut self, topic: &str, key: &str, value: &[u8], timestamp_ms: i64) -> Result<(), TransactionError> {
        let deadline = Instant::now() + self.timeout;
        let mut record = BaseRecord::to(topic).key(key).payload(value).timestamp(timestamp_ms);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned))
                    if Instant::now() < deadline =>
                {
                    record = returned;
                    self.producer.poll(POLL_INTERVAL);
                }
                Err((error, _)) => return Err(self.failed(error)),
            }
        }
    }

    /// Commits the transaction; on success, its records are visible to `read_committed` consumers.
    pub fn commit(self) -> Result<(), TransactionError> {
        // Waiting for the deliveries first saves the 100 ms that the flush within the commit takes at least.
        self.wait_for_deliveries()?;
        self.producer.commit_transaction(self.timeout).map_err(|error| self.failed(error))
    }

    /// Aborts the transaction, once its records are in the log.
    pub fn abort(self) -> Result<(), TransactionError> {
        self.wait_for_deliveries()?;
        self.producer.abort_transaction(self.timeout).map_err(|error| self.failed(error))
    }

    /// Waits until Kafka has accepted all records, or refused one.
    fn wait_for_deliveries(&self) -> Result<(), TransactionError> {
        let deadline = Instant::now() + self.timeout;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= deadline {
                return Err(TransactionError::TimedOut(self.timeout));
            }
            self.producer.poll(POLL_INTERVAL);
        }
        let failed = self.producer.context().first.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), |error| Err(self.failed(error)))
    }

    fn failed(&self, error: KafkaError) -> TransactionError {
        TransactionError::new(error, Some(self.producer.client()))
    }
}
