//! Client settings: what the user gave, and what our guarantees need.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use crate::client_log::show_client_errors;
use crate::{ClientLog, KafkaArgs, Reader, Topics};

/// The largest record that we send: a claim of Kafka's default limit (1 MB) still fits the
/// dead-letter topic with its headers.
pub(crate) const MAX_RECORD_BYTES: usize = 2 * 1024 * 1024;

/// A Kafka cluster and how to reach it.
#[derive(Debug, Clone)]
pub struct Broker {
    base: ClientConfig,
    bootstrap_servers: String,
    topics: Topics,
}

/// The properties file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("reading the Kafka properties file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not `key=value`.
    #[error("{path}, line {line}: {text:?} is not key=value")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What stands there.
        text: String,
    },
}

impl Broker {
    /// The cluster that `args` name; `client_id` shows in its logs.
    pub fn new(args: &KafkaArgs, client_id: &str) -> Result<Self, SettingsError> {
        show_client_errors();
        let mut base = ClientConfig::new();
        if let Some(path) = &args.kafka_config {
            for (key, value) in read_properties(path)? {
                base.set(key, value);
            }
        }
        base.set("bootstrap.servers", &args.bootstrap_servers);
        base.set("client.id", client_id);
        // Added partitions are seen soon (the default is 5 minutes).
        base.set("topic.metadata.refresh.interval.ms", "5000");
        Ok(Self { base, bootstrap_servers: args.bootstrap_servers.clone(), topics: Topics::new(&args.topic_prefix) })
    }

    /// The brokers, for messages.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The cluster's topics.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Settings of an administrative client.
    pub(crate) fn admin(&self) -> ClientConfig {
        self.base.clone()
    }

    /// A reader of committed records outside any group.
    pub fn reader(&self) -> KafkaResult<Reader> {
        self.reader_settings().create_with_context(ClientLog)
    }

    /// A reader that jumps about instead of following: it does not linger at the end of the log.
    pub(crate) fn searcher(&self) -> KafkaResult<Reader> {
        let mut config = self.reader_settings();
        config.set("fetch.wait.max.ms", "2");
        config.create_with_context(ClientLog)
    }

    fn reader_settings(&self) -> ClientConfig {
        let mut config = self.base.clone();
        // librdkafka wants a group even for manual assignment; nothing is ever committed to it.
        config.set("group.id", format!("{}readers", self.topics.prefix()));
        config.set("enable.auto.commit", "false");
        config.set("isolation.level", "read_committed");
        config.set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest");
        // A seek waits for the fetch before it, at most this long.
        config.set("fetch.wait.max.ms", "50");
        config.set("fetch.queue.backoff.ms", "10");
        config.set("fetch.message.max.bytes", MAX_RECORD_BYTES.to_string());
        config
    }

    /// Settings of a member of reverb's group, which reads `statusclaims`.
    pub fn group_member(&self, protocol: GroupProtocol) -> ClientConfig {
        let mut config = self.reader_settings();
        config.set("group.id", self.topics.group());
        config.set("enable.auto.offset.store", "false");
        match protocol {
            GroupProtocol::Classic => {
                config.set("partition.assignment.strategy", "cooperative-sticky");
                // A member that died is noticed in 6 s, the least that Kafka allows by default.
                config.set("session.timeout.ms", "6000");
                // A rebalance is told of in the answer to a heartbeat, and takes two rounds.
                config.set("heartbeat.interval.ms", "1000");
            }
            // The broker assigns, and knows the timeouts (group.consumer.session.timeout.ms).
            GroupProtocol::Consumer => {
                config.set("group.protocol", "consumer");
            }
        }
        // A cold replay is bound by the fetch queue, not by the network.
        config.set("queued.min.messages", "200000");
        config.set("queued.max.messages.kbytes", "65536");
        config
    }

    /// Settings of an idempotent producer that places keys as Java clients do.
    pub(crate) fn producer(&self) -> ClientConfig {
        let mut config = self.base.clone();
        config.set("enable.idempotence", "true");
        config.set("partitioner", "murmur2_random");
        config.set("message.max.bytes", MAX_RECORD_BYTES.to_string());
        config
    }
}

fn read_properties(path: &Path) -> Result<Vec<(String, String)>, SettingsError> {
    let text = fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let mut properties = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(SettingsError::Line { path: path.to_owned(), line: number + 1, text: line.to_owned() });
        };
        properties.push((key.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(properties)
}

/// The id of the Kafka cluster at `bootstrap_servers`, if it answers in time. Blocks.
pub fn cluster_id(bootstrap_servers: &str, timeout: Duration) -> Option<String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap_servers);
    // A probe of a port that nobody listens on yet is no news.
    config.set("log_level", "0");
    let client: BaseConsumer<Quiet> = config.create_with_context(Quiet).ok()?;
    client.client().fetch_cluster_id(timeout)
}

/// How the members of a group agree on who reads what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum GroupProtocol {
    /// Cooperative rebalances among the members, as every Kafka knows them.
    Classic,
    /// Assignments by the broker (KIP-848), from Kafka 4.0 on.
    Consumer,
}

/// Says nothing of connections that fail.
struct Quiet;

impl rdkafka::ClientContext for Quiet {
    fn error(&self, _: rdkafka::error::KafkaError, _: &str) {}
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
}

impl rdkafka::consumer::ConsumerContext for Quiet {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_and_bad_lines_named() {
        let dir = std::env::temp_dir().join(format!("backbeat-properties-{}", std::process::id()));
        fs::write(&dir, "# TLS\nsecurity.protocol = SSL\n\nssl.ca.location=/ca.pem\n").expect("writes");
        let read = read_properties(&dir).expect("well formed");
        assert_eq!(read, [("security.protocol".into(), "SSL".into()), ("ssl.ca.location".into(), "/ca.pem".into())]);
        fs::write(&dir, "a=b\nnonsense\n").expect("writes");
        let error = read_properties(&dir).expect_err("line 2 is wrong").to_string();
        assert!(error.ends_with("line 2: \"nonsense\" is not key=value"), "{error}");
        fs::remove_file(&dir).expect("removes");
    }
}
