//! `agent-sim --verify`: reads the frames, reports and claims of the run back from Kafka.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_broker::{
    Broker, ClaimEnds, KafkaArgs, LogReader, ReadFrom, Registry, TopicEvent, TopicName, TopicReader,
};
use backbeat_schemas::{BarReport, BarRoster, BeatFrame, BeatIndex};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use crate::agents::Agents;
use crate::ledger::{Ledger, VerificationResult};

const POLL_TIMEOUT: Duration = Duration::from_millis(100);
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The time from the beat that closes the last window in which its report must be published.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

/// A beat that the agents received in the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceivedBeat {
    pub(crate) beat: BeatIndex,
    pub(crate) downbeat: bool,
}

/// Waits until every claim of a run is reported, and compares what `agents` sent on the beats `received` with the log
/// and the reports. Returns `None` if cancelled by `stop`. Blocks.
pub(crate) fn verify(
    kafka: &KafkaArgs,
    runtime: &Handle,
    mut agents: Agents,
    received: &[ReceivedBeat],
    stop: &Shutdown,
) -> anyhow::Result<Option<VerificationResult>> {
    let (Some(first), Some(last)) = (received.first(), received.last()) else { return Ok(None) };
    let broker = Broker::new(kafka, "agent-sim-verify")?;
    let registry = Registry::new(kafka)?;
    let ends = claim_ends(&broker)?;
    let mut frames = LogReader::new(&broker, &registry, runtime, TopicName::BeatFrames)?;
    let Some(frames) = read_frames(&mut frames, first.beat, last.beat, &ends, stop)? else { return Ok(None) };
    let first_boundary = frames[0].claim_offsets.clone();
    let closed_at = frames.iter().skip(1).find(|frame| frame.downbeat).map(|next| next.scheduled_at.millis());
    let mut ledger = Ledger::new(first.beat, frames);

    let mut reports = LogReader::<BarReport>::new(&broker, &registry, runtime, TopicName::BarReports)?;
    // The timestamp of a report's record is the end of its window.
    let start = reports.offset_at(closed_at.unwrap_or_default())?;
    reports.seek(start)?;
    let deadline = Instant::now() + REPORT_TIMEOUT;
    while !ledger.is_complete() && Instant::now() < deadline {
        if stop.is_cancelled() {
            return Ok(None);
        }
        if let Some(entry) = reports.poll(POLL_TIMEOUT)? {
            ledger.record_report(entry.record);
        }
    }

    // Rosters are written before the reports that count them.
    let mut rosters = LogReader::<BarRoster>::for_random_access(&broker, &registry, runtime, TopicName::BarRosters)?;
    let (start, end) = (rosters.offset_at(closed_at.unwrap_or_default())?, rosters.end_offset()?);
    rosters.read(start, end, |entry| ledger.record_roster(entry.record))?;

    for ReceivedBeat { beat, downbeat } in received {
        agents.claims_for_next_beat(*downbeat).for_each(|plan| ledger.record_sent(*beat, &plan));
    }
    let from = ReadFrom::Offsets(first_boundary);
    let mut claims = TopicReader::new(&broker, &registry, runtime, TopicName::StatusClaims, &from)?;
    loop {
        if stop.is_cancelled() {
            return Ok(None);
        }
        match claims.next(POLL_TIMEOUT)? {
            Some(TopicEvent::Record(record)) => ledger.record_found(record),
            Some(TopicEvent::End) => return Ok(Some(ledger.into_result())),
            None => {}
        }
    }
}

/// Fetches the last stable offset of each partition of `statusclaims`.
fn claim_ends(broker: &Broker) -> anyhow::Result<Vec<i64>> {
    let claims = ClaimEnds::stable(broker)?;
    let by_leader = claims.partitions_by_leader(QUERY_TIMEOUT)?;
    let mut ends = vec![None; by_leader.values().map(Vec::len).sum()];
    for partitions in by_leader.values() {
        for (partition, end) in claims.fetch(partitions, QUERY_TIMEOUT) {
            ends[partition as usize] = Some(end);
        }
    }
    ends.into_iter().collect::<Option<_>>().context("cannot fetch the last stable offsets of statusclaims")
}

/// Reads the frames from the bar before that of the beat `first`, whose claims may still arrive within its grace, to
/// the frame that closes the last window that may own a claim of the run. The run ended with the beat `last`, and its
/// claims lie below the offsets `ends`.
fn read_frames(
    reader: &mut LogReader<BeatFrame>,
    first: BeatIndex,
    last: BeatIndex,
    ends: &[i64],
    stop: &Shutdown,
) -> anyhow::Result<Option<Vec<BeatFrame>>> {
    let first_frame = reader
        .first_where(|frame| frame.beat_index >= first)?
        .context("the beats of the run are no longer retained")?;
    let earlier = first.get() - 2 * i64::from(first_frame.record.bar_length);
    let start =
        reader.first_where(|frame| frame.beat_index.get() > earlier)?.map_or(first_frame.offset, |entry| entry.offset);
    reader.seek(start)?;
    let mut frames = Vec::<BeatFrame>::new();
    let mut closing_beat = None;
    loop {
        if stop.is_cancelled() {
            return Ok(None);
        }
        let Some(entry) = reader.poll(POLL_TIMEOUT)? else { continue };
        let frame = entry.record;
        if frames.is_empty() && !frame.downbeat {
            if frame.beat_index >= first {
                bail!("the downbeat before beat {first} is no longer retained");
            }
            continue;
        }
        let (beat, is_past_ends) = (frame.beat_index, (0..).zip(ends).all(|(p, end)| frame.boundary(p) >= *end));
        frames.push(frame);
        if closing_beat.is_none() && beat > last && is_past_ends {
            // All claims arrived before this beat: the window that was open then is the last one that may own them.
            let downbeat = frames.iter().rev().skip(1).find(|frame| frame.downbeat);
            let downbeat = downbeat.context("there is no downbeat among the frames of the run")?;
            let end = downbeat.beat_index.get() + i64::from(downbeat.bar_length);
            closing_beat = Some(end + i64::from(downbeat.grace_beats));
            tracing::info!(%beat, closing_beat, "waiting for the reports");
        }
        if closing_beat.is_some_and(|closing_beat| beat.get() >= closing_beat) {
            return Ok(Some(frames));
        }
    }
}
