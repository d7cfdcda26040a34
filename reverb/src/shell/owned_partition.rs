//! One owned partition: connects its state in the core with Kafka.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use backbeat_broker::{Deliveries, ProducerRecord, QueueFull, Sender, TopicName, Topics};
use backbeat_schemas::{BarPartial, wire};

use super::claim_decoder::ClaimDecoder;
use super::events::DeadLetterSent;
use super::metrics::Metrics;
use super::share_records::{ShareDeliveries, ShareRecordProducer};
use super::status::{SharedStatus, share_status};
use crate::core::{FetchStart, Frames, OutboxRecord, Partition, PartitionAggregator, RawRecord, StallDetector};

/// The producer of partials, dead letters and rosters, with the member's name and counter.
pub(crate) struct PartialProducer {
    pub(crate) sender: Sender,
    pub(crate) topics: Topics,
    pub(crate) share_records: ShareRecordProducer,
    pub(crate) partial_schema: u32,
    pub(crate) member: String,
    /// The number of partials that this member has sent.
    pub(crate) counter: i64,
    pub(crate) partial_deliveries: Arc<Deliveries>,
    /// The instant from which the times that the core gets are counted.
    pub(crate) started_at: Instant,
}

/// One partition of `statusclaims` assigned to this member.
pub(crate) struct OwnedPartition {
    pub(crate) id: i32,
    /// The partition's state in the core; `None` until the start position is known.
    pub(crate) core: Option<Partition>,
    /// The start of fetching; `None` until the start position is known.
    fetch_start: Option<FetchStart>,
    /// Records polled while their schema is being fetched, in order.
    deferred: VecDeque<(i64, RawRecord)>,
    share_records: ShareDeliveries,
    pub(crate) paused: bool,
    pub(crate) stall_detector: StallDetector,
}

impl OwnedPartition {
    /// Creates a partition that was just assigned and is paused.
    pub(crate) fn new(id: i32) -> Self {
        Self {
            id,
            core: None,
            fetch_start: None,
            deferred: VecDeque::new(),
            share_records: ShareDeliveries::default(),
            paused: true,
            stall_detector: StallDetector::default(),
        }
    }

    /// Starts the partition with an aggregator at its start position.
    pub(crate) fn start(&mut self, aggregator: PartitionAggregator) {
        self.fetch_start = Some(FetchStart::new(aggregator.next_offset()));
        self.core = Some(Partition::new(self.id, aggregator));
    }

    /// Returns the offset that the consumer is to be sought to.
    pub(crate) fn seek_offset(&self) -> Option<i64> {
        self.fetch_start.as_ref().and_then(FetchStart::seek_offset)
    }

    /// Records that the consumer was sought.
    pub(crate) fn mark_sought(&mut self) {
        self.fetch_start.iter_mut().for_each(FetchStart::mark_sought);
    }

    /// Makes the consumer seek to the next record, because its position may be wrong: a record came by the consumer's own
    /// queue, or an error did (`RecordQueue`).
    pub(crate) fn fetch_again(&mut self) {
        // A partition without a state in the core has yet to be sought anyway.
        let Some(core) = &self.core else { return };
        let next = self.deferred.back().map_or(core.aggregator().next_offset(), |(offset, _)| offset + 1);
        self.fetch_start = Some(FetchStart::new(next));
    }

    /// Processes a polled record, defers it, or discards it if the consumer does not read from the start position yet.
    /// `fetch_log_start` fetches the log start offset from Kafka.
    pub(crate) fn process(
        &mut self,
        offset: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        frames: &Frames,
        decoder: &mut ClaimDecoder,
        fetch_log_start: &dyn Fn() -> Option<i64>,
    ) {
        if !self.fetch_start.as_mut().is_some_and(|start| start.admit(offset)) {
            return;
        }
        let raw = || RawRecord::new(key, value);
        if let Some(core) = self.core.as_mut().filter(|_| self.deferred.is_empty())
            && let Some(claim) = decoder.decode(key, value)
            && record_gap(core, offset, fetch_log_start)
        {
            core.process(offset, claim, frames, raw);
        } else {
            self.deferred.push_back((offset, raw()));
        }
    }

