//! Invalid claims of every kind: reverb counts each, writes it to the dead-letter topic with the reason, and continues.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backbeat_broker::{Deliveries, ProducerRecord, Sender, TopicName};
use backbeat_schemas::{BeatFrame, StatusClaim, testing, wire};
use backbeat_tests::{Cluster, runtime, stack, wait_until};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::reports::{check_reports, totals};
use backbeat_tests::read_raw;

const LIMIT: Duration = Duration::from_mins(2);
const UNKNOWN_SCHEMA: u32 = 4_000_000_000;

/// A key and a value.
type Record = (Option<&'static [u8]>, Vec<u8>);

/// One record of each kind, with the reason that reverb must give.
fn invalid_records(beat: i64, claim_schema: u32, frame_schema: u32) -> Vec<(&'static str, Record)> {
    const KEY: Option<&[u8]> = Some(b"agent-7");
    let changed = |change: &dyn Fn(&mut StatusClaim)| {
        let mut claim = testing::claim("agent-7", beat);
        change(&mut claim);
        wire(claim_schema, &claim)
    };
    let valid = changed(&|_| ());
    vec![
        ("wire_format", (KEY, b"hello, this is not avro".to_vec())),
        ("wire_format", (KEY, b"\0\0".to_vec())),
        ("wire_format", (KEY, Vec::new())),
        ("unknown_schema", (KEY, [&[0], &UNKNOWN_SCHEMA.to_be_bytes()[..], &valid[5..]].concat())),
        // The id of another subject.
        ("unknown_schema", (KEY, [&[0], &frame_schema.to_be_bytes()[..], &valid[5..]].concat())),
        ("undecodable", (KEY, valid[..valid.len() - 4].to_vec())),
        ("left_over_bytes", (KEY, [&valid[..], &[0]].concat())),
        ("key", (Some(b"agent-8"), valid.clone())),
        ("key", (None, valid.clone())),
        ("id_length", (Some(b""), changed(&|c| c.agent_id.clear()))),
        ("id_length", (KEY, changed(&|c| c.task_id.clear()))),
        ("id_length", (KEY, changed(&|c| c.task_id = "t".repeat(257)))),
        ("progress", (KEY, changed(&|c| c.progress = f64::NAN))),
        ("progress", (KEY, changed(&|c| c.progress = 1.5))),
        ("notes", (KEY, changed(&|c| c.notes = "n".repeat(32 * 1_024)))),
        ("hlc", (KEY, changed(&|c| c.hlc = "now".into()))),
        ("beat", (KEY, changed(&|c| c.beat_index = beat + 1_000_000))),
        ("beat", (KEY, changed(&|c| c.beat_index = -1))),
    ]
}

/// Sends a record without a value, which the workspace's own sender cannot.
fn send_tombstone(topic: &str) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", stack().bootstrap_servers()).create().expect("a producer");
    producer
        .send(BaseRecord::<[u8], [u8]>::to(topic).key(b"agent-7"))
        .map_err(|(error, _)| error)
        .expect("the record is queued");
    producer.flush(LIMIT).expect("the records are sent");
}

