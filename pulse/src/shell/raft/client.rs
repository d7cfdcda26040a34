//! The HTTP client for calls to other nodes.

use backbeat_service::{Secret, SecretFile};
use std::time::Duration;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::server;
use super::signature::{self, Call};
use super::types::{NodeInfo, NodeName, Types};

/// The backoff for a node that could not be reached; shorter than an election takes.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Calls other nodes; clones share their connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    cluster: String,
    node: NodeName,
    secrets: Option<SecretFile>,
}

/// A call to another node failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// There was no connection, or no response in time.
    #[error("{address} does not answer: {source}")]
    Unreachable {
        /// The address that was called.
        address: String,
        /// The cause.
        source: reqwest::Error,
    },
    /// The node answered with an error status.
    #[error("{address} answered {status}: {body}")]
    ErrorStatus {
        /// The address that was called.
        address: String,
        /// The status of the response.
        status: StatusCode,
        /// The body of the response.
        body: String,
    },
    /// The response is not signed by the nodes' secret.
    #[error("{address} answered without the signature of a node of this cluster")]
    Unsigned {
        /// The address that was called.
        address: String,
    },
    /// The node answered with a body that is not the expected JSON.
    #[error("{address} answered with an undecodable body: {source}")]
    UndecodableBody {
        /// The address that was called.
        address: String,
        /// The cause.
        source: serde_json::Error,
    },
}

impl Client {
    pub(crate) fn new(cluster: String, node: NodeName, secrets: Option<SecretFile>) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder().tcp_nodelay(true).no_proxy().build()?;
        Ok(Self { http, cluster, node, secrets })
    }

    /// Posts `request` to the node `target` at `address`; with the signature by `token` if it is an operator's command.
    pub(crate) async fn call<R: DeserializeOwned>(
        &self,
        target: NodeName,
        address: &str,
        path: &str,
        request: &impl Serialize,
        timeout: Duration,
        token: Option<&Secret>,
    ) -> Result<R, CallError> {
        let unreachable = |source| CallError::Unreachable { address: address.to_owned(), source };
        let body = serde_json::to_vec(request).expect("a request is serializable");
        let mut headers = self.headers(target);
        let secret = self.secrets.as_ref().map(SecretFile::first);
        let signers = [(signature::SIGNATURE, secret.as_ref()), (signature::AUTHORIZATION, token)];
        let call = Call { headers: &headers, path, body: &body };
        let signatures =
            signers.map(|(purpose, secret)| secret.map(|secret| (purpose, value(call.sign(secret, purpose)))));
        headers.extend(signatures.into_iter().flatten().map(|(name, value)| (HeaderName::from_static(name), value)));
        let call_signature = headers.get(signature::SIGNATURE).cloned();
        let post = self.http.post(format!("http://{address}{path}")).timeout(timeout).headers(headers).body(body);
        let response = post.send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.text().await.unwrap_or_default();
            return Err(CallError::ErrorStatus { address: address.to_owned(), status, body });
        }
        let signature = signature::header(response.headers(), signature::SIGNATURE).to_owned();
        // Not `response.json()`: its error does not tell an undecodable body from a broken connection.
        let body = response.bytes().await.map_err(unreachable)?;
        if let Some((secret, call_signature)) = secret.zip(call_signature)
            && !signature::is_response_signed(&secret, call_signature.as_bytes(), &body, &signature)
        {
            return Err(CallError::Unsigned { address: address.to_owned() });
        }
        serde_json::from_slice(&body)
            .map_err(|source| CallError::UndecodableBody { address: address.to_owned(), source })
    }

    fn headers(&self, target: NodeName) -> HeaderMap {
        let names = [
            (signature::CLUSTER, self.cluster.clone()),
            (signature::NODE, self.node.to_string()),
            (signature::TARGET, target.to_string()),
        ];
        let mut headers: HeaderMap = names
            .into_iter()
            .chain(signature::unique_headers())
            .map(|(name, text)| (HeaderName::from_static(name), value(text)))
            .collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers
    }
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("names, numbers and signatures are printable ASCII")
}

