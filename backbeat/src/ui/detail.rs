//! Reads what the page of a window, and that of an agent, show: from the log, when they are asked for.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_reverb::agent_history::{HistoryError, HistoryRange, agent_history, check_agent_id};
use backbeat_reverb::rosters::RosterReader;
use backbeat_schemas::{BarReport, WindowId};
use backbeat_service::Shutdown;
use maud::{Markup, html};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::SharedBoard;
use super::page::detail::{agent_page, open_window, reported_window};

/// The number of requests that read the log at the same time, and the time that another one waits for its turn.
const READS: usize = 2;
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_BARS: usize = 10;
/// The largest number of bars of an agent's page.
pub(crate) const MAX_BARS: usize = 100;
/// The largest number of records that are read for an agent's page, and of the bytes of those that are the agent's.
const MAX_RECORDS: u64 = 2_000_000;
const MAX_CLAIM_BYTES: usize = 4 * 1024 * 1024;
/// The largest number of offsets of `barreports`, from its end back, that are searched for a window's report.
const MAX_SEARCHED_OFFSETS: i64 = 20_000;

/// Reads the log for pages.
#[derive(Clone)]
pub(crate) struct Detail {
    broker: Broker,
    registry: Registry,
    board: SharedBoard,
    stop: Shutdown,
    turns: Arc<Semaphore>,
}

/// The reason why there is no such page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DetailError {
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unavailable(String),
}

impl DetailError {
    pub(crate) fn page(&self) -> Markup {
        html! { main #main { section.card { h1 { "Nothing to show" } p.alarm { "✕ " (self.to_string()) } p { a href="/" { "Back to the cluster" } } } } }
    }
}

impl Detail {
    pub(crate) fn new(broker: Broker, registry: Registry, board: SharedBoard, stop: Shutdown) -> Self {
        Self { broker, registry, board, stop, turns: Arc::new(Semaphore::new(READS)) }
    }

    /// Runs `query` on a thread of its own, when it is its turn.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Self, &Handle) -> Result<T, DetailError> + Send + 'static,
    ) -> Result<T, DetailError> {
        let stops = || DetailError::Unavailable("the program stops".to_owned());
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.turns).acquire_owned());
        let Ok(Ok(turn)) = self.stop.run_until_cancelled(turn).await.ok_or_else(stops)? else {
            return Err(DetailError::Unavailable(
                "other requests read the log; reload this page in a moment".to_owned(),
            ));
        };
        let (detail, runtime) = (self.clone(), Handle::current());
        let reading = tokio::task::spawn_blocking(move || {
            let result = query(&detail, &runtime);
            drop(turn);
            result
        });
        // Whoever waits for a page does not hold up a stop.
        let read = self.stop.run_until_cancelled(reading).await.ok_or_else(stops)?;
        read.map_err(|error| DetailError::Unavailable(format!("the reader of the log has failed: {error}")))?
    }

    /// Returns the page of a window.
    pub(crate) async fn window(&self, id: WindowId) -> Result<Markup, DetailError> {
        let known = self.board.read().find_window(id).cloned();
        if let Some(window) = known.as_ref().filter(|window| window.report.is_none()) {
            return Ok(open_window(window));
        }
        let report = known.and_then(|window| window.report);
        let read = move |detail: &Self, runtime: &Handle| {
            let read_roster = || {
                let report = match report {
                    Some(report) => Some(report),
                    None => detail.find_report(id, runtime)?,
                };
                let Some(report) = report else { return Ok(None) };
                let window = RosterReader::new(&detail.broker, &detail.registry, runtime)?.read(report)?;
                Ok::<_, ReadError>(Some(window))
            };
            read_roster().map_err(|error| DetailError::Unavailable(error.to_string()))?.ok_or_else(|| {
                DetailError::NotFound(format!(
                    "the newest reports have none of window {id}; `backbeat roster --window {id}` searches all"
                ))
            })
        };
        let window = self.read(read).await?;
        let board = self.board.read();
        Ok(reported_window(&window, &board.owners()))
    }

    /// Finds the report of a window among the newest ones.
    fn find_report(&self, id: WindowId, runtime: &Handle) -> Result<Option<BarReport>, ReadError> {
        let topic = TopicName::BarReports;
        let mut reports = LogReader::<BarReport>::for_random_access(&self.broker, &self.registry, runtime, topic)?;
        let end = reports.end_offset()?;
        let start = (end - MAX_SEARCHED_OFFSETS).max(reports.log_start()?);
        let mut found = None;
        reports.read_until(start, end, |entry| {
            if entry.record.window_id == id {
                found = Some(entry.record);
            }
            if self.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// Returns the page of an agent with its last bars.
    pub(crate) async fn agent(&self, id: String, bars: Option<usize>) -> Result<Markup, DetailError> {
        check_agent_id(&id).map_err(|error| DetailError::BadRequest(error.to_string()))?;
        let bars = bars.unwrap_or(DEFAULT_BARS);
        if !(1..=MAX_BARS).contains(&bars) {
            return Err(DetailError::BadRequest(format!("last is {bars}; must be 1 to {MAX_BARS}")));
        }
        let agent = id.clone();
        let read = move |detail: &Self, runtime: &Handle| {
            let range = HistoryRange {
                from: None,
                to: None,
                bars,
                all_partitions: false,
                max_records: MAX_RECORDS,
                max_bytes: MAX_CLAIM_BYTES,
            };
            agent_history(&detail.broker, &detail.registry, runtime, &agent, range, &detail.stop).map_err(|error| {
                match error {
                    HistoryError::Read(error) => DetailError::Unavailable(format!("{error:#}")),
                    error => DetailError::BadRequest(error.to_string()),
                }
            })
        };
        Ok(agent_page(&id, &self.read(read).await?, bars))
    }
}
