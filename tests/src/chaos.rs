//! Chaos: pulse, reverb and agents as real processes, under faults in an order that a seed determines. Every report must be
//! the oracle's, and is timed from its closing frame.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_devstack::Devstack;
use backbeat_schemas::{BarPartial, BarReport, BeatIndex, PartialBody};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    ApiKey, Cluster, KafkaProxy, Oracle, Program, ProxyFault, PulseNodes, assert_reports_equal, now_ms, own_devstack,
    wait_for_boundaries, wait_until,
};

const LIMIT: Duration = Duration::from_mins(2);
const MEMBERS: usize = 3;
const NODES: usize = 3;
/// The mean time between two faults.
const MEAN_PAUSE: Duration = Duration::from_millis(2_400);
/// The kinds of requests that may be late, lost or doubled.
const FAULTY_REQUESTS: [ApiKey; 6] = [
    ApiKey::EndTxn,
    ApiKey::Produce,
    ApiKey::AddPartitionsToTxn,
    ApiKey::Fetch,
    ApiKey::ListOffsets,
    ApiKey::OffsetCommit,
];
/// Beats per bar.
const BAR: u32 = 4;
/// What happened around a report that comes later is printed.
const LATE_MS: f64 = 3_000.0;
/// Delays within this time after Kafka has continued do not count, either.
const KAFKA_RECOVERY_MS: f64 = 3_000.0;

/// The extent of a run.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    /// The number of faults.
    pub faults: usize,
    /// The seed of their order, victims and times.
    pub seed: u64,
    /// The number of threads that keep a core busy all the while.
    pub load: usize,
    /// The number of agents.
    pub agents: usize,
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct ChaosResult {
    /// The number of faults by kind.
    pub faults: BTreeMap<String, usize>,
    /// The number of reports, each of which equals the oracle's.
    pub reports: usize,
    /// The number of claims, each of which is in one report.
    pub claims: usize,
    /// The number of merging records: of takeovers, and of renewals of the lease.
    pub merging_records: usize,
    /// The number of shares that a merge read itself.
    pub rescued: usize,
    /// The milliseconds from each window's closing frame to the receipt of its report, ascending, without the time in which
    /// Kafka did not answer.
    pub delays_ms: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL to a reverb member; another takes its place.
    KillMember,
    /// SIGKILL to a pulse node, which is started again.
    KillNode,
    /// SIGSTOP to a reverb member for a while.
    PauseMember,
    /// SIGSTOP to a pulse node for a while.
    PauseNode,
    /// SIGTERM to a reverb member; another takes its place.
    StopMember,
    /// Kafka accepts and answers nothing for a while.
    HangKafka,
    /// Kafka is stopped for a while.
    RestartKafka,
    /// A request is late, lost or doubled on its way to Kafka, or its response on its way back.
    Request,
}

impl Fault {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..100) {
            0..42 => Self::KillMember,
            42..64 => Self::KillNode,
            64..72 => Self::PauseMember,
            72..78 => Self::PauseNode,
            78..84 => Self::StopMember,
            84..92 => Self::Request,
            92..98 => Self::HangKafka,
            _ => Self::RestartKafka,
        }
    }
}

struct Scenario<'c> {
    cluster: &'c Cluster,
    /// Between the programs and Kafka.
    proxy: KafkaProxy,
    nodes: PulseNodes<'c>,
    members: Vec<Program>,
    /// Paused members, and the times at which they continue.
    paused: Vec<(Program, Instant)>,
    /// The paused node, and the time at which it continues.
    paused_node: Option<(usize, Instant)>,
    history: History,
    rng: ChaCha8Rng,
}

/// What was done. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Default)]
struct History {
    faults: Vec<(f64, Fault)>,
    /// The times in which Kafka did not answer.
    hung: Vec<(f64, f64)>,
}

/// What a consumer saw. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Default)]
struct Seen {
    /// The time at which each window's report was received, by the window's last beat.
    reports: BTreeMap<BeatIndex, f64>,
    /// The records of `barpartials` with the time of their receipt, by their window's first beat.
    partials: Vec<(f64, BeatIndex, String)>,
}

