//! Resets reverb's consumer group to the boundaries of a window, so that reverb recomputes from there.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use backbeat_broker::{Broker, GroupProtocol, LogReader, Registry, TopicName};
use backbeat_schemas::{BeatFrame, BeatIndex, Timestamp, WindowId};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use tokio::runtime::Handle;

use super::group::{Group, GroupConsumer, commit_offsets};
use super::start_positions::watermarks;
use super::timeouts::QUERY_TIMEOUT;
use crate::core::CommittedOffset;

/// The first window of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayTarget {
    /// The window that contains this beat.
    Beat(BeatIndex),
    /// The window with this id.
    Window(WindowId),
    /// The window that was open at this instant.
    Instant(Timestamp),
    /// The oldest window whose claims are wholly retained.
    Earliest,
}

/// The effect of a replay.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ReplayPlan {
    /// The consumer group.
    pub group: String,
    /// The first window's id.
    pub window_id: WindowId,
    /// The first window's downbeat.
    pub from_beat: BeatIndex,
    /// The newest beat.
    pub newest_beat: BeatIndex,
    /// By partition, the boundary to which the group is reset.
    pub offsets: BTreeMap<i32, i64>,
    /// The number of offsets between there and the high watermarks of the partitions.
    pub claims: i64,
}

/// Plans a replay to `to`, without changing anything. Blocks.
pub fn plan_replay(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    to: ReplayTarget,
) -> anyhow::Result<ReplayPlan> {
    let mut frames = LogReader::<BeatFrame>::for_random_access(broker, registry, runtime, TopicName::BeatFrames)?;
    let newest = frames.last()?.context("no beat has been published yet")?.record;
    let ranges = watermarks(&broker.reader()?, &broker.topics().name(TopicName::StatusClaims))?;
    let is_whole =
        |frame: &BeatFrame| ranges.iter().all(|(partition, (log_start, _))| frame.boundary(*partition) >= *log_start);
    let within = match to {
        ReplayTarget::Beat(beat) => {
            let newest = newest.beat_index;
            ensure!(beat <= newest, "beat {beat} has not been published yet; the newest is {newest}");
            frames.first_where(|frame| frame.beat_index >= beat)?.map(|entry| entry.record)
        }
        ReplayTarget::Window(id) => {
            frames.last_where(|frame| frame.window_id == id && frame.downbeat)?.map(|entry| entry.record)
        }
        ReplayTarget::Instant(instant) => {
            let after = frames.first_where(|frame| frame.scheduled_at > instant)?.map(|entry| entry.record);
            let beat = after.map_or(Some(newest.beat_index), |after| after.beat_index.previous());
            let beat = beat.with_context(|| format!("{instant} is before the first beat"))?;
            frames.first_where(|frame| frame.beat_index >= beat)?.map(|entry| entry.record)
        }
        ReplayTarget::Earliest => frames.first_where(is_whole)?.map(|entry| entry.record),
    };
    let within = within.context(match to {
        ReplayTarget::Window(_) => "no frame of this window in beatframes",
        _ => "no such beat in beatframes",
    })?;
    let opening = if to == ReplayTarget::Earliest {
        // Only from its downbeat on is a window wholly retained, so the window of this frame itself may not be.
        match next_downbeat(&mut frames, &within)? {
            Some(opening) if previous_opening(&mut frames, &opening)?.is_some_and(|previous| !is_whole(&previous)) => {
                let second =
                    frames.first_where(|frame| frame.beat_index > opening.beat_index)?.map(|entry| entry.record);
                second.map(|second| next_downbeat(&mut frames, &second)).transpose()?.flatten()
            }
            opening => opening,
        }
    } else {
        let (beat, window) = (within.beat_index, within.window_id);
        let first = frames.first_where(|frame| frame.beat_index >= beat || frame.window_id == window)?;
        first.map(|entry| entry.record).filter(|frame| frame.downbeat)
    };
    let opening = opening.context("the window's downbeat is not in beatframes")?;
    let previous = previous_opening(&mut frames, &opening)?;
    ensure!(
        previous.as_ref().is_none_or(is_whole) && is_whole(&opening),
        "claims of window {}, or of the window before it, are no longer retained, so it cannot be recomputed; `--to-earliest` starts at the oldest that can",
        opening.window_id
    );
    let offsets: BTreeMap<i32, i64> =
        ranges.keys().map(|partition| (*partition, opening.boundary(*partition))).collect();
    let claims = ranges.iter().map(|(partition, (_, end))| (end - offsets[partition]).max(0)).sum();
    Ok(ReplayPlan {
        group: broker.topics().group(),
        window_id: opening.window_id,
        from_beat: opening.beat_index,
        newest_beat: newest.beat_index,
        offsets,
        claims,
    })
}

/// Resets the group as planned. Fails while the group has members, because they would not notice. Blocks.
pub fn execute_replay(broker: &Broker, plan: &ReplayPlan) -> anyhow::Result<()> {
    let consumer = group_consumer(broker)?;
    let groups = consumer.fetch_group_list(Some(&plan.group), QUERY_TIMEOUT)?;
    let members: usize = groups.groups().iter().map(|group| group.members().len()).sum();
    ensure!(members == 0, "group {} has {members} members: stop reverb first", plan.group);
    let downbeat = Some(plan.from_beat.get());
    let position = |(partition, offset): (&i32, &i64)| (*partition, CommittedOffset { offset: *offset, downbeat });
    let positions = plan.offsets.iter().map(position).collect();
    let topic = broker.topics().name(TopicName::StatusClaims);
    match commit_offsets(&consumer, &topic, &positions, CommitMode::Sync) {
        Ok(()) => Ok(()),
        // Members under the consumer protocol (KIP-848) are not in the list.
        Err(KafkaError::ConsumerCommit(error)) => {
            bail!("kafka refused to reset group {} ({error}); if reverb is running, stop it first", plan.group)
        }
        Err(error) => Err(error.into()),
    }
}

/// Creates a consumer with the group's id that never joins the group.
fn group_consumer(broker: &Broker) -> KafkaResult<GroupConsumer> {
    broker.group_member(GroupProtocol::Classic, QUERY_TIMEOUT).create_with_context(Group::default())
}

/// Returns the downbeat of the window before that of `opening`, which its roster needs; `None` if it is the log's first.
fn previous_opening(frames: &mut LogReader<BeatFrame>, opening: &BeatFrame) -> anyhow::Result<Option<BeatFrame>> {
    let Some(beat) = opening.beat_index.previous() else { return Ok(None) };
    let last = frames.first_where(|frame| frame.beat_index >= beat)?.map(|entry| entry.record);
    let Some(window) = last.filter(|last| last.beat_index == beat).map(|last| last.window_id) else { return Ok(None) };
    let first = frames.first_where(|frame| frame.beat_index >= beat || frame.window_id == window)?;
    Ok(first.map(|entry| entry.record).filter(|frame| frame.downbeat))
}

/// Returns `frame` if it is a downbeat, otherwise the next downbeat.
fn next_downbeat(frames: &mut LogReader<BeatFrame>, frame: &BeatFrame) -> anyhow::Result<Option<BeatFrame>> {
    if frame.downbeat {
        return Ok(Some(frame.clone()));
    }
    // From its downbeat on, the next window has another id.
    let (beat, window) = (frame.beat_index, frame.window_id);
    let next = frames.first_where(|other| other.beat_index > beat && other.window_id != window)?;
    Ok(next.map(|entry| entry.record))
}
