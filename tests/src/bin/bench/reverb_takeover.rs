//! How late reports are while members of a group of three are dead or hang: from the fault, or from the window's closing
//! frame if that is later, to the receipt of the window's report by a consumer.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_schemas::{BarReport, BeatIndex};
use backbeat_tests::{Cluster, Program, now_ms, percentile, wait_for};
use rustix::process::Signal;

use crate::table::{Row, Table, median};

const LIMIT: Duration = Duration::from_mins(1);
/// The times that each fault is caused, at each tempo.
const ROUNDS: usize = 3;
const P99_GOAL_MS: f64 = 2_000.0;
const MEDIAN_GOAL_MS: f64 = 1_300.0;
/// The time in which Kafka Streams notices that a member is dead: the default of `session.timeout.ms`.
const KAFKA_STREAMS_SESSION_MS: f64 = 45_000.0;
/// The pause before each fault, in which the group becomes stable.
const SETTLE: Duration = Duration::from_secs(3);
/// The windows that close so soon after a fault count. It is the session timeout: the group does not know of the fault.
const AFFECTED_MS: f64 = 6_000.0;
/// The time after a fault until all those windows are reported.
const WATCHED: Duration = Duration::from_secs(12);

#[derive(Debug, Clone, Copy)]
enum Fault {
    KillMerging,
    KillOther,
    PauseMerging,
    PauseOther,
    KillAllButOne,
}

const FAULTS: [Fault; 5] =
    [Fault::KillMerging, Fault::KillOther, Fault::PauseMerging, Fault::PauseOther, Fault::KillAllButOne];

pub(crate) fn run(table: &mut Table) {
    // Windows of 2.5 s, and of one second.
    let slow = delays(&["--bpm", "24", "--bar", "1"]);
    let fast = delays(&["--bpm", "240", "--max-bpm", "240", "--bar", "4"]);
    let first: Vec<f64> = slow.iter().chain(&fast).map(|delays| delays[0]).collect();
    let all: Vec<f64> = slow.into_iter().chain(fast).flatten().collect();
    let rows = [
        ("reverb_takeover_median_ms", median(all.clone()), "goal for the median", MEDIAN_GOAL_MS),
        ("reverb_takeover_p99_ms", percentile(&all, 99), "goal for the p99", P99_GOAL_MS),
        (
            "reverb_takeover_first_median_ms",
            median(first),
            "session timeout of Kafka Streams",
            KAFKA_STREAMS_SESSION_MS,
        ),
    ];
    for (name, value, baseline, baseline_value) in rows {
        table.add(Row { name: name.into(), value, unit: "ms", baseline, baseline_value });
    }
}

/// Returns for each fault the delays of the windows that it affected, in milliseconds, the oldest window's first.
fn delays(pulse_args: &[&str]) -> Vec<Vec<f64>> {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &[&["--cluster", "bench"], pulse_args].concat());
    let mut members: Vec<Program> = (0..3).map(|_| member(&cluster)).collect();
    let _agents = cluster.start("agent-sim", &["--agents", "100"]);
    let done = AtomicBool::new(false);
    let (faults, received) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&cluster, &done));
        let mut faults = Vec::new();
        for _ in 0..ROUNDS {
            for fault in FAULTS {
                members.iter().for_each(Program::wait_ready);
                thread::sleep(SETTLE);
                faults.push((fault, cause(&cluster, fault, &mut members)));
            }
        }
        done.store(true, Ordering::Relaxed);
        (faults, watcher.join().expect("the watcher has not panicked"))
    });
    let closing: HashMap<BeatIndex, f64> =
        cluster.frames().iter().map(|frame| (frame.beat_index, frame.emitted_at.millis() as f64)).collect();
    let delays = faults.into_iter().map(|(fault, at)| {
        let affected = received.iter().filter_map(|(to, received)| {
            let closed = closing.get(&to.plus(1))?;
            let is_affected = *received > at && *closed < at + AFFECTED_MS;
            is_affected.then(|| received - closed.max(at))
        });
        let affected: Vec<f64> = affected.collect();
        eprintln!("{fault:?}: {affected:.0?}");
        affected
    });
    delays.filter(|affected| !affected.is_empty()).collect()
}

fn member(cluster: &Cluster) -> Program {
    cluster.serve("reverb", &["--cluster", "bench"])
}

/// Returns by the last beat of each window the time at which its report was received.
fn watch(cluster: &Cluster, done: &AtomicBool) -> BTreeMap<BeatIndex, f64> {
    let mut reports = cluster.reader::<BarReport>(TopicName::BarReports);
    let end = reports.end_offset().expect("Kafka answers");
    reports.seek(end).expect("Kafka answers");
    let mut received = BTreeMap::new();
    while !done.load(Ordering::Relaxed) {
        if let Some(entry) = reports.poll(Duration::from_millis(5)).expect("Kafka answers") {
            received.entry(entry.record.to_beat).or_insert_with(now_ms);
        }
    }
    received
}

/// Causes the fault, waits until its windows are reported, and restores the group. Returns the time of the fault.
fn cause(cluster: &Cluster, fault: Fault, members: &mut Vec<Program>) -> f64 {
    let merging = wait_for("a member that runs the merge", LIMIT, || members.iter().position(is_merging));
    let other = usize::from(merging == 0);
    let victims = match fault {
        Fault::KillMerging | Fault::PauseMerging => vec![members.swap_remove(merging)],
        Fault::KillOther | Fault::PauseOther => vec![members.swap_remove(other)],
        // The merging member is among them.
        Fault::KillAllButOne => {
            members.swap(merging, 0);
            members.drain(..2).collect()
        }
    };
    let signal = match fault {
        Fault::PauseMerging | Fault::PauseOther => Signal::STOP,
        _ => Signal::KILL,
    };
    let (began, began_ms) = (Instant::now(), now_ms());
    for victim in &victims {
        victim.signal(signal);
    }
    thread::sleep(WATCHED.saturating_sub(began.elapsed()));
    for mut victim in victims {
        if signal == Signal::STOP {
            victim.signal(Signal::CONT);
            members.push(victim);
        } else {
            victim.wait();
            members.push(member(cluster));
        }
    }
    began_ms
}

fn is_merging(member: &Program) -> bool {
    member.get_json("/api/v1/status")["merging"] == true
}
