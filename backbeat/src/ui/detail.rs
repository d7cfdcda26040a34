//! The page of a window, and that of an agent: read from the log when they are asked for.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_http_api::reverb::{AgentBar, AgentClaim, AgentHistory};
use backbeat_reverb::agent_history::{HistoryError, HistoryRange, agent_history};
use backbeat_reverb::rosters::{RosterReader, WindowRoster};
use backbeat_schemas::{BarReport, MAX_ID_BYTES, RosterEntry, RosterKind, Verdict, WindowId};
use backbeat_service::Shutdown;
use maud::{Markup, html};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::SharedBoard;
use super::board::WindowView;
use super::page::{agent_path, name, window_state, word};
use crate::agent::{bar_outcome, extent, outcome_as_text};

/// The number of requests that read the log at the same time, and the time that another one waits for its turn.
const READS: usize = 2;
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval at which the page of a window without a report loads itself again, in milliseconds.
const RELOAD_MS: u32 = 2_000;
/// The largest number of a roster's entries of one kind that a page shows.
const MAX_ENTRIES: usize = 200;
const DEFAULT_BARS: usize = 10;
/// The largest number of bars of an agent's page.
const MAX_BARS: usize = 100;
/// The largest number of records that are read for an agent's page, and of the bytes of those that are the agent's.
const MAX_RECORDS: u64 = 2_000_000;
const MAX_CLAIM_BYTES: usize = 4 * 1024 * 1024;
/// The largest number of offsets of `barreports`, from its end back, that are searched for a window's report.
const MAX_SEARCHED_OFFSETS: i64 = 20_000;

/// Reads the log for pages.
#[derive(Clone)]
pub(crate) struct Detail {
    broker: Broker,
    registry: Registry,
    board: SharedBoard,
    stop: Shutdown,
    turns: Arc<Semaphore>,
}

/// The reason why there is no such page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DetailError {
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unavailable(String),
}

impl DetailError {
    pub(crate) fn page(&self) -> Markup {
        html! { main #main { section.card { h1 { "Nothing to show" } p.alarm { "✕ " (self.to_string()) } p { a href="/" { "Back to the cluster" } } } } }
    }
}

impl Detail {
    pub(crate) fn new(broker: Broker, registry: Registry, board: SharedBoard, stop: Shutdown) -> Self {
        Self { broker, registry, board, stop, turns: Arc::new(Semaphore::new(READS)) }
    }

