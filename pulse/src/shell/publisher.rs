//! The thread that talks to Kafka: one blocking operation at a time, each answered by an event.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName, TransactionError, TransactionalProducer};
use backbeat_schemas::{BarReport, BeatFrame, wire};
use tokio::runtime::Handle;

use super::boundary_sampler::BoundarySampler;
use super::conductor::ConductorInput;
use super::metrics::Metrics;
use super::status::SharedStatus;
use crate::core::{Boundary, Command, Event};

/// Bounds opening the transactional id and every commit.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long attempts to open the transactional id may take, in milliseconds; the last has the whole time.
/// librdkafka waits for half a second where Kafka was still settling the transaction that a leader left behind,
/// which takes it 2 ms, or where the coordinator's connection was not up when it looked; a new producer asks
/// at once.
const QUICK_ATTEMPTS_MS: [u64; 5] = [100, 100, 100, 200, 500];
/// A first boundary that cannot be sampled in this time stays the last frame's (DESIGN, "Pulse").
const FIRST_BOUNDARY_WITHIN: Duration = Duration::from_secs(2);
const BOUNDARY_POLL: Duration = Duration::from_millis(2);

pub(crate) struct Publisher {
    broker: Broker,
    frames: LogReader<BeatFrame>,
    reports: LogReader<BarReport>,
    schema_id: u32,
    boundary_sampler: Arc<BoundarySampler>,
    producer: Option<TransactionalProducer>,
    metrics: Arc<Metrics>,
    status: SharedStatus,
}

impl Publisher {
    /// Call inside a runtime.
    pub(crate) fn new(
        broker: Broker,
        registry: &Registry,
        schema_id: u32,
        boundary_sampler: Arc<BoundarySampler>,
        metrics: Arc<Metrics>,
        status: SharedStatus,
    ) -> Result<Self, ReadError> {
        let runtime = Handle::current();
        let frames = LogReader::for_searches(&broker, registry, &runtime, TopicName::BeatFrames)?;
        let reports = LogReader::for_searches(&broker, registry, &runtime, TopicName::BarReports)?;
        Ok(Self { broker, frames, reports, schema_id, boundary_sampler, producer: None, metrics, status })
    }

    /// Works until the other end of `commands` is gone.
    pub(crate) fn run(mut self, commands: &Receiver<Command>, answers: &Sender<ConductorInput>) {
        while let Ok(command) = commands.recv() {
            let Some(event) = self.perform(command) else { continue };
            if answers.send(ConductorInput::Event(event)).is_err() {
                return;
            }
        }
    }

    fn perform(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::ReadTail => Some(self.read_tail().unwrap_or_else(|error| {
                tracing::warn!(%error, "the last beat cannot be read");
                Event::KafkaUnavailable
            })),
            Command::InitTransactions => Some(self.init_transactions()),
            Command::SampleBoundary => Some(self.sample_first_boundary()),
            Command::Publish(frame) => Some(self.publish(&frame)),
            Command::Close => {
                self.producer = None;
                None
            }
            other => unreachable!("{other:?} is not Kafka's"),
        }
    }

    fn read_tail(&mut self) -> Result<Event, ReadError> {
        let frame = self.frames.last()?.map(|entry| Box::new(entry.record));
        let no_reports = frame.is_some() || self.reports.last()?.is_none();
        self.frames.pause()?;
        self.reports.pause()?;
        if let Some(frame) = &frame {
            self.boundary_sampler.at_least(Boundary::new(frame.claim_offsets.clone()));
        }
        Ok(Event::Tail { frame, no_reports })
    }

    fn init_transactions(&mut self) -> Event {
        // Two with one id would fence each other.
        self.producer = None;
        let id = self.broker.topics().pulse_transactional_id();
        let open = |patience| TransactionalProducer::open(&self.broker, &id, TRANSACTION_TIMEOUT, patience);
        let quick = QUICK_ATTEMPTS_MS.iter().map(|millis| open(Duration::from_millis(*millis)));
        let mut settled = quick.filter(|opened| matches!(opened, Ok(_) | Err(TransactionError::Fenced(_))));
        match settled.next().unwrap_or_else(|| open(TRANSACTION_TIMEOUT)) {
            Ok(producer) => {
                self.producer = Some(producer);
                Event::TransactionsInitialized
            }
            Err(error) => {
                self.metrics.transaction_failed();
                tracing::warn!(%error, "the transactional id cannot be opened");
                if matches!(error, TransactionError::Fenced(_)) { Event::Fenced } else { Event::KafkaUnavailable }
            }
        }
    }

    fn sample_first_boundary(&self) -> Event {
        let asked = Instant::now();
        self.boundary_sampler.refresh();
        while asked.elapsed() < FIRST_BOUNDARY_WITHIN && !self.boundary_sampler.is_fresh(asked) {
            std::thread::sleep(BOUNDARY_POLL);
        }
        if !self.boundary_sampler.is_fresh(asked) {
            self.metrics.stale_boundary();
            tracing::warn!("no first boundary within 2 s: starting from the last frame's");
        }
        Event::BoundarySampled
    }

    fn publish(&mut self, frame: &BeatFrame) -> Event {
        let began = Instant::now();
        match self.send(frame) {
            Ok(()) => {
                self.metrics.beat(frame, began.elapsed());
                self.status.update(|status| status.beat(frame));
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

    fn send(&mut self, frame: &BeatFrame) -> Result<(), TransactionError> {
        let topic = self.broker.topics().name(TopicName::BeatFrames);
        let value = wire(self.schema_id, frame);
        let producer = self.producer.as_mut().expect("the core publishes only behind its own fence");
        let mut transaction = producer.begin()?;
        transaction.send(&topic, &frame.cluster_id, &value, frame.emitted_at.millis())?;
        transaction.commit()
    }
}
