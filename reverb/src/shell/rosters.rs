//! Reads rosters: who needed attention in a window, and who is silent still.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use anyhow::Context;
use backbeat_broker::{Broker, LogReader, ReadError, Registry, SubjectSchemas, TopicName};
use backbeat_schemas::{BarReport, BarRoster, BeatFrame, BeatIndex, RosterEntry, RosterKind, WindowId};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::audit::{AuditRange, read_reports, windows};
use super::frame_table::FrameTable;
use super::recompute::Recompute;
use crate::core::{DecodedClaim, Frames};

/// The window of a roster.
#[derive(Debug, Clone, Copy)]
pub enum RosterWindow {
    /// The newest one that has a report.
    Newest,
    /// The one with this id.
    Id(WindowId),
    /// The one of this beat.
    Beat(BeatIndex),
}

/// The roster of one window over all partitions.
#[derive(Debug, Clone)]
pub struct WindowRoster {
    /// The window's report, which counts how many need attention.
    pub report: BarReport,
    /// The rosters by partition.
    pub partitions: BTreeMap<i32, BarRoster>,
}

/// An agent that fell silent and has not claimed since.
#[derive(Debug, Clone, PartialEq)]
pub struct SilentAgent {
    /// The last claim of its open task.
    pub entry: RosterEntry,
    /// The downbeat of the window in which it fell silent.
    pub from_beat: BeatIndex,
    /// The partition of `statusclaims`.
    pub partition: i32,
}

impl WindowRoster {
    /// Returns the number of agents or tasks of one kind, as the report has it.
    pub fn count(&self, kind: RosterKind) -> i64 {
        match kind {
            RosterKind::Silent => self.report.agents_fell_silent,
            RosterKind::Stalled => self.report.tasks_stalled,
            RosterKind::Overdrawn => self.report.tasks_overdrawn,
        }
    }

    /// Returns the entries of one kind by agent and task, each with its partition. Fewer than there are if a partition has more
    /// than fit into its roster, or if rosters have expired.
    pub fn entries<'r>(&'r self, kind: RosterKind) -> Vec<(i32, &'r RosterEntry)> {
        let of_partition = |(partition, roster): (&i32, &'r BarRoster)| {
            let partition = *partition;
            roster.entries(kind).iter().map(move |entry| (partition, entry))
        };
        let mut entries: Vec<(i32, &RosterEntry)> = self.partitions.iter().flat_map(of_partition).collect();
        entries.sort_by(|(_, a), (_, b)| (&a.agent_id, &a.task_id).cmp(&(&b.agent_id, &b.task_id)));
        entries
    }

    /// Returns true if the rosters account for all that the report counts.
    fn is_complete(&self) -> bool {
        RosterKind::ALL.into_iter().all(|kind| {
            let counted: i64 = self.partitions.values().map(|roster| roster.count(kind)).sum();
            counted >= self.count(kind)
        })
    }
}

/// A reader of `barrosters`.
pub struct RosterReader(LogReader<BarRoster>);

impl RosterReader {
    /// Creates the reader.
    pub fn new(broker: &Broker, registry: &Registry, runtime: &Handle) -> Result<Self, ReadError> {
        Ok(Self(LogReader::for_random_access(broker, registry, runtime, TopicName::BarRosters)?))
    }

