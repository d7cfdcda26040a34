//! A run of the agents: receives the beats and sends the claims that the agents plan for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_sdk::{BeatFrame, BeatSource, Beats, ClaimSender, Connection, Status};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};

use crate::agents::Agents;
use crate::progress::Progress;
use crate::summary::Summary;
use crate::verify::{ReceivedBeat, verify};
use crate::{Args, ClaimPlan, Delivery};

const QUEUE_FULL_BACKOFF: Duration = Duration::from_millis(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until `shutdown`, `--beats` or the end of the task list; then verifies the run if asked to, and prints the
/// summary.
#[allow(clippy::print_stdout, reason = "the summary is the program's output")]
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let agents = Agents::new(&args)?;
    // A clone at its start makes the same claims again.
    let expected = args.verify.then(|| agents.clone());
    let connected = tokio::select! {
        connected = Connection::open(&args.kafka, "agent-sim") => Some(connected?),
        () = shutdown.cancelled() => None,
    };
    let Some(connection) = connected else { return Ok(()) };
    let beats = connection.beats()?;
    let mut run = Run::new(connection.claim_sender().await?, shutdown);
    run.follow(agents, beats, args.beats).await;
    let Run { received, mut summary, claim_sender, .. } = run;
    let started = Instant::now();
    let flushed = tokio::task::spawn_blocking(move || {
        if let Err(error) = claim_sender.flush(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "cannot flush all claims");
        }
        claim_sender
    });
    summary.update_deliveries(&flushed.await.context("flushing the claims panicked")?);
    summary.sending_s += started.elapsed().as_secs_f64();
    let mut failure = None;
    if let Some(agents) = expected.filter(|_| !received.is_empty()) {
        // The first signal ended the run; a second one cancels the verification.
        let stop = backbeat_service::on_signals()?;
        let runtime = Handle::current();
        let verified = tokio::task::spawn_blocking(move || verify(&args.kafka, &runtime, agents, &received, &stop));
        match verified.await.context("verifying panicked")? {
            Ok(result) => summary.verified = result,
            Err(error) => failure = Some(error.context("cannot verify the run")),
        }
    }
    println!("{}", summary.render(args.output)?);
    if let Some(error) = failure {
        return Err(error);
    }
    match summary.verified.map_or(0, |result| result.mismatches.len()) {
        0 => Ok(()),
        count => bail!("verification failed: {count} mismatches between the sent claims, the log and the reports"),
    }
}

/// One run of the agents.
struct Run {
    claim_sender: ClaimSender,
    shutdown: Shutdown,
    received: Vec<ReceivedBeat>,
    summary: Summary,
    /// Claims to send late, by the beat on which they are due.
    delayed: BTreeMap<i64, Vec<(Arc<BeatFrame>, Status)>>,
}

impl Run {
    fn new(claim_sender: ClaimSender, shutdown: Shutdown) -> Self {
        Self { claim_sender, shutdown, received: Vec::new(), summary: Summary::default(), delayed: BTreeMap::new() }
    }

    async fn follow(&mut self, mut agents: Agents, mut beats: Beats, limit: u64) {
        tracing::debug!("waiting for beats");
        let mut progress = Progress::new();
        let mut ticks = interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !agents.are_finished() && (limit == 0 || self.summary.beats < limit) {
            let beat = tokio::select! {
                beat = beats.next() => beat,
                () = self.shutdown.cancelled() => None,
                _ = ticks.tick() => {
                    self.summary.update_deliveries(&self.claim_sender);
                    progress.show(&self.summary);
                    continue;
                }
            };
            let Some(beat) = beat else { break };
            // Local beats are ignored, so that the same beats in the log give the same claims.
            let BeatSource::Heard(frame) = beat.source else { continue };
            let started = Instant::now();
            self.on_beat(&mut agents, Arc::new(*frame)).await;
            self.summary.sending_s += started.elapsed().as_secs_f64();
        }
        let due = std::mem::take(&mut self.delayed);
        self.send_delayed(due).await;
        progress.clear();
    }

    /// Sends the delayed claims that are due, and the agents' claims for this beat.
    async fn on_beat(&mut self, agents: &mut Agents, frame: Arc<BeatFrame>) {
        let (beat, downbeat) = (frame.beat_index, frame.downbeat);
        tracing::debug!(%beat, "received a beat");
        self.received.push(ReceivedBeat { beat, downbeat });
        self.summary.beats += 1;
        self.summary.beat_index = Some(beat);
        // Includes the claims that were due on beats that this run has missed.
        let not_due = self.delayed.split_off(&(beat.get() + 1));
        let due = std::mem::replace(&mut self.delayed, not_due);
        self.send_delayed(due).await;
        for ClaimPlan { status, delivery } in agents.claims_for_next_beat(downbeat) {
            if delivery == Delivery::Late {
                let due_beat = beat.get() + i64::from(frame.bar_length) + i64::from(frame.grace_beats);
                self.delayed.entry(due_beat).or_default().push((Arc::clone(&frame), status));
            } else {
                self.send(&frame, status, delivery).await;
            }
        }
    }

    async fn send_delayed(&mut self, delayed: BTreeMap<i64, Vec<(Arc<BeatFrame>, Status)>>) {
        for (frame, status) in delayed.into_values().flatten() {
            self.send(&frame, status, Delivery::Late).await;
        }
    }

    /// Sends one claim; waits while the producer's queue is full, except during a shutdown.
    async fn send(&mut self, frame: &BeatFrame, status: Status, delivery: Delivery) {
        let claim = self.claim_sender.build_claim(frame, status);
        let encode = |claim: &_| self.claim_sender.encode(claim);
        let (key, value) = match delivery {
            Delivery::Malformed(kind) => kind.apply(claim, encode),
            Delivery::OnTime | Delivery::Late => {
                let value = encode(&claim);
                (Some(claim.agent_id.into_bytes()), value)
            }
        };
        while self.claim_sender.send_record(key.as_deref(), &value).is_err() {
            if self.shutdown.is_cancelled() {
                self.summary.claims_refused += 1;
                return;
            }
            tokio::time::sleep(QUEUE_FULL_BACKOFF).await;
        }
        self.summary.claims_sent += 1;
        self.summary.claims_malformed += u64::from(matches!(delivery, Delivery::Malformed(_)));
        self.summary.claims_sent_after_deadline +=
            u64::from(chrono::Utc::now().timestamp_millis() > frame.deadline_at.millis());
    }
}
