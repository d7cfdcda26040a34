//! `backbeat notify`: posts a notification for each bar that has something to say.

mod delivery;
mod event;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use backbeat_broker::{Broker, GroupPosition, KafkaArgs, LogReader, Registry, TopicName};
use backbeat_reverb::rosters::RosterReader;
use backbeat_schemas::{BarReport, BeatFrame};
use backbeat_service::{Environment, SecretFile, Shutdown};
use delivery::{Delivery, Webhook};
use event::{Finding, Rules, body, idempotency_key};
use tokio::runtime::{Handle, Runtime};

use crate::now;

const POLL: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A heartbeat says that reports come in time: none is sent for a report that is older than this and two bars.
const HEARTBEAT_SLACK_MS: i64 = 60_000;

/// Flags of `backbeat notify`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat notify --url https://hooks.example/backbeat --secret-file hook-secret
  backbeat notify --url http://localhost:9000 --on silent,stalled --late-share 0.1 --no-report-beats 8
  backbeat notify --heartbeat-url https://deadman.example/ping/1234")]
pub(crate) struct Args {
    /// Where to post notifications: a bar's findings as a `CloudEvent`, once or several times, with the same Idempotency-Key.
    #[arg(long, env = "BACKBEAT_NOTIFY_URL", value_name = "URL", required_unless_present = "heartbeat_url")]
    url: Option<String>,

    /// File with the secret that notifications are signed with: X-Backbeat-Signature-256 is the HMAC-SHA256 of the body. Of
    /// several, one a line, the first is used. A change takes effect within a second.
    #[arg(long, env = "BACKBEAT_NOTIFY_SECRET_FILE", value_name = "FILE", requires = "url")]
    secret_file: Option<PathBuf>,

    /// The findings to notify of.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "silent,overdrawn,rotation-failed")]
    on: Vec<Finding>,

    /// Also notify of bars with a greater share of late claims than this, from 0 to 1.
    #[arg(long, value_name = "SHARE")]
    late_share: Option<f64>,

    /// Also notify if a report is overdue by this many beats.
    #[arg(long, value_name = "BEATS", value_parser = clap::value_parser!(u32).range(1..))]
    no_report_beats: Option<u32>,

    /// Where to post an empty request for each report that comes in time: for a dead man's switch.
    #[arg(long, env = "BACKBEAT_HEARTBEAT_URL", value_name = "URL")]
    heartbeat_url: Option<String>,

    #[command(flatten)]
    kafka: KafkaArgs,
}

