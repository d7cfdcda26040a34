//! Reports in warehouses: a real worker of Kafka Connect, a real PostgreSQL, real Iceberg tables, the shipped configurations.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_devstack::{Connect, Devstack, Postgres};
use backbeat_schemas::{BarReport, BeatFrame, Record, Timestamp, WindowId, wire};
use backbeat_tests::{Cluster, own_devstack, run, runtime, wait_for};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use reqwest::blocking::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::interop::python;
use crate::oracle::read_raw;
use crate::pipeline::{check_reports, reverb, wait_for_reports};

const LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(300);
const CONNECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../connect");
const READ_ICEBERG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/read_iceberg.py");
/// How long the database is away.
const OUTAGE: Duration = Duration::from_secs(10);

/// A shipped configuration, in `sinks` or `confluent`.
fn shipped(path: &str) -> Value {
    let path = format!("{CONNECT}/{path}.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn settings(config: &Value) -> impl Iterator<Item = (&str, &str)> {
    config.as_object().expect("an object").iter().map(|(key, value)| (key.as_str(), value.as_str().expect("a text")))
}

/// BACKBEAT with a warehouse behind it.
struct Warehouse {
    connect: Connect,
    postgres: Postgres,
    cluster: Cluster,
    _devstack: Devstack,
    dir: TempDir,
}

impl Warehouse {
    fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let devstack = own_devstack(1, &dir.path().join("stack"));
        // The shipped configurations name the topic without a prefix.
        let cluster = Cluster::unprefixed(&devstack, 4);
        let postgres = Postgres::start(0, &dir.path().join("postgres.log")).unwrap_or_else(|error| panic!("{error}"));
        let tables = fs::read_to_string(format!("{CONNECT}/sql/postgres.sql")).expect("it is there");
        postgres.query(&tables).unwrap_or_else(|error| panic!("{error}"));
        for other in ["uncommitted", "cold", "mended"] {
            let table = format!("create table {other} (like bar_reports including all)");
            postgres.query(&table).unwrap_or_else(|error| panic!("{error}"));
        }
        let registry = devstack.schema_registry().replace("/apis/ccompat/v7", "/apis/registry/v2");
        let files = |name: &str| format!("file://{}", dir.path().join(name).display());
        let environment = [
            ("CONNECT_REGISTRY_URL", registry),
            ("CONNECT_JDBC_URL", postgres.jdbc_url()),
            ("CONNECT_JDBC_USER", postgres.user().to_owned()),
            ("CONNECT_JDBC_PASSWORD", "nobody asks".to_owned()),
            ("CONNECT_WAREHOUSE", files("warehouse")),
            ("CONNECT_FILES", files("files")),
        ];
        let connect = Connect::start(0, &devstack.bootstrap_servers(), &environment, &dir.path().join("connect"))
            .unwrap_or_else(|error| panic!("{error}"));
        Self { connect, postgres, cluster, _devstack: devstack, dir }
    }

    /// A shipped sink's file under `name`, with other values for some of its settings.
    fn sink_file(&self, sink: &str, name: &str, other: &[(&str, &str)]) -> PathBuf {
        let mut config = shipped(&format!("sinks/{sink}"));
        // Others than users' only so that the test need not wait for minutes.
        let hurried =
            [("consumer.override.session.timeout.ms", "6000"), ("iceberg.control.commit.interval-ms", "1000")];
        for (key, value) in hurried.iter().chain(other) {
            if !key.starts_with("iceberg") || config.get("iceberg.tables").is_some() {
                config[*key] = json!(value);
            }
        }
        let file = self.dir.path().join(format!("{name}.json"));
        fs::write(&file, config.to_string()).expect("writes");
        file
    }

    /// Starts it by the operator's command.
    fn start_sink(&self, sink: &str, name: &str, other: &[(&str, &str)]) {
        let file = self.sink_file(sink, name, other);
        let path = file.to_str().expect("a path");
        let started = self.backbeat_sinks(&["--replication-factor", "1", path]);
        assert!(started.starts_with(name) && started.contains("tasks running: 1"), "{started}");
    }

    fn backbeat_sinks(&self, args: &[&str]) -> String {
        let url = self.connect.url();
        run(&mut self.cluster.command("backbeat", &[&["sinks", "--connect-url", &url], args].concat()))
    }

    /// The rows of a table of PostgreSQL.
    fn rows(&self, table: &str) -> Vec<BarReport> {
        let sql = format!("select row_to_json(row) from (select * from {table} order by from_beat) as row");
        // While the server is away nobody sees one.
        self.postgres.query(&sql).map(|lines| reports(&lines)).unwrap_or_default()
    }

    /// The rows of the Iceberg table in the JDBC catalog, or of the view of the newest.
    fn iceberg(&self, table: &str) -> Vec<BarReport> {
        let location = self.postgres.query("select metadata_location from iceberg_tables").unwrap_or_default();
        if location.trim().is_empty() { Vec::new() } else { read_iceberg(location.trim(), table) }
    }

    /// The rows of the table of files without a catalog.
    fn files(&self, table: &str) -> Vec<BarReport> {
        let metadata = self.dir.path().join("files/backbeat/bar_reports/metadata");
        let version = |path: &PathBuf| {
            path.file_name()?.to_str()?.strip_prefix('v')?.strip_suffix(".metadata.json")?.parse::<u32>().ok()
        };
        let files = fs::read_dir(metadata).into_iter().flatten().flatten().map(|entry| entry.path());
        let newest = files.filter(|path| version(path).is_some()).max_by_key(version);
        newest.map(|path| read_iceberg(path.to_str().expect("a path"), table)).unwrap_or_default()
    }

    fn dead_letters(&self, topic: &str) -> Vec<Option<Vec<u8>>> {
        read_raw(&self.cluster, topic, |_| ()).into_iter().map(|raw| raw.value).collect()
    }

    /// Waits until `holds`; tells how the sinks are doing where it does not.
    fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds() {
            let sinks = || self.cluster.backbeat(&["sinks", "--connect-url", &self.connect.url()]);
            assert!(
                Instant::now() < deadline,
                "{what}: not within {LIMIT:?}, with {} reports\n{}\n{}",
                self.cluster.reports().len(),
                String::from_utf8_lossy(&sinks().stdout),
                self.connect.log_tail()
            );
            thread::sleep(POLL);
        }
    }

    /// Sends records to `barreports` as they are; in a transaction that is aborted, if it is to be.
    fn send(&self, records: &[(&str, &[u8])], aborted: bool) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.cluster.broker().bootstrap_servers());
        if aborted {
            config.set("transactional.id", "aborted");
        }
        let producer: BaseProducer = config.create().expect("a producer");
        if aborted {
            producer.init_transactions(LIMIT).expect("Kafka answers");
            producer.begin_transaction().expect("begins");
        }
        for (key, value) in records {
            // A header without a value once ended Debezium's task.
            let headers = OwnedHeaders::new().insert(Header { key: "empty", value: None::<&[u8]> });
            let record = BaseRecord::to("barreports").key(*key).payload(*value).headers(headers);
            producer.send(record).map_err(|(error, _)| error).expect("queued");
        }
        producer.flush(LIMIT).expect("sent");
        if aborted {
            producer.abort_transaction(LIMIT).expect("aborts");
        }
    }
}

