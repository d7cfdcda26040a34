//! The topics, the group and the transactional id, as Kafka keeps them.

use std::collections::{BTreeMap, BTreeSet};

use backbeat_reverb::core::{Claim, Committed};
use backbeat_schemas::{BarPartial, BarReport, BeatFrame};

/// A record of `statusclaims`.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Claim(Claim<'static>),
    /// No claim at all.
    Broken,
    /// What a foreign transaction leaves.
    Control,
}

/// One partition of `statusclaims`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClaimLog {
    pub(crate) low: i64,
    /// All that were ever written, by offset.
    pub(crate) records: Vec<Record>,
}

impl ClaimLog {
    pub(crate) fn end(&self) -> i64 {
        self.records.len() as i64
    }

    /// The retained records from `offset` on.
    pub(crate) fn read(&self, offset: i64) -> impl Iterator<Item = (i64, &Record)> {
        let start = offset.max(self.low);
        (start..).zip(&self.records[start as usize..])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    Open,
    Committed,
    Aborted,
}

/// A topic that transactions write to, with one partition.
#[derive(Debug)]
pub(crate) struct Log<T> {
    pub(crate) low: i64,
    /// `None` is a marker.
    slots: Vec<(Option<T>, Option<usize>)>,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { low: 0, slots: Vec::new() }
    }
}

impl<T> Log<T> {
    pub(crate) fn end(&self) -> i64 {
        self.slots.len() as i64
    }
}

/// The transactional id is another's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced;

#[derive(Debug, Default)]
pub(crate) struct Kafka {
    pub(crate) frames: Vec<BeatFrame>,
    pub(crate) claims: Vec<ClaimLog>,
    pub(crate) partials: Log<BarPartial>,
    pub(crate) reports: Log<BarReport>,
    pub(crate) dead_letters: BTreeSet<(i32, i64)>,
    transactions: Vec<Transaction>,
    /// Of the transactional id.
    epoch: u64,
    open: Option<usize>,
    /// The committed offsets of the group.
    pub(crate) committed: BTreeMap<i32, Committed>,
    /// Members that the coordinator believes in, and what is whose.
    pub(crate) members: BTreeSet<u64>,
    pub(crate) owners: BTreeMap<i32, u64>,
    /// Epochs are not checked.
    pub(crate) no_fence: bool,
}

impl Kafka {
    /// The start of the log of every partition of `statusclaims`.
    pub(crate) fn lows(&self) -> BTreeMap<i32, i64> {
        (0..).zip(self.claims.iter().map(|log| log.low)).collect()
    }

    /// Commits `committed` for `member`, if the coordinator believes in it.
    pub(crate) fn commit(&mut self, member: u64, committed: &BTreeMap<i32, Committed>) -> bool {
        let is_member = self.members.contains(&member);
        if is_member {
            self.committed.extend(committed);
        }
        is_member
    }

    /// Appends a partial, outside of any transaction.
    pub(crate) fn append(&mut self, partial: BarPartial) {
        self.partials.slots.push((Some(partial), None));
    }

    /// The next visible record at or after `offset`, and its offset: what a `read_committed` reader gets.
    pub(crate) fn next<'l, T>(&self, log: &'l Log<T>, offset: i64) -> Option<(i64, &'l T)> {
        let start = offset.max(log.low);
        for (offset, (record, transaction)) in (start..).zip(&log.slots[start.min(log.end()) as usize..]) {
            match (record, transaction.map(|id| self.transactions[id])) {
                (_, Some(Transaction::Open)) => return None,
                (Some(record), None | Some(Transaction::Committed)) => return Some((offset, record)),
                _ => {}
            }
        }
        None
    }

    /// All visible records from `offset` on.
    pub(crate) fn read<'l, T>(&self, log: &'l Log<T>, offset: i64) -> impl Iterator<Item = (i64, &'l T)> {
        let mut next = offset;
        std::iter::from_fn(move || {
            let found = self.next(log, next)?;
            next = found.0 + 1;
            Some(found)
        })
    }

    /// Opens the transactional id: fences whoever had it, and aborts what it left. Kafka does the same when a
    /// transaction takes too long.
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

    /// Whether a transaction is open.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }
}
