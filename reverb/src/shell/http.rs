//! The HTTP API: `/ready`, `/api/v1/status`, `/api/v1/windows` and `/api/v1/windows/{id}`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use axum::{Json, Router};
use backbeat_schemas::{BeatIndex, WindowId};
use backbeat_service::{ApiError, base_routes};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::metrics::Metrics;
use super::status::{MAX_WINDOWS, SharedStatus, WindowStatus};

const DEFAULT_LIMIT: usize = 100;

pub(crate) fn routes(metrics: &Metrics, status: SharedStatus) -> Router {
    base_routes(metrics.registry.clone()).merge(
        Router::new()
            .route("/ready", get(ready))
            .route("/api/v1/status", get(async |State(status): State<SharedStatus>| Json(status.body())))
            .route("/api/v1/windows", get(windows))
            .route("/api/v1/windows/{id}", get(window))
            .with_state(status),
    )
}

/// Ready means: joined the group, and all owned partitions have started and caught up. A member may own none.
async fn ready(State(status): State<SharedStatus>) -> Result<Json<Value>, ApiError> {
    match status.waiting_for() {
        None => Ok(Json(json!({ "status": "ready" }))),
        Some(reason) => Err(ApiError::unavailable(format!("waiting for {reason}"))),
    }
}

/// The query of `/api/v1/windows`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    /// Only windows that opened before this beat.
    before: Option<BeatIndex>,
    limit: Option<usize>,
}

/// The body of `/api/v1/windows`: windows, newest first.
#[derive(Serialize)]
struct Windows {
    windows: Vec<WindowStatus>,
    /// The value of `before` for the next page, if there is one.
    next_before: Option<BeatIndex>,
}

async fn windows(
    State(status): State<SharedStatus>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Windows>, ApiError> {
    let Query(Page { before, limit }) = page.map_err(|error| {
        ApiError::bad_request(format!("{}; allowed are before, a beat, and limit", error.body_text()))
    })?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_WINDOWS).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is {limit}; allowed are 1 to {MAX_WINDOWS}")));
    }
    let (windows, more) = status.windows(before, limit);
    let next_before = windows.last().map(|last| last.from_beat).filter(|_| more);
    Ok(Json(Windows { windows, next_before }))
}

async fn window(State(status): State<SharedStatus>, Path(id): Path<String>) -> Result<Json<WindowStatus>, ApiError> {
    let id: WindowId =
        id.parse().map_err(|error: backbeat_schemas::WindowIdError| ApiError::bad_request(error.to_string()))?;
    let found = status.window(id).ok_or_else(|| {
        ApiError::not_found(format!(
            "window {id} is neither open nor among the last {MAX_WINDOWS} here; older reports are in barreports"
        ))
    })?;
    Ok(Json(found))
}
