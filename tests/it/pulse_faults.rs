//! Three pulse nodes on a Kafka of their own, and thirty faults in a row.

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
/// Beats that must come after each fault.
const GO_ON: i64 = 5;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL to the leader; it comes back.
    KillLeader,
    /// SIGSTOP to the leader, in the middle of a beat if it can be hit, until another leads; then it wakes, and
    /// what it had begun goes on.
    PauseLeader,
    /// SIGKILL to all but one.
    LoseQuorum,
    /// Kafka is stopped for a while.
    StopKafka,
}

struct Scene<'c> {
    nodes: PulseNodes<'c>,
    frames: LogReader<BeatFrame>,
}

impl Scene<'_> {
    /// The newest frame that can be read.
    fn last(&mut self) -> Option<BeatFrame> {
        self.frames.last().ok().flatten().map(|entry| entry.record)
    }

    /// Waits for a frame like that.
    fn wait_for_frame(&mut self, what: &str, wanted: impl Fn(&BeatFrame) -> bool) -> BeatFrame {
        // The nodes' logs tell why, if none comes.
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            if let Some(frame) = self.last().filter(|frame| wanted(frame)) {
                return frame;
            }
            assert!(std::time::Instant::now() < deadline, "{what}: not within {LIMIT:?}\n{}", self.nodes.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn beats_go_on(&mut self) {
        let from = self.wait_for_frame("a frame", |_| true).beat_index.get();
        self.wait_for_frame("beats that go on", |frame| frame.beat_index.get() >= from + GO_ON);
    }

    /// The node that wrote the newest frame.
    fn leader(&mut self) -> usize {
        let frame = self.wait_for_frame("a frame", |_| true);
        PulseNodes::numbered(&frame.node)
    }

    fn inflict(&mut self, fault: Fault, devstack: &mut Devstack, rng: &mut ChaCha8Rng) {
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
                // The next beat begins a period after the newest was due: hit it as it is sent.
                let due = self.wait_for_frame("a frame", |_| true).deadline_at.millis();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
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
                devstack.stop_broker(0).expect("it stops");
                std::thread::sleep(Duration::from_millis(rng.random_range(0..2_000)));
                devstack.start_broker(0).expect("it starts again");
            }
        }
        self.beats_go_on();
    }
}

#[test]
fn thirty_faults_in_a_row_leave_no_gap_and_no_repeat() {
    let counts = [(Fault::KillLeader, 12), (Fault::PauseLeader, 10), (Fault::LoseQuorum, 5), (Fault::StopKafka, 3)];
    let (faults, seed, mut rng) = shuffled(&counts);
    assert_eq!(faults.len(), 30);
    let dir = TempDir::new().expect("a directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 3);
    let nodes = PulseNodes::start(&cluster, NODES, &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    let mut scene = Scene { nodes, frames: cluster.reader(TopicName::BeatFrames) };
    // Claims all the while, so that boundaries move.
    let _agents = cluster.start("agent-sim", &["--agents", "20"]);
    scene.beats_go_on();

    for (number, fault) in faults.into_iter().enumerate() {
        eprintln!("fault {number}: {fault:?}, seed {seed}");
        scene.inflict(fault, &mut devstack, &mut rng);
    }
    let leaders = || scene.nodes.leader();
    wait_for("one leader in the end", LIMIT, leaders);
    scene.nodes.wait_until_ready();
    let frames = cluster.frames();
    check(&frames);
    let terms = frames.last().expect("there are frames").term;
    assert!(terms > 22, "each lost leader is followed by another: {terms}");
    assert!(frames.iter().any(|frame| frame.degraded));
    assert!(frames.last().is_some_and(|last| last.claim_offsets.iter().all(|line| *line > 0)), "lines moved");
    drop(scene);
    devstack.stop();
}
