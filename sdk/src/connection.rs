//! The way to a cluster.

use backbeat_broker::{
    Broker, KafkaArgs, ReadError, Registry, RegistryError, Sender, SettingsError, TopicError, TopicName,
    wait_for_topics,
};
use backbeat_schemas::StatusClaim;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use crate::{Beats, Reporter};

/// How long a claim is tried to be sent: it is of no use to anyone much later.
const GIVE_UP_AFTER: std::time::Duration = std::time::Duration::from_mins(5);

/// A connection to a BACKBEAT cluster.
#[derive(Debug, Clone)]
pub struct Connection {
    broker: Broker,
    registry: Registry,
    claim_schema: u32,
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
    /// Connects; waits, with log lines, for a Kafka or a registry that is away.
    pub async fn open(args: &KafkaArgs, client_id: &str) -> Result<Self, ConnectError> {
        let broker = Broker::new(args, client_id)?;
        let registry = Registry::new(&args.schema_registry)?;
        wait_for_topics(&broker).await?;
        let claim_schema = registry.register::<StatusClaim>(&broker.topics().subject(TopicName::StatusClaims)).await?;
        Ok(Self { broker, registry, claim_schema })
    }

    /// The beats, from the newest on. Call inside a tokio runtime.
    pub fn beats(&self) -> Result<Beats, ConnectError> {
        Ok(Beats::start(&self.broker, &self.registry, &Handle::current())?)
    }

    /// A reporter of claims.
    pub fn reporter(&self) -> Result<Reporter, ConnectError> {
        let sender = Sender::new(&self.broker, Some(GIVE_UP_AFTER))?;
        Ok(Reporter::new(sender, self.broker.topics().name(TopicName::StatusClaims), self.claim_schema))
    }
}
