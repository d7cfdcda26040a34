//! Reports corrected for the claims that came late until now. Nothing is written.

use backbeat_broker::{Broker, Registry, SubjectSchemas, TopicName};
use backbeat_schemas::BarReport;
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::audit::{AuditRange, MAX_WINDOWS_PER_PASS, read_reports, windows};
use super::frame_table::FrameTable;
use super::recompute::Recompute;
use crate::core::{Corrector, LOGIC, bar_report, is_retained};

/// A window's report, and what it would be.
#[derive(Debug, Clone, PartialEq)]
pub struct Correction {
    /// The newest published report; `None` if there is none.
    pub published: Option<BarReport>,
    /// The report that counts what came late until now. Its `late_claims` are those that came while the window was open, and the
    /// counts of its roster those that were published.
    pub corrected: BarReport,
}

/// Calls `on_correction` for each window of `range`, in order. Reads all claims from the first window of each 32 to the end of the
/// log. Windows whose claims are not wholly retained are left out. Blocks.
pub fn corrections(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    range: AuditRange,
    stop: &Shutdown,
    mut on_correction: impl FnMut(Correction),
) -> anyhow::Result<()> {
    let frames = FrameTable::read(broker, registry, runtime, |_| (range.from.unwrap_or_default(), None), stop)?;
    let windows = windows(&frames, range);
    let Some(first) = windows.first() else { return Ok(()) };
    let mut published = read_reports(broker, registry, runtime, &frames, first)?;
    let schemas = SubjectSchemas::new(registry.clone(), broker.topics(), TopicName::StatusClaims, runtime.clone());
    let mut recompute = Recompute::new(broker, schemas)?;
    let partitions = frames.last().map_or(0, |frame| frame.claim_offsets.len() as i32);
    let ids: Vec<i32> = (0..partitions).collect();
    for chunk in windows.chunks(MAX_WINDOWS_PER_PASS) {
        let log_starts = recompute.log_starts(&ids)?;
        let mut corrector = Corrector::new(&frames, chunk, partitions);
        let keep_going = &mut || !stop.is_cancelled();
        recompute.claims_since(&frames, chunk[0].from, &log_starts, keep_going, |partition, offset, claim| {
            corrector.process(partition, offset, claim);
        })?;
        for window in chunk {
            let published = published.remove(&window.from).and_then(|mut reports| reports.pop());
            if !frames.get(window.from).is_some_and(|opening| is_retained(opening, &log_starts)) {
                continue;
            }
            let published = published.map(|(report, _)| report);
            let logic = published.as_ref().map_or(LOGIC, |published| published.logic);
            let Some(mut corrected) = bar_report(&frames, window, &corrector.counts(window), logic) else { continue };
            if let Some(published) = &published {
                corrected.agents_fell_silent = published.agents_fell_silent;
                corrected.tasks_stalled = published.tasks_stalled;
                corrected.tasks_overdrawn = published.tasks_overdrawn;
            }
            on_correction(Correction { published, corrected });
        }
    }
    Ok(())
}