pub(crate) fn run(args: &Args, environment: Environment) -> anyhow::Result<ExitCode> {
    if let Some(share) = args.late_share {
        ensure!((0.0..=1.0).contains(&share), "--late-share is {share}; must be 0 to 1");
    }
    let secret = args.secret_file.as_deref().map(|path| SecretFile::open(path, environment)).transpose()?;
    let runtime = Runtime::new()?;
    if let Some(secret) = secret.clone() {
        runtime.spawn(secret.follow());
    }
    let stop = backbeat_service::on_signals_in(runtime.handle())?;
    let broker = Broker::new(&args.kafka, "backbeat-notify")?;
    let mut notifier = Notifier {
        rules: Rules { on: args.on.clone(), late_share: args.late_share },
        no_report_beats: args.no_report_beats,
        webhook: args.url.clone().map(|url| Webhook::new(url, secret)).transpose()?,
        heartbeat: args.heartbeat_url.clone().map(|url| Webhook::new(url, None)).transpose()?,
        position: GroupPosition::new(&broker, TopicName::BarReports, broker.topics().notify_group()),
        last: None,
        is_missing_notified: false,
        stop,
    };
    let registry = Registry::new(&args.kafka)?;
    while let Err(error) = notifier.follow(&broker, &registry, runtime.handle()) {
        tracing::warn!(error = format!("{error:#}"), "cannot read reports; trying again");
        thread::sleep(RETRY_PAUSE);
        if notifier.stop.is_cancelled() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Notifier {
    rules: Rules,
    no_report_beats: Option<u32>,
    webhook: Option<Webhook>,
    heartbeat: Option<Webhook>,
    position: GroupPosition,
    /// The newest report that was read.
    last: Option<BarReport>,
    /// True if a notification said that the one after it is missing.
    is_missing_notified: bool,
    stop: Shutdown,
}

impl Notifier {
    /// Follows `barreports` from the group's position on, or from its end if the group has none. Returns when the program is to
    /// stop. Blocks.
    fn follow(&mut self, broker: &Broker, registry: &Registry, runtime: &Handle) -> anyhow::Result<()> {
        let mut reports = LogReader::<BarReport>::new(broker, registry, runtime, TopicName::BarReports)?;
        let mut frames = LogReader::<BeatFrame>::new(broker, registry, runtime, TopicName::BeatFrames)?;
        let mut rosters = RosterReader::new(broker, registry, runtime)?;
        self.last = reports.last()?.map(|entry| entry.record);
        let start = if let Some(committed) = self.position.fetch()? {
            committed
        } else {
            let end = reports.end_offset()?;
            // Later reports are not missed, whatever happens to this process.
            self.position.commit(end)?;
            end
        };
        reports.seek(start)?;
        let end = frames.end_offset()?;
        frames.seek(end)?;
        tracing::info!(start, "waiting for reports");
        while !self.stop.is_cancelled() {
            if let Some(entry) = reports.poll(POLL)? {
                if !self.notify(&entry.record, &mut rosters)? {
                    return Ok(());
                }
                self.position.commit(entry.offset + 1)?;
                if self.last.as_ref().is_none_or(|last| last.from_beat < entry.record.from_beat) {
                    (self.last, self.is_missing_notified) = (Some(entry.record), false);
                }
            }
            let mut newest = None;
            while let Some(entry) = frames.poll(Duration::ZERO)? {
                newest = Some(entry.record);
            }
            if let Some(frame) = newest {
                self.notify_if_missing(&frame);
            }
        }
        Ok(())
    }

    /// Delivers the notification about `report`, if it has findings. Returns false if the program is to stop before that is done.
    fn notify(&self, report: &BarReport, rosters: &mut RosterReader) -> anyhow::Result<bool> {
        let findings = self.rules.findings(report);
        if let (Some(webhook), false) = (&self.webhook, findings.is_empty()) {
            let roster = rosters.read(report.clone())?;
            let body = body(report, &findings, Some(&roster));
            let key = idempotency_key(report, &body);
            let delivery = webhook.deliver(&key, &body, &self.stop);
            tracing::info!(window_id = %report.window_id, key, ?findings, ?delivery, "notification");
            if delivery == Delivery::Stopped {
                return Ok(false);
            }
        }
        let bar_ms = report.closed_at.millis_since(report.opened_at);
        if let Some(heartbeat) = &self.heartbeat
            && now().millis_since(report.closed_at) <= 2 * bar_ms + HEARTBEAT_SLACK_MS
        {
            heartbeat.ping();
        }
        Ok(true)
    }

    /// Notifies once if the report after the last one is overdue at the newest `frame`.
    fn notify_if_missing(&mut self, frame: &BeatFrame) {
        let (Some(webhook), Some(beats), Some(last)) = (&self.webhook, self.no_report_beats, &self.last) else {
            return;
        };
        let due = last.to_beat.plus(1 + u32::from(frame.bar_length) + u32::from(frame.grace_beats));
        if self.is_missing_notified || frame.beat_index.since(due) < i64::from(beats) {
            return;
        }
        let body = body(last, &[Finding::NoReport], None);
        let key = idempotency_key(last, &body);
        let delivery = webhook.deliver(&key, &body, &self.stop);
        tracing::warn!(last_beat = %last.to_beat, newest_beat = %frame.beat_index, key, ?delivery, "no report has come");
        self.is_missing_notified = delivery != Delivery::Stopped;
    }
}
