//! A model of Kafka: the topics, the consumer group and the transactional id.

use std::collections::{BTreeMap, BTreeSet};

use backbeat_reverb::core::{Claim, CommittedOffset};
use backbeat_schemas::{BarPartial, BarReport, BarRoster, BeatFrame, BeatIndex};

/// A record of `statusclaims`.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Claim(Claim<'static>),
    /// An undecodable record.
    Broken,
    /// A control record of a foreign transaction.
    Control,
}

/// One partition of `statusclaims`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClaimLog {
    pub(crate) log_start: i64,
    /// All records that were ever written, by offset.
    pub(crate) records: Vec<Record>,
}

impl ClaimLog {
    pub(crate) fn end(&self) -> i64 {
        self.records.len() as i64
    }

    /// Returns the retained records from `offset` on.
    pub(crate) fn read(&self, offset: i64) -> impl Iterator<Item = (i64, &Record)> {
        let start = offset.max(self.log_start);
        (start..).zip(&self.records[start as usize..])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    Open,
    Committed,
    Aborted,
}

/// A topic with one partition that transactions write to.
#[derive(Debug)]
pub(crate) struct Log<T> {
    pub(crate) log_start: i64,
    /// Records with the transaction that wrote them; a `None` record is a control record.
    slots: Vec<(Option<T>, Option<usize>)>,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { log_start: 0, slots: Vec::new() }
    }
}

impl<T> Log<T> {
    pub(crate) fn end(&self) -> i64 {
        self.slots.len() as i64
    }
}

/// Another producer has initialized the transactional id since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced;

#[derive(Debug, Default)]
pub(crate) struct Kafka {
    pub(crate) frames: Vec<BeatFrame>,
    pub(crate) claims: Vec<ClaimLog>,
    pub(crate) partials: Log<BarPartial>,
    pub(crate) reports: Log<BarReport>,
    pub(crate) dead_letters: BTreeSet<(i32, i64)>,
    /// By downbeat and partition, all rosters that were ever written.
    pub(crate) rosters: BTreeMap<(BeatIndex, i32), Vec<BarRoster>>,
    transactions: Vec<Transaction>,
    /// The epoch of the transactional id.
    epoch: u64,
    open: Option<usize>,
    /// The committed offsets of the group.
    pub(crate) committed: BTreeMap<i32, CommittedOffset>,
    /// The members that the group coordinator knows, and the owner of each partition.
    pub(crate) members: BTreeSet<u64>,
    pub(crate) owners: BTreeMap<i32, u64>,
    /// True to disable the check of epochs.
    pub(crate) no_fence: bool,
}

impl Kafka {
    /// Returns the log start offset of every partition of `statusclaims`.
    pub(crate) fn log_starts(&self) -> BTreeMap<i32, i64> {
        (0..).zip(self.claims.iter().map(|log| log.log_start)).collect()
    }

    /// Commits `committed` for `member` and returns true, if the group coordinator knows the member.
    pub(crate) fn commit(&mut self, member: u64, committed: &BTreeMap<i32, CommittedOffset>) -> bool {
        let is_member = self.members.contains(&member);
        if is_member {
            self.committed.extend(committed);
        }
        is_member
    }

    /// Appends a partial outside of a transaction.
    pub(crate) fn append(&mut self, partial: BarPartial) {
        self.partials.slots.push((Some(partial), None));
    }

    /// Writes a roster.
    pub(crate) fn write_roster(&mut self, roster: BarRoster) {
        self.rosters.entry((roster.from_beat, roster.partition)).or_default().push(roster);
    }

    /// Returns the next record at or after `offset` that a `read_committed` reader sees, with its offset.
    pub(crate) fn next<'l, T>(&self, log: &'l Log<T>, offset: i64) -> Option<(i64, &'l T)> {
        let start = offset.max(log.log_start);
        for (offset, (record, transaction)) in (start..).zip(&log.slots[start.min(log.end()) as usize..]) {
            match (record, transaction.map(|id| self.transactions[id])) {
                (_, Some(Transaction::Open)) => return None,
                (Some(record), None | Some(Transaction::Committed)) => return Some((offset, record)),
                _ => {}
            }
        }
        None
    }

    /// Returns all records from `offset` on that a `read_committed` reader sees.
    pub(crate) fn read<'l, T>(&self, log: &'l Log<T>, offset: i64) -> impl Iterator<Item = (i64, &'l T)> {
        let mut next = offset;
        std::iter::from_fn(move || {
            let found = self.next(log, next)?;
            next = found.0 + 1;
            Some(found)
        })
    }

    /// Initializes transactions: fences the producer that did so before, and aborts its open transaction. Kafka does
    /// the same to a transaction that times out.
    pub(crate) fn init_transactions(&mut self) -> u64 {
        if !self.no_fence {
            self.end(Transaction::Aborted);
        }
        self.epoch += 1;
        self.epoch
    }

    pub(crate) fn begin(&mut self, epoch: u64) -> Result<(), Fenced> {
        self.check(epoch)?;
        if self.open.is_none() {
            self.transactions.push(Transaction::Open);
            self.open = Some(self.transactions.len() - 1);
        }
        Ok(())
    }

    pub(crate) fn send_report(&mut self, epoch: u64, report: BarReport) -> Result<(), Fenced> {
        self.check(epoch)?;
        self.reports.slots.push((Some(report), self.open));
        Ok(())
    }

    pub(crate) fn send_done(&mut self, epoch: u64, done: BarPartial) -> Result<(), Fenced> {
        self.check(epoch)?;
        self.partials.slots.push((Some(done), self.open));
        Ok(())
    }

    pub(crate) fn commit_transaction(&mut self, epoch: u64) -> Result<(), Fenced> {
        self.check(epoch)?;
        self.end(Transaction::Committed);
        Ok(())
    }

    fn check(&self, epoch: u64) -> Result<(), Fenced> {
        if epoch == self.epoch || self.no_fence { Ok(()) } else { Err(Fenced) }
    }

    fn end(&mut self, how: Transaction) {
        if let Some(id) = self.open.take() {
            self.transactions[id] = how;
            self.partials.slots.push((None, Some(id)));
            self.reports.slots.push((None, Some(id)));
        }
    }

    /// Returns true if a transaction is open.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }
}
