//! The HTTP server: the pages, the stream of changes, and changes of the tempo.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use backbeat_broker::{check_clients, without_credentials};
use backbeat_service::{ApiError, SecretFile, Shutdown, base_routes};
use futures_util::Stream;
use futures_util::stream::unfold;
use prometheus::IntGauge;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::SharedBoard;
use super::detail::{Detail, DetailError};
use super::guard::Guard;
use super::hub::{Change, Hub};
use super::metrics::Metrics;
use super::page::{self, Settings};
use crate::now;

/// The largest number of pages that get changes at the same time.
pub(crate) const MAX_STREAMS: i64 = 256;
/// The longest time without an event on a stream. The page takes a connection that is silent for longer as lost.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The timeout of a change of tempo, which a node may forward to the leader.
const TEMPO_TIMEOUT: Duration = Duration::from_secs(10);

const CSS: &str = include_str!("assets/page.css");
const JS: &str = include_str!("assets/page.js");
const ICON: &str = include_str!("assets/icon.svg");
/// Nothing is loaded from elsewhere, and no script or style stands in a page.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";

/// The state that the handlers share.
#[derive(Clone)]
pub(crate) struct Ui {
    pub(crate) settings: Arc<Settings>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) board: SharedBoard,
    pub(crate) metrics: Metrics,
    pub(crate) detail: Detail,
    pub(crate) guard: Guard,
    pub(crate) tempo: TempoClient,
    pub(crate) stop: Shutdown,
}

/// Forwards changes of the tempo to pulse.
#[derive(Clone)]
pub(crate) struct TempoClient {
    pub(crate) http: reqwest::Client,
    /// The URLs of the pulse nodes.
    pub(crate) pulse: Arc<[String]>,
    /// The tokens that callers must have one of; `None` if the page is read-only.
    pub(crate) tokens: Option<SecretFile>,
}

/// Returns the path of an asset, which changes with its content, so that browsers may keep it.
pub(crate) fn asset_path(name: &str, content: &str) -> String {
    let (stem, extension) = name.split_once('.').expect("an asset has an extension");
    format!("/assets/{stem}-{}.{extension}", hex::encode(&Sha256::digest(content)[..6]))
}

/// Returns the paths of the stylesheet, of the module and of the icon.
pub(crate) fn asset_paths() -> (String, String, String) {
    (asset_path("page.css", CSS), asset_path("page.js", JS), asset_path("icon.svg", ICON))
}

