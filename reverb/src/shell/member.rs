//! The member's loop: claims in, partials out, one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use backbeat_broker::LogReader;
use backbeat_schemas::{BarPartial, BeatFrame, BeatIndex, PartialBody};
use backbeat_service::Shutdown;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::claim_decoder::ClaimDecoder;
use super::frame_table::{FrameTable, TableError};
use super::group::{Change, GroupConsumer, Position, SharedGroup, commit};
use super::merger::{MergeEnd, MergeSettings, MergeThread};
use super::metrics::Metrics;
use super::owned_partition::{Outlet, OwnedPartition};
use super::status::{PartitionStatus, SharedStatus};
use crate::core::Fold;

/// Records taken before everything else is looked at.
const BATCH: usize = 2_000;
/// How long a poll waits where there is nothing to do: what a frame waits at most to be noticed.
const POLL: Duration = Duration::from_millis(5);
const COMMIT_EVERY: Duration = Duration::from_secs(1);
const STATUS_EVERY: Duration = Duration::from_millis(250);
/// How often it is tried to find where a new partition begins.
const LOCATE_EVERY: Duration = Duration::from_millis(200);
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Partials and dead letters that are on their way at shutdown get this long.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// One member of reverb's group.
pub(crate) struct Member {
    pub(crate) consumer: GroupConsumer,
    pub(crate) group: SharedGroup,
    pub(crate) topic: String,
    pub(crate) table: FrameTable,
    pub(crate) partials: LogReader<BarPartial>,
    pub(crate) decoder: ClaimDecoder,
    pub(crate) outlet: Outlet,
    pub(crate) merge: MergeSettings,
    pub(crate) bar_length: BarLengthGuard,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: SharedStatus,
    pub(crate) partitions: BTreeMap<i32, OwnedPartition>,
    /// Where the partitions that have no fold yet begin.
    pub(crate) locating: BTreeMap<i32, Beginning>,
    /// The start of the log of each partition of the topic, read at the last assignment.
    pub(crate) lows: BTreeMap<i32, i64>,
    pub(crate) committed: BTreeMap<i32, Position>,
}

/// What is known of where a fold begins.
#[derive(Debug, Clone)]
pub(crate) struct Beginning {
    offset: i64,
    /// The downbeat beside the committed offset: to be trusted if its line is that offset.
    downbeat: Option<i64>,
    /// The beat from which the next downbeat is the beginning.
    beat: Option<BeatIndex>,
}

/// Refuses windows of another length, opened after the start.
pub(crate) struct BarLengthGuard {
    pub(crate) expected: Option<u16>,
    /// The newest beat at the start.
    pub(crate) after: Option<BeatIndex>,
}

impl BarLengthGuard {
    fn check(&self, frame: &BeatFrame) -> anyhow::Result<()> {
        let opened_since = frame.downbeat && self.after.is_none_or(|after| frame.beat_index > after);
        match self.expected {
            Some(expected) if opened_since && frame.bar_length != expected => bail!(
                "window {} opened at beat {} with {} beats, but --bar-length says {expected}",
                frame.window_id,
                frame.beat_index,
                frame.bar_length
            ),
            _ => Ok(()),
        }
    }
}

impl Member {
    /// Works until `shutdown`, or until the log is wrong. Blocks.
    pub(crate) fn run(mut self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let outcome = self.work(shutdown);
        if let Err(error) = self.outlet.sender.flush(FLUSH_WITHIN) {
            tracing::warn!(%error, "not everything was sent; a successor sends it again");
        }
        self.group.stop_merge();
        if let Err(error) = commit(&self.consumer, &self.topic, &self.group.positions(), CommitMode::Sync) {
            tracing::warn!(%error, "the last positions were not committed; a successor reads a little more");
        }
        outcome
    }

