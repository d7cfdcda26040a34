//! The topics of a BACKBEAT cluster: their names and settings, their creation and their verification.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::broker::{MAX_CLAIM_BATCH_BYTES, MAX_RECORD_BYTES};
use crate::{Broker, ClientLog};

const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The time in which a group commits an offset itself, or its members leave.
const GROUP_TIMEOUT: Duration = Duration::from_mins(2);
/// The largest number of errors logged for one failed request, since librdkafka may have tried several brokers.
const MAX_ERRORS: usize = 16;
const LEADER_POLL: Duration = Duration::from_millis(20);
const GIB: i64 = 1024 * 1024 * 1024;
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// The names of a cluster's topics, consumer group and transactional ids.
#[derive(Debug, Clone)]
pub struct Topics {
    prefix: String,
}

/// A topic of a BACKBEAT cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicName {
    /// Beats, written by pulse.
    BeatFrames,
    /// Claims, written by agents.
    StatusClaims,
    /// Reports, written by the merge.
    BarReports,
    /// Reverb's internal records: partials, which carry shares of windows, and done records of finished windows.
    BarPartials,
    /// Rosters: who needs attention in each window, by name, written by reverb.
    BarRosters,
    /// Invalid records of `statusclaims`, written by reverb.
    DeadLetters,
}

impl TopicName {
    /// All topics.
    pub const ALL: [Self; 6] = [
        Self::BeatFrames,
        Self::StatusClaims,
        Self::BarReports,
        Self::BarPartials,
        Self::BarRosters,
        Self::DeadLetters,
    ];

    /// Returns the name without prefix.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BeatFrames => "beatframes",
            Self::StatusClaims => "statusclaims",
            Self::BarReports => "barreports",
            Self::BarPartials => "barpartials",
            Self::BarRosters => "barrosters",
            Self::DeadLetters => "statusclaims.dlq",
        }
    }

    /// Returns the settings that BACKBEAT's guarantees rest on: an existing topic with other values is refused.
    fn required_settings(self) -> &'static [(&'static str, &'static str)] {
        // By default Kafka rejects records with timestamps more than an hour ahead, which a pulse leader with a wrong
        // clock would write.
        const CREATE_TIME: &[(&str, &str)] = &[
            ("cleanup.policy", "delete"),
            ("message.timestamp.type", "CreateTime"),
            ("message.timestamp.after.max.ms", "9223372036854775807"),
            ("unclean.leader.election.enable", "false"),
        ];
        const LOG_APPEND_TIME: &[(&str, &str)] = &[
            ("cleanup.policy", "delete"),
            ("message.timestamp.type", "LogAppendTime"),
            ("unclean.leader.election.enable", "false"),
        ];
        // Any agent may write claims. A batch of 64 KiB cannot be a bomb that takes a broker's memory when it is recompressed,
        // nor, with lz4, that of a consumer; gzip and zstd compress by factors of a thousand and more.
        const CLAIMS: &[(&str, &str)] = &[
            ("cleanup.policy", "delete"),
            ("message.timestamp.type", "LogAppendTime"),
            ("unclean.leader.election.enable", "false"),
            ("max.message.bytes", MAX_CLAIM_BATCH_BYTES),
            ("compression.type", "lz4"),
        ];
        const DEAD_LETTERS: &[(&str, &str)] = &[
            // The keys are unique but for replays, so compaction alone would never free any.
            ("cleanup.policy", "compact,delete"),
            ("message.timestamp.type", "LogAppendTime"),
            ("unclean.leader.election.enable", "false"),
        ];
        // A replay writes the same rosters again.
        const ROSTERS: &[(&str, &str)] = &[
            ("cleanup.policy", "compact,delete"),
            ("message.timestamp.type", "CreateTime"),
            ("message.timestamp.after.max.ms", "9223372036854775807"),
            ("unclean.leader.election.enable", "false"),
        ];
        match self {
            Self::BarRosters => ROSTERS,
            Self::BeatFrames | Self::BarReports => CREATE_TIME,
            Self::StatusClaims => CLAIMS,
            Self::BarPartials => LOG_APPEND_TIME,
            Self::DeadLetters => DEAD_LETTERS,
        }
    }

    /// Returns further settings of a new topic, which an operator may change later.
    fn initial_settings(self) -> Vec<(&'static str, String)> {
        match self {
            Self::BeatFrames | Self::BarReports => {
                vec![("retention.ms", "-1".into()), ("retention.bytes", "-1".into())]
            }
            Self::StatusClaims => {
                vec![("retention.ms", (7 * DAY_MS).to_string()), ("retention.bytes", (6 * GIB).to_string())]
            }
            Self::BarPartials => vec![("retention.ms", DAY_MS.to_string())],
            Self::BarRosters => {
                vec![("retention.ms", (30 * DAY_MS).to_string()), ("retention.bytes", (10 * GIB).to_string())]
            }
            Self::DeadLetters => vec![
                ("max.message.bytes", MAX_RECORD_BYTES.to_string()),
                ("retention.ms", (30 * DAY_MS).to_string()),
                ("retention.bytes", (10 * GIB).to_string()),
            ],
        }
    }
}

