//! The HTTP API: `/ready`, `/api/v1/status`, `/api/v1/windows` and `/api/v1/windows/{id}`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::{Json, Router};
use backbeat_broker::check_clients;
use backbeat_http_api::ErrorBody;
use backbeat_http_api::reverb::{Ready, StatusBody, WindowStatus, Windows};
use backbeat_schemas::{BeatIndex, WindowId};
use backbeat_service::{ApiError, base_routes, router_with_openapi};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::metrics::Metrics;
use super::status::{MAX_LISTED_WINDOWS, SharedStatus};

const DEFAULT_LIMIT: usize = 100;

pub(crate) fn routes(metrics: &Metrics, status: SharedStatus) -> Router {
    let own = OpenApiRouter::new()
        .routes(routes!(ready))
        .routes(routes!(get_status))
        .routes(routes!(windows))
        .routes(routes!(window))
        .with_state(status);
    router_with_openapi("BACKBEAT reverb", base_routes(metrics.registry.clone(), check_clients).merge(own))
}

/// Readiness.
///
/// A member is ready when it has joined the consumer group and all partitions that it owns have started and caught up.
/// A member that owns no partition is ready, too.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, description = "The member is ready.", body = Ready),
    (status = 503, description = "Not ready; the body has the reason.", body = ErrorBody),
))]
async fn ready(State(status): State<SharedStatus>) -> Result<Json<Ready>, ApiError> {
    match status.waiting_for() {
        None => Ok(Json(Ready { status: "ready".into() })),
        Some(reason) => Err(ApiError::unavailable(format!("waiting for {reason}"))),
    }
}

/// This member's status.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, description = "The status.", body = StatusBody)))]
async fn get_status(State(status): State<SharedStatus>) -> Json<StatusBody> {
    Json(status.body())
}

/// The query of `/api/v1/windows`.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Page {
    /// The beat before which the returned windows opened; without it, the newest windows are returned.
    #[param(required = false, minimum = 0)]
    before: Option<BeatIndex>,
    /// The maximum number of windows to return; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// At most the newest 1,000 windows, open or finished, newest first.
#[utoipa::path(get, path = "/api/v1/windows", params(Page), responses(
    (status = 200, description = "A page of windows.", body = Windows),
    (status = 400, description = "A query parameter is invalid.", body = ErrorBody),
))]
async fn windows(
    State(status): State<SharedStatus>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Windows>, ApiError> {
    let Query(Page { before, limit }) = page.map_err(|error| {
        ApiError::bad_request(format!("{}; the parameters are `before` (a beat index) and `limit`", error.body_text()))
    })?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LISTED_WINDOWS).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is {limit}; must be 1 to {MAX_LISTED_WINDOWS}")));
    }
    let (windows, more) = status.windows(before, limit);
    let next_before = windows.last().map(|last| last.from_beat).filter(|_| more);
    Ok(Json(Windows { windows, next_before }))
}

/// One window, with its report once it is published.
#[utoipa::path(get, path = "/api/v1/windows/{id}",
    params(("id" = WindowId, Path, description = "The window's id: 32 hex digits.")),
    responses(
        (status = 200, description = "The window.", body = WindowStatus),
        (status = 400, description = "The path parameter is not a window id.", body = ErrorBody),
        (status = 404, description = "This member does not know the window.", body = ErrorBody),
    ))]
async fn window(State(status): State<SharedStatus>, Path(id): Path<String>) -> Result<Json<WindowStatus>, ApiError> {
    let id: WindowId =
        id.parse().map_err(|error: backbeat_schemas::WindowIdError| ApiError::bad_request(error.to_string()))?;
    let found = status.window(id).ok_or_else(|| {
        ApiError::not_found(format!(
            "window {id} is not among the newest {MAX_LISTED_WINDOWS} windows that this member knows; older reports are in barreports"
        ))
    })?;
    Ok(Json(found))
}
