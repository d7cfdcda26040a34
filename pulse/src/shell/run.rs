//! Starts pulse's components, connects them, and stops them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use backbeat_broker::{Broker, Registry, TopicName, check_log, wait_for_topics};
use backbeat_schemas::BeatFrame;
use backbeat_service::{SecretFile, Shutdown, serve};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::boundary_sampler::BoundarySampler;
use super::conductor::{Clock, Conductor, ConductorInput};
use super::control::{Control, WriteAuthorization};
use super::http::{Api, Components};
use super::metrics::Metrics;
use super::newest_beat::NewestBeat;
use super::publisher::Publisher;
use super::raft::{self, Client, NodeInfo, NodeName, RaftNode, Store};
use super::status::SharedStatus;
use super::watcher::Watcher;
use super::{Args, http};
use crate::core::{Event, InitialConfig, Leadership, Metronome, RaftTimeouts, TempoBounds};

/// The timeout for Raft when pulse stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs pulse until `shutdown`, or until it cannot continue.
pub async fn run(args: Args, listener: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    let write_authorization = args.write_authorization()?;
    let setup = Setup {
        initial_config: args.initial_config()?,
        bounds: args.bounds()?,
        raft_timeouts: args.raft_timeouts()?,
        bootstrap_nodes: args.bootstrap_nodes()?,
        write_authorization: write_authorization.clone(),
    };
    if let WriteAuthorization::Token(tokens) = &setup.write_authorization {
        tokio::spawn(tokens.clone().follow());
    }
    args.warn_about_bounds();
    let metrics = Arc::new(Metrics::new()?);
    let status = SharedStatus::default();
    status.update(|status| {
        status.cluster_id.clone_from(&setup.initial_config.cluster_id);
        status.node = args.node().to_string();
        status.waiting_for = Some("kafka, its topics and the schema registry".to_owned());
    });
    let api = Api { status: status.clone(), components: Arc::new(OnceLock::new()) };
    let stop_serving = shutdown.child_token();
    let routes = http::routes(&metrics, api.clone(), write_authorization);
    let server = tokio::spawn(serve(listener, routes, stop_serving.clone()));
    let outcome = tokio::select! {
        prepared = prepare(&args) => match prepared {
            Ok(prepared) => run_node(&args, setup, prepared, &metrics, &api, &shutdown).await,
            Err(error) => Err(error),
        },
        () = shutdown.cancelled() => Ok(()),
    };
    stop_serving.cancel();
    server.await.context("the http server panicked")??;
    outcome
}

/// The settings derived from the flags.
struct Setup {
    initial_config: InitialConfig,
    bounds: TempoBounds,
    raft_timeouts: RaftTimeouts,
    bootstrap_nodes: BTreeMap<NodeName, NodeInfo>,
    write_authorization: WriteAuthorization,
}

/// The results of the preparation that precedes Raft's start, so that a node that cannot reach Kafka takes no part in
/// elections.
struct Prepared {
    broker: Broker,
    registry: Registry,
    /// The schema id of the frames that this node writes.
    schema_id: u32,
    raft_listener: Option<TcpListener>,
    secrets: Option<SecretFile>,
}

async fn prepare(args: &Args) -> anyhow::Result<Prepared> {
    let secrets = args.raft_secrets()?;
    if let Some(secrets) = secrets.clone() {
        tokio::spawn(secrets.follow());
    }
    let raft_listener = match args.raft_listen_address() {
        Some(address) => {
            let bound = TcpListener::bind(&address).await;
            let listener = bound.with_context(|| format!("cannot listen on {address} for raft"))?;
            let address: SocketAddr = listener.local_addr()?;
            args.check_raft_port(address, secrets.is_some())?;
            tracing::info!(%address, "raft server is listening");
            Some(listener)
        }
        None => None,
    };
    let broker = Broker::new(&args.kafka, &args.node().to_string())?;
    let registry = Registry::new(&args.kafka)?;
    wait_for_topics(&broker, &[TopicName::BeatFrames, TopicName::StatusClaims, TopicName::BarReports]).await?;
    check_log(&broker, &registry).await?;
    let schema_id = registry.register::<BeatFrame>(&broker.topics().subject(TopicName::BeatFrames)).await?;
    Ok(Prepared { broker, registry, schema_id, raft_listener, secrets })
}

