//! The HTTP server for other nodes: Raft's calls, and operators' requests that a follower passes on.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use backbeat_service::ApiError;
use openraft::Raft;

use super::Secret;
use super::types::Types;

pub(crate) const APPEND: &str = "/raft/append";
pub(crate) const VOTE: &str = "/raft/vote";
pub(crate) const SNAPSHOT: &str = "/raft/snapshot";
/// The header that names the caller's cluster.
pub(crate) const CLUSTER: &str = "x-backbeat-cluster";
/// The header that names the caller.
pub(crate) const NODE: &str = "x-backbeat-node";

/// Who may call.
struct Guard {
    cluster: String,
    secret: Option<Secret>,
}

/// Raft's routes and `others`, all for nodes of `cluster` that show `secret`.
pub(crate) fn routes(raft: &Raft<Types>, others: Router, cluster: &str, secret: Option<Secret>) -> Router {
    let guard = Arc::new(Guard { cluster: cluster.to_owned(), secret });
    Router::new()
        .route(APPEND, post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.append_entries(body).await)))
        .route(VOTE, post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.vote(body).await)))
        .route(
            SNAPSHOT,
            post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.install_snapshot(body).await)),
        )
        .with_state(raft.clone())
        .merge(others)
        .layer(from_fn_with_state(guard, check))
}

async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Result<Response, ApiError> {
    let value = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
    let headers = request.headers();
    if let Some(secret) = &guard.secret
        && !secret.is_shown_by(value(headers, header::AUTHORIZATION.as_str()).as_deref())
    {
        let node = String::from_utf8_lossy(&value(headers, NODE).unwrap_or_default()).into_owned();
        tracing::warn!(node, "refused a call without the right secret; do all nodes have the same --raft-secret-file?");
        return Err(ApiError::unauthorized("the secret is missing or wrong: see --raft-secret-file"));
    }
    let cluster = value(headers, CLUSTER).unwrap_or_default();
    if cluster != guard.cluster.as_bytes() {
        let (theirs, ours) = (String::from_utf8_lossy(&cluster), &guard.cluster);
        return Err(ApiError::bad_request(format!("this is cluster {ours:?}, not {theirs:?}")));
    }
    Ok(next.run(request).await)
}
