//! One partition that this member owns: its fold, and what is on its way out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backbeat_broker::{Deliveries, Outgoing, QueueFull, Sender, TopicName, Topics};
use backbeat_schemas::{BarPartial, BeatIndex, InvalidClaim, Partial, PartialBody, wire};

use super::claim_decoder::ClaimDecoder;
use super::metrics::Metrics;
use crate::core::{Closed, Counts, Fold, Frames, LOGIC, Output, Progress, RawRecord};

/// Records that may wait for a line before the partition pauses: tens of megabytes over a dozen
/// partitions.
const MAX_WAITING: usize = 20_000;
/// Records that may wait to be sent before the partition pauses.
const MAX_OUTBOX: usize = 1_000;
/// Bytes of possible dead letters that may wait for a line before the partition pauses.
const MAX_RAW_BYTES: usize = 8 * 1024 * 1024;
/// A partial that nobody finished is sent again after this: it may have been lost with its topic.
const RESEND_AFTER: Duration = Duration::from_hours(1);

/// Who sends, where, and under which name.
pub(crate) struct Outlet {
    pub(crate) sender: Sender,
    pub(crate) topics: Topics,
    pub(crate) partial_schema: u32,
    pub(crate) member: String,
    /// Of the partials that this member sent.
    pub(crate) counter: i64,
    pub(crate) partials: Arc<Deliveries>,
}

/// One partition of `statusclaims`.
pub(crate) struct OwnedPartition {
    pub(crate) id: i32,
    /// `None` until it is known where to begin.
    pub(crate) fold: Option<Fold>,
    pub(crate) progress: Progress,
    /// Records that came before the fold began or whose schema is being fetched, in order.
    stalled: VecDeque<(i64, RawRecord)>,
    /// What the fold wants done and was not looked at yet.
    outputs: Vec<Output>,
    outbox: VecDeque<Message>,
    dead_letters: Arc<Deliveries>,
    /// Partials of windows that are not done.
    unfinished: BTreeMap<BeatIndex, (Instant, BarPartial)>,
    pub(crate) paused: bool,
}

enum Message {
    DeadLetter { offset: i64, reason: InvalidClaim, raw: Box<RawRecord> },
    Partial { from: BeatIndex, record: Box<BarPartial> },
}

impl OwnedPartition {
    /// A partition that was just assigned, and is paused.
    pub(crate) fn new(id: i32) -> Self {
        Self {
            id,
            fold: None,
            progress: Progress::default(),
            stalled: VecDeque::new(),
            outputs: Vec::new(),
            outbox: VecDeque::new(),
            dead_letters: Arc::default(),
            unfinished: BTreeMap::new(),
            paused: true,
        }
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
        if let Some(fold) = self.fold.as_mut().filter(|_| self.stalled.is_empty())
            && let Some(reading) = decoder.decode(key, value)
            && mind_gap(fold, offset, low)
        {
            fold.take(offset, reading, frames, raw, &mut self.outputs);
        } else {
            self.stalled.push_back((offset, raw()));
        }
    }

    /// Takes the records that had to wait and need not any more.
    pub(crate) fn take_stalled(&mut self, frames: &Frames, decoder: &mut ClaimDecoder, low: &dyn Fn() -> Option<i64>) {
        let Some(fold) = &mut self.fold else { return };
        while let Some((offset, raw)) = self.stalled.pop_front() {
            match decoder.decode(raw.key.as_deref(), raw.value.as_deref()) {
                Some(reading) if mind_gap(fold, offset, low) => {
                    let reading = reading.into_owned();
                    fold.take(offset, reading, frames, || raw, &mut self.outputs);
                }
                _ => return self.stalled.push_front((offset, raw)),
            }
        }
    }

    /// No record below `offset` is to come, in a log that begins at `low`.
    pub(crate) fn reached(&mut self, offset: i64, low: i64) {
        if let Some(fold) = self.fold.as_mut().filter(|fold| self.stalled.is_empty() && offset > fold.next_offset()) {
            fold.reached(offset, low);
        }
    }

    /// Goes as far as the lines allow, and sends what comes of it.
    pub(crate) fn advance(&mut self, frames: &Frames, outlet: &mut Outlet, metrics: &Metrics) {
        let Some(fold) = &mut self.fold else { return };
        fold.advance(frames, &mut self.outputs);
        for output in self.outputs.drain(..) {
            match output {
                Output::DeadLetter { offset, reason, raw } => {
                    metrics.invalid(reason.reason());
                    self.outbox.push_back(Message::DeadLetter { offset, reason, raw });
                }
                Output::Closed(closed) => {
                    let frame = |beat| frames.get(beat).expect("the table reaches back to every window that closes");
                    self.progress.opened(closed.window.from, frame(closed.window.from).line(self.id));
                    let partitions = frame(closed.window.closes).claim_offsets.len();
                    if self.id as usize >= partitions {
                        self.progress.not_ours(closed.window.from);
                        continue;
                    }
                    let counts = closed.tally.counts();
                    metrics.closed(&counts);
                    let record = Box::new(partial(self.id, &closed, &counts, partitions));
                    self.outbox.push_back(Message::Partial { from: closed.window.from, record });
                }
            }
        }
        for (window, _) in fold.open() {
            if let Some(opening) = frames.get(window.from) {
                self.progress.opened(window.from, opening.line(self.id));
            }
        }
        self.send(outlet, metrics);
    }

