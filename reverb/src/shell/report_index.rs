//! The reports that are there already.

use std::collections::BTreeMap;

use backbeat_broker::{LogReader, ReadError};
use backbeat_schemas::{BarReport, BeatIndex, Timestamp};
use sha2::{Digest, Sha256};

/// Reports of finished windows remembered beyond those that a merge still needs.
const MAX_REMEMBERED: usize = 10_000;

/// The digest of a report's Avro body.
pub(crate) type Fingerprint = [u8; 32];

/// The last report of each window, as far back as was asked for.
///
/// Reports carry `closed_at` as their timestamp, so those of a window and of all later ones lie at or
/// after the offset that Kafka gives for it. From there the log is read once; after that we are the
/// only writer.
pub(crate) struct ReportIndex {
    reader: LogReader<BarReport>,
    since: Option<Timestamp>,
    reports: BTreeMap<BeatIndex, Fingerprint>,
}

impl ReportIndex {
    pub(crate) fn new(reader: LogReader<BarReport>) -> Self {
        Self { reader, since: None, reports: BTreeMap::new() }
    }

    pub(crate) fn fingerprint(body: &[u8]) -> Fingerprint {
        Sha256::digest(body).into()
    }

    /// The fingerprint of the last report of the window that opened at `from`.
    pub(crate) fn last(&mut self, from: BeatIndex, closed_at: Timestamp) -> Result<Option<Fingerprint>, ReadError> {
        if self.since.is_none_or(|since| closed_at < since) {
            let (start, end) = (self.reader.offset_at(closed_at.millis())?, self.reader.end()?);
            self.reports.clear();
            let reports = &mut self.reports;
            self.reader.read(start, end, |entry| {
                reports.insert(entry.record.from_beat, Self::fingerprint(&entry.body));
            })?;
            self.since = Some(closed_at);
        }
        Ok(self.reports.get(&from).copied())
    }

    /// We have written a report.
    pub(crate) fn written(&mut self, from: BeatIndex, fingerprint: Fingerprint) {
        self.reports.insert(from, fingerprint);
    }

    /// Windows closed before `closed_at` of the window at `oldest` are finished: remembers not too
    /// many of them.
    pub(crate) fn forget_before(&mut self, oldest: BeatIndex, closed_at: Timestamp) {
        if self.reports.len() > MAX_REMEMBERED
            && self.reports.first_key_value().is_some_and(|(first, _)| *first < oldest)
        {
            self.reports = self.reports.split_off(&oldest);
            // Nothing is known any more of a window closed at that very instant.
            self.since = self.since.max(Some(closed_at.plus_millis(1)));
        }
    }
}
