//! The oracle: computes every report by brute force from the topics and the definitions of the design.
//!
//! It shares no code with reverb: claims are decoded generically with the schema that the registry returns, and each
//! KPI is a set built from all claims of its window.

mod rosters;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use backbeat_broker::TopicName;
use backbeat_schemas::{BarReport, BarRoster, BeatFrame, BeatIndex, WindowId};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::{Cluster, runtime};

/// The largest number of tasks of a partition in a window that distinct counts include.
const MAX_TASKS: usize = 250_000;
/// The largest number of tasks of one agent among these.
const MAX_TASKS_PER_AGENT: usize = 10_000;
/// The largest number of bytes of the names of these tasks and their agents.
const MAX_NAME_BYTES: usize = 12 * 1024 * 1024;
/// The largest value of a claim, in bytes.
const MAX_CLAIM_BYTES: usize = 64 * 1024;
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(10);

/// A record as it is in its topic.
pub struct Raw {
    /// The record's partition.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's value.
    pub value: Option<Vec<u8>>,
}

/// The oracle's classification of one record of `statusclaims`.
enum Classification {
    Counted {
        from: i64,
        partition: i32,
        claim: HashMap<String, Value>,
        /// True if its task is beyond the limit of the partition.
        excess: bool,
        /// True if its agent is beyond the limit, too.
        unknown_agent: bool,
    },
    Late {
        partition: i32,
        agent: String,
        unknown_agent: bool,
    },
    Invalid {
        unknown_schema: bool,
    },
}

/// By their windows' downbeats, the records that count in a report, those of a partition in the order of their offsets.
type ByWindow = BTreeMap<i64, Vec<Classification>>;

/// The agents and tasks of a partition in a window that distinct counts include.
#[derive(Default)]
struct Names {
    /// The number of tasks of each agent, 0 if it has only late claims.
    agents: BTreeMap<String, usize>,
    tasks: BTreeSet<(String, String)>,
    bytes: usize,
}

impl Names {
    /// Adds the agent of a late claim. Returns false if it is new and beyond a limit.
    fn add_late(&mut self, agent: &str) -> bool {
        if self.agents.contains_key(agent) {
            return true;
        }
        if self.agents.len() == MAX_TASKS || self.bytes + agent.len() > MAX_NAME_BYTES {
            return false;
        }
        self.bytes += agent.len();
        self.agents.insert(agent.to_owned(), 0);
        true
    }

    /// Adds a task. Returns false if it is new and beyond a limit.
    fn add(&mut self, agent: String, task: String) -> bool {
        let new = task.len() + if self.agents.contains_key(&agent) { 0 } else { agent.len() };
        let pair = (agent, task);
        if self.tasks.contains(&pair) {
            return true;
        }
        let of_agent = self.agents.get(&pair.0).copied().unwrap_or_default();
        if self.tasks.len() == MAX_TASKS || of_agent == MAX_TASKS_PER_AGENT || self.bytes + new > MAX_NAME_BYTES {
            return false;
        }
        self.bytes += new;
        self.agents.insert(pair.0.clone(), of_agent + 1);
        self.tasks.insert(pair)
    }
}

/// The frames and claims of a log, with the schemas of the claims.
pub struct Oracle {
    frames: Vec<BeatFrame>,
    claims: Vec<Raw>,
    /// The schemas of the subject of claims by id; `None` for one that claims may not have.
    schemas: HashMap<u32, Option<Schema>>,
}

impl Oracle {
    /// Reads the whole log of `cluster`, to which nothing may be written at the same time.
    pub fn read(cluster: &Cluster) -> Self {
        let claims = read_claims(cluster);
        let (registry, subject) = (cluster.registry(), cluster.broker().topics().subject(TopicName::StatusClaims));
        let versions = runtime().block_on(registry.versions(&subject)).expect("the registry answers");
        let version = |number| runtime().block_on(registry.version(&subject, number)).expect("the registry answers");
        let known = versions.into_iter().filter_map(version);
        let schemas = known.map(|(id, text)| (id, flat(&text).then(|| Schema::parse_str(&text).ok()).flatten()));
        let schemas = schemas.collect();
        Self { frames: cluster.frames(), claims, schemas }
    }

