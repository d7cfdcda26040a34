//! Raft's log, vote and state on disk, in one redb file. Every write is fsynced before it is acknowledged.

#![expect(clippy::result_large_err, reason = "the size of openraft's errors is given")]

use std::fmt::Debug;
use std::fs;
use std::io::Cursor;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    AnyError, Entry, EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftLogReader, RaftSnapshotBuilder,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::types::{NodeInfo, NodeName, Types};
use crate::core::Plan;

/// Log entries by index, as JSON.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// The identity, the vote, the last purged log id and the state, as JSON.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const IDENTITY: &str = "identity";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const STATE: &str = "state";

/// Raft's store; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
    plan: Arc<watch::Sender<Option<Plan>>>,
}

/// The state machine: the result of all applied entries.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    last_applied: Option<LogId<NodeName>>,
    membership: StoredMembership<NodeName, NodeInfo>,
    plan: Option<Plan>,
}

/// The cluster and node that a store belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    cluster: String,
    node: NodeName,
}

/// An error of Raft's store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot create the directory {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error("{path} is in use: another pulse runs with this --node and --data-dir")]
    InUse { path: String },
    #[error("{path} belongs to node {node} of cluster {cluster:?}: choose another --data-dir")]
    Foreign { path: String, node: NodeName, cluster: String },
    #[error("cannot open raft's store: {0}")]
    Open(#[from] redb::DatabaseError),
    #[error(
        "raft's store is damaged ({0}): remove the file raft.redb in --data-dir and start this node again; the other nodes \
         send it the plan. A node without others takes tempo and bar length from the last frame"
    )]
    Damaged(String),
    #[error("cannot begin a transaction of raft's store: {0}")]
    Begin(#[from] redb::TransactionError),
    #[error("cannot open a table of raft's store: {0}")]
    Table(#[from] redb::TableError),
    #[error("cannot read or write raft's store: {0}")]
    Access(#[from] redb::StorageError),
    #[error("cannot commit to raft's store: {0}")]
    Commit(#[from] redb::CommitError),
    #[error("raft's store contains data that this version cannot decode: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a write to raft's store panicked")]
    Panicked,
}

impl Store {
    /// Opens the store of `node` in `directory`, and creates it if it does not exist.
    pub(crate) fn open(directory: &Path, cluster: &str, node: NodeName) -> Result<Self, StoreError> {
        fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { path: directory.display().to_string(), source })?;
        let file = directory.join("raft.redb");
        let path = file.display().to_string();
        // redb panics on some damaged pages. Release builds end at a panic, so the reason must be told before.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|info| tracing::error!("{}", StoreError::Damaged(info.to_string()))));
        let opened = std::panic::catch_unwind(|| Self::new(Database::create(&file).map_err(damaged_if_corrupted)?));
        std::panic::set_hook(hook);
        let store = match opened {
            Err(_) => return Err(StoreError::Damaged("a page cannot be read".to_owned())),
            Ok(Err(StoreError::Open(redb::DatabaseError::DatabaseAlreadyOpen))) => {
                return Err(StoreError::InUse { path });
            }
            Ok(opened) => opened?,
        };
        let own = Identity { cluster: cluster.to_owned(), node };
        let found = write_blocking(&store.database, |tables| {
            let found: Option<Identity> = get(&tables.meta, IDENTITY)?;
            if found.is_none() {
                tables.put(IDENTITY, &own)?;
            }
            Ok(found)
        })?;
        match found {
            Some(Identity { cluster, node }) if (&cluster, node) != (&own.cluster, own.node) => {
                Err(StoreError::Foreign { path, node, cluster })
            }
            _ => Ok(store),
        }
    }

    /// Checks the whole file, which is small: redb itself verifies its checksums only after some crashes. A vote that was
    /// forgotten could be given twice.
    fn new(mut database: Database) -> Result<Self, StoreError> {
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => return Err(StoreError::Damaged("checksums do not match".to_owned())),
            Err(error) => return Err(damaged_if_corrupted(error)),
        }
        // A write transaction, because it creates missing tables.
        let state: Option<State> = write_blocking(&database, |tables| get(&tables.meta, STATE))?;
        let plan = state.and_then(|state| state.plan);
        Ok(Self { database: Arc::new(database), plan: Arc::new(watch::Sender::new(plan)) })
    }

    /// The plan that was committed last, and every later one.
    pub(crate) fn plan(&self) -> watch::Receiver<Option<Plan>> {
        self.plan.subscribe()
    }

    /// Runs `change` in a transaction that is fsynced when this returns.
    async fn write<T: Send + 'static>(
        &self,
        subject: ErrorSubject<NodeName>,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StorageError<NodeName>> {
        let database = Arc::clone(&self.database);
        let written = tokio::task::spawn_blocking(move || write_blocking(&database, change)).await;
        written.unwrap_or(Err(StoreError::Panicked)).map_err(|error| storage_error(subject, ErrorVerb::Write, &error))
    }

    /// Runs `query` in a read transaction, on the calling thread: the data is small, and cached in memory.
    fn read<T>(
        &self,
        subject: ErrorSubject<NodeName>,
        query: impl FnOnce(&redb::ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StorageError<NodeName>> {
        let found = self.database.begin_read().map_err(StoreError::from).and_then(|transaction| query(&transaction));
        found.map_err(|error| storage_error(subject, ErrorVerb::Read, &error))
    }

    fn meta<T: DeserializeOwned>(
        &self,
        subject: ErrorSubject<NodeName>,
        key: &str,
    ) -> Result<Option<T>, StorageError<NodeName>> {
        self.read(subject, |transaction| get(&transaction.open_table(META)?, key))
    }

    fn state(&self) -> Result<State, StorageError<NodeName>> {
        self.meta(ErrorSubject::StateMachine, STATE).map(Option::unwrap_or_default)
    }
}

fn damaged_if_corrupted(error: redb::DatabaseError) -> StoreError {
    match error {
        redb::DatabaseError::Storage(redb::StorageError::Corrupted(reason)) => StoreError::Damaged(reason),
        // No version of pulse has written a file of another format.
        redb::DatabaseError::UpgradeRequired(_) => StoreError::Damaged(error.to_string()),
        redb::DatabaseError::Storage(redb::StorageError::Io(error)) if is_about_content(&error) => {
            StoreError::Damaged(error.to_string())
        }
        other => other.into(),
    }
}

/// Returns true if the file, not the disk, is the reason: it is not redb's, or it ends too early.
fn is_about_content(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

struct Tables<'t> {
    log: redb::Table<'t, u64, &'static [u8]>,
    meta: redb::Table<'t, &'static str, &'static [u8]>,
}

impl Tables<'_> {
    fn put(&mut self, key: &str, value: &impl Serialize) -> Result<(), StoreError> {
        self.meta.insert(key, serde_json::to_vec(value)?.as_slice())?;
        Ok(())
    }
}

fn write_blocking<T>(
    database: &Database,
    change: impl FnOnce(&mut Tables<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // With redb's default durability the commit returns when it is fsynced. In one phase, redb would go back to the commit
    // before after a crash if the last one was damaged since.
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    let result = change(&mut Tables { log: transaction.open_table(LOG)?, meta: transaction.open_table(META)? })?;
    transaction.commit()?;
    Ok(result)
}

fn get<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let Some(found) = meta.get(key)? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(found.value())?))
}

