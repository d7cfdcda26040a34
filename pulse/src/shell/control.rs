//! What operators ask for: any node takes it, the leader does it.

use std::sync::mpsc::Sender;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use backbeat_schemas::Tempo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::conductor::ConductorInput;
use super::raft::{Client, Member, MembershipError, Node, NodeError, NodeName};
use crate::core::{Event, Plan, Refusal, Request};

/// Where the leader takes what followers pass on.
const FORWARDED: &str = "/raft/passed-on";
/// A new member may take its time.
const LEADER_WITHIN: Duration = Duration::from_secs(30);

/// An operator's command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum AdminCommand {
    ChangeTempo(TempoChange),
    CancelChange,
    AddMember { node: NodeName, address: String },
    RemoveMember { node: NodeName },
}

/// The body of `POST /api/v1/tempo`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TempoChange {
    #[serde(default)]
    tempo_bpm: Option<Tempo>,
    /// In steps of 10 % a bar.
    #[serde(default)]
    ramp: bool,
    #[serde(default)]
    bar_length: Option<u16>,
}

/// What came of it: an HTTP status and a JSON body.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    status: u16,
    body: Value,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.body)).into_response()
    }
}

impl Answer {
    fn ok(body: Value) -> Self {
        Self { status: 200, body }
    }

    fn refused(status: StatusCode, reason: &impl ToString) -> Self {
        Self { status: status.as_u16(), body: json!({ "error": reason.to_string() }) }
    }

    /// 503 with who leads, as far as we know.
    fn unavailable(reason: &impl ToString, leader: Option<(NodeName, Member)>) -> Self {
        let leader = leader.map(|(node, member)| json!({ "node": node, "address": member.address }));
        let body = json!({ "error": reason.to_string(), "leader": leader });
        Self { status: StatusCode::SERVICE_UNAVAILABLE.as_u16(), body }
    }
}

/// Grants wishes; clones are the same.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) raft: Node,
    pub(crate) client: Client,
    pub(crate) conductor: Sender<ConductorInput>,
}

impl Control {
    /// Here, or where the leader is. Goes on if whoever asked does not wait: what was begun is ended.
    pub(crate) async fn execute(&self, command: AdminCommand) -> Answer {
        let control = self.clone();
        let executed = tokio::spawn(async move { control.execute_or_forward(command).await }).await;
        executed.unwrap_or_else(|error| Answer::unavailable(&error, self.raft.leader()))
    }

    async fn execute_or_forward(&self, command: AdminCommand) -> Answer {
        let Some((leader, member)) = self.raft.leader() else { return self.execute_locally(command).await };
        tracing::info!(?command, %leader, "passed on to the leader");
        let forwarded = self.client.call(leader, &member.address, FORWARDED, &command, LEADER_WITHIN).await;
        forwarded.unwrap_or_else(|error| {
            Answer::unavailable(&format!("the leader, {leader}, cannot be asked: {error}"), Some((leader, member)))
        })
    }

    /// The routes for what other nodes pass on; they must have shown who they are.
    pub(crate) fn routes(&self, accepts_forwarded: bool) -> Router {
        let control = self.clone();
        Router::new().route(
            FORWARDED,
            post(async move |Json(command): Json<AdminCommand>| {
                if !accepts_forwarded {
                    let reason =
                        "the leader takes no changes from other nodes without a --raft-secret-file; ask it itself";
                    return Json(Answer::refused(StatusCode::FORBIDDEN, &reason));
                }
                // Only one hop: if we do not lead, the caller is told.
                let executed = tokio::spawn(async move { control.execute_locally(command).await }).await;
                Json(executed.unwrap_or_else(|error| Answer::unavailable(&error, None)))
            }),
        )
    }

    async fn execute_locally(&self, command: AdminCommand) -> Answer {
        tracing::info!(?command, "asked for");
        match command {
            AdminCommand::ChangeTempo(TempoChange { tempo_bpm, ramp, bar_length }) => {
                if tempo_bpm.is_none() && bar_length.is_none() {
                    let reason = "nothing to change: give tempo_bpm, bar_length or both";
                    return Answer::refused(StatusCode::BAD_REQUEST, &reason);
                }
                self.plan(Request::Change { tempo: tempo_bpm, ramp, bar_length }).await
            }
            AdminCommand::CancelChange => self.plan(Request::Cancel).await,
            AdminCommand::AddMember { node, address } => {
                self.members(self.raft.add_member(node, Member { address }).await)
            }
            AdminCommand::RemoveMember { node } => self.members(self.raft.remove_member(node).await),
        }
    }

    async fn plan(&self, request: Request) -> Answer {
        let (answer, proposed) = oneshot::channel();
        let asked = self.conductor.send(ConductorInput::Propose(request, answer));
        let proposed = match asked {
            Ok(()) => proposed.await.ok(),
            Err(_) => None,
        };
        let plan = match proposed {
            Some(Ok(plan)) => plan,
            Some(Err(refusal)) => return self.refusal(&refusal),
            None => return Answer::unavailable(&"this node is shutting down", self.raft.leader()),
        };
        if let Err(error) = self.raft.propose(plan).await {
            // At the end there is nobody to tell.
            let _ = self.conductor.send(ConductorInput::GiveUpProposal);
            return Answer::unavailable(&error, self.raft.leader());
        }
        // The next request is checked against it. At the end there is nobody to tell.
        let _ = self.conductor.send(ConductorInput::Event(Event::Planned(plan)));
        let Plan { from, tempo, bar_length } = plan;
        tracing::info!(from_beat = %from, %tempo, bar_length, "agreed on");
        Answer::ok(json!({ "from_beat": from, "tempo_bpm": tempo, "bar_length": bar_length }))
    }

    fn refusal(&self, refusal: &Refusal) -> Answer {
        match refusal {
            Refusal::OutOfBounds { .. } | Refusal::TooFar { .. } | Refusal::BarLength(..) => {
                Answer::refused(StatusCode::BAD_REQUEST, refusal)
            }
            Refusal::Pending { .. } | Refusal::NothingPending => Answer::refused(StatusCode::CONFLICT, refusal),
            Refusal::NotNow(_) => Answer::unavailable(refusal, self.raft.leader()),
        }
    }

    fn members(&self, outcome: Result<(), MembershipError>) -> Answer {
        match outcome {
            Ok(()) => Answer::ok(json!({ "members": self.raft.members() })),
            Err(error @ MembershipError::Conflict(_)) => Answer::refused(StatusCode::CONFLICT, &error),
            Err(error @ MembershipError::DoesNotJoin { .. }) => Answer::refused(StatusCode::BAD_REQUEST, &error),
            Err(MembershipError::Node(error @ (NodeError::NotLeader | NodeError::InDoubt | NodeError::Raft(_)))) => {
                Answer::unavailable(&error, self.raft.leader())
            }
        }
    }
}
