//! Operators' commands: any node accepts them, and Raft's leader executes them.

use std::sync::mpsc::Sender;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use backbeat_http_api::pulse::{CommittedPlan, Nodes, TempoChange};
use backbeat_service::{ApiError, Secret, SecretFile};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::conductor::ConductorInput;
use super::raft::{AUTHORIZATION, Call, Client, MembershipError, NodeError, NodeInfo, NodeName, RaftNode};
use crate::core::{Event, Plan, PlanRequest, Refusal};

/// The path on the leader for commands that other nodes forward. Nodes of different versions use it, so it keeps its
/// name.
const FORWARDED: &str = "/raft/passed-on";
/// The timeout of a forwarded command. Adding a node waits until the node has replicated the log.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(30);

/// An operator's command. Nodes forward it to each other as JSON, so its names are part of the wire format.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum AdminCommand {
    ChangeTempo(TempoChange),
    CancelChange,
    #[serde(rename = "AddMember")]
    AddNode {
        node: NodeName,
        address: String,
    },
    #[serde(rename = "RemoveMember")]
    RemoveNode {
        node: NodeName,
    },
}

/// The HTTP response to an operator's command: a status and a JSON body.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AdminResponse {
    status: u16,
    body: Value,
}

impl IntoResponse for AdminResponse {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.body)).into_response()
    }
}

impl AdminResponse {
    fn ok(body: &impl Serialize) -> Self {
        Self { status: 200, body: json!(body) }
    }

    fn refused(status: StatusCode, reason: &impl ToString) -> Self {
        Self { status: status.as_u16(), body: json!({ "error": reason.to_string() }) }
    }

    /// Creates a response with status 503 that names the leader, if this node knows it.
    fn unavailable(reason: &impl ToString, leader: Option<(NodeName, NodeInfo)>) -> Self {
        let leader = leader.map(|(node, info)| json!({ "node": node, "address": info.address }));
        let body = json!({ "error": reason.to_string(), "leader": leader });
        Self { status: StatusCode::SERVICE_UNAVAILABLE.as_u16(), body }
    }
}

/// The authorization of write requests: those that change the tempo, the bar length or the cluster's nodes.
#[derive(Clone)]
pub(crate) enum WriteAuthorization {
    /// Write requests are allowed with one of these bearer tokens.
    Token(SecretFile),
    /// Write requests are allowed without a token: the server listens on loopback only, so all callers are on this
    /// machine.
    Loopback,
    /// Write requests are disabled.
    Disabled,
}

/// The token of an operator who may execute commands; `None` if none is needed.
#[derive(Clone)]
pub(crate) struct Operator(pub(crate) Option<Secret>);

/// Executes operators' commands, here or on the leader.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) raft: RaftNode,
    pub(crate) client: Client,
    pub(crate) conductor: Sender<ConductorInput>,
    /// The authorization of commands that another node forwards, too.
    pub(crate) write_authorization: WriteAuthorization,
}

impl Control {
    /// Executes `command` on this node or on the leader. The execution continues if the caller disconnects.
    pub(crate) async fn execute(&self, command: AdminCommand, operator: Operator) -> AdminResponse {
        let control = self.clone();
        let executed = tokio::spawn(async move { control.execute_or_forward(command, operator).await }).await;
        executed.unwrap_or_else(|error| AdminResponse::unavailable(&error, self.raft.leader()))
    }

    async fn execute_or_forward(&self, command: AdminCommand, Operator(token): Operator) -> AdminResponse {
        let Some((leader, info)) = self.raft.leader() else { return self.execute_locally(command).await };
        tracing::info!(?command, %leader, "forwarding an operator's command to the leader");
        let forwarded =
            self.client.call(leader, &info.address, FORWARDED, &command, FORWARD_TIMEOUT, token.as_ref()).await;
        forwarded.unwrap_or_else(|error| {
            let reason = format!("cannot forward the command to the leader, {leader}: {error}");
            AdminResponse::unavailable(&reason, Some((leader, info)))
        })
    }

    /// The routes for commands that other nodes forward. If `are_calls_signed`, the caller is a node of this cluster.
    pub(crate) fn routes(&self, are_calls_signed: bool) -> Router {
        let control = self.clone();
        Router::new().route(
            FORWARDED,
            post(async move |headers: HeaderMap, body: Bytes| {
                let call = Call { headers: &headers, path: FORWARDED, body: &body };
                if let Some(refused) = control.refuse_forwarded(&call, are_calls_signed) {
                    return Ok::<_, ApiError>(Json(refused));
                }
                let command = serde_json::from_slice(&body);
                let command = command.map_err(|error| ApiError::bad_request(format!("not a command: {error}")))?;
                // Not forwarded again: if this node does not lead, the response is an error.
                let executed = tokio::spawn(async move { control.execute_locally(command).await }).await;
                Ok(Json(executed.unwrap_or_else(|error| AdminResponse::unavailable(&error, None))))
            }),
        )
    }

