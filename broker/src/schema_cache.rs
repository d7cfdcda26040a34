//! A cache of writer schemas by id, which are fetched in the background.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backbeat_schemas::{DecodeError, Record, WriterSchema};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::{FetchError, Registry};

/// The time for which the fetch of an id that the registry does not know is retried before the id counts as unknown: the
/// schema may not have been replicated to this instance of the registry yet (docs/design.md, "Validity of a claim"). An
/// unknown id is fetched again at this interval.
pub(crate) const UNKNOWN_AFTER: Duration = Duration::from_mins(1);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The largest number of cached ids: a flood of invented ones must not exhaust memory.
const MAX_IDS: usize = 10_000;

/// A cache of the schemas that records of type `R` were written with, by the registry's ids.
pub struct SchemaCache<R> {
    registry: Registry,
    runtime: Handle,
    schemas: Arc<Mutex<HashMap<u32, CachedLookup<R>>>>,
}

struct CachedLookup<R> {
    lookup: Lookup<R>,
    /// The time of the last fetch.
    fetched_at: Instant,
}

/// The result of looking up a schema id.
pub enum Lookup<R> {
    /// The schema.
    Known(Arc<WriterSchema<R>>),
    /// The schema is not one of `R`, or does not parse.
    Incompatible(DecodeError),
    /// The registry has answered for long enough that it has no such schema.
    Unknown,
    /// The schema is still being fetched; look it up again later.
    Pending,
}

impl<R> Clone for Lookup<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Known(schema) => Self::Known(Arc::clone(schema)),
            Self::Incompatible(error) => Self::Incompatible(error.clone()),
            Self::Unknown => Self::Unknown,
            Self::Pending => Self::Pending,
        }
    }
}

impl<R: Record + 'static> SchemaCache<R> {
    /// Creates an empty cache that fetches from `registry` on `runtime`.
    pub fn new(registry: Registry, runtime: Handle) -> Self {
        Self { registry, runtime, schemas: Arc::default() }
    }

    /// Looks up `id`, and starts to fetch its schema if the cache lacks it. Never blocks.
    pub fn lookup(&self, id: u32) -> Lookup<R> {
        let mut schemas = lock(&self.schemas);
        let now = Instant::now();
        let current = match schemas.get_mut(&id) {
            Some(CachedLookup { lookup: Lookup::Unknown, fetched_at }) if fetched_at.elapsed() >= UNKNOWN_AFTER => {
                *fetched_at = now;
                Lookup::Unknown
            }
            Some(cached) => return cached.lookup.clone(),
            None => Lookup::Pending,
        };
        if schemas.len() >= MAX_IDS {
            schemas.retain(|_, cached| matches!(cached.lookup, Lookup::Known(_) | Lookup::Pending));
        }
        schemas.insert(id, CachedLookup { lookup: current.clone(), fetched_at: now });
        let (registry, schemas) = (self.registry.clone(), Arc::clone(&self.schemas));
        self.runtime.spawn(async move {
            let lookup = fetch(&registry, id).await;
            lock(&schemas).insert(id, CachedLookup { lookup, fetched_at: Instant::now() });
        });
        current
    }
}

/// Fetches a schema. Retries until the registry answers, and for a minute if it answers that it has no such schema.
async fn fetch<R: Record>(registry: &Registry, id: u32) -> Lookup<R> {
    let mut unknown_since = None;
    loop {
        match registry.fetch(id).await {
            Ok(text) => {
                return match WriterSchema::parse(&text) {
                    Ok(schema) => Lookup::Known(Arc::new(schema)),
                    Err(error) => Lookup::Incompatible(error),
                };
            }
            Err(FetchError::Unknown(_)) => {
                let since = *unknown_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= UNKNOWN_AFTER {
                    tracing::warn!(schema_id = id, "schema id is not known to the registry");
                    return Lookup::Unknown;
                }
            }
            Err(error @ FetchError::Unavailable(_)) => {
                unknown_since = None;
                tracing::warn!(%error, schema_id = id, "cannot fetch a schema; retrying");
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock is held leaves the map consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
