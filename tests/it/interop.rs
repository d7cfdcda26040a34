//! Compatibility with another implementation of Avro, Python's fastavro, and with an agent written in Python.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use backbeat_schemas::{BarReport, BeatFrame, Record, StatusClaim, WriterSchema, wire};
use backbeat_tests::{Cluster, run, wait_until};
use tempfile::TempDir;

use crate::reports::{check_reports, reverb, totals};
use crate::sdk::{claims_of, states_of};

/// For each schema `NAME.avsc`: reads the record in `NAME.rust`, prints it, writes it again to `NAME.python`, and with
/// one more field, which has a default, to `NAME.newer`.
const SCRIPT: &str = r#"
import fastavro, io, json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.avsc")):
    text = json.loads(path.read_text())
    schema = fastavro.parse_schema(text)
    stream = io.BytesIO(path.with_suffix(".rust").read_bytes())
    record = fastavro.schemaless_reader(stream, schema)
    assert stream.read() == b"", "bytes left over"
    print(json.dumps(record, default=str))
    with path.with_suffix(".python").open("wb") as out:
        fastavro.schemaless_writer(out, schema, record)
    text["fields"].append({"name": "further", "type": "string", "default": ""})
    path.with_suffix(".newer-schema").write_text(json.dumps(text))
    with path.with_suffix(".newer").open("wb") as out:
        fastavro.schemaless_writer(out, fastavro.parse_schema(text), {**record, "further": "more"})
"#;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
const LIMIT: Duration = Duration::from_mins(1);

/// Returns the interpreter of a virtual environment with the packages of the examples and the tests, created once in
/// the build directory.
pub(crate) fn python() -> PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(create_venv).clone()
}

fn create_venv() -> PathBuf {
    let venv = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = venv.join("bin/python");
    let works = |python: &PathBuf| {
        let imports = ["-c", "import fastavro, confluent_kafka, duckdb, pyiceberg, pyarrow, pytz, schemathesis"];
        Command::new(python).args(imports).status().is_ok_and(|status| status.success())
    };
    if !works(&python) {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/requirements.txt");
        run(Command::new(&python)
            .args(install)
            .arg(format!("{EXAMPLES}/requirements.txt"))
            .args(["--requirement", tests]));
    }
    python
}

/// Encodes the record in Rust, lets fastavro read and write it, decodes fastavro's bytes in Rust, and returns the
/// record as fastavro prints it.
fn round_trip<R: Record + PartialEq + std::fmt::Debug>(json: &str) -> String {
    let record: R = serde_json::from_str(json).expect("a record");
    let dir = TempDir::new().expect("a temporary directory");
    let file = |suffix: &str| dir.path().join(format!("record.{suffix}"));
    std::fs::write(file("avsc"), R::schema().text()).expect("the file is written");
    let body = wire(1, &record).split_off(5);
    std::fs::write(file("rust"), &body).expect("the file is written");
    let printed = run(Command::new(python()).args(["-c", SCRIPT]).arg(dir.path()));
    let from_python = std::fs::read(file("python")).expect("fastavro wrote the record");
    assert_eq!(WriterSchema::<R>::own().decode(&from_python).as_ref(), Ok(&record));
    assert_eq!(from_python, body, "fastavro encodes the record to other bytes");
    let newer_schema = std::fs::read_to_string(file("newer-schema")).expect("the script wrote the schema");
    let newer = std::fs::read(file("newer")).expect("fastavro wrote the newer record");
    assert_eq!(WriterSchema::<R>::parse(&newer_schema).and_then(|schema| schema.decode(&newer)), Ok(record));
    printed
}

#[test]
fn records_round_trip_through_fastavro() {
    let frame = r#"{"type":"backbeat.beatframe.v1","cluster_id":"c","beat_index":1234,"downbeat":true,"phase":"review","hlc":"7ffd:0001:beef","deadline_at":"2024-01-15T10:30:00Z","tempo_bpm":5.5,"window_id":"7e9b0e6c4c9a4e59b7f2d9a3c1b2e4d5","claim_offsets":[1,0,9000000000]}"#;
    assert!(round_trip::<BeatFrame>(frame).contains(r#""claim_offsets": [1, 0, 9000000000]"#));
    let claim = r#"{"type":"backbeat.statusclaim.v1","agent_id":"agent:é","task_id":"task:123","beat_index":1234,"state":"waiting","beats_left":-3,"progress":0.5,"notes":"","hlc":"7ffd:0001:beef","help":"promised","secret_rotation":"failed","degraded":true}"#;
    let read = round_trip::<StatusClaim>(claim);
    assert!(read.contains(r#""help": "promised""#) && read.contains(r#""state": "waiting""#), "{read}");
    let report = r#"{"type":"backbeat.barreport.v1","window_id":"7e9b0e6c4c9a4e59b7f2d9a3c1b2e4d5","from_beat":240,"to_beat":359,"agents_reporting":978,"on_time_reviews":842,"help_promises_fulfilled":91,"secret_rotations_ok":true,"tempo_drift_ms":7,"issues":["1 late claims"]}"#;
    assert!(round_trip::<BarReport>(report).contains(r#""agents_reporting": 978"#));
}

#[test]
fn python_agent_is_counted_like_rust_agents() {
    let cluster = Cluster::new(3);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"]);
    let _reverb = reverb(&cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "6", "--silence-rate", "0"]);
    wait_until("claims of Rust agents", LIMIT, || cluster.reports().iter().any(|entry| entry.record.claims > 0));
    let mut agent = Command::new(python());
    agent.arg(format!("{EXAMPLES}/agent.py")).args(["--agent", "py-1", "--task", "train", "--beats", "10"]);
    cluster.set_up(&mut agent);
    let printed = run(&mut agent);
    assert!(printed.starts_with("10 claims delivered, 0 undelivered"), "{printed}");
    let claims = claims_of(&cluster, "py-1");
    assert_eq!(claims.len(), 10);
    assert_eq!(states_of(&claims, "train"), ["executing", "done"]);
    wait_until("a report of seven agents", LIMIT, || {
        cluster.reports().iter().any(|entry| entry.record.agents_reporting == 7)
    });
    drop(sim);
    drop(pulse);
    check_reports(&cluster);
    let (_, _, invalid) = totals(&cluster.reports());
    assert_eq!(invalid, 0);
}
