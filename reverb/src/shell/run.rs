//! Starts reverb's components, and runs the member and the HTTP server until a shutdown or an error.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use backbeat_broker::{Broker, GroupProtocol, Registry, SubjectSchemas, TopicName, check_log, wait_for_topics};
use backbeat_schemas::{BarPartial, BarReport, BarRoster};
use backbeat_service::{Shutdown, serve};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::http::LogQueries;
use super::member::{Member, MemberExit};
use super::merge_context::{MergeContext, SchemaIds};
use super::metrics::Metrics;
use super::status::SharedStatus;
use super::{Args, http};
use crate::core::MAX_RESCUED_CLAIMS;

/// The time from a signal until the program ends, whatever hangs: the manifests grant 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(18);

/// Runs reverb until `shutdown`, or until an error that retrying cannot solve.
pub async fn run(args: Args, listener: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new()?);
    let name = member_name(&args);
    let status = SharedStatus::new(args.cluster.clone(), name.clone());
    let broker = Broker::new(&args.kafka, &name)?;
    let registry = Registry::new(&args.kafka)?;
    let stop_serving = shutdown.child_token();
    let queries = LogQueries {
        status: status.clone(),
        broker: broker.clone(),
        registry: registry.clone(),
        stop: stop_serving.clone(),
        permit: Arc::new(Semaphore::new(1)),
    };
    let routes = http::routes(&metrics, status.clone(), queries);
    let server = tokio::spawn(serve(listener, routes, stop_serving.clone()));

    if args.group_protocol == GroupProtocol::Consumer {
        tracing::warn!(
            "the broker sets the session timeout (group.consumer.session.timeout.ms, 45 s by default): so late are a dead member's partitions given to others. Until then, the merge reads their claims itself if a window has at most {MAX_RESCUED_CLAIMS}"
        );
    }
    let prepared = tokio::select! {
        prepared = prepare(&broker, &registry) => Some(prepared?),
        () = shutdown.cancelled() => None,
    };
    let outcome = match prepared {
        None => Ok(()),
        Some(schemas) => {
            let (runtime, stopped) = (Handle::current(), shutdown.clone());
            let claims = TopicName::StatusClaims;
            let merge_context = MergeContext {
                claim_schemas: SubjectSchemas::new(registry.clone(), broker.topics(), claims, runtime.clone()),
                broker,
                registry,
                runtime,
                cluster_id: args.cluster.clone(),
                schemas,
                reemit: args.reemit,
                takeover_after: Duration::from_millis(args.takeover_after),
                metrics: Arc::clone(&metrics),
                status: status.clone(),
            };
            let work = move || {
                let mut name = name;
                loop {
                    let member = Member::new(&args, &name, &merge_context)?;
                    if member.run(&shutdown)? == MemberExit::Shutdown {
                        return Ok(());
                    }
                    // Partials name their member and are counted by it, so another one needs a name of its own.
                    name = member_name(&args);
                    status.update(|member| member.name.clone_from(&name));
                    tracing::warn!(name, "the member's kafka client was lost or stalled; starting another member");
                }
            };
            let is_late = async {
                stopped.cancelled().await;
                tokio::time::sleep(STOP_TIMEOUT).await;
            };
            tokio::select! {
                outcome = tokio::task::spawn_blocking(work) => outcome.context("the member's thread panicked")?,
                () = is_late => Err(anyhow!("the member has not stopped within {STOP_TIMEOUT:?}: its kafka client hangs")),
            }
        }
    };
    stop_serving.cancel();
    server.await.context("the http server panicked")??;
    outcome
}

fn member_name(args: &Args) -> String {
    format!("{}-{:08x}", args.node, rand::random::<u32>())
}

/// Waits for Kafka, the topics and the registry, and returns the schema ids.
async fn prepare(broker: &Broker, registry: &Registry) -> anyhow::Result<SchemaIds> {
    wait_for_topics(broker, &TopicName::ALL).await?;
    let topics = broker.topics();
    check_log(broker, registry).await?;
    let report = registry.register::<BarReport>(&topics.subject(TopicName::BarReports)).await?;
    let partial = registry.register::<BarPartial>(&topics.subject(TopicName::BarPartials)).await?;
    let roster = registry.register::<BarRoster>(&topics.subject(TopicName::BarRosters)).await?;
    Ok(SchemaIds { report, partial, roster })
}
