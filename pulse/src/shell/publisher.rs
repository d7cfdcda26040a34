//! The publisher thread: executes the blocking Kafka commands one at a time, and answers each with an event.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName, TransactionError, TransactionalProducer};
use backbeat_schemas::{BarReport, BeatFrame, wire};
use tokio::runtime::Handle;

use super::boundary_sampler::BoundarySampler;
use super::conductor::ConductorInput;
use super::events::{BoundaryStale, TransactionFailed};
use super::metrics::Metrics;
use super::status::SharedStatus;
use crate::core::{Boundary, Event, KafkaCommand, KafkaResponse};

/// The timeout of `InitTransactions` and of every commit, and the transaction timeout.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeouts of the first attempts to initialize transactions, in milliseconds; a last attempt has the whole
/// [`TRANSACTION_TIMEOUT`].
///
/// The first attempts are short, because a new producer sends its request at once, while librdkafka waits half a second
/// before it retries. It retries if Kafka is still aborting the transaction that the previous leader left open, or if
/// there is no connection to the transaction coordinator yet; both last only milliseconds.
const SHORT_ATTEMPTS_MS: [u64; 5] = [100, 100, 100, 200, 500];
/// The timeout for the first boundary of a leadership. After it, the leadership starts with the last frame's boundary
/// (docs/design.md, "Pulse").
const FIRST_BOUNDARY_TIMEOUT: Duration = Duration::from_secs(2);
const BOUNDARY_POLL: Duration = Duration::from_millis(2);

pub(crate) struct Publisher {
    broker: Broker,
    frames: LogReader<BeatFrame>,
    /// Also sees frames of open transactions.
    open_frames: LogReader<BeatFrame>,
    reports: LogReader<BarReport>,
    has_read_reports: bool,
    schema_id: u32,
    boundary_sampler: Arc<BoundarySampler>,
    producer: Option<TransactionalProducer>,
    metrics: Arc<Metrics>,
    status: SharedStatus,
}

impl Publisher {
    /// Creates the publisher; call inside a Tokio runtime.
    pub(crate) fn new(
        broker: Broker,
        registry: &Registry,
        schema_id: u32,
        boundary_sampler: Arc<BoundarySampler>,
        metrics: Arc<Metrics>,
        status: SharedStatus,
    ) -> Result<Self, ReadError> {
        let runtime = Handle::current();
        let frames = LogReader::for_random_access(&broker, registry, &runtime, TopicName::BeatFrames)?;
        let open_frames = LogReader::for_open_transactions(&broker, registry, &runtime, TopicName::BeatFrames)?;
        let reports = LogReader::for_random_access(&broker, registry, &runtime, TopicName::BarReports)?;
        let has_read_reports = false;
        Ok(Self {
            broker,
            frames,
            open_frames,
            reports,
            has_read_reports,
            schema_id,
            boundary_sampler,
            producer: None,
            metrics,
            status,
        })
    }

    /// Executes commands until the sending end of `commands` is dropped.
    pub(crate) fn run(mut self, commands: &Receiver<KafkaCommand>, conductor: &Sender<ConductorInput>) {
        while let Ok(command) = commands.recv() {
            let Some(response) = self.execute(command) else { continue };
            if conductor.send(ConductorInput::Event(Event::Kafka(response))).is_err() {
                return;
            }
        }
    }

