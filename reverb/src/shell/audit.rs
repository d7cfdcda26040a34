//! Reports computed again from the log, and compared with those that were published.
//!
//! Each partition is read once, in order, several of them at a time; nothing is written, and reverb's group
//! is left alone.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use backbeat_broker::{Broker, LogReader, Registry, TopicName};
use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, WindowId};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::frame_table::FrameTable;
use super::merger::body;
use super::recompute::Recompute;
use crate::core::{ClosedWindow, Frames, Tally, Window, bar_report};

/// Windows that are computed together: their claims are counted in memory.
const CHUNK: usize = 32;
/// Partitions that are read at a time.
const READERS: usize = 4;
const POLL: Duration = Duration::from_millis(100);

/// The windows to look at: those that have a beat in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditRange {
    /// The first beat; by default that of the oldest window.
    pub from: Option<BeatIndex>,
    /// The last beat; by default that of the newest window that can have a report.
    pub to: Option<BeatIndex>,
}

/// What an audit found of one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Audited {
    /// The window.
    pub window_id: WindowId,
    /// Its downbeat.
    pub from_beat: BeatIndex,
    /// What there is.
    pub finding: Finding,
}

/// How the published report compares with the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// There is one report, and it has the same bytes.
    Identical,
    /// There are several; the newest has the same bytes.
    Duplicate {
        /// How many.
        reports: usize,
    },
    /// The newest report has other bytes.
    Different {
        /// It.
        published: Box<BarReport>,
        /// What the log says.
        computed: Box<BarReport>,
    },
    /// There is no report.
    Missing,
    /// The claims are no longer wholly there, so nothing can be said.
    NotRetained,
}

/// Audits the windows of `range`, in their order; `audited` is told of each, and of how many there are. Blocks.
pub fn audit(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    range: AuditRange,
    stop: &Shutdown,
    mut audited: impl FnMut(Audited, usize),
) -> anyhow::Result<()> {
    let frames = read_frames(broker, registry, runtime, range)?;
    let windows = windows(&frames, range);
    let Some(first) = windows.first() else { return Ok(()) };
    let mut published = read_reports(broker, registry, runtime, &frames, first)?;
    let reader = |_| Recompute::new(broker, registry, runtime);
    let mut readers = (0..READERS).map(reader).collect::<Result<Vec<_>, _>>()?;
    for chunk in windows.chunks(CHUNK) {
        let tallies = count(&mut readers, &frames, chunk, stop)?;
        for (window, tally) in chunk.iter().zip(tallies) {
            let reports = published.remove(&window.from).unwrap_or_default();
            let finding = tally.map_or(Finding::NotRetained, |tally| compare(&frames, window, &tally, reports));
            audited(Audited { window_id: window.id, from_beat: window.from, finding }, windows.len());
        }
    }
    Ok(())
}

/// A published report and its Avro body.
type Published = (BarReport, Vec<u8>);

fn compare(frames: &Frames, window: &Window, tally: &Tally, mut reports: Vec<Published>) -> Finding {
    let computed = bar_report(frames, window, &tally.counts()).expect("its closing frame is in the table");
    let count = reports.len();
    match reports.pop() {
        None => Finding::Missing,
        Some((_, bytes)) if bytes == body(&computed) => match count {
            1 => Finding::Identical,
            reports => Finding::Duplicate { reports },
        },
        Some((published, _)) => Finding::Different { published: Box::new(published), computed: Box::new(computed) },
    }
}

fn read_frames(broker: &Broker, registry: &Registry, runtime: &Handle, range: AuditRange) -> anyhow::Result<Frames> {
    let mut tail = LogReader::<BeatFrame>::for_searches(broker, registry, runtime, TopicName::BeatFrames)?;
    let newest = tail.last()?.context("no beat has been published yet")?.record;
    let reader = LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?;
    let mut table = FrameTable::new(reader, newest.cluster_id.clone());
    table.cover(range.from.unwrap_or_default())?;
    // One bar and its grace behind the last beat, or all there is.
    let enough = |frames: &Frames| {
        let last = frames.last().map(|last| last.beat_index);
        let closes = range.to.and_then(|to| frames.window_of(to)).map(|window| window.closes);
        last >= Some(newest.beat_index) || (closes.is_some() && last >= closes)
    };
    while !enough(table.frames()) {
        table.follow(POLL)?;
    }
    Ok(table.into_frames())
}

/// The windows of `range` that can have a report.
fn windows(frames: &Frames, range: AuditRange) -> Vec<Window> {
    let oldest = frames.first().map(|first| first.beat_index).unwrap_or_default();
    let from = range.from.map_or(oldest, |from| from.max(oldest));
    let mut next = frames.window_of(from);
    let mut windows = Vec::new();
    while let Some(window) = next.filter(|window| range.to.is_none_or(|to| window.from <= to)) {
        if frames.get(window.closes).is_none() {
            break;
        }
        windows.push(window);
        next = frames.window_of(window.end);
    }
    windows
}

/// All reports since that of `first`, by their windows' downbeats.
fn read_reports(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    frames: &Frames,
    first: &Window,
) -> anyhow::Result<BTreeMap<BeatIndex, Vec<Published>>> {
    let mut reader = LogReader::<BarReport>::new(broker, registry, runtime, TopicName::BarReports)?;
    let closed_at = frames.get(first.end).map(|next| next.scheduled_at).unwrap_or_default();
    // A report's timestamp is its closed_at, so those of later windows lie behind it.
    let (start, end) = (reader.offset_at(closed_at.millis())?, reader.end()?);
    let mut reports = BTreeMap::<_, Vec<_>>::new();
    reader.read(start, end, |entry| {
        reports.entry(entry.record.from_beat).or_default().push((entry.record, entry.body));
    })?;
    Ok(reports)
}

/// What the claims of `windows` come to; `None` where they are not wholly retained.
fn count(
    readers: &mut [Recompute],
    frames: &Frames,
    windows: &[Window],
    stop: &Shutdown,
) -> anyhow::Result<Vec<Option<Tally>>> {
    let (first, last) = (windows[0], windows[windows.len() - 1]);
    let partitions_of = |window: &Window| frames.get(window.closes).map_or(0, |frame| frame.claim_offsets.len() as i32);
    let partitions = partitions_of(&last);
    let tallies = Mutex::new(vec![Some(Tally::default()); windows.len()]);
    let next = AtomicI32::new(0);
    let work = |recompute: &mut Recompute| -> anyhow::Result<()> {
        loop {
            let partition = next.fetch_add(1, Ordering::Relaxed);
            if partition >= partitions {
                return Ok(());
            }
            let shares = recompute.shares(frames, &first, &last, partition, stop)?;
            let mut tallies = tallies.lock().map_err(|_| anyhow!("another reader panicked"))?;
            for ClosedWindow { window, tally, retained } in shares {
                if partition >= partitions_of(&window) {
                    // It was added later, and is none of this window's.
                    continue;
                }
                let place = windows.iter().position(|known| known.from == window.from);
                let whole = &mut tallies[place.context("a aggregator closes the windows it was asked for")?];
                match whole {
                    Some(whole) if retained => whole.absorb(tally),
                    _ => *whole = None,
                }
            }
        }
    };
    thread::scope(|scope| {
        let work = &work;
        let readers: Vec<_> = readers.iter_mut().map(|reader| scope.spawn(move || work(reader))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
    })?;
    tallies.into_inner().map_err(|_| anyhow!("a reader panicked"))
}
