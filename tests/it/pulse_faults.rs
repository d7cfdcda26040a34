//! Three pulse nodes on a Kafka of their own under thirty faults in a row.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backbeat_broker::{LogReader, TopicName};
use backbeat_devstack::Devstack;
use backbeat_schemas::BeatFrame;
use backbeat_tests::{Cluster, PulseNodes, own_devstack, wait_for};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::faults::shuffled;
use crate::frames::check;

const NODES: usize = 3;
const LIMIT: Duration = Duration::from_mins(1);
/// The number of beats that must follow each fault.
const BEATS_AFTER_FAULT: i64 = 5;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL to the leader, which is restarted when another node leads.
    KillLeader,
    /// SIGSTOP to the leader, at a random instant around a beat, until another node leads; then SIGCONT, after which
    /// the old leader continues what it had begun.
    PauseLeader,
    /// SIGKILL to all nodes but one.
    LoseQuorum,
    /// Kafka is stopped for a while.
    StopKafka,
}

struct Scenario<'c> {
    nodes: PulseNodes<'c>,
    frames: LogReader<BeatFrame>,
}

impl Scenario<'_> {
    /// The newest frame; `None` if there is none or Kafka does not answer.
    fn last(&mut self) -> Option<BeatFrame> {
        self.frames.last().ok().flatten().map(|entry| entry.record)
    }

    /// Waits until the newest frame is `wanted`, and returns it; panics after the limit with the nodes' logs.
    fn wait_for_frame(&mut self, description: &str, wanted: impl Fn(&BeatFrame) -> bool) -> BeatFrame {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            if let Some(frame) = self.last().filter(|frame| wanted(frame)) {
                return frame;
            }
            assert!(std::time::Instant::now() < deadline, "waited {LIMIT:?} for {description}\n{}", self.nodes.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_more_beats(&mut self) {
        let from = self.wait_for_frame("a frame", |_| true).beat_index.get();
        self.wait_for_frame("more beats", |frame| frame.beat_index.get() >= from + BEATS_AFTER_FAULT);
    }

    /// The node that wrote the newest frame.
    fn leader(&mut self) -> usize {
        let frame = self.wait_for_frame("a frame", |_| true);
        PulseNodes::index_of(&frame.node)
    }

    fn inject(&mut self, fault: Fault, devstack: &mut Devstack, rng: &mut ChaCha8Rng) {
        match fault {
            Fault::KillLeader => {
                let leader = self.leader();
                self.nodes.kill(leader);
                let name = format!("n{leader}");
                self.wait_for_frame("a beat of another node", |frame| frame.node != name);
                self.nodes.start_node(leader);
            }
            Fault::PauseLeader => {
                let leader = self.leader();
                // The next beat is due at the newest frame's deadline: the pause should hit the leader while it sends
                // it.
                let due = self.wait_for_frame("a frame", |_| true).deadline_at.millis();
                let now =
                    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_millis() as i64;
                let into_the_beat = rng.random_range(0..3);
                std::thread::sleep(Duration::from_millis((due - now).clamp(0, 100) as u64 + into_the_beat));
                self.nodes.node(leader).signal(Signal::STOP);
                let name = format!("n{leader}");
                self.wait_for_frame("a beat of another node", |frame| frame.node != name);
                self.nodes.node(leader).signal(Signal::CONT);
            }
            Fault::LoseQuorum => {
                let survivor = rng.random_range(0..NODES);
                let others: Vec<usize> = (0..NODES).filter(|node| *node != survivor).collect();
                for node in &others {
                    self.nodes.kill(*node);
                }
                let name = format!("n{survivor}");
                self.wait_for_frame("a degraded beat", |frame| frame.degraded && frame.node == name);
                for node in others {
                    self.nodes.start_node(node);
                }
                self.wait_for_frame("a beat with a quorum", |frame| !frame.degraded);
            }
            Fault::StopKafka => {
                devstack.stop_broker(0).expect("the broker stops");
                std::thread::sleep(Duration::from_millis(rng.random_range(0..2_000)));
                devstack.restart_broker(0).expect("the broker restarts");
            }
        }
        self.wait_for_more_beats();
    }
}

#[test]
fn beats_under_thirty_faults_are_consecutive() {
    let counts = [(Fault::KillLeader, 12), (Fault::PauseLeader, 10), (Fault::LoseQuorum, 5), (Fault::StopKafka, 3)];
    let (faults, seed, mut rng) = shuffled(&counts);
    assert_eq!(faults.len(), 30);
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 3);
    let nodes = PulseNodes::start(&cluster, NODES, &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    let mut scenario = Scenario { nodes, frames: cluster.reader(TopicName::BeatFrames) };
    // Agents send claims throughout, so that boundaries advance.
    let _agents = cluster.start("agent-sim", &["--agents", "20"]);
    scenario.wait_for_more_beats();

    for (number, fault) in faults.into_iter().enumerate() {
        eprintln!("fault {number}: {fault:?}, seed {seed}");
        scenario.inject(fault, &mut devstack, &mut rng);
    }
    let leader = || scenario.nodes.leader();
    wait_for("a leader in the end", LIMIT, leader);
    scenario.nodes.wait_until_ready();
    let frames = cluster.frames();
    check(&frames);
    let terms = frames.last().expect("there are frames").term;
    assert!(terms > 22, "each lost leader must be followed by another term: {terms}");
    assert!(frames.iter().any(|frame| frame.degraded));
    assert!(
        frames.last().is_some_and(|last| last.claim_offsets.iter().all(|offset| *offset > 0)),
        "the boundaries did not advance"
    );
    drop(scenario);
    devstack.stop();
}
