//! A Kafka that requires TLS, passwords and ACLs, and a registry that requires TLS. The ACLs here are those of
//! `docs/operations.md`, and no others.

use std::fs;
use std::time::Duration;

use backbeat_devstack::kafka_cli;
use backbeat_tests::{Cluster, SecuredKafka, SecuredRegistry, run, stack, wait_until};
use tempfile::TempDir;

use crate::raft_security::{Recording, find, tap};

const LIMIT: Duration = Duration::from_mins(1);

/// Runs the commands under "Quotas" in `docs/operations.md`.
fn set_documented_quotas(kafka: &SecuredKafka) {
    let handbook = include_str!("../../docs/operations.md");
    let (_, section) = handbook.split_once("### Quotas").expect("there is a section");
    let commands = section.split("```").nth(1).and_then(|block| block.strip_prefix("sh\n")).expect("it has commands");
    let commands = commands.replace("\\\n", " ").replace("...", kafka.admin_address());
    for command in commands.lines() {
        let args = command.strip_prefix("kafka-configs.sh ").expect("it runs one tool");
        run(kafka_cli("kafka.admin.ConfigCommand").expect("the Kafka CLI is available").args(args.split_whitespace()));
    }
}

/// Adds the ACLs of each program, as in the table of `docs/operations.md`.
fn add_minimal_acls(kafka: &SecuredKafka, prefix: &str) {
    let name = |name: &str| format!("{prefix}{name}");
    let allow = |user: &str, operations: &[&str], flag: &str, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|one| name(one)).collect();
        let resources: Vec<(&str, &str)> = names.iter().map(|one| (flag, one.as_str())).collect();
        kafka.allow(user, operations, &resources);
    };
    let all = ["beatframes", "statusclaims", "barreports", "barpartials", "barrosters", "statusclaims.dlq"];
    allow("topics", &["Create", "Describe", "DescribeConfigs"], "--topic", &all);
    allow("pulse", &["Read"], "--topic", &["beatframes", "barreports"]);
    allow("pulse", &["Write"], "--topic", &["beatframes"]);
    allow("pulse", &["Describe"], "--topic", &["statusclaims"]);
    allow("pulse", &["Read"], "--group", &["readers"]);
    allow("pulse", &["Write"], "--transactional-id", &["pulse"]);
    // Pulse's ACLs without the transactional id.
    allow("intruder", &["Read"], "--topic", &["beatframes", "barreports"]);
    allow("intruder", &["Write"], "--topic", &["beatframes"]);
    allow("intruder", &["Describe"], "--topic", &["statusclaims"]);
    allow("intruder", &["Read"], "--group", &["readers"]);
    allow("reverb", &["Read"], "--topic", &["beatframes", "statusclaims", "barpartials", "barreports", "barrosters"]);
    allow("reverb", &["Write"], "--topic", &["barpartials", "barreports", "barrosters", "statusclaims.dlq"]);
    allow("reverb", &["Read"], "--group", &["reverb", "readers"]);
    allow("reverb", &["Write"], "--transactional-id", &["reverb-merge"]);
    allow("agent", &["Read"], "--topic", &["beatframes"]);
    allow("agent", &["Write"], "--topic", &["statusclaims"]);
    allow("agent", &["Read"], "--group", &["readers"]);
}

#[test]
fn programs_with_minimal_acls_work_over_tls_and_sasl() {
    let dir = TempDir::new().expect("a temporary directory");
    let kafka = SecuredKafka::start(dir.path(), &["topics", "pulse", "intruder", "reverb", "agent"]);
    let cluster = Cluster::at(kafka.admin_address().to_owned(), stack().schema_registry());
    add_minimal_acls(&kafka, cluster.prefix());
    set_documented_quotas(&kafka);
    let flags = |user: &str| {
        let properties = kafka.properties(user, &format!("{user}-secret"));
        [
            "--bootstrap-servers".to_owned(),
            kafka.client_address().to_owned(),
            "--kafka-config".to_owned(),
            properties.display().to_string(),
        ]
    };
    let with = |user: &str, args: &[&str]| -> Vec<String> {
        args.iter().map(|arg| (*arg).to_owned()).chain(flags(user)).collect()
    };
    let output = |program: &str, args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cluster.command(program, &args).output().expect("the program runs")
    };
    let topics = output("backbeat", with("topics", &["topics", "--replication-factor", "1"]));
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
    // No program logs a secret, and none is denied anything.
    assert!(!logs().contains("-secret"), "{}", logs());
    assert!(!logs().to_lowercase().contains("authorization failed"), "{}", logs());
    for program in [&pulse, &reverb, &sim] {
        let arguments = fs::read_to_string(format!("/proc/{}/cmdline", program.pid())).expect("the program runs");
        assert!(!arguments.contains("-secret"));
    }

    // A pulse that may not use the transactional id counts what the alert BackbeatKafkaRefuses looks at.
    let args = with("intruder", &[&tempo[..], &["--node", "other"]].concat());
    let intruder = cluster.serve("pulse", &args.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("the refusal of the transactional id to be counted", LIMIT, || {
        let (_, metrics) = intruder.get("/metrics").unwrap_or_default();
        let series = "backbeat_kafka_client_errors_total{error=\"TransactionalIdAuthorizationFailed\"} ";
        metrics.lines().any(|line| line.strip_prefix(series).is_some_and(|count| count != "0"))
    });
    drop(intruder);

    // The ACLs of an agent do not allow it to read reports.
    let as_agent = output("backbeat", with("agent", &["tail", "barreports"]));
    assert!(!as_agent.status.success());
    let stderr = String::from_utf8_lossy(&as_agent.stderr).into_owned();
    assert!(stderr.contains("uthoriz"), "{stderr}");
}

