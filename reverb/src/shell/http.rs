//! `/ready`, `/api/v1/status`, `/api/v1/windows` and `/api/v1/windows/{id}`.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use backbeat_schemas::WindowId;
use backbeat_service::{ApiError, base_routes};
use serde_json::{Value, json};

use super::metrics::Metrics;
use super::status::{Member, SharedStatus, WindowStatus};

pub(crate) fn routes(metrics: &Metrics, status: SharedStatus) -> Router {
    base_routes(metrics.registry.clone()).merge(
        Router::new()
            .route("/ready", get(ready))
            .route("/api/v1/status", get(async |State(status): State<SharedStatus>| Json(status.member())))
            .route(
                "/api/v1/windows",
                get(async |State(status): State<SharedStatus>| Json(json!({ "windows": status.windows() }))),
            )
            .route("/api/v1/windows/{id}", get(window))
            .with_state(status),
    )
}

/// Ready: a member of the group whose partitions all have begun. A member may own none.
async fn ready(State(status): State<SharedStatus>) -> Result<Json<Value>, ApiError> {
    let Member { waiting_for, .. } = status.member();
    match waiting_for {
        None => Ok(Json(json!({ "status": "ready" }))),
        Some(what) => Err(ApiError::unavailable(format!("waiting for {what}"))),
    }
}

async fn window(State(status): State<SharedStatus>, Path(id): Path<String>) -> Result<Json<WindowStatus>, ApiError> {
    let id: WindowId =
        id.parse().map_err(|error: backbeat_schemas::WindowIdError| ApiError::bad_request(error.to_string()))?;
    let found = status.window(id).ok_or_else(|| {
        ApiError::not_found(format!(
            "window {id} is neither open nor among the last finished ones here; older reports are in barreports"
        ))
    })?;
    Ok(Json(found))
}