/// Takes part in the cluster until `shutdown`, or until pulse cannot continue.
async fn run_node(
    args: &Args,
    setup: Setup,
    prepared: Prepared,
    metrics: &Arc<Metrics>,
    api: &Api,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let Prepared { broker, registry, schema_id, raft_listener, secrets } = prepared;
    let Setup { initial_config, bounds, raft_timeouts, bootstrap_nodes, write_authorization } = setup;
    let (conductor_sender, inputs) = channel();
    let (publisher, commands) = channel();

    let client = Client::new(initial_config.cluster_id.clone(), args.node(), secrets.clone())?;
    let store = Store::open(&args.store_dir(), &initial_config.cluster_id, args.node())?;
    let raft = RaftNode::start(args.node(), raft_timeouts, store, client.clone()).await?;
    let control = Control { raft: raft.clone(), client, conductor: conductor_sender.clone(), write_authorization };
    let stop_raft = Shutdown::new();
    let forwarded = control.routes(secrets.is_some());
    let raft_routes = raft::routes(&raft, forwarded, &initial_config.cluster_id, args.node(), secrets);
    let raft_server = raft_listener.map(|listener| tokio::spawn(serve(listener, raft_routes, stop_raft.clone())));
    if !args.join {
        raft.bootstrap(bootstrap_nodes).await?;
    }

    let boundary_sampler = Arc::new(BoundarySampler::start(&broker, Arc::clone(metrics))?);
    let publisher_thread = Publisher::new(
        broker.clone(),
        &registry,
        schema_id,
        Arc::clone(&boundary_sampler),
        Arc::clone(metrics),
        api.status.clone(),
    )?;
    let to_conductor = conductor_sender.clone();
    thread::Builder::new().name("publisher".into()).spawn(move || publisher_thread.run(&commands, &to_conductor))?;
    let newest_beat = NewestBeat::open(&args.store_dir())?;
    let known_beat = newest_beat.beat();
    let watcher = Watcher::new(&broker, &registry, api.status.clone(), newest_beat)?;
    let (to_conductor, stop_watcher) = (conductor_sender.clone(), shutdown.child_token());
    let watcher_stopped = stop_watcher.clone();
    thread::Builder::new().name("watcher".into()).spawn(move || watcher.run(&to_conductor, &watcher_stopped))?;

    let clock = Clock::start();
    // The node part of this node's HLC readings: random, so that other nodes are unlikely to have the same.
    let metronome = Metronome::new(initial_config.clone(), args.node().to_string(), rand::random());
    let mut leadership = Leadership::new(metronome, bounds, raft_timeouts, clock.now());
    if let Some(beat) = known_beat {
        leadership.remember(beat);
    }
    let conductor = Conductor {
        flags: initial_config,
        clock,
        leadership,
        boundary_sampler: Arc::clone(&boundary_sampler),
        raft: raft.clone(),
        runtime: Handle::current(),
        inputs: conductor_sender.clone(),
        publisher,
        metrics: Arc::clone(metrics),
        status: api.status.clone(),
    };
    let (ended, mut conductor_ended) = oneshot::channel();
    thread::Builder::new().name("conductor".into()).spawn(move || {
        // After a shutdown nobody waits for the outcome.
        let _ = ended.send(conductor.run(&inputs));
    })?;
    // Cannot fail: the components are set only here.
    let _ = api.components.set(Components { control, boundary_sampler });

    let outcome = tokio::select! {
        ended = &mut conductor_ended => ended.context("the conductor thread panicked").flatten(),
        forwarded = forward_raft_events(&raft, &conductor_sender) => forwarded.context("cannot follow raft's state"),
        () = shutdown.cancelled() => Ok(()),
    };
    // Fails only if the conductor has ended already.
    let _ = conductor_sender.send(ConductorInput::Shutdown);
    stop_watcher.cancel();
    let stopping = async {
        raft.stop().await;
        stop_raft.cancel();
        if let Some(server) = raft_server {
            server.await.context("raft's http server panicked")??;
        }
        anyhow::Ok(())
    };
    if let Ok(stopped) = timeout(STOP_TIMEOUT, stopping).await {
        stopped?;
    } else {
        tracing::warn!("raft did not stop in time");
    }
    outcome
}

/// Sends changes of the Raft role and the plan to the conductor, until Raft stops with an error.
async fn forward_raft_events(raft: &RaftNode, conductor: &Sender<ConductorInput>) -> anyhow::Result<()> {
    let (mut role_changes, mut plans) = (raft.role_changes(), raft.plan());
    let (mut raft_role, mut plan) = (None, None);
    loop {
        let new_role = raft.raft_role()?;
        if raft_role.as_ref() != Some(&new_role) {
            raft_role = Some(new_role.clone());
            // During shutdown the conductor is gone.
            let _ = conductor.send(ConductorInput::Event(Event::RaftRoleChanged(new_role)));
        }
        let new_plan = *plans.borrow_and_update();
        if new_plan != plan {
            plan = new_plan;
            if let Some(new_plan) = new_plan {
                let _ = conductor.send(ConductorInput::Event(Event::PlanApplied(new_plan)));
            }
        }
        tokio::select! {
            changed = role_changes.next() => changed?,
            changed = plans.changed() => changed.context("raft's plan channel is closed")?,
        }
    }
}
