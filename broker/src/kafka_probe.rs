//! Asks whether Kafka answers.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;

use crate::broker::SilentContext;
use crate::{Broker, TopicName};

/// A client that asks Kafka for the end of `beatframes`, and whose errors are expected.
pub struct KafkaProbe {
    broker: Broker,
    client: Option<BaseConsumer<SilentContext>>,
}

impl KafkaProbe {
    /// Creates a probe of `broker`.
    pub fn new(broker: &Broker) -> Self {
        Self { broker: broker.clone(), client: None }
    }

    /// Returns the reason if Kafka does not answer within `timeout`, or twice that for a new client, which has to connect. A client
    /// that got no answer is not used again: it may have lost its brokers for good (`client_watch.rs`). Blocks.
    pub fn check(&mut self, timeout: Duration) -> Result<(), String> {
        let (client, timeout) = match self.client.take() {
            Some(client) => (client, timeout),
            None => (self.broker.probe().map_err(|error| error.to_string())?, timeout * 2),
        };
        let topic = self.broker.topics().name(TopicName::BeatFrames);
        if let Err(error) = client.fetch_watermarks(&topic, 0, timeout)
            && !is_refused(&client, &topic, &error, timeout)
        {
            return Err(error.to_string());
        }
        // Kafka answers. The readers say what it refuses them.
        self.client = Some(client);
        Ok(())
    }
}

/// Returns true if `error` means that Kafka answers, and has no such topic or keeps it from this client. librdkafka says
/// `UnknownPartition` then (2.12.1, `rd_kafka_topic_partition_list_get_leaders`), and also if a partition has no leader.
fn is_refused(client: &BaseConsumer<SilentContext>, topic: &str, error: &KafkaError, timeout: Duration) -> bool {
    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::UnknownPartition) {
        return false;
    }
    let Ok(metadata) = client.fetch_metadata(Some(topic), timeout) else { return false };
    metadata.topics().iter().filter_map(MetadataTopic::error).any(|error| {
        use RDKafkaErrorCode::{TopicAuthorizationFailed, UnknownTopicOrPartition};
        matches!(error.into(), TopicAuthorizationFailed | UnknownTopicOrPartition)
    })
}
