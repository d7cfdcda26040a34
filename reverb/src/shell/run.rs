//! Starts reverb's components, and runs the member and the HTTP server until a shutdown or an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use backbeat_broker::{
    Broker, ClientWatch, GroupProtocol, LogReader, Registry, SchemaCache, Sender, TopicName, wait_for_topics,
};
use backbeat_schemas::{BarPartial, BarReport, BeatFrame};
use backbeat_service::{Shutdown, serve};
use rdkafka::consumer::Consumer;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use super::claim_decoder::ClaimDecoder;
use super::dead_letters::DeadLetterProducer;
use super::frame_table::FrameTable;
use super::group::{Group, GroupConsumer};
use super::member::{BarLengthGuard, Member, MemberExit};
use super::merger::{MergeContext, Reached};
use super::metrics::Metrics;
use super::owned_partition::PartialProducer;
use super::status::SharedStatus;
use super::{Args, http};

/// Runs reverb until `shutdown`, or until an error that retrying cannot solve.
pub async fn run(args: Args, listener: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new()?);
    let name = member_name(&args);
    let status = SharedStatus::new(args.cluster.clone(), name.clone());
    let stop_serving = shutdown.child_token();
    let server = tokio::spawn(serve(listener, http::routes(&metrics, status.clone()), stop_serving.clone()));

    if args.group_protocol == GroupProtocol::Consumer {
        tracing::warn!(
            "the broker sets the session timeout (group.consumer.session.timeout.ms, 45 s by default); a dead member delays reports by that long"
        );
    }
    let broker = Broker::new(&args.kafka, &name)?;
    let registry = Registry::new(&args.kafka)?;
    let prepared = tokio::select! {
        prepared = prepare(&broker, &registry) => Some(prepared?),
        () = shutdown.cancelled() => None,
    };
    let outcome = match prepared {
        None => Ok(()),
        Some((report_schema, partial_schema)) => {
            let runtime = Handle::current();
            let merge_context = MergeContext {
                broker: broker.clone(),
                registry: registry.clone(),
                runtime: runtime.clone(),
                cluster_id: args.cluster.clone(),
                report_schema,
                partial_schema,
                reemit: args.reemit,
                takeover_after: Duration::from_millis(args.takeover_after),
                metrics: Arc::clone(&metrics),
                status: status.clone(),
            };
            let work = move || {
                let mut name = name;
                loop {
                    let member = member(&args, &name, &broker, &registry, &runtime, &merge_context, &metrics, &status)?;
                    if member.run(&shutdown)? == MemberExit::Shutdown {
                        return Ok(());
                    }
                    // Partials name their member and are counted by it, so another one needs a name of its own.
                    name = member_name(&args);
                    status.update(|member| member.name.clone_from(&name));
                    tracing::warn!(name, "the member's kafka client was lost or stalled; starting another member");
                }
            };
            tokio::task::spawn_blocking(work).await.context("the member's thread panicked")?
        }
    };
    stop_serving.cancel();
    server.await.context("the http server panicked")??;
    outcome
}

fn member_name(args: &Args) -> String {
    format!("{}-{:08x}", args.node, rand::random::<u32>())
}

/// Waits for Kafka, the topics and the registry, and returns the schema ids of reports and partials.
async fn prepare(broker: &Broker, registry: &Registry) -> anyhow::Result<(u32, u32)> {
    wait_for_topics(broker, &TopicName::ALL).await?;
    let topics = broker.topics();
    let report = registry.register::<BarReport>(&topics.subject(TopicName::BarReports)).await?;
    let partial = registry.register::<BarPartial>(&topics.subject(TopicName::BarPartials)).await?;
    Ok((report, partial))
}

#[allow(clippy::too_many_arguments, reason = "it only creates and connects the components")]
fn member(
    args: &Args,
    name: &str,
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    merge_context: &MergeContext,
    metrics: &Arc<Metrics>,
    status: &SharedStatus,
) -> anyhow::Result<Member> {
    let mut settings = broker.group_member(args.group_protocol, Duration::from_secs(args.session_timeout));
    // Statistics matter only if control records end a partition, so they may be a second old.
    settings.set("statistics.interval.ms", "1000");
    let consumer: GroupConsumer = settings.create_with_context(Group::default())?;
    let (group, consumer) = (Arc::clone(consumer.context()), Arc::new(consumer));
    let topic = broker.topics().name(TopicName::StatusClaims);
    let frames = LogReader::<BeatFrame>::new(broker, registry, runtime, TopicName::BeatFrames)?;
    Ok(Member {
        watch: ClientWatch::consumer(broker, &topic, &consumer),
        consumer,
        group,
        topic,
        table: FrameTable::new(frames, args.cluster.clone()),
        partials: LogReader::new(broker, registry, runtime, TopicName::BarPartials)?,
        reports: LogReader::new(broker, registry, runtime, TopicName::BarReports)?,
        decoder: ClaimDecoder::new(SchemaCache::new(registry.clone(), runtime.clone())),
        producer: PartialProducer {
            dead_letters: DeadLetterProducer {
                sender: Sender::new(broker, TopicName::BarPartials, None)?,
                topics: broker.topics().clone(),
            },
            partial_schema: merge_context.partial_schema,
            member: name.to_owned(),
            counter: 0,
            partial_deliveries: Arc::default(),
            started_at: Instant::now(),
        },
        merge_context: merge_context.clone(),
        bar_length: BarLengthGuard { expected: args.expect_bar_length, after: None },
        metrics: Arc::clone(metrics),
        status: status.clone(),
        partitions: Default::default(),
        start_positions: Default::default(),
        commit_requested: Default::default(),
        checked: None,
        reached: Reached::default(),
    })
}