pub(crate) fn routes(ui: Ui) -> Router {
    let asset = |content_type: &'static str, content: &'static str| {
        let headers =
            [(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
        get(async move || (headers, content))
    };
    let pages = Router::new()
        .route("/", get(dashboard))
        .route("/windows/{id}", get(window))
        .route("/agents", get(agent))
        .route("/events", get(events))
        .route("/api/v1/tempo", post(change_tempo).delete(change_tempo))
        .route(&ui.settings.css, asset("text/css; charset=utf-8", CSS))
        .route(&ui.settings.js, asset("text/javascript; charset=utf-8", JS))
        .route(&ui.settings.icon, asset("image/svg+xml", ICON))
        .layer(from_fn_with_state(ui.guard.clone(), guard));
    let (base, _) = base_routes(ui.metrics.registry.clone(), check_clients).split_for_parts();
    pages.route("/ready", get(ready)).with_state(ui).merge(base)
}

/// Refuses requests of other web pages, and adds what browsers should know to every response.
async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) => ApiError::forbidden(reason).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Readiness: Kafka answers.
async fn ready(State(ui): State<Ui>) -> Result<Json<serde_json::Value>, ApiError> {
    let board = ui.board.read();
    match &board.kafka_trouble {
        Some((_, reason)) => Err(ApiError::unavailable(format!("kafka does not answer: {reason}"))),
        None if !board.has_seen_kafka => Err(ApiError::unavailable("waiting for kafka")),
        None => Ok(Json(json!({ "status": "ready" }))),
    }
}

async fn dashboard(State(ui): State<Ui>) -> Html<String> {
    let (sections, event_id) = ui.hub.sections();
    Html(page::dashboard(&ui.settings, &sections, &event_id, now()))
}

async fn window(State(ui): State<Ui>, Path(id): Path<String>) -> Response {
    let content = match id.parse() {
        Ok(id) => ui.detail.window(id).await,
        Err(error) => Err(DetailError::BadRequest(format!("{error}"))),
    };
    detail_page(&ui, "Window", content)
}

/// The query of an agent's page.
#[derive(Deserialize)]
struct AgentQuery {
    id: String,
    last: Option<usize>,
}

async fn agent(State(ui): State<Ui>, query: Result<Query<AgentQuery>, QueryRejection>) -> Response {
    let content = match query {
        Ok(Query(AgentQuery { id, last })) => ui.detail.agent(id, last).await,
        Err(error) => Err(DetailError::BadRequest(error.body_text())),
    };
    detail_page(&ui, "Agent", content)
}

fn detail_page(ui: &Ui, title: &str, content: Result<maud::Markup, DetailError>) -> Response {
    let (status, main) = match content {
        Ok(main) => (StatusCode::OK, main),
        Err(error) => {
            let status = match error {
                DetailError::BadRequest(_) => StatusCode::BAD_REQUEST,
                DetailError::NotFound(_) => StatusCode::NOT_FOUND,
                DetailError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, error.page())
        }
    };
    (status, Html(page::document(&ui.settings, title, &main, now()))).into_response()
}

/// The query of the stream.
#[derive(Deserialize)]
struct After {
    /// The last event that the page has.
    after: Option<String>,
}

/// The changes of the page after an event, as server-sent events; first a snapshot if they are not known.
async fn events(State(ui): State<Ui>, Query(After { after }): Query<After>, headers: HeaderMap) -> Response {
    if ui.metrics.streams.get() >= MAX_STREAMS {
        ui.metrics.refused_streams.inc();
        return ApiError::unavailable(format!("{MAX_STREAMS} pages are open, which is the limit")).into_response();
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).or(after.as_deref());
    let (first, changes) = ui.hub.subscribe(last, now());
    let stream = PageStream { ready: first.into(), changes, _open: OpenStream::new(&ui.metrics.streams), ui };
    // A proxy must not wait for more.
    ([("x-accel-buffering", "no")], Sse::new(stream.into_events())).into_response()
}

/// Counts a stream while it is open.
struct OpenStream(IntGauge);

impl OpenStream {
    fn new(streams: &IntGauge) -> Self {
        streams.inc();
        Self(streams.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The stream of one page.
struct PageStream {
    /// Events to send before those that are received.
    ready: VecDeque<Arc<Change>>,
    changes: Receiver<Arc<Change>>,
    _open: OpenStream,
    ui: Ui,
}

impl PageStream {
    /// Returns the events. They end when the program stops, so that no open page holds up the stop.
    fn into_events(self) -> impl Stream<Item = Result<SseEvent, Infallible>> {
        unfold(self, async |mut stream| Some((Ok(stream.next().await?), stream)))
    }

    /// Returns the next change, or the time if none has come for a while; `None` if the program stops.
    async fn next(&mut self) -> Option<SseEvent> {
        let event = |change: Arc<Change>| SseEvent::default().id(&change.id).data(&change.data);
        if let Some(change) = self.ready.pop_front() {
            return Some(event(change));
        }
        let received = timeout(KEEP_ALIVE, self.changes.recv());
        match self.ui.stop.run_until_cancelled(received).await? {
            Ok(Ok(change)) => Some(event(change)),
            Err(Elapsed { .. }) => Some(SseEvent::default().data(self.ui.hub.time(now()))),
            Ok(Err(RecvError::Closed)) => None,
            Ok(Err(RecvError::Lagged(_))) => {
                self.ui.metrics.lagged_streams.inc();
                let (snapshot, changes) = self.ui.hub.subscribe(None, now());
                (self.ready, self.changes) = (snapshot.into(), changes);
                self.ready.pop_front().map(event)
            }
        }
    }
}

/// Forwards a change of the tempo, or the cancellation of one, to a pulse node, and its answer to the caller.
async fn change_tempo(
    State(ui): State<Ui>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let tokens = ui.tempo.tokens.as_ref().ok_or_else(|| {
        ApiError::forbidden(
            "this page is read-only: start backbeat ui with --admin-token-file to change the tempo by it",
        )
    })?;
    let token = tokens.bearer(headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes));
    let token = token.ok_or_else(|| ApiError::unauthorized("the token is missing or wrong"))?;
    let sent = ui.stop.run_until_cancelled(ui.tempo.send(&method, token.expose(), &body)).await;
    sent.unwrap_or_else(|| Err(ApiError::unavailable("the program stops; the change may still be carried out")))
}

impl TempoClient {
    async fn send(&self, method: &Method, token: &[u8], body: &Bytes) -> Result<Response, ApiError> {
        let mut reasons = Vec::new();
        for url in self.pulse.iter() {
            let shown = without_credentials(url);
            let request = self.http.request(method.clone(), format!("{}/api/v1/tempo", url.trim_end_matches('/')));
            let token = String::from_utf8_lossy(token);
            let request = request.bearer_auth(token).timeout(TEMPO_TIMEOUT).body(body.clone());
            match request.send().await {
                Ok(response) => {
                    let status = response.status();
                    let answer = response.bytes().await.map_err(|error| ApiError::unavailable(error.to_string()))?;
                    tracing::info!(%method, url = shown, %status, "forwarded a change of the tempo");
                    return Ok((status, [(header::CONTENT_TYPE, "application/json")], answer).into_response());
                }
                // The node does not run: the change was not made. After any other error it may have been.
                Err(error) if error.is_connect() => reasons.push(format!("{shown} does not answer")),
                Err(error) => {
                    return Err(ApiError::unavailable(format!(
                        "{shown}: {error}; the change may still be carried out"
                    )));
                }
            }
        }
        Err(ApiError::unavailable(format!("no pulse node answers: {}", reasons.join(", "))))
    }
}
