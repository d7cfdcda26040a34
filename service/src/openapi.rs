//! The OpenAPI description of a service's HTTP API, made from its routes.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use utoipa::openapi::{Info, License};
use utoipa_axum::router::OpenApiRouter;

/// Returns a router that serves `routes`, and their OpenAPI description at `/api/v1/openapi.json`.
pub fn router_with_openapi(title: &str, routes: OpenApiRouter) -> Router {
    let (served, mut description) = routes.split_for_parts();
    description.info = Info::new(title, env!("CARGO_PKG_VERSION"));
    description.info.license = Some(License::new("Apache-2.0"));
    let text = description.to_pretty_json().expect("a description is JSON");
    let headers = [(header::CONTENT_TYPE, "application/json")];
    served.route("/api/v1/openapi.json", get(async move || (headers, text)))
}
