//! librdkafka's own performance test, `rdkafka_performance`, built from the sources that this workspace links.

use std::path::{Path, PathBuf};
use std::process::Command;

use backbeat_tests::run;
use serde_json::Value;

/// Sends `count` records of `size` bytes to `topic` with the settings of this workspace's producers; returns records
/// per second until the last one was acknowledged.
pub(crate) fn records_per_second(bootstrap_servers: &str, topic: &str, count: u64, size: u64) -> f64 {
    let mut tool = Command::new(build());
    tool.args(["-P", "-q", "-u", "-t", topic, "-b", bootstrap_servers, "-a", "-1", "-z", "lz4"]);
    tool.args(["-c", &count.to_string(), "-s", &size.to_string(), "-p", "-1"]);
    for setting in ["enable.idempotence=true", "linger.ms=2", "queue.buffering.max.messages=200000"] {
        tool.args(["-X", setting]);
    }
    let printed = run(&mut tool);
    // The last line of a table: elapsed milliseconds, messages, bytes, ..., messages per second.
    let head = printed.lines().find(|line| line.contains("elapsed")).unwrap_or_else(|| panic!("no table: {printed}"));
    let last =
        printed.lines().rev().find(|line| line.starts_with('|')).unwrap_or_else(|| panic!("no table: {printed}"));
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let column = |name: &str| {
        let index = cells(head).iter().position(|cell| cell == name).unwrap_or_else(|| panic!("no {name}: {printed}"));
        cells(last)[index].parse::<f64>().unwrap_or_else(|_| panic!("{name} is not a number: {printed}"))
    };
    assert_eq!(column("dr") as u64, count, "{printed}");
    column("dr") / (column("elapsed") / 1_000.0)
}

/// Builds the tool in `target/tmp` if it is not there, and returns its path.
fn build() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/librdkafka");
    let tool = dir.join("examples/rdkafka_performance");
    if !tool.exists() {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.parent().expect("the path has a parent")).expect("the directory is created");
        run(Command::new("cp").arg("-r").arg(sources()).arg(&dir));
        let without = ["ssl", "gssapi", "curl", "zstd", "lz4-ext"].map(|feature| format!("--disable-{feature}"));
        run(Command::new("./configure").args(without).current_dir(&dir));
        run(Command::new("make").args(["-j2", "-C", "src", "librdkafka.a"]).current_dir(&dir));
        run(Command::new("make").args(["-C", "examples", "rdkafka_performance"]).current_dir(&dir));
    }
    tool
}

/// The directory in which cargo keeps librdkafka's sources.
fn sources() -> PathBuf {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let printed =
        run(Command::new("cargo").args(["metadata", "--locked", "--format-version", "1", "--manifest-path", manifest]));
    let metadata: Value = serde_json::from_str(&printed).expect("cargo's metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages is a list");
    let sys = packages.iter().find(|package| package["name"] == "rdkafka-sys").expect("rdkafka-sys is a dependency");
    let manifest = Path::new(sys["manifest_path"].as_str().expect("manifest_path is a string"));
    manifest.parent().expect("the path has a parent").join("librdkafka")
}
