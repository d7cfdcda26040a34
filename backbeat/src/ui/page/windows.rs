//! The last windows, and the last report.

use std::borrow::Cow;

use backbeat_schemas::{BarReport, Verdict};
use maud::{Markup, html};

use super::{HEIGHT, counted, instant, plural};
use crate::ui::board::{Board, WindowView};

pub(super) fn attention(board: &Board) -> Markup {
    html! {
        div #attention {
            @if let Some(report) = &board.last_report {
                p.big { (report.agents_reporting) span.unit { " agent" (plural(report.agents_reporting)) } }
                p { (counted(report.claims, "claim")) " on beats " (report.from_beat) " to " (report.to_beat) ", closed " (instant(report.closed_at)) }
                ul.counts {
                    (count("agent", "fell silent", report.agents_fell_silent))
                    (count("task", "stalled", report.tasks_stalled))
                    (count("task", "overdrawn", report.tasks_overdrawn))
                    (count("claim", "late", report.late_claims))
                    (count("claim", "invalid", report.invalid_claims))
                }
                p { a href=(format!("/windows/{}", report.window_id)) { "Who needs attention" } }
            } @else {
                p.big { "–" }
                p { "No report yet: the first one follows the first bar." }
            }
        }
    }
}

fn count(of: &str, state: &str, number: i64) -> Markup {
    html! { li.(if number > 0 { "some" } else { "none" }) { b { (number) } " " (of) (plural(number)) " " (state) @if number > 0 { " ▲" } } }
}

/// Draws each window as a column, oldest first.
pub(super) fn strip(board: &Board) -> Vec<(String, Markup)> {
    let total = |window: &WindowView| {
        window.claims() + window.report.as_ref().map_or(0, |report| report.late_claims + report.invalid_claims)
    };
    let most = board.windows.values().map(total).max().unwrap_or_default().max(1) as f64;
    let column = |window: &WindowView| {
        let (late, invalid) =
            window.report.as_ref().map_or((0, 0), |report| (report.late_claims, report.invalid_claims));
        let (state, text) = window_state(window);
        let title = format!(
            "Beats {}{}: {text}, {}, {late} late, {invalid} invalid",
            window.from_beat,
            window.to_beat().map(|last| format!(" to {last}")).unwrap_or_default(),
            counted(window.claims(), "claim")
        );
        let mut top = HEIGHT;
        let mut part = |claims: i64| {
            let height = claims as f64 / most * HEIGHT;
            top -= height;
            (format!("{top:.2}"), format!("{height:.2}"))
        };
        let parts = [("counted", part(window.claims())), ("late", part(late)), ("invalid", part(invalid))];
        html! {
            li #(column_id(window)).(state) {
                svg viewBox=(format!("0 0 10 {HEIGHT}")) preserveAspectRatio="none" role="img" aria-label=(title) {
                    title { (title) }
                    @for (class, (y, height)) in &parts { rect.(*class) x="1" y=(y) width="8" height=(height) {} }
                }
            }
        }
    };
    board.windows.values().map(|window| (column_id(window), column(window))).collect()
}

fn column_id(window: &WindowView) -> String {
    format!("c{}", window.from_beat)
}

/// Returns a class and words for a window's state.
pub(crate) fn window_state(window: &WindowView) -> (&'static str, Cow<'static, str>) {
    match (&window.report, window.verdict) {
        (Some(_), _) => ("reported", "● reported".into()),
        (None, Some(Verdict::Skipped)) => ("skipped", "✕ without a report".into()),
        (None, _) if window.is_complete() => ("open", "◐ closing".into()),
        (None, _) => match window.bar_length {
            Some(length) => ("open", format!("○ open, beat {} of {length}", window.beats).into()),
            None => ("open", "○ open".into()),
        },
    }
}

pub(super) fn windows(board: &Board) -> Vec<(String, Markup)> {
    let row = |window: &WindowView| {
        let id = format!("w{}", window.from_beat);
        let (state, text) = window_state(window);
        let link = html! {
            a href=(format!("/windows/{}", window.window_id)) { (window.from_beat) @if let Some(last) = window.to_beat() { "–" (last) } }
        };
        let row = html! {
            tr #(id).(state) {
                th scope="row" { (link) }
                td { (text) }
                @if let Some(report) = &window.report {
                    td { (report.agents_reporting) } td { (report.claims) } td { (report.late_claims) } td { (report.invalid_claims) }
                    td { (report.tasks_done) } td { (report.tasks_failed) } td.text { (needs_attention(report)) }
                } @else {
                    td { "–" } td { (window.claims()) " so far" } td { "–" } td { "–" } td { "–" } td { "–" } td { "–" }
                }
            }
        };
        (id, row)
    };
    board.windows.values().rev().map(row).collect()
}

fn needs_attention(report: &BarReport) -> Markup {
    let counts = [
        (report.agents_fell_silent, "silent"),
        (report.tasks_stalled, "stalled"),
        (report.tasks_overdrawn, "overdrawn"),
    ];
    let mut some: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, of)| format!("{count} {of}")).collect();
    if !report.issues.is_empty() {
        some.push(counted(report.issues.len() as i64, "issue"));
    }
    html! { @if some.is_empty() { "none" } @else { "▲ " (some.join(", ")) } }
}

/// Returns what a screen reader says once a bar.
pub(super) fn announcement(board: &Board) -> Markup {
    html! {
        p #announcement.hidden aria-live="polite" {
            @if let Some(report) = &board.last_report {
                "Report of beats " (report.from_beat) " to " (report.to_beat) ": " (counted(report.agents_reporting, "agent")) ", "
                (counted(report.claims, "claim")) ", " (report.late_claims) " late, " (report.invalid_claims) " invalid, "
                (report.agents_fell_silent) " fell silent, " (report.tasks_stalled) " stalled, " (report.tasks_overdrawn) " overdrawn."
            }
        }
    }
}