/// Rows as reports. Each must have every field: what is missing would be read as its default.
fn reports(lines: &str) -> Vec<BarReport> {
    let schema: Value = serde_json::from_str(BarReport::schema().text()).expect("JSON");
    let fields: Vec<&str> =
        schema["fields"].as_array().into_iter().flatten().filter_map(|field| field["name"].as_str()).collect();
    let report = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(fields.iter().all(|field| row.get(field).is_some()), "{line}");
        serde_json::from_value(row).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    lines.lines().map(report).collect()
}

fn read_iceberg(metadata: &str, table: &str) -> Vec<BarReport> {
    let view = Path::new(CONNECT).join("sql/iceberg.sql");
    reports(&run(Command::new(python()).arg(READ_ICEBERG).arg(metadata).arg(view).arg(table)))
}

/// The report `like`, of another window.
fn other_report(like: &BarReport, window: u8) -> BarReport {
    let window_id: WindowId = format!("{window:032x}").parse().expect("a window id");
    BarReport { window_id, ..like.clone() }
}

#[test]
fn each_report_is_one_row_whatever_happens() {
    let mut warehouse = Warehouse::start();
    every_key_is_known(&warehouse);

    // The whole pipeline, while the database goes away and the worker is killed.
    let tempo = ["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"];
    let pulse = warehouse.cluster.serve("pulse", &tempo);
    let first_reverb = reverb(&warehouse.cluster, &[]);
    let agents = ["--agents", "10", "--late-rate", "0.1", "--malformed-rate", "0.1"];
    let sim = warehouse.cluster.start("agent-sim", &agents);
    wait_for_reports(&warehouse.cluster, 2);
    warehouse.start_sink("postgres", "postgres", &[]);
    warehouse.start_sink("iceberg", "iceberg", &[]);
    warehouse.start_sink("files", "files", &[]);
    warehouse.wait_until("a row", || !warehouse.rows("bar_reports").is_empty());
    warehouse.postgres.stop().unwrap_or_else(|error| panic!("{error}"));
    thread::sleep(OUTAGE);
    warehouse.postgres.start_again().unwrap_or_else(|error| panic!("{error}"));
    let reported = warehouse.cluster.reports().len();
    warehouse.wait_until("rows of reports since", || warehouse.rows("bar_reports").len() > reported);
    warehouse.connect.kill().unwrap_or_else(|error| panic!("{error}"));
    wait_for_reports(&warehouse.cluster, reported + 5);
    warehouse.connect.start_again().unwrap_or_else(|error| panic!("{error}"));
    drop(sim);
    drop(pulse);
    check_reports(&warehouse.cluster);
    drop(first_reverb);
    let published: Vec<BarReport> = warehouse.cluster.reports().into_iter().map(|entry| entry.record).collect();
    assert!(published.iter().any(|report| report.late_claims > 0 && !report.issues.is_empty()));
    let ids: BTreeSet<WindowId> = published.iter().map(|report| report.window_id).collect();
    assert_eq!(ids.len(), published.len());
    warehouse.wait_until("postgres", || warehouse.rows("bar_reports") == published);
    warehouse.wait_until("iceberg", || warehouse.iceberg("bar_reports") == published);
    warehouse.wait_until("files", || warehouse.files("bar_reports") == published);

    the_console_shows_what_the_api_says(&warehouse);
    a_replay_makes_no_second_row(&warehouse, &published);
    aborted_reports_are_not_seen(&warehouse, &published);
    a_registry_that_was_away_is_made_up_for(&warehouse, &published);
    what_failed_is_told_and_mended(&warehouse);
    what_is_no_report_is_kept_apart(&warehouse, &published);
    a_new_field_becomes_a_column(&warehouse, &published);
    the_queries_answer(&warehouse, &published);
}

