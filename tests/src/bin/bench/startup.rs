//! The time from the start of pulse and of a reverb member until they work, with a long history of beats beside a short one.

use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_schemas::{BeatFrame, HlcClock, Tempo, Timestamp, testing};
use backbeat_tests::{Cluster, now_ms, wait_for};
use rdkafka::consumer::Consumer;

use crate::claim_source::{ClaimSource, RecordSource};
use crate::table::{Row, Table, median};

const POLL: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_mins(5);
const SHORT: u32 = 10_000;
const LONG: u32 = 2_000_000;
/// The newest frames, whose boundaries are above all claims: where the member starts.
const RECENT: u32 = 1_000;
const CLAIMS: u64 = 1_000;
const PARTITIONS: i32 = 12;
const ROUNDS: usize = 5;
/// The cluster's name in the frames of `testing::frame`.
const CLUSTER: &str = "c";
const BPM: &str = "1200";
const BAR_LENGTH: u16 = 4;
/// The flags of pulse on a cluster of [`cluster_with_history`].
pub(crate) const PULSE_FLAGS: [&str; 8] = ["--cluster", CLUSTER, "--bpm", BPM, "--max-bpm", BPM, "--bar", "4"];

pub(crate) fn run(table: &mut Table) {
    let [(pulse_short, reverb_short), (pulse_long, reverb_long)] =
        [SHORT, LONG].map(|frames| startup(&cluster_with_history(frames)));
    for (name, value, baseline_value) in [
        ("pulse_startup_ms_2m_frames", pulse_long, pulse_short),
        ("reverb_startup_ms_2m_frames", reverb_long, reverb_short),
    ] {
        table.add(Row { name: name.into(), value, unit: "ms", baseline: "with 10,000 frames", baseline_value });
    }
}

/// A cluster after `frames` frames, with the offsets of reverb's group at the end.
pub(crate) fn cluster_with_history(frames: u32) -> Cluster {
    let cluster = Cluster::new(PARTITIONS);
    let claims = ClaimSource::new(&cluster);
    (0..CLAIMS).for_each(|agent| claims.send(agent, 0));
    claims.wait_until_acknowledged();
    publish_frames(&cluster, frames);
    cluster.reset_offsets(&["--to-latest"]);
    cluster
}

/// The medians, in milliseconds, of the times from the start of pulse to its first beat and from the start of a member until it
/// is ready.
pub(crate) fn startup(cluster: &Cluster) -> (f64, f64) {
    let mut reader = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    let (mut pulse_times, mut reverb_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let newest = reader.last().expect("Kafka answers").expect("there are frames");
        reader.seek(newest.offset + 1).expect("Kafka answers");
        let began = Instant::now();
        let pulse = cluster.serve("pulse", &PULSE_FLAGS);
        let poll = || reader.poll(POLL).unwrap_or_else(|error| panic!("{error}: {}", pulse.log()));
        let next = wait_for("a beat", LIMIT, poll);
        pulse_times.push(began.elapsed().as_secs_f64() * 1_000.0);
        assert!(next.record.beat_index > newest.record.beat_index);
        let began = Instant::now();
        let reverb = cluster.serve("reverb", &["--cluster", CLUSTER]);
        reverb.wait_ready();
        reverb_times.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    (median(pulse_times), median(reverb_times))
}

/// Writes frames as if pulse had published them up to now.
fn publish_frames(cluster: &Cluster, count: u32) {
    let consumer = cluster.broker().reader().expect("a consumer");
    let claims = cluster.broker().topics().name(TopicName::StatusClaims);
    let end = |partition| consumer.fetch_watermarks(&claims, partition, LIMIT).expect("Kafka answers").1;
    let ends: Vec<i64> = (0..PARTITIONS).map(end).collect();
    let frames = RecordSource::new(cluster, TopicName::BeatFrames);
    let tempo: Tempo = BPM.parse().expect("a valid tempo");
    let period = tempo.period_ms();
    let mut clock = HlcClock::new(1);
    let start = Timestamp::from_millis(now_ms() as i64 - i64::from(count) * period);
    for index in 0..count {
        let at = start.plus_millis(i64::from(index) * period);
        let frame = BeatFrame {
            hlc: clock.tick(at),
            deadline_at: at.plus_millis(period),
            tempo_bpm: tempo,
            scheduled_at: at,
            emitted_at: at,
            anchor_at: start,
            claim_offsets: if index + RECENT < count { vec![0; ends.len()] } else { ends.clone() },
            ..testing::frame(index, BAR_LENGTH)
        };
        frames.send(CLUSTER, &frame);
    }
    frames.wait_until_acknowledged();
}
