//! Starts the parts and joins them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use backbeat_broker::{Broker, ClaimEnds, Registry, TopicName, wait_for_topics};
use backbeat_schemas::BeatFrame;
use backbeat_service::{Shutdown, serve};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::boundary_sampler::BoundarySampler;
use super::conductor::{Clock, Conductor, ConductorInput};
use super::control::Control;
use super::http::{Api, Parts, Writers};
use super::metrics::Metrics;
use super::publisher::Publisher;
use super::raft::{self, Client, Member, Node, NodeName, Store};
use super::secret::Secret;
use super::status::SharedStatus;
use super::watcher::Watcher;
use super::{Args, http};
use crate::core::{Bounds, Event, InitialConfig, Leadership, Metronome};

/// A client that is slow, or a Kafka that does not answer, holds nothing up for longer.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Runs pulse until `shutdown`, or until it must not go on.
pub async fn run(args: Args, listener: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    let (initial_config, bounds, bootstrap_members, writers) =
        (args.initial_config()?, args.bounds()?, args.bootstrap_members()?, args.writers()?);
    let setup =
        Setup { initial_config, bounds, bootstrap_members, writers_are_local: matches!(writers, Writers::Local) };
    args.warn_of_bounds();
    let metrics = Arc::new(Metrics::new()?);
    let status = SharedStatus::default();
    status.update(|status| {
        status.cluster_id.clone_from(&setup.initial_config.cluster_id);
        status.node = args.node().to_string();
        status.waiting_for = Some("kafka, its topics and the schema registry".to_owned());
    });
    let api = Api { status: status.clone(), parts: Arc::new(OnceLock::new()) };
    let stop_serving = shutdown.child_token();
    let routes = http::routes(&metrics, api.clone(), writers);
    let server = tokio::spawn(serve(listener, routes, stop_serving.clone()));
    let outcome = tokio::select! {
        prepared = prepare(&args) => match prepared {
            Ok(prepared) => beat(&args, setup, prepared, &metrics, &api, &shutdown).await,
            Err(error) => Err(error),
        },
        () = shutdown.cancelled() => Ok(()),
    };
    stop_serving.cancel();
    if let Ok(ended) = timeout(STOP_WITHIN, server).await {
        ended.context("the http server panicked")??;
    } else {
        tracing::warn!("a client held the http server up");
    }
    outcome
}

/// What the flags come to.
struct Setup {
    initial_config: InitialConfig,
    bounds: Bounds,
    bootstrap_members: BTreeMap<NodeName, Member>,
    /// Only who is on this machine may change something, and without a token.
    writers_are_local: bool,
}

/// What there is before Raft starts: a node that cannot reach Kafka does not stand for election.
struct Prepared {
    broker: Broker,
    registry: Registry,
    /// The schema id of our frames.
    schema_id: u32,
    raft_listener: Option<TcpListener>,
    secret: Option<Secret>,
}

async fn prepare(args: &Args) -> anyhow::Result<Prepared> {
    let secret = args.raft_secret()?;
    let raft_listener = match args.raft_listens_on() {
        Some(address) => {
            let listener =
                TcpListener::bind(&address).await.with_context(|| format!("raft: listening on {address}"))?;
            let listens_on: SocketAddr = listener.local_addr()?;
            args.check_raft_port(listens_on, secret.is_some())?;
            tracing::info!(raft = %listens_on, "raft listens");
            Some(listener)
        }
        None => None,
    };
    let broker = Broker::new(&args.kafka, &args.node().to_string())?;
    let registry = Registry::new(&args.kafka)?;
    wait_for_topics(&broker, &[TopicName::BeatFrames, TopicName::StatusClaims, TopicName::BarReports]).await?;
    let schema_id = registry.register::<BeatFrame>(&broker.topics().subject(TopicName::BeatFrames)).await?;
    Ok(Prepared { broker, registry, schema_id, raft_listener, secret })
}

