//! The page of a window, and that of an agent.

use std::collections::BTreeMap;

use backbeat_http_api::reverb::{AgentBar, AgentClaim, AgentHistory};
use backbeat_reverb::rosters::WindowRoster;
use backbeat_schemas::{BarReport, RosterEntry, RosterKind, Verdict};
use maud::{Markup, html};

use super::{agent_path, counted, name, plural, window_state, word};
use crate::agent::{bar_outcome, extent, outcome_as_text};
use crate::ui::board::WindowView;
use crate::ui::detail::MAX_BARS;

/// The interval at which the page of a window without a report loads itself again, in milliseconds.
const RELOAD_MS: u32 = 2_000;
/// The largest number of a roster's entries of one kind that a page shows.
const MAX_ENTRIES: usize = 200;

/// Returns the page of a window without a report, which loads itself again.
pub(crate) fn open_window(window: &WindowView) -> Markup {
    let (_, state) = window_state(window);
    let (reload, outlook) = match window.verdict {
        Some(Verdict::Skipped) => (None, "Its claims had expired before they were read, so it will have none."),
        _ => (Some(RELOAD_MS), "Its report follows its last beat."),
    };
    html! {
        main #main data-reload=[reload] {
            section.card {
                h1 { "Window from beat " (window.from_beat) }
                p.big { (window.claims()) span.unit { " claim" (plural(window.claims())) " so far" } }
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

pub(crate) fn reported_window(window: &WindowRoster, owners: &BTreeMap<i32, &str>) -> Markup {
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

pub(crate) fn agent_page(agent: &str, history: &AgentHistory, bars: usize) -> Markup {
    let claims = history.bars.iter().map(|bar| bar.claims.len()).sum::<usize>() as i64;
    html! {
        main #main {
            section.card {
                h1 { "Agent " (name(agent)) }
                p { (counted(claims, "claim")) " in the last " (counted(history.bars.len() as i64, "bar")) ". " span.quiet { (extent(history)) } }
                p {
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
