//! `/ready`, `/api/v1/status`, and what operators may change.

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
use super::control::{AdminCommand, Answer, Control};
use super::metrics::Metrics;
use super::raft::NodeName;
use super::secret::Secret;
use super::status::{SharedStatus, StatusBody};

/// Who may change something.
pub(crate) enum Writers {
    /// Who shows this token.
    Holders(Secret),
    /// Everybody on this machine: nobody else can connect.
    Local,
    /// Nobody.
    Nobody,
}

/// What there is once pulse takes part in its cluster.
pub(crate) struct Parts {
    pub(crate) control: Control,
    pub(crate) boundary_sampler: Arc<BoundarySampler>,
}

#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) status: SharedStatus,
    /// Not set before Kafka and the registry have answered.
    pub(crate) parts: Arc<OnceLock<Parts>>,
}

pub(crate) fn routes(metrics: &Metrics, api: Api, writers: Writers) -> Router {
    let changes = Router::new()
        .route("/api/v1/tempo", post(change_tempo).delete(cancel_change))
        .route("/api/v1/members", post(add_member))
        .route("/api/v1/members/{node}", delete(remove_member))
        .layer(from_fn_with_state(Arc::new(writers), authorize));
    let reads = Router::new().route("/ready", get(ready)).route("/api/v1/status", get(status));
    base_routes(metrics.registry.clone()).merge(changes.merge(reads).with_state(api))
}

async fn authorize(State(writers): State<Arc<Writers>>, request: Request, next: Next) -> Result<Response, ApiError> {
    match &*writers {
        // A page in a browser on this machine is not its operator.
        Writers::Local if request.headers().contains_key(header::ORIGIN) => {
            Err(ApiError::forbidden("changes from web pages need a token: start pulse with --admin-token-file"))
        }
        Writers::Local => Ok(next.run(request).await),
        Writers::Nobody => Err(ApiError::forbidden(
            "changes are off: this node listens beyond loopback and was started without --admin-token-file",
        )),
        Writers::Holders(token) => {
            let shown = request.headers().get(header::AUTHORIZATION);
            if token.is_shown_by(shown.map(HeaderValue::as_bytes)) {
                return Ok(next.run(request).await);
            }
            Err(ApiError::unauthorized("the token is missing or wrong: send Authorization: Bearer TOKEN"))
        }
    }
}

impl Api {
    fn parts(&self) -> Result<&Parts, ApiError> {
        self.parts.get().ok_or_else(|| {
            let waiting_for = self.status.snapshot().waiting_for.unwrap_or_default();
            ApiError::unavailable(format!("waiting for {waiting_for}"))
        })
    }

    async fn execute(&self, command: AdminCommand) -> Result<Answer, ApiError> {
        Ok(self.parts()?.control.execute(command).await)
    }
}

async fn ready(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let parts = api.parts()?;
    let status = api.status.snapshot();
    if !parts.boundary_sampler.is_kafka_answering() {
        return Err(ApiError::unavailable("kafka does not answer"));
    }
    if !status.is_led {
        return Err(ApiError::unavailable("raft has no leader: a majority of the members is not there"));
    }
    Ok(Json(json!({ "status": "ready", "role": status.role })))
}

async fn status(State(api): State<Api>) -> Json<StatusBody> {
    let members = api.parts.get().map(|parts| parts.control.raft.members()).unwrap_or_default();
    Json(api.status.snapshot().body(members))
}

async fn change_tempo(State(api): State<Api>, body: Bytes) -> Result<Answer, ApiError> {
    let change = parse(&body, r#"{"tempo_bpm": 5.5}, with "ramp": true if it is far, and "bar_length" in beats"#)?;
    api.execute(AdminCommand::ChangeTempo(change)).await
}

async fn cancel_change(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.execute(AdminCommand::CancelChange).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    node: String,
    address: String,
}

async fn add_member(State(api): State<Api>, body: Bytes) -> Result<Answer, ApiError> {
    let NewMember { node, address } = parse(&body, r#"{"node": "pulse-4", "address": "host:port"}"#)?;
    if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
        return Err(ApiError::bad_request(format!("address {address:?} is not host:port")));
    }
    api.execute(AdminCommand::AddMember { node: node_name(&node)?, address }).await
}

async fn remove_member(State(api): State<Api>, Path(node): Path<String>) -> Result<Answer, ApiError> {
    api.execute(AdminCommand::RemoveMember { node: node_name(&node)? }).await
}

fn node_name(text: &str) -> Result<NodeName, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("{error}")))
}

fn parse<T: DeserializeOwned>(body: &[u8], wanted: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is wrong: {error}; wanted is JSON like {wanted}")))
}
