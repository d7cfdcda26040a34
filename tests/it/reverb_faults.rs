//! A group of reverb members under faults of the members, of Kafka and of the schema registry.

use std::time::{Duration, Instant};

use backbeat_broker::{TopicName, TransactionalProducer};
use backbeat_devstack::Devstack;
use backbeat_schemas::testing::frame;
use backbeat_schemas::{BarPartial, BarReport, BeatFrame, Merging, PartialBody, Verdict, wire};
use backbeat_tests::{Chaos, Cluster, Oracle, Program, own_devstack, wait_for_boundaries, wait_until};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::faults::shuffled;
use crate::reports::{check_reports, count, reverb, totals, verdicts};

const LIMIT: Duration = Duration::from_mins(2);
const MAX_MEMBERS: usize = 4;
/// The number of faults after which the test waits until reports have caught up with the beats.
const FAULTS_IN_A_ROW: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL to a member; another takes its place.
    Kill,
    /// SIGSTOP to a member for longer than its session timeout, then SIGCONT: it continues as a zombie.
    Pause,
    /// SIGTERM to a member; another takes its place.
    Stop,
    /// Adds a member, or stops one if there are [`MAX_MEMBERS`].
    Add,
    /// Kafka is stopped for a while.
    RestartKafka,
    /// Kafka hangs for a while: it accepts and answers nothing.
    HangKafka,
    /// The registry hangs while a member starts.
    HangRegistry,
    /// All members stop, the Kafka CLI resets the group's offsets, and the members start again.
    Reset,
}

struct Scenario<'c> {
    cluster: &'c Cluster,
    members: Vec<Program>,
    /// Paused members, each with the instant at which it continues.
    paused: Vec<(Program, Instant)>,
    rng: ChaCha8Rng,
}

impl Scenario<'_> {
    fn add_member(&mut self) {
        self.members.push(self.cluster.serve("reverb", &["--cluster", "it"]));
    }

    /// Removes a random member and returns it.
    fn take_random_member(&mut self) -> Program {
        let index = self.rng.random_range(0..self.members.len());
        let mut member = self.members.swap_remove(index);
        assert!(member.is_running(), "the member ended by itself: {}", member.log());
        member
    }

    /// Continues the paused members whose instant has come, or `all`.
    fn resume(&mut self, all: bool) {
        let due = |paused: &mut (Program, Instant)| all || paused.1 <= Instant::now();
        for (member, _) in self.paused.extract_if(.., due) {
            member.signal(Signal::CONT);
            self.members.push(member);
        }
    }

    fn inject(&mut self, fault: Fault, devstack: &mut Devstack) {
        match fault {
            Fault::Kill => {
                let mut member = self.take_random_member();
                member.signal(Signal::KILL);
                member.wait();
                self.add_member();
            }
            Fault::Pause => {
                let member = self.take_random_member();
                member.signal(Signal::STOP);
                // The session timeout is 6 s.
                let resume_at = Instant::now() + Duration::from_millis(self.rng.random_range(6_500..9_000));
                self.paused.push((member, resume_at));
                self.add_member();
            }
            Fault::Stop => {
                stop(self.take_random_member());
                self.add_member();
            }
            Fault::Add if self.members.len() < MAX_MEMBERS => self.add_member(),
            Fault::Add => stop(self.take_random_member()),
            Fault::RestartKafka => {
                devstack.stop_broker(0).expect("the broker stops");
                std::thread::sleep(Duration::from_millis(self.rng.random_range(0..3_000)));
                devstack.restart_broker(0).expect("the broker restarts");
            }
            Fault::HangKafka => {
                devstack.set_broker_paused(0, true).expect("the broker is paused");
                std::thread::sleep(Duration::from_millis(self.rng.random_range(500..8_000)));
                devstack.set_broker_paused(0, false).expect("the broker continues");
            }
            Fault::HangRegistry => {
                devstack.set_registry_paused(true).expect("the registry is paused");
                stop(self.take_random_member());
                self.add_member();
                std::thread::sleep(Duration::from_millis(self.rng.random_range(500..3_000)));
                devstack.set_registry_paused(false).expect("the registry continues");
            }
            Fault::Reset => {
                self.resume(true);
                let count = self.members.len();
                self.members.drain(..).for_each(stop);
                let shift = format!("-{}", self.rng.random_range(1..300));
                if self.rng.random() {
                    self.cluster.reset_to_earliest();
                } else {
                    self.cluster.reset_offsets(&["--shift-by", &shift]);
                }
                (0..count).for_each(|_| self.add_member());
            }
        }
    }
}

/// Stops a member and asserts that it exits with 0, which must take it seconds only.
fn stop(mut member: Program) {
    member.signal(Signal::TERM);
    let code = member.wait();
    assert_eq!(code, 0, "{}", member.log());
}

/// Waits until the window before the current one has a report.
fn wait_for_reports_to_catch_up(cluster: &Cluster, members: &[Program]) {
    let frames = cluster.frames();
    let bar = frames.last().map_or(0, |last| last.beat_index.get() - i64::from(last.bar_length));
    let reported = || cluster.reports().iter().any(|entry| entry.record.to_beat.get() >= bar);
    wait_with_members("reports to catch up with the beats", members, reported);
}

