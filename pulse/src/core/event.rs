//! What the core hears, and what it tells the shell to do.

use std::time::Duration;

use backbeat_schemas::{BeatFrame, Timestamp};

use super::Plan;

/// The moment of an event: all that a decision depends on beside the event itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// The wall clock, in microseconds since the Unix epoch; it may be wrong, and jump.
    pub wall_micros: i64,
    /// A clock that only goes forward, since any instant.
    pub monotonic: Duration,
    /// A random number from 0 to 1, for waits that must differ from node to node.
    pub random: f64,
}

impl Now {
    /// The wall clock, in whole milliseconds.
    pub fn wall(&self) -> Timestamp {
        Timestamp::from_millis(self.wall_micros.div_euclid(1_000))
    }
}

/// What Raft says of this node. It may be out of date: a leader that was restarted believes in its old
/// term for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RaftRole {
    /// This node leads.
    Leader {
        /// Raft's term.
        term: u64,
        /// There are no other members.
        alone: bool,
    },
    /// Another node leads.
    Follower {
        /// Its name.
        leader: String,
    },
    /// No leader is known.
    Leaderless,
    /// This node is no member (yet, or any more).
    NonMember,
}

/// What the shell found out.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Raft has news.
    Raft(RaftRole),
    /// Raft has agreed on a plan.
    Planned(Plan),
    /// The answer to [`Command::ConfirmQuorum`], which always comes.
    Quorum {
        /// That of the question.
        ticket: u64,
        /// A majority said, after the question, that this node leads.
        confirmed: bool,
    },
    /// A committed frame was read, this node's own ones included.
    Heard(Box<BeatFrame>),
    /// The time of [`super::Leadership::deadline`] has come.
    Elapsed,
    /// The newest committed frame.
    Tail {
        /// `None` if there is no frame.
        frame: Option<Box<BeatFrame>>,
        /// No report was ever written.
        no_reports: bool,
    },
    /// The transactional id is ours: every earlier leader is fenced.
    TransactionsInitialized,
    /// A first boundary was sampled after the fence, or could not be in time.
    BoundarySampled,
    /// The frame that was to be published is committed.
    Committed,
    /// It may be there or not.
    InDoubt,
    /// Another producer holds the transactional id.
    Fenced,
    /// The tail could not be read, or the transactional id not be opened.
    KafkaUnavailable,
}

/// What the shell is to do.
///
/// `ReadTail`, `InitTransactions`, `SampleBoundary` and `Publish` are Kafka's: at most one of them is under way,
/// and each is answered by one event.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Ask a majority whether this node leads: answered by [`Event::Quorum`].
    ConfirmQuorum {
        /// To be given back.
        ticket: u64,
    },
    /// Read the newest committed frame: [`Event::Tail`] or [`Event::KafkaUnavailable`].
    ReadTail,
    /// Open the transactional id: [`Event::TransactionsInitialized`], [`Event::Fenced`] or [`Event::KafkaUnavailable`].
    InitTransactions,
    /// Ask for the ends of `statusclaims`: [`Event::BoundarySampled`].
    SampleBoundary,
    /// Publish the next beat: [`Event::Committed`], [`Event::InDoubt`] or [`Event::Fenced`].
    Publish(Box<BeatFrame>),
    /// Ask for the ends of `statusclaims` in the background: a beat is near.
    RefreshBoundary,
    /// Let go of the transactional id, without settling anything.
    Close,
    /// Keep quiet as Raft's leader, so that the others elect another.
    StepDown,
    /// Take part in elections again.
    Rejoin,
    /// Give up.
    Stop(StopReason),
}

/// Why pulse cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The topics belong to another cluster.
    #[error("beatframes belongs to cluster {found:?}, not to {ours:?}: choose another --topic-prefix or --cluster")]
    OtherCluster {
        /// The cluster of the last frame.
        found: String,
        /// Ours.
        ours: String,
    },
    /// Another pulse beats for this cluster.
    #[error(
        "fenced: another pulse, node {node:?}, has published beat {beat} of this cluster; a pulse without peers gives way"
    )]
    CompetingLeader {
        /// Its node name.
        node: String,
        /// Its newest beat.
        beat: i64,
    },
    /// Frames are gone that reports were made from.
    #[error(
        "beatframes is empty but barreports is not: the frames were lost or deleted, and beats must not begin at 0 again"
    )]
    FramesLost,
}
