//! The delay from the beat that closes a window to its rosters in a consumer's hands, for 100,000 agents of which 1,000 fall
//! silent, 500 stall and 200 overdraw; and that these are named, and no others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_schemas::{BarRoster, BeatFrame, RosterKind, StatusClaim, testing};
use backbeat_tests::{Cluster, now_ms, percentile, wait_for, wait_until};

use crate::claim_source::RecordSource;
use crate::table::{Row, Table};

const AGENTS: i64 = 100_000;
const SILENT: i64 = 1_000;
const STALLED: i64 = 500;
const OVERDRAWN: i64 = 200;
const LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(5);
/// Bars in which all agents claim and bars with trouble, in turn.
const ROUNDS: i64 = 5;
const DELAY_GOAL_MS: f64 = 250.0;

pub(crate) fn run(table: &mut Table) {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "24", "--bar", "2"]);
    let _reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    wait_until("a report", LIMIT, || !cluster.reports().is_empty());
    let claims = RecordSource::<StatusClaim>::new(&cluster, TopicName::StatusClaims);
    let mut frames = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    let end = frames.end_offset().expect("Kafka answers");
    frames.seek(end).expect("Kafka answers");
    let mut rosters = cluster.reader::<BarRoster>(TopicName::BarRosters);
    let end = rosters.end_offset().expect("Kafka answers");
    rosters.seek(end).expect("Kafka answers");
    let mut emitted = HashMap::new();
    let done = AtomicBool::new(false);
    let (troubled, received) = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut received: Vec<(BarRoster, f64)> = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if let Some(entry) = rosters.poll(POLL).expect("Kafka answers") {
                    received.push((entry.record, now_ms()));
                }
            }
            received
        });
        let mut next_downbeat = || {
            wait_for("a downbeat", LIMIT, || {
                let frame = frames.poll(POLL).expect("Kafka answers")?.record;
                emitted.insert(frame.beat_index, frame.emitted_at.millis() as f64);
                frame.downbeat.then_some(frame.beat_index)
            })
        };
        let mut troubled = Vec::new();
        for round in 0..2 * ROUNDS {
            let is_troubled = round % 2 == 1;
            let opening = next_downbeat();
            for agent in (0..AGENTS).filter(|agent| !is_troubled || *agent >= SILENT) {
                let claim = claim(agent, opening.get(), round, is_troubled);
                claims.send(&claim.agent_id, &claim);
            }
            claims.wait_until_acknowledged();
            troubled.extend(is_troubled.then_some(opening));
        }
        next_downbeat();
        thread::sleep(Duration::from_secs(2));
        done.store(true, Ordering::Relaxed);
        (troubled, receiver.join().expect("the receiver does not panic"))
    });
    let mut delays = Vec::new();
    for opening in troubled {
        let of_window = received.iter().filter(|(roster, _)| roster.from_beat == opening);
        let mut named = BTreeMap::<&str, BTreeSet<String>>::new();
        for (roster, at) in of_window {
            delays.push(at - emitted[&opening.plus(2)]);
            for kind in RosterKind::ALL {
                let agents = roster.entries(kind).iter().map(|entry| entry.agent_id.clone());
                named.entry(kind.as_str()).or_default().extend(agents);
            }
        }
        let expected = |range: std::ops::Range<i64>| range.map(name).collect::<BTreeSet<String>>();
        let expected = [
            ("silent", expected(0..SILENT)),
            ("stalled", expected(SILENT..SILENT + STALLED)),
            ("overdrawn", expected(SILENT + STALLED..SILENT + STALLED + OVERDRAWN)),
        ];
        assert_eq!(named, BTreeMap::from(expected), "all are named, and no others");
    }
    for (name, percent) in [("roster_delay_p50_ms", 50), ("roster_delay_p99_ms", 99)] {
        let value = percentile(&delays, percent);
        table.add(Row { name: name.into(), value, unit: "ms", baseline: "goal", baseline_value: DELAY_GOAL_MS });
    }
}

fn name(agent: i64) -> String {
    format!("agent-{agent:06}")
}

/// Returns the claim of an agent in one round. All get on but those that stall.
fn claim(agent: i64, beat: i64, round: i64, is_troubled: bool) -> StatusClaim {
    let stalls = is_troubled && (SILENT..SILENT + STALLED).contains(&agent);
    let overdraws = is_troubled && (SILENT + STALLED..SILENT + STALLED + OVERDRAWN).contains(&agent);
    let progress = if stalls { (round - 1) as f64 } else { round as f64 } / 100.0;
    StatusClaim { progress, beats_left: if overdraws { -1 } else { 1 }, ..testing::claim(&name(agent), beat) }
}
