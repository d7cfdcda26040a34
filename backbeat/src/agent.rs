//! `backbeat agent`: one agent's claims, bar by bar, with the outcome of each. `backbeat explain`: the same of one beat, in words.

use std::process::ExitCode;

use anyhow::ensure;
use backbeat_broker::{Broker, KafkaArgs, Registry};
use backbeat_http_api::reverb::{AgentBar, AgentClaim, AgentHistory, ClaimOutcome};
use backbeat_reverb::agent_history::{HistoryRange, agent_history};
use backbeat_schemas::BeatIndex;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::beat_flag::beat_parser;
use crate::output::OutputArgs;

/// Flags of `backbeat agent`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat agent agent-7
  backbeat agent agent-7 --last 3
  backbeat agent agent-7 --from 40 --to 80 --output json")]
pub(crate) struct Args {
    /// The agent's id.
    #[arg(value_name = "AGENT")]
    agent: String,

    /// A beat of the first bar; by default the newest bars are shown.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser(), conflicts_with = "last")]
    from: Option<BeatIndex>,

    /// A beat of the last bar; by default the newest one.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser())]
    to: Option<BeatIndex>,

    /// The number of bars.
    #[arg(long, value_name = "BARS", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    last: u32,

    #[command(flatten)]
    read: ReadArgs,
}

/// Flags of `backbeat explain`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat explain --agent agent-7 --beat 41
  backbeat explain --agent agent-7 --beat 41 --all-partitions --output json")]
pub(crate) struct ExplainArgs {
    /// The agent's id.
    #[arg(long, value_name = "AGENT")]
    agent: String,

    /// The beat for which the agent claimed, or should have.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser())]
    beat: BeatIndex,

    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, Clone, clap::Args)]
