//! The OpenAPI descriptions of both services against the services: the files in `docs/openapi/` are what is served, and
//! schemathesis finds no request whose response they do not describe.

use std::process::Command;

use backbeat_tests::{Cluster, Program, run};
use serde_json::Value;

use crate::docs::check_file;
use crate::interop::python;
use crate::reports::{reverb, wait_for_reports};

/// Compares `docs/openapi/NAME.json` with what `service` serves, or replaces it where `UPDATE_DOCS` is set.
fn check_description(name: &str, service: &Program) {
    let (status, served) = service.get("/api/v1/openapi.json").expect("the service answers");
    assert_eq!(status, 200);
    let description: Value = serde_json::from_str(&served).expect("the description is JSON");
    for (path, operations) in description["paths"].as_object().expect("there are paths") {
        for (method, operation) in operations.as_object().expect("there are operations") {
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
        }
    }
    check_file(&format!("openapi/{name}.json"), &(served + "\n"));
}

/// Sends generated requests, valid and invalid, to every described operation, and checks each response against the
/// description.
fn conforms(service: &Program, options: &[&str]) {
    let schemathesis = python().with_file_name("schemathesis");
    let mut command = Command::new(schemathesis);
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).args(["--no-color", "run", "--seed", "1", "--max-examples", "40"]);
    // A 503 is described. Which tempo and bar length are accepted depends on those in force.
    command.args(["--exclude-checks", "not_a_server_error,positive_data_acceptance"]);
    command.args(options).arg(format!("{}/api/v1/openapi.json", service.url().expect("the service listens")));
    run(&mut command);
}

#[test]
fn services_answer_as_their_openapi_descriptions_say() {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "6000", "--bar", "4"]);
    let reverb = reverb(&cluster, &[]);
    wait_for_reports(&cluster, 2);
    // Adding a node that does not run takes 10 s: tests/it/members.rs adds one that does.
    let pulse_options = ["--exclude-operation-id", "add_node"];
    for (name, service, options) in [("pulse", &pulse, &pulse_options[..]), ("reverb", &reverb, &[])] {
        check_description(name, service);
        conforms(service, options);
        service.wait_ready();
    }
}
