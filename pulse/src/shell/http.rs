//! The HTTP API: `/ready`, `/api/v1/status`, and operators' commands.

use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use backbeat_service::{ApiError, base_routes};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::boundary_sampler::BoundarySampler;
use super::control::{AdminCommand, AdminResponse, Control};
use super::metrics::Metrics;
use super::raft::NodeName;
use super::secret::Secret;
use super::status::{SharedStatus, StatusBody};

/// The authorization of requests that change something.
pub(crate) enum WriteAuthorization {
    /// Allowed with this bearer token.
    Token(Secret),
    /// Allowed without a token: the server listens on loopback only, so all callers are on this machine.
    Loopback,
    /// Not allowed.
    Disabled,
}

/// The components that exist once pulse takes part in its cluster.
pub(crate) struct Components {
    pub(crate) control: Control,
    pub(crate) boundary_sampler: Arc<BoundarySampler>,
}

#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) status: SharedStatus,
    /// Not set before Kafka and the schema registry have answered.
    pub(crate) components: Arc<OnceLock<Components>>,
}

pub(crate) fn routes(metrics: &Metrics, api: Api, write_authorization: WriteAuthorization) -> Router {
    let changes = Router::new()
        .route("/api/v1/tempo", post(change_tempo).delete(cancel_change))
        .route("/api/v1/members", post(add_node))
        .route("/api/v1/members/{node}", delete(remove_node))
        .layer(from_fn_with_state(Arc::new(write_authorization), authorize));
    let reads = Router::new().route("/ready", get(ready)).route("/api/v1/status", get(status));
    base_routes(metrics.registry.clone()).merge(changes.merge(reads).with_state(api))
}

async fn authorize(
    State(write_authorization): State<Arc<WriteAuthorization>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match &*write_authorization {
        // A web page that a browser on this machine shows must not act for its operator.
        WriteAuthorization::Loopback if request.headers().contains_key(header::ORIGIN) => {
            Err(ApiError::forbidden("changes from web pages need a token: start pulse with --admin-token-file"))
        }
        WriteAuthorization::Loopback => Ok(next.run(request).await),
        WriteAuthorization::Disabled => Err(ApiError::forbidden(
            "changes are off: this node listens beyond loopback and was started without --admin-token-file",
        )),
        WriteAuthorization::Token(token) => {
            let authorization = request.headers().get(header::AUTHORIZATION);
            if token.matches(authorization.map(HeaderValue::as_bytes)) {
                return Ok(next.run(request).await);
            }
            Err(ApiError::unauthorized("the token is missing or wrong: send Authorization: Bearer TOKEN"))
        }
    }
}

impl Api {
    fn components(&self) -> Result<&Components, ApiError> {
        self.components.get().ok_or_else(|| {
            let waiting_for = self.status.snapshot().waiting_for.unwrap_or_default();
            ApiError::unavailable(format!("waiting for {waiting_for}"))
        })
    }

    async fn execute(&self, command: AdminCommand) -> Result<AdminResponse, ApiError> {
        Ok(self.components()?.control.execute(command).await)
    }
}

async fn ready(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let components = api.components()?;
    let status = api.status.snapshot();
    if !components.boundary_sampler.is_kafka_answering() {
        return Err(ApiError::unavailable("kafka is unavailable"));
    }
    if !status.knows_leader {
        return Err(ApiError::unavailable("raft has no leader: no majority of the voters is reachable"));
    }
    Ok(Json(json!({ "status": "ready", "role": status.role })))
}

async fn status(State(api): State<Api>) -> Json<StatusBody> {
    let nodes = api.components.get().map(|components| components.control.raft.nodes()).unwrap_or_default();
    Json(api.status.snapshot().body(nodes))
}

async fn change_tempo(State(api): State<Api>, body: Bytes) -> Result<AdminResponse, ApiError> {
    let change = parse(
        &body,
        r#"{"tempo_bpm": 5.5}, with "ramp": true for a change of more than 10 %, and "bar_length" in beats"#,
    )?;
    api.execute(AdminCommand::ChangeTempo(change)).await
}

async fn cancel_change(State(api): State<Api>) -> Result<AdminResponse, ApiError> {
    api.execute(AdminCommand::CancelChange).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewNode {
    node: String,
    address: String,
}

async fn add_node(State(api): State<Api>, body: Bytes) -> Result<AdminResponse, ApiError> {
    let NewNode { node, address } = parse(&body, r#"{"node": "pulse-4", "address": "host:port"}"#)?;
    if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
        return Err(ApiError::bad_request(format!("address {address:?} is not host:port")));
    }
    api.execute(AdminCommand::AddNode { node: node_name(&node)?, address }).await
}

async fn remove_node(State(api): State<Api>, Path(node): Path<String>) -> Result<AdminResponse, ApiError> {
    api.execute(AdminCommand::RemoveNode { node: node_name(&node)? }).await
}

fn node_name(text: &str) -> Result<NodeName, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("{error}")))
}

fn parse<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is invalid: {error}; expected JSON like {expected}")))
}