impl Topics {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Returns the prefix of every name.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns a topic's full name.
    pub fn name(&self, topic: TopicName) -> String {
        format!("{}{}", self.prefix, topic.as_str())
    }

    /// Returns the registry's subject for a topic's values (`TopicNameStrategy`).
    pub fn subject(&self, topic: TopicName) -> String {
        format!("{}-value", self.name(topic))
    }

    /// Returns the name of reverb's consumer group.
    pub fn group(&self) -> String {
        format!("{}reverb", self.prefix)
    }

    /// Returns the consumer group whose committed offset is the position of `backbeat notify`.
    pub fn notify_group(&self) -> String {
        format!("{}notify", self.prefix)
    }

    /// Returns the transactional id of the pulse leader, by which a new leader fences earlier ones.
    pub fn pulse_transactional_id(&self) -> String {
        format!("{}pulse", self.prefix)
    }

    /// Returns the transactional id of the merge, by which a new merge fences earlier ones.
    pub fn merge_transactional_id(&self) -> String {
        format!("{}reverb-merge", self.prefix)
    }
}

/// An error of creating or verifying topics.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// An admin or metadata request failed; a retry may succeed.
    #[error("a topic request to Kafka at {brokers} failed: {source}")]
    Kafka {
        /// The bootstrap servers.
        brokers: String,
        /// Kafka's error.
        source: KafkaError,
    },
    /// Kafka refused to create a topic.
    #[error("cannot create topic {topic}: {code}")]
    Create {
        /// The topic's full name.
        topic: String,
        /// Kafka's error code.
        code: RDKafkaErrorCode,
    },
    /// Topics do not exist; their full names.
    #[error("these topics are missing: {}; `backbeat topics` creates them", .0.join(", "))]
    Missing(Vec<String>),
    /// Topics exist with settings that break BACKBEAT's guarantees.
    #[error("topics exist with wrong settings:\n{}", .0.iter().map(|w| format!("  {w}")).collect::<Vec<_>>().join("\n"))]
    Wrong(Vec<WrongSetting>),
}

/// A wrong setting of an existing topic.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongSetting {
    topic: String,
    setting: String,
    found: String,
    allowed: String,
}

impl fmt::Display for WrongSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, setting, found, allowed } = self;
        write!(f, "{topic}: {setting} is {found}, must be {allowed}")
    }
}

