//! The HTTP server that every service has: `/health`, `/metrics`, errors as JSON.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::{Registry, TextEncoder};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{Check, Shutdown};

/// Where the HTTP server listens.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Operation")]
pub struct HttpArgs {
    /// The address that the HTTP server listens on; 0.0.0.0 for all.
    #[arg(long, env = "BACKBEAT_ADMIN_HOST", default_value = "127.0.0.1")]
    pub admin_host: IpAddr,

    /// Write the address that the HTTP server listens on (`127.0.0.1:8080`) to this file, once it does: for whoever
    /// starts the program with port 0 and has to find it.
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,

    /// Ask the program that runs here at --admin-port whether it lives or is ready, and exit with 0 or 1.
    #[arg(long, value_enum)]
    pub check: Option<Check>,
}

impl HttpArgs {
    /// Listens on `port` (0 for a free one), and says where in the log and in the port file.
    pub async fn listen(&self, port: u16) -> io::Result<TcpListener> {
        let context = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        let listener = TcpListener::bind((self.admin_host, port))
            .await
            .map_err(context(format!("cannot listen on {}:{port}", self.admin_host)))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, "http server listens");
        if let Some(path) = &self.port_file {
            write_address(path, address).map_err(context(format!("cannot write the port file {}", path.display())))?;
        }
        Ok(listener)
    }
}

/// Writes the whole file or none of it: its readers wait for it to be there.
fn write_address(path: &Path, address: SocketAddr) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    std::fs::write(&unfinished, format!("{address}\n"))?;
    std::fs::rename(&unfinished, path)
}

/// An error of the HTTP API: a status and, as JSON, the reason.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    reason: String,
}

impl ApiError {
    /// 404: there is no such thing.
    pub fn not_found(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, reason: reason.into() }
    }

    /// 400: the request is wrong.
    pub fn bad_request(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason: reason.into() }
    }

    /// 401: the request does not show who may do that.
    pub fn unauthorized(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, reason: reason.into() }
    }

    /// 403: nobody may do that here.
    pub fn forbidden(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, reason: reason.into() }
    }

    /// 503: not now.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, reason: reason.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.reason }))).into_response()
    }
}

/// `/health` (the process lives), `/metrics`, and a JSON 404 for the rest.
pub fn base_routes(metrics: Registry) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .route("/metrics", get(encode).with_state(metrics))
        .fallback(async |request: Request| ApiError::not_found(format!("no such path: {}", request.uri().path())))
}

async fn encode(State(metrics): State<Registry>) -> Response {
    // The clients of Kafka count in the default registry.
    let families = [metrics.gather(), prometheus::gather()].concat();
    match TextEncoder::new().encode_to_string(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => ApiError::unavailable(error.to_string()).into_response(),
    }
}

/// Serves until `shutdown`.
pub async fn serve(listener: TcpListener, routes: Router, shutdown: Shutdown) -> io::Result<()> {
    axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