/// Takes part in the cluster until `shutdown`, or until it cannot go on.
async fn beat(
    args: &Args,
    setup: Setup,
    prepared: Prepared,
    metrics: &Arc<Metrics>,
    api: &Api,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let Prepared { broker, registry, schema_id, raft_listener, secret } = prepared;
    let Setup { initial_config, bounds, bootstrap_members, writers_are_local } = setup;
    let (own, messages) = channel();
    let (publisher, commands) = channel();

    let client = Client::new(initial_config.cluster_id.clone(), args.node(), secret.clone())?;
    let store = Store::open(&args.store_dir(), &initial_config.cluster_id, args.node())?;
    let raft = Node::start(args.node(), store, client.clone()).await?;
    let control = Control { raft: raft.clone(), client, conductor: own.clone() };
    let stop_raft = Shutdown::new();
    // Without a secret, Raft's port would be a way around the token.
    let accepts_forwarded = secret.is_some() || writers_are_local;
    let raft_routes =
        raft::routes(raft.raft(), control.routes(accepts_forwarded), &initial_config.cluster_id, args.node(), secret);
    let raft_server = raft_listener.map(|listener| tokio::spawn(serve(listener, raft_routes, stop_raft.clone())));
    if !args.join {
        raft.bootstrap(bootstrap_members).await?;
    }

    let boundary_sampler = Arc::new(BoundarySampler::start(ClaimEnds::new(&broker)?)?);
    let ours = Publisher::new(
        broker.clone(),
        &registry,
        schema_id,
        Arc::clone(&boundary_sampler),
        Arc::clone(metrics),
        api.status.clone(),
    )?;
    let answers = own.clone();
    thread::Builder::new().name("publisher".into()).spawn(move || ours.run(&commands, &answers))?;
    let watcher = Watcher::new(&broker, &registry, api.status.clone())?;
    let (heard, stop_watching) = (own.clone(), shutdown.child_token());
    let watching = stop_watching.clone();
    thread::Builder::new().name("watcher".into()).spawn(move || watcher.run(&heard, &watching))?;

    let clock = Clock::start();
    // The node part of our HLC readings: any number that a rival is unlikely to have.
    let metronome = Metronome::new(initial_config.clone(), args.node().to_string(), rand::random());
    let leadership = Leadership::new(metronome, bounds, Node::ELECTION_TIMEOUT, clock.now());
    let conductor = Conductor {
        flags: initial_config,
        clock,
        leadership,
        boundary_sampler: Arc::clone(&boundary_sampler),
        raft: raft.clone(),
        runtime: Handle::current(),
        own: own.clone(),
        publisher,
        metrics: Arc::clone(metrics),
        status: api.status.clone(),
    };
    let (ended, mut conductor_ended) = oneshot::channel();
    thread::Builder::new().name("conductor".into()).spawn(move || {
        // Whoever waited has gone when it was told to end.
        let _ = ended.send(conductor.run(&messages));
    })?;
    // Only set here.
    let _ = api.parts.set(Parts { control, boundary_sampler });

    let outcome = tokio::select! {
        ended = &mut conductor_ended => ended.context("the beating thread panicked").flatten(),
        told = tell(&raft, &own) => told.context("raft has stopped"),
        () = shutdown.cancelled() => Ok(()),
    };
    // Whoever has ended already does not mind.
    let _ = own.send(ConductorInput::Shutdown);
    stop_watching.cancel();
    let stopping = async {
        raft.stop().await;
        stop_raft.cancel();
        if let Some(server) = raft_server {
            server.await.context("raft's http server panicked")??;
        }
        anyhow::Ok(())
    };
    if let Ok(stopped) = timeout(STOP_WITHIN, stopping).await {
        stopped?;
    } else {
        tracing::warn!("raft did not stop in time");
    }
    outcome
}

/// Tells the conductor what Raft says, for ever; an error when Raft has stopped.
async fn tell(raft: &Node, conductor: &Sender<ConductorInput>) -> anyhow::Result<()> {
    let (mut news, mut plans) = (raft.news(), raft.plan());
    let (mut raft_role, mut plan) = (None, None);
    loop {
        let now = raft.raft_role()?;
        if raft_role.as_ref() != Some(&now) {
            raft_role = Some(now.clone());
            // At the end there is nobody to tell.
            let _ = conductor.send(ConductorInput::Event(Event::Raft(now)));
        }
        let agreed = *plans.borrow_and_update();
        if agreed != plan {
            plan = agreed;
            if let Some(agreed) = agreed {
                let _ = conductor.send(ConductorInput::Event(Event::Planned(agreed)));
            }
        }
        tokio::select! {
            changed = news.changed() => changed.context("raft's metrics have ended")?,
            changed = plans.changed() => changed.context("raft's store has ended")?,
        }
    }
}
