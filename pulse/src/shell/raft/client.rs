//! Calls to other nodes, over HTTP.

use std::time::Duration;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::server;
use super::types::{Member, NodeName, Types};
use crate::shell::secret::Secret;

/// The pause before a node that could not be reached is tried again: an election takes longer.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What calls other nodes; clones share their connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    cluster: String,
    node: NodeName,
    secret: Option<Secret>,
}

/// A call that brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nothing came in time, or no connection.
    #[error("{address} does not answer: {source}")]
    Unreachable {
        /// Who was called.
        address: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It answered with an error.
    #[error("{address} refused: {reason}")]
    Refused {
        /// Who was called.
        address: String,
        /// Its words.
        reason: String,
    },
}

impl Client {
    pub(crate) fn new(cluster: String, node: NodeName, secret: Option<Secret>) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder().tcp_nodelay(true).no_proxy().build()?;
        Ok(Self { http, cluster, node, secret })
    }

    /// Posts `request` to `target`, which should be at `address`.
    pub(crate) async fn call<A: DeserializeOwned>(
        &self,
        target: NodeName,
        address: &str,
        path: &str,
        request: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let unreachable = |source| CallError::Unreachable { address: address.to_owned(), source };
        let mut post = self.http.post(format!("http://{address}{path}")).timeout(timeout).json(request);
        post = post.header(server::CLUSTER, &self.cluster).header(server::NODE, self.node.to_string());
        post = post.header(server::TARGET, target.to_string());
        if let Some(secret) = &self.secret {
            post = post.bearer_auth(secret.expose());
        }
        let answer = post.send().await.map_err(unreachable)?;
        if !answer.status().is_success() {
            let status = answer.status();
            let reason = answer.text().await.unwrap_or_default();
            return Err(CallError::Refused { address: address.to_owned(), reason: format!("{status} {reason}") });
        }
        answer.json().await.map_err(unreachable)
    }
}

/// The way to one node.
pub(crate) struct Connection {
    client: Client,
    target: NodeName,
    address: String,
    /// Why it refused last: said once.
    refused: Option<String>,
}

type Failed<E> = RPCError<NodeName, Member, RaftError<NodeName, E>>;

impl Connection {
    async fn rpc<A, E>(
        &mut self,
        action: RPCTypes,
        path: &str,
        request: &impl Serialize,
        option: &RPCOption,
    ) -> Result<A, Failed<E>>
    where
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let timeout = option.hard_ttl();
        let answer: Result<Result<A, RaftError<NodeName, E>>, CallError> =
            self.client.call(self.target, &self.address, path, request, timeout).await;
        match answer {
            Ok(outcome) => outcome.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error))),
            Err(CallError::Unreachable { source, .. }) if source.is_timeout() => {
                Err(RPCError::Timeout(Timeout { action, id: self.client.node, target: self.target, timeout }))
            }
            Err(error @ CallError::Unreachable { .. }) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(error) => {
                let reason = error.to_string();
                if self.refused.as_ref() != Some(&reason) {
                    tracing::warn!(reason, node = %self.target, "raft");
                    self.refused = Some(reason);
                }
                Err(RPCError::Network(NetworkError::new(&error)))
            }
        }
    }
}

impl RaftNetworkFactory<Types> for Client {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeName, node: &Member) -> Connection {
        Connection { client: self.clone(), target, address: node.address.clone(), refused: None }
    }
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeName>, Failed<openraft::error::Infallible>> {
        self.rpc(RPCTypes::AppendEntries, server::APPEND, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeName>, Failed<InstallSnapshotError>> {
        self.rpc(RPCTypes::InstallSnapshot, server::SNAPSHOT, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeName>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeName>, Failed<openraft::error::Infallible>> {
        self.rpc(RPCTypes::Vote, server::VOTE, &request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_PAUSE))
    }
}