    /// The number of records in `statusclaims`.
    pub fn claims(&self) -> usize {
        self.claims.len()
    }

    /// Computes the report of every window that can be closed.
    pub fn reports(&self) -> Vec<BarReport> {
        let by_window = self.classify_all();
        let downbeats = self.frames.iter().filter(|frame| frame.downbeat);
        downbeats.filter_map(|opening| self.report(opening, &by_window)).collect()
    }

    fn classify_all(&self) -> ByWindow {
        let mut by_window = ByWindow::new();
        let mut names = HashMap::<(i64, i32), Names>::new();
        for raw in &self.claims {
            let Some(arrival) = self.arrival(raw) else { continue };
            let owner = self.window_from(arrival).expect("a claim arrives on a beat");
            let mut classification = self.classify(raw, arrival);
            let window = match &mut classification {
                Classification::Counted { from, claim, excess, unknown_agent, .. } => {
                    let names = names.entry((*from, raw.partition)).or_default();
                    let agent = text(claim, "agent_id");
                    *excess = !names.add(agent.clone(), text(claim, "task_id"));
                    *unknown_agent = *excess && !names.agents.contains_key(&agent);
                    *from
                }
                Classification::Late { agent, unknown_agent, .. } => {
                    *unknown_agent = !names.entry((owner, raw.partition)).or_default().add_late(agent);
                    owner
                }
                Classification::Invalid { .. } => owner,
            };
            by_window.entry(window).or_default().push(classification);
        }
        by_window
    }

    /// The beat on which a record arrived: the last one whose boundary is at or below the record's offset. `None`
    /// before the first boundary.
    fn arrival(&self, raw: &Raw) -> Option<i64> {
        let boundary = |frame: &BeatFrame| frame.claim_offsets.get(raw.partition as usize).copied().unwrap_or(0);
        let after = self.frames.partition_point(|frame| boundary(frame) <= raw.offset);
        Some(self.frames.get(after.checked_sub(1)?)?.beat_index.get())
    }

    /// The downbeat of the window of `beat`; `None` if the window is from before the first frame.
    fn window_from(&self, beat: i64) -> Option<i64> {
        let place = usize::try_from(beat - self.frames.first()?.beat_index.get()).ok()?;
        Some(self.frames[..=place].iter().rfind(|frame| frame.downbeat)?.beat_index.get())
    }

    fn frame(&self, beat: i64) -> Option<&BeatFrame> {
        self.frames.get(usize::try_from(beat - self.frames.first()?.beat_index.get()).ok()?)
    }

    fn classify(&self, raw: &Raw, arrival: i64) -> Classification {
        let invalid = Classification::Invalid { unknown_schema: false };
        let value = raw.value.as_deref().filter(|value| value.len() <= MAX_CLAIM_BYTES);
        let Some((id, body)) = value.and_then(split) else {
            return invalid;
        };
        let Some(schema) = self.schemas.get(&id) else {
            return Classification::Invalid { unknown_schema: true };
        };
        let Some(claim) = schema.as_ref().and_then(|schema| decode(schema, body)) else {
            return invalid;
        };
        if !is_valid(raw.key.as_deref(), &claim, arrival) {
            return invalid;
        }
        let Some(Value::Long(beat)) = claim.get("beat_index") else {
            return invalid;
        };
        let late =
            Classification::Late { partition: raw.partition, agent: text(&claim, "agent_id"), unknown_agent: false };
        let Some(from) = self.window_from(*beat) else {
            return late;
        };
        let opening = self.frame(from).expect("it has its downbeat");
        let end = from + i64::from(opening.bar_length) - 1;
        if arrival <= end + i64::from(opening.grace_beats) {
            Classification::Counted { from, partition: raw.partition, claim, excess: false, unknown_agent: false }
        } else {
            late
        }
    }

