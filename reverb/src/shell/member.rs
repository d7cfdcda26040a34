//! The member's loop: reads claims and sends partials, on one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use backbeat_broker::{BatchItem, ClientWatch, Entry, LogReader, RecordQueue, Sender, TopicName, list_offsets};
use backbeat_schemas::{BarPartial, BarReport, BeatFrame, BeatIndex, PartialBody, Record};
use backbeat_service::Shutdown;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::args::Args;
use super::claim_decoder::ClaimDecoder;
use super::events::AssignmentChanged;
use super::frame_table::{FrameTable, TableError};
use super::group::{AssignmentChange, Group, GroupConsumer, commit_offsets};
use super::merge_context::{MergeContext, Reached};
use super::merge_thread::MergeThread;
use super::metrics::Metrics;
use super::owned_partition::{OwnedPartition, PartialProducer};
use super::share_records::ShareRecordProducer;
use super::start_positions::StartPositions;
use super::status::{SharedStatus, partition_status, share_status};
use super::timeouts::QUERY_TIMEOUT;
use crate::core::{
    CommittedOffset, Lag, NotReady, Partition, PartitionAggregator, PartitionProgress, STALLED_AFTER, not_ready,
};
use backbeat_http_api::reverb::UnfinishedWindow;

/// The maximum number of records polled from a topic before the loop's other work continues.
const MAX_RECORDS_PER_POLL: usize = 2_000;
/// The same in bytes of claims: whoever writes them can make large ones.
const MAX_BYTES_PER_POLL: usize = 4 * 1024 * 1024;
/// The maximum number of claims taken at once.
const MAX_BATCH: usize = 1_000;
/// Longest wait of a poll without records, and so the delay until a new frame is noticed.
const POLL: Duration = Duration::from_millis(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which start positions of new partitions are looked for.
const RESOLVE_INTERVAL: Duration = Duration::from_millis(50);
/// Bars that the table of frames keeps before the oldest beat that is needed: partitions of other members, which this one
/// may get, were committed there.
const KEPT_BARS: i64 = 16;
/// Time for librdkafka to answer a seek. The next turn of the loop tries again.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest wait for a response that is not needed.
const WAKE_TIMEOUT: Duration = Duration::from_millis(10);
/// Reports read at the start, for `/api/v1/windows`.
const KNOWN_REPORTS: i64 = 200;
/// Time at shutdown for unacknowledged partials and dead letters.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Time at shutdown for leaving the group.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// One member of reverb's group.
pub(crate) struct Member {
    consumer: Arc<GroupConsumer>,
    /// The claims of the partitions that were sought to their start positions.
    claims: RecordQueue<Group>,
    watch: ClientWatch,
    group: Arc<Group>,
    topic: String,
    table: FrameTable,
    partials: LogReader<BarPartial>,
    reports: LogReader<BarReport>,
    decoder: ClaimDecoder,
    producer: PartialProducer,
    merge_context: MergeContext,
    bar_length: BarLengthGuard,
    metrics: Arc<Metrics>,
    status: SharedStatus,
    partitions: BTreeMap<i32, OwnedPartition>,
    start_positions: StartPositions,
    /// By partition, the offset whose commit was requested last and has not failed.
    commit_requested: BTreeMap<i32, CommittedOffset>,
    /// The newest frame that was checked and measured.
    checked: Option<BeatIndex>,
    /// How far the aggregators have come, for the merge.
    reached: Reached,
}

/// Stops the member when a window opens, after the start, with another length than `--expect-bar-length`.
struct BarLengthGuard {
    expected: Option<u16>,
    /// The newest beat at the start. Windows opened up to this beat are not checked.
    after: Option<BeatIndex>,
}

impl BarLengthGuard {
    fn check(&self, frame: &BeatFrame) -> anyhow::Result<()> {
        let opened_since = frame.downbeat && self.after.is_none_or(|after| frame.beat_index > after);
        match self.expected {
            Some(expected) if opened_since && frame.bar_length != expected => bail!(
                "window {} opened at beat {} with {} beats, but --expect-bar-length is {expected}",
                frame.window_id,
                frame.beat_index,
                frame.bar_length
            ),
            _ => Ok(()),
        }
    }
}

/// The reason why a member ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberExit {
    /// The process is shutting down.
    Shutdown,
    /// The member's consumer has lost all its brokers: another member replaces this one, in the same process.
    Lost,
    /// The member's consumer no longer fetches a partition although Kafka answers: another member replaces this one.
    Stalled,
}

