//! Two reverb members beside 1,000 agents and one that means ill: the delay of reports, late claims and memory under each
//! attack, compared with those without any.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_schemas::BarReport;
use backbeat_tests::{Attacker, Cluster, Program, peak_mib, percentile, wait_until};

use crate::reports::watch;
use crate::table::{Row, Table};

const LIMIT: Duration = Duration::from_mins(2);
const AGENTS: i64 = 1_000;
const PARTITIONS: i32 = 12;
/// The length of each attack.
const DURATION: Duration = Duration::from_mins(1);
/// The time from the start of invented schema ids that is not measured: reports wait for unknown ids for a minute, once an
/// hour, and those that waited come after it.
const UNKNOWN_SCHEMAS_WAIT: Duration = Duration::from_secs(75);
/// The beats of a bar, of a second each.
const BAR: i64 = 4;
/// The memory limit of the manifests in k8s/.
const MEMORY_LIMIT_MIB: f64 = 512.0;

struct Attack {
    /// The names of its figures.
    figures: [&'static str; 3],
    /// The time from its start that is not measured.
    warm_up: Duration,
    /// What the attacker does until the flag is set. It is told the newest beat.
    act: fn(&Cluster, &AtomicI64, &AtomicBool),
}

struct Outcome {
    delay_p99_ms: f64,
    late_claims: i64,
    peak_mib: f64,
}

pub(crate) fn run(table: &mut Table) {
    let quiet = measure(Duration::ZERO, |_, _, done| {
        while !done.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let attack = |figures, act: fn(&Cluster, &AtomicI64, &AtomicBool)| Attack { figures, warm_up: Duration::ZERO, act };
    let attacks = [
        Attack {
            warm_up: UNKNOWN_SCHEMAS_WAIT,
            ..attack(
                ["unknown_schemas_delay_p99_ms", "unknown_schemas_late_claims", "unknown_schemas_peak_mib"],
                unknown_schemas,
            )
        },
        attack(
            ["nested_schemas_delay_p99_ms", "nested_schemas_late_claims", "nested_schemas_peak_mib"],
            nested_schemas,
        ),
        attack(["bombs_delay_p99_ms", "bombs_late_claims", "bombs_peak_mib"], bombs),
        attack(
            ["invented_tasks_delay_p99_ms", "invented_tasks_late_claims", "invented_tasks_peak_mib"],
            invented_tasks,
        ),
        attack(["misplaced_delay_p99_ms", "misplaced_late_claims", "misplaced_peak_mib"], misplaced),
    ];
    for Attack { figures: [delay, late, peak], warm_up, act } in attacks {
        let outcome = measure(warm_up, act);
        let baseline = "the same without an attack";
        let (value, baseline_value) = (outcome.delay_p99_ms, quiet.delay_p99_ms);
        table.add(Row { name: delay.into(), value, unit: "ms", baseline, baseline_value });
        let value = outcome.late_claims as f64;
        table.add(Row { name: late.into(), value, unit: "claims", baseline, baseline_value: quiet.late_claims as f64 });
        let (value, baseline) = (outcome.peak_mib, "limit");
        table.add(Row { name: peak.into(), value, unit: "MiB", baseline, baseline_value: MEMORY_LIMIT_MIB });
    }
}

/// Runs the pipeline under `attack`. All reports must come, all members live, and a recomputation find the same bytes.
fn measure(warm_up: Duration, attack: fn(&Cluster, &AtomicI64, &AtomicBool)) -> Outcome {
    let cluster = Cluster::new(PARTITIONS);
    let pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "60", "--max-bpm", "60", "--bar", "4"]);
    let mut members: [Program; 2] = [(); 2].map(|()| cluster.serve("reverb", &["--cluster", "bench"]));
    let sim = cluster.start("agent-sim", &["--agents", &AGENTS.to_string()]);
    let is_whole = |report: &BarReport| report.agents_reporting == AGENTS;
    wait_until("a report of all agents", LIMIT, || cluster.reports().iter().any(|entry| is_whole(&entry.record)));
    let (newest, done) = (AtomicI64::new(0), AtomicBool::new(false));
    let mut unmeasured = 0;
    let received = thread::scope(|scope| {
        scope.spawn(|| attack(&cluster, &newest, &done));
        let began = Instant::now();
        let received = watch(&cluster, &newest, |received| {
            if began.elapsed() < warm_up {
                unmeasured = received;
            }
            began.elapsed() >= warm_up + DURATION
        });
        done.store(true, Ordering::Relaxed);
        received
    });
    assert!(members.iter_mut().all(Program::is_running), "a member has ended");
    let peak = members.iter().map(|member| peak_mib(member.pid())).fold(0.0, f64::max);
    drop((sim, pulse));
    wait_until("all reports", LIMIT, || {
        let closed = cluster.frames().last().map_or(0, |frame| frame.beat_index.get() / BAR);
        cluster.reports().len() as i64 >= closed
    });
    drop(members);
    let audit = cluster.backbeat(&["audit"]);
    let stderr = String::from_utf8_lossy(&audit.stderr);
    assert!(audit.status.success(), "{stderr}{}", String::from_utf8_lossy(&audit.stdout));
    let received = &received[unmeasured..];
    let expected = DURATION.as_secs() as usize / BAR as usize - 2;
    assert!(received.len() >= expected, "{} reports in {DURATION:?} of an attack", received.len());
    let delays: Vec<f64> = received.iter().map(|(_, delay)| *delay).collect();
    Outcome {
        delay_p99_ms: percentile(&delays, 99),
        late_claims: received.iter().map(|(report, _)| report.late_claims).sum(),
        peak_mib: peak,
    }
}

/// Calls `act` at this rate until `done`, with the number of the call.
fn repeat(per_second: u32, done: &AtomicBool, mut act: impl FnMut(u32)) {
    let began = Instant::now();
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        act(number);
        thread::sleep((Duration::from_secs(1) / per_second * (number + 1)).saturating_sub(began.elapsed()));
    }
}

