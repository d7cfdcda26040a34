//! Members of reverb's group, and the Kafka under them, that fail in a row.

use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_devstack::Devstack;
use backbeat_schemas::{BarReport, Verdict};
use backbeat_tests::{Cluster, Program, own_devstack, wait_until};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rdkafka::consumer::Consumer;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::faults::shuffled;
use crate::oracle::Oracle;
use crate::pipeline::{check_reports, count, reverb, totals, verdicts};

const LIMIT: Duration = Duration::from_mins(2);
const MAX_MEMBERS: usize = 4;
/// After so many faults it is waited until reports have caught up with the beats.
const FAULTS_IN_A_ROW: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL to a member; another takes its place.
    Kill,
    /// SIGSTOP to a member for longer than its session lasts, then SIGCONT: it wakes as a zombie.
    Pause,
    /// SIGTERM to a member; another takes its place.
    Stop,
    /// One member more.
    Add,
    /// Kafka is stopped for a while.
    RestartKafka,
    /// Kafka takes nothing and answers nothing for a while.
    HangKafka,
    /// The registry hangs while a member starts.
    HangRegistry,
    /// All members stop, and the stock tool puts the group back.
    Reset,
}

struct Scene<'c> {
    cluster: &'c Cluster,
    members: Vec<Program>,
    /// Members that are stopped, and when each wakes.
    paused: Vec<(Program, Instant)>,
    rng: ChaCha8Rng,
}

impl Scene<'_> {
    fn add(&mut self) {
        self.members.push(self.cluster.serve("reverb", &["--cluster", "it"]));
    }

    fn any(&mut self) -> Program {
        let index = self.rng.random_range(0..self.members.len());
        let mut member = self.members.swap_remove(index);
        assert!(member.is_running(), "it ended by itself: {}", member.log());
        member
    }

    /// Wakes those whose time has come.
    fn wake(&mut self, all: bool) {
        let due = |paused: &mut (Program, Instant)| all || paused.1 <= Instant::now();
        for (member, _) in self.paused.extract_if(.., due) {
            member.signal(Signal::CONT);
            self.members.push(member);
        }
    }

    fn inflict(&mut self, fault: Fault, devstack: &mut Devstack) {
        match fault {
            Fault::Kill => {
                let mut member = self.any();
                member.signal(Signal::KILL);
                member.wait();
                self.add();
            }
            Fault::Pause => {
                let member = self.any();
                member.signal(Signal::STOP);
                // Its session lasts 6 s.
                let wakes = Instant::now() + Duration::from_millis(self.rng.random_range(6_500..9_000));
                self.paused.push((member, wakes));
                self.add();
            }
            Fault::Stop => {
                stop(self.any());
                self.add();
            }
            Fault::Add if self.members.len() < MAX_MEMBERS => self.add(),
            Fault::Add => stop(self.any()),
            Fault::RestartKafka => {
                devstack.stop_broker(0).expect("it stops");
                std::thread::sleep(Duration::from_millis(self.rng.random_range(0..3_000)));
                devstack.start_broker(0).expect("it starts again");
            }
            Fault::HangKafka => {
                devstack.hang_broker(0, true).expect("it hangs");
                std::thread::sleep(Duration::from_millis(self.rng.random_range(500..8_000)));
                devstack.hang_broker(0, false).expect("it goes on");
            }
            Fault::HangRegistry => {
                devstack.hang_registry(true).expect("it hangs");
                stop(self.any());
                self.add();
                std::thread::sleep(Duration::from_millis(self.rng.random_range(500..3_000)));
                devstack.hang_registry(false).expect("it goes on");
            }
            Fault::Reset => {
                self.wake(true);
                let count = self.members.len();
                self.members.drain(..).for_each(stop);
                let back = format!("-{}", self.rng.random_range(1..300));
                if self.rng.random() {
                    self.cluster.reset(&["--to-earliest"]);
                } else {
                    self.cluster.reset(&["--shift-by", &back]);
                }
                (0..count).for_each(|_| self.add());
            }
        }
    }
}

/// Ends a member in good order, which takes it seconds at most: then it would be killed.
fn stop(mut member: Program) {
    member.signal(Signal::TERM);
    let code = member.wait();
    assert_eq!(code, 0, "{}", member.log());
}

/// Waits until the window before the present one has a report.
fn wait_for_reports_to_catch_up(cluster: &Cluster, members: &[Program]) {
    let frames = cluster.frames();
    let bar = frames.last().map_or(0, |last| last.beat_index.get() - i64::from(last.bar_length));
    let reported = || cluster.reports().iter().any(|entry| entry.record.to_beat.get() >= bar);
    wait_or_tell("reports that catch up with the beats", members, reported);
}

