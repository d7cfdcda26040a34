//! One agent's claims, bar by bar, with the outcome of each. Reads only the partition of the agent's key.

use std::collections::BTreeSet;

use backbeat_broker::{Broker, Registry, SubjectSchemas, TopicName};
use backbeat_http_api::reverb::{AgentBar, AgentClaim, AgentHistory, ClaimOutcome};
use backbeat_schemas::{BeatFrame, BeatIndex, InvalidClaim, MAX_ID_BYTES};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::frame_table::FrameTable;
use super::recompute::{ClaimRecord, RangeReader, Recompute, RecomputeError};
use crate::core::{Frames, Window, is_retained, partition_of};

/// The bars of a history.
#[derive(Debug, Clone, Copy)]
pub struct HistoryRange {
    /// A beat of the first bar; by default, `bars` says where the history begins.
    pub from: Option<BeatIndex>,
    /// A beat of the last bar; by default the newest one.
    pub to: Option<BeatIndex>,
    /// The largest number of bars: the newest ones.
    pub bars: usize,
    /// True to read all partitions, not only that in which Kafka's default partitioner puts the agent's key.
    pub all_partitions: bool,
    /// The largest number of records to read.
    pub max_records: u64,
    /// The largest number of bytes of the agent's records.
    pub max_bytes: usize,
}

/// The reason why there is no history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The agent's id is empty or too long.
    #[error("the id has {bytes} bytes; allowed are 1 to {MAX_ID_BYTES}")]
    IdLength {
        /// The length of the id.
        bytes: usize,
    },
    /// A beat of the range lies in the future.
    #[error("beat {beat} has not been published yet; the newest is {newest}")]
    NotPublished {
        /// The beat.
        beat: BeatIndex,
        /// The newest beat.
        newest: BeatIndex,
    },
    /// `beatframes` has no frame of the range.
    #[error("beatframes has no such beats; the oldest is {oldest}")]
    NotInLog {
        /// The oldest beat that was read.
        oldest: BeatIndex,
    },
    /// The range is too large.
    #[error("these bars have {records} records; at most {allowed} are read: ask for fewer bars")]
    TooManyRecords {
        /// The number of offsets in the range.
        records: u64,
        /// The largest number.
        allowed: u64,
    },
    /// The agent has too many claims, or too large ones.
    #[error("the agent's claims in these bars have more than {allowed} bytes: ask for fewer bars")]
    TooManyBytes {
        /// The largest number.
        allowed: usize,
    },
    /// Kafka or the schema registry does not answer, or the log is inconsistent.
    #[error(transparent)]
    Read(#[from] anyhow::Error),
}

/// Checks the length of an agent's id.
pub fn check_agent_id(id: &str) -> Result<(), HistoryError> {
    if (1..=MAX_ID_BYTES).contains(&id.len()) { Ok(()) } else { Err(HistoryError::IdLength { bytes: id.len() }) }
}

