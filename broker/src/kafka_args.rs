//! The Kafka flags of every program.

use std::path::PathBuf;

/// The addresses of Kafka and of the schema registry, and how to connect to them. A flag takes precedence over its
/// environment variable, and that over the default.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Kafka")]
pub struct KafkaArgs {
    /// Kafka brokers, as host:port,...
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", default_value = "localhost:9092", value_name = "HOST:PORT,...")]
    pub bootstrap_servers: String,

    /// Base URL of the schema registry's Confluent API. Its credentials belong into --kafka-config.
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_URL",
        default_value = "http://localhost:8085/apis/ccompat/v7",
        value_name = "URL"
    )]
    pub schema_registry: String,

    /// PEM file with the CA certificate that signed the schema registry's certificate, if this machine does not trust
    /// it already.
    #[arg(long, env = "SCHEMA_REGISTRY_CA", value_name = "FILE")]
    pub schema_registry_ca: Option<PathBuf>,

    /// File of librdkafka properties (key=value lines), such as those for SASL and TLS; and the schema registry's
    /// schema.registry.basic.auth.user.info=user:password.
    #[arg(long, env = "KAFKA_CONFIG", value_name = "FILE")]
    pub kafka_config: Option<PathBuf>,

    /// Prefix of every topic, consumer group and transactional id, so that several clusters can share one Kafka; it ends
    /// with '.', '-' or '_'.
    #[arg(long, env = "BACKBEAT_TOPIC_PREFIX", default_value = "", value_name = "PREFIX", value_parser = topic_prefix)]
    pub topic_prefix: String,
}

/// Parses a topic prefix. Without a separator at its end, an ACL for the prefix would also be one for longer prefixes.
fn topic_prefix(prefix: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if prefix.is_empty() || (prefix.ends_with(['.', '-', '_']) && prefix.len() <= 200 && prefix.chars().all(is_allowed))
    {
        Ok(prefix.to_owned())
    } else {
        Err("must end with '.', '-' or '_', and have at most 200 letters, digits, '.', '-' and '_'".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_prefix_ends_with_a_separator() {
        for allowed in ["", "a-", "team.a_", "-"] {
            assert_eq!(topic_prefix(allowed), Ok(allowed.to_owned()));
        }
        for refused in ["a", "a-b", "a b-", "ä-", &format!("{}-", "a".repeat(200))] {
            assert!(topic_prefix(refused).is_err(), "{refused}");
        }
    }
}
