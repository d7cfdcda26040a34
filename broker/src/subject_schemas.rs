//! The schemas of one subject of the registry, by id, for records that anybody may write.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backbeat_schemas::{DecodeError, Record, WriterSchema};
use tokio::runtime::Handle;

use crate::schema_cache::UNKNOWN_AFTER;
use crate::{Lookup, Registry, RegistryError, TopicName, Topics};

/// The time from the start of one wait for ids that the subject does not have to that of the next. In between, whoever writes invented ids stops nobody.
const WAIT_INTERVAL: Duration = Duration::from_hours(1);
/// The interval of requests for the subject's versions while unknown ids are looked up.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// The largest number of versions that are fetched, the newest ones.
const MAX_VERSIONS: usize = 1_000;

/// The schemas that claims, or other records of type `R`, are written with: those of one subject. Clones share them.
///
/// One request to the registry tells of all ids which of them are known, so that a flood of invented ones costs one request a
/// second.
pub struct SubjectSchemas<R> {
    registry: Registry,
    subject: String,
    runtime: Handle,
    state: Arc<Mutex<State<R>>>,
}

impl<R> Clone for SubjectSchemas<R> {
    fn clone(&self) -> Self {
        let Self { registry, subject, runtime, state } = self;
        Self {
            registry: registry.clone(),
            subject: subject.clone(),
            runtime: runtime.clone(),
            state: Arc::clone(state),
        }
    }
}

struct State<R> {
    /// The versions that have been fetched.
    versions: BTreeSet<u32>,
    schemas: HashMap<u32, Result<Arc<WriterSchema<R>>, DecodeError>>,
    freshness: Freshness,
    is_refreshing: bool,
}

/// Decides what an id is that is not among the subject's.
#[derive(Debug, Default)]
struct Freshness {
    /// The instant at which the last successful refresh began.
    refreshed_at: Option<Instant>,
    /// The instant at which the last wait for unknown ids began.
    waiting_since: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Missing {
    /// The subject has to be asked again first.
    Refresh,
    /// The schema may be on its way.
    Wait,
    Unknown,
}

impl Freshness {
    fn missing(&mut self, now: Instant) -> Missing {
        if self.refreshed_at.is_none_or(|at| now.duration_since(at) >= REFRESH_INTERVAL) {
            return Missing::Refresh;
        }
        match self.waiting_since.map(|since| now.duration_since(since)) {
            Some(waited) if waited < UNKNOWN_AFTER => Missing::Wait,
            Some(waited) if waited < WAIT_INTERVAL => Missing::Unknown,
            _ => {
                self.waiting_since = Some(now);
                Missing::Wait
            }
        }
    }
}

impl<R: Record + 'static> SubjectSchemas<R> {
    /// Creates an empty cache of the schemas of `topic`'s values, which are fetched on `runtime`.
    pub fn new(registry: Registry, topics: &Topics, topic: TopicName, runtime: Handle) -> Self {
        let state = State {
            versions: BTreeSet::new(),
            schemas: HashMap::new(),
            freshness: Freshness::default(),
            is_refreshing: false,
        };
        Self { registry, subject: topics.subject(topic), runtime, state: Arc::new(Mutex::new(state)) }
    }

    /// Looks up `id`, and starts to ask the registry for the subject's schemas if it is not among them. Never blocks.
    pub fn lookup(&self, id: u32) -> Lookup<R> {
        let mut state = self.lock();
        match state.schemas.get(&id) {
            Some(Ok(schema)) => return Lookup::Known(Arc::clone(schema)),
            Some(Err(error)) => return Lookup::Incompatible(error.clone()),
            None => {}
        }
        match state.freshness.missing(Instant::now()) {
            Missing::Unknown => Lookup::Unknown,
            Missing::Wait => Lookup::Pending,
            Missing::Refresh => {
                if !std::mem::replace(&mut state.is_refreshing, true) {
                    self.runtime.spawn(self.clone().refresh(id));
                }
                Lookup::Pending
            }
        }
    }

    /// Fetches the schemas that are new in the subject, because `id` was looked up.
    async fn refresh(self, id: u32) {
        let began = Instant::now();
        match self.fetch_new().await {
            Ok(()) => self.lock().freshness.refreshed_at = Some(began),
            Err(error) => {
                tracing::warn!(%error, schema_id = id, subject = self.subject, "cannot fetch schemas; retrying");
                tokio::time::sleep(REFRESH_INTERVAL).await;
            }
        }
        self.lock().is_refreshing = false;
    }

    async fn fetch_new(&self) -> Result<(), RegistryError> {
        let versions = self.registry.versions(&self.subject).await?;
        let skipped = versions.len().saturating_sub(MAX_VERSIONS);
        for version in versions.into_iter().skip(skipped) {
            if self.lock().versions.contains(&version) {
                continue;
            }
            let found = self.registry.version(&self.subject, version).await?;
            let mut state = self.lock();
            if let Some((id, text)) = found {
                let schema = WriterSchema::parse_flat(&text);
                if let Err(error) = &schema {
                    tracing::warn!(%error, schema_id = id, version, subject = self.subject, "a schema cannot be used");
                }
                state.schemas.insert(id, schema.map(Arc::new));
            }
            state.versions.insert(version);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // A panic while the lock is held leaves the state consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ids_are_waited_for_a_minute_in_an_hour() {
        let start = Instant::now();
        let second = |number: u32| start + Duration::from_secs(1) * number;
        let mut freshness = Freshness::default();
        let mut missing_at = |at: Instant| {
            assert_eq!(freshness.missing(at), Missing::Refresh);
            freshness.refreshed_at = Some(at);
            freshness.missing(at)
        };
        assert!((0..60).all(|number| missing_at(second(number)) == Missing::Wait));
        assert!((60..3_600).all(|number| missing_at(second(number)) == Missing::Unknown));
        assert!((3_600..3_660).all(|number| missing_at(second(number)) == Missing::Wait));
        assert_eq!(missing_at(second(3_660)), Missing::Unknown);
    }
}
