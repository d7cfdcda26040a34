//! A Kafka that demands TLS, passwords and rights: `docs/operations.md` has the rights that are given here, and no more.

use std::fs;
use std::time::Duration;

use backbeat_tests::{Cluster, SecuredKafka, SecuredRegistry, stack, wait_until};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_mins(1);

/// The rights of each program, as in the table of `docs/operations.md`.
fn allow_the_least(kafka: &SecuredKafka, prefix: &str) {
    let name = |name: &str| format!("{prefix}{name}");
    let allow = |user: &str, operations: &[&str], flag: &str, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|one| name(one)).collect();
        let resources: Vec<(&str, &str)> = names.iter().map(|one| (flag, one.as_str())).collect();
        kafka.allow(user, operations, &resources);
    };
    let all = ["beatframes", "statusclaims", "barreports", "barpartials", "statusclaims.dlq"];
    allow("topics", &["Create", "Describe", "DescribeConfigs"], "--topic", &all);
    allow("pulse", &["Read"], "--topic", &["beatframes", "barreports"]);
    allow("pulse", &["Write"], "--topic", &["beatframes"]);
    allow("pulse", &["Describe"], "--topic", &["statusclaims"]);
    allow("pulse", &["Read"], "--group", &["readers"]);
    allow("pulse", &["Write"], "--transactional-id", &["pulse"]);
    allow("reverb", &["Read"], "--topic", &["beatframes", "statusclaims", "barpartials", "barreports"]);
    allow("reverb", &["Write"], "--topic", &["barpartials", "barreports", "statusclaims.dlq"]);
    allow("reverb", &["Read"], "--group", &["reverb", "readers"]);
    allow("reverb", &["Write"], "--transactional-id", &["reverb-merge"]);
    allow("agent", &["Read"], "--topic", &["beatframes"]);
    allow("agent", &["Write"], "--topic", &["statusclaims"]);
    allow("agent", &["Read"], "--group", &["readers"]);
}

#[test]
fn each_program_works_with_tls_a_password_and_the_least_of_rights() {
    let dir = TempDir::new().expect("a directory");
    let kafka = SecuredKafka::start(dir.path(), &["topics", "pulse", "reverb", "agent"]);
    let cluster = Cluster::at(kafka.for_us().to_owned(), stack().schema_registry());
    allow_the_least(&kafka, cluster.prefix());
    let flags = |user: &str| {
        let properties = kafka.properties(user, &format!("{user}-secret"));
        [
            "--bootstrap-servers".to_owned(),
            kafka.for_clients().to_owned(),
            "--kafka-config".to_owned(),
            properties.display().to_string(),
        ]
    };
    let with = |user: &str, args: &[&str]| -> Vec<String> {
        args.iter().map(|arg| (*arg).to_owned()).chain(flags(user)).collect()
    };
    let run = |program: &str, args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cluster.command(program, &args).output().expect("it runs")
    };
    let topics = run("backbeat", with("topics", &["topics", "--replication-factor", "1"]));
    assert!(topics.status.success(), "{}", String::from_utf8_lossy(&topics.stderr));

    let start = |program: &str, args: &[&str]| {
        let args = with(if program == "agent-sim" { "agent" } else { program }, args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if program == "agent-sim" { cluster.start(program, &args) } else { cluster.serve(program, &args) }
    };
    let tempo = ["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"];
    let pulse = start("pulse", &tempo);
    let reverb = start("reverb", &["--cluster", "it"]);
    let sim = start("agent-sim", &["--agents", "10", "--malformed-rate", "0.1"]);
    let logs = || format!("{}\n{}\n{}", pulse.log(), reverb.log(), sim.log());
    let reported = || cluster.reports().iter().any(|entry| entry.record.claims > 20 && entry.record.invalid_claims > 0);
    let deadline = std::time::Instant::now() + LIMIT;
    while !reported() {
        assert!(std::time::Instant::now() < deadline, "no report within {LIMIT:?}:\n{}", logs());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Nobody says a secret, and nobody was refused something.
    assert!(!logs().contains("-secret"), "{}", logs());
    assert!(!logs().to_lowercase().contains("authorization failed"), "{}", logs());
    for program in [&pulse, &reverb, &sim] {
        let told = fs::read_to_string(format!("/proc/{}/cmdline", program.pid())).expect("it runs");
        assert!(!told.contains("-secret"));
    }

    // An agent's rights are an agent's: it can neither beat nor see reports.
    let as_agent = run("backbeat", with("agent", &["tail", "barreports"]));
    assert!(!as_agent.status.success());
    let said = String::from_utf8_lossy(&as_agent.stderr).into_owned();
    assert!(said.contains("uthoriz"), "{said}");
}

#[test]
fn who_shows_nothing_or_something_wrong_is_told_so() {
    let dir = TempDir::new().expect("a directory");
    let kafka = SecuredKafka::start(dir.path(), &["pulse"]);
    let cluster = Cluster::at(kafka.for_us().to_owned(), stack().schema_registry());
    let wrong = kafka.properties("pulse", "guessed");
    let trusts_nobody = dir.path().join("other.properties");
    fs::write(
        &trusts_nobody,
        "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=pulse\nsasl.password=pulse-secret\n",
    )
    .expect("writes");
    for (properties, reason, error) in
        [(wrong, "Authentication failed", "Authentication"), (trusts_nobody, "certificate", "SSL")]
    {
        let file = properties.display().to_string();
        let args = ["--cluster", "it", "--bootstrap-servers", kafka.for_clients(), "--kafka-config", &file];
        let pulse = cluster.serve("pulse", &args);
        wait_until("the reason in the log", LIMIT, || pulse.log().contains(reason));
        let (status, body) = pulse.get("/ready").expect("it answers");
        assert_eq!(status, 503, "{body}");
        // What the alert BackbeatKafkaRefuses looks at.
        let counted = || {
            let (_, metrics) = pulse.get("/metrics").expect("it answers");
            let line = format!("backbeat_kafka_client_errors_total{{error=\"{error}\"}} ");
            metrics.lines().any(|text| text.strip_prefix(&line).is_some_and(|count| count != "0"))
        };
        wait_until("the count of it", LIMIT, counted);
        assert!(!pulse.log().contains("-secret") && !pulse.log().contains("guessed"), "{}", pulse.log());
    }
}

#[test]
fn a_registry_with_tls_is_believed_by_its_authority_only() {
    let dir = TempDir::new().expect("a directory");
    let registry = SecuredRegistry::start(dir.path());
    let cluster = Cluster::new(1);
    // Credentials may stand in the address; messages leave them out.
    let address = registry.url().replace("https://", "https://reader:registry-secret@");
    let tempo = ["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"];
    let there = ["--schema-registry", address.as_str()];
    let authority = registry.authority().display().to_string();
    let trusting = cluster.serve("pulse", &[&tempo[..], &there, &["--schema-registry-ca", &authority]].concat());
    trusting.wait_ready();
    let distrusting = cluster.serve("pulse", &[&tempo[..], &there, &["--node", "other"]].concat());
    let reason = "certificate";
    wait_until("the reason in the log", LIMIT, || distrusting.log().contains(reason));
    for program in [&trusting, &distrusting] {
        assert!(!program.log().contains("registry-secret"), "{}", program.log());
    }
    let topics = ["topics", "--replication-factor", "1", "--claim-partitions", "1", "--schema-registry-ca"];
    let refused = cluster.backbeat(&[&topics[..], &["/nowhere.pem"]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("from /nowhere.pem: No such file"), "{said}");
}
