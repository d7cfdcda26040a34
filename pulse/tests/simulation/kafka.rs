//! A model of Kafka, as far as pulse depends on it: a log, one transactional id with its epoch, and `statusclaims`,
//! which grows steadily.

use backbeat_pulse::core::Boundary;
use backbeat_schemas::BeatFrame;

use backbeat_simulation::Violation;

use crate::checks;
use crate::world::Sabotage;

const PARTITIONS: i32 = 3;

pub(crate) struct Kafka {
    pub(crate) up: bool,
    pub(crate) log: Vec<BeatFrame>,
    /// The producer epoch of the transactional id.
    epoch: u64,
    /// True if the newest frame is committed but not readable; only sabotage sets this.
    pub(crate) hides_last: bool,
    sabotage: Option<Sabotage>,
}

/// The outcome of a transaction.
pub(crate) enum Commit {
    Done,
    InDoubt,
    Fenced,
}

impl Kafka {
    pub(crate) fn new(sabotage: Option<Sabotage>) -> Self {
        Self { up: true, log: Vec::new(), epoch: 0, hides_last: false, sabotage }
    }

    fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    /// Initializes transactions: every earlier epoch is fenced.
    pub(crate) fn init_transactions(&mut self) -> u64 {
        if !self.is(Sabotage::NoFence) {
            self.epoch += 1;
        }
        self.epoch
    }

    /// The newest committed frame.
    pub(crate) fn tail(&self) -> Option<BeatFrame> {
        let skip = if self.hides_last { 2 } else { 1 };
        let mut tail = self.log.len().checked_sub(skip).map(|index| self.log[index].clone())?;
        if self.is(Sabotage::PhantomTail) {
            tail.beat_index = tail.beat_index.plus(1);
        }
        Some(tail)
    }

    /// Commits `frame` from the producer with `epoch`, at true time `at` in microseconds.
    pub(crate) fn commit(&mut self, epoch: u64, mut frame: BeatFrame, at: u64) -> Result<Commit, Violation> {
        if epoch != self.epoch {
            return Ok(Commit::Fenced);
        }
        if let Some(before) = self.log.last() {
            match self.sabotage {
                Some(Sabotage::HlcFrozen) => frame.hlc = before.hlc,
                Some(Sabotage::ScheduleGoesBack) => frame.scheduled_at = before.scheduled_at,
                Some(Sabotage::TermFrozen) => frame.term = 1,
                Some(Sabotage::BoundaryAhead) => frame.claim_offsets[0] += 1_000_000,
                Some(Sabotage::TempoJumps) if frame.downbeat => {
                    for _ in 0..3 {
                        frame.tempo_bpm = *frame.tempo_bpm.allowed_next().end();
                    }
                }
                Some(Sabotage::DownbeatLost) => frame.downbeat = false,
                _ => {}
            }
        }
        checks::frame(&self.log, &frame, &claim_ends(at))?;
        self.log.push(frame);
        self.hides_last = self.is(Sabotage::HiddenCommit) && self.log.len().is_multiple_of(20);
        Ok(Commit::Done)
    }

    /// Aborts a transaction that took too long, which fences its producer.
    pub(crate) fn time_out(&mut self) {
        self.epoch += 1;
    }
}

/// The ends of `statusclaims` at true time `at`: each partition grows at its own rate.
pub(crate) fn claim_ends(at: u64) -> Boundary {
    let mut boundary = Boundary::default();
    for partition in 0..PARTITIONS {
        boundary.advance(partition, (at / 100_000) as i64 * i64::from(partition));
    }
    boundary
}