fn unknown_schemas(cluster: &Cluster, _newest: &AtomicI64, done: &AtomicBool) {
    let attacker = Attacker::new(cluster, &[]);
    repeat(2_000, done, |number| attacker.send_unknown_schema(&format!("stranger-{}", number % 100), number));
    attacker.flush();
}

fn nested_schemas(cluster: &Cluster, _newest: &AtomicI64, done: &AtomicBool) {
    let attacker = Attacker::new(cluster, &[]);
    let records = attacker.nested_and_repeated();
    repeat(200, done, |number| attacker.send("a", &records[number as usize % 2], None));
    attacker.flush();
}

fn bombs(cluster: &Cluster, _newest: &AtomicI64, done: &AtomicBool) {
    let attackers = ["gzip", "zstd", "snappy", "lz4"].map(|codec| Attacker::with_large_batches(cluster, codec));
    let value = vec![0; 1_000_000];
    // Batches of 10 MB, which Kafka accepts of all codecs but snappy.
    repeat(8, done, |number| {
        let attacker = &attackers[number as usize % 4];
        (0..10).for_each(|_| attacker.send("stranger", &value, None));
    });
    for attacker in &attackers {
        attacker.flush();
    }
}

/// Sends 300,000 claims of new tasks of 30 agents to one partition, in the first half of each bar.
fn invented_tasks(cluster: &Cluster, newest: &AtomicI64, done: &AtomicBool) {
    const TASKS: u32 = 300_000;
    let attacker = Attacker::new(cluster, &[("linger.ms", "5"), ("compression.codec", "lz4")]);
    let (mut bar, mut sent) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        let beat = newest.load(Ordering::Relaxed);
        if beat / BAR > bar {
            (bar, sent) = (beat / BAR, 0);
        }
        if sent == TASKS || beat % BAR >= BAR / 2 {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let agent = format!("stranger-{}", sent % 30);
        attacker.send(&agent, &attacker.claim(&agent, &format!("task-{sent}"), beat), Some(0));
        sent += 1;
    }
    attacker.flush();
}

/// Sends a claim to each partition, in the first half of each bar.
fn misplaced(cluster: &Cluster, newest: &AtomicI64, done: &AtomicBool) {
    let attacker = Attacker::new(cluster, &[]);
    repeat(100, done, |_| {
        let beat = newest.load(Ordering::Relaxed);
        // It is not known at first: a claim of beat 0 would be late.
        if beat > 0 && beat % BAR < BAR / 2 {
            let claim = attacker.claim("stranger", "task", beat);
            (0..PARTITIONS).for_each(|partition| attacker.send("stranger", &claim, Some(partition)));
        }
    });
    attacker.flush();
}
