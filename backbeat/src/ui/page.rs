//! The page as HTML: sections, each of which is a pure function of the board, and what stands around them.

mod beat;
pub(crate) mod detail;
mod programs;
mod windows;

use backbeat_schemas::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::json;

use self::beat::{banner, beat, tempo};
use self::programs::{dead_letter_rows, pulse_rows, reverb_rows, slo_rows};
pub(crate) use self::windows::window_state;
use self::windows::{announcement, attention, strip, windows};
use super::board::Board;
use crate::output::inert;

/// The height of a window's column, and that of the chart of beats, in units of their drawings.
const HEIGHT: f64 = 40.0;

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
    /// The paths of the stylesheet, of the module and of the icon, which contain their versions.
    pub(crate) css: String,
    pub(crate) js: String,
    pub(crate) icon: String,
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
        p #late.hidden role="status" {}
    };
    let live = html! { main #main data-live="/events" data-after=(event_id) data-now=(now.millis()) { (content) } };
    document(settings, "Cluster", &live, now)
}

/// Returns a page with a head, and with links back to the first one.
pub(crate) fn document(settings: &Settings, title: &str, main: &Markup, now: Timestamp) -> String {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " - BACKBEAT" }
                link rel="icon" href=(settings.icon) type="image/svg+xml";
                link rel="stylesheet" href=(settings.css);
                script type="module" src=(settings.js) {}
            }
            body {
                a.skip href="#main" { "Skip to content" }
                header {
                    p.brand { a href="/" { "BACKBEAT" } }
                    @if let Some(notice) = &settings.notice { p.notice { (notice) } }
                    p #connection role="status" {
                        "Not live: the state of " (still_instant(now)) ". Reload the page for a newer one."
                    }
                }
                (main)
                footer { p { "Times are UTC. State that is no longer updated says since when." } }
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

/// Returns a count with the name of what is counted, whose plural has an `s`.
pub(crate) fn counted(count: i64, of: &str) -> String {
    format!("{count} {of}{}", plural(count))
}

/// Returns the ending of a plural.
pub(crate) fn plural(count: i64) -> &'static str {
    if count == 1 { "" } else { "s" }
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
    time(at, Some(at.millis()))
}

/// Returns an instant without its age, for texts that screen readers read out whenever they change.
fn still_instant(at: Timestamp) -> Markup {
    time(at, None)
}

fn time(at: Timestamp, age_from: Option<i64>) -> Markup {
    let text = at.to_string();
    html! { time datetime=(text) data-at=[age_from] { (text.get(11..19).unwrap_or_default()) } }
}

/// Returns the name of a value of an enum, as the API has it, in words.
pub(crate) fn word(value: impl Serialize) -> String {
    json!(value).as_str().unwrap_or("?").replace('_', " ")
}
