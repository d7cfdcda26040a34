//! The HTTP server for other nodes: Raft's calls, and operators' commands that a follower forwards.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use backbeat_service::{ApiError, SecretFile};
use openraft::Raft;
use tokio::time::timeout;

use super::node::RaftNode;
use super::signature::{self, Call, Verifier, sign_response};
use super::types::{NodeName, Types};

pub(crate) const APPEND: &str = "/raft/append";
pub(crate) const VOTE: &str = "/raft/vote";
pub(crate) const SNAPSHOT: &str = "/raft/snapshot";
/// The shortest interval between two warnings about callers without a valid signature.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// The largest body of a call or of its response, in bytes: 300 entries of the log, of some 200 bytes each, are the longest.
const MAX_BODY: usize = 256 * 1024;
/// The time in which a body must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// The settings of [`check_caller`], which authenticates callers and refuses calls to another cluster or node.
struct CallerCheck {
    cluster: String,
    node: NodeName,
    verifier: Option<Verifier>,
    last_warning: Mutex<Option<Instant>>,
}

/// Returns Raft's routes and `others`. All of them refuse calls that are not signed with one of the `secrets`, and calls to
/// another cluster than `cluster` or another node than `node`.
pub(crate) fn routes(
    raft: &RaftNode,
    others: Router,
    cluster: &str,
    node: NodeName,
    secrets: Option<SecretFile>,
) -> Router {
    let verifier = secrets.map(Verifier::new);
    let caller_check =
        Arc::new(CallerCheck { cluster: cluster.to_owned(), node, verifier, last_warning: Mutex::default() });
    Router::new()
        .route(APPEND, post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.append_entries(body).await)))
        .route(VOTE, post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.vote(body).await)))
        .route(
            SNAPSHOT,
            post(async |State(raft): State<Raft<Types>>, Json(body)| Json(raft.install_snapshot(body).await)),
        )
        .with_state(raft.raft().clone())
        .merge(others)
        .layer(from_fn_with_state(caller_check, check_caller))
}

async fn check_caller(
    State(check): State<Arc<CallerCheck>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // Browsers send it with every POST, also after a name of theirs was made to resolve to this address.
    if request.headers().contains_key(header::ORIGIN) {
        return Err(ApiError::forbidden("web pages must not call raft's port"));
    }
    let Some(verifier) = &check.verifier else {
        check.check_names(&request)?;
        return Ok(next.run(request).await);
    };
    let (head, body) = request.into_parts();
    let read = timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await;
    let body = read.map_err(|_| ApiError::bad_request("the body is incomplete"))?;
    let body =
        body.map_err(|error| ApiError::bad_request(format!("the body must have at most {MAX_BODY} bytes: {error}")))?;
    let signer = verifier.verify(&Call { headers: &head.headers, path: head.uri.path(), body: &body });
    let secret = signer.map_err(|error| {
        check.warn(&error.to_string(), &String::from_utf8_lossy(signature::header(&head.headers, signature::NODE)));
        ApiError::unauthorized(error.to_string())
    })?;
    let call_signature = signature::header(&head.headers, signature::SIGNATURE).to_owned();
    let request = Request::from_parts(head, Body::from(body));
    check.check_names(&request)?;
    let (mut head, body) = next.run(request).await.into_parts();
    let body = to_bytes(body, MAX_BODY).await.map_err(|error| ApiError::unavailable(error.to_string()))?;
    let signature = HeaderValue::try_from(sign_response(&secret, &call_signature, &body));
    head.headers.insert(signature::SIGNATURE, signature.expect("hexadecimal digits are a valid header"));
    Ok(Response::from_parts(head, Body::from(body)))
}

impl CallerCheck {
    fn check_names(&self, request: &Request) -> Result<(), ApiError> {
        let name = |name| String::from_utf8_lossy(signature::header(request.headers(), name));
        let (cluster, target) = (name(signature::CLUSTER), name(signature::TARGET));
        if cluster != self.cluster {
            return Err(ApiError::bad_request(format!("this is cluster {:?}, not {cluster:?}", self.cluster)));
        }
        if !target.is_empty() && target != self.node.to_string() {
            let own = self.node;
            return Err(ApiError::bad_request(format!("this is node {own}, not {target}: check the nodes' addresses")));
        }
        Ok(())
    }

    fn warn(&self, reason: &str, node: &str) {
        let mut last_warning = self.last_warning.lock().unwrap_or_else(PoisonError::into_inner);
        if last_warning.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
            *last_warning = Some(Instant::now());
            tracing::warn!(node, reason, "refused a call of another node");
        }
    }
}
