//! The page as HTML: sections, each of which is a pure function of the board.

use std::borrow::Cow;

use backbeat_broker::DeadLetter;
use backbeat_http_api::{pulse, reverb};
use backbeat_schemas::{BarReport, BeatFrame, Timestamp, Verdict};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::json;

use super::board::{Board, Known, MAX_BEATS, WindowView};
use crate::output::inert;

/// The largest bar that is drawn as one dot for each beat.
const MAX_DOTS: u16 = 32;
/// The largest jitter that the SLO of pulse allows, in milliseconds.
const JITTER_SLO_MS: i64 = 20;
/// The height of a window's column, and that of the chart of beats, in units of their drawings.
const HEIGHT: f64 = 40.0;

/// The key of a dead letter whose record had none.
const NO_KEY: &str = "null";

/// A part of the page that changes as a whole, or by rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Section {
    /// The element, whose id is the section's.
    pub(crate) html: String,
    /// The elements in it by id, if it is a list.
    pub(crate) rows: Vec<(String, String)>,
}

impl Section {
    fn leaf(html: Markup) -> Self {
        Self { html: html.into_string(), rows: Vec::new() }
    }

    /// Creates a list that is an element `tag`, or a list with the row `none` if there are no `rows`.
    fn list(tag: &str, id: &str, rows: Vec<(String, Markup)>, none: impl FnOnce(&str) -> Markup) -> Self {
        let mut rows: Vec<(String, String)> = rows.into_iter().map(|(id, row)| (id, row.into_string())).collect();
        if rows.is_empty() {
            let id = format!("{id}-none");
            let row = none(&id).into_string();
            rows.push((id, row));
        }
        let inner: String = rows.iter().map(|(_, html)| html.as_str()).collect();
        Self { html: format!("<{tag} id=\"{id}\">{inner}</{tag}>"), rows }
    }

    /// Returns the elements to replace so that `old` becomes this.
    pub(crate) fn changes_since<'s>(&'s self, old: &Self) -> Vec<&'s str> {
        let ids = |section: &'s Self| section.rows.iter().map(|(id, _)| id);
        let has_same_rows = !self.rows.is_empty() && ids(self).eq(old.rows.iter().map(|(id, _)| id));
        if self.html == old.html {
            Vec::new()
        } else if has_same_rows {
            let pairs = self.rows.iter().zip(&old.rows);
            pairs.filter(|(new, old)| new != old).map(|((_, html), _)| html.as_str()).collect()
        } else {
            vec![&self.html]
        }
    }
}

/// The settings of the page that do not change while the program runs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// A sentence about the cluster, for those who look at the page.
    pub(crate) notice: Option<String>,
    /// True if the page can change the tempo.
    pub(crate) can_change_tempo: bool,
    /// The paths of the stylesheet and of the module, which contain their versions.
    pub(crate) css: String,
    pub(crate) js: String,
}

/// Returns the sections of the page, in an order that does not change.
pub(crate) fn sections(board: &Board) -> Vec<Section> {
    vec![
        Section::leaf(banner(board)),
        Section::leaf(beat(board)),
        Section::leaf(tempo(board)),
        Section::leaf(attention(board)),
        Section::list("ol", "strip", strip(board), |id| html! { li id=(id) {} }),
        rows("windows", "No window has opened yet.", 9, windows(board)),
        rows("pulse", "No pulse node is known.", 5, pulse_rows(board)),
        rows("reverb", "No reverb member is known.", 6, reverb_rows(board)),
        rows("slos", "No reverb member that answers has measured one.", 5, slo_rows(board)),
        rows("dead-letters", "None.", 4, dead_letter_rows(board)),
        Section::leaf(announcement(board)),
    ]
}

fn rows(id: &str, none: &str, columns: usize, rows: Vec<(String, Markup)>) -> Section {
    Section::list("tbody", id, rows, |id| html! { tr id=(id) { td colspan=(columns) { (none) } } })
}

