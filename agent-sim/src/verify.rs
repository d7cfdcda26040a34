//! `agent-sim --verify`: reads the run back.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_broker::{Broker, ClaimEnds, KafkaArgs, LogReader, Registry, TailFrom, Tailed, TopicName, TopicTail};
use backbeat_schemas::{BarReport, BeatFrame, BeatIndex};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use crate::agents::Agents;
use crate::ledger::{Ledger, Verdict};

const POLL: Duration = Duration::from_millis(100);
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after the beat that closes the last window its report is waited for.
const REPORTS_WITHIN: Duration = Duration::from_secs(30);

/// A beat of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeardBeat {
    pub(crate) beat: BeatIndex,
    pub(crate) downbeat: bool,
}

/// Waits until every claim of a run is reported, and compares what `agents` sent on the beats that they `heard` with
/// the log and the reports. `None` once `stop` says so. Blocks.
pub(crate) fn verify(
    kafka: &KafkaArgs,
    runtime: &Handle,
    mut agents: Agents,
    heard: &[HeardBeat],
    stop: &Shutdown,
) -> anyhow::Result<Option<Verdict>> {
    let (Some(first), Some(last)) = (heard.first(), heard.last()) else { return Ok(None) };
    let broker = Broker::new(kafka, "agent-sim-verify")?;
    let registry = Registry::new(kafka)?;
    let ends = claim_ends(&broker)?;
    let mut frames = LogReader::new(&broker, &registry, runtime, TopicName::BeatFrames)?;
    let Some(frames) = read_frames(&mut frames, first.beat, last.beat, &ends, stop)? else { return Ok(None) };
    let boundaries = frames[0].claim_offsets.clone();
    let closed_at = frames.iter().skip(1).find(|frame| frame.downbeat).map(|next| next.scheduled_at.millis());
    let mut ledger = Ledger::new(first.beat, frames);

    let mut reports = LogReader::<BarReport>::new(&broker, &registry, runtime, TopicName::BarReports)?;
    // A report's timestamp is its window's end.
    let start = reports.offset_at(closed_at.unwrap_or_default())?;
    reports.seek(start)?;
    let deadline = Instant::now() + REPORTS_WITHIN;
    while !ledger.is_complete() && Instant::now() < deadline {
        if stop.is_cancelled() {
            return Ok(None);
        }
        if let Some(entry) = reports.poll(POLL)? {
            ledger.reported(entry.record);
        }
    }

    for HeardBeat { beat, downbeat } in heard {
        agents.beat(*downbeat).for_each(|plan| ledger.sent(*beat, &plan));
    }
    let from = TailFrom::Offsets(boundaries);
    let mut claims = TopicTail::new(&broker, &registry, runtime, TopicName::StatusClaims, &from)?;
    loop {
        if stop.is_cancelled() {
            return Ok(None);
        }
        match claims.next(POLL)? {
            Some(Tailed::Record(seen)) => ledger.found(seen),
            Some(Tailed::End) => return Ok(Some(ledger.close())),
            None => {}
        }
    }
}

/// The end of each partition of `statusclaims`.
fn claim_ends(broker: &Broker) -> anyhow::Result<Vec<i64>> {
    let claims = ClaimEnds::new(broker)?;
    let by_leader = claims.partitions(QUERY_TIMEOUT)?;
    let mut ends = vec![None; by_leader.values().map(Vec::len).sum()];
    for partitions in by_leader.values() {
        for (partition, end) in claims.read(partitions, QUERY_TIMEOUT) {
            ends[partition as usize] = Some(end);
        }
    }
    ends.into_iter().collect::<Option<_>>().context("the ends of statusclaims are not to be had")
}

/// The frames from the bar before `first`'s, whose claims may still come in its grace, to the one that closes the last window that may own a claim of
/// the run: it ended with the beat `last`, and its claims lie below `ends`.
fn read_frames(
    reader: &mut LogReader<BeatFrame>,
    first: BeatIndex,
    last: BeatIndex,
    ends: &[i64],
    stop: &Shutdown,
) -> anyhow::Result<Option<Vec<BeatFrame>>> {
    let heard = reader.first_where(|frame| frame.beat_index >= first)?.context("the beats of the run are gone")?;
    let earlier = first.get() - 2 * i64::from(heard.record.bar_length);
    let start =
        reader.first_where(|frame| frame.beat_index.get() > earlier)?.map_or(heard.offset, |entry| entry.offset);
    reader.seek(start)?;
    let mut frames = Vec::<BeatFrame>::new();
    let mut closes = None;
    loop {
        if stop.is_cancelled() {
            return Ok(None);
        }
        let Some(entry) = reader.poll(POLL)? else { continue };
        let frame = entry.record;
        if frames.is_empty() && !frame.downbeat {
            if frame.beat_index >= first {
                bail!("the downbeat before beat {first} is no longer in the log");
            }
            continue;
        }
        let (beat, passed) = (frame.beat_index, (0..).zip(ends).all(|(p, end)| frame.boundary(p) >= *end));
        frames.push(frame);
        if closes.is_none() && beat > last && passed {
            // All claims arrived on an earlier beat: what is open now may own them, and closes last.
            let opening = frames.iter().rev().skip(1).find(|frame| frame.downbeat).context("frames begin with one")?;
            let end = opening.beat_index.get() + i64::from(opening.bar_length);
            closes = Some(end + i64::from(opening.grace_beats));
            tracing::info!(%beat, ?closes, "waiting for the reports");
        }
        if closes.is_some_and(|closes| beat.get() >= closes) {
            return Ok(Some(frames));
        }
    }
}
