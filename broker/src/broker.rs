//! Client settings: the user's properties, and on top of them the settings that BACKBEAT's guarantees require.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use crate::client_log::init_counters;
use crate::{ClientLog, KafkaArgs, Reader, Topics};

/// The largest record that a producer sends.
pub(crate) const MAX_RECORD_BYTES: usize = 2 * 1024 * 1024;
/// The largest batch of claims, in bytes: the largest valid claim has less than 6,000. The required setting of
/// `statusclaims`, too.
pub(crate) const MAX_CLAIM_BATCH_BYTES: &str = "65536";
/// The largest response to a fetch, in bytes as compressed: librdkafka decompresses all of it at once. Kafka stores claims
/// compressed with lz4, by a factor of 255 at most, so it takes 255 MiB at worst. A larger record comes in a response of its
/// own.
const MAX_FETCH_BYTES: usize = 1024 * 1024;

/// The property of the schema registry's `user:password`, as in Confluent's clients; librdkafka does not know it.
pub(crate) const REGISTRY_CREDENTIALS: &str = "schema.registry.basic.auth.user.info";

/// The interval at which the clients of services are probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The client settings of a Kafka cluster, and BACKBEAT's topic names there.
#[derive(Debug, Clone)]
pub struct Broker {
    base: ClientConfig,
    client_id: String,
    probe_interval: Duration,
    bootstrap_servers: String,
    topics: Topics,
}

/// An error in the Kafka properties file.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the Kafka properties file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line is not `key=value`. Its text is not shown: it may be a secret.
    #[error("{path}, line {line} is not key=value")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
    },
}

impl Broker {
    /// Creates the client settings of the Kafka cluster that `args` name; connects to nothing yet. `client_id` appears in
    /// the brokers' logs.
    pub fn new(args: &KafkaArgs, client_id: &str) -> Result<Self, SettingsError> {
        init_counters();
        let mut base = ClientConfig::new();
        // Once Kafka is available again, a client reconnects within a second (the default is 10). A properties file may
        // say otherwise.
        base.set("reconnect.backoff.max.ms", "1000");
        if let Some(path) = &args.kafka_config {
            for (key, value) in read_properties(path)? {
                if key != REGISTRY_CREDENTIALS {
                    base.set(key, value);
                }
            }
        }
        base.set("bootstrap.servers", &args.bootstrap_servers);
        // Discovers added partitions soon (the default is 5 minutes).
        base.set("topic.metadata.refresh.interval.ms", "5000");
        Ok(Self {
            base,
            client_id: client_id.to_owned(),
            probe_interval: PROBE_INTERVAL,
            bootstrap_servers: args.bootstrap_servers.clone(),
            topics: Topics::new(&args.topic_prefix),
        })
    }

    /// Sets the interval at which long-lived clients are probed ([`crate::ClientWatch`]); one second otherwise. There may
    /// be many agents, and each probe is a request to a broker.
    #[must_use]
    pub fn with_probe_interval(self, probe_interval: Duration) -> Self {
        Self { probe_interval, ..self }
    }

    /// Returns the interval at which long-lived clients are probed.
    pub(crate) fn probe_interval(&self) -> Duration {
        self.probe_interval
    }

    /// Returns the bootstrap servers, as host:port,...
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Returns BACKBEAT's topic names.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Returns the settings of a new client. Its client id is unique within this process, so that a lost client and its
    /// successor differ in the brokers' logs.
    pub(crate) fn client_settings(&self) -> ClientConfig {
        static CLIENTS: AtomicU32 = AtomicU32::new(1);
        let mut config = self.base.clone();
        config.set("client.id", format!("{}-{}", self.client_id, CLIENTS.fetch_add(1, Ordering::Relaxed)));
        config
    }

    /// Creates a client that is used only to check whether the brokers answer. It logs nothing.
    pub(crate) fn probe(&self) -> KafkaResult<BaseConsumer<SilentContext>> {
        let mut config = self.client_settings();
        config.set("log_level", "0");
        config.create_with_context(SilentContext)
    }

    /// Creates a `read_committed` consumer that belongs to no consumer group.
    pub fn reader(&self) -> KafkaResult<Reader> {
        self.reader_settings().create_with_context(ClientLog)
    }

    /// Creates a reader for random access that also sees records of transactions that are open or aborted.
    pub(crate) fn uncommitted_reader(&self) -> KafkaResult<Reader> {
        let mut config = self.random_access_settings();
        config.set("isolation.level", "read_uncommitted");
        config.create_with_context(ClientLog)
    }

    /// Creates a reader for random access: a fetch at the end of the log returns at once, instead of waiting for new
    /// records and so delaying the next seek.
    pub fn random_access_reader(&self) -> KafkaResult<Reader> {
        self.random_access_settings().create_with_context(ClientLog)
    }

