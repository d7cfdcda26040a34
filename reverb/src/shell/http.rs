//! The HTTP API: `/ready`, `/api/v1/status`, `/api/v1/windows`, `/api/v1/windows/{id}`, `/api/v1/windows/{id}/roster` and
//! `/api/v1/agents/{id}/claims`.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::{Json, Router};
use backbeat_broker::{Broker, Registry, check_clients};
use backbeat_http_api::ErrorBody;
use backbeat_http_api::reverb::{AgentHistory, Ready, Roster, RosterItem, StatusBody, WindowStatus, Windows};
use backbeat_schemas::{BarReport, BeatIndex, RosterEntry, RosterKind, WindowId, WindowIdError};
use backbeat_service::{ApiError, Shutdown, base_routes, router_with_openapi};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::agent_history::{HistoryError, HistoryRange, agent_history, check_agent_id};
use super::metrics::Metrics;
use super::rosters::RosterReader;
use super::status::{MAX_LISTED_WINDOWS, SharedStatus};

const DEFAULT_LIMIT: usize = 100;
/// The largest number of entries of a roster in one page.
const MAX_LISTED_ENTRIES: usize = 1_000;

/// The largest number of bars of a history.
const MAX_HISTORY_BARS: usize = 100;
const DEFAULT_HISTORY_BARS: usize = 10;
/// The largest number of records that are read for a history.
const MAX_HISTORY_RECORDS: u64 = 2_000_000;
/// The largest number of bytes of the agent's records in it.
const MAX_HISTORY_BYTES: usize = 16 * 1024 * 1024;

/// Reads the histories of agents and the rosters of windows from the log, one at a time.
#[derive(Clone)]
pub(crate) struct LogQueries {
    pub(crate) status: SharedStatus,
    pub(crate) broker: Broker,
    pub(crate) registry: Registry,
    pub(crate) stop: Shutdown,
    pub(crate) permit: Arc<Semaphore>,
}

pub(crate) fn routes(metrics: &Metrics, status: SharedStatus, queries: LogQueries) -> Router {
    let own = OpenApiRouter::new()
        .routes(routes!(ready))
        .routes(routes!(get_status))
        .routes(routes!(windows))
        .routes(routes!(window))
        .with_state(status);
    let logs = OpenApiRouter::new().routes(routes!(agent_claims)).routes(routes!(window_roster)).with_state(queries);
    let base = base_routes(metrics.registry.clone(), check_clients);
    router_with_openapi("BACKBEAT reverb", base.merge(own).merge(logs))
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
    let limit = checked("limit", limit.unwrap_or(DEFAULT_LIMIT), MAX_LISTED_WINDOWS)?;
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
    let id = parse_window_id(&id)?;
    let found = status.window(id).ok_or_else(|| {
        ApiError::not_found(format!(
            "window {id} is not among the newest {MAX_LISTED_WINDOWS} windows that this member knows; older reports are in barreports"
        ))
    })?;
    Ok(Json(found))
}

/// The query of `/api/v1/agents/{id}/claims`.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Bars {
    /// A beat of the last bar; without it, the newest one.
    #[param(required = false, minimum = 0)]
    to: Option<BeatIndex>,
    /// The number of bars; 10 by default.
    #[param(minimum = 1, maximum = 100)]
    last: Option<usize>,
}

/// The claims of one agent, bar by bar, with the outcome of each.
///
/// Reads the log: only the partition of the agent's key, at most 2,000,000 records of it, and for one request at a time.
#[utoipa::path(get, path = "/api/v1/agents/{id}/claims",
    params(("id" = String, Path, description = "The agent's id: 1 to 256 bytes.", min_length = 1, max_length = 256), Bars),
    responses(
        (status = 200, description = "The bars, oldest first.", body = AgentHistory),
        (status = 400, description = "A parameter is invalid, or the bars have too many records.", body = ErrorBody),
        (status = 503, description = "Kafka does not answer, or another request reads the log.", body = ErrorBody),
    ))]
async fn agent_claims(
    State(queries): State<LogQueries>,
    Path(id): Path<String>,
    bars: Result<Query<Bars>, QueryRejection>,
) -> Result<Json<AgentHistory>, ApiError> {
    let Query(Bars { to, last }) = bars.map_err(|error| {
        let reason = error.body_text();
        ApiError::bad_request(format!("{reason}; the parameters are `to` (a beat index) and `last` (a number of bars)"))
    })?;
    let bars = checked("last", last.unwrap_or(DEFAULT_HISTORY_BARS), MAX_HISTORY_BARS)?;
    check_agent_id(&id).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let range = HistoryRange {
        from: None,
        to,
        bars,
        all_partitions: false,
        max_records: MAX_HISTORY_RECORDS,
        max_bytes: MAX_HISTORY_BYTES,
    };
    let read = move |queries: &LogQueries, runtime: &Handle| {
        agent_history(&queries.broker, &queries.registry, runtime, &id, range, &queries.stop)
    };
    match queries.run(read).await? {
        Ok(history) => Ok(Json(history)),
        Err(HistoryError::Read(error)) => Err(ApiError::unavailable(format!("{error:#}"))),
        Err(error) => Err(ApiError::bad_request(error.to_string())),
    }
}

