use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use backbeat_schemas::BeatIndex;
use openraft::storage::RaftLogStorageExt;
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, Membership};
use redb::StorageBackend;
use tempfile::TempDir;

use super::*;

fn name(number: u64) -> NodeName {
    number.into()
}

fn plan(from: u32) -> Plan {
    Plan { from: BeatIndex::ZERO.plus(from), tempo: "5".parse().expect("a tempo"), bar_length: 4 }
}

fn entry(term: u64, index: u64) -> Entry<Types> {
    let log_id = LogId::new(CommittedLeaderId::new(term, name(1)), index);
    Entry { log_id, payload: EntryPayload::Normal(plan(index as u32)) }
}

struct OnDisk;

impl StoreBuilder<Types, Store, Store, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, Store, Store), StorageError<NodeName>> {
        let dir = TempDir::new().expect("a directory");
        let store = Store::open(dir.path(), "c", name(0)).expect("a new store");
        Ok((dir, store.clone(), store))
    }
}

#[test]
fn store_passes_openrafts_own_suite() {
    Suite::test_all(OnDisk).expect("the store fulfils openraft's contract");
}

#[test]
fn store_in_use_or_of_another_cluster_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let store = Store::open(dir.path(), "c", name(1)).expect("a new store");
    let twice = Store::open(dir.path(), "c", name(1)).err().expect("the store is in use").to_string();
    assert!(twice.ends_with("is in use: another pulse runs with this --node and --data-dir"), "{twice}");
    drop(store);
    assert!(Store::open(dir.path(), "c", name(1)).is_ok());
    let foreign =
        Store::open(dir.path(), "other", name(1)).err().expect("the store belongs to another cluster").to_string();
    assert!(foreign.ends_with("belongs to node n1 of cluster \"c\": choose another --data-dir"), "{foreign}");
}

/// A disk that records every write, so that a crash after any of them can be simulated.
#[derive(Debug, Clone, Default)]
struct Disk {
    operations: Arc<Mutex<Vec<Operation>>>,
    /// The number of operations after which the disk is full.
    full_after: Option<usize>,
}

#[derive(Debug, Clone)]
enum Operation {
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    Resize(usize),
    /// The store has acknowledged this step of the test.
    Acknowledged(usize),
}

impl Disk {
    /// Returns a disk with `bytes` on it.
    fn with(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.record(Operation::Resize(bytes.len()));
        disk.record(Operation::Write { at: 0, bytes });
        disk
    }

    fn record(&self, operation: Operation) {
        self.operations.lock().expect("no thread panicked with the lock").push(operation);
    }

    /// Records a write, if there is space.
    fn write(&self, operation: Operation) -> io::Result<()> {
        if self.full_after.is_some_and(|operations| self.operations().len() >= operations) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.record(operation);
        Ok(())
    }

    fn operations(&self) -> Vec<Operation> {
        self.operations.lock().expect("no thread panicked with the lock").clone()
    }

    fn bytes(&self) -> Vec<u8> {
        content(&self.operations())
    }
}

