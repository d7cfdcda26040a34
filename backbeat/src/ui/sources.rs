//! Threads that read Kafka and poll the programs, and send what they find as events. They end with the process.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::{Broker, DeadLetterReader, KafkaProbe, LogReader, Registry, TopicName};
use backbeat_http_api::{pulse, reverb};
use backbeat_schemas::{BarReport, BeatFrame};
use reqwest::Url;
use reqwest::blocking::Client;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

use super::board::{Event, MAX_DEAD_LETTERS, MAX_WINDOWS, Member};
use crate::overview::{ProgramStatus, join_all};

/// The interval at which programs are polled, and the timeout of each of the requests.
const PROGRAM_INTERVAL: Duration = Duration::from_millis(500);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// The interval at which Kafka is probed, and the longest wait for its answer: an outage shows within their sum.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_millis(1_500);
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The number of a member's newest windows that are polled: those that are open, and some that have just closed.
const POLLED_WINDOWS: usize = 8;
/// The number of offsets of `barreports` to go back for each shown window: its report, the end of its transaction, and replays.
const OFFSETS_PER_REPORT: i64 = 4;
/// The largest number of dead letters that are read at once. Of more, which a flood has, the oldest are skipped.
const DEAD_LETTER_BATCH: usize = 100;
const DEAD_LETTER_INTERVAL: Duration = Duration::from_millis(250);

const FRAMES: &str = "beats";
const REPORTS: &str = "reports";
const DEAD_LETTERS: &str = "dead letters";

/// The receiver of events has ended, and so does the thread.
#[derive(Debug, thiserror::Error)]
#[error("the page has stopped")]
struct Stopped;

/// The clients and the channel of all threads.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) broker: Broker,
    pub(crate) registry: Registry,
    pub(crate) runtime: Handle,
    pub(crate) events: Sender<Event>,
}

impl Sources {
    /// Starts the threads.
    pub(crate) fn start(self, pulse: Vec<Url>, reverb: Vec<Url>) -> std::io::Result<()> {
        self.spawn(FRAMES, Self::follow_frames)?;
        self.spawn(REPORTS, Self::follow_reports)?;
        self.spawn(DEAD_LETTERS, Self::follow_dead_letters)?;
        self.spawn("kafka", Self::probe_kafka)?;
        for (number, url) in pulse.into_iter().enumerate() {
            self.spawn("pulse", move |sources| sources.poll_pulse(number, &url))?;
        }
        for (number, url) in reverb.into_iter().enumerate() {
            self.spawn("reverb", move |sources| sources.poll_reverb(number, &url))?;
        }
        Ok(())
    }