impl LogQueries {
    /// Runs `query` on a thread of its own, unless another one runs.
    async fn run<T: Send + 'static>(
        self,
        query: impl FnOnce(&Self, &Handle) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(permit) = Arc::clone(&self.permit).try_acquire_owned() else {
            return Err(ApiError::unavailable("another request reads the log; try again in a second"));
        };
        let runtime = Handle::current();
        let read = tokio::task::spawn_blocking(move || {
            let result = query(&self, &runtime);
            drop(permit);
            result
        });
        read.await.map_err(|error| ApiError::unavailable(format!("the reader of the log has failed: {error}")))
    }
}

/// The query of `/api/v1/windows/{id}/roster`.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RosterPage {
    /// The kind of the returned entries; without it, all kinds are returned.
    kind: Option<RosterKind>,
    /// The number of entries to leave out: `next_after` of the page before.
    #[param(minimum = 0)]
    after: Option<usize>,
    /// The maximum number of entries to return; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Who needs attention in one window, by name.
///
/// Reads the log, for one request at a time.
#[utoipa::path(get, path = "/api/v1/windows/{id}/roster",
    params(("id" = WindowId, Path, description = "The window's id: 32 hex digits."), RosterPage),
    responses(
        (status = 200, description = "A page of the roster.", body = Roster),
        (status = 400, description = "A parameter is invalid.", body = ErrorBody),
        (status = 404, description = "This member knows no report of the window.", body = ErrorBody),
        (status = 503, description = "Kafka does not answer, or another request reads the log.", body = ErrorBody),
    ))]
async fn window_roster(
    State(queries): State<LogQueries>,
    Path(id): Path<String>,
    page: Result<Query<RosterPage>, QueryRejection>,
) -> Result<Json<Roster>, ApiError> {
    let Query(RosterPage { kind, after, limit }) = page.map_err(|error| {
        let reason = error.body_text();
        ApiError::bad_request(format!(
            "{reason}; the parameters are `kind` (silent, stalled or overdrawn), `after` and `limit`"
        ))
    })?;
    let id = parse_window_id(&id)?;
    let limit = checked("limit", limit.unwrap_or(DEFAULT_LIMIT), MAX_LISTED_ENTRIES)?;
    let after = after.unwrap_or(0);
    let report = queries.status.window(id).and_then(|window| window.report);
    let report = report.ok_or_else(|| ApiError::not_found(format!("this member knows no report of window {id}")))?;
    let read = move |queries: &LogQueries, runtime: &Handle| {
        RosterReader::new(&queries.broker, &queries.registry, runtime)?.read(report)
    };
    let window = queries.run(read).await?.map_err(|error| ApiError::unavailable(error.to_string()))?;
    let kinds = RosterKind::ALL.into_iter().filter(|of| kind.is_none_or(|kind| kind == *of));
    let of_kind = |kind| window.entries(kind).into_iter().map(move |(partition, entry)| (kind, partition, entry));
    let mut rest = kinds.flat_map(of_kind).skip(after);
    let page = rest.by_ref().take(limit);
    let item = |(kind, partition, entry): (RosterKind, i32, &RosterEntry)| RosterItem {
        kind,
        partition,
        entry: entry.clone(),
    };
    let entries: Vec<RosterItem> = page.map(item).collect();
    let next_after = rest.next().map(|_| after + entries.len());
    let BarReport { window_id, from_beat, to_beat, agents_fell_silent, tasks_stalled, tasks_overdrawn, .. } =
        window.report;
    Ok(Json(Roster {
        window_id,
        from_beat,
        to_beat,
        agents_fell_silent,
        tasks_stalled,
        tasks_overdrawn,
        entries,
        next_after,
    }))
}

/// Returns the value of a query parameter that counts, if it is 1 to `most`.
fn checked(parameter: &str, value: usize, most: usize) -> Result<usize, ApiError> {
    let is_allowed = (1..=most).contains(&value);
    is_allowed
        .then_some(value)
        .ok_or_else(|| ApiError::bad_request(format!("{parameter} is {value}; must be 1 to {most}")))
}

fn parse_window_id(text: &str) -> Result<WindowId, ApiError> {
    text.parse().map_err(|error: WindowIdError| ApiError::bad_request(error.to_string()))
}
