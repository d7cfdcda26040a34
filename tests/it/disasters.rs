//! Lost topics, stores and registries: pulse says what was lost instead of repeating beats, and the way on that
//! docs/operations.md, "Recovery", describes works.

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use backbeat_broker::{LogReader, TopicName};
use backbeat_devstack::Devstack;
use backbeat_schemas::{BarReport, BeatFrame, HlcClock, Record, WindowId, wire};
use backbeat_tests::{Cluster, Program, PulseNodes, SmallDisk, own_devstack, read_raw, runtime, wait_for, wait_until};
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use reqwest::Method;
use reqwest::blocking::{Client, Response};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tempfile::TempDir;

use crate::frames::check;
use crate::reports::{check_reports, reverb, wait_for_reports};

const LIMIT: Duration = Duration::from_mins(2);
/// Ten beats a second, in bars of four.
const TEMPO: [&str; 8] = ["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "4"];

fn pulse(cluster: &Cluster, flags: &[&str]) -> Program {
    cluster.serve("pulse", &[&TEMPO[..], flags].concat())
}

fn newest_beat(cluster: &Cluster) -> i64 {
    cluster.frames().last().map_or(-1, |frame| frame.beat_index.get())
}

/// Runs the pipeline until there are reports, and stops it.
fn run_pipeline(cluster: &Cluster, reports: usize) {
    let pulse = pulse(cluster, &[]);
    let reverb = reverb(cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "20"]);
    wait_until("reports of claims", LIMIT, || {
        cluster.reports().iter().filter(|entry| entry.record.claims > 20).count() >= reports
    });
    drop((sim, pulse, reverb));
}

/// Waits until pulse ends with an error, and returns its log.
fn stopped(mut pulse: Program) -> String {
    assert_eq!(pulse.wait(), 1);
    let log = pulse.log();
    assert!(log.contains("--first-beat") && log.contains("\"Recovery\""), "{log}");
    log
}

/// Runs pulse from `first_beat` on, with reverb and agents, and compares all reports with the oracle's.
fn check_continued(cluster: &Cluster, first_beat: i64, flags: &[&str]) {
    let flag = first_beat.to_string();
    let pulse = pulse(cluster, &[&["--first-beat", &flag], flags].concat());
    let reverb = reverb(cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "20"]);
    let with_agents = || {
        let reports = cluster.reports();
        reports.iter().filter(|entry| entry.record.from_beat.get() > first_beat && entry.record.claims > 20).count()
    };
    wait_until("reports after the first beat", LIMIT, || with_agents() >= 3);
    drop((sim, pulse));
    assert_eq!(cluster.frames()[0].beat_index.get(), first_beat);
    wait_until("the newest report", LIMIT, || {
        let newest = cluster.reports().iter().map(|entry| entry.record.to_beat.get()).max();
        newest.is_some_and(|newest| newest + 4 > newest_beat(cluster) - 1)
    });
    drop(reverb);
}

#[test]
fn recreated_claims_stop_pulse_and_new_topics_continue_the_beats() {
    let cluster = Cluster::new(2);
    run_pipeline(&cluster, 3);
    cluster.recreate(TopicName::StatusClaims);
    let log = stopped(pulse(&cluster, &[]));
    assert!(log.contains("the topic was lost or recreated"), "{log}");
    // Until it was sure, pulse went on.
    let known = newest_beat(&cluster);

    // New topics, the same cluster and the same directory of Raft's store.
    let next = Cluster::new(2);
    let data = cluster.dir().join("data");
    check_continued(&next, known + 100, &["--data-dir", data.to_str().expect("the path is UTF-8")]);
    check_reports(&next);
}

#[test]
fn lost_frames_stop_pulse_and_a_later_first_beat_continues() {
    let cluster = Cluster::new(2);
    run_pipeline(&cluster, 3);
    let known = newest_beat(&cluster);
    cluster.recreate(TopicName::BeatFrames);
    // With its directory the node knows of the beats itself, without it from the reports.
    for flags in [&[][..], &["--data-dir", cluster.dir().join("empty").to_str().expect("the path is UTF-8")]] {
        let log = stopped(pulse(&cluster, flags));
        assert!(log.contains("beatframes is empty, but beat "), "{log}");
    }
    let log = stopped(pulse(&cluster, &["--first-beat", &(known / 2).to_string()]));
    assert!(log.contains("was published"), "{log}");
    check_continued(&cluster, known + 100, &[]);
    let audit = cluster.backbeat(&["audit"]);
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
}

