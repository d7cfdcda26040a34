//! Kafka clients that stop working while other clients of the same broker work: each is replaced, and reports continue.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_schemas::{BarPartial, PartialBody};
use backbeat_tests::{ApiKey, Cluster, KafkaProxy, Program, ProxyFault, ResponseError, stack, wait_until};
use rustix::process::Signal;

use crate::reports::{check_reports, totals};

const LIMIT: Duration = Duration::from_mins(1);
/// The time for which metadata lacks its brokers: longer than a client's refresh of it.
const WITHOUT_BROKERS: Duration = Duration::from_secs(7);

struct Pipeline {
    cluster: Cluster,
    proxy: KafkaProxy,
    pulse: Program,
    reverb: Program,
    sim: Program,
}

impl Pipeline {
    /// Starts pulse, reverb and agents behind the proxy; the test itself reads from the broker.
    fn start(refused_offset_fetches: u32) -> Self {
        let proxy = KafkaProxy::start(&stack().bootstrap_servers());
        let cluster = Cluster::new(3);
        let servers = proxy.bootstrap_servers();
        let through = |args: &[&str]| -> Vec<String> {
            args.iter().chain(&["--bootstrap-servers", &servers]).map(|arg| (*arg).to_owned()).collect()
        };
        let serve = |name, args: &[&str]| {
            let args = through(args);
            cluster.serve(name, &args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        proxy.refuse_offset_fetches(refused_offset_fetches);
        let pulse = serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"]);
        let reverb = serve("reverb", &["--cluster", "it"]);
        let args = through(&["--agents", "20"]);
        let sim = cluster.start("agent-sim", &args.iter().map(String::as_str).collect::<Vec<_>>());
        let pipeline = Self { cluster, proxy, pulse, reverb, sim };
        pipeline.wait_until_reports_continue("the start");
        pipeline
    }

    /// Waits for two more whole reports, which need beats, claims, partials and the merge.
    fn wait_until_reports_continue(&self, after: &str) -> Duration {
        let whole = || self.cluster.reports().iter().filter(|entry| entry.record.claims > 20).count();
        let (before, begun) = (whole(), Instant::now());
        let deadline = begun + LIMIT;
        while whole() < before + 2 {
            let logs = || [&self.pulse, &self.reverb, &self.sim].map(Program::log).join("\n");
            assert!(Instant::now() < deadline, "no reports within {LIMIT:?} after {after}:\n{}", logs());
            std::thread::sleep(Duration::from_millis(50));
        }
        begun.elapsed()
    }

    fn replaced(&self) -> f64 {
        let count = |program: &Program| program.metric("backbeat_kafka_clients_replaced_total").unwrap_or_default();
        count(&self.pulse) + count(&self.reverb)
    }

    /// Stops the agents and pulse, and checks every report.
    fn check(self) {
        drop(self.sim);
        let beats = self.cluster.frames().len();
        wait_until("two more bars", LIMIT, || self.cluster.frames().len() >= beats + 8);
        drop(self.pulse);
        let oracle = check_reports(&self.cluster);
        let (counted, late, invalid) = totals(&self.cluster.reports());
        assert_eq!(counted + late + invalid, oracle.claims() as i64);
        drop(self.reverb);
    }
}

/// A member whose partition cannot be read for a moment reads it again from where it was.
#[test]
fn partitions_that_cannot_be_read_for_a_moment_lose_no_claim() {
    let pipeline = Pipeline::start(0);
    for reason in [ResponseError::UnknownServerError, ResponseError::TopicAuthorizationFailed] {
        pipeline.proxy.refuse_fetches(20, reason);
        wait_until("the faults", LIMIT, || pipeline.proxy.fetches_to_refuse() == 0);
        pipeline.wait_until_reports_continue(&format!("{reason:?}"));
    }
    assert!(pipeline.reverb.log().contains("cannot read claims"), "{}", pipeline.reverb.log());
    pipeline.check();
}

/// Every client is cut off once, one after another.
#[test]
fn each_lost_client_is_replaced_and_reports_continue() {
    let pipeline = Pipeline::start(0);
    let lost: BTreeSet<String> = pipeline.proxy.clients();
    for client in &lost {
        pipeline.proxy.block(client);
        let after = pipeline.wait_until_reports_continue(client);
        eprintln!("{client}: reports again after {after:?}");
    }
    let successors: Vec<String> = pipeline.proxy.clients().difference(&lost).cloned().collect();
    assert!(pipeline.replaced() > 0.0, "none of {lost:?} was replaced; there are {successors:?}");
    pipeline.check();
}

/// The client with which a merge reads overdue shares is used only when a member dies, so that nothing else shows that it
/// is lost.
#[test]
fn lost_client_of_rescues_is_replaced_before_a_member_dies() {
    let pipeline = Pipeline::start(0);
    let topic = pipeline.cluster.broker().topics().name(TopicName::StatusClaims);
    let of_reverb = |client: &String| client.starts_with("reverb");
    let readers: BTreeSet<String> = pipeline.proxy.readers(&topic).into_iter().filter(of_reverb).collect();
    let members = pipeline.proxy.group_members();
    let of_rescues: Vec<&String> = readers.difference(&members).collect();
    assert!(!of_rescues.is_empty(), "{readers:?}");
    for client in of_rescues {
        pipeline.proxy.block(client);
    }
    wait_until("the watch to find that it is lost", LIMIT, || pipeline.replaced() > 0.0);
    let servers = pipeline.proxy.bootstrap_servers();
    let mut other = pipeline.cluster.serve("reverb", &["--cluster", "it", "--bootstrap-servers", &servers]);
    wait_until("partitions of the other", LIMIT, || other.metric("backbeat_reverb_assigned_partitions") > Some(0.0));
    pipeline.wait_until_reports_continue("a second member");
    let partials = || pipeline.cluster.read_all::<BarPartial>(TopicName::BarPartials);
    let last = partials().last().expect("members have sent partials").offset;
    other.signal(Signal::KILL);
    other.wait();
    pipeline.wait_until_reports_continue("the death of a member");
    let mut done = partials().into_iter().filter(|entry| entry.offset > last).filter_map(|entry| {
        match entry.record.into_body()? {
            PartialBody::Done(done) => Some(done),
            _ => None,
        }
    });
    assert!(done.any(|done| !done.rescued.is_empty()), "nothing was rescued: {}", pipeline.reverb.log());
    pipeline.check();
}

/// Metadata without brokers, as from a broker that its controller has fenced.
#[test]
fn metadata_without_brokers_leaves_no_client_lost() {
    let pipeline = Pipeline::start(0);
    for round in 0..5 {
        pipeline.proxy.set_without_brokers(true);
        std::thread::sleep(WITHOUT_BROKERS);
        pipeline.proxy.set_without_brokers(false);
        let after = pipeline.wait_until_reports_continue(&format!("round {round}"));
        eprintln!("round {round}: reports again after {after:?}, {} clients replaced so far", pipeline.replaced());
    }
    pipeline.check();
}

/// librdkafka does not retry its own request for committed offsets if the broker is not the coordinator (its issue 5586):
/// with that request, the member's partitions would never start.
#[test]
fn offset_fetches_refused_by_a_wrong_coordinator_do_not_stop_a_member() {
    let pipeline = Pipeline::start(4);
    assert_eq!(pipeline.proxy.offset_fetches_to_refuse(), 0, "the fault was caused");
    pipeline.check();
}

/// A consumer whose fetches get no responses while its other requests do, like one that no longer sends fetches.
#[test]
fn member_whose_fetches_are_not_answered_is_replaced() {
    let pipeline = Pipeline::start(0);
    let members = pipeline.proxy.group_members();
    assert_eq!(members.len(), 1, "{members:?}");
    for member in &members {
        pipeline.proxy.hold_responses(member, ApiKey::Fetch);
    }
    let after = pipeline.wait_until_reports_continue("fetches without responses");
    eprintln!("reports again after {after:?}");
    assert_eq!(pipeline.proxy.group_members().len(), 2, "another member has replaced it");
    pipeline.check();
}

/// The last commit of a member waits for its response for as long as librdkafka does; the stop does not.
#[test]
fn member_whose_commits_are_not_answered_stops_within_its_bound() {
    let mut pipeline = Pipeline::start(0);
    for member in pipeline.proxy.group_members() {
        pipeline.proxy.hold_responses(&member, ApiKey::OffsetCommit);
    }
    pipeline.reverb.signal(Signal::TERM);
    let (code, log) = (pipeline.reverb.wait(), pipeline.reverb.log());
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("the member has not stopped within 18s: its kafka client hangs"), "{log}");
    pipeline.reverb = pipeline.cluster.serve("reverb", &["--cluster", "it"]);
    pipeline.wait_until_reports_continue("a stop whose commit got no response");
    pipeline.check();
}

/// Every client is lost soon after it was created: replacing it does not help, which `/health` says.
#[test]
fn clients_lost_again_and_again_make_the_service_unhealthy() {
    let pipeline = Pipeline::start(0);
    let health = || pipeline.reverb.get("/health").expect("reverb answers");
    assert_eq!(health().0, 200);
    pipeline.proxy.set_lifetime(Some(Duration::from_secs(1)));
    let limit = Duration::from_mins(3);
    wait_until("reverb to be unhealthy", limit, || health().0 == 503);
    let (_, reason) = health();
    assert!(reason.contains("lost faster than they may be replaced"), "{reason}");
    pipeline.proxy.set_lifetime(None);
    pipeline.wait_until_reports_continue("the loss of every client");
    wait_until("reverb to be healthy again", limit, || health().0 == 200);
    pipeline.check();
}

/// Requests of producers and readers whose answers come late, never or twice, or which never reach the broker: no report is
/// lost, and none is there twice.
#[test]
fn requests_late_lost_or_doubled_cost_no_report() {
    let apis = [ApiKey::EndTxn, ApiKey::Produce, ApiKey::AddPartitionsToTxn, ApiKey::Fetch, ApiKey::ListOffsets];
    // One is later than pulse and the merge wait for a transaction: they open their producers again.
    let [soon, late] = [Duration::from_millis(300), Duration::from_secs(12)];
    let faults = [
        ProxyFault::LateRequest(soon),
        ProxyFault::LateResponse(soon),
        ProxyFault::LateResponse(late),
        ProxyFault::LostRequest,
        ProxyFault::LostResponse,
        ProxyFault::Twice,
    ];
    let pipeline = Pipeline::start(0);
    for api in apis {
        for fault in faults {
            // A producer that failed is opened again: with the fault, too. (Opened twice, it would have fenced itself.)
            if fault != ProxyFault::Twice {
                pipeline.proxy.cause(ApiKey::InitProducerId, fault);
            }
            pipeline.proxy.cause(api, fault);
            wait_until("the fault", LIMIT, || pipeline.proxy.pending_faults(api) == 0);
            let after = pipeline.wait_until_reports_continue(&format!("{fault:?} of {api:?}"));
            eprintln!("{fault:?} of {api:?}: reports again after {after:?}");
        }
    }
    let not_caused = pipeline.proxy.pending_faults(ApiKey::InitProducerId);
    assert!(not_caused < apis.len() * (faults.len() - 1), "no producer was opened again");
    pipeline.check();
}