/// Raft's connection to one node.
pub(crate) struct Connection {
    client: Client,
    target: NodeName,
    address: String,
    /// The last error that the node answered with, so that it is logged once.
    last_error: Option<String>,
}

type RpcError<E> = RPCError<NodeName, NodeInfo, RaftError<NodeName, E>>;

impl Connection {
    async fn rpc<R, E>(
        &mut self,
        action: RPCTypes,
        path: &str,
        request: &impl Serialize,
        option: &RPCOption,
    ) -> Result<R, RpcError<E>>
    where
        R: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let timeout = option.hard_ttl();
        let response: Result<Result<R, RaftError<NodeName, E>>, CallError> =
            self.client.call(self.target, &self.address, path, request, timeout, None).await;
        match response {
            Ok(outcome) => outcome.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error))),
            Err(CallError::Unreachable { source, .. }) if source.is_timeout() => {
                Err(RPCError::Timeout(Timeout { action, id: self.client.node, target: self.target, timeout }))
            }
            Err(error @ CallError::Unreachable { .. }) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(error) => {
                let reason = error.to_string();
                if self.last_error.as_ref() != Some(&reason) {
                    tracing::warn!(reason, node = %self.target, "a node answered a raft call with an error");
                    self.last_error = Some(reason);
                }
                Err(RPCError::Network(NetworkError::new(&error)))
            }
        }
    }
}

impl RaftNetworkFactory<Types> for Client {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeName, node: &NodeInfo) -> Connection {
        Connection { client: self.clone(), target, address: node.address.clone(), last_error: None }
    }
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeName>, RpcError<openraft::error::Infallible>> {
        self.rpc(RPCTypes::AppendEntries, server::APPEND, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeName>, RpcError<InstallSnapshotError>> {
        self.rpc(RPCTypes::InstallSnapshot, server::SNAPSHOT, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeName>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeName>, RpcError<openraft::error::Infallible>> {
        self.rpc(RPCTypes::Vote, server::VOTE, &request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::post;
    use tokio::net::TcpListener;

    use super::*;

    fn name(name: &str) -> NodeName {
        name.parse().expect("a node name")
    }

    /// Starts a node that answers each vote with `status` and `body`, and returns a connection to it.
    async fn connection(status: u16, body: &'static str) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let status = StatusCode::from_u16(status).expect("a status");
        let routes = Router::new().route(server::VOTE, post(async move || (status, body)));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let mut client = Client::new("c".into(), name("a"), None).expect("a client");
        client.new_client(name("b"), &NodeInfo { address }).await
    }

    async fn vote(connection: &mut Connection) -> RpcError<openraft::error::Infallible> {
        let request = VoteRequest::new(openraft::Vote::new(1, name("a")), None);
        connection.vote(request, RPCOption::new(Duration::from_secs(10))).await.expect_err("no vote in the body")
    }

    #[tokio::test]
    async fn successful_answer_with_an_undecodable_body_is_not_unreachable() {
        let mut connection = connection(200, "<html>").await;
        let error = vote(&mut connection).await;
        assert!(matches!(error, RPCError::Network(_)), "{error:?}");
        let logged = connection.last_error.expect("the error is logged");
        assert!(logged.contains("answered with an undecodable body: expected value"), "{logged}");
    }

    #[tokio::test]
    async fn answer_with_an_error_status_is_not_unreachable() {
        let mut connection = connection(401, "no secret").await;
        let error = vote(&mut connection).await;
        assert!(matches!(error, RPCError::Network(_)), "{error:?}");
        let logged = connection.last_error.expect("the error is logged");
        assert!(logged.ends_with("answered 401 Unauthorized: no secret"), "{logged}");
    }
}