#[test]
fn kafka_restored_from_an_older_copy_stops_pulse() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 2);
    run_pipeline(&cluster, 3);
    let copied = newest_beat(&cluster);
    let data = dir.path().join("kafka/data");
    let copy = dir.path().join("copy");
    devstack.stop_broker(0).expect("kafka stops");
    copy_directory(&data, &copy);
    devstack.restart_broker(0).expect("kafka starts");
    run_pipeline(&cluster, 8);
    let known = newest_beat(&cluster);
    assert!(known > copied + 10, "{known} {copied}");

    devstack.stop_broker(0).expect("kafka stops");
    fs::remove_dir_all(&data).expect("the data is removed");
    copy_directory(&copy, &data);
    devstack.restart_broker(0).expect("kafka starts");
    assert!(newest_beat(&cluster) < known);
    let log = stopped(pulse(&cluster, &[]));
    assert!(log.contains("beatframes ends at beat "), "{log}");

    let next = Cluster::on(&devstack, 2);
    let data = cluster.dir().join("data");
    check_continued(&next, known + 100, &["--data-dir", data.to_str().expect("the path is UTF-8")]);
    check_reports(&next);
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(copied.success());
}

#[test]
fn lost_reports_are_written_again_by_a_replay() {
    let cluster = Cluster::new(2);
    run_pipeline(&cluster, 4);
    let mut lost: Vec<_> = cluster.reports().into_iter().map(|entry| entry.record).collect();
    cluster.recreate(TopicName::BarReports);
    let replay = cluster.backbeat(&["replay", "--to-beat", "0", "--execute"]);
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    let pulse = pulse(&cluster, &[]);
    let reverb = reverb(&cluster, &[]);
    wait_for_reports(&cluster, lost.len());
    drop((pulse, reverb));
    let mut written: Vec<_> = cluster.reports().into_iter().map(|entry| entry.record).collect();
    lost.sort_by_key(|report| report.from_beat);
    written.sort_by_key(|report| report.from_beat);
    assert_eq!(lost[..], written[..lost.len()]);
}

#[test]
fn raft_stores_lost_on_all_nodes_cost_no_beat_and_no_tempo() {
    let cluster = Cluster::new(1);
    let start = |store: &str| {
        let store = cluster.dir().join(store);
        let store = store.to_str().expect("the path is UTF-8");
        PulseNodes::start(&cluster, 3, &[&TEMPO[..], &["--data-dir", store]].concat())
    };
    let nodes = start("first");
    let leader = nodes.wait_for_leader();
    wait_until("beats", LIMIT, || newest_beat(&cluster) > 4);
    let body = r#"{"tempo_bpm": 560}"#;
    let changed = nodes.node(leader).request(Method::POST, "/api/v1/tempo", body, None);
    assert_eq!(changed.map(|(status, _)| status), Some(200));
    let tempo = || cluster.frames().last().map(|frame| frame.tempo_bpm.bpm());
    wait_until("the new tempo", LIMIT, || tempo() == Some(560.0));
    drop(nodes);
    let before = newest_beat(&cluster);
    let nodes = start("second");
    wait_until("more beats", LIMIT, || newest_beat(&cluster) > before + 8);
    drop(nodes);
    assert_eq!(tempo(), Some(560.0));
    check(&cluster.frames());
}

