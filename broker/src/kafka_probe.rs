//! Asks whether Kafka answers.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

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
        let answer = client.fetch_watermarks(&topic, 0, timeout);
        let refused = |error: &KafkaError| {
            use RDKafkaErrorCode::{TopicAuthorizationFailed, UnknownTopicOrPartition};
            matches!(error.rdkafka_error_code(), Some(TopicAuthorizationFailed | UnknownTopicOrPartition))
        };
        match answer {
            Err(error) if !refused(&error) => return Err(error.to_string()),
            // Kafka answers. The readers say what it refuses them.
            Err(_) | Ok(_) => self.client = Some(client),
        }
        Ok(())
    }
}