/// Returns the page with `sections`. `event_id` is that of the last change in them, and `now` the instant at which it is rendered.
pub(crate) fn dashboard(settings: &Settings, sections: &[Section], event_id: &str, now: Timestamp) -> String {
    let [banner, beat, tempo, attention, strip, windows, pulse, reverb, slos, dead_letters, announcement] = sections
    else {
        unreachable!("sections() returns as many");
    };
    let content = html! {
        h1.hidden { "Beats and reports of the cluster" }
        (raw(banner))
        div.top {
            section.card.metronome aria-labelledby="h-beat" { h2 #h-beat { "Beat" } (raw(beat)) }
            div.card {
                section aria-labelledby="h-tempo" { h2 #h-tempo { "Tempo" } (raw(tempo)) (tempo_form(settings)) }
            }
            section.card aria-labelledby="h-attention" { h2 #h-attention { "Last report" } (raw(attention)) (agent_form()) }
        }
        section.card aria-labelledby="h-windows" {
            h2 #h-windows { "Windows" }
            p.legend {
                span.key.counted { "claims counted" } span.key.late { "late" } span.key.invalid { "invalid" }
                span.key.open { "still open" }
            }
            (raw(strip))
            (table("windows", "The last windows, newest first", windows, &[
                "Beats", "State", "Agents", "Claims", "Late", "Invalid", "Done", "Failed", "Attention",
            ]))
        }
        section.card aria-labelledby="h-pulse" {
            h2 #h-pulse { "Pulse" }
            (table("pulse", "Pulse nodes", pulse, &["Node", "Role", "State", "Jitter p95", "Address"]))
        }
        section.card aria-labelledby="h-reverb" {
            h2 #h-reverb { "Reverb" }
            (table("reverb", "Reverb members", reverb, &["Member", "Role", "State", "Partitions", "Lag", "Address"]))
        }
        div.pair {
            section.card aria-labelledby="h-slos" {
                h2 #h-slos { "Objectives (SLOs)" }
                (table("slos", "Service level objectives", slos, &["Objective", "State", "p95", "Limit", "Requirement"]))
            }
            section.card aria-labelledby="h-dead-letters" {
                h2 #h-dead-letters { "Dead letters" }
                (table("dead-letters", "Invalid claims, newest first", dead_letters, &["Time", "Key", "Reason", "Record"]))
            }
        }
        (raw(announcement))
    };
    let live = html! { main #main data-live="/events" data-after=(event_id) data-now=(now.millis()) { (content) } };
    document(settings, "Cluster", &live)
}

/// Returns a page with a head, and with links back to the first one.
pub(crate) fn document(settings: &Settings, title: &str, main: &Markup) -> String {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " - BACKBEAT" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href=(settings.css);
                script type="module" src=(settings.js) {}
            }
            body {
                a.skip href="#main" { "Skip to content" }
                header {
                    p.brand { a href="/" { "BACKBEAT" } }
                    @if let Some(notice) = &settings.notice { p.notice { (notice) } }
                    p #connection role="status" {
                        noscript { "Without JavaScript this page shows one moment. Reload it for the next one." }
                    }
                }
                (main)
                footer { p { "Times are UTC. State that this page does not get any more says since when." } }
            }
        }
    };
    document.into_string()
}

fn raw(section: &Section) -> PreEscaped<&str> {
    PreEscaped(&section.html)
}

/// Returns a table whose body is `section`, in a region that can be scrolled by keys.
fn table(id: &str, caption: &str, section: &Section, columns: &[&str]) -> Markup {
    html! {
        div.scroll role="region" tabindex="0" aria-label=(caption) {
            table.short.(format!("t-{id}")) {
                caption.hidden { (caption) }
                thead { tr { @for column in columns { th scope="col" { (column) } } } }
                (raw(section))
            }
        }
    }
}

/// Returns a text that agents choose, so that it changes neither the direction nor the place of what stands around it.
pub(crate) fn name(text: &str) -> Markup {
    html! { bdi { (inert(text)) } }
}

/// Returns the path of an agent's page.
pub(crate) fn agent_path(agent: &str) -> String {
    format!("/agents?id={}", utf8_percent_encode(agent, NON_ALPHANUMERIC))
}

/// Returns an instant, to which the module adds its age.
fn instant(at: Timestamp) -> Markup {
    let text = at.to_string();
    let time = text.get(11..19).unwrap_or_default();
    html! { time datetime=(text) data-at=(at.millis()) { (time) } }
}

/// Returns an instant without its age, for texts that screen readers read out whenever they change.
fn still_instant(at: Timestamp) -> Markup {
    let text = at.to_string();
    html! { time datetime=(text) { (text.get(11..19).unwrap_or_default()) } }
}

/// Returns the name of a value of an enum, as the API has it, in words.
pub(crate) fn word(value: impl Serialize) -> String {
    json!(value).as_str().unwrap_or("?").replace('_', " ")
}

fn banner(board: &Board) -> Markup {
    html! {
        div #banner role="status" {
            @if let Some((since, reason)) = &board.kafka_trouble {
                p.alarm { "✕ Kafka does not answer since " (still_instant(*since)) ". What stands below is of before. (" (reason) ")" }
            } @else if !board.has_seen_kafka {
                p.alarm { "… Waiting for Kafka." }
            } @else if board.frame.is_none() {
                p.alarm { "… Kafka answers. Waiting for the first beat: " (name(&reason_for_no_beat(board))) }
            }
            @for (reader, (since, reason)) in &board.reader_troubles {
                p.alarm { "✕ Cannot read " (reader) " since " (still_instant(*since)) ": " (name(reason)) }
            }
        }
    }
}

