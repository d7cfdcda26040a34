//! The core's interface: events in, commands out.

use std::time::Duration;

use backbeat_schemas::{BeatFrame, BeatIndex, Timestamp};

use super::Plan;

/// The time of an event on both clocks, and a random number for the decision.
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
/// while that it still leads its old term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RaftRole {
    /// This node is Raft's leader.
    Leader {
        /// The term of Raft. A frame's term is another number: see [`super::Metronome::take_over`].
        raft_term: u64,
        /// True if no other node has a vote.
        sole_voter: bool,
    },
    /// Another node is Raft's leader.
    Follower {
        /// The leader's name.
        leader: String,
    },
    /// Raft's leader is not known.
    Leaderless,
    /// This node is not a voter (yet, or any more).
    NonMember,
}

/// An input of the core, from the shell.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// This node's role in Raft has changed.
    RaftRoleChanged(RaftRole),
    /// Raft has applied a plan.
    PlanApplied(Plan),
    /// The response to [`Command::CheckQuorum`]. Every check gets one.
    QuorumChecked {
        /// The id of the check.
        check_id: u64,
        /// True if a quorum confirmed, after the command, that this node is Raft's leader.
        confirmed: bool,
    },
    /// A committed frame was read, from any node, this one included.
    FrameRead(Box<BeatFrame>),
    /// The instant of [`super::Leadership::deadline`] has come. An `Elapsed` before it changes nothing, because the
    /// core compares each of its instants with the clock; so the shell may send one whenever it wakes up.
    Elapsed,
    /// The response to a [`Command::Kafka`].
    Kafka(KafkaResponse),
}

/// The response to a [`KafkaCommand`]. Each but [`KafkaCommand::CloseProducer`] gets one.
#[derive(Debug, Clone, PartialEq)]
pub enum KafkaResponse {
    /// The tail of `beatframes` was read.
    Tail {
        /// The newest committed frame; `None` if there is no frame.
        frame: Option<Box<BeatFrame>>,
        /// The newest frame after it, of a transaction that is open. After `InitTransactions` there should be none; but Kafka may
        /// have ended a transaction without a marker (docs/design.md, "Lost markers"), and the next marker commits it, too.
        open_frame: Option<Box<BeatFrame>>,
        /// The newest beat of which `barreports` tells, if it was read: once, and whenever there is no frame.
        newest_reported: Option<BeatIndex>,
    },
    /// Transactions are initialized: the producer of every earlier leader is fenced.
    TransactionsInitialized,
    /// The response to [`KafkaCommand::SampleBoundary`]: the first boundary after `InitTransactions` was sampled, or not in
    /// time.
    BoundarySampled,
    /// The frame of [`KafkaCommand::Publish`] is committed.
    Committed,
    /// The frame may or may not be committed.
    InDoubt,
    /// Kafka fenced this producer: another one initialized the transactional id, or a transaction timed out.
    Fenced,
    /// The tail could not be read, or transactions could not be initialized.
    KafkaUnavailable,
}

/// An output of the core, which the shell executes.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Check with a quorum whether this node is Raft's leader: answered by [`Event::QuorumChecked`].
    CheckQuorum {
        /// The id of the check, for the response to carry.
        check_id: u64,
    },
    /// Do something with Kafka. At most one command that gets a response is pending.
    Kafka(KafkaCommand),
    /// Sample the boundary for the beat that is due soon, in the background. No event answers it: the beat takes the
    /// newest boundary that is known when it is due.
    RefreshBoundary,
    /// Stop sending heartbeats as Raft's leader, so that another node is elected.
    StepDown,
    /// Send heartbeats again as Raft's leader.
    Rejoin,
    /// End the program.
    Stop(StopReason),
}

/// A command for Kafka, which the publisher executes.
#[derive(Debug, Clone, PartialEq)]
pub enum KafkaCommand {
    /// Read the newest frames: [`KafkaResponse::Tail`] or [`KafkaResponse::KafkaUnavailable`].
    ReadTail,
    /// Initialize transactions: [`KafkaResponse::TransactionsInitialized`], [`KafkaResponse::Fenced`] or
    /// [`KafkaResponse::KafkaUnavailable`].
    InitTransactions,
    /// Sample the first boundary of a leadership and wait for it, for a limited time: [`KafkaResponse::BoundarySampled`]. After
    /// that time the leadership starts with the last frame's boundary.
    SampleBoundary,
    /// Publish the next beat: [`KafkaResponse::Committed`], [`KafkaResponse::InDoubt`] or [`KafkaResponse::Fenced`].
    Publish(Box<BeatFrame>),
    /// Drop the transactional producer, without a commit or an abort.
    CloseProducer,
}

/// The reason why pulse cannot continue.
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
    /// Another pulse publishes beats for this cluster, and this node has no peers to elect a leader with.
    #[error(
        "fenced: another pulse, node {node:?}, has published beat {beat} of this cluster; this node has no peers, so it stops"
    )]
    CompetingLeader {
        /// The other pulse's node name.
        node: String,
        /// The other pulse's newest beat.
        beat: i64,
    },
    /// `beatframes` ends before a beat that was published. Going on would repeat indices and window ids.
    #[error(
        "beatframes {}, but beat {known} was published (a report or this node tells of it): frames were lost, or kafka has \
         an older copy of its topics. Beats must not be repeated: restore the topics, or continue with new ones \
         (--topic-prefix) from a later beat (--first-beat), as docs/operations.md, \"Recovery\", describes",
        found.map_or_else(|| "is empty".to_owned(), |found| format!("ends at beat {found}"))
    )]
    FramesLost {
        /// The newest beat of `beatframes`.
        found: Option<BeatIndex>,
        /// The newest beat that is known to have been published.
        known: BeatIndex,
    },
}