/// Waits until `condition` is true; panics after the limit with the status and the log of each member.
fn wait_with_members(description: &str, members: &[Program], mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        let state = |member: &Program| format!("{:?}\n{}", member.get("/api/v1/status"), member.log());
        let states = || members.iter().map(state).collect::<Vec<_>>().join("\n\n");
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {description}; members:\n{}", states());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Stops the agents, waits until their windows close, and stops pulse; then compares all reports with the oracle's.
fn check(cluster: &Cluster, mut agents: Program, pulse: &Program, members: &[Program]) {
    agents.signal(Signal::TERM);
    agents.wait();
    let logs = || format!("log of the agents:\n{}\nlog of pulse:\n{}", agents.log(), pulse.log());
    wait_for_boundaries(cluster, LIMIT, logs);
    let beats = cluster.frames().len();
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= beats + 9);
    pulse.signal(Signal::TERM);
    wait_until("pulse to end", LIMIT, || pulse.get("/health").is_none());
    let windows = Oracle::read(cluster).reports().len();
    wait_with_members(&format!("{windows} reports"), members, || cluster.reports().len() >= windows);
    let oracle = check_reports(cluster);
    let (counted, late, invalid) = totals(&cluster.reports());
    assert_eq!(counted + late + invalid, oracle.claims() as i64);
}

#[test]
fn reports_under_forty_faults_equal_the_oracles() {
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

    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 5);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "480", "--max-bpm", "480", "--bar", "4"]);
    let mut scenario = Scenario { cluster: &cluster, members: Vec::new(), paused: Vec::new(), rng };
    (0..3).for_each(|_| scenario.add_member());
    let agents = cluster.start("agent-sim", &["--agents", "25", "--late-rate", "0.05", "--malformed-rate", "0.02"]);
    wait_for_reports_to_catch_up(&cluster, &scenario.members);
    for (number, fault) in faults.into_iter().enumerate() {
        eprintln!("fault {number}: {fault:?}, seed {seed}");
        scenario.inject(fault, &mut devstack);
        std::thread::sleep(Duration::from_millis(scenario.rng.random_range(0..1_500)));
        scenario.resume(false);
        if number % FAULTS_IN_A_ROW == FAULTS_IN_A_ROW - 1 {
            wait_for_reports_to_catch_up(&cluster, &scenario.members);
        }
    }
    scenario.resume(true);
    for member in &mut scenario.members {
        assert!(member.is_running(), "the member ended by itself: {}", member.log());
    }
    check(&cluster, agents, &pulse, &scenario.members);
    let verdicts = verdicts(&cluster);
    assert!(count(&verdicts, Verdict::Verified) > 0, "resets must make reverb compute windows again: {verdicts:?}");
    assert_eq!(count(&verdicts, Verdict::Rewritten) + count(&verdicts, Verdict::Skipped), 0, "{verdicts:?}");
    drop(scenario);
    devstack.stop();
}

/// A short run of `make chaos`.
#[test]
fn reports_under_chaos_equal_the_oracles() {
    let result = Chaos { faults: 30, seed: 1, load: 0, agents: 50 }.run();
    assert!(result.faults.len() >= 5, "{:?}", result.faults);
    assert!(result.rescued > 0, "{result:?}");
}

/// The newest records can be read, but not those before them: their schema is not known to the registry. While it hangs,
/// that is the same for a member that has just started.
#[test]
fn member_that_cannot_read_the_topics_yet_stops_in_good_order() {
    let cluster = Cluster::new(1);
    let (frame, broker, timeout) = (frame(0, 4), cluster.broker(), Duration::from_secs(10));
    let nobody = PartialBody::Merging(Merging { member: None, logic: 1 });
    let merging = BarPartial::new(frame.window_id, frame.beat_index, nobody);
    let readable = [
        (TopicName::BeatFrames, wire(cluster.register::<BeatFrame>(TopicName::BeatFrames), &frame)),
        (TopicName::BarPartials, wire(cluster.register::<BarPartial>(TopicName::BarPartials), &merging)),
    ];
    let producer = TransactionalProducer::open(broker, "test-unknown-schema", timeout, timeout);
    let mut producer = producer.expect("Kafka answers");
    let mut transaction = producer.begin().expect("the transaction begins");
    for (topic, readable) in &readable {
        let unknown = [&[0][..], &999_999_u32.to_be_bytes(), &readable[5..]].concat();
        for value in [&unknown, readable] {
            transaction.send(&broker.topics().name(*topic), "key", value, 0).expect("there is room in the queue");
        }
    }
    transaction.commit().expect("the transaction commits");
    let member = cluster.serve("reverb", &["--cluster", "c"]);
    wait_until("the member to read the topics", LIMIT, || member.log().contains("cannot read the topics yet"));
    stop(member);
}

#[test]
fn reports_after_the_loss_of_one_of_three_brokers_continue() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(3, dir.path());
    let cluster = Cluster::on(&devstack, 4);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"]);
    let members = [reverb(&cluster, &[]), reverb(&cluster, &[])];
    let agents = cluster.start("agent-sim", &["--agents", "25"]);
    wait_for_reports_to_catch_up(&cluster, &members);
    for broker in [0, 2] {
        let reports = cluster.reports().len();
        devstack.kill_broker(broker).expect("the broker is killed");
        let more =
            || cluster.try_read_all::<BarReport>(TopicName::BarReports).is_ok_and(|all| all.len() >= reports + 5);
        wait_until("five reports without the broker", LIMIT, more);
        devstack.restart_broker(broker).expect("the broker restarts");
        wait_for_reports_to_catch_up(&cluster, &members);
    }
    check(&cluster, agents, &pulse, &members);
    drop(members);
    devstack.stop();
}