    fn report(&self, opening: &BeatFrame, by_window: &ByWindow) -> Option<BarReport> {
        let rosters = self.rosters_of(opening, by_window)?;
        let from = opening.beat_index.get();
        let end = from + i64::from(opening.bar_length) - 1;
        let closing = self.frame(end + 1 + i64::from(opening.grace_beats))?;
        let next = self.frame(end + 1)?;

        let all = by_window.get(&from).map_or(&[][..], Vec::as_slice);
        let (counted, within_limit) = (counted(all, true), counted(all, false));
        let late = all.iter().filter(|classification| matches!(classification, Classification::Late { .. })).count();
        let invalid =
            all.iter().filter(|classification| matches!(classification, Classification::Invalid { .. })).count();
        let unknown = all
            .iter()
            .filter(|classification| matches!(classification, Classification::Invalid { unknown_schema: true }))
            .count();

        // Distinct in each partition.
        let distinct = |wanted: &dyn Fn(&HashMap<String, Value>) -> bool| {
            let claims = within_limit.iter().filter(|(_, claim)| wanted(claim));
            let ids = claims.map(|(partition, claim)| (partition, text(claim, "agent_id"), text(claim, "task_id")));
            ids.collect::<BTreeSet<_>>().len() as i64
        };
        let agents = |wanted: &dyn Fn(i32, &HashMap<String, Value>) -> bool| {
            let claims = within_limit.iter().filter(|(partition, claim)| wanted(*partition, claim));
            let ids = claims.map(|(partition, claim)| (partition, text(claim, "agent_id")));
            ids.collect::<BTreeSet<_>>().len() as i64
        };
        let partitions = closing.claim_offsets.len();
        let misplaced =
            agents(&|partition, claim| !is_in_place(&text(claim, "agent_id"), partition as usize, partitions));
        let in_time =
            |claim: &HashMap<String, Value>| matches!(claim.get("beats_left"), Some(Value::Int(left)) if *left >= 0);
        let state = |claim: &HashMap<String, Value>, names: &[&str]| names.contains(&text(claim, "state").as_str());
        let failed_rotations = agents(&|_, claim| text(claim, "secret_rotation") == "failed");
        let degraded_claims =
            counted.iter().filter(|(_, claim)| claim.get("degraded") == Some(&Value::Boolean(true))).count();

        let bar: Vec<&BeatFrame> = (from..=end).map(|beat| self.frame(beat).expect("a later frame is there")).collect();
        let degraded_beats = bar.iter().filter(|frame| frame.degraded).count();
        let mut issues = Vec::new();
        for (count, kind) in [
            (late, "late claims"),
            (invalid, "invalid claims"),
            (unknown, "claims with an unknown schema"),
            (counted.len() - within_limit.len(), "claims of agents or tasks beyond the limit"),
            (misplaced as usize, "agents with claims in other partitions than theirs"),
            (degraded_beats, "degraded beats"),
            (degraded_claims, "degraded claims"),
            (failed_rotations as usize, "agents failed secret rotation"),
        ] {
            if count > 0 {
                issues.push(format!("{count} {kind}"));
            }
        }
        for re_anchored in bar.iter().filter(|f| f.anchor_beat == f.beat_index && f.anchor_at != f.scheduled_at) {
            let millis = re_anchored.emitted_at.millis() - re_anchored.scheduled_at.millis();
            if millis > 0 {
                issues.push(format!("pulse outage of {millis} ms before beat {}", re_anchored.beat_index));
            }
        }
        issues.sort();

        let offsets =
            |frame: &BeatFrame| (0..partitions).map(|p| frame.claim_offsets.get(p).copied().unwrap_or(0)).collect();
        Some(BarReport {
            r#type: Default::default(),
            window_id: WindowId::new(&opening.cluster_id, opening.beat_index),
            from_beat: opening.beat_index,
            to_beat: end.try_into().expect("a beat index is not negative"),
            agents_reporting: agents(&|_, _| true),
            on_time_reviews: distinct(&|claim| state(claim, &["review", "done"]) && in_time(claim)),
            help_promises_fulfilled: distinct(&|claim| text(claim, "help") == "fulfilled"),
            secret_rotations_ok: failed_rotations == 0,
            tempo_drift_ms: bar
                .iter()
                .map(|f| (f.emitted_at.millis() - f.scheduled_at.millis()).abs())
                .max()
                .expect("a bar has beats"),
            issues,
            cluster_id: opening.cluster_id.clone(),
            opened_at: opening.scheduled_at,
            closed_at: next.scheduled_at,
            claims: counted.len() as i64,
            late_claims: late as i64,
            invalid_claims: invalid as i64,
            tasks_done: distinct(&|claim| state(claim, &["done"])),
            tasks_failed: distinct(&|claim| state(claim, &["failed"])),
            degraded_beats: degraded_beats as i64,
            degraded_claims: degraded_claims as i64,
            grace_beats: opening.grace_beats,
            from_offsets: offsets(opening),
            to_offsets: offsets(next),
            logic: 2,
            agents_fell_silent: rosters.iter().map(|roster| roster.agents_fell_silent).sum(),
            tasks_stalled: rosters.iter().map(|roster| roster.tasks_stalled).sum(),
            tasks_overdrawn: rosters.iter().map(|roster| roster.tasks_overdrawn).sum(),
        })
    }
}

