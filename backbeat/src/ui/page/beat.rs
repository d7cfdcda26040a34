//! The beat, the tempo, and what is in the way of both.

use backbeat_http_api::pulse;
use backbeat_schemas::BeatFrame;
use maud::{Markup, html};

use super::{HEIGHT, counted, name, still_instant, word};
use crate::ui::board::{Board, MAX_BEATS};

/// The largest bar that is drawn as one dot for each beat.
const MAX_DOTS: u16 = 32;
/// The largest jitter that the SLO of pulse allows, in milliseconds.
const JITTER_SLO_MS: i64 = 20;

pub(super) fn banner(board: &Board) -> Markup {
    html! {
        div #banner role="status" {
            @if let Some((since, reason)) = &board.kafka_trouble {
                p.alarm { "✕ Kafka has not answered since " (still_instant(*since)) ". What is below is from before that. (" (reason) ")" }
            } @else if !board.has_seen_kafka {
                p.alarm { "… Waiting for Kafka." }
            } @else if board.frame.is_none() {
                p.alarm { "… Kafka answers. Waiting for the first beat: " (name(&reason_for_no_beat(board))) }
            }
            @for (reader, (since, reason)) in &board.reader_troubles {
                p.alarm { "✕ Reading " (reader) " has failed since " (still_instant(*since)) ": " (name(reason)) }
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

pub(super) fn beat(board: &Board) -> Markup {
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

pub(super) fn tempo(board: &Board) -> Markup {
    let pending = board.newest_pulse_status().and_then(|status| status.pending.as_ref());
    html! {
        div #tempo {
            @if let Some(frame) = &board.frame {
                p.big { (frame.tempo_bpm.bpm()) span.unit { " BPM" } }
                p { "One beat every " (format!("{:.2}", frame.tempo_bpm.period().as_secs_f64())) " s, in bars of " (frame.bar_length)
                    ", grace of " (counted(i64::from(frame.grace_beats), "beat")) }
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
