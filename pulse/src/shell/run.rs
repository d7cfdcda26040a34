//! Starts the parts and joins them.

use std::sync::Arc;

use anyhow::Context;
use backbeat_broker::{Broker, ClaimEnds, Registry, TopicName, wait_for_topics};
use backbeat_schemas::BeatFrame;
use backbeat_service::{Shutdown, serve};
use tokio::net::TcpListener;

use super::conductor::Conductor;
use super::lines::Lines;
use super::metrics::Metrics;
use super::status::SharedStatus;
use super::{Args, http};
use crate::core::{Leadership, Metronome};

/// Runs pulse until `shutdown`, or until it must not go on.
pub async fn run(args: Args, listener: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    let plan = args.plan()?;
    let metrics = Arc::new(Metrics::new()?);
    let status = SharedStatus::default();
    status.update(|status| {
        status.cluster_id.clone_from(&plan.cluster_id);
        status.node.clone_from(&args.node);
        status.waiting_for = Some("kafka, its topics and the schema registry".to_owned());
    });
    let stop_serving = shutdown.child_token();
    let server = tokio::spawn(serve(listener, http::routes(&metrics, status.clone()), stop_serving.clone()));

    let broker = Broker::new(&args.kafka, &args.node)?;
    let registry = Registry::new(&args.kafka.schema_registry)?;
    let prepared = tokio::select! {
        prepared = prepare(&broker, &registry) => Some(prepared?),
        () = shutdown.cancelled() => None,
    };
    let outcome = match prepared {
        None => Ok(()),
        Some(schema_id) => {
            let (frames, reports) = Conductor::readers(&broker, &registry)?;
            let lines = Lines::start(ClaimEnds::new(&broker)?)?;
            let flags = plan.clone();
            let cluster_id = plan.cluster_id.clone();
            // The node part of our HLC readings: any number that a rival is unlikely to have.
            let metronome = Metronome::new(plan, args.node, rand::random());
            let leadership = Leadership::new(metronome, cluster_id);
            let conductor =
                Conductor { broker, frames, reports, schema_id, flags, lines, leadership, metrics, status, shutdown };
            tokio::task::spawn_blocking(|| conductor.run()).await.context("the beating thread panicked")?
        }
    };
    stop_serving.cancel();
    server.await.context("the http server panicked")??;
    outcome
}

/// Waits for Kafka, the topics and the registry; returns the schema id of our frames.
async fn prepare(broker: &Broker, registry: &Registry) -> anyhow::Result<u32> {
    wait_for_topics(broker).await?;
    Ok(registry.register::<BeatFrame>(&broker.topics().subject(TopicName::BeatFrames)).await?)
}