    /// Reads the rosters of the window that `report` is of. Blocks.
    pub fn read(&mut self, report: BarReport) -> Result<WindowRoster, ReadError> {
        let mut window = WindowRoster { report, partitions: BTreeMap::new() };
        if window.is_complete() {
            return Ok(window);
        }
        // A roster's timestamp is its closed_at.
        let (start, end) = (self.0.offset_at(window.report.closed_at.millis())?, self.0.end_offset()?);
        self.0.read_until(start, end, |entry| {
            if entry.record.window_id == window.report.window_id {
                window.partitions.insert(entry.record.partition, entry.record);
            }
            if window.is_complete() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(window)
    }
}

/// Reads the roster of one window. Fails if it has no report. Blocks.
pub fn roster(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    which: RosterWindow,
    stop: &Shutdown,
) -> anyhow::Result<WindowRoster> {
    let beat = match which {
        RosterWindow::Newest => None,
        RosterWindow::Beat(beat) => Some(beat),
        RosterWindow::Id(id) => {
            let mut frames =
                LogReader::<BeatFrame>::for_random_access(broker, registry, runtime, TopicName::BeatFrames)?;
            let found = frames.last_where(|frame| frame.window_id == id && frame.downbeat)?;
            Some(found.with_context(|| format!("beatframes has no frame of window {id}"))?.record.beat_index)
        }
    };
    let bars = if beat.is_some() { 1 } else { BARS_OF_NEWEST };
    let (_, mut reports) = newest_reports(broker, registry, runtime, beat, bars, stop)?;
    let report = reports.pop().with_context(|| match beat {
        Some(beat) => format!("the window of beat {beat} has no report"),
        None => "there is no report yet".to_owned(),
    })?;
    Ok(RosterReader::new(broker, registry, runtime)?.read(report)?)
}

/// The newest window may have closed a moment ago and have no report yet, and the one after it is open.
const BARS_OF_NEWEST: usize = 3;

/// Returns the agents that fell silent in the newest `bars` windows and have not claimed since, by name, with the number of records
/// that were read to know. Blocks.
pub fn silent_still(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    bars: usize,
    stop: &Shutdown,
) -> anyhow::Result<(Vec<SilentAgent>, u64)> {
    let (frames, reports) = newest_reports(broker, registry, runtime, None, bars, stop)?;
    let mut reader = RosterReader::new(broker, registry, runtime)?;
    let mut silent = BTreeMap::<(i32, String), SilentAgent>::new();
    for report in reports {
        let from_beat = report.from_beat;
        for (partition, entry) in reader.read(report)?.entries(RosterKind::Silent) {
            let agent = SilentAgent { entry: entry.clone(), from_beat, partition };
            silent.insert((partition, entry.agent_id.clone()), agent);
        }
    }
    let Some(first) = silent.values().map(|agent| agent.from_beat).min() else { return Ok((Vec::new(), 0)) };
    let schemas = SubjectSchemas::new(registry.clone(), broker.topics(), TopicName::StatusClaims, runtime.clone());
    let mut recompute = Recompute::new(broker, schemas)?;
    let partitions: BTreeSet<i32> = silent.keys().map(|(partition, _)| *partition).collect();
    let log_starts = recompute.log_starts(&partitions.into_iter().collect::<Vec<_>>())?;
    let mut records = 0;
    let keep_going = &mut || !stop.is_cancelled();
    recompute.claims_since(&frames, first, &log_starts, keep_going, |partition, offset, decoded| {
        records += 1;
        let DecodedClaim::Valid(claim) = decoded else { return };
        let key = (partition, claim.agent.into_owned());
        if silent.get(&key).is_some_and(|agent| is_after(claim.beat, offset, agent, &frames)) {
            silent.remove(&key);
        }
    })?;
    let mut silent: Vec<SilentAgent> = silent.into_values().collect();
    silent.sort_by(|a, b| (&a.entry.agent_id, a.partition).cmp(&(&b.entry.agent_id, b.partition)));
    Ok((silent, records))
}

/// Returns true if a claim of the agent for `beat` at `offset` was made after it fell silent, and is valid. A claim for the window
/// before may have come within its grace.
fn is_after(beat: i64, offset: i64, agent: &SilentAgent, frames: &Frames) -> bool {
    let newest = frames.last().map_or(BeatIndex::ZERO, |last| last.beat_index);
    let arrival = frames.arrival_beat(agent.partition, offset).unwrap_or(newest);
    let closing = frames.window_of(agent.from_beat).map(|window| window.closing);
    let is_published = (0..=arrival.get()).contains(&beat);
    is_published && (beat >= agent.from_beat.get() || closing.is_some_and(|closing| arrival >= closing))
}

/// Returns the reports of the window of `beat`, or of the newest `bars` windows that have one, in order; and the frames from them
/// on.
fn newest_reports(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    beat: Option<BeatIndex>,
    bars: usize,
    stop: &Shutdown,
) -> anyhow::Result<(Frames, Vec<BarReport>)> {
    let mut newest = BeatIndex::ZERO;
    let range = |frame: &BeatFrame| {
        newest = frame.beat_index;
        // One bar more, since the newest one is open.
        let bars = i64::try_from(bars).unwrap_or(i64::MAX).saturating_add(1);
        let back = newest.get().saturating_sub(bars.saturating_mul(frame.bar_length.into()));
        (beat.unwrap_or(BeatIndex::try_from(back).unwrap_or_default()), beat)
    };
    let frames = FrameTable::read(broker, registry, runtime, range, stop)?;
    if let Some(beat) = beat {
        anyhow::ensure!(beat <= newest, "beat {beat} has not been published yet; the newest is {newest}");
    }
    let windows = windows(&frames, AuditRange { from: beat, to: beat });
    let Some(first) = windows.first() else { return Ok((frames, Vec::new())) };
    let mut published = read_reports(broker, registry, runtime, &frames, first)?;
    let reports = windows.iter().filter_map(|window| published.remove(&window.from)?.pop());
    let mut reports: Vec<BarReport> = reports.map(|(report, _)| report).collect();
    reports.drain(..reports.len().saturating_sub(bars));
    Ok((frames, reports))
}
