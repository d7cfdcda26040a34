//! An index of the published reports.

use std::collections::BTreeMap;

use backbeat_broker::{Broker, Entry, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::{BarReport, BeatIndex, Timestamp, wire};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::core::LOGIC;

/// Reports of finished windows that are kept in memory, beyond those that the merge still needs.
const MAX_REMEMBERED: usize = 10_000;

/// The version and the digest of a report, by which it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// The version of the rules by which it was computed.
    pub(crate) logic: i32,
    /// The SHA-256 digest of its Avro body.
    digest: [u8; 32],
}

/// The last report of each window, back to the oldest window that was looked up.
///
/// Reports carry `closed_at` as their timestamp, so those of a window and of all later ones lie at or after the offset
/// that Kafka returns for it. The log is read from there once. After that this merge is the only writer.
pub(crate) struct ReportIndex {
    /// Paused between two reads.
    reader: LogReader<BarReport>,
    since: Option<Timestamp>,
    reports: BTreeMap<BeatIndex, Fingerprint>,
}

impl ReportIndex {
    pub(crate) fn new(broker: &Broker, registry: &Registry, runtime: &Handle) -> Result<Self, ReadError> {
        let reader = LogReader::for_random_access(broker, registry, runtime, TopicName::BarReports)?;
        Ok(Self { reader, since: None, reports: BTreeMap::new() })
    }

    /// Fetches the end of the committed reports.
    pub(crate) fn end_offset(&mut self) -> Result<i64, ReadError> {
        self.reader.end_offset()
    }

    /// Forgets all reports: another merge may have written since they were read.
    pub(crate) fn clear(&mut self) {
        self.since = None;
        self.reports.clear();
    }

    /// Returns the fingerprint of a report that has this Avro body.
    pub(crate) fn fingerprint(report: &BarReport, body: &[u8]) -> Fingerprint {
        Fingerprint { logic: report.logic, digest: Sha256::digest(body).into() }
    }

    /// Returns the fingerprint of the last report of the window that opened at `from`.
    pub(crate) fn last(&mut self, from: BeatIndex, closed_at: Timestamp) -> Result<Option<Fingerprint>, ReadError> {
        if self.since.is_none_or(|since| closed_at < since) {
            let (start, end) = (self.reader.offset_at(closed_at.millis())?, self.reader.end_offset()?);
            self.reports.clear();
            let reports = &mut self.reports;
            self.reader.read(start, end, |entry| {
                reports.insert(entry.record.from_beat, Self::fingerprint(&entry.record, &published_body(&entry)));
            })?;
            self.reader.pause()?;
            self.since = Some(closed_at);
        }
        Ok(self.reports.get(&from).copied())
    }

    /// Adds a report that this merge has written.
    pub(crate) fn record_written(&mut self, from: BeatIndex, fingerprint: Fingerprint) {
        self.reports.insert(from, fingerprint);
    }

    /// Drops reports of windows before `oldest`, which are finished, if there are too many. `opened_at` is the instant
    /// of the downbeat `oldest`.
    pub(crate) fn drop_before(&mut self, oldest: BeatIndex, opened_at: Timestamp) {
        if self.reports.len() > MAX_REMEMBERED
            && self.reports.first_key_value().is_some_and(|(first, _)| *first < oldest)
        {
            self.reports = self.reports.split_off(&oldest);
            // A window closed at this very instant may have been dropped, so `since` starts after it.
            self.since = self.since.max(Some(opened_at.plus_millis(1)));
        }
    }
}

/// Returns a report's Avro body, which is the same on every replay. The schema id before it depends on the registry.
pub(crate) fn avro_body(report: &BarReport) -> Vec<u8> {
    wire(0, report).split_off(5)
}

/// Returns the Avro body of a published report as this version writes it: the schema of an earlier version of the rules lacked
/// fields.
pub(crate) fn published_body(entry: &Entry<BarReport>) -> Vec<u8> {
    if entry.record.logic < LOGIC { avro_body(&entry.record) } else { entry.body.clone() }
}