    fn work(&mut self, shutdown: &Shutdown) -> anyhow::Result<()> {
        // The tail is read from before the first partial of ours can be there.
        let end = self.partials.end()?;
        self.partials.seek(end)?;
        self.consumer.subscribe(&[&self.topic])?;
        self.status.update(|member| member.waiting_for = Some("partitions of statusclaims".into()));
        let (mut commit_at, mut status_at, mut locate_at) = (Instant::now(), Instant::now(), Instant::now());
        while !shutdown.is_cancelled() {
            self.take_claims();
            self.take_changes()?;
            self.follow_frames()?;
            let now = Instant::now();
            if !self.locating.is_empty() && now >= locate_at {
                self.locate()?;
                locate_at = now + LOCATE_EVERY;
            }
            self.advance();
            self.follow_partials();
            self.look_after_merge()?;
            if now >= commit_at {
                self.commit();
                commit_at = now + COMMIT_EVERY;
            }
            if now >= status_at {
                self.publish_status();
                status_at = now + STATUS_EVERY;
            }
        }
        Ok(())
    }

    fn take_claims(&mut self) {
        let newest = self.table.frames().last().map(|frame| frame.beat_index);
        let mut taken = 0;
        let mut timeout = POLL;
        while taken < BATCH {
            let message = match self.consumer.poll(timeout) {
                None => break,
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Err(error)) => {
                    tracing::warn!(%error, "reading statusclaims");
                    break;
                }
                Some(Ok(message)) => message,
            };
            timeout = Duration::ZERO;
            taken += 1;
            let Some(partition) = self.partitions.get_mut(&message.partition()) else {
                continue;
            };
            let gap = partition.fold.as_ref().is_some_and(|fold| message.offset() > fold.next_offset());
            if gap && let Ok((low, _)) = self.consumer.fetch_watermarks(&self.topic, partition.id, QUERY_TIMEOUT) {
                // Control records leave gaps, and so does retention.
                let fold = partition.fold.as_mut().expect("it was just looked at");
                fold.reached(fold.next_offset(), low);
            }
            partition.take(message.offset(), message.key(), message.payload(), newest, &mut self.decoder);
        }
        self.metrics.processed(taken as u64);
    }

    fn take_changes(&mut self) -> anyhow::Result<()> {
        for change in self.group.take_changes() {
            match change {
                Change::Revoked(revoked) => {
                    for partition in &revoked {
                        self.partitions.remove(partition);
                        self.locating.remove(partition);
                        self.committed.remove(partition);
                    }
                }
                Change::Assigned(assigned) => {
                    self.begin(&assigned);
                    if assigned.contains(&0) {
                        self.group.set_merge(MergeThread::start(self.merge.clone())?);
                    }
                }
            }
            self.metrics.rebalanced(self.partitions.len());
        }
        Ok(())
    }

    /// Notes what was committed for new partitions.
    fn begin(&mut self, assigned: &[i32]) {
        for partition in assigned {
            self.partitions.insert(*partition, OwnedPartition::new(*partition));
            // Until it is known what was committed, nothing says where to begin.
            self.locating.insert(*partition, Beginning { offset: -1, downbeat: None, beat: None });
        }
    }

    /// Asks Kafka what was committed and where the logs begin.
    fn ask_committed(&mut self) -> Result<(), KafkaError> {
        let unknown: Vec<i32> =
            self.locating.iter().filter(|(_, beginning)| beginning.offset < 0).map(|(p, _)| *p).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), QUERY_TIMEOUT)?;
        for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
            let (low, _) = self.consumer.fetch_watermarks(&self.topic, partition.id(), QUERY_TIMEOUT)?;
            self.lows.insert(partition.id(), low);
        }
        let mut list = TopicPartitionList::new();
        for partition in &unknown {
            list.add_partition(&self.topic, *partition);
        }
        let committed = self.consumer.committed_offsets(list, QUERY_TIMEOUT)?;
        for element in committed.elements() {
            let low = self.lows.get(&element.partition()).copied().unwrap_or(0);
            let (offset, downbeat) = match element.offset() {
                Offset::Offset(offset) => (offset, Position::downbeat(element.metadata())),
                // Never committed, or reset away: from the beginning.
                _ => (low, None),
            };
            tracing::info!(partition = element.partition(), offset, ?downbeat, low, "committed position");
            self.locating.insert(element.partition(), Beginning { offset, downbeat, beat: None });
        }
        Ok(())
    }

    /// Finds where the folds of new partitions begin, as far as the frames tell.
    fn locate(&mut self) -> anyhow::Result<()> {
        if let Err(error) = self.ask_committed() {
            tracing::warn!(%error, "asking for committed offsets");
            return Ok(());
        }
        for (id, mut beginning) in self.locating.clone() {
            if beginning.offset < 0 {
                continue;
            }
            if beginning.beat.is_none() {
                beginning.beat = self.beginning_beat(id, &beginning)?;
                self.locating.insert(id, beginning.clone());
            }
            let Some(beat) = beginning.beat else { continue };
            self.table.cover(beat)?;
            self.table.follow(Duration::ZERO)?;
            let frames = self.table.frames();
            // Frames before the first downbeat of the table are not in it: the beat may be one of them.
            let Some(start) =
                frames.first().filter(|first| first.beat_index <= beat).and_then(|_| frames.downbeat_from(beat))
            else {
                continue;
            };
            let line = frames.get(start).map_or(0, |frame| frame.line(id));
            let low = self.lows.get(&id).copied().unwrap_or(0);
            tracing::info!(partition = id, from_beat = %start, offset = line, "fold begins");
            let partition = self.partitions.get_mut(&id).expect("what is located is owned");
            partition.fold = Some(Fold::new(id, start, line, low));
            self.locating.remove(&id);
        }
        Ok(())
    }

    /// The beat at or after which the first downbeat is the beginning; `None` while there is none.
    fn beginning_beat(&mut self, id: i32, beginning: &Beginning) -> Result<Option<BeatIndex>, TableError> {
        if let Some(downbeat) = beginning.downbeat {
            let found = self.table.find(|frame| frame.beat_index.get() >= downbeat)?;
            let trusted = found.filter(|frame| {
                frame.beat_index.get() == downbeat && frame.downbeat && frame.line(id) == beginning.offset
            });
            if let Some(frame) = trusted {
                return Ok(Some(frame.beat_index));
            }
            tracing::info!(
                partition = id,
                beginning.offset,
                downbeat,
                "the group was reset: looking for the first whole window"
            );
        }
        let lows = self.lows.clone();
        let whole = |frame: &BeatFrame| lows.iter().all(|(partition, low)| frame.line(*partition) >= *low);
        let found = self.table.find(|frame| frame.line(id) >= beginning.offset && whole(frame))?;
        Ok(found.map(|frame| frame.beat_index))
    }

    fn follow_frames(&mut self) -> anyhow::Result<()> {
        let before = self.table.frames().last().map(|frame| frame.beat_index);
        match self.table.follow(Duration::ZERO) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(TableError::Read(error)) => {
                tracing::warn!(%error, "reading frames");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let frames = self.table.frames();
        let start = before.or(frames.first().map(|first| first.beat_index)).unwrap_or_default();
        let end = frames.last().map_or(start, |last| last.beat_index.plus(1));
        frames.range(start, end).try_for_each(|frame| self.bar_length.check(frame))
    }

    fn advance(&mut self) {
        let newest = self.table.frames().last().map(|frame| frame.beat_index);
        for partition in self.partitions.values_mut() {
            partition.take_stalled(newest, &mut self.decoder);
            if let (Some(fold), Some((tip, low)), false) =
                (&mut partition.fold, self.group.tip(partition.id), partition.paused)
                && tip > fold.next_offset()
            {
                fold.reached(tip, low);
            }
            partition.advance(self.table.frames(), &mut self.outlet, &self.metrics);
            let full = partition.is_full();
            if full != partition.paused {
                let mut list = TopicPartitionList::new();
                list.add_partition(&self.topic, partition.id);
                let done = if full { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
                match done {
                    Ok(()) => partition.paused = full,
                    Err(error) => tracing::warn!(%error, partition = partition.id, full, "pausing or resuming"),
                }
            }
            if let Some(position) = Position::of(&partition.progress) {
                self.group.set_position(partition.id, position);
            }
        }
    }

    fn follow_partials(&mut self) {
        for _ in 0..BATCH {
            let entry = match self.partials.poll(Duration::ZERO) {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "reading partials");
                    break;
                }
            };
            let (from, id) = (entry.record.from_beat, entry.record.window_id);
            match entry.record.into_body() {
                Some(PartialBody::Partial(partial)) if partial.member == self.outlet.member => {
                    if let Some(partition) = self.partitions.get_mut(&partial.partition) {
                        partition.progress.met(from, partial.counter);
                    }
                }
                Some(PartialBody::Done(done)) => {
                    self.partitions.values_mut().for_each(|partition| partition.done(from));
                    self.status.done(from, id, done.verdict);
                }
                _ => {}
            }
        }
    }

    fn look_after_merge(&mut self) -> anyhow::Result<()> {
        let Some(ended) = self.group.take_ended_merge() else {
            return Ok(());
        };
        match ended.end() {
            None => Ok(()),
            Some(MergeEnd::Failed(error)) => Err(error),
            Some(MergeEnd::Fenced) => {
                // Ours still, if the group says so in this very epoch; else another merges rightly.
                let positions = self.group.positions();
                let ours = self.partitions.contains_key(&0) && !self.consumer.assignment_lost();
                match commit(&self.consumer, &self.topic, &positions, CommitMode::Sync) {
                    Ok(()) if ours => self.group.set_merge(MergeThread::start(self.merge.clone())?),
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(%error, "fenced, and no longer sure to own statusclaims-0: not merging");
                    }
                }
                Ok(())
            }
        }
    }

    fn commit(&mut self) {
        self.partitions.values_mut().for_each(|partition| partition.retry(&mut self.outlet, &self.metrics));
        let mut positions = self.group.positions();
        positions.retain(|partition, position| self.committed.get(partition) != Some(position));
        match commit(&self.consumer, &self.topic, &positions, CommitMode::Async) {
            Ok(()) => self.committed.extend(positions),
            Err(error) => tracing::warn!(%error, "committing positions"),
        }
        let oldest =
            self.partitions.values().filter_map(|partition| Some(partition.fold.as_ref()?.oldest_beat())).min();
        if let (Some(oldest), true) = (oldest, self.locating.is_empty()) {
            self.table.forget_before(oldest);
        }
    }

    fn publish_status(&mut self) {
        let newest = self.table.frames().last().map(|frame| frame.beat_index);
        let mut open = BTreeMap::<_, BTreeMap<i32, i64>>::new();
        let mut partitions = Vec::new();
        for partition in self.partitions.values() {
            let fold = partition.fold.as_ref();
            for (window, claims) in fold.iter().flat_map(|fold| fold.open()) {
                open.entry((window.from, window.id)).or_default().insert(partition.id, claims);
            }
            partitions.push(PartitionStatus {
                partition: partition.id,
                position: fold.map(Fold::next_offset),
                beat: fold.map(Fold::arrival),
                waiting_claims: fold.map_or(0, Fold::waiting),
            });
        }
        let slowest = partitions.iter().filter_map(|partition| partition.beat).min();
        let lag = newest.zip(slowest).map_or(0, |(newest, slowest)| newest.since(slowest));
        self.metrics.lag(partitions.iter().map(|partition| partition.waiting_claims).sum(), lag);
        let waiting_for = if partitions.is_empty() {
            Some("partitions of statusclaims".to_owned())
        } else if self.locating.is_empty() {
            None
        } else {
            Some(format!("the first window of partitions {:?}", self.locating.keys().collect::<Vec<_>>()))
        };
        self.status.open(open);
        self.status.update(|member| {
            member.merging = self.partitions.contains_key(&0);
            member.newest_beat = newest;
            member.partitions = partitions;
            member.waiting_for = waiting_for;
        });
    }
}