/// Creates the topics that are missing and verifies those that exist; returns the full names of the new ones.
///
/// `claim_partitions` is the number of partitions of a new `statusclaims`, and the minimum for an existing one, since
/// partitions may be added. `replication` is the replication factor of new topics.
pub async fn ensure_topics(
    broker: &Broker,
    claim_partitions: i32,
    replication: i32,
) -> Result<Vec<String>, TopicError> {
    let existing = partitions(broker).await?;
    check(broker, &existing, claim_partitions).await?;
    let missing: Vec<TopicName> =
        TopicName::ALL.into_iter().filter(|topic| !existing.contains_key(topic.as_str())).collect();
    let names: Vec<String> = missing.iter().map(|topic| broker.topics().name(*topic)).collect();
    let min_isr = (replication - 1).max(1).to_string();
    let settings: Vec<Vec<(&str, String)>> = missing.iter().map(|topic| topic.initial_settings()).collect();
    let new: Vec<NewTopic<'_>> = missing
        .iter()
        .zip(&names)
        .zip(&settings)
        .map(|((topic, name), initial)| {
            let partitions = if *topic == TopicName::StatusClaims { claim_partitions } else { 1 };
            let new = NewTopic::new(name, partitions, TopicReplication::Fixed(replication))
                .set("min.insync.replicas", &min_isr);
            let new = topic.required_settings().iter().fold(new, |new, (key, value)| new.set(key, value));
            initial.iter().fold(new, |new, (key, value)| new.set(key, value))
        })
        .collect();
    if new.is_empty() {
        return Ok(names);
    }
    let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
    let results = admin(broker)?.create_topics(&new, &options).await.map_err(|source| kafka(broker, source))?;
    for result in results {
        match result {
            // Another process created the topic first, with the same settings.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(TopicError::Create { topic, code }),
        }
    }
    let (own_broker, new_names) = (broker.clone(), names.clone());
    let waiting = tokio::task::spawn_blocking(move || wait_for_leaders(&own_broker, &new_names, claim_partitions));
    waiting.await.expect("fetching offsets does not panic").map_err(|source| kafka(broker, source))?;
    Ok(names)
}

/// Creates a topic with one partition that is not one of [`TopicName`], such as a connector's control topic. Succeeds
/// if it exists already.
pub async fn ensure_topic(broker: &Broker, topic: &str, replication: i32) -> Result<(), TopicError> {
    let new = [NewTopic::new(topic, 1, TopicReplication::Fixed(replication))];
    let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
    let results = admin(broker)?.create_topics(&new, &options).await.map_err(|source| kafka(broker, source))?;
    match results.into_iter().next() {
        Some(Err((topic, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
            Err(TopicError::Create { topic, code })
        }
        _ => Ok(()),
    }
}

/// Commits the beginning of `topic`, which has one partition, as the offset of `group`, unless the group has an offset.
/// Blocks while members of the group refuse it, for two minutes at most: they may commit an offset themselves.
///
/// # Errors
///
/// [`TopicError::Kafka`], also if the group still has members and no offset.
pub fn ensure_group_offset(broker: &Broker, topic: &str, group: &str) -> Result<(), TopicError> {
    let deadline = Instant::now() + GROUP_TIMEOUT;
    let mut config = broker.client_settings();
    config.set("group.id", group);
    let try_once = |consumer: &BaseConsumer<ClientLog>| {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition(topic, 0);
        let committed = consumer.committed_offsets(offsets, ADMIN_TIMEOUT)?;
        if matches!(committed.elements()[0].offset(), Offset::Offset(_)) {
            return Ok(());
        }
        let (beginning, _) = consumer.fetch_watermarks(topic, 0, ADMIN_TIMEOUT)?;
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, 0, Offset::Offset(beginning))?;
        consumer.commit(&offsets, CommitMode::Sync)
    };
    let consumer = config.create_with_context(ClientLog).map_err(|source| kafka(broker, source))?;
    loop {
        match try_once(&consumer) {
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId)) if Instant::now() < deadline => {
                std::thread::sleep(RETRY_PAUSE);
            }
            result => return result.map_err(|source| kafka(broker, source)),
        }
    }
}

/// Waits until the partition leaders of new topics answer: for a moment they do not know yet that they lead.
fn wait_for_leaders(broker: &Broker, topics: &[String], claim_partitions: i32) -> KafkaResult<()> {
    let consumer = broker.reader()?;
    let deadline = Instant::now() + ADMIN_TIMEOUT;
    let claims = broker.topics().name(TopicName::StatusClaims);
    for topic in topics {
        for partition in 0..if *topic == claims { claim_partitions } else { 1 } {
            while let Err(error) = consumer.fetch_watermarks(topic, partition, ADMIN_TIMEOUT) {
                if Instant::now() >= deadline {
                    return Err(error);
                }
                std::thread::sleep(LEADER_POLL);
            }
        }
    }
    Ok(())
}