    /// Runs `query` on a thread of its own, when it is its turn.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Self, &Handle) -> Result<T, DetailError> + Send + 'static,
    ) -> Result<T, DetailError> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(DetailError::Unavailable(
                "other requests read the log; reload this page in a moment".to_owned(),
            ));
        };
        let (detail, runtime) = (self.clone(), Handle::current());
        let reading = tokio::task::spawn_blocking(move || {
            let result = query(&detail, &runtime);
            drop(turn);
            result
        });
        // Whoever waits for a page does not hold up a stop.
        let Some(read) = self.stop.run_until_cancelled(reading).await else {
            return Err(DetailError::Unavailable("the program stops".to_owned()));
        };
        read.map_err(|error| DetailError::Unavailable(format!("the reader of the log has failed: {error}")))?
    }

    /// Returns the page of a window.
    pub(crate) async fn window(&self, id: WindowId) -> Result<Markup, DetailError> {
        let known = self.board.read().find_window(id).cloned();
        if let Some(window) = known.as_ref().filter(|window| window.report.is_none()) {
            return Ok(open_window(window));
        }
        let report = known.and_then(|window| window.report);
        let read = move |detail: &Self, runtime: &Handle| {
            let read_roster = || {
                let report = match report {
                    Some(report) => Some(report),
                    None => detail.find_report(id, runtime)?,
                };
                let Some(report) = report else { return Ok(None) };
                let window = RosterReader::new(&detail.broker, &detail.registry, runtime)?.read(report)?;
                Ok::<_, ReadError>(Some(window))
            };
            read_roster().map_err(|error| DetailError::Unavailable(error.to_string()))?.ok_or_else(|| {
                DetailError::NotFound(format!(
                    "the newest reports have none of window {id}; `backbeat roster --window {id}` searches all"
                ))
            })
        };
        let window = self.read(read).await?;
        let board = self.board.read();
        Ok(reported_window(&window, &board.owners()))
    }

    /// Finds the report of a window among the newest ones.
    fn find_report(&self, id: WindowId, runtime: &Handle) -> Result<Option<BarReport>, ReadError> {
        let topic = TopicName::BarReports;
        let mut reports = LogReader::<BarReport>::for_random_access(&self.broker, &self.registry, runtime, topic)?;
        let end = reports.end_offset()?;
        let start = (end - MAX_SEARCHED_OFFSETS).max(reports.log_start()?);
        let mut found = None;
        reports.read_until(start, end, |entry| {
            if entry.record.window_id == id {
                found = Some(entry.record);
            }
            if self.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// Returns the page of an agent with its last bars.
    pub(crate) async fn agent(&self, id: String, bars: Option<usize>) -> Result<Markup, DetailError> {
        if !(1..=MAX_ID_BYTES).contains(&id.len()) {
            let bytes = id.len();
            return Err(DetailError::BadRequest(format!("the id has {bytes} bytes; allowed are 1 to {MAX_ID_BYTES}")));
        }
        let bars = bars.unwrap_or(DEFAULT_BARS);
        if !(1..=MAX_BARS).contains(&bars) {
            return Err(DetailError::BadRequest(format!("last is {bars}; must be 1 to {MAX_BARS}")));
        }
        let agent = id.clone();
        let read = move |detail: &Self, runtime: &Handle| {
            let range = HistoryRange {
                from: None,
                to: None,
                bars,
                all_partitions: false,
                max_records: MAX_RECORDS,
                max_bytes: MAX_CLAIM_BYTES,
            };
            agent_history(&detail.broker, &detail.registry, runtime, &agent, range, &detail.stop).map_err(|error| {
                match error {
                    HistoryError::Read(error) => DetailError::Unavailable(format!("{error:#}")),
                    error => DetailError::BadRequest(error.to_string()),
                }
            })
        };
        Ok(agent_page(&id, &self.read(read).await?, bars))
    }
}

/// Returns the page of a window without a report, which loads itself again.
fn open_window(window: &WindowView) -> Markup {
    let (_, state) = window_state(window);
    let (reload, outlook) = match window.verdict {
        Some(Verdict::Skipped) => (None, "Its claims had expired before they were read, so it will have none."),
        _ => (Some(RELOAD_MS), "Its report follows its last beat."),
    };
    html! {
        main #main data-reload=[reload] {
            section.card {
                h1 { "Window from beat " (window.from_beat) }
                p.big { (window.claims()) span.unit { " claims so far" } }
                p { (state) ". " (outlook) }
                p.quiet { "Window " code { (window.window_id) } }
            }
            @if !window.claims_so_far.is_empty() {
                section.card {
                    h2 { "Partitions" }
                    div.scroll role="region" tabindex="0" aria-label="Partitions of the window" {
                        table {
                            thead { tr { th scope="col" { "Partition" } th scope="col" { "Claims so far" } } }
                            tbody { @for (partition, claims) in &window.claims_so_far { tr { th scope="row" { (partition) } td { (claims) } } } }
                        }
                    }
                }
            }
        }
    }
}

fn reported_window(window: &WindowRoster, owners: &BTreeMap<i32, &str>) -> Markup {
    let report = &window.report;
    let BarReport { from_beat, to_beat, window_id, from_offsets, to_offsets, .. } = report;
    html! {
        main #main {
            section.card {
                h1 { "Beats " (from_beat) " to " (to_beat) }
                p { "Opened " (report.opened_at) ", closed " (report.closed_at) }
                p.quiet { "Window " code { (window_id) } ", logic " (report.logic) ", cluster " (name(&report.cluster_id)) }
                @for issue in &report.issues { p.alarm { "▲ " (name(issue)) } }
                dl.facts {
                    @for (value, of) in facts(report) { div { dt { (of) } dd { (value) } } }
                }
            }
            section.card {
                h2 { "Who needs attention" }
                @for kind in RosterKind::ALL { (roster_of(window, kind)) }
            }
            section.card {
                h2 { "Partitions" }
                div.scroll role="region" tabindex="0" aria-label="Partitions of the window" {
                    table {
                        thead { tr {
                            th scope="col" { "Partition" } th scope="col" { "From offset" } th scope="col" { "To offset" }
                            th scope="col" { "Offsets" } th scope="col" { "Last aggregated by" }
                        } }
                        tbody { @for (partition, (from, to)) in from_offsets.iter().zip(to_offsets).enumerate() {
                            tr {
                                th scope="row" { (partition) } td { (from) } td { (to) } td { (to - from) }
                                td { (owners.get(&(partition as i32)).map_or_else(|| html! { "?" }, |owner| name(owner))) }
                            }
                        } }
                    }
                }
            }
        }
    }
}

