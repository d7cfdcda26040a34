//! The output of `backbeat dev`: each beat and each report.

use std::time::{Duration, Instant};

use backbeat_broker::{Broker, KafkaArgs, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::{BarReport, BeatFrame, Record};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::programs::Programs;
use super::{Args, POLL_TIMEOUT, print_line};
use crate::warehouse::Warehouse;

/// The interval at which the programs and the table of reports are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Prints each beat and each report until `shutdown`, or until a program ends.
pub(super) fn print_beats_and_reports(
    args: &Args,
    kafka: &KafkaArgs,
    runtime: &Handle,
    programs: &mut Programs,
    mut warehouse: Option<&mut Warehouse>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let broker = Broker::new(kafka, "backbeat-dev")?;
    let registry = Registry::new(kafka)?;
    let mut frames = reader_at_end::<BeatFrame>(&broker, &registry, runtime, TopicName::BeatFrames)?;
    let mut reports = reader_at_end::<BarReport>(&broker, &registry, runtime, TopicName::BarReports)?;
    let period = 60.0 / args.bpm;
    print_line(&format!(
        "one beat every {period:.1} s, one report every {:.1} s; Ctrl-C stops everything",
        period * f64::from(args.bar)
    ))?;
    let mut checked = Instant::now();
    let mut shown_rows = String::new();
    while !shutdown.is_cancelled() {
        if let Some(entry) = or_warn(frames.poll(POLL_TIMEOUT)) {
            print_line(&beat_line(&entry.record))?;
        }
        if let Some(entry) = or_warn(reports.poll(Duration::ZERO)) {
            print_line(&report_line(&entry.record))?;
        }
        if checked.elapsed() > CHECK_INTERVAL {
            programs.check()?;
            let rows = warehouse.as_mut().map(|warehouse| warehouse.row_summary()).transpose()?.unwrap_or_default();
            if rows != shown_rows {
                print_line(&format!("  ⇣ bar_reports has {rows}"))?;
                shown_rows = rows;
            }
            checked = Instant::now();
        }
    }
    Ok(())
}

/// Returns the polled record; logs an error and returns `None` instead. The caller polls again: an outage that lasts ends
/// the programs, and with them `backbeat dev`.
fn or_warn<T>(polled: Result<Option<T>, ReadError>) -> Option<T> {
    polled.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read beats or reports");
        None
    })
}

/// Opens a reader of the records that are appended from now on.
fn reader_at_end<R: Record + 'static>(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    topic: TopicName,
) -> anyhow::Result<LogReader<R>> {
    let mut reader = LogReader::new(broker, registry, runtime, topic)?;
    let end = reader.end_offset()?;
    reader.seek(end)?;
    Ok(reader)
}

fn beat_line(frame: &BeatFrame) -> String {
    let mark = if frame.downbeat { "●" } else { "○" };
    let phase = format!("{:?}", frame.phase).to_lowercase();
    format!("{mark} beat {:<6} {phase:<10} {} window {}", frame.beat_index, frame.emitted_at, frame.window_id)
}

fn report_line(report: &BarReport) -> String {
    format!(
        "  ▣ report beats {}-{}: {} agents, {} claims, {} reviews on time, {} done, {} failed, {} helped, {} silent, {} stalled, {} overdrawn, rotations {}{}",
        report.from_beat,
        report.to_beat,
        report.agents_reporting,
        report.claims,
        report.on_time_reviews,
        report.tasks_done,
        report.tasks_failed,
        report.help_promises_fulfilled,
        report.agents_fell_silent,
        report.tasks_stalled,
        report.tasks_overdrawn,
        if report.secret_rotations_ok { "ok" } else { "failed" },
        if report.issues.is_empty() { String::new() } else { format!("; {}", report.issues.join("; ")) },
    )
}