/// Registering schemas in an empty registry would give ids anew that records in the log already have.
#[test]
fn lost_registry_stops_pulse_until_the_schemas_are_imported_with_their_ids() {
    let cluster = Cluster::new(2);
    run_pipeline(&cluster, 3);
    let dir = TempDir::new().expect("a temporary directory");
    let other = own_devstack(1, dir.path());
    let empty = other.schema_registry();
    let flags = ["--schema-registry", empty.as_str()];
    let mut refused = pulse(&cluster, &flags);
    let topics = ["topics", "--replication-factor", "1", "--claim-partitions", "2"];
    let topics = cluster.backbeat(&[&topics[..], &flags].concat());
    let stderr = String::from_utf8_lossy(&topics.stderr).into_owned();
    assert!(!topics.status.success() && stderr.contains("lost or renumbered its schemas"), "{stderr}");
    assert_eq!(refused.wait(), 1);
    assert!(refused.log().contains("lost or renumbered its schemas"), "{}", refused.log());
    let http = Client::new();
    let subjects = http.get(format!("{empty}/subjects")).send().and_then(Response::text);
    assert_eq!(subjects.expect("the registry answers"), "[]");

    let admin = |registry: &str, operation| {
        format!("{}/registry/v3/admin/{operation}", registry.trim_end_matches("/ccompat/v7"))
    };
    let export = http.get(admin(&cluster.kafka().schema_registry, "export")).header("Accept", "application/zip").send();
    let export =
        export.and_then(Response::error_for_status).and_then(Response::bytes).expect("the schemas are exported");
    let import = http.post(admin(&empty, "import")).header("Content-Type", "application/zip").body(export).send();
    import.and_then(Response::error_for_status).expect("the schemas are imported");
    let before = newest_beat(&cluster);
    let pulse = pulse(&cluster, &flags);
    let reverb = reverb(&cluster, &flags);
    let sim = cluster.start("agent-sim", &[&["--agents", "20"], &flags[..]].concat());
    wait_until("a report of new claims", LIMIT, || {
        let reports = cluster.reports();
        reports.iter().any(|entry| entry.record.from_beat.get() > before && entry.record.claims > 20)
    });
    drop((sim, pulse, reverb));
    let audit = cluster.backbeat(&[&["audit"], &flags[..]].concat());
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
}

#[test]
fn node_on_a_full_disk_ends_with_the_reason_and_the_others_continue() {
    let cluster = Cluster::new(2);
    let data = cluster.dir().join("data/n0");
    fs::create_dir_all(&data).expect("the directory is created");
    let disk = SmallDisk::mount(&data, 8);
    let mut nodes = PulseNodes::start_on(&cluster, 3, &TEMPO, &disk);
    nodes.wait_until_ready();
    for _ in 0..20 {
        let leader = nodes.wait_for_leader();
        if leader == 0 {
            break;
        }
        nodes.kill(leader);
        nodes.wait_for_leader();
        nodes.start_node(leader);
        nodes.wait_until_ready();
    }
    assert_eq!(nodes.leader(), Some(0), "{}", nodes.logs());

    disk.fill();
    // Beats need no space. Changes of the tempo need some once the store has used what its file has.
    let before = newest_beat(&cluster);
    wait_until("beats", LIMIT, || newest_beat(&cluster) > before + 10);
    let change = |method: Method| nodes.node(0).request(method, "/api/v1/tempo", r#"{"tempo_bpm": 550}"#, None);
    let mut changes = 0;
    let refused = loop {
        let response = change(if changes % 2 == 0 { Method::POST } else { Method::DELETE });
        changes += 1;
        assert!(changes < 2_000, "{response:?}");
        match response {
            Some((200 | 409, _)) => {}
            refused => break refused,
        }
    };
    assert!(refused.as_ref().is_none_or(|(status, _)| *status == 503), "{refused:?}");
    let (status, log) = nodes.wait(0);
    assert_eq!(status, 1);
    assert!(log.contains("No space left on device"), "{log}");
    let before = newest_beat(&cluster);
    wait_until("beats of another leader", LIMIT, || newest_beat(&cluster) > before + 10);

    disk.free();
    nodes.start_node(0);
    nodes.wait_until_ready();
    let before = newest_beat(&cluster);
    wait_until("beats", LIMIT, || newest_beat(&cluster) > before + 10);
    drop(nodes);
    check(&cluster.frames());
}

/// Kafka's writes fail as on a full disk: a limit on the size of its files is one that another process can set.
#[test]
fn full_disk_under_kafka_costs_no_report_once_there_is_space() {
    const SPACE: u64 = 4_096;
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 2);
    let pulse = pulse(&cluster, &[]);
    let reverb = reverb(&cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "20"]);
    wait_for_reports(&cluster, 3);
    let kafka = devstack.broker_pid(0);
    let limit = Rlimit { current: Some(SPACE), maximum: Some(SPACE) };
    prlimit(Pid::from_raw(kafka), Resource::Fsize, limit).expect("the limit is set");
    // A broker halts when none of its log directories can be written. A process that has ended has no executable.
    wait_until("kafka to halt", LIMIT, || fs::read_link(format!("/proc/{kafka}/exe")).is_err());
    let log = fs::read_to_string(dir.path().join("kafka/broker.log")).expect("Kafka's log");
    assert!(log.contains("File too large"), "{log}");
    devstack.restart_broker(0).expect("kafka starts");
    let before = cluster.reports().len();
    wait_for_reports(&cluster, before + 3);
    drop((sim, pulse));
    check_reports(&cluster);
    check(&cluster.frames());
    drop(reverb);
}

