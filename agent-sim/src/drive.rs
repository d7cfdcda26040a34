//! Hears the beats, makes the claims, sends them.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use anyhow::Context;
use backbeat_sdk::{BeatFrame, BeatSource, Beats, Connection, Reporter, Status};
use backbeat_service::Shutdown;
use serde_json::json;

use crate::{Args, ClaimPlan, Fate, Fleet, Trace};

const QUEUE_PAUSE: Duration = Duration::from_millis(5);
const FLUSH_WITHIN: Duration = Duration::from_secs(30);

/// Who makes the claims.
enum Agents {
    Fleet(Fleet),
    Trace(Trace),
}

impl Agents {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let Some(path) = &args.trace else {
            return Ok(Self::Fleet(Fleet::new(&args.agent_prefix, args.agents, args.seed, args.rates())));
        };
        let list = File::open(path).with_context(|| format!("opening the task list {}", path.display()))?;
        Ok(Self::Trace(Trace::read(list, args.trace_seconds_per_beat).with_context(|| path.display().to_string())?))
    }

    fn beat(&mut self, frame: &BeatFrame) -> Vec<ClaimPlan> {
        match self {
            Self::Fleet(fleet) => fleet.beat(frame.downbeat),
            Self::Trace(trace) => trace.beat(),
        }
    }

    fn are_done(&self) -> bool {
        matches!(self, Self::Trace(trace) if trace.is_over())
    }
}

/// Claims that are sent on a later beat.
#[derive(Default)]
struct Held {
    by_beat: BTreeMap<i64, Vec<(BeatFrame, Status)>>,
}

/// Runs until `shutdown`, or until the beats or the trace are over; then prints what became of the
/// claims, as JSON.
#[allow(clippy::print_stdout, reason = "the summary is the program's output")]
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut agents = Agents::new(&args)?;
    let connected = tokio::select! {
        connected = Connection::open(&args.kafka, "agent-sim") => Some(connected?),
        () = shutdown.cancelled() => None,
    };
    let Some(connection) = connected else { return Ok(()) };
    let mut beats = connection.beats()?;
    let mut reporter = connection.reporter().await?;
    let heard = follow(&args, &mut agents, &mut beats, &mut reporter, &shutdown).await;
    drop(beats);
    let summary = tokio::task::spawn_blocking(move || {
        if let Err(error) = reporter.flush(FLUSH_WITHIN) {
            tracing::warn!(%error, "claims are left over");
        }
        let deliveries = reporter.deliveries();
        let (acknowledged, failed, unsent) = (deliveries.acknowledged(), deliveries.failed(), deliveries.outstanding());
        json!({ "beats": heard, "claims_acknowledged": acknowledged, "claims_failed": failed, "claims_unsent": unsent })
    });
    println!("{}", summary.await.context("sending the rest panicked")?);
    Ok(())
}

async fn follow(
    args: &Args,
    agents: &mut Agents,
    beats: &mut Beats,
    reporter: &mut Reporter,
    shutdown: &Shutdown,
) -> u64 {
    let mut held = Held::default();
    let mut heard = 0;
    while args.beats == 0 || heard < args.beats {
        let beat = tokio::select! {
            beat = beats.next() => beat,
            () = shutdown.cancelled() => None,
        };
        let Some(beat) = beat else { break };
        // A simulated agent lives by the log's time alone, so that the same beats give the same claims.
        let BeatSource::Heard(frame) = beat.source else { continue };
        heard += 1;
        tracing::debug!(beat = %frame.beat_index, "heard");
        // A beat may have been missed: what was due then is due now.
        let later = held.by_beat.split_off(&(frame.beat_index.get() + 1));
        let due = std::mem::replace(&mut held.by_beat, later);
        for (frame, status) in due.into_values().flatten() {
            report(reporter, &frame, &status, Fate::Honest).await;
        }
        for ClaimPlan { status, fate } in agents.beat(&frame) {
            if fate == Fate::Late {
                let later = frame.beat_index.get() + i64::from(frame.bar_length) + i64::from(frame.grace_beats);
                held.by_beat.entry(later).or_default().push(((*frame).clone(), status));
            } else {
                report(reporter, &frame, &status, fate).await;
            }
        }
        if agents.are_done() {
            break;
        }
    }
    heard
}

/// Sends one claim; waits while the queue is full.
async fn report(reporter: &mut Reporter, frame: &BeatFrame, status: &Status, fate: Fate) {
    let claim = reporter.claim(frame, status);
    let (key, value) = match fate {
        Fate::Malformed(kind) => kind.apply(claim, |claim| reporter.encode(claim)),
        Fate::Honest | Fate::Late => (Some(claim.agent_id.clone().into_bytes()), reporter.encode(&claim)),
    };
    while reporter.send(key.as_deref(), &value).is_err() {
        tokio::time::sleep(QUEUE_PAUSE).await;
    }
}
