//! One partition that this member owns, between Kafka and the core.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use backbeat_broker::{Deliveries, Outgoing, QueueFull, Sender, TopicName, Topics};
use backbeat_schemas::{BarPartial, InvalidClaim, wire};

use super::claim_decoder::ClaimDecoder;
use super::metrics::Metrics;
use super::status::{Share, SharedStatus};
use crate::core::{Frames, Outbound, Partition, PartitionAggregator, RawRecord};

/// Who sends, where, and under which name.
pub(crate) struct PartialProducer {
    pub(crate) sender: Sender,
    pub(crate) topics: Topics,
    pub(crate) partial_schema: u32,
    pub(crate) member: String,
    /// Of the partials that this member sent.
    pub(crate) counter: i64,
    pub(crate) partials: Arc<Deliveries>,
    /// The core counts time from here.
    pub(crate) started: Instant,
}

/// One partition of `statusclaims`.
pub(crate) struct OwnedPartition {
    pub(crate) id: i32,
    /// `None` until it is known where its aggregator begins.
    pub(crate) core: Option<Partition>,
    /// Records that came before the aggregator began or whose schema is being fetched, in order.
    stalled: VecDeque<(i64, RawRecord)>,
    dead_letters: Arc<Deliveries>,
    pub(crate) paused: bool,
}

impl OwnedPartition {
    /// A partition that was just assigned, and is paused.
    pub(crate) fn new(id: i32) -> Self {
        Self { id, core: None, stalled: VecDeque::new(), dead_letters: Arc::default(), paused: true }
    }

    /// It is known where the aggregator begins.
    pub(crate) fn begin(&mut self, aggregator: PartitionAggregator) {
        self.core = Some(Partition::new(self.id, aggregator));
    }

    /// Takes a record as it comes from Kafka. `low` asks where the partition's log begins.
    pub(crate) fn take(
        &mut self,
        offset: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        frames: &Frames,
        decoder: &mut ClaimDecoder,
        low: &dyn Fn() -> Option<i64>,
    ) {
        let raw = || RawRecord { key: key.map(<[u8]>::to_vec), value: value.map(<[u8]>::to_vec) };
        if let Some(core) = self.core.as_mut().filter(|_| self.stalled.is_empty())
            && let Some(reading) = decoder.decode(key, value)
            && record_gap(core, offset, low)
        {
            core.take(offset, reading, frames, raw);
        } else {
            self.stalled.push_back((offset, raw()));
        }
    }

    /// Takes the records that had to wait and need not any more.
    pub(crate) fn take_stalled(&mut self, frames: &Frames, decoder: &mut ClaimDecoder, low: &dyn Fn() -> Option<i64>) {
        let Some(core) = &mut self.core else { return };
        while let Some((offset, raw)) = self.stalled.pop_front() {
            match decoder.decode(raw.key.as_deref(), raw.value.as_deref()) {
                Some(reading) if record_gap(core, offset, low) => {
                    let reading = reading.into_owned();
                    core.take(offset, reading, frames, || raw);
                }
                _ => return self.stalled.push_front((offset, raw)),
            }
        }
    }

    /// No record below `offset` is to come, in a log that begins at `low`.
    pub(crate) fn reached(&mut self, offset: i64, low: i64) {
        if let Some(core) =
            self.core.as_mut().filter(|core| self.stalled.is_empty() && offset > core.aggregator().next_offset())
        {
            core.reached(offset, low);
        }
    }

    /// Goes as far as the lines allow, and sends what comes of it.
    pub(crate) fn advance(
        &mut self,
        frames: &Frames,
        producer: &mut PartialProducer,
        metrics: &Metrics,
        status: &SharedStatus,
    ) {
        let Some(core) = &mut self.core else { return };
        for message in core.advance(frames) {
            match message {
                Outbound::DeadLetter { reason, .. } => metrics.invalid(reason.reason()),
                Outbound::Partial(record) => {
                    let Some(partial) = record.partial() else { continue };
                    metrics.closed(partial);
                    if let Some(window) = frames.window_of(record.from_beat) {
                        status.share(&window, self.id, Share::new(frames, &window, self.id, None, partial.claims));
                    }
                }
            }
        }
        self.send(producer, metrics);
    }

    /// Sends what can go out, in order.
    pub(crate) fn send(&mut self, producer: &mut PartialProducer, metrics: &Metrics) {
        let Some(core) = &mut self.core else { return };
        while let Some(message) = core.next_outbound(self.dead_letters.outstanding() > 0) {
            let sent = match message {
                Outbound::DeadLetter { offset, reason, raw } => {
                    producer.send_dead_letter(self.id, *offset, reason, raw, &self.dead_letters)
                }
                Outbound::Partial(partial) => producer.send_partial(partial),
            };
            if sent.is_err() {
                return;
            }
            if let Some(Outbound::DeadLetter { offset, reason, .. }) =
                core.sent(producer.counter, producer.started.elapsed())
            {
                metrics.dead_letter(reason.reason());
                tracing::debug!(partition = self.id, offset, %reason, "dead letter");
            }
        }
    }

    /// Sends again what nobody finished in time, and what could not go out.
    pub(crate) fn retry(&mut self, producer: &mut PartialProducer, metrics: &Metrics) {
        if let Some(core) = &mut self.core {
            core.resend(producer.started.elapsed());
        }
        self.send(producer, metrics);
    }

    /// Whether it must not be given more records for now.
    pub(crate) fn is_full(&self) -> bool {
        !self.stalled.is_empty() || self.core.as_ref().is_none_or(Partition::is_full)
    }
}

impl PartialProducer {
    fn send_dead_letter(
        &self,
        partition: i32,
        offset: i64,
        reason: &InvalidClaim,
        raw: &RawRecord,
        deliveries: &Arc<Deliveries>,
    ) -> Result<(), QueueFull> {
        let source = self.topics.name(TopicName::StatusClaims);
        let topic = self.topics.name(TopicName::DeadLetters);
        let key = format!("{source}/{partition}/{offset}");
        let headers = [
            ("reason", reason.reason().to_owned()),
            ("detail", reason.to_string()),
            ("topic", source),
            ("partition", partition.to_string()),
            ("offset", offset.to_string()),
            // Null and empty keys look alike once they are in a header.
            ("key", raw.key.as_ref().map_or("null".to_owned(), |key| String::from_utf8_lossy(key).into_owned())),
        ];
        let value = raw.value.as_deref().unwrap_or_default();
        let record = Outgoing { topic: &topic, key: Some(key.as_bytes()), value, headers: &headers };
        self.sender.send(record, deliveries)
    }

    fn send_partial(&mut self, record: &BarPartial) -> Result<(), QueueFull> {
        let named = record.clone().sent_by(&self.member, self.counter + 1);
        let topic = self.topics.name(TopicName::BarPartials);
        let key = named.window_id.to_string();
        let value = wire(self.partial_schema, &named);
        let outgoing = Outgoing { topic: &topic, key: Some(key.as_bytes()), value: &value, headers: &[] };
        self.sender.send(outgoing, &self.partials)?;
        self.counter += 1;
        Ok(())
    }
}

/// Tells the aggregator what is missing before `offset`: control records leave gaps, and so does retention.
/// False if it is not to be found out now.
fn record_gap(core: &mut Partition, offset: i64, low: &dyn Fn() -> Option<i64>) -> bool {
    if offset <= core.aggregator().next_offset() {
        return true;
    }
    let found = low();
    if let Some(low) = found {
        core.reached(offset, low);
    }
    found.is_some()
}
