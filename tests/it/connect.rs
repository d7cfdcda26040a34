//! Reports in warehouses: the shipped configurations on a real Connect worker, with a real PostgreSQL and real Iceberg
//! tables.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_devstack::{Connect, Devstack, Postgres};
use backbeat_schemas::{BarReport, BeatFrame, Record, Timestamp, WindowId, wire};
use backbeat_tests::{Cluster, own_devstack, run, wait_for};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use reqwest::blocking::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::interop::python;
use crate::reports::{check_reports, reverb, wait_for_reports};
use backbeat_tests::read_raw;

const LIMIT: Duration = Duration::from_mins(4);
const POLL: Duration = Duration::from_millis(300);
const CONNECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../connect");
const READ_ICEBERG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/read_iceberg.py");
/// The catalog's row of the only table: where its newest metadata is.
const ICEBERG_LOCATION: &str = "select metadata_location from iceberg_tables";
/// The length of the database's outage.
const OUTAGE: Duration = Duration::from_secs(10);

/// Reads the shipped configuration at `path`, such as `sinks/postgres`.
fn shipped(path: &str) -> Value {
    let path = format!("{CONNECT}/{path}.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn settings(config: &Value) -> impl Iterator<Item = (&str, &str)> {
    config
        .as_object()
        .expect("the configuration is an object")
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str().expect("a string")))
}

/// A BACKBEAT cluster, a Connect worker and the databases that it writes to.
struct Warehouse {
    connect: Connect,
    postgres: Postgres,
    cluster: Cluster,
    _devstack: Devstack,
    dir: TempDir,
}

