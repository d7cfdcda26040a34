//! This node's part in Raft.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, Config, Raft, ServerState, SnapshotPolicy};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use super::types::{Member, NodeName, Types};
use super::{Client, Store};
use crate::core::{Plan, RaftRole};

const HEARTBEAT_MS: u64 = 40;
const ELECTION_MIN_MS: u64 = 120;
const ELECTION_MAX_MS: u64 = 240;
/// A plan is agreed on in milliseconds, or there is no quorum.
const AGREE_WITHIN: Duration = Duration::from_secs(5);
/// How long a new member may take to copy the log, which is short.
const JOIN_WITHIN: Duration = Duration::from_secs(10);
/// How long a removed member may take to hear of it; one that is gone never does.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// A few entries are kept for members that were away; who was away longer gets a snapshot.
const LOGS_PER_SNAPSHOT: u64 = 1_000;
const LOGS_KEPT: u64 = 100;

/// Raft, as the rest of pulse sees it; clones are the same node.
#[derive(Clone)]
pub(crate) struct Node {
    name: NodeName,
    raft: Raft<Types>,
    plan: watch::Receiver<Option<Plan>>,
}

/// Raft could not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// This node does not lead (any more).
    #[error("this node is not the leader")]
    NotLeader,
    /// No majority answered in time. What was asked for may still come to pass.
    #[error("no majority of the members answered; look at /api/v1/status before you try again")]
    InDoubt,
    /// Raft has stopped.
    #[error("raft: {0}")]
    Raft(String),
}

/// Why the members are not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MembershipError {
    /// It makes no sense.
    #[error("{0}")]
    Conflict(String),
    /// The new node did not answer.
    #[error(
        "node {node} at {address} did not copy the log within {} s, so it was not added; it must run with --join and reach all members",
        JOIN_WITHIN.as_secs()
    )]
    DoesNotJoin {
        /// Its name.
        node: NodeName,
        /// Where it should be.
        address: String,
    },
    /// Raft could not do it.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A member, for people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Peer {
    pub(crate) node: NodeName,
    pub(crate) address: String,
    pub(crate) leader: bool,
    /// It copies the log, and does not vote (yet).
    pub(crate) learner: bool,
    /// Entries of Raft's log that it has not confirmed; only the leader knows.
    pub(crate) lag: Option<u64>,
}

impl Node {
    /// The longest time without a leader's word before an election.
    pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(ELECTION_MAX_MS);