/// Returns the KPIs of a report and their names.
fn facts(report: &BarReport) -> Vec<(String, &'static str)> {
    let rotations = if report.secret_rotations_ok { "● ok" } else { "✕ failed" };
    vec![
        (report.agents_reporting.to_string(), "agents reporting"),
        (report.claims.to_string(), "claims counted"),
        (report.late_claims.to_string(), "claims late"),
        (report.invalid_claims.to_string(), "claims invalid"),
        (report.degraded_claims.to_string(), "claims made without beats"),
        (report.tasks_done.to_string(), "tasks done"),
        (report.tasks_failed.to_string(), "tasks failed"),
        (report.on_time_reviews.to_string(), "reviews on time"),
        (report.help_promises_fulfilled.to_string(), "help promises fulfilled"),
        (rotations.to_owned(), "secret rotations"),
        (format!("{} ms", report.tempo_drift_ms), "largest tempo drift"),
        (report.degraded_beats.to_string(), "beats without a quorum"),
        (report.grace_beats.to_string(), "grace in beats"),
    ]
}

fn roster_of(window: &WindowRoster, kind: RosterKind) -> Markup {
    let title = match kind {
        RosterKind::Silent => "Agents that fell silent",
        RosterKind::Stalled => "Tasks that stalled",
        RosterKind::Overdrawn => "Tasks that are overdrawn",
    };
    let (count, entries) = (window.count(kind), window.entries(kind));
    let shown = entries.len().min(MAX_ENTRIES);
    html! {
        h3 { (title) ": " (count) }
        @if shown > 0 {
            div.scroll role="region" tabindex="0" aria-label=(title) {
                table {
                    thead { tr {
                        th scope="col" { "Agent" } th scope="col" { "Task" } th scope="col" { "Last claim" }
                        th scope="col" { "Progress" } th scope="col" { "Beats left" } th scope="col" { "Partition" }
                    } }
                    tbody { @for (partition, entry) in &entries[..shown] { (roster_row(*partition, entry)) } }
                }
            }
        }
        @if count > shown as i64 {
            p.quiet { "And " (count - shown as i64) " more: " code { "backbeat roster --window " (window.report.window_id) " --kind " (kind.as_str()) } " lists all that are retained." }
        }
    }
}

fn roster_row(partition: i32, entry: &RosterEntry) -> Markup {
    html! {
        tr {
            th scope="row" { a href=(agent_path(&entry.agent_id)) { (name(&entry.agent_id)) } }
            td { (name(&entry.task_id)) }
            td { (word(entry.state)) " on beat " (entry.beat_index) }
            td { (format!("{:.0} %", entry.progress * 100.0)) }
            td { (entry.beats_left) }
            td { (partition) }
        }
    }
}

fn agent_page(agent: &str, history: &AgentHistory, bars: usize) -> Markup {
    let claims = history.bars.iter().map(|bar| bar.claims.len()).sum::<usize>();
    html! {
        main #main {
            section.card {
                h1 { "Agent " (name(agent)) }
                p { (claims) " claims in the last " (history.bars.len()) " bars. " span.quiet { (extent(history)) } }
                p.links {
                    a href=(agent_path(agent)) { "Reload" }
                    @if bars < MAX_BARS { " " a href=(format!("{}&last={MAX_BARS}", agent_path(agent))) { "Last " (MAX_BARS) " bars" } }
                }
            }
            @for bar in history.bars.iter().rev() { (bar_section(bar)) }
        }
    }
}

fn bar_section(bar: &AgentBar) -> Markup {
    let title = format!("Claims for beats {} to {}", bar.from_beat, bar.to_beat);
    html! {
        section.card {
            h2 { a href=(format!("/windows/{}", bar.window_id)) { "Beats " (bar.from_beat) " to " (bar.to_beat) } }
            p { (bar_outcome(bar)) }
            @if !bar.claims.is_empty() {
                div.scroll role="region" tabindex="0" aria-label=(title) {
                    table {
                        thead { tr {
                            th scope="col" { "Beat" } th scope="col" { "Task" } th scope="col" { "State" } th scope="col" { "Progress" }
                            th scope="col" { "Beats left" } th scope="col" { "Outcome" } th scope="col" { "Record" }
                        } }
                        tbody { @for claim in &bar.claims { (claim_row(claim)) } }
                    }
                }
            }
        }
    }
}

fn claim_row(record: &AgentClaim) -> Markup {
    html! {
        tr {
            @match &record.claim {
                Some(claim) => {
                    th scope="row" { (claim.beat_index) } td { (name(&claim.task_id)) } td { (word(claim.state)) }
                    td { (format!("{:.0} %", claim.progress * 100.0)) } td { (claim.beats_left) }
                }
                None => { th scope="row" { "?" } td colspan="4" { "not readable" } }
            }
            td { (name(&outcome_as_text(&record.outcome))) @if record.misplaced { ", ▲ misplaced" } }
            td { (record.partition) "/" (record.offset) }
        }
    }
}
