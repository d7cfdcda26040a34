//! `/ready` and `/api/v1/status`.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use backbeat_service::{ApiError, base_routes};
use serde_json::{Value, json};

use super::metrics::Metrics;
use super::status::{Role, SharedStatus, Status};

pub(crate) fn routes(metrics: &Metrics, status: SharedStatus) -> Router {
    base_routes(metrics.registry.clone()).merge(
        Router::new()
            .route("/ready", get(ready))
            .route("/api/v1/status", get(async |State(status): State<SharedStatus>| Json(status.snapshot())))
            .with_state(status),
    )
}

async fn ready(State(status): State<SharedStatus>) -> Result<Json<Value>, ApiError> {
    let Status { role, waiting_for, .. } = status.snapshot();
    match (role, waiting_for) {
        (Role::Leader, None) => Ok(Json(json!({ "status": "ready" }))),
        (_, Some(what)) => Err(ApiError::unavailable(format!("waiting for {what}"))),
        (role, None) => Err(ApiError::unavailable(format!("not beating yet: {role:?}"))),
    }
}