#[test]
fn lost_partials_and_dead_letters_cost_no_report() {
    let cluster = Cluster::new(2);
    run_pipeline(&cluster, 3);
    let known = newest_beat(&cluster);
    let pulse = pulse(&cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "20", "--malformed-rate", "0.1"]);
    let first = reverb(&cluster, &[]);
    let reported = |after: i64| {
        let later = |from: i64| from > after + 4;
        wait_until("a report of new claims", LIMIT, || {
            cluster.reports().iter().any(|e| later(e.record.from_beat.get()) && e.record.invalid_claims > 0)
        });
    };
    reported(known);
    let lose = || {
        cluster.recreate(TopicName::BarPartials);
        cluster.recreate(TopicName::DeadLetters);
    };
    // Once while a member runs, once while none does.
    lose();
    reported(newest_beat(&cluster));
    drop(first);
    lose();
    let second = reverb(&cluster, &[]);
    reported(newest_beat(&cluster));
    drop((sim, pulse));
    check_reports(&cluster);
    drop(second);
}

/// Copies the records of `topic` from `from` to `to` with their partitions, without those below the offset `start` in each.
fn mirror(from: &Cluster, to: &Cluster, topic: TopicName, start: i64) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer =
        config.set("bootstrap.servers", &to.kafka().bootstrap_servers).create().expect("a producer");
    let target = to.broker().topics().name(topic);
    for raw in read_raw(from, &from.broker().topics().name(topic), |_| ()) {
        if raw.offset >= start {
            let mut record = BaseRecord::<[u8], [u8]>::to(&target).partition(raw.partition);
            (record.key, record.payload) = (raw.key.as_deref(), raw.value.as_deref());
            producer.send(record).map_err(|(error, _)| error).expect("the queue has space");
        }
    }
    producer.flush(LIMIT).expect("kafka accepts all");
}

#[test]
fn mirror_with_other_offsets_is_an_archive_and_new_topics_continue_the_beats() {
    let cluster = Cluster::new(2);
    run_pipeline(&cluster, 3);
    let known = newest_beat(&cluster);
    // Retention had deleted some claims before they were copied.
    let archive = Cluster::new(2);
    for (topic, start) in [(TopicName::BeatFrames, 0), (TopicName::BarReports, 0), (TopicName::StatusClaims, 10)] {
        mirror(&cluster, &archive, topic, start);
    }
    let empty = archive.dir().join("empty");
    let log = stopped(pulse(&archive, &["--data-dir", empty.to_str().expect("the path is UTF-8")]));
    assert!(log.contains("the topic was lost or recreated"), "{log}");
    let known = known.max(newest_beat(&archive));
    let next = Cluster::new(2);
    check_continued(&next, known + 100, &["--data-dir", empty.to_str().expect("the path is UTF-8")]);
    check_reports(&next);
}

