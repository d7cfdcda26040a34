//! The clients and settings of a merge, and the progress of its member.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use backbeat_broker::{Broker, Registry, SubjectSchemas};
use backbeat_schemas::{BeatIndex, StatusClaim};
use tokio::runtime::Handle;

use super::args::Reemit;
use super::metrics::Metrics;
use super::status::SharedStatus;

/// The registry's ids of the schemas that reverb writes with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SchemaIds {
    pub(crate) report: u32,
    pub(crate) partial: u32,
    pub(crate) roster: u32,
}

/// The clients and settings of the merge.
#[derive(Clone)]
pub(crate) struct MergeContext {
    pub(crate) broker: Broker,
    pub(crate) registry: Registry,
    pub(crate) runtime: Handle,
    /// The schemas of claims, for members and merges.
    pub(crate) claim_schemas: SubjectSchemas<StatusClaim>,
    pub(crate) cluster_id: String,
    pub(crate) schemas: SchemaIds,
    pub(crate) reemit: Reemit,
    pub(crate) takeover_after: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: SharedStatus,
}

/// The beat up to whose boundary all aggregators of the member have come. The member's loop sets it, and the merge's
/// thread reads it.
#[derive(Debug, Clone)]
pub(crate) struct Reached(Arc<AtomicI64>);

impl Default for Reached {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(BeatIndex::MAX.get())))
    }
}

impl Reached {
    pub(crate) fn set(&self, beat: BeatIndex) {
        self.0.store(beat.get(), Ordering::Release);
    }

    pub(super) fn get(&self) -> BeatIndex {
        BeatIndex::try_from(self.0.load(Ordering::Acquire)).unwrap_or(BeatIndex::ZERO)
    }
}