/// Returns true if murmur2 places `agent` in `partition`.
fn is_in_place(agent: &str, partition: usize, partitions: usize) -> bool {
    let hash = murmur2::murmur2(agent.as_bytes(), murmur2::KAFKA_SEED) & 0x7fff_ffff;
    hash as usize % partitions == partition
}

/// Asserts that `cluster` has exactly the `expected` reports, field by field, and the `rosters`, each of which may have been
/// written several times. Returns the reports by their windows' downbeats.
pub fn assert_reports_equal(cluster: &Cluster, expected: &[BarReport], rosters: &[BarRoster]) -> Vec<BarReport> {
    let mut reports: Vec<BarReport> = cluster.reports().into_iter().map(|entry| entry.record).collect();
    // A window may be finished before an older one that waits for a share.
    reports.sort_by_key(|report| report.from_beat);
    assert_eq!(reports.len(), expected.len(), "one report per window");
    for (report, expected) in reports.iter().zip(expected) {
        assert_eq!(report, expected);
    }
    let rosters: BTreeMap<_, _> = rosters.iter().map(|roster| ((roster.from_beat, roster.partition), roster)).collect();
    let mut found = BTreeSet::new();
    for entry in cluster.read_all::<BarRoster>(TopicName::BarRosters) {
        let key = (entry.record.from_beat, entry.record.partition);
        // Windows that the oracle does not expect may have been closed since.
        let is_expected = key.0 <= expected.last().map_or(BeatIndex::ZERO, |last| last.from_beat);
        assert!(
            !is_expected || rosters.get(&key) == Some(&&entry.record),
            "{:?}\nnot {:?}",
            entry.record,
            rosters.get(&key)
        );
        found.insert(key);
    }
    let missing: Vec<_> = rosters.keys().filter(|key| !found.contains(key)).collect();
    assert!(missing.is_empty(), "rosters are missing: {missing:?}");
    reports
}

/// Splits a value in Confluent's wire format into the schema id and the Avro body.
fn split(value: &[u8]) -> Option<(u32, &[u8])> {
    let (head, body) = value.split_at_checked(5)?;
    (head[0] == 0).then(|| (u32::from_be_bytes([head[1], head[2], head[3], head[4]]), body))
}