    /// Sends what can go out, in order: no partial before its dead letters are acknowledged.
    fn send(&mut self, outlet: &mut Outlet, metrics: &Metrics) {
        while let Some(message) = self.outbox.pop_front() {
            let sent = match &message {
                Message::DeadLetter { offset, reason, raw } => self.send_dead_letter(*offset, reason, raw, outlet),
                Message::Partial { .. } if self.dead_letters.outstanding() > 0 => Err(QueueFull),
                Message::Partial { from, record } => self.send_partial(*from, record, outlet),
            };
            if sent.is_err() {
                return self.outbox.push_front(message);
            }
            if let Message::DeadLetter { offset, reason, .. } = message {
                metrics.dead_letter(reason.reason());
                tracing::debug!(partition = self.id, offset, %reason, "dead letter");
            }
        }
    }

    fn send_dead_letter(
        &self,
        offset: i64,
        reason: &InvalidClaim,
        raw: &RawRecord,
        outlet: &Outlet,
    ) -> Result<(), QueueFull> {
        let source = outlet.topics.name(TopicName::StatusClaims);
        let topic = outlet.topics.name(TopicName::DeadLetters);
        let key = format!("{source}/{}/{offset}", self.id);
        let headers = [
            ("reason", reason.reason().to_owned()),
            ("detail", reason.to_string()),
            ("topic", source),
            ("partition", self.id.to_string()),
            ("offset", offset.to_string()),
            // Null and empty keys look alike once they are in a header.
            ("key", raw.key.as_ref().map_or("null".to_owned(), |key| String::from_utf8_lossy(key).into_owned())),
        ];
        let value = raw.value.as_deref().unwrap_or_default();
        let record = Outgoing { topic: &topic, key: Some(key.as_bytes()), value, headers: &headers };
        outlet.sender.send(record, &self.dead_letters)
    }

    fn send_partial(&mut self, from: BeatIndex, record: &BarPartial, outlet: &mut Outlet) -> Result<(), QueueFull> {
        let counter = outlet.counter + 1;
        let named = record.clone().sent_by(&outlet.member, counter);
        let topic = outlet.topics.name(TopicName::BarPartials);
        let key = named.window_id.to_string();
        let value = wire(outlet.partial_schema, &named);
        let outgoing = Outgoing { topic: &topic, key: Some(key.as_bytes()), value: &value, headers: &[] };
        outlet.sender.send(outgoing, &outlet.partials)?;
        outlet.counter = counter;
        self.progress.sent(from, counter);
        self.unfinished.insert(from, (Instant::now(), named));
        Ok(())
    }

    /// Sends again what nobody finished for an hour, and what could not go out.
    pub(crate) fn retry(&mut self, outlet: &mut Outlet, metrics: &Metrics) {
        let overdue = self.unfinished.extract_if(.., |_, (sent, _)| sent.elapsed() >= RESEND_AFTER);
        let again: Vec<Message> =
            overdue.map(|(from, (_, record))| Message::Partial { from, record: Box::new(record) }).collect();
        self.outbox.extend(again);
        self.send(outlet, metrics);
    }

    /// A window is done.
    pub(crate) fn done(&mut self, from: BeatIndex) {
        self.progress.done(from);
        let oldest = self.progress.position().map(|(_, oldest)| oldest);
        while self.unfinished.first_key_value().is_some_and(|(first, _)| oldest.is_none_or(|oldest| *first < oldest)) {
            self.unfinished.pop_first();
        }
    }

    /// Whether it must not be given more records for now.
    pub(crate) fn is_full(&self) -> bool {
        self.fold.as_ref().is_none_or(|fold| fold.waiting() >= MAX_WAITING || fold.raw_bytes() >= MAX_RAW_BYTES)
            || !self.stalled.is_empty()
            || self.outbox.len() >= MAX_OUTBOX
    }
}

/// Tells the fold what is missing before `offset`: control records leave gaps, and so does retention.
/// False if it is not to be found out now.
fn mind_gap(fold: &mut Fold, offset: i64, low: &dyn Fn() -> Option<i64>) -> bool {
    if offset <= fold.next_offset() {
        return true;
    }
    let found = low();
    if let Some(low) = found {
        fold.reached(offset, low);
    }
    found.is_some()
}

/// The record of one partition's share of a window. Member and counter are set when it is sent.
fn partial(id: i32, closed: &Closed, counts: &Counts, partitions: usize) -> BarPartial {
    let partial = Partial {
        partition: id,
        member: String::new(),
        counter: 0,
        logic: LOGIC,
        retained: closed.retained,
        misplaced: closed.tally.is_misplaced(id, partitions),
        agents: counts.agents,
        on_time_reviews: counts.on_time_reviews,
        help_fulfilled: counts.help_fulfilled,
        rotation_failed_agents: counts.rotation_failed_agents,
        tasks_done: counts.tasks_done,
        tasks_failed: counts.tasks_failed,
        claims: counts.claims,
        degraded_claims: counts.degraded_claims,
        late_claims: counts.late_claims,
        invalid_claims: counts.invalid_claims,
        unknown_schema_claims: counts.unknown_schema_claims,
    };
    BarPartial::new(closed.window.id, closed.window.from, PartialBody::Partial(partial))
}