impl Warehouse {
    fn start() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let devstack = own_devstack(1, &dir.path().join("stack"));
        // The shipped configurations name the topic without a prefix.
        let cluster = Cluster::unprefixed(&devstack, 4);
        let postgres = Postgres::start(0, &dir.path().join("postgres.log")).unwrap_or_else(|error| panic!("{error}"));
        let tables = fs::read_to_string(format!("{CONNECT}/sql/postgres.sql")).expect("the file exists");
        postgres.query(&tables).unwrap_or_else(|error| panic!("{error}"));
        for name in ["uncommitted", "cold", "repaired"] {
            let table = format!("create table {name} (like bar_reports including all)");
            postgres.query(&table).unwrap_or_else(|error| panic!("{error}"));
        }
        let registry = devstack.schema_registry().replace("/apis/ccompat/v7", "/apis/registry/v2");
        let files = |name: &str| format!("file://{}", dir.path().join(name).display());
        let environment = [
            ("CONNECT_REGISTRY_URL", registry),
            ("CONNECT_JDBC_URL", postgres.jdbc_url()),
            ("CONNECT_JDBC_USER", postgres.user().to_owned()),
            ("CONNECT_JDBC_PASSWORD", "not checked".to_owned()),
            ("CONNECT_WAREHOUSE", files("warehouse")),
            ("CONNECT_FILES", files("files")),
        ];
        let connect = Connect::start(0, &devstack.bootstrap_servers(), &environment, &dir.path().join("connect"))
            .unwrap_or_else(|error| panic!("{error}"));
        Self { connect, postgres, cluster, _devstack: devstack, dir }
    }

    /// Writes the shipped configuration of `sink` to a file named `name`, with the settings in `overrides`, and returns
    /// its path.
    fn sink_file(&self, sink: &str, name: &str, overrides: &[(&str, &str)]) -> PathBuf {
        let mut config = shipped(&format!("sinks/{sink}"));
        // These differ from the shipped values only because the test would otherwise wait for minutes.
        let faster = [("consumer.override.session.timeout.ms", "6000"), ("iceberg.control.commit.interval-ms", "5000")];
        for (key, value) in faster.iter().chain(overrides) {
            if !key.starts_with("iceberg") || config.get("iceberg.tables").is_some() {
                config[*key] = json!(value);
            }
        }
        let file = self.dir.path().join(format!("{name}.json"));
        fs::write(&file, config.to_string()).expect("the file is written");
        file
    }

    /// Starts a sink with `backbeat sinks`.
    fn start_sink(&self, sink: &str, name: &str, overrides: &[(&str, &str)]) {
        let file = self.sink_file(sink, name, overrides);
        let path = file.to_str().expect("the path is UTF-8");
        let started = self.backbeat_sinks(&["--replication-factor", "1", path]);
        assert!(started.starts_with(name) && started.contains("tasks running: 1"), "{started}");
    }

    fn backbeat_sinks(&self, args: &[&str]) -> String {
        let url = self.connect.url();
        run(&mut self.cluster.command("backbeat", &[&["sinks", "--connect-url", &url], args].concat()))
    }

    /// Restarts failed tasks as an operator does (connect/README.md): Debezium's sink retries when the database refuses
    /// connections, but its task fails if it asks at the very moment when the database is starting up.
    fn restart_failed_tasks(&self) {
        let url = self.connect.url();
        let sinks = self.cluster.backbeat(&["sinks", "--connect-url", &url]);
        let printed = String::from_utf8_lossy(&sinks.stdout).into_owned();
        for name in printed.lines().filter(|line| line.contains("FAILED")).filter_map(|line| line.split(' ').next()) {
            let file = self.dir.path().join(format!("{name}.json"));
            self.backbeat_sinks(&["--replication-factor", "1", file.to_str().expect("the path is UTF-8")]);
        }
    }

    /// The rows of a table in PostgreSQL; none while the server is unavailable.
    fn rows(&self, table: &str) -> Vec<BarReport> {
        let sql = format!("select row_to_json(row) from (select * from {table} order by from_beat) as row");
        self.postgres.query(&sql).map(|lines| reports(&lines)).unwrap_or_default()
    }

    /// The rows of the Iceberg table in the JDBC catalog, or of its view `newest_bar_reports`.
    fn iceberg(&self, table: &str) -> Vec<BarReport> {
        let location = self.postgres.query(ICEBERG_LOCATION).unwrap_or_default();
        if location.trim().is_empty() { Vec::new() } else { read_iceberg(location.trim(), table) }
    }

    /// The rows of the Iceberg table of the sink `files`, or of its view `newest_bar_reports`.
    fn files(&self, table: &str) -> Vec<BarReport> {
        let metadata = self.dir.path().join("files/backbeat/bar_reports/metadata");
        let version = |path: &PathBuf| {
            path.file_name()?.to_str()?.strip_prefix('v')?.strip_suffix(".metadata.json")?.parse::<u32>().ok()
        };
        let files = fs::read_dir(metadata).into_iter().flatten().flatten().map(|entry| entry.path());
        let newest = files.filter(|path| version(path).is_some()).max_by_key(version);
        newest.map(|path| read_iceberg(path.to_str().expect("the path is UTF-8"), table)).unwrap_or_default()
    }

    fn dead_letters(&self, topic: &str) -> Vec<Option<Vec<u8>>> {
        read_raw(&self.cluster, topic, |_| ()).into_iter().map(|raw| raw.value).collect()
    }

    /// Returns true if Iceberg's sink has announced a file on its control topic, in answer to a request to commit.
    fn announced_a_file(&self) -> bool {
        let directory = format!("{}/", self.dir.path().join("warehouse").display());
        let names_it = |event: Vec<u8>| String::from_utf8_lossy(&event).contains(&directory);
        read_raw(&self.cluster, "control-iceberg", |_| ()).into_iter().filter_map(|raw| raw.value).any(names_it)
    }

    /// Waits until `condition` is true; panics after the limit with the sinks' states and the worker's log.
    fn wait_until(&self, description: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition() {
            let sinks = || self.cluster.backbeat(&["sinks", "--connect-url", &self.connect.url()]);
            assert!(
                Instant::now() < deadline,
                "waited {LIMIT:?} for {description}; there are {} reports, {} rows in iceberg, {} in files\n{}\n{}",
                self.cluster.reports().len(),
                self.iceberg("bar_reports").len(),
                self.files("bar_reports").len(),
                String::from_utf8_lossy(&sinks().stdout),
                self.connect.log_tail()
            );
            thread::sleep(POLL);
        }
    }

    /// Sends records to `barreports`; if `aborted`, in a transaction that is then aborted.
    fn send(&self, records: &[(&str, &[u8])], aborted: bool) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.cluster.broker().bootstrap_servers());
        if aborted {
            config.set("transactional.id", "aborted");
        }
        let producer: BaseProducer = config.create().expect("a producer");
        if aborted {
            producer.init_transactions(LIMIT).expect("Kafka answers");
            producer.begin_transaction().expect("the transaction begins");
        }
        for (key, value) in records {
            // Debezium's sink fails at a header without a value, unless the configuration has the right header
            // converter.
            let headers = OwnedHeaders::new().insert(Header { key: "empty", value: None::<&[u8]> });
            let record = BaseRecord::to("barreports").key(*key).payload(*value).headers(headers);
            producer.send(record).map_err(|(error, _)| error).expect("the record is queued");
        }
        producer.flush(LIMIT).expect("the records are sent");
        if aborted {
            producer.abort_transaction(LIMIT).expect("the transaction aborts");
        }
    }
}

