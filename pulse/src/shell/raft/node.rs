//! This node's Raft instance, as the rest of pulse sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, Config, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::timeout;

use backbeat_http_api::pulse::NodeStatus;

use super::types::{NodeInfo, NodeName, Types};
use super::{Client, Store};
use crate::core::{Plan, RaftRole, RaftTimeouts};

/// The timeout of a proposal. A quorum commits one in milliseconds, so a longer wait means that there is none.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout for a new node to replicate the log, which is short.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout for a removed node to replicate its own removal; a node that is down never does.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Entries between two snapshots.
const LOGS_PER_SNAPSHOT: u64 = 1_000;
/// Entries kept after a snapshot for nodes that lag; a node that lags further gets the snapshot.
const LOGS_KEPT: u64 = 100;

/// A handle of this node's Raft instance; clones share the instance.
#[derive(Clone)]
pub(crate) struct RaftNode {
    name: NodeName,
    raft: Raft<Types>,
    plan: watch::Receiver<Option<Plan>>,
    election_timeout: Duration,
}

/// An error of a Raft operation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// This node does not lead (any more).
    #[error("this node is not the leader")]
    NotLeader,
    /// No quorum answered in time. The change may still be committed later.
    #[error(
        "no quorum answered in time, so it is in doubt whether the change was committed; check /api/v1/status before you try again"
    )]
    InDoubt,
    /// Raft has stopped.
    #[error("raft has stopped: {0}")]
    Raft(String),
}

