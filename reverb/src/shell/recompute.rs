//! Recomputes windows from the log alone.

use std::ops::Range;
use std::time::{Duration, Instant};

use backbeat_broker::{Broker, Reader, Registry, SchemaCache, TopicName, assign, is_transient};
use backbeat_schemas::InvalidClaim;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::claim_decoder::ClaimDecoder;
use super::timeouts::QUERY_TIMEOUT;
use crate::core::{ClosedWindow, Counts, DecodedClaim, Frames, Output, PartitionAggregator, RawRecord, Tally, Window};

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
}

/// An invalid claim that was read again.
pub(crate) struct InvalidRecord {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) reason: InvalidClaim,
    pub(crate) raw: RawRecord,
}

/// A reader of the claims in the offset ranges of windows. All its calls block.
pub(crate) struct Recompute {
    consumer: Reader,
    topic: String,
    decoder: ClaimDecoder,
}

impl Recompute {
    pub(crate) fn new(broker: &Broker, registry: &Registry, runtime: &Handle) -> Result<Self, KafkaError> {
        Ok(Self {
            consumer: broker.reader()?,
            topic: broker.topics().name(TopicName::StatusClaims),
            decoder: ClaimDecoder::new(SchemaCache::new(registry.clone(), runtime.clone())),
        })
    }

    /// Returns the counts of `window`, whose closing frame is in `frames`, or `None` if its claims are no longer wholly
    /// retained. `keep_going` is called all the while; false stops the recomputation. `on_invalid` is called with each
    /// invalid record.
    pub(crate) fn window(
        &mut self,
        frames: &Frames,
        window: &Window,
        keep_going: &mut dyn FnMut() -> bool,
        on_invalid: &mut dyn FnMut(InvalidRecord),
    ) -> Result<Option<Counts>, RecomputeError> {
        let partitions = frames.get(window.closing).map_or(0, |frame| frame.claim_offsets.len());
        let mut sum = Tally::default();
        for partition in 0..partitions as i32 {
            let mut shares = self.shares(frames, window, window, partition, keep_going, on_invalid)?;
            match shares.pop() {
                Some(ClosedWindow { tally, retained: true, .. }) => sum.add(tally),
                _ => return Ok(None),
            }
        }
        Ok(Some(sum.counts()))
    }

    /// Returns the shares of `partition` in the windows from `first` to `last`, in order. Reads the range once.
    pub(crate) fn shares(
        &mut self,
        frames: &Frames,
        first: &Window,
        last: &Window,
        partition: i32,
        keep_going: &mut dyn FnMut() -> bool,
        on_invalid: &mut dyn FnMut(InvalidRecord),
    ) -> Result<Vec<ClosedWindow>, RecomputeError> {
        let boundary = |beat| frames.get(beat).map_or(0, |frame| frame.boundary(partition));
        let (start, end) = (boundary(first.from), boundary(last.closing));
        let mut log_start = self.fetch_log_start(partition)?;
        let mut aggregator = PartitionAggregator::new(partition, first.from, start, log_start);
        let (mut outputs, mut closed) = (Vec::new(), Vec::new());
        let mut sort = |outputs: &mut Vec<Output>| {
            for output in outputs.drain(..) {
                match output {
                    Output::DeadLetter { offset, reason, raw } => {
                        on_invalid(InvalidRecord { partition, offset, reason, raw: *raw });
                    }
                    Output::WindowClosed(window) => closed.push(*window),
                }
            }
        };
        if start.max(log_start) < end {
            let is_contiguous = self.read(partition, start.max(log_start)..end, keep_going, |offset, claim, raw| {
                aggregator.process(offset, claim, frames, raw, &mut outputs);
                sort(&mut outputs);
            })?;
            if !is_contiguous {
                // Offsets are missing: retention may have deleted records while they were read.
                log_start = self.fetch_log_start(partition)?;
            }
        }
        aggregator.skip_to(end, log_start.min(end));
        aggregator.advance(frames, &mut outputs);
        sort(&mut outputs);
        let expired_during_read =
            |window: &Window| boundary(window.from) < log_start && boundary(window.from) < boundary(window.closing);
        let shares = closed.into_iter().filter(|closed| closed.window.from <= last.from);
        let shares = shares
            .map(|closed| ClosedWindow { retained: closed.retained && !expired_during_read(&closed.window), ..closed });
        Ok(shares.collect())
    }

    fn fetch_log_start(&self, partition: i32) -> Result<i64, RecomputeError> {
        Ok(self.consumer.fetch_watermarks(&self.topic, partition, QUERY_TIMEOUT)?.0)
    }

    fn fetch_last_stable_offset(&self, partition: i32) -> Result<i64, RecomputeError> {
        let mut query = TopicPartitionList::new();
        query.add_partition_offset(&self.topic, partition, Offset::End)?;
        let answer = self.consumer.offsets_for_times(query, QUERY_TIMEOUT)?;
        let found = answer.find_partition(&self.topic, partition).map(|found| found.offset());
        Ok(if let Some(Offset::Offset(offset)) = found { offset } else { 0 })
    }

    fn assign_at(&self, partition: i32, offset: i64) -> Result<(), KafkaError> {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        assign(&self.consumer, &assignment)
    }

    /// Reads the records of `range`. Returns true if there was one at each of its offsets.
    fn read(
        &mut self,
        partition: i32,
        range: Range<i64>,
        keep_going: &mut dyn FnMut() -> bool,
        mut process: impl FnMut(i64, DecodedClaim<'_>, &dyn Fn() -> RawRecord),
    ) -> Result<bool, RecomputeError> {
        self.assign_at(partition, range.start)?;
        let mut next = range.start;
        let mut fetched_again = false;
        let mut gap = false;
        let mut last = Instant::now();
        while next < range.end {
            if !keep_going() {
                return Err(RecomputeError::Stopped);
            }
            let message = match self.consumer.poll(POLL) {
                Some(Ok(message)) => message,
                // The missing offsets are control records or expired if the last stable offset reaches the end of the
                // range and a second fetch after that returns nothing either. A last stable offset below the end is one
                // that a new partition leader has not updated yet, or that of a recreated topic.
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    let last_stable_offset = self.fetch_last_stable_offset(partition)?;
                    let is_complete = last_stable_offset >= range.end;
                    if is_complete && fetched_again {
                        return Ok(false);
                    }
                    if !is_complete && last.elapsed() >= READ_TIMEOUT {
                        return Err(RecomputeError::BelowBoundary {
                            partition,
                            last_stable_offset,
                            boundary: range.end,
                        });
                    }
                    fetched_again = is_complete;
                    std::thread::sleep(if fetched_again { Duration::ZERO } else { POLL });
                    self.assign_at(partition, next)?;
                    continue;
                }
                Some(Err(error)) if !is_transient(&error) => return Err(error.into()),
                Some(Err(_)) | None if last.elapsed() < READ_TIMEOUT => continue,
                Some(Err(_)) | None => return Err(KafkaError::NoMessageReceived.into()),
            };
            last = Instant::now();
            gap |= message.offset() > next;
            if message.offset() >= range.end {
                break;
            }
            next = message.offset() + 1;
            let claim = loop {
                match self.decoder.decode(message.key(), message.payload()) {
                    Some(claim) => break claim,
                    None if !keep_going() => return Err(RecomputeError::Stopped),
                    None => std::thread::sleep(SCHEMA_POLL),
                }
            };
            let raw =
                || RawRecord { key: message.key().map(<[u8]>::to_vec), value: message.payload().map(<[u8]>::to_vec) };
            process(message.offset(), claim, &raw);
        }
        Ok(!gap)
    }
}
