//! The way to a cluster.

use std::time::Duration;

use backbeat_broker::{
    Broker, KafkaArgs, ReadError, Registry, RegistryError, Sender, SettingsError, TopicError, TopicName,
    wait_for_topics,
};
use backbeat_schemas::StatusClaim;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use crate::{Beats, Reporter, Tasks};

/// How long a claim is tried to be sent: it is of no use to anyone much later.
const GIVE_UP_AFTER: Duration = Duration::from_mins(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A connection to a BACKBEAT cluster.
#[derive(Debug, Clone)]
pub struct Connection {
    broker: Broker,
    registry: Registry,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The properties file cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The topics are not as they must be.
    #[error(transparent)]
    Topics(#[from] TopicError),
    /// The registry refuses our schema.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A Kafka client cannot be made.
    #[error("making a Kafka client: {0}")]
    Kafka(#[from] KafkaError),
    /// The frames cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Connection {
    /// The way to a cluster, whether its Kafka is there or not. `client_id` names the agent in Kafka's logs.
    pub fn new(args: &KafkaArgs, client_id: &str) -> Result<Self, ConnectError> {
        Ok(Self { broker: Broker::new(args, client_id)?, registry: Registry::new(args)? })
    }

    /// The same, once Kafka, its topics and the registry have answered; waits, with log lines, for one that is away.
    pub async fn open(args: &KafkaArgs, client_id: &str) -> Result<Self, ConnectError> {
        let connection = Self::new(args, client_id)?;
        wait_for_topics(&connection.broker, &[TopicName::BeatFrames, TopicName::StatusClaims]).await?;
        connection.claim_schema().await?;
        Ok(connection)
    }

    /// The beats, from the newest on; local ones while none is heard. Call inside a tokio runtime.
    pub fn beats(&self) -> Result<Beats, ConnectError> {
        Ok(Beats::start(&self.broker, &self.registry, &Handle::current())?)
    }

    /// The agent's tasks, claimed for on each of `beats`. Call inside a tokio runtime.
    pub fn tasks(&self, beats: &Beats) -> Tasks {
        Tasks::start(self.clone(), beats.clone())
    }

    /// A reporter of claims, for agents that want to make each of them themselves. Waits for a registry that is away.
    pub async fn reporter(&self) -> Result<Reporter, ConnectError> {
        let schema = self.claim_schema().await?;
        let sender = Sender::new(&self.broker, Some(GIVE_UP_AFTER))?;
        Ok(Reporter::new(sender, self.broker.topics().name(TopicName::StatusClaims), schema))
    }

    /// The registry's id of our claims' schema.
    async fn claim_schema(&self) -> Result<u32, RegistryError> {
        self.registry.register::<StatusClaim>(&self.broker.topics().subject(TopicName::StatusClaims)).await
    }

    /// The same, whatever it takes.
    pub(crate) async fn wait_for_reporter(&self) -> Reporter {
        loop {
            match self.reporter().await {
                Ok(reporter) => return reporter,
                Err(error) => tracing::warn!(%error, "no way to report yet"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}