/// Every key of every configuration is one that the plugin, or Connect itself, says that it knows.
fn every_key_is_known(warehouse: &Warehouse) {
    let http = Client::new();
    let known = |plugin: &str| -> BTreeSet<String> {
        let url = format!("{}/connector-plugins/{plugin}/config", warehouse.connect.url());
        let answer = http.get(&url).send().and_then(reqwest::blocking::Response::json::<Value>);
        let answer = answer.unwrap_or_else(|error| panic!("{plugin}: {error}"));
        let keys = answer.as_array().unwrap_or_else(|| panic!("{plugin}: {answer}"));
        keys.iter().filter_map(|key| key["name"].as_str()).map(str::to_owned).collect()
    };
    for sink in ["postgres", "postgres-replay", "iceberg", "files"] {
        let config = shipped(&format!("sinks/{sink}"));
        // Connect's own keys are part of each sink's definition.
        let own = known(config["connector.class"].as_str().expect("a class"));
        assert!(!own.contains("iceberg.tables.auto-create"), "a definition that knows everything shows nothing");
        for (key, _) in settings(&config) {
            let named = |prefix: &str, plugin: &str| {
                let plugin =
                    plugin.strip_suffix("$Value").map_or(plugin.to_owned(), |class| format!("{class}%24Value"));
                key.strip_prefix(prefix).is_some_and(|rest| rest == "type" || known(&plugin).contains(rest))
            };
            let known_to_a_transform = || {
                let transforms = config["transforms"].as_str().expect("some");
                transforms.split(',').any(|name| {
                    let class = config[format!("transforms.{name}.type")].as_str().expect("a class");
                    named(&format!("transforms.{name}."), class)
                })
            };
            // Neither the converter nor the catalogs nor the consumer publish what they know; that they obey is shown by
            // what follows: without each of these, no row would be right.
            let passed_on = ["value.converter.apicurio.", "iceberg.catalog.", "consumer.override."];
            assert!(
                own.contains(key) || known_to_a_transform() || passed_on.iter().any(|prefix| key.starts_with(prefix)),
                "{sink}: nobody knows {key}"
            );
        }
    }
}