/// Returns the counted claims with their partitions, with those beyond the limit or without.
fn counted(all: &[Classification], with_excess: bool) -> Vec<(i32, &HashMap<String, Value>)> {
    let counted = all.iter().filter_map(|classification| match classification {
        Classification::Counted { partition, claim, excess, .. } if with_excess || !excess => Some((*partition, claim)),
        _ => None,
    });
    counted.collect()
}

/// Returns true if no field of the record schema is of a record, an array or a map.
fn flat(text: &str) -> bool {
    use serde_json::Value as Json;
    fn is_flat(schema: &Json) -> bool {
        match schema {
            Json::String(name) => {
                ["null", "boolean", "int", "long", "float", "double", "bytes", "string"].contains(&name.as_str())
            }
            Json::Array(variants) => variants.iter().all(is_flat),
            schema => schema["type"] == "enum",
        }
    }
    let schema: Json = serde_json::from_str(text).unwrap_or_default();
    schema["fields"].as_array().is_some_and(|fields| fields.iter().all(|field| is_flat(&field["type"])))
}

/// Decodes an Avro record; `None` if that fails or leaves bytes over.
fn decode(schema: &Schema, mut body: &[u8]) -> Option<HashMap<String, Value>> {
    let value = GenericDatumReader::builder(schema).build().ok()?.read_value(&mut body).ok()?;
    let Value::Record(fields) = value else { return None };
    body.is_empty().then(|| fields.into_iter().collect())
}

/// Returns true if a claim that arrived on beat `arrival` is valid.
fn is_valid(key: Option<&[u8]>, claim: &HashMap<String, Value>, arrival: i64) -> bool {
    let (agent, task, notes, hlc) =
        (text(claim, "agent_id"), text(claim, "task_id"), text(claim, "notes"), text(claim, "hlc"));
    let hex = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    let parts: Vec<&str> = hlc.split(':').collect();
    key == Some(agent.as_bytes())
        && (1..=256).contains(&agent.len())
        && (1..=256).contains(&task.len())
        && notes.len() <= 4_096
        && matches!(claim.get("beat_index"), Some(Value::Long(beat)) if (0..=arrival).contains(beat))
        && matches!(claim.get("progress"), Some(Value::Double(progress)) if (0.0..=1.0).contains(progress))
        && parts.len() == 3
        && parts.iter().all(|part| hex(part))
        && parts[1].len() == 4
        && parts[2].len() == 4
}

/// The text of a string or enum field, which may be inside a union; empty for null.
fn text(claim: &HashMap<String, Value>, field: &str) -> String {
    match claim.get(field) {
        Some(Value::String(text) | Value::Enum(_, text)) => text.clone(),
        Some(Value::Union(_, inner)) => match &**inner {
            Value::String(text) | Value::Enum(_, text) => text.clone(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// Reads all records of `statusclaims`.
pub fn read_claims(cluster: &Cluster) -> Vec<Raw> {
    let topic = cluster.broker().topics().name(TopicName::StatusClaims);
    read_raw(cluster, &topic, |_| ())
}

/// Reads all records of `topic`, and calls `inspect` with each message.
pub fn read_raw(
    cluster: &Cluster,
    topic: &str,
    mut inspect: impl FnMut(&rdkafka::message::BorrowedMessage<'_>),
) -> Vec<Raw> {
    let consumer = cluster.broker().reader().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), QUERY_TIMEOUT).expect("the topic exists");
    let mut unread = BTreeSet::new();
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("a valid partition");
        unread.insert(partition.id());
    }
    consumer.assign(&assignment).expect("the partitions are assigned");
    let mut records = Vec::new();
    while !unread.is_empty() {
        match consumer.poll(POLL).expect("Kafka answers") {
            Ok(message) => {
                inspect(&message);
                records.push(Raw {
                    partition: message.partition(),
                    offset: message.offset(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                });
            }
            Err(KafkaError::PartitionEOF(partition)) => drop(unread.remove(&partition)),
            Err(error) => panic!("cannot read {topic}: {error}"),
        }
    }
    records
}