impl Chaos {
    /// Runs the faults.
    ///
    /// # Panics
    ///
    /// If a report is missing, there twice or different from the oracle's, or if a program ends by itself.
    pub fn run(self) -> ChaosResult {
        let dir = TempDir::new().expect("a temporary directory");
        let mut devstack = own_devstack(1, dir.path());
        let cluster = Cluster::on(&devstack, 6);
        let done = AtomicBool::new(false);
        let mut result = ChaosResult::default();
        thread::scope(|scope| {
            for _ in 0..self.load {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let watcher = scope.spawn(|| watch(&cluster, &done));
            let at_end = SetAtEnd(&done);
            let history = self.cause_faults(&cluster, &mut devstack, &mut result);
            drop(at_end);
            let seen = watcher.join().expect("the watcher has not panicked");
            result.delays_ms = delays(&cluster, &seen, &history);
        });
        devstack.stop();
        result
    }

    fn cause_faults(self, cluster: &Cluster, devstack: &mut Devstack, result: &mut ChaosResult) -> History {
        let proxy = KafkaProxy::start(cluster.broker().bootstrap_servers());
        let servers = proxy.bootstrap_servers();
        let through_proxy = ["--bootstrap-servers", &servers];
        let pulse = ["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", &BAR.to_string()];
        let mut scenario = Scenario {
            cluster,
            nodes: PulseNodes::start(cluster, NODES, &[&pulse[..], &through_proxy].concat()),
            members: (0..MEMBERS).map(|_| member(cluster, &proxy)).collect(),
            proxy,
            paused: Vec::new(),
            paused_node: None,
            history: History::default(),
            rng: ChaCha8Rng::seed_from_u64(self.seed),
        };
        let agents = self.agents.to_string();
        let load = ["--agents", &agents, "--late-rate", "0.05", "--malformed-rate", "0.02"];
        let agents = cluster.start("agent-sim", &[&load[..], &through_proxy].concat());
        wait_until("a report", LIMIT, || !cluster.reports().is_empty());
        for number in 0..self.faults {
            let fault = Fault::random(&mut scenario.rng);
            eprintln!("fault {number} of {}: {fault:?}, seed {}", self.faults, self.seed);
            *result.faults.entry(format!("{fault:?}")).or_default() += 1;
            scenario.history.faults.push((now_ms(), fault));
            scenario.cause(fault, devstack);
            let pause = scenario.rng.random_range(0.0..2.0);
            scenario.wait(MEAN_PAUSE.mul_f64(pause));
        }
        scenario.resume(true);
        scenario.check(agents, result);
        scenario.history
    }
}

/// Sets a flag when it is dropped, after a panic, too: the threads that wait for it would never end.
struct SetAtEnd<'f>(&'f AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn member(cluster: &Cluster, proxy: &KafkaProxy) -> Program {
    cluster.serve("reverb", &["--cluster", "it", "--bootstrap-servers", &proxy.bootstrap_servers()])
}

/// Receives reports and partials until it is `done`.
fn watch(cluster: &Cluster, done: &AtomicBool) -> Seen {
    let mut reports = cluster.reader::<BarReport>(TopicName::BarReports);
    reports.seek(0).expect("a new reader can be positioned");
    let mut partials = cluster.reader::<BarPartial>(TopicName::BarPartials);
    partials.seek(0).expect("a new reader can be positioned");
    let mut seen = Seen::default();
    while !done.load(Ordering::Relaxed) {
        // Both fail while Kafka is unavailable.
        if let Ok(Some(entry)) = reports.poll(Duration::from_millis(5)) {
            seen.reports.entry(entry.record.to_beat).or_insert_with(now_ms);
        }
        while let Ok(Some(entry)) = partials.poll(Duration::ZERO) {
            let from = entry.record.from_beat;
            seen.partials.extend(describe(entry.record).map(|text| (now_ms(), from, text)));
        }
    }
    seen
}

/// Describes a record of `barpartials`.
fn describe(record: BarPartial) -> Option<String> {
    Some(match record.into_body()? {
        PartialBody::Partial(share) => format!("share {} of {}", share.partition, share.member),
        PartialBody::Done(done) => format!("done: {:?}, rescued {:?}", done.verdict, done.rescued),
        PartialBody::Merging(merging) => format!("merging: {:?}", merging.member),
    })
}

/// Returns the delays of the reports, ascending, without the times in which Kafka did not answer. What happened around late
/// ones is printed.
fn delays(cluster: &Cluster, seen: &Seen, history: &History) -> Vec<f64> {
    let frames = cluster.frames();
    let delay = |(to, received): (&BeatIndex, &f64)| {
        let closed_at = frames.get(to.plus(1).get() as usize)?.emitted_at;
        let closed = closed_at.millis() as f64;
        let overlap = |(from, until): &(f64, f64)| (until.min(*received) - from.max(closed)).max(0.0);
        let hung: f64 = history.hung.iter().map(overlap).sum();
        let delay = received - closed - hung;
        if delay > LATE_MS {
            eprintln!(
                "the report of the window up to beat {to}, which closed at {closed_at}, came {delay:.0} ms later; milliseconds from that:"
            );
            let near = closed - 2.0 * LATE_MS..=received + 1.0;
            let of_window = |beat: &BeatIndex| *beat <= *to && *to < beat.plus(BAR);
            let faults = history.faults.iter().map(|(at, fault)| (*at, format!("{fault:?}")));
            let hangs = history.hung.iter().map(|(_, until)| (*until, "Kafka has recovered".to_owned()));
            let partials =
                seen.partials.iter().filter(|(_, from, text)| of_window(from) || text.starts_with("merging"));
            let partials = partials.map(|(at, _, text)| (*at, text.clone()));
            let mut events: Vec<(f64, String)> = faults.chain(hangs).chain(partials).collect();
            events.retain(|(at, _)| near.contains(at));
            events.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (at, text) in events {
                eprintln!("  {:.0}: {text}", at - closed);
            }
        }
        Some(delay.max(0.0))
    };
    let mut delays: Vec<f64> = seen.reports.iter().filter_map(delay).collect();
    delays.sort_by(f64::total_cmp);
    delays
}

impl Scenario<'_> {
    /// Removes a random member and returns it.
    fn take_member(&mut self) -> Program {
        let index = self.rng.random_range(0..self.members.len());
        let mut member = self.members.swap_remove(index);
        assert!(member.is_running(), "a member ended by itself: {}", member.log());
        member
    }