struct ReadArgs {
    /// Read all partitions of `statusclaims`, not only that of the agent's key: for agents with another partitioner.
    #[arg(long)]
    all_partitions: bool,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

impl ReadArgs {
    fn history(
        &self,
        agent: &str,
        from: Option<BeatIndex>,
        to: Option<BeatIndex>,
        bars: usize,
    ) -> anyhow::Result<AgentHistory> {
        ensure!(!agent.is_empty(), "an agent's id has 1 to 256 bytes");
        let runtime = Runtime::new()?;
        let broker = Broker::new(&self.kafka, "backbeat-agent")?;
        let registry = Registry::new(&self.kafka)?;
        let stop = backbeat_service::on_signals_in(runtime.handle())?;
        let all_partitions = self.all_partitions;
        let range = HistoryRange { from, to, bars, all_partitions, max_records: u64::MAX, max_bytes: usize::MAX };
        Ok(agent_history(&broker, &registry, runtime.handle(), agent, range, &stop)?)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let (Some(from), Some(to)) = (args.from, args.to) {
        ensure!(from <= to, "--from {from} is after --to {to}");
    }
    let bars = if args.from.is_some() { usize::MAX } else { args.last as usize };
    let history = args.read.history(&args.agent, args.from, args.to, bars)?;
    args.read.output.print_summary(&format!("{}: {}", args.agent, extent(&history)));
    for bar in &history.bars {
        args.read.output.print(|| bar_as_text(bar), || json!(bar));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let beat = args.beat;
    // To the end of the log: the claim may have come late.
    let history = args.read.history(&args.agent, Some(beat), None, usize::MAX)?;
    // A range from a beat on begins with its bar.
    let Some(bar) = history.bars.first() else { return Ok(ExitCode::SUCCESS) };
    let claims = bar.claims.iter().filter(|claim| beat_of(claim).is_none_or(|named| named == beat.get()));
    let claims: Vec<&AgentClaim> = claims.collect();
    args.read.output.print(
        || match claims[..] {
            [] => nothing(args, &history, bar),
            _ => claims.iter().map(|claim| explanation(claim, bar)).collect::<Vec<_>>().join("\n"),
        },
        || json!({ "beat": beat, "window_id": bar.window_id, "from_beat": bar.from_beat, "to_beat": bar.to_beat, "claims": claims }),
    );
    Ok(ExitCode::SUCCESS)
}

/// Returns which partitions were read, and how many records.
pub(crate) fn extent(history: &AgentHistory) -> String {
    let partitions: Vec<String> = history.partitions.iter().map(ToString::to_string).collect();
    format!("{} records read in partition {}", history.records, partitions.join(", "))
}

/// Returns what counted in a bar.
pub(crate) fn bar_outcome(bar: &AgentBar) -> String {
    match (bar.counted, bar.closed, bar.retained) {
        (_, _, false) => "not retained".to_owned(),
        (0, true, true) => "silent".to_owned(),
        (counted, true, true) => format!("{counted} counted"),
        (counted, false, true) => format!("open, {counted} counted so far"),
    }
}

fn bar_as_text(bar: &AgentBar) -> String {
    let head = format!("beats {}-{}  window {}  {}", bar.from_beat, bar.to_beat, bar.window_id, bar_outcome(bar));
    let claims = bar.claims.iter().map(|claim| format!("\n  {}", claim_as_text(claim)));
    claims.fold(head, |text, claim| text + &claim)
}

fn claim_as_text(record: &AgentClaim) -> String {
    let said = record.claim.as_ref().map_or_else(
        || "not readable".to_owned(),
        |claim| {
            format!(
                "beat {}  {}  {}  {:.0} %, {} beats left",
                claim.beat_index,
                claim.task_id,
                json!(claim.state).as_str().unwrap_or_default(),
                claim.progress * 100.0,
                claim.beats_left
            )
        },
    );
    let arrived = record.arrival_beat.map_or_else(String::new, |beat| format!(", arrived on beat {beat}"));
    format!("{said}  offset {}{arrived}: {}{}", record.offset, outcome_as_text(&record.outcome), misplaced(record))
}

fn misplaced(record: &AgentClaim) -> String {
    if record.misplaced { format!("; misplaced, in partition {}", record.partition) } else { String::new() }
}

pub(crate) fn outcome_as_text(outcome: &ClaimOutcome) -> String {
    match outcome {
        ClaimOutcome::Counted => "counted".to_owned(),
        ClaimOutcome::Late { late_by_beats: Some(beats) } => format!("late by {beats} beats"),
        ClaimOutcome::Late { late_by_beats: None } => "late, its window closed long before".to_owned(),
        ClaimOutcome::Invalid { message, .. } => format!("invalid, {message}"),
        ClaimOutcome::AwaitsBeat => "waits for the next beat".to_owned(),
    }
}

/// Returns a sentence on the outcome of a claim.
fn explanation(record: &AgentClaim, bar: &AgentBar) -> String {
    let AgentClaim { partition, offset, .. } = record;
    let window = format!("window {} (beats {} to {})", bar.window_id, bar.from_beat, bar.to_beat);
    let arrival =
        record.arrival_beat.map_or_else(|| "after the newest beat".to_owned(), |beat| format!("on beat {beat}"));
    let because = match &record.outcome {
        ClaimOutcome::Counted => format!("so it counts in {window}"),
        ClaimOutcome::Late { late_by_beats: Some(beats) } => format!("{beats} beats too late for {window}"),
        ClaimOutcome::Late { late_by_beats: None } => format!("too late for {window}"),
        ClaimOutcome::Invalid { message, .. } => format!("and is invalid: {message}"),
        ClaimOutcome::AwaitsBeat => "so the next beat decides whether it counts".to_owned(),
    };
    format!("the claim at offset {offset} of partition {partition} arrived {arrival}, {because}{}", misplaced(record))
}

/// Returns a sentence on why there is no claim for the beat.
fn nothing(args: &ExplainArgs, history: &AgentHistory, bar: &AgentBar) -> String {
    let ExplainArgs { agent, beat, .. } = args;
    if !bar.retained {
        return format!("claims of beats {} to {} are no longer retained", bar.from_beat, bar.to_beat);
    }
    let others: Vec<String> = bar.claims.iter().filter_map(beat_of).map(|beat| beat.to_string()).collect();
    let others = match &others[..] {
        [] => format!("nor for another one of {} to {}", bar.from_beat, bar.to_beat),
        others => format!("but for {}", others.join(", ")),
    };
    let hint = if args.read.all_partitions { "" } else { "; --all-partitions reads the others, too" };
    format!("{agent} has no claim for beat {beat}, {others} ({}{hint})", extent(history))
}

fn beat_of(record: &AgentClaim) -> Option<i64> {
    record.claim.as_ref().map(|claim| claim.beat_index)
}