fn reason_for_no_beat(board: &Board) -> String {
    match board.newest_pulse_status() {
        None => "no pulse node answers".to_owned(),
        Some(pulse::StatusBody { beat: Some(beat), .. }) => {
            format!("beat {beat} is published, and cannot be read; does the schema registry answer?")
        }
        Some(pulse::StatusBody { waiting_for: Some(reason), .. }) => format!("pulse waits for {reason}"),
        Some(_) => "no pulse node has published one".to_owned(),
    }
}

fn beat(board: &Board) -> Markup {
    let Some(frame) = &board.frame else {
        return html! { div #beat { p.big { "–" } p { "No beat yet." } } };
    };
    let window = board.windows.values().rev().find(|window| window.window_id == frame.window_id);
    let position = window.map(|window| window.beats);
    let off = frame.emitted_at.millis_since(frame.scheduled_at);
    let state = if off.abs() > JITTER_SLO_MS {
        format!("▲ {off:+} ms off its schedule")
    } else {
        format!("on time ({off:+} ms)")
    };
    html! {
        div #beat data-beat=(frame.beat_index) data-due=(board.due.millis()) {
            svg.pendulum viewBox="0 0 100 70" aria-hidden="true" {
                path.frame d="M30 68 L42 4 H58 L70 68 Z" {}
                line #arm.(if frame.beat_index.get() % 2 == 0 { "left" } else { "right" }) x1="50" y1="64" x2="50" y2="10" {}
            }
            p.big { span #beat-index { (frame.beat_index) } }
            p { strong {
                @match position {
                    Some(position) => { "Beat " (position) " of " (frame.bar_length) }
                    None => { "In a bar of " (frame.bar_length) }
                }
            } ", " (word(frame.phase)) }
            (dots(frame, position))
            p #beat-state data-text=(state) { (state) }
            p.quiet { "cluster " (name(&frame.cluster_id)) ", from " (name(&frame.node)) ", term " (frame.term)
                @if frame.degraded { strong { ", ▲ without a quorum" } } }
            (beats_chart(board))
        }
    }
}

fn dots(frame: &BeatFrame, position: Option<u16>) -> Markup {
    let position = position.unwrap_or(0);
    if frame.bar_length > MAX_DOTS {
        return html! { progress aria-label="Beats of the bar" max=(frame.bar_length) value=(position) {} };
    }
    html! {
        p.dots aria-hidden="true" {
            @for beat in 1..=frame.bar_length {
                span.(if beat <= position { "on" } else { "off" }).(if beat == position { "now" } else { "then" }) {
                    @if beat <= position { "●" } @else { "○" }
                }
            }
        }
    }
}

/// Draws how far off their schedule the last beats were; 40 ms and more fill the height.
fn beats_chart(board: &Board) -> Markup {
    let worst = board.lateness_ms.iter().map(|late| late.abs()).max().unwrap_or_default();
    let count = board.lateness_ms.len();
    let label = format!("Jitter of the last {count} beats: at most {worst} ms");
    html! {
        svg.chart viewBox=(format!("0 0 {} {HEIGHT}", MAX_BEATS * 4)) preserveAspectRatio="none" role="img" aria-label=(label) {
            @for (index, late) in board.lateness_ms.iter().enumerate() {
                @let height = (late.abs() as f64).clamp(1.0, HEIGHT);
                rect.(if late.abs() > JITTER_SLO_MS { "late" } else { "counted" })
                    x=((MAX_BEATS - count + index) * 4) y=(HEIGHT - height) width="3" height=(height) {}
            }
        }
        p.quiet { (label) }
    }
}

fn tempo(board: &Board) -> Markup {
    let pending = board.newest_pulse_status().and_then(|status| status.pending.as_ref());
    html! {
        div #tempo {
            @if let Some(frame) = &board.frame {
                p.big { (frame.tempo_bpm.bpm()) span.unit { " BPM" } }
                p { "One beat every " (format!("{:.2}", frame.tempo_bpm.period().as_secs_f64())) " s, in bars of " (frame.bar_length)
                    ", grace of " (frame.grace_beats) " beats" }
            } @else {
                p.big { "–" }
            }
            @if let Some(pulse::Pending { from_beat, tempo_bpm, bar_length, ramp }) = pending {
                p.alarm { "▲ Changing to " (tempo_bpm) " in bars of " (bar_length) " from beat " (from_beat)
                    @if *ramp { ", by at most 10 % a bar" } }
            }
        }
    }
}

