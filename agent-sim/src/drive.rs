//! Hears the beats, makes the claims, sends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_sdk::{BeatFrame, BeatSource, Beats, Connection, Reporter, Status};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};

use crate::agents::Agents;
use crate::progress::Progress;
use crate::summary::Summary;
use crate::verify::{HeardBeat, verify};
use crate::{Args, ClaimPlan, Fate};

const QUEUE_PAUSE: Duration = Duration::from_millis(5);
const FLUSH_WITHIN: Duration = Duration::from_secs(30);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Runs until `shutdown`, or until the beats or the trace are over; then prints what became of the claims.
#[allow(clippy::print_stdout, reason = "the summary is the program's output")]
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let agents = Agents::new(&args)?;
    let planned = args.verify.then(|| agents.clone());
    let connected = tokio::select! {
        connected = Connection::open(&args.kafka, "agent-sim") => Some(connected?),
        () = shutdown.cancelled() => None,
    };
    let Some(connection) = connected else { return Ok(()) };
    let beats = connection.beats()?;
    let mut run = Run::new(connection.reporter().await?, shutdown);
    run.follow(agents, beats, args.beats).await;
    let Run { heard, mut summary, reporter, .. } = run;
    let began = Instant::now();
    let flushed = tokio::task::spawn_blocking(move || {
        if let Err(error) = reporter.flush(FLUSH_WITHIN) {
            tracing::warn!(%error, "claims are left over");
        }
        reporter
    });
    summary.settle(&flushed.await.context("sending the rest panicked")?);
    summary.sending_s += began.elapsed().as_secs_f64();
    let mut failure = None;
    if let Some(agents) = planned.filter(|_| !heard.is_empty()) {
        // The first signal ended the run; a second one ends this.
        let stop = backbeat_service::on_signals()?;
        let runtime = Handle::current();
        let verified = tokio::task::spawn_blocking(move || verify(&args.kafka, &runtime, agents, &heard, &stop));
        match verified.await.context("verifying panicked")? {
            Ok(verdict) => summary.verified = verdict,
            Err(error) => failure = Some(error.context("verifying the run")),
        }
    }
    println!("{}", summary.shown(args.output)?);
    if let Some(error) = failure {
        return Err(error);
    }
    match summary.verified.map_or(0, |verdict| verdict.disagreements.len()) {
        0 => Ok(()),
        places => bail!("what was sent and what the reports counted disagree in {places} places"),
    }
}

/// One run of the agents.
struct Run {
    reporter: Reporter,
    shutdown: Shutdown,
    heard: Vec<HeardBeat>,
    summary: Summary,
    /// Claims that are sent on a later beat.
    held: BTreeMap<i64, Vec<(Arc<BeatFrame>, Status)>>,
}

impl Run {
    fn new(reporter: Reporter, shutdown: Shutdown) -> Self {
        Self { reporter, shutdown, heard: Vec::new(), summary: Summary::default(), held: BTreeMap::new() }
    }

    async fn follow(&mut self, mut agents: Agents, mut beats: Beats, limit: u64) {
        tracing::debug!("waiting for beats");
        let mut progress = Progress::new();
        let mut ticks = interval(SHOW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !agents.are_done() && (limit == 0 || self.summary.beats < limit) {
            let beat = tokio::select! {
                beat = beats.next() => beat,
                () = self.shutdown.cancelled() => None,
                _ = ticks.tick() => {
                    self.summary.settle(&self.reporter);
                    progress.show(&self.summary);
                    continue;
                }
            };
            let Some(beat) = beat else { break };
            // A simulated agent lives by the log's time alone, so that the same beats give the same claims.
            let BeatSource::Heard(frame) = beat.source else { continue };
            let began = Instant::now();
            self.beat(&mut agents, Arc::new(*frame)).await;
            self.summary.sending_s += began.elapsed().as_secs_f64();
        }
        let due = std::mem::take(&mut self.held);
        self.send_held(due).await;
        progress.clear();
    }

    async fn beat(&mut self, agents: &mut Agents, frame: Arc<BeatFrame>) {
        let (beat, downbeat) = (frame.beat_index, frame.downbeat);
        tracing::debug!(%beat, "heard");
        self.heard.push(HeardBeat { beat, downbeat });
        self.summary.beats += 1;
        self.summary.beat_index = Some(beat);
        // A beat may have been missed: what was due then is due now.
        let later = self.held.split_off(&(beat.get() + 1));
        let due = std::mem::replace(&mut self.held, later);
        self.send_held(due).await;
        for ClaimPlan { status, fate } in agents.beat(downbeat) {
            if fate == Fate::Late {
                let later = beat.get() + i64::from(frame.bar_length) + i64::from(frame.grace_beats);
                self.held.entry(later).or_default().push((Arc::clone(&frame), status));
            } else {
                self.send(&frame, status, fate).await;
            }
        }
    }

    async fn send_held(&mut self, held: BTreeMap<i64, Vec<(Arc<BeatFrame>, Status)>>) {
        for (frame, status) in held.into_values().flatten() {
            self.send(&frame, status, Fate::Late).await;
        }
    }

    /// Sends one claim; waits while the queue is full, but not once the run is to end.
    async fn send(&mut self, frame: &BeatFrame, status: Status, fate: Fate) {
        let claim = self.reporter.claim(frame, status);
        let encode = |claim: &_| self.reporter.encode(claim);
        let (key, value) = match fate {
            Fate::Malformed(kind) => kind.apply(claim, encode),
            Fate::Honest | Fate::Late => {
                let value = encode(&claim);
                (Some(claim.agent_id.into_bytes()), value)
            }
        };
        while self.reporter.send(key.as_deref(), &value).is_err() {
            if self.shutdown.is_cancelled() {
                self.summary.claims_refused += 1;
                return;
            }
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
        self.summary.claims_sent += 1;
        self.summary.claims_malformed += u64::from(matches!(fate, Fate::Malformed(_)));
        self.summary.claims_late += u64::from(chrono::Utc::now().timestamp_millis() > frame.deadline_at.millis());
    }
}