#[test]
fn configurations_for_confluents_images_differ_in_the_converter_only() {
    for sink in ["postgres", "postgres-replay", "iceberg", "files"] {
        let without_converter = |path: &str| {
            let config = shipped(path);
            let kept = settings(&config).filter(|(key, _)| !key.starts_with("value.converter"));
            kept.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<Vec<_>>()
        };
        let (ours, theirs) = (format!("sinks/{sink}"), format!("confluent/{sink}"));
        assert_eq!(without_converter(&ours), without_converter(&theirs));
        assert_eq!(shipped(&theirs)["value.converter"], "io.confluent.connect.avro.AvroConverter");
    }
}

fn the_console_shows_what_the_api_says(warehouse: &Warehouse) {
    let member = reverb(&warehouse.cluster, &[]);
    let report = &warehouse.cluster.reports()[0].record;
    let window = wait_for("the window on the API", LIMIT, || {
        let (status, body) = member.get(&format!("/api/v1/windows/{}", report.window_id))?;
        (status == 200).then(|| serde_json::from_str::<Value>(&body).expect("JSON"))
    });
    let flags = ["console", "barreports", "--", "--from-beginning", "--max-messages", "1"];
    let printed = run(&mut warehouse.cluster.command("backbeat", &flags));
    let shown: Value = serde_json::from_str(printed.lines().next().expect("a line")).expect("JSON");
    for (field, value) in window["report"].as_object().expect("a report") {
        // The stock formatter prints instants as Avro has them.
        let instant = serde_json::from_value::<Timestamp>(value.clone()).map(|instant| json!(instant.millis()));
        assert_eq!(shown[field], instant.unwrap_or(value.clone()), "{field}");
    }
}

fn a_replay_makes_no_second_row(warehouse: &Warehouse, published: &[BarReport]) {
    warehouse.cluster.reset_to_earliest();
    let member = reverb(&warehouse.cluster, &["--reemit", "always"]);
    warehouse.wait_until("each report once more", || warehouse.cluster.reports().len() == 2 * published.len());
    drop(member);
    let twice = || {
        let mut all: Vec<BarReport> = published.iter().flat_map(|report| [report.clone(), report.clone()]).collect();
        all.sort_by_key(|report| report.from_beat);
        all
    };
    warehouse.wait_until("iceberg with all rows", || warehouse.iceberg("bar_reports") == twice());
    warehouse.wait_until("files with all rows", || warehouse.files("bar_reports") == twice());
    assert_eq!(warehouse.iceberg("newest_bar_reports"), published);
    assert_eq!(warehouse.files("newest_bar_reports"), published);
    assert_eq!(warehouse.rows("bar_reports"), published);
}

fn aborted_reports_are_not_seen(warehouse: &Warehouse, published: &[BarReport]) {
    let subject = warehouse.cluster.broker().topics().subject(TopicName::BarReports);
    let schema = runtime().block_on(warehouse.cluster.registry().register::<BarReport>(&subject)).expect("registered");
    let aborted: Vec<BarReport> = (1..=3).map(|window| other_report(&published[0], window)).collect();
    let records: Vec<(String, Vec<u8>)> =
        aborted.iter().map(|report| (report.window_id.to_string(), wire(schema, report))).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    warehouse.send(&records, true);
    let uncommitted = [
        ("collection.name.format", "uncommitted"),
        ("consumer.override.isolation.level", "read_uncommitted"),
        ("errors.deadletterqueue.topic.name", "barreports.uncommitted.dlq"),
    ];
    warehouse.start_sink("postgres", "uncommitted", &uncommitted);
    let with_aborted = published.len() + aborted.len();
    warehouse.wait_until("a control that sees them", || warehouse.rows("uncommitted").len() == with_aborted);
    // A committed report behind them shows that the sinks have come past.
    let behind = other_report(&published[0], 4);
    warehouse.cluster.publish_report(&behind);
    let has_it = |rows: &[BarReport]| rows.contains(&behind);
    warehouse.wait_until("postgres to come past", || has_it(&warehouse.rows("bar_reports")));
    warehouse.wait_until("iceberg to come past", || has_it(&warehouse.iceberg("newest_bar_reports")));
    for rows in [warehouse.rows("bar_reports"), warehouse.iceberg("newest_bar_reports")] {
        assert_eq!(rows.len(), published.len() + 1);
        assert!(!rows.iter().any(|row| aborted.contains(row)));
    }
}