fn tempo_form(settings: &Settings) -> Markup {
    if !settings.can_change_tempo {
        return html! { p.quiet { "This page is read-only. It changes the tempo if backbeat ui has an --admin-token-file." } };
    }
    html! {
        details {
            summary { "Change the tempo" }
            form #tempo-form autocomplete="off" {
                label { "Tempo (BPM)" input name="tempo_bpm" inputmode="decimal"; }
                label { "Beats per bar" input name="bar_length" inputmode="numeric"; }
                label.check { input type="checkbox" name="ramp"; "by at most 10 % a bar, to any tempo" }
                label { "Admin token" input type="password" name="token" required; }
                p { button type="submit" { "Change" } " " button type="button" #tempo-cancel { "Cancel a change under way" } }
                output #tempo-result role="status" {}
            }
        }
    }
}

fn agent_form() -> Markup {
    html! {
        form.inline action="/agents" method="get" {
            label { "Agent's claims" input name="id" required maxlength="256"; }
            button type="submit" { "Show" }
        }
    }
}

fn attention(board: &Board) -> Markup {
    html! {
        div #attention {
            @if let Some(report) = &board.last_report {
                p.big { (report.agents_reporting) span.unit { " agents" } }
                p { (report.claims) " claims on beats " (report.from_beat) " to " (report.to_beat) ", closed " (instant(report.closed_at)) }
                ul.counts {
                    (count("fell silent", report.agents_fell_silent))
                    (count("tasks stalled", report.tasks_stalled))
                    (count("tasks overdrawn", report.tasks_overdrawn))
                    (count("claims late", report.late_claims))
                    (count("claims invalid", report.invalid_claims))
                }
                p { a href=(format!("/windows/{}", report.window_id)) { "Who needs attention" } }
            } @else {
                p.big { "–" }
                p { "No report yet: the first one follows the first bar." }
            }
        }
    }
}

fn count(of: &str, number: i64) -> Markup {
    html! { li.(if number > 0 { "some" } else { "none" }) { b { (number) } " " (of) @if number > 0 { " ▲" } } }
}

/// Draws each window as a column, oldest first.
fn strip(board: &Board) -> Vec<(String, Markup)> {
    let total = |window: &WindowView| {
        window.claims() + window.report.as_ref().map_or(0, |report| report.late_claims + report.invalid_claims)
    };
    let most = board.windows.values().map(total).max().unwrap_or_default().max(1) as f64;
    let column = |window: &WindowView| {
        let (late, invalid) =
            window.report.as_ref().map_or((0, 0), |report| (report.late_claims, report.invalid_claims));
        let (state, text) = window_state(window);
        let title = format!(
            "Beats {}{}: {text}, {} claims, {late} late, {invalid} invalid",
            window.from_beat,
            window
                .bar_length
                .map(|length| format!(" to {}", window.from_beat.plus(length.into()).get() - 1))
                .unwrap_or_default(),
            window.claims()
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

fn windows(board: &Board) -> Vec<(String, Markup)> {
    let row = |window: &WindowView| {
        let id = format!("w{}", window.from_beat);
        let (state, text) = window_state(window);
        let last = window.bar_length.map(|length| window.from_beat.get() + i64::from(length) - 1);
        let link = html! {
            a href=(format!("/windows/{}", window.window_id)) { (window.from_beat) @if let Some(last) = last { "–" (last) } }
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
        (report.issues.len() as i64, "issues"),
    ];
    let some: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, of)| format!("{count} {of}")).collect();
    html! { @if some.is_empty() { "none" } @else { "▲ " (some.join(", ")) } }
}

/// Returns the class of a program's row.
fn readiness<S>(known: &Known<S>) -> &'static str {
    if known.program.problem.is_none() { "ready" } else { "unready" }
}

/// Returns the state of a program: ready, or its trouble, since when.
fn program_state<S>(known: &Known<S>) -> Markup {
    html! {
        @match &known.program.problem {
            None => "● ready",
            Some(problem) => { "✕ " (inert(problem)) " since " (instant(known.since)) }
        }
    }
}

fn pulse_rows(board: &Board) -> Vec<(String, Markup)> {
    let row = |(index, known): (usize, &Known<pulse::StatusBody>)| {
        let status = known.program.status.as_ref();
        let id = format!("pulse-{index}");
        let jitter = status.and_then(|status| status.jitter_ms.as_ref());
        let row = html! {
            tr #(id).(readiness(known)) {
                th.text scope="row" { (status.map_or_else(|| html! { "?" }, |status| name(&status.node))) }
                td { (status.map_or_else(|| "?".to_owned(), |status| role(status, known.answers))) }
                td.text { (program_state(known)) }
                td { (jitter.map_or_else(|| "–".to_owned(), |jitter| format!("{} ms", jitter.p95))) }
                td { (known.program.url) }
            }
        };
        (id, row)
    };
    board.pulse.values().enumerate().map(row).collect()
}

