//! The schemas as a contract: records of every released version stay readable.

use std::fs;
use std::path::{Path, PathBuf};

use backbeat_broker::TopicName;
use backbeat_schemas::{BarPartial, BarReport, BarRoster, BeatFrame, Record, StatusClaim};
use backbeat_tests::{Cluster, runtime};
use reqwest::blocking::Client;
use serde_json::{Value, json};

const HISTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/history");

/// Changes the registry through its HTTP API: PUT for `config/...`, otherwise POST.
fn put_or_post(cluster: &Cluster, path: &str, body: &Value) {
    let url = format!("{}/{path}", cluster.kafka().schema_registry);
    let request = if path.starts_with("config") { Client::new().put(url) } else { Client::new().post(url) };
    let answer = request.json(body).send().expect("the program answers");
    assert!(answer.status().is_success(), "{path}: {}", answer.text().unwrap_or_default());
}

/// Reads the released versions of a schema, the oldest first.
fn released(name: &str) -> Vec<String> {
    let number = |path: &Path| path.file_stem()?.to_str()?.parse::<u32>().ok();
    let entries = fs::read_dir(format!("{HISTORY}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    paths.sort_by_key(|path| number(path).unwrap_or_else(|| panic!("{} is not of the form N.avsc", path.display())));
    paths.iter().map(|path| fs::read_to_string(path).expect("the file is readable")).collect()
}

/// Incompatible changes of a schema: old readers or new ones could not read all records.
fn breaking(schema: &str) -> Vec<(&'static str, String)> {
    let changed = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut schema: Value = serde_json::from_str(schema).expect("valid JSON");
        change(schema["fields"].as_array_mut().expect("fields is a list"));
        schema.to_string()
    };
    vec![
        (
            "another field without a default",
            changed(&|fields| fields.push(json!({"name": "further", "type": "string"}))),
        ),
        ("a removed field", changed(&|fields| drop(fields.remove(1)))),
        ("a changed type", changed(&|fields| fields[1]["type"] = json!("boolean"))),
        ("a renamed field", changed(&|fields| fields[1]["name"] = json!("renamed"))),
    ]
}

fn check<R: Record>(cluster: &Cluster, name: &str) {
    let subject = format!("{}{name}", cluster.prefix());
    put_or_post(cluster, &format!("config/{subject}"), &json!({ "compatibility": "FULL_TRANSITIVE" }));
    let versions = released(name);
    for version in &versions {
        put_or_post(cluster, &format!("subjects/{subject}/versions"), &json!({ "schema": version }));
    }
    let refused = |schema: &str| {
        let found = runtime().block_on(cluster.registry().check_text(&subject, schema));
        let found = found.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.versions, versions.len());
        found.refused
    };
    let current = R::schema().text();
    assert_eq!(refused(current), None, "{name}.avsc is incompatible with a released version");
    let mut with_default: Value = serde_json::from_str(current).expect("valid JSON");
    let further = json!({"name": "further", "type": "string", "default": ""});
    with_default["fields"].as_array_mut().expect("fields is a list").push(further);
    assert_eq!(refused(&with_default.to_string()), None);
    for (change, schema) in breaking(current) {
        assert!(refused(&schema).is_some(), "{name}: the registry accepts {change}");
    }
}

#[test]
fn schemas_are_compatible_with_every_released_version() {
    let cluster = Cluster::without_topics();
    check::<BeatFrame>(&cluster, "beat_frame");
    check::<StatusClaim>(&cluster, "status_claim");
    check::<BarReport>(&cluster, "bar_report");
    check::<BarRoster>(&cluster, "bar_roster");
    check::<BarPartial>(&cluster, "bar_partial");
}

#[test]
fn schemas_check_with_an_incompatible_subject_exits_with_3() {
    let cluster = Cluster::without_topics();
    let check = |code: i32| {
        let output = cluster.backbeat(&["schemas", "check", "--output", "json"]);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        printed.lines().map(|line| serde_json::from_str(line).expect("valid JSON")).collect::<Vec<Value>>()
    };
    let before = check(0);
    assert!(before.len() == 5 && before.iter().all(|one| one["versions"] == 0 && one["registered"] == false));
    let topics = cluster.backbeat(&["topics", "--replication-factor", "1"]);
    assert!(topics.status.success());
    assert!(check(0).iter().all(|one| one["registered"] == true && one["compatibility"] == "FULL_TRANSITIVE"));

    // Somebody turns compatibility off, and registers a report schema without `window_id`.
    let subject = cluster.broker().topics().subject(TopicName::BarReports);
    put_or_post(&cluster, &format!("config/{subject}"), &json!({ "compatibility": "NONE" }));
    assert!(check(3).iter().any(|one| one["ok"] == false && one["compatibility"] == "NONE"));
    let (_, without) = breaking(BarReport::schema().text()).remove(1);
    put_or_post(&cluster, &format!("subjects/{subject}/versions"), &json!({ "schema": without }));
    put_or_post(&cluster, &format!("config/{subject}"), &json!({ "compatibility": "FULL_TRANSITIVE" }));
    let found = check(3).into_iter().find(|one| one["ok"] == false).expect("a subject is refused");
    assert!(found["subject"] == subject.as_str() && found["refused"].is_string(), "{found}");
    let text = cluster.backbeat(&["schemas", "check"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("REFUSED by the registry, which has 2 versions: "));
}
