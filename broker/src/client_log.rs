//! What librdkafka says of itself.

use std::sync::LazyLock;

use prometheus::{IntCounterVec, register_int_counter_vec};
use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// A reader of committed records, outside any group.
pub type Reader = BaseConsumer<ClientLog>;

/// Sends `reader` to the partitions and offsets of `assignment`.
///
/// librdkafka (up to 2.15 at least: its issue 5573) aborts the process where a partition is taken away for the second
/// time before it has stopped for the first. A question that its main thread answers comes back after the stop.
pub fn assign(reader: &Reader, assignment: &TopicPartitionList) -> KafkaResult<()> {
    reader.assignment()?;
    reader.assign(assignment)
}

/// Logs what librdkafka reports, but for the end of a partition, which our readers look for.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientLog;

impl ClientContext for ClientLog {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }
}

impl ConsumerContext for ClientLog {}

/// What [`ClientLog`] does, for other contexts.
///
/// librdkafka goes on trying after these; what cannot go on is an error of the call that needs it.
pub fn log_client_error(error: &KafkaError, reason: &str) {
    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
        count_client_error(error);
        tracing::warn!(%error, reason, "kafka client");
    }
}

/// Counts an error that its caller logs.
pub(crate) fn count_client_error(error: &KafkaError) {
    let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
    if let Some(errors) = &*ERRORS {
        errors.with_label_values(&[&format!("{code:?}")]).inc();
    }
}

/// Errors of this process's Kafka clients, in Prometheus' default registry; `None` if another took the name.
static ERRORS: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    let help = "What librdkafka reported: brokers out of reach, refused credentials or certificates, ...";
    let errors = register_int_counter_vec!("backbeat_kafka_client_errors_total", help, &["error"]).ok()?;
    // A counter that first shows itself at 1 has not risen, for Prometheus: what alerts look at begins at 0.
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

/// Shows the count of errors, though there were none yet.
pub(crate) fn show_client_errors() {
    LazyLock::force(&ERRORS);
}

/// Whether a consumer's poll only says that a broker cannot be reached just now. librdkafka goes on
/// trying, and [`log_client_error`] has logged it.
pub fn is_transient(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    let code = error.rdkafka_error_code();
    matches!(code, Some(AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve))
}