/// Where the registry is away and a converter has no schema yet, good records go to the dead letters; the replay brings
/// them in.
fn a_registry_that_was_away_is_made_up_for(warehouse: &Warehouse, published: &[BarReport]) {
    let letters = "barreports.cold.dlq";
    let cold = [
        ("collection.name.format", "cold"),
        ("value.converter.apicurio.registry.url", "http://127.0.0.1:1/apis/registry/v2"),
        ("value.converter.apicurio.registry.retry-count", "1"),
        ("errors.deadletterqueue.topic.name", letters),
    ];
    warehouse.start_sink("postgres", "cold", &cold);
    let sent = warehouse.cluster.reports().len();
    warehouse.wait_until("all reports as dead letters", || warehouse.dead_letters(letters).len() == sent);
    assert!(warehouse.rows("cold").is_empty());
    warehouse.start_sink("postgres-replay", "cold-replay", &[("topics", letters), ("collection.name.format", "cold")]);
    warehouse.wait_until("their rows", || warehouse.rows("cold").len() == published.len() + 1);
    assert!(published.iter().all(|report| warehouse.rows("cold").contains(report)));
    // Everything once more: the rows that were deleted are back.
    let ask = |sql: &str| warehouse.postgres.query(sql).unwrap_or_else(|error| panic!("{error}"));
    ask("delete from cold");
    let file = warehouse.dir.path().join("cold-replay.json");
    warehouse.backbeat_sinks(&["--from-beginning", file.to_str().expect("a path")]);
    warehouse.wait_until("the rows again", || warehouse.rows("cold").len() == published.len() + 1);
}

/// A sink that cannot work says so; its mended file starts it again.
fn what_failed_is_told_and_mended(warehouse: &Warehouse) {
    let table = ("collection.name.format", "mended");
    let letters = ("errors.deadletterqueue.topic.name", "barreports.mended.dlq");
    // Debezium wants a key with fields.
    let broken = warehouse.sink_file("postgres", "mended", &[table, letters, ("transforms", "")]);
    let url = warehouse.connect.url();
    warehouse.cluster.backbeat(&["sinks", "--connect-url", &url, broken.to_str().expect("a path")]);
    let sinks = || warehouse.cluster.backbeat(&["sinks", "--connect-url", &url]);
    warehouse.wait_until("the failure", || sinks().status.code() == Some(3));
    let told = String::from_utf8_lossy(&sinks().stdout).into_owned();
    assert!(told.contains("a task is FAILED: Caused by: "), "{told}");
    warehouse.start_sink("postgres", "mended", &[table, letters]);
    warehouse.wait_until("rows", || !warehouse.rows("mended").is_empty());
    assert!(sinks().status.success());
}