    /// Returns a random node that is not paused.
    fn random_node(&mut self) -> usize {
        let paused = self.paused_node.map(|(node, _)| node);
        let nodes: Vec<usize> = (0..NODES).filter(|node| Some(*node) != paused).collect();
        nodes[self.rng.random_range(0..nodes.len())]
    }

    fn random_millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    fn cause(&mut self, fault: Fault, devstack: &mut Devstack) {
        match fault {
            Fault::KillMember => {
                let mut member = self.take_member();
                member.signal(Signal::KILL);
                member.wait();
                self.add_member();
            }
            Fault::StopMember => {
                let mut member = self.take_member();
                member.signal(Signal::TERM);
                let code = member.wait();
                assert_eq!(code, 0, "{}", member.log());
                self.add_member();
            }
            Fault::PauseMember => {
                let member = self.take_member();
                member.signal(Signal::STOP);
                let resume_at = Instant::now() + self.random_millis(500..9_000);
                self.paused.push((member, resume_at));
                self.add_member();
            }
            Fault::KillNode => {
                let node = self.random_node();
                self.nodes.kill(node);
                self.nodes.start_node(node);
            }
            Fault::PauseNode => {
                let node = self.random_node();
                self.resume_node();
                self.nodes.node(node).signal(Signal::STOP);
                let resume_at = Instant::now() + self.random_millis(500..6_000);
                self.paused_node = Some((node, resume_at));
            }
            Fault::HangKafka => {
                let began = now_ms();
                let time = self.random_millis(500..6_000);
                devstack.set_broker_paused(0, true).expect("the broker is paused");
                self.wait(time);
                devstack.set_broker_paused(0, false).expect("the broker continues");
                self.add_hang(began);
            }
            Fault::Request => {
                let time = self.random_millis(50..3_000);
                let fault = match self.rng.random_range(0..5) {
                    0 => ProxyFault::LateRequest(time),
                    1 => ProxyFault::LateResponse(time),
                    2 => ProxyFault::LostRequest,
                    3 => ProxyFault::LostResponse,
                    _ => ProxyFault::Twice,
                };
                self.proxy.cause(FAULTY_REQUESTS[self.rng.random_range(0..FAULTY_REQUESTS.len())], fault);
            }
            Fault::RestartKafka => {
                let began = now_ms();
                devstack.stop_broker(0).expect("the broker stops");
                devstack.restart_broker(0).expect("the broker restarts");
                self.add_hang(began);
            }
        }
    }