impl Member {
    /// Creates the member `name`, with the clients that it needs. It joins the group when it runs.
    pub(crate) fn new(args: &Args, name: &str, merge_context: &MergeContext) -> anyhow::Result<Self> {
        let MergeContext { broker, registry, runtime, metrics, status, .. } = merge_context;
        let mut settings = broker.group_member(args.group_protocol, Duration::from_secs(args.session_timeout));
        // Statistics matter only if control records end a partition, so they may be a second old.
        settings.set("statistics.interval.ms", "1000");
        let consumer: GroupConsumer = settings.create_with_context(Group::default())?;
        let (group, consumer) = (Arc::clone(consumer.context()), Arc::new(consumer));
        let topic = broker.topics().name(TopicName::StatusClaims);
        let sender = Sender::new(broker, TopicName::BarPartials, None)?;
        Ok(Self {
            watch: ClientWatch::consumer(broker, &topic, &consumer),
            claims: RecordQueue::new(&consumer, MAX_BATCH),
            consumer,
            group,
            topic,
            table: FrameTable::new(broker, registry, runtime, args.cluster.clone())?,
            partials: LogReader::new(broker, registry, runtime, TopicName::BarPartials)?,
            reports: LogReader::new(broker, registry, runtime, TopicName::BarReports)?,
            decoder: ClaimDecoder::new(merge_context.claim_schemas.clone()),
            producer: PartialProducer {
                share_records: ShareRecordProducer {
                    sender: sender.clone(),
                    topics: broker.topics().clone(),
                    roster_schema: merge_context.schemas.roster,
                },
                sender,
                topics: broker.topics().clone(),
                partial_schema: merge_context.schemas.partial,
                member: name.to_owned(),
                counter: 0,
                partial_deliveries: Arc::default(),
                started_at: Instant::now(),
            },
            merge_context: merge_context.clone(),
            bar_length: BarLengthGuard { expected: args.expect_bar_length, after: None },
            metrics: Arc::clone(metrics),
            status: status.clone(),
            partitions: BTreeMap::new(),
            start_positions: StartPositions::default(),
            commit_requested: BTreeMap::new(),
            checked: None,
            reached: Reached::default(),
        })
    }