    /// Starts Raft on `store`.
    pub(crate) async fn start(name: NodeName, store: Store, client: Client) -> anyhow::Result<Self> {
        let config = Config {
            cluster_name: "backbeat".to_owned(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MIN_MS,
            election_timeout_max: ELECTION_MAX_MS,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(LOGS_PER_SNAPSHOT),
            max_in_snapshot_log_to_keep: LOGS_KEPT,
            ..Default::default()
        };
        let plan = store.plan();
        let raft = Raft::new(name, Arc::new(config.validate()?), client, store.clone(), store).await?;
        Ok(Self { name, raft, plan })
    }

    /// Makes `members` a cluster, unless this node is of one already. Every one of them may do this, with
    /// the same members.
    pub(crate) async fn bootstrap(&self, members: BTreeMap<NodeName, Member>) -> anyhow::Result<()> {
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// openraft's handle, for the server.
    pub(crate) fn raft(&self) -> &Raft<Types> {
        &self.raft
    }

    /// The plan that was agreed on last, and every later one.
    pub(crate) fn plan(&self) -> watch::Receiver<Option<Plan>> {
        self.plan.clone()
    }

    /// Waits for news of [`Node::raft_role`]; an error when Raft has stopped.
    pub(crate) fn news(&self) -> watch::Receiver<openraft::RaftMetrics<NodeName, Member>> {
        self.raft.metrics()
    }

    /// What Raft says of this node.
    pub(crate) fn raft_role(&self) -> Result<RaftRole, NodeError> {
        let metrics = self.raft.metrics().borrow().clone();
        metrics.running_state.map_err(|fatal| NodeError::Raft(fatal.to_string()))?;
        let members = metrics.membership_config.membership();
        let voters: BTreeSet<NodeName> = members.voter_ids().collect();
        Ok(match (metrics.state, metrics.current_leader) {
            (ServerState::Leader, _) => {
                RaftRole::Leader { term: metrics.current_term, alone: voters == [self.name].into() }
            }
            // A node that was removed remembers who led, and hears of nobody any more.
            _ if !voters.contains(&self.name) => RaftRole::NonMember,
            (_, Some(leader)) if leader != self.name => RaftRole::Follower { leader: leader.to_string() },
            _ => RaftRole::Leaderless,
        })
    }

    /// Where the leader is, if another node leads.
    pub(crate) fn leader(&self) -> Option<(NodeName, Member)> {
        let metrics = self.raft.metrics().borrow().clone();
        let leader = metrics.current_leader.filter(|leader| *leader != self.name)?;
        metrics.membership_config.membership().get_node(&leader).map(|member| (leader, member.clone()))
    }

    /// Whether a majority says, after this call, that this node leads. Takes two election timeouts at most.
    pub(crate) async fn confirm(&self) -> bool {
        matches!(timeout(Self::ELECTION_TIMEOUT * 2, self.raft.ensure_linearizable()).await, Ok(Ok(_)))
    }

    /// Has the members agree on `plan`.
    pub(crate) async fn propose(&self, plan: Plan) -> Result<(), NodeError> {
        let written = timeout(AGREE_WITHIN, self.raft.client_write(plan)).await;
        written.map_err(|_| NodeError::InDoubt)?.map(drop).map_err(|error| not_written(&error))
    }

    /// Keeps quiet as leader, so that the others elect another; or no longer does.
    pub(crate) fn set_stepped_down(&self, quiet: bool) {
        self.raft.runtime_config().heartbeat(!quiet);
    }

    /// The members.
    pub(crate) fn members(&self) -> Vec<Peer> {
        let metrics = self.raft.metrics().borrow().clone();
        let members = metrics.membership_config.membership();
        let voters: BTreeSet<NodeName> = members.voter_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let lag = |node: &NodeName| {
            let replication = metrics.replication.as_ref()?;
            let matched = replication.get(node)?.map_or(0, |log_id| log_id.index);
            Some(if *node == self.name { 0 } else { last.saturating_sub(matched) })
        };
        let peer = |(node, member): (&NodeName, &Member)| Peer {
            node: *node,
            address: member.address.clone(),
            leader: metrics.current_leader == Some(*node),
            learner: !voters.contains(node),
            lag: lag(node),
        };
        members.nodes().map(peer).collect()
    }

    /// Adds a node that runs with `--join`: it copies the log first, and votes then.
    pub(crate) async fn add_member(&self, node: NodeName, member: Member) -> Result<(), MembershipError> {
        let members = self.members();
        if members.iter().any(|peer| peer.node == self.name && peer.address.is_empty()) {
            let reason =
                format!("{} listens to nobody, so no other node can join it: start it with --raft-bind", self.name);
            return Err(MembershipError::Conflict(reason));
        }
        // A change that was broken off half way is done again.
        let is_settled = self.raft.metrics().borrow().membership_config.membership().get_joint_config().len() == 1;
        if let Some(known) = members.iter().find(|peer| peer.node == node && !peer.learner && is_settled) {
            return Err(MembershipError::Conflict(format!("node {node} is a member already, at {}", known.address)));
        }
        let address = member.address.clone();
        let change = ChangeMembers::SetNodes([(node, member)].into());
        self.change(change, true).await?;
        let copied = timeout(JOIN_WITHIN, self.wait_for(node)).await;
        if copied.is_err() {
            self.change(ChangeMembers::RemoveNodes([node].into()), true).await?;
            return Err(MembershipError::DoesNotJoin { node, address });
        }
        self.change(ChangeMembers::AddVoterIds([node].into()), true).await
    }

    /// Removes a node; it may be one that is gone.
    pub(crate) async fn remove_member(&self, node: NodeName) -> Result<(), MembershipError> {
        let members = self.members();
        let voters = members.iter().filter(|peer| !peer.learner).count();
        let Some(peer) = members.iter().find(|peer| peer.node == node) else {
            let names: Vec<String> = members.iter().map(|peer| peer.node.to_string()).collect();
            return Err(MembershipError::Conflict(format!(
                "node {node} is no member; members are {}",
                names.join(", ")
            )));
        };
        if peer.learner {
            return self.change(ChangeMembers::RemoveNodes([node].into()), true).await;
        }
        if voters == 1 {
            return Err(MembershipError::Conflict(format!("node {node} is the last member")));
        }
        if node == self.name {
            return self.change(ChangeMembers::RemoveVoters([node].into()), false).await;
        }
        // As a learner it still hears that it has no vote any more; then it is let go.
        self.change(ChangeMembers::RemoveVoters([node].into()), true).await?;
        let _ = timeout(TOLD_WITHIN, self.wait_for(node)).await;
        self.change(ChangeMembers::RemoveNodes([node].into()), true).await
    }

    /// `retain`: who loses its vote stays as a learner.
    async fn change(&self, change: ChangeMembers<NodeName, Member>, retain: bool) -> Result<(), MembershipError> {
        match timeout(AGREE_WITHIN, self.raft.change_membership(change, retain)).await {
            Err(_) => Err(NodeError::InDoubt.into()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(MembershipError::Conflict(error.to_string()))
            }
            Ok(Err(error)) => Err(not_written(&error).into()),
        }
    }

    /// Until `node` has what this leader's log has.
    async fn wait_for(&self, node: NodeName) {
        let mut news = self.raft.metrics();
        while !self.members().iter().any(|peer| peer.node == node && peer.lag == Some(0)) {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Stops Raft.
    pub(crate) async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop in order");
        }
    }
}

fn not_written(error: &RaftError<NodeName, ClientWriteError<NodeName, Member>>) -> NodeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => NodeError::NotLeader,
        other => NodeError::Raft(other.to_string()),
    }
}