#[test]
fn pulse_with_a_wrong_password_or_an_unknown_authority_logs_the_reason() {
    let dir = TempDir::new().expect("a temporary directory");
    let kafka = SecuredKafka::start(dir.path(), &["pulse"]);
    let cluster = Cluster::at(kafka.admin_address().to_owned(), stack().schema_registry());
    let wrong_password = kafka.properties("pulse", "guessed");
    let without_authority = dir.path().join("other.properties");
    fs::write(
        &without_authority,
        "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=pulse\nsasl.password=pulse-secret\n",
    )
    .expect("the file is written");
    for (properties, reason, error) in
        [(wrong_password, "Authentication failed", "Authentication"), (without_authority, "certificate", "SSL")]
    {
        let file = properties.display().to_string();
        let args = ["--cluster", "it", "--bootstrap-servers", kafka.client_address(), "--kafka-config", &file];
        let pulse = cluster.serve("pulse", &args);
        wait_until("the reason in the log", LIMIT, || pulse.log().contains(reason));
        let (status, body) = pulse.get("/ready").expect("the program answers");
        assert_eq!(status, 503, "{body}");
        // The alert BackbeatKafkaRefuses uses this metric.
        let counted = || {
            let (_, metrics) = pulse.get("/metrics").expect("the program answers");
            let line = format!("backbeat_kafka_client_errors_total{{error=\"{error}\"}} ");
            metrics.lines().any(|text| text.strip_prefix(&line).is_some_and(|count| count != "0"))
        };
        wait_until("the error in the metric", LIMIT, counted);
        assert!(!pulse.log().contains("-secret") && !pulse.log().contains("guessed"), "{}", pulse.log());
    }
}

#[test]
fn registry_with_tls_is_trusted_only_with_its_authority() {
    let dir = TempDir::new().expect("a temporary directory");
    let registry = SecuredRegistry::start(dir.path());
    let cluster = Cluster::new(1);
    // The address may contain credentials; logs must not.
    let address = registry.url().replace("https://", "https://reader:registry-secret@");
    let tempo = ["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"];
    let registry_flags = ["--schema-registry", address.as_str()];
    let authority = registry.authority().display().to_string();
    let with_authority =
        cluster.serve("pulse", &[&tempo[..], &registry_flags, &["--schema-registry-ca", &authority]].concat());
    with_authority.wait_ready();
    let without_authority = cluster.serve("pulse", &[&tempo[..], &registry_flags, &["--node", "other"]].concat());
    let reason = "certificate";
    wait_until("the reason in the log", LIMIT, || without_authority.log().contains(reason));
    for program in [&with_authority, &without_authority] {
        assert!(!program.log().contains("registry-secret"), "{}", program.log());
    }
    let topics = ["topics", "--replication-factor", "1", "--claim-partitions", "1", "--schema-registry-ca"];
    let refused = cluster.backbeat(&[&topics[..], &["/nowhere.pem"]].concat());
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && stderr.contains("from /nowhere.pem: No such file"), "{stderr}");
}

#[test]
fn registry_credentials_are_read_from_the_properties_file() {
    let cluster = Cluster::new(1);
    let (_, rest) = cluster.kafka().schema_registry.split_once("://").expect("the registry has a URL");
    let (address, path) = rest.split_once('/').expect("the URL has a path");
    let recording = Recording::default();
    let tapped = format!("http://{}/{path}", tap(address, &recording));
    let properties = cluster.dir().join("kafka.properties");
    let file = properties.to_str().expect("the path is UTF-8");
    let show = ["schemas", "check", "--schema-registry", &tapped, "--kafka-config", file];

    fs::write(&properties, "schema.registry.basic.auth.user.info=reader:registry-secret\n")
        .expect("the file is written");
    let shown = cluster.backbeat(&show);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let recording = recording.lock().expect("no thread panicked").concat();
    // base64 of reader:registry-secret
    assert!(find(&recording, b"authorization: Basic cmVhZGVyOnJlZ2lzdHJ5LXNlY3JldA==").is_some());

    fs::write(&properties, "schema.registry.basic.auth.user.info=registry-secret\n").expect("the file is written");
    let stderr = String::from_utf8_lossy(&cluster.backbeat(&show).stderr).into_owned();
    assert!(stderr.contains("must be user:password") && !stderr.contains("registry-secret"), "{stderr}");
}
