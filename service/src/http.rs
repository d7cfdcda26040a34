//! The HTTP API of every service: `/health`, `/metrics`, and errors as JSON.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use backbeat_http_api::ErrorBody;
use prometheus::{Registry, TextEncoder};
use serde::Serialize;
use tokio::net::TcpListener;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Check;

/// Flags of the HTTP server and of the health check.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Operation")]
pub struct HttpArgs {
    /// Address that the HTTP server listens on; 0.0.0.0 for all interfaces.
    #[arg(long, env = "BACKBEAT_ADMIN_HOST", default_value = "127.0.0.1")]
    pub admin_host: IpAddr,

    /// File to write the HTTP server's address (`127.0.0.1:8080`) to once it listens, for programs that start this one
    /// with port 0.
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,

    /// Check the health of the instance that runs on this host at --admin-port, and exit with 0 if it is live or ready,
    /// with 1 if not.
    #[arg(long, value_enum)]
    pub check: Option<Check>,
}

impl HttpArgs {
    /// Listens on `port` (0 for a free one), and writes the address to the log and to the port file.
    pub async fn listen(&self, port: u16) -> io::Result<TcpListener> {
        let context = |text: String| move |error: io::Error| io::Error::new(error.kind(), format!("{text}: {error}"));
        let listener = TcpListener::bind((self.admin_host, port))
            .await
            .map_err(context(format!("cannot listen on {}:{port}", self.admin_host)))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, "http server is listening");
        if let Some(path) = &self.port_file {
            let written = write_atomically(path, &format!("{address}\n"));
            written.map_err(context(format!("cannot write the port file {}", path.display())))?;
        }
        Ok(listener)
    }
}

/// Writes a file by a rename, so that a reader finds the old content or the whole new one. It is not synchronised to disk.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// An error response of the HTTP API: a status, and the reason as JSON.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    reason: String,
}

impl ApiError {
    /// Creates a 404 Not Found.
    pub fn not_found(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, reason: reason.into() }
    }

    /// Creates a 400 Bad Request.
    pub fn bad_request(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason: reason.into() }
    }

    /// Creates a 401 Unauthorized: the request has no valid credentials.
    pub fn unauthorized(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, reason: reason.into() }
    }

    /// Creates a 403 Forbidden: the request is not allowed, whatever its credentials.
    pub fn forbidden(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, reason: reason.into() }
    }

    /// Creates a 503 Service Unavailable: a retry may succeed.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, reason: reason.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.reason })).into_response()
    }
}

/// Returns the routes of every service: `/health`, `/metrics`, and a JSON 404 for other paths.
///
/// `check_health` returns the reason if the process does not recover by itself, so that a restart may help.
pub fn base_routes<S: Clone + Send + Sync + 'static>(
    registry: Registry,
    check_health: fn() -> Result<(), String>,
) -> OpenApiRouter<S> {
    let health = OpenApiRouter::new().routes(routes!(health)).with_state(check_health);
    OpenApiRouter::new()
        .routes(routes!(metrics))
        .with_state(registry)
        .merge(health)
        .fallback(async |request: Request| ApiError::not_found(format!("no such path: {}", request.uri().path())))
}

/// The body of `/health`.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok`.
    status: &'static str,
}

/// Liveness: the process is running, and needs no restart.
#[utoipa::path(get, path = "/health", responses(
    (status = 200, description = "The process is running.", body = Health),
    (status = 503, description = "The process does not recover by itself; a restart may help.", body = ErrorBody)
))]
async fn health(State(check_health): State<fn() -> Result<(), String>>) -> Result<Json<Health>, ApiError> {
    check_health().map(|()| Json(Health { status: "ok" })).map_err(ApiError::unavailable)
}

/// Metrics, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, description = "The metrics.", body = String, content_type = "text/plain")
))]
async fn metrics(State(registry): State<Registry>) -> Response {
    // The metrics of the Kafka clients are in Prometheus' default registry.
    let families = [registry.gather(), prometheus::gather()].concat();
    match TextEncoder::new().encode_to_string(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => ApiError::unavailable(error.to_string()).into_response(),
    }
}