    /// Returns a refusal unless the operator of the forwarded command is authorized on this node, too. The token does not
    /// travel between nodes: the call is signed with it.
    fn refuse_forwarded(&self, call: &Call<'_>, are_calls_signed: bool) -> Option<AdminResponse> {
        let (status, reason) = match &self.write_authorization {
            WriteAuthorization::Loopback => return None,
            WriteAuthorization::Disabled => (
                StatusCode::FORBIDDEN,
                "write requests are disabled on the leader: it listens beyond loopback and was started without \
                 --admin-token-file",
            ),
            // Without the nodes' signature, a recorded call could be repeated.
            WriteAuthorization::Token(_) if !are_calls_signed => (
                StatusCode::FORBIDDEN,
                "the leader accepts no forwarded commands without a --raft-secret-file; send the request to the leader itself",
            ),
            WriteAuthorization::Token(tokens) if call.signer(tokens, AUTHORIZATION).is_some() => return None,
            WriteAuthorization::Token(_) => (
                StatusCode::UNAUTHORIZED,
                "the leader does not accept the token of this node: all nodes must have the same --admin-token-file",
            ),
        };
        Some(AdminResponse::refused(status, &reason))
    }

    async fn execute_locally(&self, command: AdminCommand) -> AdminResponse {
        tracing::info!(?command, "executing an operator's command");
        match command {
            AdminCommand::ChangeTempo(TempoChange { tempo_bpm, ramp, bar_length }) => {
                if tempo_bpm.is_none() && bar_length.is_none() {
                    let reason = "nothing to change: give tempo_bpm, bar_length or both";
                    return AdminResponse::refused(StatusCode::BAD_REQUEST, &reason);
                }
                self.change_plan(PlanRequest::Change { tempo: tempo_bpm, ramp, bar_length }).await
            }
            AdminCommand::CancelChange => self.change_plan(PlanRequest::Cancel).await,
            AdminCommand::AddNode { node, address } => {
                self.membership_response(self.raft.add_node(node, NodeInfo { address }).await)
            }
            AdminCommand::RemoveNode { node } => self.membership_response(self.raft.remove_node(node).await),
        }
    }

    async fn change_plan(&self, request: PlanRequest) -> AdminResponse {
        let (reply, proposed) = oneshot::channel();
        let sent = self.conductor.send(ConductorInput::Propose(request, reply));
        let proposed = match sent {
            Ok(()) => proposed.await.ok(),
            Err(_) => None,
        };
        let plan = match proposed {
            Some(Ok(plan)) => plan,
            Some(Err(refusal)) => return self.refusal_response(&refusal),
            None => return AdminResponse::unavailable(&"this node is shutting down", self.raft.leader()),
        };
        if let Err(error) = self.raft.propose(plan).await {
            // Fails only during a shutdown.
            let _ = self.conductor.send(ConductorInput::GiveUpProposal);
            return AdminResponse::unavailable(&error, self.raft.leader());
        }
        // Raft's own event may come later than the next request, which must be checked against this plan. Sending fails
        // only during a shutdown.
        let _ = self.conductor.send(ConductorInput::Event(Event::PlanApplied(plan)));
        let Plan { from, tempo, bar_length } = plan;
        tracing::info!(from_beat = %from, %tempo, bar_length, "committed a plan");
        AdminResponse::ok(&CommittedPlan { from_beat: from, tempo_bpm: tempo, bar_length })
    }

    fn refusal_response(&self, refusal: &Refusal) -> AdminResponse {
        match refusal {
            Refusal::OutOfBounds { .. } | Refusal::TooFar { .. } | Refusal::BarLength(..) => {
                AdminResponse::refused(StatusCode::BAD_REQUEST, refusal)
            }
            Refusal::Pending { .. } | Refusal::NothingPending => AdminResponse::refused(StatusCode::CONFLICT, refusal),
            Refusal::Unavailable(_) => AdminResponse::unavailable(refusal, self.raft.leader()),
        }
    }

    fn membership_response(&self, outcome: Result<(), MembershipError>) -> AdminResponse {
        match outcome {
            Ok(()) => AdminResponse::ok(&Nodes { members: self.raft.nodes() }),
            Err(error @ MembershipError::Conflict(_)) => AdminResponse::refused(StatusCode::CONFLICT, &error),
            Err(error @ MembershipError::NotReplicated { .. }) => {
                AdminResponse::refused(StatusCode::BAD_REQUEST, &error)
            }
            Err(MembershipError::Node(error @ (NodeError::NotLeader | NodeError::InDoubt | NodeError::Raft(_)))) => {
                AdminResponse::unavailable(&error, self.raft.leader())
            }
        }
    }
}
