//! The `backbeat` CLI, and the flags of the other programs.

use std::time::Duration;

use backbeat_devstack::{Devstack, Options, free_port, kafka_cli};
use backbeat_tests::{Cluster, stack, wait_until};
use serde_json::Value;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the `backbeat` CLI to its end and returns its standard output; panics if it fails.
fn printed(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.backbeat(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

const TOPICS: &[&str] = &["topics", "--replication-factor", "1", "--claim-partitions", "4"];

#[test]
fn topics_run_twice_creates_them_once() {
    let cluster = Cluster::without_topics();
    let first = cluster.backbeat(TOPICS);
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(text(&first.stdout).matches("created ").count(), 6, "{}", text(&first.stdout));
    let again = cluster.backbeat(TOPICS);
    assert!(again.status.success() && !text(&again.stdout).contains("created "));
}

#[test]
fn topics_with_other_settings_are_refused() {
    let cluster = Cluster::without_topics();
    let created = cluster.backbeat(TOPICS);
    assert!(created.status.success(), "{}", text(&created.stderr));
    let more = cluster.backbeat(&["topics", "--claim-partitions", "6"]);
    assert!(!more.status.success());
    let expected = format!("{}statusclaims: number of partitions is 4, must be at least 6", cluster.prefix());
    assert!(text(&more.stderr).contains(&expected), "{}", text(&more.stderr));

    let mut configs = kafka_cli("kafka.admin.ConfigCommand").expect("the Kafka CLI is available");
    configs.args(["--bootstrap-server", &stack().bootstrap_servers(), "--alter", "--entity-type", "topics"]);
    configs.args([
        "--entity-name",
        &format!("{}statusclaims", cluster.prefix()),
        "--add-config",
        "cleanup.policy=compact",
    ]);
    assert!(configs.output().expect("java runs").status.success());
    let compacted = cluster.backbeat(TOPICS);
    assert!(!compacted.status.success());
    assert!(
        text(&compacted.stderr).contains("cleanup.policy is compact, must be delete"),
        "{}",
        text(&compacted.stderr)
    );
}

#[test]
fn service_without_topics_waits_for_them() {
    let cluster = Cluster::without_topics();
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200"]);
    let limit = std::time::Duration::from_mins(1);
    wait_until("the log to name the missing topics", limit, || pulse.log().contains("these topics are missing"));
    let (code, body) = pulse.get("/ready").expect("the program answers");
    assert_eq!(code, 503, "{body}");
    assert!(cluster.backbeat(TOPICS).status.success());
    pulse.wait_ready();
}

#[test]
fn service_without_kafka_or_registry_waits_until_both_are_available() {
    let limit = Duration::from_mins(1);
    let (kafka_port, registry_port) = (free_port().expect("a free port"), free_port().expect("a free port"));
    let registry_url = format!("http://127.0.0.1:{registry_port}/apis/ccompat/v7");
    let cluster = Cluster::new(1);
    let flags = ["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200"];
    let without_registry = cluster.serve("pulse", &[&flags[..], &["--schema-registry", &registry_url]].concat());
    let kafka = format!("127.0.0.1:{kafka_port}");
    let unavailable = ["--node", "other", "--bootstrap-servers", &kafka, "--schema-registry", &registry_url];
    let without_kafka = cluster.serve("pulse", &[&flags[..], &unavailable].concat());
    wait_until("the log to name the registry", limit, || {
        without_registry.log().contains("waiting for the schema registry")
    });
    wait_until("the log to name Kafka", limit, || without_kafka.log().contains("waiting for kafka and its topics"));

    let dir = cluster.dir().join("stack");
    let devstack = Devstack::start(&Options { brokers: 1, kafka_port, registry_port, dir, throughput: false })
        .expect("the stack starts");
    without_registry.wait_ready();
    let addresses = ["--bootstrap-servers", &kafka, "--schema-registry", &registry_url];
    assert!(cluster.backbeat(&[TOPICS, &addresses[..]].concat()).status.success());
    without_kafka.wait_ready();
    drop((without_registry, without_kafka));
    devstack.stop();
}

#[test]
fn reverb_expecting_another_bar_length_exits_with_an_error() {
    let cluster = Cluster::new(1);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"]);
    let mut reverb = cluster.serve("reverb", &["--cluster", "it", "-bar-length", "5"]);
    assert_eq!(reverb.wait(), 1);
    assert!(reverb.log().contains("with 4 beats, but --expect-bar-length is 5"), "{}", reverb.log());
    drop(pulse);
}

#[test]
fn tail_prints_records_as_json_lines() {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"]);
    let mut sim = cluster.start("agent-sim", &["--agents", "3", "--beats", "8"]);
    let reverb = cluster.serve("reverb", &["--cluster", "it"]);
    wait_until("two reports", std::time::Duration::from_mins(1), || cluster.reports().len() >= 2);
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    drop(reverb);

    // Pulse still publishes, so --follow would not end without --max.
    let frames = cluster.backbeat(&["tail", "beatframes", "--from-beginning", "--follow", "--max", "5"]);
    let lines: Vec<Value> =
        text(&frames.stdout).lines().map(|line| serde_json::from_str(line).expect("valid JSON")).collect();
    let beats: Vec<i64> = lines.iter().filter_map(|line| line["beat_index"].as_i64()).collect();
    assert_eq!(beats, [0, 1, 2, 3, 4]);
    drop(pulse);
    let reports = cluster.backbeat(&["tail", "barreports", "--from-beginning"]);
    assert_eq!(text(&reports.stdout).lines().count(), cluster.reports().len());
    let claims = cluster.backbeat(&["tail", "statusclaims", "--from-beginning"]);
    assert!(text(&claims.stdout).lines().all(|line| line.starts_with("{\"type\":\"backbeat.statusclaim.v1\"")));
    assert!(text(&claims.stdout).lines().count() > 15, "{}", text(&claims.stdout));
}

#[test]
fn invalid_flags_are_refused_with_the_allowed_values() {
    let cluster = Cluster::without_topics();
    let refused = |program: &str, args: &[&str], reason: &str| {
        let output = cluster.command(program, args).output().expect("the program runs");
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(reason), "{}", text(&output.stderr));
    };
    refused("pulse", &["-bpm", "30", "--admin-port", "0"], "--bpm 30 is out of bounds; must be 1 to 24 BPM");
    refused("agent-sim", &["--late-rate", "2"], "2 is out of range: must be between 0 and 1");
    refused("agent-sim", &["--trace", "/nowhere.csv"], "cannot open the task list /nowhere.csv");
    refused("backbeat", &["tail", "beats"], "possible values: beatframes, statusclaims, barreports");
}

#[test]
fn help_of_each_subcommand_shows_examples() {
    let cluster = Cluster::without_topics();
    let printed = |args: &[&str]| printed(&cluster, args);
    let help = printed(&["--help"]);
    let (_, commands) = help.split_once("Commands:\n").expect("the help lists commands");
    let names: Vec<&str> = commands.lines().map_while(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 10 && names.contains(&"audit"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let nested: &[&str] = if name == "schemas" { &["schemas", "check", "--help"] } else { &[name, "--help"] };
        assert!(printed(nested).contains("\nExamples:\n"), "{name}");
    }
}

#[test]
fn subcommands_with_output_json_print_json() {
    let cluster = Cluster::without_topics();
    let printed = |args: &[&str]| printed(&cluster, args);
    let created: Value = serde_json::from_str(&printed(&[TOPICS, &["--output", "json"]].concat())).expect("valid JSON");
    assert!(created["created"].as_array().is_some_and(|names| names.len() == 6) && created["topics"] == 6, "{created}");
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"]);
    pulse.wait_ready();
    let url = pulse.url().expect("pulse listens");
    wait_until("the tempo in JSON", Duration::from_mins(1), || {
        let output = cluster.backbeat(&["tempo", "--url", &url, "--output", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|tempo| tempo["tempo_bpm"] == 1200.0)
    });
    let status: Value =
        serde_json::from_str(&printed(&["status", "--pulse", &url, "--output", "json"])).expect("valid JSON");
    assert_eq!((&status["pulse"][0]["ready"], &status["reverb"]), (&Value::Bool(true), &Value::Array(Vec::new())));
}

#[test]
fn errors_name_the_next_step() {
    let cluster = Cluster::without_topics();
    let refused = |args: &[&str], code: i32, reason: &str| {
        let output = cluster.backbeat(args);
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(code) && stderr.contains(reason), "{args:?}: {stderr}");
    };
    let unused = format!("http://127.0.0.1:{}", free_port().expect("a free port"));
    refused(&["sinks", "--connect-url", &unused], 1, "is a Connect worker running there? (--connect-url)");
    refused(&["sinks", "--connect-url", &unused, "/nowhere.json"], 1, "cannot read /nowhere.json: No such file");
    refused(&["status", "--pulse", &unused], 1, "or give its URLs (--pulse, --reverb)");
    refused(&["top"], 1, "use `backbeat status`");
    let other = ["console", "barreports", "--schema-registry", "http://127.0.0.1:1/"];
    refused(&other, 1, "for another registry use kafka-avro-console-consumer");
    // An error must not show the credentials in an address.
    let secret =
        ["console", "barreports", "--schema-registry", "http://me:registry-secret@127.0.0.1:1/apis/ccompat/v7"];
    refused(&secret, 1, "use `backbeat tail`");
    assert!(!text(&cluster.backbeat(&secret).stderr).contains("registry-secret"));
}

#[test]
fn completions_for_bash_complete_a_subcommand() {
    let cluster = Cluster::without_topics();
    let script = cluster.dir().join("completions.bash");
    std::fs::write(&script, cluster.backbeat(&["completions", "bash"]).stdout).expect("the file is written");
    let complete = ". \"$0\"; COMP_WORDS=(backbeat au); COMP_CWORD=1; _backbeat backbeat au; echo \"${COMPREPLY[@]}\"";
    let output = std::process::Command::new("bash").args(["-c", complete]).arg(&script).output().expect("bash runs");
    assert_eq!(text(&output.stdout).trim(), "audit", "{}", text(&output.stderr));
}

#[test]
fn manual_pages_are_written_for_each_subcommand() {
    let cluster = Cluster::without_topics();
    let pages = cluster.dir().join("man");
    assert!(cluster.backbeat(&["man", pages.to_str().expect("the path is UTF-8")]).status.success());
    let page = std::fs::read_to_string(pages.join("backbeat-sinks.1")).expect("the page exists");
    assert!(page.contains(".TH backbeat-sinks 1") && page.contains("\\-\\-from\\-beginning"), "{page}");
}