    /// Runs until `shutdown`, until its consumer is lost or stalled, or until an error that retrying cannot solve, such as an
    /// inconsistent log. Blocks.
    pub(crate) fn run(mut self, shutdown: &Shutdown) -> anyhow::Result<MemberExit> {
        let merge_thread = MergeThread::start(
            self.merge_context.clone(),
            self.producer.member.clone(),
            self.producer.share_records.clone(),
            self.reached.clone(),
            shutdown.clone(),
        )?;
        let outcome = self.work(&merge_thread, shutdown);
        if matches!(outcome, Ok(MemberExit::Lost)) {
            // Nothing can be committed or left with this consumer; the group notices by its session timeout.
            self.group.abandon();
            return outcome;
        }
        if let Err(error) = self.producer.sender.flush(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "cannot send all partials and dead letters before the stop; the next owner sends them again");
        }
        drop(merge_thread);
        if let Err(error) = commit_offsets(&self.consumer, &self.topic, &self.group.committable(), CommitMode::Sync) {
            tracing::warn!(%error, "cannot commit the last offsets; the next owner reads some claims again");
        }
        self.leave();
        outcome
    }

    /// Leaves the group before the consumer is dropped: librdkafka aborts the process if an assignment reaches a
    /// consumer that is being closed (`assert: !rd_kafka_assignment_in_progress`, its issue 4027).
    fn leave(&self) {
        self.consumer.unsubscribe();
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        while Instant::now() < deadline {
            let is_quiet = self.consumer.poll(POLL).is_none();
            if is_quiet && self.consumer.assignment().is_ok_and(|assignment| assignment.count() == 0) {
                return;
            }
        }
    }

    fn work(&mut self, merge_thread: &MergeThread, shutdown: &Shutdown) -> anyhow::Result<MemberExit> {
        while let Err(error) = self.init_readers() {
            tracing::warn!(%error, "cannot read the topics yet; waiting for kafka and the schema registry");
            if shutdown.is_cancelled() {
                return Ok(MemberExit::Shutdown);
            }
            std::thread::sleep(RETRY_PAUSE);
        }
        self.consumer.subscribe(&[&self.topic])?;
        self.status.update(|member| member.waiting_for = Some(NotReady::Joining.to_string()));
        let (mut commit_at, mut status_at, mut resolve_at) = (Instant::now(), Instant::now(), Instant::now());
        while !shutdown.is_cancelled() {
            if self.watch.is_lost() {
                return Ok(MemberExit::Lost);
            }
            let now = Instant::now();
            // Before claims are polled, because this may replace the table that their outputs refer to.
            if !self.start_positions.is_empty() && now >= resolve_at {
                self.start_aggregators()?;
                resolve_at = now + RESOLVE_INTERVAL;
            }
            self.poll_consumer();
            self.apply_assignment_changes();
            self.poll_claims();
            self.poll_frames()?;
            self.advance();
            self.poll_partials();
            self.poll_reports();
            self.reached.set(self.reached_beat());
            if let Some(error) = merge_thread.failure() {
                return Err(error);
            }
            if now >= commit_at {
                self.retry_and_commit()?;
                if self.is_stalled() {
                    return Ok(MemberExit::Stalled);
                }
                commit_at = now + COMMIT_INTERVAL;
            }
            if now >= status_at {
                self.publish_status();
                status_at = now + STATUS_INTERVAL;
            }
        }
        Ok(MemberExit::Shutdown)
    }

    /// Positions the readers before the member sends or processes anything.
    fn init_readers(&mut self) -> Result<(), TableError> {
        // `barpartials` is read from before the first partial that this member can send.
        let end = self.partials.end_offset()?;
        self.partials.seek(end)?;
        let reports = self.reports.end_offset()?;
        let log_start = self.reports.log_start()?;
        self.reports.seek((reports - KNOWN_REPORTS).max(log_start))?;
        self.bar_length.after = self.table.newest_frame()?.map(|frame| frame.beat_index);
        Ok(())
    }

    /// Serves one event of the group's consumer: a rebalance, a commit, statistics or an error. Claims come by a queue of
    /// their own.
    fn poll_consumer(&mut self) {
        match self.consumer.poll(Duration::ZERO) {
            None => {}
            Some(Err(error)) => tracing::warn!(%error, "cannot read claims"),
            Some(Ok(message)) => {
                if let Some(partition) = self.partitions.get_mut(&message.partition()) {
                    partition.fetch_again();
                }
            }
        }
    }

    fn poll_claims(&mut self) {
        let (mut polled, mut bytes) = (0, 0);
        let mut timeout = POLL;
        while polled < MAX_RECORDS_PER_POLL && bytes < MAX_BYTES_PER_POLL {
            let batch = self.claims.take(timeout);
            timeout = Duration::ZERO;
            if batch.is_empty() {
                break;
            }
            for item in batch.iter() {
                let claim = match item {
                    BatchItem::Record(claim) => claim,
                    BatchItem::Failed { partition, reason } => {
                        tracing::warn!(partition, error = %reason, "cannot read claims");
                        if let Some(partition) = self.partitions.get_mut(&partition) {
                            partition.fetch_again();
                        }
                        continue;
                    }
                    BatchItem::Unreadable { partition, offset, reason } => {
                        tracing::error!(partition, offset, error = %reason, "skipping records that cannot be read");
                        continue;
                    }
                };
                polled += 1;
                bytes += claim.key.map_or(0, <[u8]>::len) + claim.value.map_or(0, <[u8]>::len);
                let Some(partition) = self.partitions.get_mut(&claim.partition) else { continue };
                let log_start = || fetch_log_start(&self.consumer, &self.topic, claim.partition);
                let frames = self.table.frames();
                partition.process(claim.offset, claim.key, claim.value, frames, &mut self.decoder, &log_start);
            }
        }
        self.metrics.record_claims_processed(polled as u64);
    }

    fn apply_assignment_changes(&mut self) {
        for change in self.group.drain_changes() {
            match &change {
                AssignmentChange::Revoked(revoked) => {
                    for partition in revoked {
                        self.partitions.remove(partition);
                        self.start_positions.remove(*partition);
                        self.commit_requested.remove(partition);
                    }
                }
                AssignmentChange::Assigned(assigned) => {
                    for partition in assigned {
                        self.partitions.insert(*partition, OwnedPartition::new(*partition));
                        self.start_positions.add(*partition);
                    }
                }
            }
            AssignmentChanged { change: &change, partitions: self.partitions.len() }.emit(&self.metrics);
        }
        if self.partitions.is_empty() {
            self.table.clear();
        }
    }

    /// Starts the aggregators of new partitions whose start positions can be found.
    fn start_aggregators(&mut self) -> anyhow::Result<()> {
        if let Err(error) = self.start_positions.fetch_committed(&self.consumer, &self.topic) {
            tracing::warn!(%error, "cannot fetch committed offsets");
            return Ok(());
        }
        let aggregators = match self.start_positions.resolve(&mut self.table) {
            Ok(aggregators) => aggregators,
            Err(TableError::Read(error)) => {
                tracing::warn!(%error, "cannot find the start positions in beatframes");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for (id, aggregator) in aggregators {
            if let Some(partition) = self.partitions.get_mut(&id) {
                partition.start(aggregator);
            }
        }
        Ok(())
    }

    fn poll_frames(&mut self) -> anyhow::Result<()> {
        let was_current = self.table.is_caught_up();
        match self.table.poll(Duration::ZERO) {
            Ok(()) => {}
            Err(TableError::Read(error)) => tracing::warn!(%error, "cannot read frames"),
            Err(error) => return Err(error.into()),
        }
        let frames = self.table.frames();
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        let start = self.checked.map_or(first.beat_index, |checked| checked.plus(1).max(first.beat_index));
        for frame in frames.range(start, last.beat_index.plus(1)) {
            self.bar_length.check(frame)?;
            // Delivery is not measured on frames that were read to catch up.
            if let Some(delivered_after_ms) = was_current.then(|| self.status.record_frame(frame)).flatten() {
                self.metrics.record_beat_delivery(delivered_after_ms);
            }
        }
        self.checked = Some(last.beat_index);
        Ok(())
    }

    fn advance(&mut self) {
        let mut resumed = Vec::new();
        for partition in self.partitions.values_mut() {
            let id = partition.id;
            if let Some(offset) = partition.seek_offset() {
                let sought = self.consumer.seek(&self.topic, id, Offset::Offset(offset), SEEK_TIMEOUT);
                let taken =
                    sought.map_err(anyhow::Error::from).and_then(|()| Ok(self.claims.take_over(&self.topic, id)?));
                match taken {
                    Ok(()) => {
                        self.group.forget_end(id);
                        partition.mark_sought();
                    }
                    Err(error) => tracing::warn!(%error, partition = id, offset, "cannot seek to the start position"),
                }
            }
            let log_start = || fetch_log_start(&self.consumer, &self.topic, id);
            partition.process_deferred(self.table.frames(), &mut self.decoder, &log_start);
            if let (Some((drained_end, log_start)), false) = (self.group.drained_end(partition.id), partition.paused) {
                partition.skip_to(drained_end, log_start);
            }
            partition.advance(self.table.frames(), &mut self.producer, &self.metrics, &self.status);
            let must_pause = partition.must_pause();
            if must_pause != partition.paused {
                let mut list = TopicPartitionList::new();
                list.add_partition(&self.topic, partition.id);
                let done = if must_pause { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
                match done {
                    Ok(()) => {
                        partition.paused = must_pause;
                        if !must_pause {
                            resumed.push(id);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, partition = partition.id, must_pause, "cannot pause or resume a partition");
                    }
                }
            }
            if let Some(position) = partition.core.as_ref().and_then(Partition::committable) {
                self.group.set_committable(partition.id, position);
            }
        }
        if !resumed.is_empty() {
            self.wake_fetcher(&resumed);
        }
    }

    /// Makes librdkafka fetch partitions that were resumed. It does not wake the thread of their broker, which sleeps for up to
    /// a second while it has nothing else to fetch (librdkafka 2.12.1, `rd_kafka_toppar_pause_resume`). A request does, so
    /// nobody waits for its response.
    fn wake_fetcher(&self, resumed: &[i32]) {
        let response =
            list_offsets(&self.consumer, &self.topic, resumed.iter().copied(), Offset::Beginning, WAKE_TIMEOUT);
        if let Err(error) = response {
            tracing::debug!(%error, "the request that wakes librdkafka's fetcher was not answered");
        }
    }

    fn poll_partials(&mut self) {
        for entry in poll_all(&mut self.partials, "partials") {
            let (from, id) = (entry.record.from_beat, entry.record.window_id);
            match entry.record.into_body() {
                Some(PartialBody::Partial(partial)) => {
                    self.status.record_partial(partial.partition, &partial.member, from);
                    if partial.member == self.producer.member
                        && let Some(core) = self.core_mut(partial.partition)
                    {
                        core.mark_observed(from, partial.counter);
                    }
                }
                Some(PartialBody::Done(done)) => {
                    self.partitions.values_mut().filter_map(|p| p.core.as_mut()).for_each(|core| core.mark_done(from));
                    self.status.record_done(from, id, done.verdict);
                }
                Some(PartialBody::Merging(_)) | None => {}
            }
        }
    }

    fn poll_reports(&mut self) {
        for entry in poll_all(&mut self.reports, "reports") {
            self.metrics.set_last_report(&entry.record);
            self.status.record_report(entry.record);
        }
    }

    fn core_mut(&mut self, partition: i32) -> Option<&mut Partition> {
        self.partitions.get_mut(&partition)?.core.as_mut()
    }

    /// Returns the beat up to whose boundary all aggregators have come. A member without any is never behind.
    fn reached_beat(&self) -> BeatIndex {
        let cores = self.partitions.values().filter_map(|partition| partition.core.as_ref());
        cores.map(|core| core.aggregator().arrival_beat()).min().unwrap_or(BeatIndex::MAX)
    }

    fn retry_and_commit(&mut self) -> anyhow::Result<()> {
        if let Some(reason) = self.producer.sender.fatal_error() {
            // Nothing can be sent any more. A restart continues at the committed offsets.
            bail!("fatal error of the producer of partials and dead letters: {reason}");
        }
        self.partitions.values_mut().for_each(|partition| partition.retry(&mut self.producer, &self.metrics));
        if self.group.take_commit_failure() {
            self.commit_requested.clear();
        }
        let mut positions = self.group.committable();
        positions.retain(|partition, position| self.commit_requested.get(partition) != Some(position));
        match commit_offsets(&self.consumer, &self.topic, &positions, CommitMode::Async) {
            Ok(()) => self.commit_requested.extend(positions),
            Err(error) => tracing::warn!(%error, "cannot commit offsets"),
        }
        let oldest = self
            .partitions
            .values()
            .filter_map(|partition| Some(partition.core.as_ref()?.aggregator().oldest_beat()))
            .min();
        let bar_length = self.table.frames().last().map_or(0, |frame| i64::from(frame.bar_length));
        let kept = |oldest: BeatIndex| BeatIndex::try_from(oldest.get() - KEPT_BARS * bar_length).ok();
        if let (Some(kept), true) = (oldest.and_then(kept), self.start_positions.is_empty()) {
            self.table.drop_before(kept);
        }
        Ok(())
    }

    /// Returns true if a partition does not advance although there are records to read and Kafka answers.
    fn is_stalled(&mut self) -> bool {
        let newest = self.table.frames().last();
        let now = self.producer.started_at.elapsed();
        for partition in self.partitions.values_mut() {
            let Some(core) = &partition.core else { continue };
            let boundary = newest.map(|frame| frame.boundary(partition.id)).filter(|_| !partition.paused);
            let next_offset = core.aggregator().next_offset();
            if partition.stall_detector.observe(next_offset, boundary, now)
                && self.consumer.fetch_watermarks(&self.topic, partition.id, SEEK_TIMEOUT).is_ok()
            {
                tracing::warn!(
                    partition = partition.id,
                    next_offset,
                    boundary,
                    "a partition was not fetched for {STALLED_AFTER:?}, although kafka answers"
                );
                return true;
            }
        }
        false
    }

    fn publish_status(&mut self) {
        let frames = self.table.frames();
        let (mut progress, mut partitions) = (Vec::new(), Vec::new());
        for owned in self.partitions.values() {
            let aggregator = owned.core.as_ref().map(Partition::aggregator);
            let position = aggregator.map(PartitionAggregator::next_offset);
            for (window, claims) in aggregator.into_iter().flat_map(PartitionAggregator::open_windows) {
                self.status.set_share(window, owned.id, share_status(frames, window, owned.id, position, claims));
            }
            let committable = owned.core.as_ref().and_then(Partition::committable);
            let of_partition = PartitionProgress {
                partition: owned.id,
                position,
                end: self.group.last_stable_offset(owned.id),
                beat: aggregator.map(PartitionAggregator::arrival_beat),
                oldest_open: committable.and_then(|offset| BeatIndex::try_from(offset.downbeat?).ok()),
            };
            let pending_claims = aggregator.map_or(0, PartitionAggregator::pending);
            partitions.push(partition_status(&of_partition, pending_claims));
            progress.push(of_partition);
        }
        let lag = Lag::new(frames, &progress);
        let waiting_for = not_ready(
            self.group.has_joined(),
            &progress,
            frames,
            self.table.is_caught_up(),
            self.producer.started_at.elapsed(),
        );
        let pending_claims = partitions.iter().map(|partition| partition.pending_claims).sum();
        self.metrics.set_lag(&lag, pending_claims);
        self.metrics.set_slos(&self.status.slos());
        let newest_beat = frames.last().map(|frame| frame.beat_index);
        self.status.update(|member| {
            member.newest_beat = newest_beat;
            member.lag_beats = lag.beats;
            member.lag_records = lag.claims;
            member.oldest_open_window =
                lag.oldest_open.map(|(from_beat, age_beats)| UnfinishedWindow { from_beat, age_beats });
            member.partitions = partitions;
            member.waiting_for = waiting_for.map(|reason| reason.to_string());
        });
    }
}

/// Returns the records that are available now, at most [`MAX_RECORDS_PER_POLL`].
fn poll_all<R: Record + 'static>(reader: &mut LogReader<R>, kind: &str) -> Vec<Entry<R>> {
    let mut entries = Vec::new();
    while entries.len() < MAX_RECORDS_PER_POLL {
        match reader.poll(Duration::ZERO) {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "cannot read {kind}");
                break;
            }
        }
    }
    entries
}

/// Fetches the log start offset of `partition`; `None` if Kafka does not answer.
fn fetch_log_start(consumer: &GroupConsumer, topic: &str, partition: i32) -> Option<i64> {
    match consumer.fetch_watermarks(topic, partition, QUERY_TIMEOUT) {
        Ok((log_start, _)) => Some(log_start),
        Err(error) => {
            tracing::warn!(%error, partition, "cannot fetch the log start offset, which shows whether retention deleted the missing offsets");
            None
        }
    }
}
