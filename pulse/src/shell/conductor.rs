//! The beating thread: does what the core says and tells it what came of it.

use std::time::{Duration, Instant};

use anyhow::Context;
use backbeat_broker::{Broker, LogReader, Registry, TopicName, TransactionError, TransactionalProducer};
use backbeat_schemas::{BarReport, BeatFrame, Timestamp, wire};
use backbeat_service::Shutdown;
use rand::Rng;
use tokio::runtime::Handle;

use super::lines::Lines;
use super::metrics::Metrics;
use super::status::{Role, SharedStatus};
use crate::core::{Command, Event, Leadership, Line, Plan};

/// Bounds opening the transactional id and every commit.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long before a beat its line is drawn, if a quarter of the period is not shorter.
const LINE_LEAD: Duration = Duration::from_millis(25);
/// A first line that cannot be drawn in this time stays the last frame's (DESIGN, "Pulse").
const FIRST_LINE_WITHIN: Duration = Duration::from_secs(2);
/// Shutdown is noticed this soon during a long wait.
const SLICE: Duration = Duration::from_millis(100);
/// A random while is added to the wait for a rival, up to this.
const RIVAL_JITTER_MS: u64 = 500;

/// Runs the core on a thread of its own.
pub(crate) struct Conductor {
    pub(crate) broker: Broker,
    pub(crate) frames: LogReader<BeatFrame>,
    pub(crate) reports: LogReader<BarReport>,
    pub(crate) schema_id: u32,
    /// What the flags say; the frames are the authority.
    pub(crate) flags: Plan,
    pub(crate) lines: Lines,
    pub(crate) leadership: Leadership,
    pub(crate) metrics: std::sync::Arc<Metrics>,
    pub(crate) status: SharedStatus,
    pub(crate) shutdown: Shutdown,
}

impl Conductor {
    /// The readers of what was written before.
    pub(crate) fn readers(
        broker: &Broker,
        registry: &Registry,
    ) -> anyhow::Result<(LogReader<BeatFrame>, LogReader<BarReport>)> {
        let runtime = Handle::current();
        let frames = LogReader::new(broker, registry, &runtime, TopicName::BeatFrames)?;
        let reports = LogReader::new(broker, registry, &runtime, TopicName::BarReports)?;
        Ok((frames, reports))
    }