/// Waits until `holds`; tells what the members say where it does not.
fn wait_or_tell(what: &str, members: &[Program], mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        let told = |member: &Program| format!("{:?}\n{}", member.get("/api/v1/status"), member.log());
        let told = || members.iter().map(told).collect::<Vec<_>>().join("\n\n");
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}; {}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until every claim lies below a boundary: before, it is in no window.
fn wait_for_boundaries(cluster: &Cluster, agents: &Program, pulse: &Program) {
    let topic = cluster.broker().topics().name(TopicName::StatusClaims);
    let consumer = cluster.broker().reader().expect("a consumer");
    let end = |partition| consumer.fetch_watermarks(&topic, partition, LIMIT).expect("Kafka answers").1;
    let last = || cluster.frames().pop().expect("there are frames");
    let ends: Vec<i64> = (0..).zip(last().claim_offsets).map(|(partition, _)| end(partition)).collect();
    let deadline = Instant::now() + LIMIT;
    while last().claim_offsets.iter().zip(&ends).any(|(boundary, end)| boundary < end) {
        let logs = || format!("the agents said:\n{}\npulse said:\n{}", agents.log(), pulse.log());
        assert!(Instant::now() < deadline, "boundaries {:?} of ends {ends:?}; {}", last().claim_offsets, logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ends the agents, lets the windows close and ends pulse; then compares all reports with the oracle's.
fn check(cluster: &Cluster, mut agents: Program, pulse: &Program, members: &[Program]) {
    agents.signal(Signal::TERM);
    agents.wait();
    wait_for_boundaries(cluster, &agents, pulse);
    let beats = cluster.frames().len();
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= beats + 9);
    pulse.signal(Signal::TERM);
    wait_until("pulse's end", LIMIT, || pulse.get("/health").is_none());
    let windows = Oracle::read(cluster).reports().len();
    wait_or_tell(&format!("{windows} reports"), members, || cluster.reports().len() >= windows);
    let oracle = check_reports(cluster);
    let (counted, late, invalid) = totals(&cluster.reports());
    assert_eq!(counted + late + invalid, oracle.claims() as i64);
}

#[test]
fn forty_faults_in_a_row_leave_one_right_report_a_window() {
    let (faults, seed, rng) = shuffled(&[
        (Fault::Kill, 11),
        (Fault::Pause, 7),
        (Fault::Stop, 7),
        (Fault::Add, 4),
        (Fault::RestartKafka, 3),
        (Fault::HangKafka, 2),
        (Fault::HangRegistry, 2),
        (Fault::Reset, 4),
    ]);
    assert_eq!(faults.len(), 40);

    let dir = TempDir::new().expect("a directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 5);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "480", "--max-bpm", "480", "--bar", "4"]);
    let mut scene = Scene { cluster: &cluster, members: Vec::new(), paused: Vec::new(), rng };
    (0..3).for_each(|_| scene.add());
    let agents = cluster.start("agent-sim", &["--agents", "25", "--late-rate", "0.05", "--malformed-rate", "0.02"]);
    wait_for_reports_to_catch_up(&cluster, &scene.members);
    for (number, fault) in faults.into_iter().enumerate() {
        eprintln!("fault {number}: {fault:?}, seed {seed}");
        scene.inflict(fault, &mut devstack);
        std::thread::sleep(Duration::from_millis(scene.rng.random_range(0..1_500)));
        scene.wake(false);
        if number % FAULTS_IN_A_ROW == FAULTS_IN_A_ROW - 1 {
            wait_for_reports_to_catch_up(&cluster, &scene.members);
        }
    }
    scene.wake(true);
    for member in &mut scene.members {
        assert!(member.is_running(), "it ended by itself: {}", member.log());
    }
    check(&cluster, agents, &pulse, &scene.members);
    let found = verdicts(&cluster);
    assert!(count(&found, Verdict::Verified) > 0, "resets made windows be computed again: {found:?}");
    assert_eq!(count(&found, Verdict::Rewritten) + count(&found, Verdict::Skipped), 0, "{found:?}");
    drop(scene);
    devstack.stop();
}

#[test]
fn of_three_brokers_one_may_die() {
    let dir = TempDir::new().expect("a directory");
    let mut devstack = own_devstack(3, dir.path());
    let cluster = Cluster::on(&devstack, 4);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"]);
    let members = [reverb(&cluster, &[]), reverb(&cluster, &[])];
    let agents = cluster.start("agent-sim", &["--agents", "25"]);
    wait_for_reports_to_catch_up(&cluster, &members);
    for broker in [0, 2] {
        let reports = cluster.reports().len();
        devstack.kill_broker(broker).expect("it is killed");
        let more =
            || cluster.try_read_all::<BarReport>(TopicName::BarReports).is_ok_and(|all| all.len() >= reports + 5);
        wait_until("five reports without it", LIMIT, more);
        devstack.start_broker(broker).expect("it starts again");
        wait_for_reports_to_catch_up(&cluster, &members);
    }
    check(&cluster, agents, &pulse, &members);
    drop(members);
    devstack.stop();
}
