//! The core's interface: events in, commands out.

use std::time::Duration;

use backbeat_schemas::{BeatFrame, Timestamp};

use super::Plan;

/// The moment of an event: all that a decision depends on besides the event itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// The wall clock, in microseconds since the Unix epoch; it may be wrong, and jump.
    pub wall_micros: i64,
    /// A monotonic clock, counted from an arbitrary instant.
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

/// This node's role in Raft, as Raft reports it. It may be out of date: a leader that was restarted believes for a
/// while that its old term holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RaftRole {
    /// This node leads.
    Leader {
        /// Raft's term.
        term: u64,
        /// No other node has a vote.
        sole_voter: bool,
    },
    /// Another node leads.
    Follower {
        /// The leader's name.
        leader: String,
    },
    /// No leader is known.
    Leaderless,
    /// This node is not a voter (yet, or any more).
    NonMember,
}

/// Something that the shell reports to the core.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Raft's view of this node has changed.
    RaftRoleChanged(RaftRole),
    /// Raft has applied a plan.
    PlanApplied(Plan),
    /// The response to [`Command::ConfirmQuorum`], which always comes.
    QuorumChecked {
        /// The command's ticket.
        ticket: u64,
        /// A majority confirmed, after the command, that this node leads.
        confirmed: bool,
    },
    /// A committed frame was read, one of this node's own included.
    FrameRead(Box<BeatFrame>),
    /// The time of [`super::Leadership::deadline`] has come.
    Elapsed,
    /// The tail of `beatframes` was read.
    Tail {
        /// The newest committed frame; `None` if there is no frame.
        frame: Option<Box<BeatFrame>>,
        /// `barreports` is empty.
        no_reports: bool,
    },
    /// The transactional id is open: every earlier leader is fenced.
    TransactionsInitialized,
    /// The first boundary after the fence was sampled, or the time for it ran out.
    BoundarySampled,
    /// The frame of [`Command::Publish`] is committed.
    Committed,
    /// The frame may or may not be committed.
    InDoubt,
    /// Another producer has opened the transactional id.
    Fenced,
    /// The tail could not be read, or the transactional id could not be opened.
    KafkaUnavailable,
}

/// Something that the shell must do.
///
/// `ReadTail`, `InitTransactions`, `SampleBoundary` and `Publish` go to the publisher: at most one of them is under
/// way, and each is answered by one event.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Ask a majority whether this node leads: answered by [`Event::QuorumChecked`].
    ConfirmQuorum {
        /// A number for the response to carry.
        ticket: u64,
    },
    /// Read the newest committed frame: [`Event::Tail`] or [`Event::KafkaUnavailable`].
    ReadTail,
    /// Open the transactional id: [`Event::TransactionsInitialized`], [`Event::Fenced`] or [`Event::KafkaUnavailable`].
    InitTransactions,
    /// Fetch the ends of `statusclaims`: [`Event::BoundarySampled`].
    SampleBoundary,
    /// Publish the next beat: [`Event::Committed`], [`Event::InDoubt`] or [`Event::Fenced`].
    Publish(Box<BeatFrame>),
    /// Fetch the ends of `statusclaims` in the background: a beat is near.
    RefreshBoundary,
    /// Drop the transactional producer, without committing or aborting.
    CloseProducer,
    /// Stop sending heartbeats as Raft's leader, so that another node is elected.
    StepDown,
    /// Send heartbeats again as Raft's leader.
    Rejoin,
    /// End the program.
    Stop(StopReason),
}

/// Why pulse cannot continue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The topics belong to another cluster.
    #[error(
        "beatframes belongs to cluster {found:?}, not to {configured:?}: choose another --topic-prefix or --cluster"
    )]
    OtherCluster {
        /// The cluster of the last frame.
        found: String,
        /// This node's cluster.
        configured: String,
    },
    /// Another pulse publishes beats for this cluster.
    #[error(
        "fenced: another pulse, node {node:?}, has published beat {beat} of this cluster; a pulse without peers gives way"
    )]
    CompetingLeader {
        /// Its node name.
        node: String,
        /// Its newest beat.
        beat: i64,
    },
    /// The frames that reports were made from are gone.
    #[error(
        "beatframes is empty but barreports is not: the frames were lost or deleted, and beats must not begin at 0 again"
    )]
    FramesLost,
}
