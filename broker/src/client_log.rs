//! Errors that librdkafka reports outside of any call: logged, and counted in a metric.

use std::sync::LazyLock;

use prometheus::{IntCounter, IntCounterVec, register_int_counter, register_int_counter_vec};
use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// A `read_committed` consumer that belongs to no consumer group.
pub type Reader = BaseConsumer<ClientLog>;

/// Replaces the assignment of `reader` by the partitions and offsets of `assignment`.
///
/// librdkafka (up to 2.15 at least: its issue 5573) aborts the process if a partition is removed from the assignment
/// again before it has stopped after the first removal. A query of the current assignment is answered by librdkafka's
/// main thread, and so returns only after the stop.
pub fn assign(reader: &Reader, assignment: &TopicPartitionList) -> KafkaResult<()> {
    reader.assignment()?;
    reader.assign(assignment)
}

/// A client context that logs and counts errors, except for the end of a partition, which readers handle themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientLog;

impl ClientContext for ClientLog {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }
}

impl ConsumerContext for ClientLog {}

/// Logs and counts an error as [`ClientLog`] does; for other client contexts.
///
/// librdkafka retries after these errors by itself. An error that it cannot recover from is returned by the call that
/// it affects.
pub fn log_client_error(error: &KafkaError, reason: &str) {
    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
        count_client_error(error);
        tracing::warn!(%error, reason, "kafka client error");
    }
}

/// Returns librdkafka's code of an error, also of an error of a transaction.
pub(crate) fn error_code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    }
}

/// Counts an error that the caller logs.
pub(crate) fn count_client_error(error: &KafkaError) {
    let code = error_code(error).unwrap_or(RDKafkaErrorCode::Unknown);
    if let Some(errors) = &*ERRORS {
        errors.with_label_values(&[&format!("{code:?}")]).inc();
    }
}

/// The counter of errors of this process's Kafka clients, in Prometheus' default registry; `None` if the name is
/// already registered.
static ERRORS: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    let help = "Errors reported by librdkafka, such as unreachable brokers and rejected credentials or certificates.";
    let errors = register_int_counter_vec!("backbeat_kafka_client_errors_total", help, &["error"]).ok()?;
    // Prometheus sees no increase in a series that first appears with 1: those that alerts use start at 0.
    for code in [
        RDKafkaErrorCode::SSL,
        RDKafkaErrorCode::Authentication,
        RDKafkaErrorCode::TopicAuthorizationFailed,
        RDKafkaErrorCode::GroupAuthorizationFailed,
        RDKafkaErrorCode::ClusterAuthorizationFailed,
        RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        RDKafkaErrorCode::AllBrokersDown,
        RDKafkaErrorCode::BrokerTransportFailure,
        RDKafkaErrorCode::Resolve,
    ] {
        errors.with_label_values(&[&format!("{code:?}")]);
    }
    Some(errors)
});

/// The counter of replaced clients, in Prometheus' default registry; `None` if the name is already registered.
static REPLACED: LazyLock<Option<IntCounter>> = LazyLock::new(|| {
    let help = "Kafka clients of this process that lost all their brokers and were replaced.";
    register_int_counter!("backbeat_kafka_clients_replaced_total", help).ok()
});

/// Counts a client that was replaced.
pub(crate) fn count_replaced_client() {
    if let Some(replaced) = &*REPLACED {
        replaced.inc();
    }
}

/// Registers the counters, so that they are exported before the first error.
pub(crate) fn init_counters() {
    LazyLock::force(&ERRORS);
    LazyLock::force(&REPLACED);
}

/// Returns true if an error of a consumer's poll is transient: a broker is unreachable at the moment. librdkafka
/// retries by itself, and [`log_client_error`] has logged the error.
pub fn is_transient(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    let code = error.rdkafka_error_code();
    matches!(code, Some(AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve))
}
