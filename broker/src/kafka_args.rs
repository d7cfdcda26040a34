//! The flags about Kafka that every program has.

use std::path::PathBuf;

/// Where Kafka and the registry are. Flag, then environment, then default.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Kafka")]
pub struct KafkaArgs {
    /// Kafka brokers, as host:port,...
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", default_value = "localhost:9092", value_name = "HOST:PORT,...")]
    pub bootstrap_servers: String,

    /// Base URL of the schema registry's Confluent API; credentials may stand in it.
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_URL",
        default_value = "http://localhost:8085/apis/ccompat/v7",
        value_name = "URL"
    )]
    pub schema_registry: String,

    /// A PEM file with the authority that signed the schema registry's certificate, if it is not one that this machine
    /// trusts.
    #[arg(long, env = "SCHEMA_REGISTRY_CA", value_name = "FILE")]
    pub schema_registry_ca: Option<PathBuf>,

    /// A file of librdkafka properties (key=value lines), as for SASL and TLS.
    #[arg(long, env = "KAFKA_CONFIG", value_name = "FILE")]
    pub kafka_config: Option<PathBuf>,

    /// Put before every topic, group and transactional id, so that clusters can share a Kafka.
    #[arg(long, env = "BACKBEAT_TOPIC_PREFIX", default_value = "", value_name = "PREFIX")]
    pub topic_prefix: String,
}
