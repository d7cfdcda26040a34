//! Asks whether Kafka answers.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

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

    /// Returns the reason if Kafka does not answer within `timeout`. A client that got no answer is not used again: it may
    /// have lost its brokers for good (`client_watch.rs`). Blocks.
    pub fn check(&mut self, timeout: Duration) -> Result<(), String> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.broker.probe().map_err(|error| error.to_string())?,
        };
        let topic = self.broker.topics().name(TopicName::BeatFrames);
        client.fetch_watermarks(&topic, 0, timeout).map_err(|error| error.to_string())?;
        self.client = Some(client);
        Ok(())
    }
}