/// Parses rows as reports. Each row must have every field, because a missing one would be read as its default.
fn reports(lines: &str) -> Vec<BarReport> {
    let schema: Value = serde_json::from_str(BarReport::schema().text()).expect("valid JSON");
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

/// Returns a copy of `report` with another window id.
fn other_report(report: &BarReport, window: u8) -> BarReport {
    let window_id: WindowId = format!("{window:032x}").parse().expect("a window id");
    BarReport { window_id, ..report.clone() }
}

#[test]
fn reports_under_faults_become_one_row_each() {
    let mut warehouse = Warehouse::start();
    check_keys_are_known(&warehouse);

    // The whole pipeline, while the database has an outage and the worker is killed.
    let tempo = ["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"];
    let pulse = warehouse.cluster.serve("pulse", &tempo);
    let first_reverb = reverb(&warehouse.cluster, &[]);
    let agents = ["--agents", "10", "--late-rate", "0.1", "--malformed-rate", "0.1"];
    let sim = warehouse.cluster.start("agent-sim", &agents);
    wait_for_reports(&warehouse.cluster, 2);
    warehouse.start_sink("postgres", "postgres", &[]);
    warehouse.start_sink("files", "files", &[]);
    warehouse.wait_until("a row", || !warehouse.rows("bar_reports").is_empty());

    // The worker is killed before Iceberg's sink has committed anything, when it has announced files.
    warehouse.start_sink("iceberg", "iceberg", &[]);
    warehouse.wait_until("Iceberg's table", || {
        warehouse.postgres.query(ICEBERG_LOCATION).is_ok_and(|row| !row.trim().is_empty())
    });
    warehouse.postgres.stop().unwrap_or_else(|error| panic!("{error}"));
    warehouse.wait_until("a file announced by Iceberg's sink", || warehouse.announced_a_file());
    warehouse.connect.kill().unwrap_or_else(|error| panic!("{error}"));
    warehouse.postgres.restart().unwrap_or_else(|error| panic!("{error}"));
    let reported = warehouse.cluster.reports().len();
    wait_for_reports(&warehouse.cluster, reported + 5);
    warehouse.connect.restart().unwrap_or_else(|error| panic!("{error}"));
    let rows_follow = |warehouse: &Warehouse| {
        let reported = warehouse.cluster.reports().len();
        warehouse.wait_until("rows of reports after a fault", || {
            warehouse.restart_failed_tasks();
            warehouse.rows("bar_reports").len() > reported
        });
    };
    rows_follow(&warehouse);

    // The database alone has an outage.
    warehouse.postgres.stop().unwrap_or_else(|error| panic!("{error}"));
    thread::sleep(OUTAGE);
    warehouse.postgres.restart().unwrap_or_else(|error| panic!("{error}"));
    rows_follow(&warehouse);
    drop(sim);
    drop(pulse);
    check_reports(&warehouse.cluster);
    drop(first_reverb);
    let published: Vec<BarReport> = warehouse.cluster.reports().into_iter().map(|entry| entry.record).collect();
    assert!(published.iter().any(|report| report.late_claims > 0 && !report.issues.is_empty()));
    let ids: BTreeSet<WindowId> = published.iter().map(|report| report.window_id).collect();
    assert_eq!(ids.len(), published.len());
    warehouse.wait_until("all rows in postgres", || warehouse.rows("bar_reports") == published);
    warehouse.wait_until("all rows in iceberg", || warehouse.iceberg("bar_reports") == published);
    warehouse.wait_until("all rows in files", || warehouse.files("bar_reports") == published);

    check_console_equals_api(&warehouse);
    check_replay_adds_no_row(&warehouse, &published);
    check_aborted_reports_are_not_read(&warehouse, &published);
    check_dead_letters_of_a_registry_outage_are_replayed(&warehouse, &published);
    check_failed_sink_is_reported_and_restarted(&warehouse);
    check_other_records_become_dead_letters(&warehouse, &published);
    check_new_field_becomes_a_column(&warehouse, &published);
    check_views_equal_the_reports(&warehouse, &published);
}

/// Every key of every configuration must be in the definition of the plugin, which includes Connect's own keys.
fn check_keys_are_known(warehouse: &Warehouse) {
    let http = Client::new();
    let known = |plugin: &str| -> BTreeSet<String> {
        let url = format!("{}/connector-plugins/{plugin}/config", warehouse.connect.url());
        let response = http.get(&url).send().and_then(reqwest::blocking::Response::json::<Value>);
        let definition = response.unwrap_or_else(|error| panic!("{plugin}: {error}"));
        let keys = definition.as_array().unwrap_or_else(|| panic!("{plugin}: {definition}"));
        keys.iter().filter_map(|key| key["name"].as_str()).map(str::to_owned).collect()
    };
    for sink in ["postgres", "postgres-replay", "iceberg", "files"] {
        let config = shipped(&format!("sinks/{sink}"));
        // Connect's own keys are part of each sink's definition.
        let own = known(config["connector.class"].as_str().expect("a class name"));
        assert!(!own.contains("iceberg.tables.auto-create"), "the check needs a key that the definition lacks");
        for (key, _) in settings(&config) {
            let named = |prefix: &str, plugin: &str| {
                let plugin =
                    plugin.strip_suffix("$Value").map_or(plugin.to_owned(), |class| format!("{class}%24Value"));
                key.strip_prefix(prefix).is_some_and(|rest| rest == "type" || known(&plugin).contains(rest))
            };
            let known_to_a_transform = || {
                let transforms = config["transforms"].as_str().expect("a list of transforms");
                transforms.split(',').any(|name| {
                    let class = config[format!("transforms.{name}.type")].as_str().expect("a class name");
                    named(&format!("transforms.{name}."), class)
                })
            };
            // The converter, the catalogs and the consumer do not publish their definitions. The rest of the test shows
            // that they use these keys: without each of them, rows would be wrong or missing.
            let undefined = ["value.converter.apicurio.", "iceberg.catalog.", "iceberg.kafka.", "consumer.override."];
            assert!(
                own.contains(key) || known_to_a_transform() || undefined.iter().any(|prefix| key.starts_with(prefix)),
                "{sink}: unknown key {key}"
            );
        }
    }
}

#[test]
fn confluent_configurations_differ_in_the_converter_only() {
    for sink in ["postgres", "postgres-replay", "iceberg", "files"] {
        let without_converter = |path: &str| {
            let config = shipped(path);
            let kept = settings(&config).filter(|(key, _)| !key.starts_with("value.converter"));
            kept.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<Vec<_>>()
        };
        let (apicurio, confluent) = (format!("sinks/{sink}"), format!("confluent/{sink}"));
        assert_eq!(without_converter(&apicurio), without_converter(&confluent));
        assert_eq!(shipped(&confluent)["value.converter"], "io.confluent.connect.avro.AvroConverter");
    }
}

fn check_console_equals_api(warehouse: &Warehouse) {
    let member = reverb(&warehouse.cluster, &[]);
    let report = &warehouse.cluster.reports()[0].record;
    let window = wait_for("the window in the API", LIMIT, || {
        let (status, body) = member.get(&format!("/api/v1/windows/{}", report.window_id))?;
        (status == 200).then(|| serde_json::from_str::<Value>(&body).expect("valid JSON"))
    });
    let flags = ["console", "barreports", "--", "--from-beginning", "--max-messages", "1"];
    let printed = run(&mut warehouse.cluster.command("backbeat", &flags));
    let shown: Value = serde_json::from_str(printed.lines().next().expect("a line")).expect("valid JSON");
    for (field, value) in window["report"].as_object().expect("a report") {
        // kafka-console-consumer prints instants as Avro encodes them, in milliseconds.
        let instant = serde_json::from_value::<Timestamp>(value.clone()).map(|instant| json!(instant.millis()));
        assert_eq!(shown[field], instant.unwrap_or(value.clone()), "{field}");
    }
}

fn check_replay_adds_no_row(warehouse: &Warehouse, published: &[BarReport]) {
    warehouse.cluster.reset_to_earliest();
    let member = reverb(&warehouse.cluster, &["--reemit", "always"]);
    warehouse
        .wait_until("each report to be written again", || warehouse.cluster.reports().len() == 2 * published.len());
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

fn check_aborted_reports_are_not_read(warehouse: &Warehouse, published: &[BarReport]) {
    let schema = warehouse.cluster.register::<BarReport>(TopicName::BarReports);
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
    warehouse.wait_until("a read_uncommitted sink to read the aborted reports", || {
        warehouse.rows("uncommitted").len() == with_aborted
    });
    // The row of a later, committed report shows that a sink has passed the aborted ones.
    let later = other_report(&published[0], 4);
    warehouse.cluster.publish_report(&later);
    let has_later = |rows: &[BarReport]| rows.contains(&later);
    warehouse.wait_until("the later report in postgres", || has_later(&warehouse.rows("bar_reports")));
    warehouse.wait_until("the later report in iceberg", || has_later(&warehouse.iceberg("newest_bar_reports")));
    for rows in [warehouse.rows("bar_reports"), warehouse.iceberg("newest_bar_reports")] {
        assert_eq!(rows.len(), published.len() + 1);
        assert!(!rows.iter().any(|row| aborted.contains(row)));
    }
}

/// While the registry is unavailable and a converter has not cached the schema, valid reports become dead letters; the
/// replay sink writes them.
fn check_dead_letters_of_a_registry_outage_are_replayed(warehouse: &Warehouse, published: &[BarReport]) {
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
    warehouse.wait_until("the rows of the dead letters", || warehouse.rows("cold").len() == published.len() + 1);
    assert!(published.iter().all(|report| warehouse.rows("cold").contains(report)));
    // --from-beginning writes all rows again, after they were deleted.
    warehouse.postgres.query("delete from cold").unwrap_or_else(|error| panic!("{error}"));
    let file = warehouse.dir.path().join("cold-replay.json");
    warehouse.backbeat_sinks(&["--from-beginning", file.to_str().expect("the path is UTF-8")]);
    warehouse
        .wait_until("the deleted rows to be written again", || warehouse.rows("cold").len() == published.len() + 1);
}

/// `backbeat sinks` reports a failed sink, and restarts it with a repaired configuration.
fn check_failed_sink_is_reported_and_restarted(warehouse: &Warehouse) {
    let table = ("collection.name.format", "repaired");
    let letters = ("errors.deadletterqueue.topic.name", "barreports.repaired.dlq");
    // Without its transforms the sink fails: Debezium requires a key with fields.
    let broken = warehouse.sink_file("postgres", "repaired", &[table, letters, ("transforms", "")]);
    let url = warehouse.connect.url();
    warehouse.cluster.backbeat(&["sinks", "--connect-url", &url, broken.to_str().expect("the path is UTF-8")]);
    let sinks = || warehouse.cluster.backbeat(&["sinks", "--connect-url", &url]);
    warehouse.wait_until("the failure of the sink", || sinks().status.code() == Some(3));
    let printed = String::from_utf8_lossy(&sinks().stdout).into_owned();
    assert!(printed.contains("a task is FAILED: Caused by: "), "{printed}");
    warehouse.start_sink("postgres", "repaired", &[table, letters]);
    warehouse.wait_until("a row of the repaired sink", || !warehouse.rows("repaired").is_empty());
    assert!(sinks().status.success());
}

fn check_other_records_become_dead_letters(warehouse: &Warehouse, published: &[BarReport]) {
    let rows = warehouse.rows("bar_reports");
    let schema = warehouse.cluster.register::<BeatFrame>(TopicName::BeatFrames);
    let foreign = wire(schema, &warehouse.cluster.frames()[0]);
    let garbage = b"\x07not avro at all".to_vec();
    warehouse.send(&[("foreign", &foreign), ("garbage", &garbage)], false);
    for sink in ["postgres", "iceberg", "files"] {
        let letters = || warehouse.dead_letters(&format!("barreports.{sink}.dlq"));
        warehouse.wait_until("two dead letters", || letters().len() == 2);
        assert_eq!(letters(), [Some(foreign.clone()), Some(garbage.clone())], "{sink}");
    }
    // The replay sink cannot make reports of them, and leaves them in the topic.
    warehouse.start_sink("postgres-replay", "postgres-replay", &[]);
    let http = Client::new();
    let url = format!("{}/connectors/postgres-replay/offsets", warehouse.connect.url());
    warehouse.wait_until("the replay sink to pass the dead letters", || {
        let response = http.get(&url).send().and_then(reqwest::blocking::Response::json);
        let offsets: Value = response.expect("the worker answers");
        offsets["offsets"][0]["offset"]["kafka_offset"] == 2
    });
    let later = other_report(&published[0], 5);
    warehouse.cluster.publish_report(&later);
    warehouse.wait_until("the later report in postgres", || warehouse.rows("bar_reports").contains(&later));
    assert_eq!(warehouse.rows("bar_reports").len(), rows.len() + 1);
    assert_eq!(warehouse.dead_letters("barreports.postgres.dlq").len(), 2);
    let states = warehouse.backbeat_sinks(&["--output", "json"]);
    assert!(states.lines().all(|line| line.contains(r#""state":"RUNNING""#) && !line.contains("FAILED")), "{states}");
}

/// A report of a later version of reverb has one more field, with a default.
fn check_new_field_becomes_a_column(warehouse: &Warehouse, published: &[BarReport]) {
    let mut schema: Value = serde_json::from_str(BarReport::schema().text()).expect("valid JSON");
    schema["fields"]
        .as_array_mut()
        .expect("fields is a list")
        .push(json!({"name": "region", "type": "string", "default": "none"}));
    let subject = warehouse.cluster.broker().topics().subject(TopicName::BarReports);
    let url = format!("{}/subjects/{subject}/versions", warehouse.cluster.kafka().schema_registry);
    let response = Client::new().post(url).json(&json!({ "schema": schema.to_string() })).send();
    let registered: Value = response.expect("the registry answers").json().expect("valid JSON");
    let id = registered["id"].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or_else(|| panic!("{registered}"));
    let report = other_report(&published[0], 6);
    // Avro encodes fields one after the other, and a string as its length, doubled by the zigzag encoding, and its
    // bytes.
    let newer = [wire(id, &report).as_slice(), b"\x04eu"].concat();
    let key = report.window_id.to_string();
    warehouse.send(&[(&key, &newer)], false);
    warehouse.wait_until("the report's row", || warehouse.rows("bar_reports").contains(&report));
    let region = |window: &WindowId| {
        let sql = format!("select region from bar_reports where window_id = '{window}'");
        warehouse.postgres.query(&sql).unwrap_or_else(|error| panic!("{error}")).trim().to_owned()
    };
    assert_eq!(region(&report.window_id), "eu");
    assert_eq!(region(&published[0].window_id), "none");
    warehouse.wait_until("the report's row in Iceberg", || warehouse.iceberg("newest_bar_reports").contains(&report));
}

/// The views of `connect/sql/postgres.sql` must agree with the reports.
fn check_views_equal_the_reports(warehouse: &Warehouse, published: &[BarReport]) {
    let query = |sql: &str| warehouse.postgres.query(sql).unwrap_or_else(|error| panic!("{error}")).trim().to_owned();
    // Rows of the reports that this test made up.
    query("delete from bar_reports where window_id < '00000000000000000000000000000100'");
    let sum = |count: fn(&BarReport) -> i64| published.iter().map(count).sum::<i64>().to_string();
    let late = published.iter().filter(|report| report.late_claims > 0 || report.invalid_claims > 0).count();
    assert_eq!(query("select count(*) from windows_with_late_claims"), late.to_string());
    assert_eq!(query("select sum(late_claims) from windows_with_late_claims"), sum(|report| report.late_claims));
    let worst = published.iter().map(|report| report.tempo_drift_ms).max().expect("reports");
    assert_eq!(query("select max(worst_ms) from tempo_drift_by_day"), worst.to_string());
    let most = published.iter().map(|report| report.agents_reporting).max().expect("reports");
    assert_eq!(query("select max(most) from agents_by_hour"), most.to_string());
    assert_eq!(query("select sum(done) from tasks_by_day"), sum(|report| report.tasks_done));
    assert_eq!(query("select count(*) from issues"), sum(|report| report.issues.len() as i64));
    assert_eq!(query("select count(*) from missing_windows"), "0");
    query(&format!("delete from bar_reports where window_id = '{}'", published[1].window_id));
    let gap = format!("{}|{}", published[1].from_beat, published[1].to_beat);
    assert_eq!(query("select from_beat, to_beat from missing_windows"), gap);
}
