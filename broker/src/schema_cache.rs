//! Writer schemas by id, fetched in the background.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backbeat_schemas::{DecodeError, Record, WriterSchema};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::{FetchError, Registry};

/// How long an id that the registry does not know is asked again before its records are given up:
/// a schema may be on its way to this replica of the registry (DESIGN, "Reverb").
const UNKNOWN_FOR: Duration = Duration::from_mins(1);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Ids are written by anyone: a flood of made-up ones must not fill the memory.
const MAX_IDS: usize = 10_000;

/// The schemas that `R`s were written with, by the registry's ids.
pub struct SchemaCache<R> {
    registry: Registry,
    runtime: Handle,
    schemas: Arc<Mutex<HashMap<u32, Known<R>>>>,
}

struct Known<R> {
    lookup: Lookup<R>,
    /// When the registry was asked.
    asked: Instant,
}

/// What is known of a schema id.
pub enum Lookup<R> {
    /// The schema.
    Known(Arc<WriterSchema<R>>),
    /// A schema that is not of `R`.
    Wrong(DecodeError),
    /// The registry said for a minute that there is none; it is asked again every minute.
    Unknown,
    /// Not known yet: ask again.
    Pending,
}

impl<R> Clone for Lookup<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Known(schema) => Self::Known(Arc::clone(schema)),
            Self::Wrong(error) => Self::Wrong(error.clone()),
            Self::Unknown => Self::Unknown,
            Self::Pending => Self::Pending,
        }
    }
}

impl<R: Record + 'static> SchemaCache<R> {
    /// An empty cache that fetches from `registry` on `runtime`.
    pub fn new(registry: Registry, runtime: Handle) -> Self {
        Self { registry, runtime, schemas: Arc::default() }
    }

    /// What is known of `id`; starts to fetch it if nothing is. Never blocks.
    pub fn lookup(&self, id: u32) -> Lookup<R> {
        let mut schemas = lock(&self.schemas);
        let now = Instant::now();
        let answer = match schemas.get_mut(&id) {
            Some(Known { lookup: Lookup::Unknown, asked }) if asked.elapsed() >= UNKNOWN_FOR => {
                *asked = now;
                Lookup::Unknown
            }
            Some(known) => return known.lookup.clone(),
            None => Lookup::Pending,
        };
        if schemas.len() >= MAX_IDS {
            schemas.retain(|_, known| matches!(known.lookup, Lookup::Known(_) | Lookup::Pending));
        }
        schemas.insert(id, Known { lookup: answer.clone(), asked: now });
        let (registry, schemas) = (self.registry.clone(), Arc::clone(&self.schemas));
        self.runtime.spawn(async move {
            let lookup = fetch(&registry, id).await;
            lock(&schemas).insert(id, Known { lookup, asked: Instant::now() });
        });
        answer
    }
}

/// Asks until the registry answers, and a minute longer if it answers that there is no such schema.
async fn fetch<R: Record>(registry: &Registry, id: u32) -> Lookup<R> {
    let mut unknown_since = None;
    loop {
        match registry.fetch(id).await {
            Ok(text) => {
                return match WriterSchema::parse(&text) {
                    Ok(schema) => Lookup::Known(Arc::new(schema)),
                    Err(error) => Lookup::Wrong(error),
                };
            }
            Err(FetchError::Unknown(_)) => {
                let since = *unknown_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= UNKNOWN_FOR {
                    tracing::warn!(schema_id = id, "the registry does not know this schema; its records are invalid");
                    return Lookup::Unknown;
                }
            }
            Err(error @ FetchError::Unavailable(_)) => {
                unknown_since = None;
                tracing::warn!(%error, schema_id = id, "waiting for a schema");
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under this lock leaves a whole map behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
