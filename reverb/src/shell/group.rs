//! The callbacks of the group consumer. They run on the polling thread, inside `poll`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backbeat_broker::log_client_error;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::core::CommittedOffset;

/// The number of consecutive statistics that prove that a partition is drained. The first may date from before a seek.
const MIN_DRAINED_STATISTICS: u32 = 3;

/// A consumer in reverb's group.
pub(crate) type GroupConsumer = BaseConsumer<Group>;

/// The state shared by the callbacks and the member's loop.
#[derive(Default)]
pub(crate) struct Group {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    changes: Vec<AssignmentChange>,
    /// By partition, the offset to commit when it is revoked.
    committable: BTreeMap<i32, CommittedOffset>,
    /// True if the group coordinator has admitted this member, even if it has assigned no partition.
    has_joined: bool,
    ends: BTreeMap<i32, PartitionEnd>,
    /// True if the consumer has lost all its brokers.
    abandoned: bool,
    /// True if a commit has failed since the last call of [`Group::take_commit_failure`].
    commit_failed: bool,
}

/// A change of the assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AssignmentChange {
    Assigned(Vec<i32>),
    Revoked(Vec<i32>),
}

/// The last stable offset of a partition and the progress towards it, from librdkafka's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartitionEnd {
    next_offset: i64,
    log_start: i64,
    /// The end of the partition for readers of committed records; negative if it is not known.
    last_stable_offset: i64,
    /// The number of consecutive statistics in which the partition was drained at this offset.
    drained_times: u32,
}

impl Group {
    /// Returns the changes since the last call.
    pub(crate) fn drain_changes(&self) -> Vec<AssignmentChange> {
        std::mem::take(&mut self.lock().changes)
    }

    /// Sets the offset to commit when `partition` is revoked.
    pub(crate) fn set_committable(&self, partition: i32, position: CommittedOffset) {
        self.lock().committable.insert(partition, position);
    }

    /// Returns the offsets to commit, of all partitions.
    pub(crate) fn committable(&self) -> BTreeMap<i32, CommittedOffset> {
        self.lock().committable.clone()
    }

    /// Returns true if this member has joined the group.
    pub(crate) fn has_joined(&self) -> bool {
        self.lock().has_joined
    }

    /// Returns the end of `partition` and its log start offset, if the statistics prove that the consumer has polled
    /// all records up to there: no record with a lower offset will be delivered. Needed if control records end the log:
    /// the consumer's position never passes them, so the next boundary would never be reached.
    pub(crate) fn drained_end(&self, partition: i32) -> Option<(i64, i64)> {
        let state = self.lock();
        state
            .ends
            .get(&partition)
            .filter(|end| end.drained_times >= MIN_DRAINED_STATISTICS)
            .map(|end| (end.next_offset, end.log_start))
    }

    /// Returns the last stable offset of `partition`, as of the last statistics.
    pub(crate) fn last_stable_offset(&self, partition: i32) -> Option<i64> {
        self.lock().ends.get(&partition).map(|end| end.last_stable_offset).filter(|end| *end >= 0)
    }

    /// Discards the statistics of `partition` after a seek: they may date from before it.
    pub(crate) fn forget_end(&self, partition: i32) {
        self.lock().ends.remove(&partition);
    }

    /// Marks the consumer as lost: offsets of partitions revoked while it closes are not committed.
    pub(crate) fn abandon(&self) {
        self.lock().abandoned = true;
    }

    /// Returns true if a commit has failed since the last call.
    pub(crate) fn take_commit_failure(&self) -> bool {
        std::mem::take(&mut self.lock().commit_failed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commits the offsets of `positions`, by partition of `topic`.
pub(crate) fn commit_offsets(
    consumer: &GroupConsumer,
    topic: &str,
    positions: &BTreeMap<i32, CommittedOffset>,
    mode: CommitMode,
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    for (partition, position) in positions {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(position.offset))?;
        element.set_metadata(position.metadata());
    }
    if list.count() == 0 { Ok(()) } else { consumer.commit(&list, mode) }
}

fn partitions(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

impl ClientContext for Group {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let mut state = self.lock();
        // A member that gets no partition may never see a rebalance callback.
        state.has_joined |= statistics.cgrp.as_ref().is_some_and(|group| group.join_state == "steady");
        state.has_joined &= statistics.cgrp.as_ref().is_none_or(|group| group.state == "up");
        for (id, partition) in statistics.topics.values().flat_map(|topic| &topic.partitions) {
            let (next_offset, end) = (partition.next_offset, partition.ls_offset);
            let is_at_end = end >= 0 && next_offset >= end;
            let drained = partition.fetch_state == "active" && partition.fetchq_cnt == 0 && is_at_end;
            let before = state.ends.get(id).filter(|before| before.next_offset == next_offset);
            let drained_times = if drained { before.map_or(0, |before| before.drained_times) + 1 } else { 0 };
            state.ends.insert(
                *id,
                PartitionEnd { next_offset, log_start: partition.lo_offset, last_stable_offset: end, drained_times },
            );
        }
    }
}

impl ConsumerContext for Group {
    /// Assigns new partitions at the log start and pauses them, regardless of committed offsets: a new partition is
    /// sought once its start position is known. librdkafka would otherwise fetch the committed offsets itself, and
    /// never start a partition if that request goes to a broker that is not the coordinator any more (its issue 5586).
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let done = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, list)
        } else {
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS {
                tracing::warn!(error = %RDKafkaErrorCode::from(code), "a rebalance has failed");
            }
            self.prepare_revocation(consumer, list);
            consumer.incremental_unassign(list)
        };
        if let Err(error) = done {
            tracing::error!(%error, "cannot apply an assignment");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(%error, "cannot commit offsets; they are committed again");
            self.lock().commit_failed = true;
        }
    }
}

impl Group {
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> KafkaResult<()> {
        list.set_all_offsets(Offset::Beginning)?;
        consumer.incremental_assign(list)?;
        let assigned = partitions(list);
        self.lock().has_joined = true;
        if assigned.is_empty() {
            return Ok(());
        }
        if let Err(error) = consumer.pause(list) {
            tracing::warn!(%error, "cannot pause new partitions");
        }
        let mut state = self.lock();
        state.ends.retain(|partition, _| !assigned.contains(partition));
        state.changes.push(AssignmentChange::Assigned(assigned));
        Ok(())
    }

    /// Commits the offsets of the partitions in `list`, before another member gets them.
    fn prepare_revocation(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let revoked = partitions(list);
        let topic = list.elements().first().map(|element| element.topic().to_owned()).unwrap_or_default();
        let (positions, abandoned) = {
            let mut state = self.lock();
            let positions = revoked.iter().filter_map(|p| Some((*p, state.committable.remove(p)?))).collect();
            state.ends.retain(|partition, _| !revoked.contains(partition));
            (positions, state.abandoned)
        };
        if !abandoned
            && !consumer.assignment_lost()
            && let Err(error) = commit_offsets(consumer, &topic, &positions, CommitMode::Sync)
        {
            tracing::warn!(%error, partitions = ?revoked, "cannot commit the last offsets; the next owner reads some claims again");
        }
        self.lock().changes.push(AssignmentChange::Revoked(revoked));
    }
}