/// Reads the claims of `agent`. Blocks.
pub fn agent_history(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    agent: &str,
    range: HistoryRange,
    stop: &Shutdown,
) -> Result<AgentHistory, HistoryError> {
    let mut newest = BeatIndex::ZERO;
    let beats = |frame: &BeatFrame| {
        newest = frame.beat_index;
        let to = range.to.unwrap_or(newest).min(newest);
        let bars_back = i64::try_from(range.bars).unwrap_or(i64::MAX).saturating_mul(frame.bar_length.into());
        let from = BeatIndex::try_from(to.get().saturating_sub(bars_back)).unwrap_or_default();
        (range.from.unwrap_or(from), Some(to.plus(frame.bar_length.into())))
    };
    let frames = FrameTable::read(broker, registry, runtime, beats, stop)?;
    if let Some(beat) = range.from.into_iter().chain(range.to).find(|beat| *beat > newest) {
        return Err(HistoryError::NotPublished { beat, newest });
    }
    let mut windows: Vec<Window> = frames.windows(range.from, range.to).collect();
    windows.drain(..windows.len().saturating_sub(range.bars));
    let (Some(first), Some(last)) = (windows.first(), windows.last()) else {
        return Err(HistoryError::NotInLog { oldest: frames.first().map_or(newest, |first| first.beat_index) });
    };
    let of_key = partitions_of(agent, &frames, first);
    let partitions: Vec<i32> = if range.all_partitions {
        (0..frames.last().map_or(0, |frame| frame.claim_offsets.len() as i32)).collect()
    } else {
        of_key.iter().copied().collect()
    };
    let schemas = SubjectSchemas::new(registry.clone(), broker.topics(), TopicName::StatusClaims, runtime.clone());
    let mut recompute = Recompute::new(broker, schemas).map_err(anyhow::Error::from)?;
    let log_starts = recompute.log_starts(&partitions).map_err(anyhow::Error::from)?;
    // One bar more, to see what was late.
    let end = last.closing.plus(last.end.since(last.from) as u32);
    let end = range.to.map(|_| end.min(frames.last().map_or(end, |last| last.beat_index)));
    let ranges = recompute.ranges(&frames, first.from, end, &log_starts).map_err(anyhow::Error::from)?;
    let records = ranges.values().map(RangeReader::unread).sum();
    if records > range.max_records {
        return Err(HistoryError::TooManyRecords { records, allowed: range.max_records });
    }
    let keep_going = &mut || !stop.is_cancelled();
    let claims = recompute.claims_of(agent, ranges, range.max_bytes, keep_going);
    let (records, read) = claims.map_err(|error| match error {
        RecomputeError::TooManyBytes { allowed } => HistoryError::TooManyBytes { allowed },
        error => HistoryError::Read(error.into()),
    })?;
    let bar = |window: &Window| AgentBar {
        window_id: window.id,
        from_beat: window.from,
        to_beat: window.end.previous().unwrap_or_default(),
        closed: frames.get(window.closing).is_some(),
        retained: frames.get(window.from).is_some_and(|opening| is_retained(opening, &log_starts)),
        counted: 0,
        claims: Vec::new(),
    };
    let mut bars: Vec<AgentBar> = windows.iter().map(bar).collect();
    for record in records {
        let claim = agent_claim(record, &frames, &of_key);
        if let Some(bar) = bar_of(&claim, &mut bars) {
            bar.counted += usize::from(claim.outcome == ClaimOutcome::Counted);
            bar.claims.push(claim);
        }
    }
    Ok(AgentHistory { partitions, records: read, bars })
}

/// Returns the partitions to which the key of `agent` belongs, from the window `first` on: another one if partitions were added.
fn partitions_of(agent: &str, frames: &Frames, first: &Window) -> BTreeSet<i32> {
    let newest = frames.last().map_or(first.from, |last| last.beat_index);
    let counts = frames.range(first.from, newest.plus(1)).map(|frame| frame.claim_offsets.len());
    counts.map(|partitions| partition_of(agent.as_bytes(), partitions) as i32).collect()
}

fn agent_claim(record: ClaimRecord, frames: &Frames, of_key: &BTreeSet<i32>) -> AgentClaim {
    let ClaimRecord { partition, offset, claim, invalid } = record;
    let arrival_beat = frames.arrival_beat(partition, offset);
    let is_invalid =
        |reason: InvalidClaim| ClaimOutcome::Invalid { reason: reason.reason().into(), message: reason.to_string() };
    let outcome = match (&claim, invalid, arrival_beat) {
        (_, Some(reason), _) => is_invalid(reason),
        (Some(claim), None, Some(arrival)) => match frames.window_counting(claim.beat_index, arrival) {
            Ok(Some(_)) => ClaimOutcome::Counted,
            Ok(None) => ClaimOutcome::Late { late_by_beats: late_by(claim.beat_index, arrival, frames) },
            Err(reason) => is_invalid(reason),
        },
        // A record without a claim is invalid.
        (_, None, _) => ClaimOutcome::AwaitsBeat,
    };
    AgentClaim { partition, offset, misplaced: !of_key.contains(&partition), arrival_beat, claim, outcome }
}

fn late_by(beat: i64, arrival: BeatIndex, frames: &Frames) -> Option<i64> {
    let window = frames.window_of(BeatIndex::try_from(beat).ok()?)?;
    Some(arrival.since(window.closing) + 1)
}

/// Returns the bar of the claim's beat; that of its arrival if the claim has no beat of these bars.
fn bar_of<'b>(claim: &AgentClaim, bars: &'b mut [AgentBar]) -> Option<&'b mut AgentBar> {
    let of_beat = |beat: i64| bars.iter().position(|bar| (bar.from_beat.get()..=bar.to_beat.get()).contains(&beat));
    let named = claim.claim.as_ref().and_then(|claim| of_beat(claim.beat_index));
    let arrival = || match claim.arrival_beat {
        Some(arrival) => of_beat(arrival.get()),
        None => bars.len().checked_sub(1),
    };
    let position = named.or_else(arrival)?;
    bars.get_mut(position)
}
