//! The programs, their SLOs, and the newest dead letters.

use backbeat_broker::{DeadLetter, without_credentials};
use backbeat_http_api::{pulse, reverb};
use backbeat_reverb::agent_history::check_agent_id;
use backbeat_schemas::Timestamp;
use maud::{Markup, html};

use super::{agent_path, counted, instant, name, word};
use crate::output::inert;
use crate::ui::board::{Board, Known};

/// The key of a dead letter whose record had none.
const NO_KEY: &str = "null";
/// The bytes that are shown of a key that cannot be an agent's id.
const MAX_SHOWN_KEY: usize = 256;

/// Returns the class of a program's row.
fn readiness<S>(known: &Known<S>) -> &'static str {
    if known.program.problem.is_none() { "ready" } else { "unready" }
}

/// Returns the state of a program: ready, or its trouble, since when.
fn program_state<S>(known: &Known<S>) -> Markup {
    html! {
        @match &known.program.problem {
            None => "● ready",
            Some(problem) => { "✕ " (inert(problem)) "; since " (instant(known.since)) }
        }
    }
}

pub(super) fn pulse_rows(board: &Board) -> Vec<(String, Markup)> {
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
                td { (without_credentials(&known.program.url)) }
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

pub(super) fn reverb_rows(board: &Board) -> Vec<(String, Markup)> {
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
                        td { (counted(member.lag_beats, "beat")) ", " (member.lag_records.map_or_else(|| "? claims".to_owned(), |lag| counted(lag, "claim"))) }
                    }
                    None => { td { "–" } td { "–" } }
                }
                td { (without_credentials(&known.program.url)) }
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

pub(super) fn slo_rows(board: &Board) -> Vec<(String, Markup)> {
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

/// Returns a dead letter's key, with a link to the agent if it can be an agent's id.
fn key(key: &str) -> Markup {
    let shown = &key[..key.floor_char_boundary(MAX_SHOWN_KEY)];
    html! {
        @if key == NO_KEY { "none" }
        @else if key.is_empty() { "(empty)" }
        @else if check_agent_id(key).is_err() || key.contains(char::REPLACEMENT_CHARACTER) {
            (name(shown)) @if shown.len() < key.len() { "…" }
        } @else { a href=(agent_path(key)) { (name(key)) } }
    }
}

pub(super) fn dead_letter_rows(board: &Board) -> Vec<(String, Markup)> {
    let row = |letter: &DeadLetter| {
        let id = format!("d{}", letter.offset);
        let row = html! {
            tr #(id) {
                td { (instant(Timestamp::from_millis(letter.written_at_ms))) }
                td.key-of { (key(&letter.key)) }
                td.text { b { (letter.reason.replace('_', " ")) } ": " (inert(&letter.detail)) }
                td { (letter.source_partition) "/" (letter.source_offset) }
            }
        };
        (id, row)
    };
    board.dead_letters.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_a_dead_letter_is_a_link_only_if_it_can_be_an_agents_id() {
        let long = "é".repeat(200);
        for (text, expected) in [
            ("null", "none".to_owned()),
            ("", "(empty)".to_owned()),
            ("a\u{fffd}", "<bdi>a\u{fffd}</bdi>".to_owned()),
            (&long, format!("<bdi>{}</bdi>…", "é".repeat(128))),
            ("a b", "<a href=\"/agents?id=a%20b\"><bdi>a b</bdi></a>".to_owned()),
        ] {
            assert_eq!(key(text).into_string(), expected);
        }
    }
}