    /// Starts a thread that does `work`, again whenever it fails.
    fn spawn(
        &self,
        name: &'static str,
        work: impl Fn(&Self) -> anyhow::Result<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let sources = self.clone();
        let run = move || {
            while let Err(error) = work(&sources) {
                if error.is::<Stopped>() {
                    break;
                }
                let reason = format!("{error:#}");
                tracing::warn!(reader = name, reason, "cannot read; trying again");
                if sources.send(Event::Reader(name, Err(reason))).is_err() {
                    break;
                }
                thread::sleep(RETRY_PAUSE);
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
    }

    fn send(&self, event: Event) -> Result<(), Stopped> {
        self.events.blocking_send(event).map_err(|_| Stopped)
    }

    /// Follows `beatframes`, from the bar before the newest beat on.
    fn follow_frames(&self) -> anyhow::Result<()> {
        let mut frames =
            LogReader::<BeatFrame>::new(&self.broker, &self.registry, &self.runtime, TopicName::BeatFrames)?;
        let last = frames.last()?;
        self.send(Event::NewestBeat(last.as_ref().map(|last| last.record.beat_index)))?;
        // Each frame has the end of its transaction behind it.
        let start = last.map_or(0, |last| last.offset - 4 * i64::from(last.record.bar_length));
        let (start, mut end) = (start.max(frames.log_start()?), frames.end_offset()?);
        frames.seek(start)?;
        self.send(Event::Reader(FRAMES, Ok(())))?;
        let mut next = start;
        loop {
            let Some(entry) = frames.poll(POLL_TIMEOUT)? else { continue };
            if entry.offset < next {
                end = 0;
                self.send(Event::Recreated)?;
            }
            next = entry.offset + 1;
            let event = if entry.offset < end { Event::EarlierFrame } else { Event::Frame };
            self.send(event(entry.record))?;
        }
    }

    /// Follows `barreports`, from the oldest shown window on.
    fn follow_reports(&self) -> anyhow::Result<()> {
        let mut reports =
            LogReader::<BarReport>::new(&self.broker, &self.registry, &self.runtime, TopicName::BarReports)?;
        let start = reports.end_offset()? - OFFSETS_PER_REPORT * MAX_WINDOWS as i64;
        let start = start.max(reports.log_start()?);
        reports.seek(start)?;
        self.send(Event::Reader(REPORTS, Ok(())))?;
        loop {
            if let Some(entry) = reports.poll(POLL_TIMEOUT)? {
                self.send(Event::Report(entry.record))?;
            }
        }
    }

    /// Follows the dead letters, in batches.
    fn follow_dead_letters(&self) -> anyhow::Result<()> {
        let shown = MAX_DEAD_LETTERS as i64;
        let mut reader = DeadLetterReader::new(&self.broker, shown)?;
        self.send(Event::Reader(DEAD_LETTERS, Ok(())))?;
        loop {
            let mut batch = Vec::new();
            let mut timeout = POLL_TIMEOUT;
            while batch.len() < DEAD_LETTER_BATCH
                && let Some(letter) = reader.poll(timeout)?
            {
                batch.push(letter);
                timeout = Duration::ZERO;
            }
            if batch.len() == DEAD_LETTER_BATCH {
                reader.skip_to_last(shown)?;
            }
            if batch.is_empty() {
                continue;
            }
            self.send(Event::DeadLetters(batch))?;
            thread::sleep(DEAD_LETTER_INTERVAL);
        }
    }

    fn probe_kafka(&self) -> anyhow::Result<()> {
        let mut probe = KafkaProbe::new(&self.broker);
        loop {
            self.send(Event::Kafka(probe.check(PROBE_TIMEOUT)))?;
            thread::sleep(PROBE_INTERVAL);
        }
    }

    fn poll_pulse(&self, number: usize, url: &Url) -> anyhow::Result<()> {
        poll_programs(url, ProgramStatus::<pulse::StatusBody>::fetch, |programs| {
            self.send(Event::Pulse(number, programs))
        })
    }

    fn poll_reverb(&self, number: usize, url: &Url) -> anyhow::Result<()> {
        let fetch = |http: &Client, url: &str| {
            let program = ProgramStatus::<reverb::StatusBody>::fetch(http, url);
            let windows = program.status.as_ref().and_then(|_| windows(http, url)).unwrap_or_default();
            Member { program, windows }
        };
        poll_programs(url, fetch, |members| self.send(Event::Reverb(number, members)))
    }
}

fn windows(http: &Client, url: &str) -> Option<Vec<reverb::WindowStatus>> {
    let url = format!("{}/api/v1/windows?limit={POLLED_WINDOWS}", url.trim_end_matches('/'));
    let body: reverb::Windows = http.get(url).send().ok()?.json().ok()?;
    Some(body.windows)
}

/// Polls all programs at `url`.
fn poll_programs<T: Send>(
    url: &Url,
    fetch: impl Fn(&Client, &str) -> T + Sync,
    send: impl Fn(Vec<T>) -> Result<(), Stopped>,
) -> anyhow::Result<()> {
    let http = Client::builder().timeout(REQUEST_TIMEOUT).no_proxy().build()?;
    let mut urls = Vec::new();
    loop {
        let began = Instant::now();
        // A look-up that fails changes nothing.
        urls = addresses(url).or(Some(urls).filter(|urls| !urls.is_empty())).unwrap_or_else(|| vec![own_url(url)]);
        let answers = thread::scope(|scope| {
            let threads = urls.iter().map(|url| scope.spawn(|| fetch(&http, url)));
            join_all(threads.collect())
        });
        send(answers)?;
        thread::sleep(PROGRAM_INTERVAL.saturating_sub(began.elapsed()));
    }
}

/// Returns `url`, or a URL for each address of its host if there are several: the name of a service whose instances come and go
/// (a headless service of Kubernetes, `tasks.NAME` of a swarm).
/// `None` if it cannot be resolved.
fn addresses(url: &Url) -> Option<Vec<String>> {
    let own = Some(vec![own_url(url)]);
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return own };
    // A certificate is for the name, and a path or credentials are for a proxy.
    if url.scheme() != "http" || url.path() != "/" || !url.username().is_empty() {
        return own;
    }
    let mut found: BTreeSet<SocketAddr> = (host.trim_matches(['[', ']']), port).to_socket_addrs().ok()?.collect();
    // A program with addresses of both kinds is one.
    if found.iter().any(SocketAddr::is_ipv4) {
        found.retain(SocketAddr::is_ipv4);
    }
    if found.len() < 2 || found.iter().any(|address| address.ip().is_loopback()) {
        return own;
    }
    Some(found.into_iter().map(|address| format!("http://{address}")).collect())
}

fn own_url(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_whose_host_has_one_address_is_asked_as_it_is() {
        for url in ["http://127.0.0.1:8080", "http://localhost:8080", "https://localhost:8080", "http://[::1]:1"] {
            assert_eq!(addresses(&Url::parse(url).expect("a URL")), Some(vec![url.to_owned()]));
        }
    }
}