/// Sends a record in a transaction of `transactional_id` that Kafka ends without a marker: while a partition has no leader,
/// Kafka 4.3.1 writes none (KAFKA-20734). The record is invisible, and would be visible with the next transaction.
fn lose_marker<R: Record + PartialEq + Debug + 'static>(
    devstack: &mut Devstack,
    cluster: &Cluster,
    transactional_id: &str,
    topic: TopicName,
    key: &str,
    record: &R,
) {
    let (name, value) = (cluster.broker().topics().name(topic), wire(cluster.register::<R>(topic), record));
    let open = || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &cluster.kafka().bootstrap_servers).set("transactional.id", transactional_id);
        let producer: BaseProducer = config.create().expect("a producer");
        producer.init_transactions(LIMIT).expect("Kafka answers");
        producer
    };
    let producer = open();
    producer.begin_transaction().expect("the transaction begins");
    producer.send(BaseRecord::to(&name).key(key).payload(&value)).map_err(|(error, _)| error).expect("there is room");
    producer.flush(LIMIT).expect("Kafka acknowledges the record");
    drop(producer);
    let consumer = cluster.broker().reader().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(&name), LIMIT).expect("Kafka answers");
    let leader = metadata.topics()[0].partitions()[0].leader() as usize - 1;
    devstack.stop_broker(leader).expect("the broker stops");
    drop(open());
    devstack.restart_broker(leader).expect("the broker restarts");
    let mut open_records =
        LogReader::<R>::for_open_transactions(cluster.broker(), cluster.registry(), runtime().handle(), topic)
            .expect("a reader");
    let mut reader = cluster.reader::<R>(topic);
    let found =
        wait_for("the partition to have a leader", LIMIT, || open_records.read_open(|| reader.end_offset()).ok());
    let found = found.first().map(|entry| &entry.record);
    assert_eq!(found, Some(record), "Kafka has aborted the transaction: the fault was not caused");
}

/// Beats were repeated in this way when the only broker restarted.
#[test]
fn beat_whose_marker_kafka_lost_is_not_repeated() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(3, dir.path());
    // Its topics have one replica each.
    let cluster = Cluster::unprefixed(&devstack, 1);
    let tempo = ["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "1000"];
    let first = cluster.serve("pulse", &tempo);
    wait_until("some beats", LIMIT, || newest_beat(&cluster) >= 5);
    drop(first);

    let last = cluster.frames().pop().expect("there are frames");
    let period = last.deadline_at.millis() - last.scheduled_at.millis();
    let unmarked = BeatFrame {
        beat_index: last.beat_index.plus(1),
        hlc: HlcClock::new(1).tick(last.deadline_at),
        scheduled_at: last.deadline_at,
        emitted_at: last.deadline_at,
        deadline_at: last.deadline_at.plus_millis(period),
        ..last
    };
    let id = cluster.broker().topics().pulse_transactional_id();
    lose_marker(&mut devstack, &cluster, &id, TopicName::BeatFrames, "it", &unmarked);
    let beats = cluster.frames().len() as i64;
    assert_eq!(beats, unmarked.beat_index.get(), "the lost beat is not visible");

    let second = cluster.serve("pulse", &tempo);
    wait_until("more beats", LIMIT, || newest_beat(&cluster) >= beats + 5);
    drop(second);
    let frames = cluster.frames();
    check(&frames);
    assert!(frames.contains(&unmarked));
    devstack.stop();
}

/// The next transaction of the merge would publish the report, which may have been computed again by then.
#[test]
fn report_whose_marker_kafka_lost_is_not_published_twice() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(3, dir.path());
    // Its topics have one replica each.
    let cluster = Cluster::unprefixed(&devstack, 1);
    run_pipeline(&cluster, 2);
    let last = cluster.reports().pop().expect("there are reports").record;
    let from = last.to_beat.plus(1);
    let unmarked =
        BarReport { window_id: WindowId::new("it", from), from_beat: from, to_beat: last.to_beat.plus(4), ..last };
    let id = cluster.broker().topics().merge_transactional_id();
    let key = unmarked.window_id.to_string();
    lose_marker(&mut devstack, &cluster, &id, TopicName::BarReports, &key, &unmarked);
    run_pipeline(&cluster, cluster.reports().len() + 3);
    check_reports(&cluster);
    let of_window = cluster.reports().iter().filter(|entry| entry.record.from_beat == from).count();
    assert_eq!(of_window, 1);
    devstack.stop();
}