/// An error of a membership change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MembershipError {
    /// The change conflicts with the current membership.
    #[error("{0}")]
    Conflict(String),
    /// The new node did not replicate the log.
    #[error(
        "node {node} at {address} did not replicate the log within {} s, so it was not added; it must run with --join and reach all nodes",
        JOIN_TIMEOUT.as_secs()
    )]
    NotReplicated {
        /// The new node's name.
        node: NodeName,
        /// The address given for it.
        address: String,
    },
    /// Raft failed.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl RaftNode {
    /// Starts Raft on `store`.
    pub(crate) async fn start(
        name: NodeName,
        timeouts: RaftTimeouts,
        store: Store,
        client: Client,
    ) -> anyhow::Result<Self> {
        let millis = |time: Duration| time.as_millis() as u64;
        let config = Config {
            cluster_name: "backbeat".to_owned(),
            heartbeat_interval: millis(timeouts.heartbeat),
            election_timeout_min: millis(timeouts.election_range().start),
            election_timeout_max: millis(timeouts.election_range().end),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(LOGS_PER_SNAPSHOT),
            max_in_snapshot_log_to_keep: LOGS_KEPT,
            ..Default::default()
        };
        let plan = store.plan();
        let raft = Raft::new(name, Arc::new(config.validate()?), client, store.clone(), store).await?;
        Ok(Self { name, raft, plan, election_timeout: timeouts.election })
    }

    /// Bootstraps a cluster of `nodes`, unless this node belongs to one already. Each of the nodes may do this, with
    /// the same `nodes`.
    pub(crate) async fn bootstrap(&self, nodes: BTreeMap<NodeName, NodeInfo>) -> anyhow::Result<()> {
        match self.raft.initialize(nodes).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// openraft's handle, for the HTTP server.
    pub(super) fn raft(&self) -> &Raft<Types> {
        &self.raft
    }

    /// The plan that was committed last, and every later one.
    pub(crate) fn plan(&self) -> watch::Receiver<Option<Plan>> {
        self.plan.clone()
    }

    /// Returns a receiver of changes of [`RaftNode::raft_role`].
    pub(crate) fn role_changes(&self) -> RoleChanges {
        RoleChanges(self.raft.metrics())
    }

    /// This node's role in Raft.
    pub(crate) fn raft_role(&self) -> Result<RaftRole, NodeError> {
        let metrics = self.raft.metrics().borrow().clone();
        metrics.running_state.map_err(|fatal| NodeError::Raft(fatal.to_string()))?;
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeName> = membership.voter_ids().collect();
        Ok(match (metrics.state, metrics.current_leader) {
            (ServerState::Leader, _) => {
                RaftRole::Leader { raft_term: metrics.current_term, sole_voter: voters == [self.name].into() }
            }
            // A node that was removed still remembers its last leader, but receives no more heartbeats.
            _ if !voters.contains(&self.name) => RaftRole::NonMember,
            (_, Some(leader)) if leader != self.name => RaftRole::Follower { leader: leader.to_string() },
            _ => RaftRole::Leaderless,
        })
    }

    /// The leader and its address, if another node leads.
    pub(crate) fn leader(&self) -> Option<(NodeName, NodeInfo)> {
        let metrics = self.raft.metrics().borrow().clone();
        let leader = metrics.current_leader.filter(|leader| *leader != self.name)?;
        metrics.membership_config.membership().get_node(&leader).map(|info| (leader, info.clone()))
    }

    /// Returns true if a quorum confirms, after this call, that this node is Raft's leader. Takes two election timeouts
    /// at most.
    pub(crate) async fn confirm_leadership(&self) -> bool {
        matches!(timeout(self.election_timeout * 2, self.raft.ensure_linearizable()).await, Ok(Ok(_)))
    }

    /// Proposes `plan` and waits until it is committed.
    pub(crate) async fn propose(&self, plan: Plan) -> Result<(), NodeError> {
        let written = timeout(PROPOSE_TIMEOUT, self.raft.client_write(plan)).await;
        written.map_err(|_| NodeError::InDoubt)?.map(drop).map_err(|error| write_error(&error))
    }

    /// Enables or disables this node's heartbeats as leader. Without them the other nodes elect another leader.
    pub(crate) fn set_heartbeats(&self, enabled: bool) {
        self.raft.runtime_config().heartbeat(enabled);
    }

    /// The nodes of the cluster: voters and learners.
    pub(crate) fn nodes(&self) -> Vec<NodeStatus> {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeName> = membership.voter_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let lag = |node: &NodeName| {
            let replication = metrics.replication.as_ref()?;
            let matched = replication.get(node)?.map_or(0, |log_id| log_id.index);
            Some(if *node == self.name { 0 } else { last.saturating_sub(matched) })
        };
        let status = |(node, info): (&NodeName, &NodeInfo)| NodeStatus {
            node: node.to_string(),
            address: info.address.clone(),
            leader: metrics.current_leader == Some(*node),
            learner: !voters.contains(node),
            lag: lag(node),
        };
        membership.nodes().map(status).collect()
    }

    /// Adds a node that runs with `--join`: as a learner until it has replicated the log, then as a voter.
    pub(crate) async fn add_node(&self, node: NodeName, info: NodeInfo) -> Result<(), MembershipError> {
        let nodes = self.nodes();
        if nodes.iter().any(|known| known.node == self.name.to_string() && known.address.is_empty()) {
            let reason =
                format!("{} has no Raft address, so no other node can join it: start it with --raft-bind", self.name);
            return Err(MembershipError::Conflict(reason));
        }
        // A membership change that was interrupted, and so left a joint configuration, may be repeated.
        let is_settled = self.raft.metrics().borrow().membership_config.membership().get_joint_config().len() == 1;
        if let Some(known) = nodes.iter().find(|known| known.node == node.to_string() && !known.learner && is_settled) {
            return Err(MembershipError::Conflict(format!(
                "node {node} is already in the cluster, at {}",
                known.address
            )));
        }
        let address = info.address.clone();
        let change = ChangeMembers::SetNodes([(node, info)].into());
        self.change_membership(change, true).await?;
        let replicated = timeout(JOIN_TIMEOUT, self.wait_until_replicated(node)).await;
        if replicated.is_err() {
            self.change_membership(ChangeMembers::RemoveNodes([node].into()), true).await?;
            return Err(MembershipError::NotReplicated { node, address });
        }
        self.change_membership(ChangeMembers::AddVoterIds([node].into()), true).await
    }

    /// Removes a node, which may be down.
    pub(crate) async fn remove_node(&self, node: NodeName) -> Result<(), MembershipError> {
        let nodes = self.nodes();
        let voters = nodes.iter().filter(|known| !known.learner).count();
        let Some(known) = nodes.iter().find(|known| known.node == node.to_string()) else {
            let names: Vec<String> = nodes.iter().map(|known| known.node.clone()).collect();
            return Err(MembershipError::Conflict(format!(
                "node {node} is not in the cluster; its nodes are {}",
                names.join(", ")
            )));
        };
        if known.learner {
            return self.change_membership(ChangeMembers::RemoveNodes([node].into()), true).await;
        }
        if voters == 1 {
            return Err(MembershipError::Conflict(format!("node {node} is the last voter")));
        }
        if node == self.name {
            return self.change_membership(ChangeMembers::RemoveVoters([node].into()), false).await;
        }
        // As a learner, the node still replicates the entry that removes its vote; then the node is removed.
        self.change_membership(ChangeMembers::RemoveVoters([node].into()), true).await?;
        let _ = timeout(REMOVAL_TIMEOUT, self.wait_until_replicated(node)).await;
        self.change_membership(ChangeMembers::RemoveNodes([node].into()), true).await
    }

    /// Changes the membership. With `retain`, a voter that loses its vote stays as a learner.
    async fn change_membership(
        &self,
        change: ChangeMembers<NodeName, NodeInfo>,
        retain: bool,
    ) -> Result<(), MembershipError> {
        match timeout(PROPOSE_TIMEOUT, self.raft.change_membership(change, retain)).await {
            Err(_) => Err(NodeError::InDoubt.into()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(MembershipError::Conflict(error.to_string()))
            }
            Ok(Err(error)) => Err(write_error(&error).into()),
        }
    }

    /// Waits until `node` has replicated the whole log of this leader.
    async fn wait_until_replicated(&self, node: NodeName) {
        let mut metrics = self.raft.metrics();
        while !self.nodes().iter().any(|known| known.node == node.to_string() && known.lag == Some(0)) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Stops Raft.
    pub(crate) async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "cannot stop raft cleanly");
        }
    }
}

/// Tells when a node's role in Raft may have changed.
pub(crate) struct RoleChanges(watch::Receiver<RaftMetrics<NodeName, NodeInfo>>);

impl RoleChanges {
    /// Waits for the next change. Fails when Raft has stopped.
    pub(crate) async fn next(&mut self) -> Result<(), NodeError> {
        self.0.changed().await.map_err(|_| NodeError::Raft("it has stopped".to_owned()))
    }
}

fn write_error(error: &RaftError<NodeName, ClientWriteError<NodeName, NodeInfo>>) -> NodeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => NodeError::NotLeader,
        other => NodeError::Raft(other.to_string()),
    }
}