fn what_is_no_report_is_kept_apart(warehouse: &Warehouse, published: &[BarReport]) {
    let rows = warehouse.rows("bar_reports");
    let subject = warehouse.cluster.broker().topics().subject(TopicName::BeatFrames);
    let schema = runtime().block_on(warehouse.cluster.registry().register::<BeatFrame>(&subject)).expect("registered");
    let foreign = wire(schema, &warehouse.cluster.frames()[0]);
    let garbage = b"\x07not avro at all".to_vec();
    warehouse.send(&[("foreign", &foreign), ("garbage", &garbage)], false);
    for sink in ["postgres", "iceberg", "files"] {
        let letters = || warehouse.dead_letters(&format!("barreports.{sink}.dlq"));
        warehouse.wait_until("the dead letters", || letters().len() == 2);
        assert_eq!(letters(), [Some(foreign.clone()), Some(garbage.clone())], "{sink}");
    }
    // Nothing makes reports of them: a replay leaves them where they are.
    warehouse.start_sink("postgres-replay", "postgres-replay", &[]);
    let http = Client::new();
    let url = format!("{}/connectors/postgres-replay/offsets", warehouse.connect.url());
    warehouse.wait_until("the replay to come past", || {
        let offsets: Value = http.get(&url).send().and_then(reqwest::blocking::Response::json).expect("it answers");
        offsets["offsets"][0]["offset"]["kafka_offset"] == 2
    });
    let behind = other_report(&published[0], 5);
    warehouse.cluster.publish_report(&behind);
    warehouse.wait_until("postgres to come past", || warehouse.rows("bar_reports").contains(&behind));
    assert_eq!(warehouse.rows("bar_reports").len(), rows.len() + 1);
    assert_eq!(warehouse.dead_letters("barreports.postgres.dlq").len(), 2);
    let states = warehouse.backbeat_sinks(&["--output", "json"]);
    assert!(states.lines().all(|line| line.contains(r#""state":"RUNNING""#) && !line.contains("FAILED")), "{states}");
}

/// A report of a reverb to come, which has a further field with a default.
fn a_new_field_becomes_a_column(warehouse: &Warehouse, published: &[BarReport]) {
    let mut schema: Value = serde_json::from_str(BarReport::schema().text()).expect("JSON");
    schema["fields"]
        .as_array_mut()
        .expect("fields")
        .push(json!({"name": "region", "type": "string", "default": "none"}));
    let subject = warehouse.cluster.broker().topics().subject(TopicName::BarReports);
    let url = format!("{}/subjects/{subject}/versions", warehouse.cluster.kafka().schema_registry);
    let answer = Client::new().post(url).json(&json!({ "schema": schema.to_string() })).send().expect("it answers");
    let registered: Value = answer.json().expect("JSON");
    let id = registered["id"].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or_else(|| panic!("{registered}"));
    let report = other_report(&published[0], 6);
    // Avro's fields stand one after the other, a text as its doubled length and its bytes.
    let newer = [wire(id, &report).as_slice(), b"\x04eu"].concat();
    let key = report.window_id.to_string();
    warehouse.send(&[(&key, &newer)], false);
    warehouse.wait_until("its row", || warehouse.rows("bar_reports").contains(&report));
    let region = |window: &WindowId| {
        let sql = format!("select region from bar_reports where window_id = '{window}'");
        warehouse.postgres.query(&sql).unwrap_or_else(|error| panic!("{error}")).trim().to_owned()
    };
    assert_eq!(region(&report.window_id), "eu");
    assert_eq!(region(&published[0].window_id), "none");
    warehouse.wait_until("its row in Iceberg", || warehouse.iceberg("newest_bar_reports").contains(&report));
}

/// The views of `connect/sql/postgres.sql` say what the reports say.
fn the_queries_answer(warehouse: &Warehouse, published: &[BarReport]) {
    let ask = |sql: &str| warehouse.postgres.query(sql).unwrap_or_else(|error| panic!("{error}")).trim().to_owned();
    // What this test made up is not of this cluster's history.
    ask("delete from bar_reports where window_id < '00000000000000000000000000000100'");
    let sum = |count: fn(&BarReport) -> i64| published.iter().map(count).sum::<i64>().to_string();
    let late = published.iter().filter(|report| report.late_claims > 0 || report.invalid_claims > 0).count();
    assert_eq!(ask("select count(*) from windows_with_late_claims"), late.to_string());
    assert_eq!(ask("select sum(late_claims) from windows_with_late_claims"), sum(|report| report.late_claims));
    let worst = published.iter().map(|report| report.tempo_drift_ms).max().expect("reports");
    assert_eq!(ask("select max(worst_ms) from tempo_drift_by_day"), worst.to_string());
    let most = published.iter().map(|report| report.agents_reporting).max().expect("reports");
    assert_eq!(ask("select max(most) from agents_by_hour"), most.to_string());
    assert_eq!(ask("select sum(done) from tasks_by_day"), sum(|report| report.tasks_done));
    assert_eq!(ask("select count(*) from issues"), sum(|report| report.issues.len() as i64));
    assert_eq!(ask("select count(*) from missing_windows"), "0");
    ask(&format!("delete from bar_reports where window_id = '{}'", published[1].window_id));
    let gap = format!("{}|{}", published[1].from_beat, published[1].to_beat);
    assert_eq!(ask("select from_beat, to_beat from missing_windows"), gap);
}
