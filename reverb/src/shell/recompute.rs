//! Recomputes windows from the log alone.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use backbeat_broker::{Broker, SubjectSchemas, TopicName, WatchedReader, assign, is_transient, list_offsets};
use backbeat_schemas::{BarRoster, BeatIndex, Counts, InvalidClaim, StatusClaim};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::claim_decoder::ClaimDecoder;
use super::timeouts::QUERY_TIMEOUT;
use crate::core::{ClosedWindow, DecodedClaim, Frames, LOGIC, Output, PartitionAggregator, RawRecord, Window};

const POLL: Duration = Duration::from_millis(100);
const SCHEMA_POLL: Duration = Duration::from_millis(10);
/// The time without a record after which Kafka counts as unavailable.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// An error that prevents the recomputation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecomputeError {
    #[error("cannot read claims for a recomputation: {0}")]
    Kafka(#[from] KafkaError),
    #[error(
        "the last stable offset of statusclaims-{partition} is {last_stable_offset}, below the boundary {boundary}: a new \
         partition leader does not know it yet, or the topic was lost or recreated"
    )]
    BelowBoundary { partition: i32, last_stable_offset: i64, boundary: i64 },
    #[error("stopped before the recomputation was complete")]
    Stopped,
    #[error("the records to keep have more than {allowed} bytes")]
    TooManyBytes { allowed: usize },
}

/// An invalid claim that was read again.
pub(crate) struct InvalidRecord {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) reason: InvalidClaim,
    pub(crate) raw: RawRecord,
}

/// The counts of a window over all partitions, and its rosters.
#[derive(Default)]
pub(crate) struct RecomputedWindow {
    pub(crate) counts: Counts,
    pub(crate) rosters: Vec<BarRoster>,
}

/// A record of `statusclaims`.
pub(crate) struct ClaimRecord {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// `None` if the record cannot be decoded.
    pub(crate) claim: Option<StatusClaim>,
    /// The rule that the record breaks, other than that on its beat.
    pub(crate) invalid: Option<InvalidClaim>,
}

/// A reader of the claims in the offset ranges of windows. All its calls block.
pub(crate) struct Recompute {
    consumer: WatchedReader,
    topic: String,
    decoder: ClaimDecoder,
}

impl Recompute {
    pub(crate) fn new(broker: &Broker, schemas: SubjectSchemas<StatusClaim>) -> Result<Self, KafkaError> {
        let topic = broker.topics().name(TopicName::StatusClaims);
        Ok(Self {
            consumer: WatchedReader::new(broker, &topic, Broker::random_access_reader)?,
            topic,
            decoder: ClaimDecoder::new(schemas),
        })
    }