    /// Beats until it is told to stop, or cannot go on. Blocks.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let mut producer = None;
        let mut command = self.leadership.start();
        let mut compared = false;
        while !self.shutdown.is_cancelled() {
            let Some(event) = self.perform(command, &mut producer)? else {
                break;
            };
            self.lines.check()?;
            if let (false, Event::Tail { frame: Some(frame), .. }) = (compared, &event) {
                compared = true;
                self.compare_flags(frame);
            }
            let line = self.lines.current();
            command = self.leadership.on(event, now(), &line);
            self.metrics.leading(self.leadership.is_leader());
        }
        self.status.update(|status| status.role = Role::Stopped);
        self.metrics.leading(false);
        Ok(())
    }

    /// Does `command`; `None` if it was told to shut down meanwhile.
    fn perform(
        &mut self,
        command: Command,
        producer: &mut Option<TransactionalProducer>,
    ) -> anyhow::Result<Option<Event>> {
        Ok(match command {
            Command::ReadTail => self.read_tail(),
            Command::OpenTransactions => {
                *producer = None;
                let (opened, event) = self.open_transactions();
                *producer = opened;
                event
            }
            Command::DrawLine => Some(self.draw_first_line()),
            Command::WaitForBeat { at, at_most_ms } => {
                self.status.update(|status| {
                    status.role = Role::Leader;
                    status.waiting_for = None;
                });
                self.wait_for_beat(at, at_most_ms)
            }
            Command::WaitForRival { until, at_most_ms } => {
                *producer = None;
                self.status.update(|status| status.role = Role::Starting);
                let jitter = Duration::from_millis(rand::rng().random_range(0..RIVAL_JITTER_MS));
                let wait = wait_ms(Some(until), at_most_ms) + jitter;
                tracing::warn!(seconds = wait.as_secs_f64(), "fenced: looking out for another pulse of this cluster");
                self.sleep_until(Instant::now() + wait).then_some(Event::Due)
            }
            Command::Publish(frame) => {
                let producer = producer.as_mut().context("the core publishes only after it opened transactions")?;
                Some(self.publish(&frame, producer))
            }
            Command::Stop(reason) => return Err(reason.into()),
        })
    }

    fn compare_flags(&self, last: &BeatFrame) {
        let Plan { tempo, bar_length, grace_beats, .. } = self.flags;
        if (tempo, bar_length, grace_beats) != (last.tempo_bpm, last.bar_length, last.grace_beats) {
            tracing::warn!(
                flags = format!("{tempo}, bars of {bar_length}, grace {grace_beats}"),
                in_force = format!("{}, bars of {}, grace {}", last.tempo_bpm, last.bar_length, last.grace_beats),
                "the cluster has beaten before and goes on as it did; the flags are for new clusters only"
            );
        }
    }

    fn read_tail(&mut self) -> Option<Event> {
        self.retry("the last beat", |conductor| {
            let last = conductor.frames.last()?;
            let no_reports = last.is_some() || conductor.reports.last()?.is_none();
            let frame = last.map(|entry| entry.record);
            if let Some(frame) = &frame {
                conductor.lines.at_least(Line::new(frame.claim_offsets.clone()));
            }
            Ok::<_, backbeat_broker::ReadError>(Event::Tail { frame, no_reports })
        })
    }

    fn open_transactions(&mut self) -> (Option<TransactionalProducer>, Option<Event>) {
        let id = self.broker.topics().pulse_transactional_id();
        let opened = self.retry("the transactional id", |conductor| {
            match TransactionalProducer::open(&conductor.broker, &id, TRANSACTION_TIMEOUT) {
                Err(error @ TransactionError::Fenced(_)) => {
                    conductor.metrics.transaction_failed();
                    tracing::warn!(%error, "fenced while opening the transactional id");
                    Ok(None)
                }
                other => other.map(Some),
            }
        });
        match opened {
            Some(Some(producer)) => (Some(producer), Some(Event::TransactionsOpen)),
            Some(None) => (None, Some(Event::Fenced)),
            None => (None, None),
        }
    }

    fn draw_first_line(&self) -> Event {
        let asked = Instant::now();
        self.lines.refresh();
        while asked.elapsed() < FIRST_LINE_WITHIN && !self.lines.is_fresh(asked) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !self.lines.is_fresh(asked) {
            tracing::warn!("no first line within 2 s: starting from the last frame's");
        }
        Event::LineDrawn
    }

    fn wait_for_beat(&self, at: Option<Timestamp>, at_most_ms: i64) -> Option<Event> {
        let wait = wait_ms(at, at_most_ms);
        let due = Instant::now() + wait;
        let lead = LINE_LEAD.min(Duration::from_millis(at_most_ms as u64) / 4);
        if !self.sleep_until(due.checked_sub(lead).unwrap_or(due)) {
            return None;
        }
        let asked = Instant::now();
        self.lines.refresh();
        if !self.sleep_until(due) {
            return None;
        }
        if !self.lines.is_fresh(asked) {
            self.metrics.stale_line();
        }
        Some(Event::Due)
    }

    fn publish(&self, frame: &BeatFrame, producer: &mut TransactionalProducer) -> Event {
        let began = Instant::now();
        let topics = self.broker.topics();
        let value = wire(self.schema_id, frame);
        let sent = producer.begin().and_then(|mut transaction| {
            transaction.send(
                &topics.name(TopicName::BeatFrames),
                &frame.cluster_id,
                &value,
                frame.emitted_at.millis(),
            )?;
            transaction.commit()
        });
        match sent {
            Ok(()) => {
                self.metrics.beat(frame, began.elapsed().as_secs_f64());
                self.status.update(|status| status.last_beat = Some(frame.clone()));
                tracing::debug!(beat = %frame.beat_index, window_id = %frame.window_id, "beat");
                Event::Committed
            }
            Err(error) => {
                self.metrics.transaction_failed();
                tracing::warn!(%error, beat = %frame.beat_index, "a beat's transaction failed; reading back whether it is there");
                if matches!(error, TransactionError::Fenced(_)) { Event::Fenced } else { Event::InDoubt }
            }
        }
    }

    /// Tries until it works; `None` if it was told to shut down.
    fn retry<T, E: std::fmt::Display>(
        &mut self,
        what: &str,
        mut attempt: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Option<T> {
        while !self.shutdown.is_cancelled() {
            match attempt(self) {
                Ok(done) => return Some(done),
                Err(error) => {
                    tracing::warn!(%error, what, "waiting for kafka");
                    self.status.update(|status| status.waiting_for = Some(format!("{what}: {error}")));
                    if !self.sleep_until(Instant::now() + RETRY_PAUSE) {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Sleeps on the monotonic clock; false if it was told to shut down.
    fn sleep_until(&self, instant: Instant) -> bool {
        loop {
            if self.shutdown.is_cancelled() {
                return false;
            }
            let left = instant.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(SLICE));
        }
    }
}

/// From now to `at`, never more than `at_most_ms`: a wall clock that jumped must not stop the beat.
fn wait_ms(at: Option<Timestamp>, at_most_ms: i64) -> Duration {
    let ms = at.map_or(0, |at| at.millis_since(now()).clamp(0, at_most_ms));
    Duration::from_millis(ms as u64)
}

fn now() -> Timestamp {
    Timestamp::from_millis(chrono::Utc::now().timestamp_millis())
}
