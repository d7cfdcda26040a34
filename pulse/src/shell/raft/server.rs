//! The HTTP server for other nodes: Raft's calls, and operators' requests that a follower passes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use backbeat_service::ApiError;
use openraft::Raft;

use super::types::{NodeName, Types};
use crate::shell::secret::Secret;

pub(crate) const APPEND: &str = "/raft/append";
pub(crate) const VOTE: &str = "/raft/vote";
pub(crate) const SNAPSHOT: &str = "/raft/snapshot";
/// The header that names the caller's cluster.
pub(crate) const CLUSTER: &str = "x-backbeat-cluster";
/// The header that names the caller.
pub(crate) const NODE: &str = "x-backbeat-node";
/// The header that names who is meant: an address may be another's by mistake.
pub(crate) const TARGET: &str = "x-backbeat-target";
/// Callers without the secret are told of this often.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Who may call.
struct Guard {
    cluster: String,
    node: NodeName,
    secret: Option<Secret>,
    warned: Mutex<Option<Instant>>,
}

/// Raft's routes and `others`, all for nodes of `cluster` that mean `node` and show `secret`.
pub(crate) fn routes(
    raft: &Raft<Types>,
    others: Router,
    cluster: &str,
    node: NodeName,
    secret: Option<Secret>,
) -> Router {
    let guard = Arc::new(Guard { cluster: cluster.to_owned(), node, secret, warned: Mutex::default() });
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
        let mut warned = guard.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(
                node,
                "refuses calls without the right secret; do all nodes have the same --raft-secret-file?"
            );
        }
        return Err(ApiError::unauthorized("the secret is missing or wrong: see --raft-secret-file"));
    }
    let cluster = value(headers, CLUSTER).unwrap_or_default();
    if cluster != guard.cluster.as_bytes() {
        let (theirs, ours) = (String::from_utf8_lossy(&cluster), &guard.cluster);
        return Err(ApiError::bad_request(format!("this is cluster {ours:?}, not {theirs:?}")));
    }
    let target = value(headers, TARGET).unwrap_or_default();
    if !target.is_empty() && target != guard.node.to_string().as_bytes() {
        let (meant, ours) = (String::from_utf8_lossy(&target), guard.node);
        return Err(ApiError::bad_request(format!("this is node {ours}, not {meant}: look at the members' addresses")));
    }
    Ok(next.run(request).await)
}
