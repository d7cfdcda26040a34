//! Claims per second of one reverb member, with a bare librdkafka consumer that only counts the same records as
//! baseline.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_tests::{Cluster, Program, cpu_seconds, peak_mib, stack, wait_for, wait_until};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::claim_source::ClaimSource;
use crate::table::{Row, Table, median};

const CLAIMS: u64 = 5_000_000;
const PER_CORE_GOAL: f64 = 300_000.0;
const GOAL_MIB: f64 = 128.0;
const AGENTS: u64 = 20_000;
const PARTITIONS: i32 = 12;
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_mins(5);

/// The measurements of one pass over all claims.
pub(crate) struct Pass {
    pub(crate) claims_per_second: f64,
    /// CPU seconds per million claims: on a shared machine they vary less than the wall clock.
    pub(crate) cpu_per_million: f64,
}

impl Pass {
    /// The measurements of `claims` claims that took this time and these CPU seconds.
    pub(crate) fn of(claims: u64, took: Duration, cpu: f64) -> Self {
        Self { claims_per_second: claims as f64 / took.as_secs_f64(), cpu_per_million: cpu / (claims as f64 / 1e6) }
    }
}

pub(crate) fn run(table: &mut Table) {
    let cluster = Cluster::new(PARTITIONS);
    fill(&cluster);
    let (mut bare, mut reverb, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(count_only(&cluster));
        let (pass, peak) = through_reverb(&cluster, CLAIMS);
        reverb.push(pass);
        peaks.push(peak);
        cluster.reset_to_earliest();
    }
    let of = |passes: &[Pass], figure: fn(&Pass) -> f64| median(passes.iter().map(figure).collect());
    table.add(Row {
        name: "reverb_vs_bare_consumer".into(),
        value: of(&reverb, |pass| pass.claims_per_second),
        unit: "claims/s",
        baseline: "bare consumer that counts them",
        baseline_value: of(&bare, |pass| pass.claims_per_second),
    });
    table.add(Row {
        name: "reverb_claims_per_s_per_core".into(),
        value: 1e6 / of(&reverb, |pass| pass.cpu_per_million),
        unit: "claims/s",
        baseline: "goal",
        baseline_value: PER_CORE_GOAL,
    });
    table.add(Row {
        name: "reverb_cpu_s_per_million_claims".into(),
        value: of(&reverb, |pass| pass.cpu_per_million),
        unit: "CPU s / 1M",
        baseline: "bare consumer that counts them",
        baseline_value: of(&bare, |pass| pass.cpu_per_million),
    });
    table.add(Row {
        name: "reverb_rss_replay_mib".into(),
        value: median(peaks),
        unit: "MiB",
        baseline: "goal",
        baseline_value: GOAL_MIB,
    });
}

/// Writes the claims while pulse publishes beats, until the window of the last claim can be closed.
fn fill(cluster: &Cluster) {
    let pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "60", "--max-bpm", "60", "--bar", "4"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let claims = ClaimSource::new(cluster);
    let mut reader = cluster.reader::<backbeat_schemas::BeatFrame>(TopicName::BeatFrames);
    let mut newest = 0;
    for index in 0..CLAIMS {
        if index % 50_000 == 0 {
            newest = reader.last().expect("Kafka answers").map_or(0, |entry| entry.record.beat_index.get());
        }
        claims.send(index % AGENTS, newest);
    }
    claims.wait_until_acknowledged();
    let beats = cluster.frames().len();
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= beats + 8);
    drop(pulse);
}

/// The baseline: librdkafka's consumer with settings that keep its fetcher busy, which counts records.
fn count_only(cluster: &Cluster) -> Pass {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stack().bootstrap_servers())
        .set("group.id", "bare")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("queued.min.messages", "1000000")
        .set("fetch.queue.backoff.ms", "10")
        .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    let topic = cluster.broker().topics().name(TopicName::StatusClaims);
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(&topic, partition, Offset::Beginning).expect("a valid partition");
    }
    consumer.assign(&assignment).expect("the partitions are assigned");
    let mut unread: BTreeSet<i32> = (0..PARTITIONS).collect();
    let mut stopwatch = None;
    let mut counted = 0;
    while !unread.is_empty() {
        match consumer.poll(LIMIT).expect("Kafka answers") {
            Ok(_) => {
                stopwatch.get_or_insert_with(|| (Instant::now(), cpu_seconds(std::process::id() as i32)));
                counted += 1;
            }
            Err(KafkaError::PartitionEOF(partition)) => drop(unread.remove(&partition)),
            Err(error) => panic!("cannot read claims: {error}"),
        }
    }
    assert_eq!(counted, CLAIMS);
    let (began, cpu) = stopwatch.expect("there are claims");
    Pass::of(CLAIMS, began.elapsed(), cpu_seconds(std::process::id() as i32) - cpu)
}

/// One member, from the first of `claims` claims to the last: it decodes, checks and aggregates them, and sends its
/// partials. Returns its peak memory, in MiB, too.
pub(crate) fn through_reverb(cluster: &Cluster, claims: u64) -> (Pass, f64) {
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    let processed = || reverb.metric("backbeat_reverb_claims_processed_total").unwrap_or(0.0) as u64;
    let pass = measure(&reverb, claims, processed);
    wait_until("all reports", LIMIT, || {
        let reports = cluster.reports();
        reports.iter().map(|entry| entry.record.claims + entry.record.late_claims).sum::<i64>() == claims as i64
    });
    (pass, peak_mib(reverb.pid()))
}

/// Measures `program` until it has `processed` all `claims`. Claims that it processed before the first look at it do not
/// count.
pub(crate) fn measure(program: &Program, claims: u64, mut processed: impl FnMut() -> u64) -> Pass {
    let (before, began, cpu) = wait_for("the first claims", LIMIT, || {
        let processed = processed();
        (processed > 0).then(|| (processed, Instant::now(), cpu_seconds(program.pid())))
    });
    wait_until("all claims", LIMIT, || processed() >= claims);
    Pass::of(claims - before, began.elapsed(), cpu_seconds(program.pid()) - cpu)
}
