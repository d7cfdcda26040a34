//! `backbeat ui`: the page of a cluster.
//!
//! ```text
//!  beatframes, barreports, dead letters ─┐
//!  the programs' HTTP APIs ──────────────┼─▶ sources ──▶ Board ──▶ page::sections ──▶ Hub ──▶ a stream for each page
//!  (threads)                             ┘   (events)                                 └────▶ the first paint
//! ```

mod board;
mod detail;
mod guard;
mod http;
mod hub;
mod metrics;
mod page;
mod sources;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, ensure};
use backbeat_broker::{Broker, KafkaArgs, Registry};
use backbeat_service::{Environment, HttpArgs, SecretFile, Shutdown, block_on, on_signals, serve_at_most};
use reqwest::Url;
use reqwest::redirect::Policy;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, channel};

use self::board::{Board, Event};
use self::detail::Detail;
use self::guard::Guard;
use self::http::{MAX_STREAMS, TempoClient, Ui, asset_paths};
use self::hub::Hub;
use self::metrics::Metrics;
use self::page::{Settings, sections};
use self::sources::Sources;
use crate::now;
use crate::overview::ProgramArgs;

/// The largest number of events that wait for the board. Its sources wait then.
const MAX_WAITING_EVENTS: usize = 256;
/// The timeout of a connection to a pulse node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest number of connections: one for each stream, and others for pages and probes.
const MAX_UI_CONNECTIONS: usize = 512;

/// Flags of `backbeat ui`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat ui
  backbeat ui --pulse http://pulse-1:8080,http://pulse-2:8080 --reverb http://reverb:8082
  backbeat ui --admin-host 0.0.0.0 --admin-token-file token --allowed-host beats.example")]
pub(crate) struct Args {
    /// Port of the HTTP server, 0 for a free one.
    #[arg(long, alias = "admin-port", env = "BACKBEAT_UI_PORT", default_value_t = 8086)]
    port: u16,

    #[command(flatten)]
    programs: ProgramArgs,

    /// A file with the token that changes of the tempo must carry, or with several, one a line: pulse's admin token. Without
    /// it the page is read-only. A change takes effect within a second.
    #[arg(long, env = "BACKBEAT_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,

    /// Names by which browsers reach the page, besides localhost and addresses: that of a proxy in front of it, for example.
    #[arg(long, env = "BACKBEAT_UI_ALLOWED_HOSTS", value_name = "NAME,...", value_delimiter = ',')]
    allowed_host: Vec<String>,

    /// A sentence that the page shows, such as which cluster it is.
    #[arg(long, env = "BACKBEAT_UI_NOTICE", value_name = "TEXT")]
    notice: Option<String>,

    #[command(flatten)]
    kafka: KafkaArgs,

    #[command(flatten)]
    http: HttpArgs,
}

pub(crate) fn run(args: Args, environment: Environment) -> anyhow::Result<ExitCode> {
    if let Some(exit_code) = args.http.check(args.port) {
        return Ok(exit_code);
    }
    let tokens = args.tokens(environment)?;
    Ok(block_on(async {
        let listener = args.http.listen(args.port).await?;
        serve_page(args, tokens, listener, on_signals()?).await
    }))
}

impl Args {
    /// Reads the tokens. In production whoever can reach the page must be known to be able to change nothing without one.
    fn tokens(&self, environment: Environment) -> anyhow::Result<Option<SecretFile>> {
        let is_open = !self.http.admin_host.is_loopback();
        ensure!(
            self.admin_token_file.is_some() || !is_open || environment == Environment::Development,
            "the page would be reachable at {}: with BACKBEAT_ENV=production that needs an --admin-token-file",
            self.http.admin_host
        );
        self.admin_token_file.as_deref().map(|path| SecretFile::open(path, environment)).transpose()
    }
}

/// Serves the page until `shutdown`.
async fn serve_page(
    args: Args,
    tokens: Option<SecretFile>,
    listener: TcpListener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let (pulse, reverb) = args.programs.urls()?;
    let (pulse_urls, reverb_urls) = (parse(&pulse)?, parse(&reverb)?);
    let broker = Broker::new(&args.kafka, "backbeat-ui")?;
    let registry = Registry::new(&args.kafka)?;
    let metrics = Metrics::new()?;
    if let Some(tokens) = tokens.clone() {
        tokio::spawn(tokens.follow());
    }
    let (css, js, icon) = asset_paths();
    let settings = Settings { notice: args.notice, can_change_tempo: tokens.is_some(), css, js, icon };
    let board = SharedBoard::default();
    let epoch = format!("{:016x}", rand::random::<u64>());
    let hub = Arc::new(Hub::new(epoch, settings.js.clone(), sections(&board.read())));
    let (events, received) = channel(MAX_WAITING_EVENTS);
    let sources = Sources { broker: broker.clone(), registry: registry.clone(), runtime: Handle::current(), events };
    sources.start(pulse_urls, reverb_urls).context("cannot start a thread")?;
    tokio::spawn(publish(received, board.clone(), Arc::clone(&hub), metrics.clone()));
    // A node that cannot be reached is given up before the others are needed.
    let http =
        reqwest::Client::builder().no_proxy().redirect(Policy::none()).connect_timeout(CONNECT_TIMEOUT).build()?;
    let ui = Ui {
        settings: Arc::new(settings),
        hub,
        board: board.clone(),
        metrics,
        detail: Detail::new(broker, registry, board, shutdown.clone()),
        guard: Guard::new(&args.allowed_host),
        tempo: TempoClient { http, pulse: pulse.into(), tokens },
        stop: shutdown.clone(),
    };
    debug_assert!(MAX_UI_CONNECTIONS as i64 > MAX_STREAMS);
    serve_at_most(MAX_UI_CONNECTIONS, listener, http::routes(ui), shutdown).await?;
    Ok(())
}

/// Parses the URLs of programs.
fn parse(urls: &[String]) -> anyhow::Result<Vec<Url>> {
    let parse = |url: &String| {
        let parsed = Url::parse(url).ok().filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
        parsed.with_context(|| format!("{url:?} is not the URL of a program, such as http://pulse-1:8080"))
    };
    urls.iter().map(parse).collect()
}

/// Applies events to the board, and publishes the page whenever it changes.
async fn publish(mut events: Receiver<Event>, board: SharedBoard, hub: Arc<Hub>, metrics: Metrics) {
    while let Some(event) = events.recv().await {
        let sections = {
            let mut board = board.write();
            board.on(event, now());
            while let Ok(event) = events.try_recv() {
                board.on(event, now());
            }
            let newest = board.frame.as_ref().map_or(0, |frame| frame.beat_index.get());
            metrics.newest_beat.set(newest);
            metrics.kafka_available.set((board.has_seen_kafka && board.kafka_trouble.is_none()).into());
            sections(&board)
        };
        if hub.publish(sections, now()) {
            metrics.changes.inc();
        }
    }
}

/// The board, which one task writes.
#[derive(Debug, Clone, Default)]
struct SharedBoard(Arc<RwLock<Board>>);

impl SharedBoard {
    fn read(&self) -> RwLockReadGuard<'_, Board> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Board> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
