//! Raft: the leader election and the replicated plan. Only this module uses openraft.
//!
//! With a secret, `signature` signs each call and its response.
//!
//! ```text
//!   other nodes ──▶ server ──▶ openraft ──▶ store (redb, fsynced)
//!               ◀── client ◀──    │
//!                                 └──▶ node: Raft role, quorum, plan, membership
//! ```

mod client;
mod node;
mod server;
mod signature;
mod store;
mod types;

pub(crate) use client::Client;
pub(crate) use node::{MembershipError, NodeError, RaftNode};
pub(crate) use server::routes;
pub(crate) use signature::{AUTHORIZATION, Call};
pub(crate) use store::Store;
pub(crate) use types::{NodeInfo, NodeName, is_host_and_port};