    fn execute(&mut self, command: KafkaCommand) -> Option<KafkaResponse> {
        match command {
            KafkaCommand::ReadTail => Some(self.read_tail().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read the tail of beatframes");
                KafkaResponse::KafkaUnavailable
            })),
            KafkaCommand::InitTransactions => Some(self.init_transactions()),
            KafkaCommand::SampleBoundary => Some(self.sample_first_boundary()),
            KafkaCommand::Publish(frame) => Some(self.publish(&frame)),
            KafkaCommand::CloseProducer => {
                self.producer = None;
                None
            }
        }
    }

    fn read_tail(&mut self) -> Result<KafkaResponse, ReadError> {
        let frame = self.frames.last()?.map(|entry| Box::new(entry.record));
        let open_frame =
            self.open_frames.read_open(|| self.frames.end_offset())?.pop().map(|entry| Box::new(entry.record));
        if let (Some(frame), Some(_)) = (&open_frame, &self.producer) {
            tracing::warn!(beat = %frame.beat_index, "kafka has ended a transaction without a marker; the next beat commits it, too");
        }
        let mut newest_reported = None;
        if frame.is_none() || !self.has_read_reports {
            // A report is made once its window's closing beat was published.
            newest_reported = self.reports.last()?.map(|entry| entry.record.to_beat.plus(1));
            self.has_read_reports = true;
        }
        self.frames.pause()?;
        self.reports.pause()?;
        if let Some(frame) = &frame {
            self.boundary_sampler.advance_to(Boundary::new(frame.claim_offsets.clone()));
        }
        Ok(KafkaResponse::Tail { frame, open_frame, newest_reported })
    }

    fn init_transactions(&mut self) -> KafkaResponse {
        // Two producers with one transactional id would fence each other.
        self.producer = None;
        let id = self.broker.topics().pulse_transactional_id();
        let initialize = |timeout| TransactionalProducer::open(&self.broker, &id, TRANSACTION_TIMEOUT, timeout);
        let attempts = SHORT_ATTEMPTS_MS.iter().map(|millis| initialize(Duration::from_millis(*millis)));
        let mut decisive = attempts.filter(|outcome| matches!(outcome, Ok(_) | Err(TransactionError::Fenced(_))));
        match decisive.next().unwrap_or_else(|| initialize(TRANSACTION_TIMEOUT)) {
            Ok(producer) => {
                self.producer = Some(producer);
                KafkaResponse::TransactionsInitialized
            }
            Err(error) => {
                TransactionFailed { error: &error, beat: None }.emit(&self.metrics);
                if matches!(error, TransactionError::Fenced(_)) {
                    KafkaResponse::Fenced
                } else {
                    KafkaResponse::KafkaUnavailable
                }
            }
        }
    }

    fn sample_first_boundary(&self) -> KafkaResponse {
        let requested = Instant::now();
        self.boundary_sampler.refresh();
        while requested.elapsed() < FIRST_BOUNDARY_TIMEOUT && !self.boundary_sampler.is_fresh(requested) {
            std::thread::sleep(BOUNDARY_POLL);
        }
        if !self.boundary_sampler.is_fresh(requested) {
            BoundaryStale { is_first: true }.emit(&self.metrics);
        }
        KafkaResponse::BoundarySampled
    }

    fn publish(&mut self, frame: &BeatFrame) -> KafkaResponse {
        let started = Instant::now();
        match self.send(frame) {
            Ok(()) => {
                self.metrics.record_beat(frame, started.elapsed());
                self.status.update(|status| status.record_beat(frame));
                tracing::debug!(beat = %frame.beat_index, window_id = %frame.window_id, "published a beat");
                KafkaResponse::Committed
            }
            Err(error) => {
                TransactionFailed { error: &error, beat: Some(frame.beat_index) }.emit(&self.metrics);
                if matches!(error, TransactionError::Fenced(_)) {
                    KafkaResponse::Fenced
                } else {
                    KafkaResponse::InDoubt
                }
            }
        }
    }

    fn send(&mut self, frame: &BeatFrame) -> Result<(), TransactionError> {
        let topic = self.broker.topics().name(TopicName::BeatFrames);
        let value = wire(self.schema_id, frame);
        let producer = self.producer.as_mut().expect("the core publishes only after transactions are initialized");
        let mut transaction = producer.begin()?;
        transaction.send(&topic, &frame.cluster_id, &value, frame.emitted_at.millis())?;
        transaction.commit()
    }
}