fn role(status: &pulse::StatusBody, answers: bool) -> String {
    let role = word(status.role);
    if !answers {
        return format!("was {role}");
    }
    let term = status.term.map(|term| format!(", term {term}")).unwrap_or_default();
    match status.role {
        pulse::RoleName::Leader => format!("★ {role}{term}"),
        pulse::RoleName::DegradedLeader => format!("▲ {role}{term}"),
        _ => format!("{role}{term}"),
    }
}

fn reverb_rows(board: &Board) -> Vec<(String, Markup)> {
    let row = |(index, known): (usize, &Known<reverb::StatusBody>)| {
        let id = format!("reverb-{index}");
        let member = known.program.status.as_ref().map(|status| &status.member);
        let row = html! {
            tr #(id).(readiness(known)) {
                th scope="row" { (member.map_or_else(|| html! { "?" }, |member| name(&member.name))) }
                td { @match member {
                    Some(member) if member.merging && known.answers => "★ merge",
                    Some(member) if member.merging => "was merge",
                    Some(_) => "aggregates",
                    None => "?",
                } }
                td.text { (program_state(known)) }
                @match member.filter(|_| known.answers) {
                    Some(member) => {
                        td { (partitions(member)) }
                        td { (member.lag_beats) " beats, " (member.lag_records.map_or_else(|| "?".to_owned(), |lag| lag.to_string())) " claims" }
                    }
                    None => { td { "–" } td { "–" } }
                }
                td { (known.program.url) }
            }
        };
        (id, row)
    };
    board.reverb.values().enumerate().map(row).collect()
}

/// Returns the partitions of a member as ranges: `0-3, 7`.
fn partitions(member: &reverb::MemberStatus) -> String {
    let mut ranges = Vec::<(i32, i32)>::new();
    for partition in member.partitions.iter().map(|status| status.partition) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == partition => *last = partition,
            _ => ranges.push((partition, partition)),
        }
    }
    let text = |(first, last): &(i32, i32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let ranges = ranges.iter().map(text).collect::<Vec<_>>().join(", ");
    if ranges.is_empty() { "none".to_owned() } else { ranges }
}

fn slo_rows(board: &Board) -> Vec<(String, Markup)> {
    let row = |slo: &reverb::Slo| {
        let id = format!("slo-{}", slo.name);
        let ms = |value: Option<i64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value} ms"));
        let (class, state) = match slo.met {
            Some(true) => ("ready", "● met"),
            Some(false) => ("unready", "✕ violated"),
            None => ("none", "○ no samples"),
        };
        let row = html! {
            tr #(id).(class) {
                th scope="row" { (slo.name.replace('_', " ")) }
                td { (state) } td { (ms(slo.p95_ms)) } td { (ms(slo.limit_ms)) } td.text { (slo.requirement) }
            }
        };
        (id, row)
    };
    board.slos().iter().map(row).collect()
}

fn dead_letter_rows(board: &Board) -> Vec<(String, Markup)> {
    let row = |letter: &DeadLetter| {
        let id = format!("d{}", letter.offset);
        let row = html! {
            tr #(id) {
                td { (instant(Timestamp::from_millis(letter.written_at_ms))) }
                td.key-of { @if letter.key == NO_KEY { "none" } @else { a href=(agent_path(&letter.key)) { (name(&letter.key)) } } }
                td.text { b { (letter.reason.replace('_', " ")) } ": " (inert(&letter.detail)) }
                td { (letter.source_partition) "/" (letter.source_offset) }
            }
        };
        (id, row)
    };
    board.dead_letters.iter().map(row).collect()
}

/// Returns what a screen reader says once a bar.
fn announcement(board: &Board) -> Markup {
    html! {
        p #announcement.hidden aria-live="polite" {
            @if let Some(report) = &board.last_report {
                "Report of beats " (report.from_beat) " to " (report.to_beat) ": " (report.agents_reporting) " agents, "
                (report.claims) " claims, " (report.late_claims) " late, " (report.invalid_claims) " invalid, "
                (report.agents_fell_silent) " fell silent, " (report.tasks_stalled) " stalled, " (report.tasks_overdrawn) " overdrawn."
            }
        }
    }
}
