//! The connection to a cluster.

use std::time::Duration;

use backbeat_broker::{
    Broker, KafkaArgs, ReadError, Registry, RegistryError, Sender, SettingsError, TopicError, TopicName,
    wait_for_topics,
};
use backbeat_schemas::StatusClaim;
use tokio::runtime::Handle;

use crate::{Beats, ClaimSender, Tasks};

/// The time for which the delivery of a claim is retried: a much later claim would be late anyway.
const DELIVERY_TIMEOUT: Duration = Duration::from_mins(5);
/// The interval at which an agent probes its Kafka clients: there may be thousands of agents.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A connection to a BACKBEAT cluster: its Kafka and its schema registry. The entry point of the SDK.
#[derive(Debug, Clone)]
pub struct Connection {
    broker: Broker,
    registry: Registry,
}

/// An error of connecting to a cluster that a retry does not resolve.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The Kafka properties file cannot be read or is malformed.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The cluster's topics have wrong settings.
    #[error(transparent)]
    Topics(#[from] TopicError),
    /// The CA certificate of the registry cannot be used, or the registry rejects the schema of claims.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A Kafka client cannot be created.
    #[error("cannot create a Kafka client: {0}")]
    Kafka(Box<dyn std::error::Error + Send + Sync>),
    /// The reader of beats cannot be created.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Connection {
    /// Creates a connection without waiting for Kafka or the registry: it may be used while they are unavailable.
    /// `client_id` identifies the agent in the brokers' logs.
    ///
    /// Fails only if the settings are wrong ([`ConnectError::Settings`], [`ConnectError::Registry`]).
    pub fn new(args: &KafkaArgs, client_id: &str) -> Result<Self, ConnectError> {
        let broker = Broker::new(args, client_id)?.with_probe_interval(PROBE_INTERVAL);
        Ok(Self { broker, registry: Registry::new(args)? })
    }

    /// Creates a connection, and waits until Kafka, the topics and the registry are available; logs what it waits for.
    ///
    /// Fails if the settings are wrong, if topics have wrong settings, or if the registry rejects the schema of claims.
    pub async fn open(args: &KafkaArgs, client_id: &str) -> Result<Self, ConnectError> {
        let connection = Self::new(args, client_id)?;
        wait_for_topics(&connection.broker, &[TopicName::BeatFrames, TopicName::StatusClaims]).await?;
        connection.register_claim_schema().await?;
        Ok(connection)
    }

    /// Starts a stream of beats, from the newest one on, with local beats while none is heard. Call it once, and clone
    /// the stream for each listener.
    ///
    /// Fails only if a Kafka client cannot be created.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime.
    pub fn beats(&self) -> Result<Beats, ConnectError> {
        Ok(Beats::start(&self.broker, &self.registry, &Handle::current())?)
    }

    /// Starts to send a claim on each of `beats` for every task that is then created with [`Tasks::task`].
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime.
    pub fn tasks(&self, beats: &Beats) -> Tasks {
        Tasks::start(self.clone(), beats.clone())
    }

    /// Creates a claim sender, for agents that make each claim themselves instead of using [`Tasks`]. Waits while the
    /// registry is unavailable.
    ///
    /// Fails if the registry rejects the schema of claims, or if a Kafka client cannot be created.
    pub async fn claim_sender(&self) -> Result<ClaimSender, ConnectError> {
        let schema_id = self.register_claim_schema().await?;
        let sender = Sender::new(&self.broker, TopicName::StatusClaims, Some(DELIVERY_TIMEOUT));
        let sender = sender.map_err(|error| ConnectError::Kafka(error.into()))?;
        Ok(ClaimSender::new(sender, self.broker.topics().name(TopicName::StatusClaims), schema_id))
    }

    /// Registers the schema of claims and returns its id.
    async fn register_claim_schema(&self) -> Result<u32, RegistryError> {
        self.registry.register::<StatusClaim>(&self.broker.topics().subject(TopicName::StatusClaims)).await
    }

    /// Creates a claim sender; retries after every error.
    pub(crate) async fn wait_for_claim_sender(&self) -> ClaimSender {
        loop {
            match self.claim_sender().await {
                Ok(claim_sender) => return claim_sender,
                Err(error) => tracing::warn!(%error, "cannot create the claim sender; retrying"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}