    fn random_access_settings(&self) -> ClientConfig {
        let mut config = self.reader_settings();
        config.set("fetch.wait.max.ms", "2");
        config
    }

    fn reader_settings(&self) -> ClientConfig {
        let mut config = self.client_settings();
        // librdkafka requires a group id even for manual assignment; nothing is ever committed to it.
        config.set("group.id", format!("{}readers", self.topics.prefix()));
        config.set("enable.auto.commit", "false");
        config.set("isolation.level", "read_committed");
        config.set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest");
        // A seek waits for the fetch in flight, at most this long.
        config.set("fetch.wait.max.ms", "50");
        config.set("fetch.queue.backoff.ms", "10");
        config.set("fetch.message.max.bytes", MAX_FETCH_BYTES.to_string());
        config.set("fetch.max.bytes", MAX_FETCH_BYTES.to_string());
        config
    }

    /// Returns the settings of a member of reverb's consumer group, which reads `statusclaims`. With the classic protocol a
    /// dead member is detected within `session_timeout`.
    pub fn group_member(&self, protocol: GroupProtocol, session_timeout: Duration) -> ClientConfig {
        let mut config = self.reader_settings();
        config.set("group.id", self.topics.group());
        config.set("enable.auto.offset.store", "false");
        // `RecordQueue` says why.
        config.set("enable.partition.eof", "false");
        match protocol {
            GroupProtocol::Classic => {
                config.set("partition.assignment.strategy", "cooperative-sticky");
                config.set("session.timeout.ms", session_timeout.as_millis().to_string());
                // Members learn of a rebalance from the response to a heartbeat, and a rebalance takes two rounds.
                config.set("heartbeat.interval.ms", "1000");
            }
            // The timeouts are the broker's settings (group.consumer.session.timeout.ms).
            GroupProtocol::Consumer => {
                config.set("group.protocol", "consumer");
            }
        }
        // In a cold replay a longer queue takes more memory and is not faster (docs/benchmarks.md, "Throughput").
        config.set("queued.min.messages", "50000");
        config.set("queued.max.messages.kbytes", "65536");
        config
    }

    /// Returns the settings of an idempotent producer that partitions keys as Java clients do.
    pub(crate) fn producer_settings(&self) -> ClientConfig {
        let mut config = self.client_settings();
        config.set("enable.idempotence", "true");
        config.set("partitioner", "murmur2_random");
        config.set("message.max.bytes", MAX_RECORD_BYTES.to_string());
        config
    }
}

pub(crate) fn read_properties(path: &Path) -> Result<Vec<(String, String)>, SettingsError> {
    let text = fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let mut properties = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(SettingsError::Line { path: path.to_owned(), line: number + 1 });
        };
        properties.push((key.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(properties)
}

/// Returns the id of the Kafka cluster at `bootstrap_servers`, or `None` if it does not answer within `timeout`.
/// Blocks.
pub fn kafka_cluster_id(bootstrap_servers: &str, timeout: Duration) -> Option<String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap_servers);
    // Callers probe ports that nothing listens on yet: connection errors are expected.
    config.set("log_level", "0");
    let client: BaseConsumer<SilentContext> = config.create_with_context(SilentContext).ok()?;
    client.client().fetch_cluster_id(timeout)
}

/// The protocol by which a consumer group assigns partitions to its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum GroupProtocol {
    /// Cooperative rebalances by the members, supported by every Kafka version.
    Classic,
    /// Assignment by the broker (KIP-848), from Kafka 4.0 on.
    Consumer,
}

/// A client context that logs nothing.
pub(crate) struct SilentContext;

impl rdkafka::ClientContext for SilentContext {
    fn error(&self, _: rdkafka::error::KafkaError, _: &str) {}
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
}

impl rdkafka::consumer::ConsumerContext for SilentContext {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_properties_with_a_malformed_line_names_it() {
        let path = std::env::temp_dir().join(format!("backbeat-properties-{}", std::process::id()));
        fs::write(&path, "# TLS\nsecurity.protocol = SSL\n\nssl.ca.location=/ca.pem\n").expect("the file is written");
        let read = read_properties(&path).expect("the file is well formed");
        assert_eq!(read, [("security.protocol".into(), "SSL".into()), ("ssl.ca.location".into(), "/ca.pem".into())]);
        fs::write(&path, "a=b\nnonsense\n").expect("the file is written");
        let error = read_properties(&path).expect_err("line 2 is malformed").to_string();
        assert!(error.ends_with("line 2 is not key=value"), "{error}");
        fs::remove_file(&path).expect("the file is removed");
    }
}
