//! The Kafka and the registry to use: our own, or others that the environment names.

use std::env;

use crate::{Devstack, DevstackError, Options};

const BOOTSTRAP: &str = "KAFKA_BOOTSTRAP_SERVERS";
const REGISTRY: &str = "SCHEMA_REGISTRY_URL";

/// A Kafka and a schema registry.
#[derive(Debug)]
pub enum Stack {
    /// Started here.
    Local(Box<Devstack>),
    /// Named by `KAFKA_BOOTSTRAP_SERVERS` and `SCHEMA_REGISTRY_URL`, and left as it is.
    Outside {
        /// host:port,...
        bootstrap_servers: String,
        /// Base URL of the Confluent API.
        schema_registry: String,
    },
}

impl Stack {
    /// The stack that the environment names; without one, a local one with `options`.
    pub fn start(options: &Options) -> Result<Self, DevstackError> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        match (set(BOOTSTRAP), set(REGISTRY)) {
            (Some(bootstrap_servers), Some(schema_registry)) => {
                Ok(Self::Outside { bootstrap_servers, schema_registry })
            }
            (None, None) => Ok(Self::Local(Box::new(Devstack::start(options)?))),
            (Some(_), None) => Err(DevstackError::HalfOutside { set: BOOTSTRAP, unset: REGISTRY }),
            (None, Some(_)) => Err(DevstackError::HalfOutside { set: REGISTRY, unset: BOOTSTRAP }),
        }
    }

    /// host:port,... of the brokers.
    pub fn bootstrap_servers(&self) -> String {
        match self {
            Self::Local(stack) => stack.bootstrap_servers(),
            Self::Outside { bootstrap_servers, .. } => bootstrap_servers.clone(),
        }
    }

    /// Base URL of the registry's Confluent API.
    pub fn schema_registry(&self) -> String {
        match self {
            Self::Local(stack) => stack.schema_registry(),
            Self::Outside { schema_registry, .. } => schema_registry.clone(),
        }
    }
}