fn storage_error(subject: ErrorSubject<NodeName>, verb: ErrorVerb, error: &StoreError) -> StorageError<NodeName> {
    StorageIOError::new(subject, verb, AnyError::new(error)).into()
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, StorageError<NodeName>> {
        self.read(ErrorSubject::Logs, |transaction| {
            let log = transaction.open_table(LOG)?;
            log.range(range)?.map(|entry| Ok(serde_json::from_slice(entry?.1.value())?)).collect()
        })
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<NodeName>> {
        self.read(ErrorSubject::Logs, |transaction| {
            let last_purged_log_id: Option<LogId<NodeName>> = get(&transaction.open_table(META)?, PURGED)?;
            let last: Option<Entry<Types>> = match transaction.open_table(LOG)?.last()? {
                Some((_, entry)) => Some(serde_json::from_slice(entry.value())?),
                None => None,
            };
            let last_log_id = last.map(|entry| entry.log_id).or(last_purged_log_id);
            Ok(LogState { last_purged_log_id, last_log_id })
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeName>) -> Result<(), StorageError<NodeName>> {
        let vote = *vote;
        self.write(ErrorSubject::Vote, move |tables| tables.put(VOTE, &vote)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeName>>, StorageError<NodeName>> {
        self.meta(ErrorSubject::Vote, VOTE)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<NodeName>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        self.write(ErrorSubject::Logs, move |tables| {
            for entry in entries {
                tables.log.insert(entry.log_id.index, serde_json::to_vec(&entry)?.as_slice())?;
            }
            Ok(())
        })
        .await?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<NodeName>) -> Result<(), StorageError<NodeName>> {
        self.write(ErrorSubject::Log(log_id), move |tables| Ok(tables.log.retain_in(log_id.index.., |_, _| false)?))
            .await
    }

    async fn purge(&mut self, log_id: LogId<NodeName>) -> Result<(), StorageError<NodeName>> {
        self.write(ErrorSubject::Log(log_id), move |tables| {
            tables.put(PURGED, &log_id)?;
            Ok(tables.log.retain_in(..=log_id.index, |_, _| false)?)
        })
        .await
    }
}

impl RaftStateMachine<Types> for Store {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<NodeName>>, StoredMembership<NodeName, NodeInfo>), StorageError<NodeName>> {
        self.state().map(|state| (state.last_applied, state.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError<NodeName>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = self.state()?;
        let mut responses = Vec::new();
        for Entry { log_id, payload } in entries {
            state.last_applied = Some(log_id);
            match payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(plan) => state.plan = Some(plan),
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(log_id), membership);
                }
            }
            responses.push(());
        }
        self.replace_state(state).await?;
        Ok(responses)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<NodeName>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeName, NodeInfo>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<NodeName>> {
        let plan = serde_json::from_slice(snapshot.get_ref())
            .map_err(|error| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, &error.into()))?;
        let membership = meta.last_membership.clone();
        self.replace_state(State { last_applied: meta.last_log_id, membership, plan }).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<NodeName>> {
        if self.state()?.last_applied.is_none() {
            return Ok(None);
        }
        self.build_snapshot().await.map(Some)
    }
}

impl Store {
    async fn replace_state(&self, state: State) -> Result<(), StorageError<NodeName>> {
        let plan = state.plan;
        self.write(ErrorSubject::StateMachine, move |tables| tables.put(STATE, &state)).await?;
        self.plan.send_if_modified(|known| std::mem::replace(known, plan) != plan);
        Ok(())
    }
}

/// Builds snapshots from the current state, which is stored with every applied entry and smaller than most entries.
impl RaftSnapshotBuilder<Types> for Store {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<NodeName>> {
        let State { last_applied, membership, plan } = self.state()?;
        let data = serde_json::to_vec(&plan)
            .map_err(|error| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, &error.into()))?;
        let snapshot_id = last_applied.map(|id| id.to_string()).unwrap_or_default();
        let meta = SnapshotMeta { last_log_id: last_applied, last_membership: membership, snapshot_id };
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

#[cfg(test)]
mod tests;