fn content(operations: &[Operation]) -> Vec<u8> {
    let mut content = Vec::new();
    for operation in operations {
        match operation {
            Operation::Write { at, bytes } => content[*at..*at + bytes.len()].copy_from_slice(bytes),
            Operation::Resize(length) => content.resize(*length, 0),
            Operation::Acknowledged(_) => {}
        }
    }
    content
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        out.copy_from_slice(&self.bytes()[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(Operation::Resize(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(Operation::Write { at: offset as usize, bytes: data.to_vec() })
    }
}

fn open(disk: Disk) -> Store {
    let builder = &mut Database::builder();
    let database = builder.create_with_backend(disk).expect("redb recovers from a crash");
    Store::new(database).expect("a store")
}

/// The content of a store, for comparison.
async fn content_of(store: &mut Store) -> (Option<Vote<NodeName>>, Vec<u64>, Option<LogId<NodeName>>, Option<Plan>) {
    let vote = store.read_vote().await.expect("the store is readable");
    let entries = store.try_get_log_entries(..).await.expect("the store is readable");
    let log = entries.iter().map(|entry| entry.log_id.index).collect();
    let state = store.state().expect("the store is readable");
    (vote, log, state.last_applied, state.plan)
}

/// Flips a bit, or cuts the end off, in the file of a store that was closed in order. The store is refused, or all its content
/// is there: the byte was not in use.
#[tokio::test]
async fn store_with_a_damaged_file_is_refused_or_whole() {
    let dir = TempDir::new().expect("a directory");
    let mut store = Store::open(dir.path(), "c", name(1)).expect("a new store");
    store.save_vote(&Vote::new(1, name(1))).await.expect("the vote is saved");
    store.blocking_append([entry(1, 1), entry(1, 2)]).await.expect("the entries are appended");
    store.apply([entry(1, 1)]).await.expect("the entry is applied");
    let expected = content_of(&mut store).await;
    drop(store);
    let file = dir.path().join("raft.redb");
    let whole = fs::read(&file).expect("the file is readable");
    let mut refused = 0;
    let mut check = async |bytes: &[u8], what: String| {
        fs::write(&file, bytes).expect("the file is writable");
        match Store::open(dir.path(), "c", name(1)) {
            Ok(mut store) => assert_eq!(content_of(&mut store).await, expected, "{what}"),
            Err(StoreError::Damaged(_)) => refused += 1,
            Err(error) => panic!("{what}: {error}"),
        }
    };
    // One in 23 of the bytes that are in use, and some that are not. All of them take two minutes.
    let used = whole.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at);
    for at in used.step_by(23).chain((0..whole.len()).step_by(8_191)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        check(&bytes, format!("a flipped bit at {at} of {}", whole.len())).await;
    }
    for length in (1..whole.len()).step_by(whole.len() / 16) {
        check(&whole[..length], format!("cut to {length} of {}", whole.len())).await;
    }
    assert!(refused > 60, "only {refused} were refused");
}

/// The number of steps of [`step`].
const STEPS: usize = 9;

/// Changes a store, as Raft does.
async fn step(store: &mut Store, step: usize) -> Result<(), StorageError<NodeName>> {
    let membership = Membership::new(vec![[name(1)].into()], BTreeMap::from([(name(1), NodeInfo::default())]));
    let member_entry = Entry { log_id: entry(1, 0).log_id, payload: EntryPayload::Membership(membership) };
    match step {
        1 => store.save_vote(&Vote::new(1, name(1))).await,
        2 => store.blocking_append([member_entry, entry(1, 1)]).await,
        3 => store.apply([member_entry]).await.map(drop),
        4 => store.apply([entry(1, 1)]).await.map(drop),
        5 => store.blocking_append([entry(1, 2), entry(1, 3)]).await,
        6 => store.truncate(entry(1, 3).log_id).await,
        7 => store.save_vote(&Vote::new_committed(2, name(2))).await,
        8 => store.blocking_append([entry(2, 3)]).await,
        _ => store.purge(entry(1, 1).log_id).await,
    }
}

#[tokio::test]
async fn store_after_a_crash_at_any_write_has_all_that_was_acknowledged() {
    let disk = Disk::default();
    let mut store = open(disk.clone());
    let mut contents = vec![content_of(&mut store).await];
    disk.record(Operation::Acknowledged(0));
    for number in 1..=STEPS {
        step(&mut store, number).await.expect("the store is writable");
        contents.push(content_of(&mut store).await);
        disk.record(Operation::Acknowledged(number));
    }
    assert_eq!(contents[STEPS].1, [2, 3]);
    let operations = disk.operations();
    let start = operations.iter().position(|operation| matches!(operation, Operation::Acknowledged(0)));
    let mut acknowledged = 0;
    let mut checked = 0;
    for cut in start.expect("step 0 is acknowledged")..operations.len() {
        match operations[cut] {
            Operation::Acknowledged(step) => acknowledged = step,
            _ => checked += 1,
        }
        // The disk after a crash just after this write.
        let got = content_of(&mut open(Disk::with(content(&operations[..=cut])))).await;
        let next = (acknowledged + 1).min(STEPS);
        assert!(
            got == contents[acknowledged] || got == contents[next],
            "cut {cut}, after step {acknowledged}: {got:?}"
        );
    }
    assert!(checked > 50, "only {checked} writes were checked");
}

#[tokio::test]
async fn store_on_a_full_disk_refuses_to_write_and_keeps_all_that_was_acknowledged() {
    let new = Disk::default();
    drop(open(new.clone()));
    let new = new.bytes();
    let mut refused = 0;
    for full_after in 0.. {
        // Opening a store writes, too.
        let disk = Disk::with(new.clone());
        let mut store = open(disk.clone());
        let opened = disk.operations().len();
        drop(store);
        let disk = Disk { full_after: Some(opened + full_after), ..Disk::with(new.clone()) };
        store = open(disk.clone());
        let mut content_before = content_of(&mut store).await;
        let mut number = 1;
        while number <= STEPS && step(&mut store, number).await.is_ok() {
            content_before = content_of(&mut store).await;
            number += 1;
        }
        drop(store);
        if number > STEPS {
            break;
        }
        refused += 1;
        let mut freed = open(Disk::with(disk.bytes()));
        let found = content_of(&mut freed).await;
        if found == content_before {
            step(&mut freed, number).await.expect("there is space");
        }
        let expected = content_of(&mut freed).await;
        let mut other = open(Disk::with(new.clone()));
        for step_before in 1..=number {
            step(&mut other, step_before).await.expect("the store is writable");
        }
        assert_eq!(expected, content_of(&mut other).await, "full after {full_after} operations, at step {number}");
    }
    assert!(refused > 50, "only {refused} writes were refused");
}
