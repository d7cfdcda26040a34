//! The Kafka and the schema registry to use: local ones, or external ones that the environment names.

use std::env;

use crate::{Devstack, DevstackError, Options};

const BOOTSTRAP: &str = "KAFKA_BOOTSTRAP_SERVERS";
const REGISTRY: &str = "SCHEMA_REGISTRY_URL";

/// A Kafka and a schema registry.
#[derive(Debug)]
pub enum Stack {
    /// A stack that was started on this machine.
    Local(Box<Devstack>),
    /// An external stack, named by `KAFKA_BOOTSTRAP_SERVERS` and `SCHEMA_REGISTRY_URL`; never started or stopped here.
    External {
        /// The addresses of the brokers, `host:port,...`.
        bootstrap_servers: String,
        /// The base URL of the registry's Confluent API.
        schema_registry: String,
    },
}

impl Stack {
    /// Returns the external stack if the environment names one; otherwise starts a local one with `options`.
    pub fn start(options: &Options) -> Result<Self, DevstackError> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        match (set(BOOTSTRAP), set(REGISTRY)) {
            (Some(bootstrap_servers), Some(schema_registry)) => {
                Ok(Self::External { bootstrap_servers, schema_registry })
            }
            (None, None) => Ok(Self::Local(Box::new(Devstack::start(options)?))),
            (Some(_), None) => Err(DevstackError::IncompleteExternal { set: BOOTSTRAP, unset: REGISTRY }),
            (None, Some(_)) => Err(DevstackError::IncompleteExternal { set: REGISTRY, unset: BOOTSTRAP }),
        }
    }

    /// Returns the addresses of the brokers as `host:port,...`.
    pub fn bootstrap_servers(&self) -> String {
        match self {
            Self::Local(stack) => stack.bootstrap_servers(),
            Self::External { bootstrap_servers, .. } => bootstrap_servers.clone(),
        }
    }

    /// Returns the base URL of the registry's Confluent API.
    pub fn schema_registry(&self) -> String {
        match self {
            Self::Local(stack) => stack.schema_registry(),
            Self::External { schema_registry, .. } => schema_registry.clone(),
        }
    }
}
