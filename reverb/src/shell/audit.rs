//! Recomputes reports from the log and compares them with the published ones.
//!
//! Several partitions are read at a time, each once and in order. Nothing is written, and reverb's consumer group is
//! left alone.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use anyhow::{Context, anyhow};
use backbeat_broker::{Broker, LogReader, Registry, SubjectSchemas, TopicName};
use backbeat_schemas::{BarReport, BeatIndex, Counts, WindowId};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::frame_table::FrameTable;
use super::recompute::Recompute;
use super::report_index::{avro_body, published_body};
use crate::core::{Frames, LOGIC, Window, bar_report};

/// The maximum number of windows recomputed together.
pub(super) const MAX_WINDOWS_PER_PASS: usize = 32;
/// The maximum number of partitions read at the same time.
const MAX_READERS: usize = 4;

/// The windows to audit: those with a beat in this range.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditRange {
    /// The first beat. Defaults to that of the oldest window.
    pub from: Option<BeatIndex>,
    /// The last beat. Defaults to that of the newest window that can have a report.
    pub to: Option<BeatIndex>,
}

/// The result of the audit of one window.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditedWindow {
    /// The window's id.
    pub window_id: WindowId,
    /// The window's downbeat.
    pub from_beat: BeatIndex,
    /// The comparison with the published reports.
    pub finding: Finding,
}

/// The comparison of a window's published reports with the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// One report, with the same bytes.
    Identical,
    /// Several reports, the newest with the same bytes.
    Duplicate {
        /// The number of reports.
        reports: usize,
    },
    /// The newest report has other bytes.
    Different {
        /// The newest published report.
        published: Box<BarReport>,
        /// The report computed from the log.
        computed: Box<BarReport>,
    },
    /// No report.
    Missing,
    /// The window's claims are no longer wholly retained, so its report cannot be checked.
    NotRetained,
}

/// Audits the windows of `range` in order. Calls `on_audited` for each, with the number of windows. Blocks.
pub fn audit(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    range: AuditRange,
    stop: &Shutdown,
    mut on_audited: impl FnMut(AuditedWindow, usize),
) -> anyhow::Result<()> {
    let frames = FrameTable::read(broker, registry, runtime, |_| (range.from.unwrap_or_default(), range.to), stop)?;
    let windows = windows(&frames, range);
    let Some(first) = windows.first() else { return Ok(()) };
    let mut published = read_reports(broker, registry, runtime, &frames, first)?;
    let schemas = SubjectSchemas::new(registry.clone(), broker.topics(), TopicName::StatusClaims, runtime.clone());
    let reader = |_| Recompute::new(broker, schemas.clone());
    let mut readers = (0..MAX_READERS).map(reader).collect::<Result<Vec<_>, _>>()?;
    for chunk in windows.chunks(MAX_WINDOWS_PER_PASS) {
        // A report is compared with one by the version of the rules that it carries.
        let reports = chunk.iter().map(|window| published.remove(&window.from).unwrap_or_default());
        let reports: Vec<Vec<Published>> = reports.collect();
        let logic_of = |reports: &Vec<Published>| reports.last().map_or(LOGIC, |(report, _)| report.logic.min(LOGIC));
        let logics: Vec<i32> = reports.iter().map(logic_of).collect();
        let counted = count_claims(&mut readers, &frames, chunk, &logics, stop)?;
        for (((window, counts), reports), logic) in chunk.iter().zip(counted).zip(reports).zip(logics) {
            let compare = |counts| compare(&frames, window, &counts, logic, reports);
            let finding = counts.map_or(Finding::NotRetained, compare);
            on_audited(AuditedWindow { window_id: window.id, from_beat: window.from, finding }, windows.len());
        }
    }
    Ok(())
}

/// A published report and its Avro body.
pub(super) type Published = (BarReport, Vec<u8>);

fn compare(frames: &Frames, window: &Window, counts: &Counts, logic: i32, mut reports: Vec<Published>) -> Finding {
    let computed = bar_report(frames, window, counts, logic).expect("the closing frame is in the table");
    let count = reports.len();
    match reports.pop() {
        None => Finding::Missing,
        Some((_, bytes)) if bytes == avro_body(&computed) => match count {
            1 => Finding::Identical,
            reports => Finding::Duplicate { reports },
        },
        Some((published, _)) => Finding::Different { published: Box::new(published), computed: Box::new(computed) },
    }
}

/// Returns the windows of `range` that can have a report.
pub(super) fn windows(frames: &Frames, range: AuditRange) -> Vec<Window> {
    frames.windows(range.from, range.to).take_while(|window| frames.get(window.closing).is_some()).collect()
}

/// Reads all reports from that of `first` on, by their windows' downbeats.
pub(super) fn read_reports(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    frames: &Frames,
    first: &Window,
) -> anyhow::Result<BTreeMap<BeatIndex, Vec<Published>>> {
    let mut reader = LogReader::<BarReport>::new(broker, registry, runtime, TopicName::BarReports)?;
    let closed_at = frames.get(first.end).map(|next| next.scheduled_at).unwrap_or_default();
    // A report's timestamp is its closed_at, so the reports of later windows have higher offsets.
    let (start, end) = (reader.offset_at(closed_at.millis())?, reader.end_offset()?);
    let mut reports = BTreeMap::<_, Vec<_>>::new();
    reader.read(start, end, |entry| {
        let body = published_body(&entry);
        reports.entry(entry.record.from_beat).or_default().push((entry.record, body));
    })?;
    Ok(reports)
}

/// Counts the claims of `windows`, in all partitions. A window whose claims are not wholly retained, as its report's version of
/// the rules in `logics` needs them, has no counts.
fn count_claims(
    readers: &mut [Recompute],
    frames: &Frames,
    windows: &[Window],
    logics: &[i32],
    stop: &Shutdown,
) -> anyhow::Result<Vec<Option<Counts>>> {
    let (first, last) = (windows[0], windows[windows.len() - 1]);
    let partitions_of =
        |window: &Window| frames.get(window.closing).map_or(0, |frame| frame.claim_offsets.len() as i32);
    let partitions = partitions_of(&last);
    let sums = Mutex::new(vec![Some(Counts::default()); windows.len()]);
    let next = AtomicI32::new(0);
    let work = |recompute: &mut Recompute| -> anyhow::Result<()> {
        loop {
            let partition = next.fetch_add(1, Ordering::Relaxed);
            if partition >= partitions {
                return Ok(());
            }
            let keep_going = &mut || !stop.is_cancelled();
            let mut shares = recompute.shares(frames, &first, &last, &[partition], keep_going, &mut |_| {})?;
            let shares = shares.remove(&partition).unwrap_or_default();
            let mut sums = sums.lock().map_err(|_| anyhow!("another reader panicked"))?;
            for closed in shares {
                let window = closed.window;
                if partition >= partitions_of(&window) {
                    // The partition was added after this window closed, so the window has no share of it.
                    continue;
                }
                let place = windows.iter().position(|known| known.from == window.from);
                let place = place.context("an aggregator closes only the windows that it was given")?;
                let sum = &mut sums[place];
                match sum {
                    Some(sum) if closed.is_retained(logics[place]) => sum.add(&closed.counts),
                    _ => *sum = None,
                }
            }
        }
    };
    thread::scope(|scope| {
        let work = &work;
        let readers: Vec<_> = readers.iter_mut().map(|reader| scope.spawn(move || work(reader))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
    })?;
    sums.into_inner().map_err(|_| anyhow!("a reader panicked"))
}