    /// Adds the time since `began`. One that overlaps with the last makes that longer.
    fn add_hang(&mut self, began: f64) {
        let until = now_ms() + KAFKA_RECOVERY_MS;
        match self.history.hung.last_mut() {
            Some((_, last)) if *last >= began => *last = until,
            _ => self.history.hung.push((began, until)),
        }
    }

    fn add_member(&mut self) {
        self.members.push(member(self.cluster, &self.proxy));
    }

    /// Waits, and continues the paused programs whose time has come.
    fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.resume(false);
            thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// Continues the paused programs whose time has come, or `all`. There are more members for a while; a paused one that
    /// continues takes the place of another.
    fn resume(&mut self, all: bool) {
        if self.paused_node.is_some_and(|(_, at)| all || at <= Instant::now()) {
            self.resume_node();
        }
        let due = |paused: &mut (Program, Instant)| all || paused.1 <= Instant::now();
        for (member, _) in self.paused.extract_if(.., due) {
            member.signal(Signal::CONT);
            self.members.push(member);
        }
        while self.members.len() > MEMBERS {
            let mut member = self.members.remove(0);
            member.signal(Signal::KILL);
            member.wait();
        }
    }

    fn resume_node(&mut self) {
        if let Some((node, _)) = self.paused_node.take() {
            self.nodes.node(node).signal(Signal::CONT);
        }
    }

    /// Stops the agents, waits until their windows are reported, and compares all reports with the oracle's.
    fn check(&mut self, mut agents: Program, result: &mut ChaosResult) {
        agents.signal(Signal::TERM);
        assert_eq!(agents.wait(), 0, "{}", agents.log());
        wait_for_boundaries(self.cluster, LIMIT, || self.nodes.logs());
        let beats = self.cluster.frames().len();
        wait_until("two more bars", LIMIT, || self.cluster.frames().len() >= beats + 9);
        for node in 0..NODES {
            self.nodes.node(node).signal(Signal::TERM);
        }
        wait_until("pulse to end", LIMIT, || (0..NODES).all(|node| self.nodes.node(node).get("/health").is_none()));
        let oracle = Oracle::read(self.cluster);
        let expected = oracle.reports();
        let deadline = Instant::now() + LIMIT;
        while self.cluster.reports().len() < expected.len() {
            assert!(Instant::now() < deadline, "{}", self.missing(&expected));
            thread::sleep(Duration::from_millis(50));
        }
        let reports = assert_reports_equal(self.cluster, &expected, &oracle.rosters());
        let in_reports: i64 = reports.iter().map(|r| r.claims + r.late_claims + r.invalid_claims).sum();
        assert_eq!(in_reports, oracle.claims() as i64, "a claim is in no report or in two");
        for member in &mut self.members {
            assert!(member.is_running(), "a member ended by itself: {}", member.log());
        }
        (result.reports, result.claims) = (reports.len(), oracle.claims());
        for entry in self.cluster.read_all::<BarPartial>(TopicName::BarPartials) {
            match entry.record.into_body() {
                Some(PartialBody::Merging(merging)) => result.merging_records += usize::from(merging.member.is_some()),
                Some(PartialBody::Done(done)) => result.rescued += done.rescued.len(),
                _ => {}
            }
        }
    }

    /// Describes the windows without a report: which shares are there, and what the members say.
    fn missing(&self, expected: &[BarReport]) -> String {
        let reported: Vec<BeatIndex> = self.cluster.reports().into_iter().map(|entry| entry.record.from_beat).collect();
        let missing = expected.iter().map(|report| report.from_beat).filter(|from| !reported.contains(from));
        let missing: Vec<BeatIndex> = missing.collect();
        let mut shares = BTreeMap::<BeatIndex, Vec<String>>::new();
        for entry in self.cluster.read_all::<BarPartial>(TopicName::BarPartials) {
            let from = entry.record.from_beat;
            shares.entry(from).or_default().extend(describe(entry.record));
        }
        shares.retain(|from, _| missing.contains(from));
        let state = |member: &Program| format!("{:?}\n{}", member.get("/api/v1/status"), member.log());
        let states = self.members.iter().map(state).collect::<Vec<_>>().join("\n\n");
        format!("no reports of the windows {missing:?}; their shares: {shares:?}; the members:\n{states}")
    }
}
