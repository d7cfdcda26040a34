//! The HTTP server for other nodes: Raft's calls, and operators' commands that a follower forwards.

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
/// The header that names the called node: a wrong address may be that of another node.
pub(crate) const TARGET: &str = "x-backbeat-target";
/// The shortest interval between two warnings about callers without the secret.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// The settings of [`check_caller`], which authenticates callers and refuses calls to another cluster or node.
struct CallerCheck {
    cluster: String,
    node: NodeName,
    secret: Option<Secret>,
    last_warning: Mutex<Option<Instant>>,
}

/// Returns Raft's routes and `others`. All of them refuse callers without `secret`, and calls to another cluster than
/// `cluster` or another node than `node`.
pub(crate) fn routes(
    raft: &Raft<Types>,
    others: Router,
    cluster: &str,
    node: NodeName,
    secret: Option<Secret>,
) -> Router {
    let caller_check =
        Arc::new(CallerCheck { cluster: cluster.to_owned(), node, secret, last_warning: Mutex::default() });
    Router::new()
        .route(APPEND, post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.append_entries(body).await)))
        .route(VOTE, post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.vote(body).await)))
        .route(
            SNAPSHOT,
            post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.install_snapshot(body).await)),
        )
        .with_state(raft.clone())
        .merge(others)
        .layer(from_fn_with_state(caller_check, check_caller))
}

async fn check_caller(
    State(check): State<Arc<CallerCheck>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let value = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
    let headers = request.headers();
    if let Some(secret) = &check.secret
        && !secret.matches(value(headers, header::AUTHORIZATION.as_str()).as_deref())
    {
        let node = String::from_utf8_lossy(&value(headers, NODE).unwrap_or_default()).into_owned();
        let mut last_warning = check.last_warning.lock().unwrap_or_else(PoisonError::into_inner);
        if last_warning.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
            *last_warning = Some(Instant::now());
            tracing::warn!(
                node,
                "refused a call without the right secret; do all nodes have the same --raft-secret-file?"
            );
        }
        return Err(ApiError::unauthorized("the secret is missing or wrong: see --raft-secret-file"));
    }
    let cluster = value(headers, CLUSTER).unwrap_or_default();
    if cluster != check.cluster.as_bytes() {
        let (called, own) = (String::from_utf8_lossy(&cluster), &check.cluster);
        return Err(ApiError::bad_request(format!("this is cluster {own:?}, not {called:?}")));
    }
    let target = value(headers, TARGET).unwrap_or_default();
    if !target.is_empty() && target != check.node.to_string().as_bytes() {
        let (called, own) = (String::from_utf8_lossy(&target), check.node);
        return Err(ApiError::bad_request(format!("this is node {own}, not {called}: check the nodes' addresses")));
    }
    Ok(next.run(request).await)
}