/// Waits until all topics in `needed` exist, and logs that it waits. Verifies the settings of those that ACLs allow to
/// read.
pub async fn wait_for_topics(broker: &Broker, needed: &[TopicName]) -> Result<(), TopicError> {
    loop {
        let error = match verify(broker, needed).await {
            Ok(()) => return Ok(()),
            Err(error @ (TopicError::Missing(_) | TopicError::Kafka { .. })) => error,
            Err(error) => return Err(error),
        };
        tracing::warn!(%error, "waiting for kafka and its topics");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn verify(broker: &Broker, needed: &[TopicName]) -> Result<(), TopicError> {
    let existing = partitions(broker).await?;
    let missing: Vec<String> = needed
        .iter()
        .filter(|topic| !existing.contains_key(topic.as_str()))
        .map(|topic| broker.topics().name(*topic))
        .collect();
    if !missing.is_empty() {
        return Err(TopicError::Missing(missing));
    }
    check(broker, &existing, 1).await
}

/// Fetches the number of partitions of each existing topic, by its name without prefix.
async fn partitions(broker: &Broker) -> Result<HashMap<&'static str, usize>, TopicError> {
    let reader = broker.reader().map_err(|source| kafka(broker, source))?;
    let metadata = tokio::task::spawn_blocking(move || {
        let metadata = reader.fetch_metadata(None, ADMIN_TIMEOUT);
        if metadata.is_err() {
            // librdkafka reports the cause, such as a wrong password, in a poll, whose client context logs and counts
            // it.
            (0..MAX_ERRORS).map_while(|_| reader.poll(Duration::ZERO)).for_each(drop);
        }
        metadata
    });
    let metadata = metadata.await.expect("fetching metadata does not panic").map_err(|source| kafka(broker, source))?;
    Ok(TopicName::ALL
        .into_iter()
        .filter_map(|topic| {
            let name = broker.topics().name(topic);
            let found = metadata.topics().iter().find(|found| found.name() == name && found.error().is_none())?;
            Some((topic.as_str(), found.partitions().len()))
        })
        .collect())
}

/// Verifies the partition counts and the settings of existing topics.
async fn check(
    broker: &Broker,
    existing: &HashMap<&'static str, usize>,
    claim_partitions: i32,
) -> Result<(), TopicError> {
    let mut wrong = Vec::new();
    let found: Vec<(TopicName, usize)> = TopicName::ALL
        .into_iter()
        .filter_map(|topic| existing.get(topic.as_str()).map(|count| (topic, *count)))
        .collect();
    for (topic, count) in &found {
        let (right, allowed) = match topic {
            TopicName::StatusClaims => (*count >= claim_partitions as usize, format!("at least {claim_partitions}")),
            _ => (*count == 1, "1".to_owned()),
        };
        if !right {
            let topic = broker.topics().name(*topic);
            wrong.push(WrongSetting {
                topic,
                setting: "number of partitions".into(),
                found: count.to_string(),
                allowed,
            });
        }
    }
    let names: Vec<String> = found.iter().map(|(topic, _)| broker.topics().name(*topic)).collect();
    let resources: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    if resources.is_empty() {
        return Ok(());
    }
    let described = admin(broker)?
        .describe_configs(&resources, &AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)))
        .await
        .map_err(|source| kafka(broker, source))?;
    for ((topic, _), described) in found.iter().zip(described) {
        let config = described.map_err(|code| kafka(broker, KafkaError::AdminOp(code)))?;
        if config.entries.is_empty() {
            // The client's way to report that ACLs do not allow to read the settings; an agent does not need to.
            let topic = topic.as_str();
            tracing::debug!(topic, "no ACL to read the topic's settings; `backbeat topics` verifies them");
            continue;
        }
        for (setting, required) in topic.required_settings() {
            let value = config.get(setting).and_then(|entry| entry.value.as_deref()).unwrap_or("unset");
            if value != *required {
                wrong.push(WrongSetting {
                    topic: broker.topics().name(*topic),
                    setting: (*setting).to_owned(),
                    found: value.to_owned(),
                    allowed: (*required).to_owned(),
                });
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(TopicError::Wrong(wrong)) }
}

fn admin(broker: &Broker) -> Result<AdminClient<ClientLog>, TopicError> {
    broker.client_settings().create_with_context(ClientLog).map_err(|source| kafka(broker, source))
}

fn kafka(broker: &Broker, source: KafkaError) -> TopicError {
    TopicError::Kafka { brokers: broker.bootstrap_servers().to_owned(), source }
}