    /// Returns the counts of `window`, whose closing frame is in `frames`, and its rosters, or `None` if its claims, or those of
    /// the window before it, are no longer wholly retained. `keep_going` is called all the while; false stops the recomputation. `on_invalid` is called with each
    /// invalid record.
    pub(crate) fn window(
        &mut self,
        frames: &Frames,
        window: &Window,
        keep_going: &mut dyn FnMut() -> bool,
        on_invalid: &mut dyn FnMut(InvalidRecord),
    ) -> Result<Option<RecomputedWindow>, RecomputeError> {
        let partitions = frames.get(window.closing).map_or(0, |frame| frame.claim_offsets.len());
        let partitions: Vec<i32> = (0..partitions as i32).collect();
        let mut recomputed = RecomputedWindow::default();
        for (_, mut shares) in self.shares(frames, window, window, &partitions, keep_going, on_invalid)? {
            match shares.pop() {
                Some(closed) if closed.is_retained(LOGIC) => {
                    recomputed.counts.add(&closed.counts);
                    recomputed.rosters.extend(closed.roster.map(|roster| *roster));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(recomputed))
    }

    /// Returns the shares of each of `partitions` in the windows from `first` to `last`, in order. Reads all ranges at the
    /// same time, each of them once.
    pub(crate) fn shares(
        &mut self,
        frames: &Frames,
        first: &Window,
        last: &Window,
        partitions: &[i32],
        keep_going: &mut dyn FnMut() -> bool,
        on_invalid: &mut dyn FnMut(InvalidRecord),
    ) -> Result<BTreeMap<i32, Vec<ClosedWindow>>, RecomputeError> {
        let boundary = |partition, beat| frames.get(beat).map_or(0, |frame| frame.boundary(partition));
        let log_starts = self.log_starts(partitions)?;
        let mut shares = BTreeMap::new();
        let mut ranges = BTreeMap::new();
        for partition in partitions {
            let end = boundary(*partition, last.closing);
            let log_start = log_starts.get(partition).copied().unwrap_or(0);
            let aggregator = PartitionAggregator::new(*partition, first.from, frames, log_start);
            let start = aggregator.next_offset();
            shares.insert(*partition, Share { aggregator, closed: Vec::new() });
            if start < end {
                ranges.insert(*partition, RangeReader::new(start..end));
            }
        }
        let mut outputs = Vec::new();
        self.read(&mut ranges, keep_going, |partition, offset, claim, raw| {
            let Some(share) = shares.get_mut(&partition) else { return };
            share.aggregator.process(offset, claim, frames, raw, &mut outputs);
            share.take(partition, &mut outputs, on_invalid);
        })?;
        // Offsets are missing: retention may have deleted records while they were read.
        let incomplete = ranges.iter().filter(|(_, range)| range.has_gap).map(|(partition, _)| *partition);
        let moved = self.list_offsets(&incomplete.collect::<Vec<_>>(), Offset::Beginning)?;
        let shares = shares.into_iter().map(|(partition, mut share)| {
            let end = boundary(partition, last.closing);
            let log_start = moved.get(&partition).or(log_starts.get(&partition)).copied().unwrap_or(0);
            share.aggregator.skip_to(end, log_start.min(end));
            share.aggregator.advance(frames, &mut outputs);
            share.take(partition, &mut outputs, on_invalid);
            let expired_during_read = |from: BeatIndex, to: BeatIndex| {
                let from = boundary(partition, from);
                from < log_start && from < boundary(partition, to)
            };
            let closed = share.closed.into_iter().filter(|closed| closed.window.from <= last.from);
            let closed = closed.map(|closed| {
                let window = closed.window;
                let previous = window.from.previous().and_then(|beat| frames.window_of(beat));
                ClosedWindow {
                    retained: closed.retained && !expired_during_read(window.from, window.closing),
                    previous_retained: closed.previous_retained
                        && !previous.is_some_and(|previous| expired_during_read(previous.from, window.from)),
                    ..closed
                }
                .without_unfounded_roster()
            });
            (partition, closed.collect())
        });
        Ok(shares.collect())
    }

    /// Returns the claims of `agent` in `ranges`, by partition, with the number of records that were read. An error if the claims
    /// have more than `max_bytes`.
    pub(crate) fn claims_of(
        &mut self,
        agent: &str,
        mut ranges: BTreeMap<i32, RangeReader>,
        max_bytes: usize,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<(Vec<ClaimRecord>, u64), RecomputeError> {
        let (mut found, mut records) = (Vec::new(), 0);
        let bytes = Cell::new(0);
        let has_room = &mut || bytes.get() <= max_bytes && keep_going();
        let read = self.read(&mut ranges, has_room, |partition, offset, decoded, raw| {
            records += 1;
            let (may_be_wanted, invalid) = match decoded {
                DecodedClaim::Valid(claim) => (claim.agent == agent, None),
                DecodedClaim::Invalid(reason) => {
                    let is_key_wrong = matches!(reason, InvalidClaim::Key { .. });
                    (is_key_wrong || raw().key.as_deref() == Some(agent.as_bytes()), Some(reason))
                }
            };
            if may_be_wanted && bytes.get() <= max_bytes {
                let raw = raw();
                bytes.set(bytes.get() + raw.bytes());
                found.push((partition, offset, raw, invalid));
            }
        });
        if bytes.get() > max_bytes {
            return Err(RecomputeError::TooManyBytes { allowed: max_bytes });
        }
        read?;
        // A record is of the agent that it names; one that cannot be decoded is of the agent of its key.
        let found = found.into_iter().filter_map(|(partition, offset, raw, invalid)| {
            let claim = self.decoder.claim(&raw);
            let is_wanted = claim.as_ref().is_none_or(|claim| claim.agent_id == agent);
            is_wanted.then_some(ClaimRecord { partition, offset, claim, invalid })
        });
        let mut found: Vec<ClaimRecord> = found.collect();
        found.sort_by_key(|record| (record.partition, record.offset));
        Ok((found, records))
    }

    /// Calls `on_claim` with the records from the boundaries of the beat `start` on, up to the last stable offsets, of the
    /// partitions whose `log_starts` are given.
    pub(crate) fn claims_since(
        &mut self,
        frames: &Frames,
        start: BeatIndex,
        log_starts: &BTreeMap<i32, i64>,
        keep_going: &mut dyn FnMut() -> bool,
        mut on_claim: impl FnMut(i32, i64, DecodedClaim<'_>),
    ) -> Result<(), RecomputeError> {
        let mut ranges = self.ranges(frames, start, None, log_starts)?;
        self.read(&mut ranges, keep_going, |partition, offset, decoded, _| on_claim(partition, offset, decoded))
    }

    /// Returns the ranges, as far as `log_starts` says that they are retained, of the partitions that it has: from the boundary of
    /// the beat `start` to that of `end`, or to the last stable offset.
    pub(crate) fn ranges(
        &mut self,
        frames: &Frames,
        start: BeatIndex,
        end: Option<BeatIndex>,
        log_starts: &BTreeMap<i32, i64>,
    ) -> Result<BTreeMap<i32, RangeReader>, KafkaError> {
        let partitions: Vec<i32> = log_starts.keys().copied().collect();
        let mut ranges = BTreeMap::new();
        self.consumer.replace_if_lost()?;
        for (partition, log_end) in self.list_offsets(&partitions, Offset::End)? {
            let boundary = |beat| frames.get(beat).map(|frame| frame.boundary(partition));
            let start = boundary(start).unwrap_or(0).max(log_starts[&partition]);
            let end = end.and_then(boundary).unwrap_or(log_end);
            if start < end {
                ranges.insert(partition, RangeReader::new(start..end));
            }
        }
        Ok(ranges)
    }

    /// Returns the log start offsets of `partitions`.
    pub(crate) fn log_starts(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, KafkaError> {
        self.consumer.replace_if_lost()?;
        self.list_offsets(partitions, Offset::Beginning)
    }

    /// Fetches offsets. Never replaces the client: it may have an assignment.
    fn list_offsets(&self, partitions: &[i32], at: Offset) -> Result<BTreeMap<i32, i64>, KafkaError> {
        list_offsets(&self.consumer, &self.topic, partitions.iter().copied(), at, QUERY_TIMEOUT)
    }

    /// Reads the records of the ranges, by partition.
    fn read(
        &mut self,
        ranges: &mut BTreeMap<i32, RangeReader>,
        keep_going: &mut dyn FnMut() -> bool,
        process: impl FnMut(i32, i64, DecodedClaim<'_>, &dyn Fn() -> RawRecord),
    ) -> Result<(), RecomputeError> {
        self.consumer.replace_if_lost()?;
        let read = self.read_assigned(ranges, keep_going, process);
        assign(&self.consumer, &TopicPartitionList::new())?;
        read
    }

    fn read_assigned(
        &mut self,
        ranges: &mut BTreeMap<i32, RangeReader>,
        keep_going: &mut dyn FnMut() -> bool,
        mut process: impl FnMut(i32, i64, DecodedClaim<'_>, &dyn Fn() -> RawRecord),
    ) -> Result<(), RecomputeError> {
        let mut assignment = TopicPartitionList::new();
        for (partition, range) in &*ranges {
            assignment.add_partition_offset(&self.topic, *partition, Offset::Offset(range.next))?;
        }
        assign(&self.consumer, &assignment)?;
        let unread = |ranges: &BTreeMap<i32, RangeReader>| {
            let unread = ranges.iter().filter(|(_, range)| !range.is_read());
            unread.map(|(partition, range)| (range.last, *partition, range.end)).min()
        };
        while let Some((last, partition, end)) = unread(ranges) {
            if !keep_going() {
                return Err(RecomputeError::Stopped);
            }
            // Other partitions may go on, and those that were read to the end of their ranges deliver what follows.
            if last.elapsed() >= READ_TIMEOUT {
                return Err(self.no_record(partition, end));
            }
            let message = match self.consumer.poll(POLL) {
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(range) = ranges.get_mut(&partition).filter(|range| !range.is_read()) {
                        self.handle_end(partition, range)?;
                    }
                    continue;
                }
                Some(Err(error)) if !is_transient(&error) => return Err(error.into()),
                Some(Err(_)) | None => continue,
            };
            let (partition, offset) = (message.partition(), message.offset());
            let Some(range) = ranges.get_mut(&partition).filter(|range| range.next <= offset) else { continue };
            if range.is_read() {
                continue;
            }
            (range.last, range.fetched_again) = (Instant::now(), false);
            range.has_gap |= offset > range.next;
            let end = range.end;
            range.next = offset.saturating_add(1).min(end);
            if offset < end {
                let claim = loop {
                    match self.decoder.decode(message.key(), message.payload()) {
                        Some(claim) => break claim,
                        None if !keep_going() => return Err(RecomputeError::Stopped),
                        None => std::thread::sleep(SCHEMA_POLL),
                    }
                    // Nothing is read meanwhile, up to a minute long.
                    for range in ranges.values_mut() {
                        range.last = Instant::now();
                    }
                };
                let raw = || RawRecord::new(message.key(), message.payload());
                process(partition, offset, claim, &raw);
            }
        }
        Ok(())
    }

    /// Returns the error for a partition of which no record has come for long.
    fn no_record(&self, partition: i32, boundary: i64) -> RecomputeError {
        match self.last_stable_offset(partition) {
            Ok(last_stable_offset) if last_stable_offset < boundary => {
                RecomputeError::BelowBoundary { partition, last_stable_offset, boundary }
            }
            Ok(_) => KafkaError::NoMessageReceived.into(),
            Err(error) => error.into(),
        }
    }

    fn last_stable_offset(&self, partition: i32) -> Result<i64, KafkaError> {
        Ok(self.list_offsets(&[partition], Offset::End)?.get(&partition).copied().unwrap_or(0))
    }

    /// Handles the end of a partition that comes before that of its range. The missing offsets are control records or
    /// expired if the last stable offset reaches the end of the range and a second fetch after that returns nothing either. A
    /// last stable offset below the end is one that a new partition leader has not updated yet, or that of a recreated
    /// topic.
    fn handle_end(&self, partition: i32, range: &mut RangeReader) -> Result<(), RecomputeError> {
        let is_complete = self.last_stable_offset(partition)? >= range.end;
        if is_complete && range.fetched_again {
            (range.next, range.has_gap) = (range.end, true);
            return Ok(());
        }
        range.fetched_again = is_complete;
        if !is_complete {
            std::thread::sleep(POLL);
        }
        Ok(self.consumer.seek(&self.topic, partition, Offset::Offset(range.next), QUERY_TIMEOUT)?)
    }
}

/// One partition's windows while its claims are read.
struct Share {
    aggregator: PartitionAggregator,
    closed: Vec<ClosedWindow>,
}

impl Share {
    fn take(&mut self, partition: i32, outputs: &mut Vec<Output>, on_invalid: &mut dyn FnMut(InvalidRecord)) {
        for output in outputs.drain(..) {
            match output {
                Output::WindowClosed(window) => self.closed.push(*window),
                Output::DeadLetter { offset, reason, raw } => {
                    on_invalid(InvalidRecord { partition, offset, reason, raw: *raw });
                }
            }
        }
    }
}

/// The progress in one partition's range.
pub(crate) struct RangeReader {
    /// The offset of the next record; the end if the range was read.
    next: i64,
    end: i64,
    /// True if there was not a record at each offset.
    has_gap: bool,
    /// True if the partition is fetched again because it ended before the range did.
    fetched_again: bool,
    /// The time of the last record.
    last: Instant,
}

impl RangeReader {
    fn new(range: Range<i64>) -> Self {
        Self { next: range.start, end: range.end, has_gap: false, fetched_again: false, last: Instant::now() }
    }

    /// Returns the number of offsets that were not read.
    pub(crate) fn unread(&self) -> u64 {
        (self.end - self.next).unsigned_abs()
    }

    fn is_read(&self) -> bool {
        self.next >= self.end
    }
}
