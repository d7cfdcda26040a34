//! The group's callbacks, which run on the polling thread inside `poll`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backbeat_broker::log_client_error;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::merger::MergeThread;
use crate::core::Committed;

/// The merge runs where this partition is owned.
pub(crate) const MERGE_PARTITION: i32 = 0;

/// A consumer in reverb's group.
pub(crate) type GroupConsumer = BaseConsumer<Group>;

/// What the callbacks share with the member's loop.
#[derive(Default)]
pub(crate) struct Group {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    changes: Vec<Change>,
    /// What to commit when a partition is taken away.
    positions: BTreeMap<i32, Committed>,
    merge: Option<MergeThread>,
    /// The group has answered, if only that there is nothing for this member.
    has_joined: bool,
    ends: BTreeMap<i32, PartitionEnd>,
}

/// A change of the assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Assigned(Vec<i32>),
    Revoked(Vec<i32>),
}

/// What librdkafka's statistics say of the end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartitionEnd {
    next_offset: i64,
    low: i64,
    /// The end that readers of committed records see.
    end: i64,
    /// Nothing fetched waits to be taken, and the fetcher has met the end.
    drained: bool,
    /// The statistics before these said the same.
    settled: bool,
}

impl Group {
    /// The changes since the last call.
    pub(crate) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.lock().changes)
    }

    /// What to commit should `partition` be taken away.
    pub(crate) fn set_position(&self, partition: i32, position: Committed) {
        self.lock().positions.insert(partition, position);
    }

    /// The positions of all partitions.
    pub(crate) fn positions(&self) -> BTreeMap<i32, Committed> {
        self.lock().positions.clone()
    }

    /// Hands over the merge, so that it ends before `statusclaims-0` is another's.
    pub(crate) fn set_merge(&self, merge: MergeThread) {
        let earlier = self.lock().merge.replace(merge);
        drop(earlier);
    }

    /// Whether the merge runs here.
    pub(crate) fn is_merging(&self) -> bool {
        self.lock().merge.as_ref().is_some_and(|merge| !merge.has_ended())
    }

    /// The merge, if it has ended by itself.
    pub(crate) fn take_ended_merge(&self) -> Option<MergeThread> {
        let mut state = self.lock();
        state.merge.take_if(|merge| merge.has_ended())
    }

    /// Whether the group has let this member in.
    pub(crate) fn has_joined(&self) -> bool {
        self.lock().has_joined
    }

    /// Stops the merge and waits for it.
    pub(crate) fn stop_merge(&self) {
        let merge = self.lock().merge.take();
        drop(merge);
    }

    /// An offset of `partition` below which no record is to come, and the log's start, if the
    /// statistics prove one. It matters where control records end the log: a position never passes
    /// them, so the next boundary would never be reached.
    pub(crate) fn partition_end(&self, partition: i32) -> Option<(i64, i64)> {
        let state = self.lock();
        state.ends.get(&partition).filter(|end| end.drained && end.settled).map(|end| (end.next_offset, end.low))
    }

    /// The end of `partition`, as of the last statistics.
    pub(crate) fn end(&self, partition: i32) -> Option<i64> {
        self.lock().ends.get(&partition).map(|end| end.end).filter(|end| *end >= 0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commits `positions` of `topic`.
pub(crate) fn commit(
    consumer: &GroupConsumer,
    topic: &str,
    positions: &BTreeMap<i32, Committed>,
    mode: CommitMode,
) -> rdkafka::error::KafkaResult<()> {
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
        // A member for which there is nothing may never be called back.
        state.has_joined |= statistics.cgrp.as_ref().is_some_and(|group| group.join_state == "steady");
        state.has_joined &= statistics.cgrp.as_ref().is_none_or(|group| group.state == "up");
        for (id, partition) in statistics.topics.values().flat_map(|topic| &topic.partitions) {
            let next_offset = partition.next_offset;
            let drained =
                partition.fetch_state == "active" && partition.fetchq_cnt == 0 && partition.eof_offset >= next_offset;
            let settled = state.ends.get(id).is_some_and(|before| before.drained && before.next_offset == next_offset);
            state.ends.insert(
                *id,
                PartitionEnd { next_offset, low: partition.lo_offset, end: partition.ls_offset, drained, settled },
            );
        }
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(list) = rebalance else { return };
        let revoked = partitions(list);
        let topic = list.elements().first().map(|element| element.topic().to_owned()).unwrap_or_default();
        let (positions, merge) = {
            let mut state = self.lock();
            let positions = revoked.iter().filter_map(|p| Some((*p, state.positions.remove(p)?))).collect();
            state.ends.retain(|partition, _| !revoked.contains(partition));
            (positions, if revoked.contains(&MERGE_PARTITION) { state.merge.take() } else { None })
        };
        // Dropping it waits until it has ended: nobody else may merge before.
        drop(merge);
        if !consumer.assignment_lost()
            && let Err(error) = commit(consumer, &topic, &positions, CommitMode::Sync)
        {
            tracing::warn!(%error, partitions = ?revoked, "the last positions were not committed; a successor reads a little more");
        }
        tracing::info!(partitions = ?revoked, "partitions revoked");
        self.lock().changes.push(Change::Revoked(revoked));
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        let assigned = partitions(list);
        self.lock().has_joined = true;
        if assigned.is_empty() {
            return;
        }
        // They wait until it is known where their aggregators begin.
        if let Err(error) = consumer.pause(list) {
            tracing::warn!(%error, "pausing new partitions");
        }
        tracing::info!(partitions = ?assigned, "partitions assigned");
        let mut state = self.lock();
        state.ends.retain(|partition, _| !assigned.contains(partition));
        state.changes.push(Change::Assigned(assigned));
    }
}
