//! The HTTP API: `/ready`, `/api/v1/status`, and operators' commands.

use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Extension, Json, Router};
use backbeat_broker::check_clients;
use backbeat_http_api::ErrorBody;
use backbeat_http_api::pulse::{CommittedPlan, NewNode, Nodes, Ready, StatusBody, TempoChange};
use backbeat_service::{ApiError, base_routes, router_with_openapi};
use serde::de::DeserializeOwned;
use utoipa::IntoResponses;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::boundary_sampler::BoundarySampler;
use super::control::{AdminCommand, AdminResponse, Control, Operator, WriteAuthorization};
use super::metrics::Metrics;
use super::raft::{NodeName, is_host_and_port};
use super::status::SharedStatus;

/// The components that exist once pulse takes part in its cluster.
pub(crate) struct Components {
    pub(crate) control: Control,
    pub(crate) boundary_sampler: Arc<BoundarySampler>,
}

#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) status: SharedStatus,
    /// The components, set once Kafka and the schema registry have answered.
    pub(crate) components: Arc<OnceLock<Components>>,
}

pub(crate) fn routes(metrics: &Metrics, api: Api, write_authorization: WriteAuthorization) -> Router {
    let writes = OpenApiRouter::new()
        .routes(routes!(change_tempo, cancel_change))
        .routes(routes!(add_node))
        .routes(routes!(remove_node))
        .layer(from_fn_with_state(Arc::new(write_authorization), authorize));
    let reads = OpenApiRouter::new().routes(routes!(ready)).routes(routes!(get_status));
    router_with_openapi(
        "BACKBEAT pulse",
        base_routes(metrics.registry.clone(), check_clients).merge(writes).merge(reads).with_state(api),
    )
}

async fn authorize(
    State(write_authorization): State<Arc<WriteAuthorization>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let operator = match &*write_authorization {
        // A web page that a browser on this machine shows must not act for its operator.
        WriteAuthorization::Loopback if request.headers().contains_key(header::ORIGIN) => {
            Err(ApiError::forbidden("write requests from web pages need a token: start pulse with --admin-token-file"))
        }
        WriteAuthorization::Loopback => Ok(Operator(None)),
        WriteAuthorization::Disabled => Err(ApiError::forbidden(
            "write requests are disabled: this node listens beyond loopback and was started without --admin-token-file",
        )),
        WriteAuthorization::Token(tokens) => {
            let authorization = request.headers().get(header::AUTHORIZATION);
            let token = tokens.bearer(authorization.map(HeaderValue::as_bytes));
            let missing = || ApiError::unauthorized("the token is missing or wrong: send Authorization: Bearer TOKEN");
            token.map(|token| Operator(Some(token))).ok_or_else(missing)
        }
    };
    request.extensions_mut().insert(operator?);
    Ok(next.run(request).await)
}

impl Api {
    fn components(&self) -> Result<&Components, ApiError> {
        self.components.get().ok_or_else(|| {
            let waiting_for = self.status.snapshot().waiting_for.unwrap_or_default();
            ApiError::unavailable(format!("waiting for {waiting_for}"))
        })
    }

    async fn execute(&self, command: AdminCommand, operator: Operator) -> Result<AdminResponse, ApiError> {
        Ok(self.components()?.control.execute(command, operator).await)
    }
}

/// Readiness: Kafka answers, and Raft has a leader.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, description = "The node is ready.", body = Ready),
    (status = 503, description = "Not ready; the body has the reason.", body = ErrorBody),
))]
async fn ready(State(api): State<Api>) -> Result<Json<Ready>, ApiError> {
    let components = api.components()?;
    let status = api.status.snapshot();
    if !components.boundary_sampler.is_kafka_answering() {
        return Err(ApiError::unavailable("kafka is unavailable"));
    }
    if !status.knows_leader {
        return Err(ApiError::unavailable("raft has no leader: no quorum of the voters is reachable"));
    }
    Ok(Json(Ready { status: "ready".into(), role: status.role }))
}

/// This node's status.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, description = "The status.", body = StatusBody)))]
async fn get_status(State(api): State<Api>) -> Json<StatusBody> {
    let nodes = api.components.get().map(|components| components.control.raft.nodes()).unwrap_or_default();
    Json(api.status.snapshot().body(nodes))
}

/// The error responses of every write request.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes responses that are made elsewhere")]
enum WriteErrors {
    /// The token is missing or wrong.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// Write requests are disabled, or the request came from a web page.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// No leader, no quorum, or shutting down; the change may still be committed: check /api/v1/status.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// Changes the tempo, the bar length or both, from the next downbeat.
#[utoipa::path(post, path = "/api/v1/tempo", request_body = TempoChange, responses(
    (status = 200, description = "Committed.", body = CommittedPlan),
    (status = 400, description = "The body is invalid, or the change is out of bounds or more than 10 %.", body = ErrorBody),
    (status = 409, description = "Another change is pending.", body = ErrorBody),
    WriteErrors,
))]
async fn change_tempo(
    State(api): State<Api>,
    Extension(operator): Extension<Operator>,
    body: Bytes,
) -> Result<AdminResponse, ApiError> {
    let change = parse(
        &body,
        r#"{"tempo_bpm": 5.5}, with "ramp": true for a change of more than 10 %, and "bar_length" in beats"#,
    )?;
    api.execute(AdminCommand::ChangeTempo(change), operator).await
}

/// Cancels the pending change.
#[utoipa::path(delete, path = "/api/v1/tempo", responses(
    (status = 200, description = "Cancelled.", body = CommittedPlan),
    (status = 409, description = "No change is pending.", body = ErrorBody),
    WriteErrors,
))]
async fn cancel_change(
    State(api): State<Api>,
    Extension(operator): Extension<Operator>,
) -> Result<AdminResponse, ApiError> {
    api.execute(AdminCommand::CancelChange, operator).await
}

/// Adds a node to the cluster.
#[utoipa::path(post, path = "/api/v1/members", request_body = NewNode, responses(
    (status = 200, description = "Added.", body = Nodes),
    (status = 400, description = "The body is invalid, or the node did not replicate the log in time.", body = ErrorBody),
    (status = 409, description = "The node is already in the cluster.", body = ErrorBody),
    WriteErrors,
))]
async fn add_node(
    State(api): State<Api>,
    Extension(operator): Extension<Operator>,
    body: Bytes,
) -> Result<AdminResponse, ApiError> {
    let NewNode { node, address } = parse(&body, r#"{"node": "pulse-4", "address": "host:port"}"#)?;
    if !is_host_and_port(&address) {
        return Err(ApiError::bad_request(format!("address {address:?} is not host:port")));
    }
    api.execute(AdminCommand::AddNode { node: node_name(&node)?, address }, operator).await
}

/// Removes a node from the cluster.
#[utoipa::path(delete, path = "/api/v1/members/{node}",
    params(("node" = String, Path, description = "The node's name.")),
    responses(
        (status = 200, description = "Removed.", body = Nodes),
        (status = 400, description = "The path parameter is not a node name.", body = ErrorBody),
        (status = 409, description = "The node is not in the cluster, or is its only one.", body = ErrorBody),
        WriteErrors,
    ))]
async fn remove_node(
    State(api): State<Api>,
    Extension(operator): Extension<Operator>,
    Path(node): Path<String>,
) -> Result<AdminResponse, ApiError> {
    api.execute(AdminCommand::RemoveNode { node: node_name(&node)? }, operator).await
}

fn node_name(text: &str) -> Result<NodeName, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("{error}")))
}

fn parse<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is invalid: {error}; expected JSON like {expected}")))
}