#[test]
fn invalid_claims_become_dead_letters_with_their_reason() {
    let cluster = Cluster::new(3);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "4"]);
    let reverb = cluster.serve("reverb", &["--cluster", "it"]);
    reverb.wait_ready();
    let topics = cluster.broker().topics();
    let claim_schema = cluster.register::<StatusClaim>(TopicName::StatusClaims);
    let frame_schema = cluster.register::<BeatFrame>(TopicName::BeatFrames);

    let sender = Sender::new(cluster.broker(), TopicName::StatusClaims, None).expect("a producer");
    let deliveries = Arc::<Deliveries>::default();
    let send = |(key, value): &Record| {
        let topic = topics.name(TopicName::StatusClaims);
        sender
            .send(ProducerRecord { topic: &topic, key: *key, value, ..Default::default() }, &deliveries)
            .expect("the queue has room");
    };
    let beat = cluster.frames().last().map(|frame| frame.beat_index.get()).expect("there are frames");
    let invalid_records = invalid_records(beat, claim_schema, frame_schema);
    for (_, record) in &invalid_records {
        send(record);
        // A valid claim after each invalid one must be counted.
        send(&(Some(b"agent-7"), wire(claim_schema, &testing::claim("agent-7", beat))));
    }
    wait_until("Kafka to acknowledge all records", LIMIT, || deliveries.outstanding() == 0);
    send_tombstone(&topics.name(TopicName::StatusClaims));
    let tombstone = ("no_value", (None, Vec::new()));
    let valid_count = invalid_records.len();
    let invalid_records: Vec<(&str, Record)> = invalid_records.into_iter().chain([tombstone]).collect();
    let records = invalid_records.len() + valid_count;

    // Reverb asks the registry for the unknown schema for a minute before it counts the claim as invalid.
    wait_until("all records in reports", LIMIT, || {
        let (counted, late, invalid) = totals(&cluster.reports());
        counted + late + invalid == records as i64
    });
    assert_eq!(reverb.metric("backbeat_reverb_dead_letters_total"), Some(invalid_records.len() as f64));
    drop(pulse);
    check_reports(&cluster);
    let (counted, late, invalid) = totals(&cluster.reports());
    assert_eq!((counted + late, invalid), (valid_count as i64, invalid_records.len() as i64));
    let issues: Vec<String> = cluster.reports().into_iter().flat_map(|entry| entry.record.issues).collect();
    assert!(issues.iter().any(|issue| issue.ends_with(" claims with an unknown schema")), "{issues:?}");

    let mut expected = BTreeMap::<&str, Vec<&[u8]>>::new();
    for (reason, (_, value)) in &invalid_records {
        expected.entry(*reason).or_default().push(value);
    }
    let mut found = BTreeMap::<String, Vec<Vec<u8>>>::new();
    let mut keys = BTreeSet::new();
    let claims_topic = topics.name(TopicName::StatusClaims);
    read_raw(&cluster, &topics.name(TopicName::DeadLetters), |message| {
        let header = |name: &str| {
            let headers = message.headers().expect("dead letters have headers");
            let found = headers.iter().find(|header| header.key == name).and_then(|header| header.value);
            String::from_utf8_lossy(found.unwrap_or_else(|| panic!("no header {name}"))).into_owned()
        };
        let place = format!("{}/{}/{}", header("topic"), header("partition"), header("offset"));
        if !keys.insert(place.clone()) {
            // A share that the merge has read, too, has its dead letters twice, with the same keys.
            return;
        }
        assert_eq!(header("topic"), claims_topic);
        assert_eq!(message.key(), Some(place.as_bytes()), "the key is the record's topic, partition and offset");
        assert!(header("detail").len() > 10, "{}", header("detail"));
        found.entry(header("reason")).or_default().push(message.payload().unwrap_or_default().to_vec());
    });
    for (reason, values) in &mut expected {
        let found = found.get_mut(*reason).unwrap_or_else(|| panic!("no dead letter for {reason}"));
        found.sort();
        values.sort_unstable();
        assert_eq!(found, values, "{reason}: a dead letter holds the bytes as they were read");
    }
    assert_eq!(found.values().map(Vec::len).sum::<usize>(), invalid_records.len());
}

/// Kafka refuses dead letters for good if they are larger than their topic allows. They are counted, and stop no report.
#[test]
fn dead_letter_that_kafka_refuses_is_counted_as_lost() {
    let cluster = Cluster::new(1);
    let dead_letters = cluster.broker().topics().name(TopicName::DeadLetters);
    let servers = cluster.broker().bootstrap_servers();
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", servers).create().expect("a client");
    let settings = AlterConfig::new(ResourceSpecifier::Topic(&dead_letters))
        .set("cleanup.policy", "compact,delete")
        .set("message.timestamp.type", "LogAppendTime")
        .set("unclean.leader.election.enable", "false")
        .set("max.message.bytes", "100");
    let altered = runtime().block_on(admin.alter_configs([&settings], &AdminOptions::new())).expect("Kafka answers");
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");

    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "4"]);
    let reverb = cluster.serve("reverb", &["--cluster", "it"]);
    reverb.wait_ready();
    send_tombstone(&cluster.broker().topics().name(TopicName::StatusClaims));
    wait_until("a report of the record", LIMIT, || totals(&cluster.reports()).2 == 1);
    assert_eq!(reverb.metric("backbeat_reverb_lost_dead_letters_total"), Some(1.0));
    drop(pulse);
    check_reports(&cluster);
    assert_eq!(read_raw(&cluster, &dead_letters, |_| ()).len(), 0);
}
