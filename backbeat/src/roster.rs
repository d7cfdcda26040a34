//! `backbeat roster`: who needs attention in a window, by name.

use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry};
use backbeat_http_api::reverb::RosterItem;
use backbeat_reverb::rosters::{RosterWindow, SilentAgent, WindowRoster, roster, silent_still};
use backbeat_schemas::{BeatIndex, RosterEntry, RosterKind, WindowId};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::beat_flag::beat_parser;
use crate::output::OutputArgs;

/// Flags of `backbeat roster`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat roster
  backbeat roster --beat 41 --kind stalled
  backbeat roster --last 10
  backbeat roster --kind silent --output json | jq -r .agent_id")]
pub(crate) struct Args {
    /// The window's id; by default the newest window that has a report.
    #[arg(long, value_name = "ID", conflicts_with_all = ["beat", "last"])]
    window: Option<WindowId>,

    /// A beat of the window.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser(), conflicts_with = "last")]
    beat: Option<BeatIndex>,

    /// Show the agents that fell silent in the last windows and have not claimed since.
    #[arg(long, value_name = "WINDOWS", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "kind")]
    last: Option<u32>,

    /// Show only these: agents that fell silent, tasks that stalled, or tasks that are overdrawn.
    #[arg(long, value_parser = kind_parser())]
    kind: Option<RosterKind>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

/// Returns the parser of a roster's kind.
fn kind_parser() -> impl TypedValueParser<Value = RosterKind> {
    let parse = |name: String| RosterKind::ALL.into_iter().find(|kind| kind.as_str() == name);
    PossibleValuesParser::new(RosterKind::ALL.map(RosterKind::as_str))
        .map(move |name| parse(name).expect("a possible value"))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let broker = Broker::new(&args.kafka, "backbeat-roster")?;
    let registry = Registry::new(&args.kafka)?;
    let stop = backbeat_service::on_signals_in(runtime.handle())?;
    if let Some(windows) = args.last {
        let (silent, records) = silent_still(&broker, &registry, runtime.handle(), windows as usize, &stop)?;
        let count = silent.len();
        args.output.print_summary(&format!(
            "{count} agents fell silent in the last {windows} windows and have not claimed since ({records} records read)"
        ));
        for agent in &silent {
            args.output.print(|| silent_as_text(agent), || silent_as_json(agent));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let which = match (args.window, args.beat) {
        (Some(id), _) => RosterWindow::Id(id),
        (None, Some(beat)) => RosterWindow::Beat(beat),
        (None, None) => RosterWindow::Newest,
    };
    let window = roster(&broker, &registry, runtime.handle(), which, &stop)?;
    args.output.print_summary(&summary(&window));
    for kind in RosterKind::ALL.into_iter().filter(|kind| args.kind.is_none_or(|wanted| *kind == wanted)) {
        let entries = window.entries(kind);
        for (partition, entry) in &entries {
            let as_text = || format!("{:<9}  {}", kind.as_str(), entry_as_text(entry));
            args.output.print(as_text, || entry_as_json(&window, kind, *partition, entry));
        }
        let missing = window.count(kind) - entries.len() as i64;
        if missing > 0 {
            args.output.print_summary(&format!(
                "{:<9}  and {missing} more, which did not fit into the rosters, or whose rosters have expired",
                kind.as_str()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(window: &WindowRoster) -> String {
    let report = &window.report;
    format!(
        "beats {}-{}  window {}  {} agents fell silent, {} tasks stalled, {} tasks overdrawn",
        report.from_beat,
        report.to_beat,
        report.window_id,
        report.agents_fell_silent,
        report.tasks_stalled,
        report.tasks_overdrawn
    )
}

fn entry_as_text(entry: &RosterEntry) -> String {
    let RosterEntry { agent_id, task_id, beat_index, state, progress, beats_left } = entry;
    let state = json!(state);
    let state = state.as_str().unwrap_or_default();
    let progress = progress * 100.0;
    format!("{agent_id}  {task_id}  last claim on beat {beat_index}: {state}, {progress:.0} %, {beats_left} beats left")
}

fn silent_as_text(agent: &SilentAgent) -> String {
    format!("{}; silent since the bar of beat {}", entry_as_text(&agent.entry), agent.from_beat)
}

fn silent_as_json(SilentAgent { entry, from_beat, partition }: &SilentAgent) -> Value {
    let mut object = json!(RosterItem { kind: RosterKind::Silent, partition: *partition, entry: entry.clone() });
    object["from_beat"] = json!(from_beat);
    object
}

fn entry_as_json(window: &WindowRoster, kind: RosterKind, partition: i32, entry: &RosterEntry) -> Value {
    let mut object = json!(RosterItem { kind, partition, entry: entry.clone() });
    object["window_id"] = json!(window.report.window_id);
    object["from_beat"] = json!(window.report.from_beat);
    object
}