    /// Processes the deferred records whose schema is now known.
    pub(crate) fn process_deferred(
        &mut self,
        frames: &Frames,
        decoder: &mut ClaimDecoder,
        fetch_log_start: &dyn Fn() -> Option<i64>,
    ) {
        let Some(core) = &mut self.core else { return };
        while let Some((offset, raw)) = self.deferred.pop_front() {
            match decoder.decode_raw(&raw) {
                Some(claim) if record_gap(core, offset, fetch_log_start) => {
                    let claim = claim.into_owned();
                    core.process(offset, claim, frames, || raw);
                }
                _ => return self.deferred.push_front((offset, raw)),
            }
        }
    }

    /// Advances to `offset`, because no record with a lower offset will be delivered, if nothing is deferred.
    pub(crate) fn skip_to(&mut self, offset: i64, log_start: i64) {
        if let Some(core) =
            self.core.as_mut().filter(|core| self.deferred.is_empty() && offset > core.aggregator().next_offset())
        {
            core.skip_to(offset, log_start);
        }
    }

    /// Advances as far as the boundaries allow, and sends the resulting dead letters, rosters and partials.
    pub(crate) fn advance(
        &mut self,
        frames: &Frames,
        producer: &mut PartialProducer,
        metrics: &Metrics,
        status: &SharedStatus,
    ) {
        let Some(core) = &mut self.core else { return };
        for outbox_record in core.advance(frames) {
            match outbox_record {
                OutboxRecord::DeadLetter { reason, .. } => metrics.record_invalid_claim(reason.reason()),
                OutboxRecord::Roster(_) => {}
                OutboxRecord::Partial(record) => {
                    let Some(partial) = record.partial() else { continue };
                    metrics.record_closed_share(partial);
                    if let Some(window) = frames.window_of(record.from_beat) {
                        status.set_share(
                            &window,
                            self.id,
                            share_status(frames, &window, self.id, None, partial.claims),
                        );
                    }
                }
            }
        }
        self.send(producer, metrics);
    }

    /// Sends the records of the outbox that can be sent now, in order.
    pub(crate) fn send(&mut self, producer: &mut PartialProducer, metrics: &Metrics) {
        let Some(core) = &mut self.core else { return };
        self.share_records.count_lost(metrics);
        while let Some(record) = core.next_record(self.share_records.are_outstanding()) {
            let sent = match record {
                OutboxRecord::DeadLetter { offset, reason, raw } => {
                    producer.share_records.send_dead_letter(self.id, *offset, reason, raw, &self.share_records)
                }
                OutboxRecord::Roster(roster) => producer.share_records.send_roster(roster, &self.share_records),
                OutboxRecord::Partial(partial) => producer.send_partial(partial),
            };
            if sent.is_err() {
                return;
            }
            if let Some(OutboxRecord::DeadLetter { offset, reason, .. }) =
                core.mark_sent(producer.counter, producer.started_at.elapsed())
            {
                DeadLetterSent { partition: self.id, offset, reason: &reason }.emit(metrics);
            }
        }
    }

    /// Sends partials again that have had no done record for long, and records that did not fit into the queue.
    pub(crate) fn retry(&mut self, producer: &mut PartialProducer, metrics: &Metrics) {
        if let Some(core) = &mut self.core {
            core.resend_overdue(producer.started_at.elapsed());
        }
        self.send(producer, metrics);
    }

    /// Returns true if the partition must be paused.
    pub(crate) fn must_pause(&self) -> bool {
        self.seek_offset().is_some() || !self.deferred.is_empty() || self.core.as_ref().is_none_or(Partition::is_full)
    }
}

impl PartialProducer {
    fn send_partial(&mut self, record: &BarPartial) -> Result<(), QueueFull> {
        let named = record.clone().sent_by(&self.member, self.counter + 1);
        let topic = self.topics.name(TopicName::BarPartials);
        let key = named.window_id.to_string();
        let value = wire(self.partial_schema, &named);
        let record = ProducerRecord { topic: &topic, key: Some(key.as_bytes()), value: &value, ..Default::default() };
        self.sender.send(record, &self.partial_deliveries)?;
        self.counter += 1;
        Ok(())
    }
}

/// Records the offsets missing before `offset`, left by control records or by retention, with the aggregator. Returns
/// false if the log start offset cannot be fetched now.
fn record_gap(core: &mut Partition, offset: i64, fetch_log_start: &dyn Fn() -> Option<i64>) -> bool {
    if offset <= core.aggregator().next_offset() {
        return true;
    }
    let found = fetch_log_start();
    if let Some(log_start) = found {
        core.skip_to(offset, log_start);
    }
    found.is_some()
}
