//! The invariants of ARCHITECTURE.md that can be seen in the source: who uses what.

use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

struct Rule {
    /// What the rule is for, for the message of a failure.
    name: &'static str,
    /// Text that may be only where the rule allows it. Comments do not count.
    pattern: &'static str,
    /// The directories, or files, that are searched.
    within: &'static [&'static str],
    /// Those of them where the text may be. Each must have it, so that no exception outlives its reason.
    allowed: &'static [&'static str],
    /// A line that breaks the rule.
    violation: &'static str,
}

const PROGRAMS: &[&str] =
    &["agent-sim", "backbeat", "broker", "devstack", "pulse", "reverb", "sdk", "service", "simulation"];

const RULES: [Rule; 9] = [
    Rule {
        name: "schemas knows neither Kafka nor an async runtime",
        pattern: r"\b(rdkafka|tokio|async)\b",
        within: &["schemas"],
        allowed: &[],
        violation: "use rdkafka::Message;",
    },
    Rule {
        name: "cores have no I/O, no clock, no randomness, no Kafka, no async, and write no log or metric",
        pattern: r"\b(rdkafka|tokio|async|rand|Instant|SystemTime|Utc|tracing|prometheus|reqwest|axum)\b|std::(fs|net|io|thread|env|process)",
        within: &["pulse/src/core", "reverb/src/core", "sdk/src/clock.rs"],
        allowed: &[],
        violation: "let now = Instant::now();",
    },
    Rule {
        name: "rdkafka is used by broker, and by the part of reverb's shell that drives its consumer group",
        pattern: r"\brdkafka::",
        within: PROGRAMS,
        allowed: &[
            "broker",
            "reverb/src/shell/group.rs",
            "reverb/src/shell/member.rs",
            "reverb/src/shell/merger.rs",
            "reverb/src/shell/recompute.rs",
            "reverb/src/shell/replay.rs",
            "reverb/src/shell/start_positions.rs",
        ],
        violation: "use rdkafka::error::KafkaError;",
    },
    Rule {
        name: "openraft is used in pulse/src/shell/raft only",
        pattern: r"\bopenraft::",
        within: PROGRAMS,
        allowed: &["pulse/src/shell/raft"],
        violation: "fn metrics(&self) -> openraft::RaftMetrics<u64, ()>;",
    },
    Rule {
        name: "readers read committed records only, except the one that looks for open transactions",
        pattern: "read_uncommitted|isolation.level",
        within: PROGRAMS,
        allowed: &["broker/src/broker.rs", "backbeat/src/console.rs"],
        violation: r#"config.set("isolation.level", "read_uncommitted");"#,
    },
    Rule {
        name: "a reader is assigned by broker/src/client_log.rs alone: librdkafka may abort the process otherwise",
        pattern: r"\.assign\(",
        within: PROGRAMS,
        // The group's consumer is assigned in its rebalance callback.
        allowed: &["broker/src/client_log.rs", "reverb/src/shell/group.rs"],
        violation: "consumer.assign(&list)?;",
    },
    Rule {
        name: "unsafe code is in one module",
        pattern: "unsafe",
        within: &[
            "agent-sim",
            "backbeat",
            "broker",
            "devstack",
            "http-api",
            "pulse",
            "reverb",
            "schemas",
            "sdk",
            "service",
            "simulation",
        ],
        allowed: &["broker/src/record_queue.rs"],
        violation: "unsafe { &*message }",
    },
    Rule {
        name: "metrics are created by prometheus' macros, which register them",
        pattern: r"\b(Int)?(Counter|Gauge|Histogram)(Vec)?::(new|with_opts)\(",
        within: PROGRAMS,
        allowed: &[],
        violation: r#"IntCounter::new("backbeat_beats_total", "Beats")"#,
    },
    Rule {
        name: "events are counted where they are logged",
        pattern: r"\.inc(_by)?\(",
        within: &["pulse", "reverb"],
        allowed: &[
            "pulse/src/shell/events.rs",
            "pulse/src/shell/metrics.rs",
            "reverb/src/shell/events.rs",
            "reverb/src/shell/metrics.rs",
        ],
        violation: "self.metrics.takeovers.inc();",
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the Rust files of `path`, without those of tests.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let paths = entries.map(|entry| entry.expect("the directory is readable").path());
    let is_test = |path: &Path| path.ends_with("tests") || path.ends_with("tests.rs") || path.ends_with("testing.rs");
    paths
        .filter(|path| !is_test(path) && !path.ends_with("examples") && !path.ends_with("target"))
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// Returns the code of `source` before its unit tests, without comments.
fn code(source: &str) -> impl Iterator<Item = &str> {
    let tested = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    tested.lines().map(|line| line.split("//").next().unwrap_or_default())
}

#[test]
fn invariants_of_the_architecture_hold() {
    let mut broken = Vec::new();
    for Rule { name, pattern, within, allowed, violation } in RULES {
        let pattern = Regex::new(pattern).expect("the pattern is valid");
        assert!(code(violation).any(|line| pattern.is_match(line)), "{name}: the pattern does not find {violation:?}");
        let mut unused: Vec<&str> = allowed.to_vec();
        for file in within.iter().flat_map(|path| sources(&root().join(path))) {
            let source = fs::read_to_string(&file).expect("the file is readable");
            let path = file.strip_prefix(root()).expect("it is in the repository").display().to_string();
            let Some(line) = code(&source).find(|line| pattern.is_match(line)) else { continue };
            match allowed.iter().find(|allowed| path.starts_with(**allowed)) {
                Some(found) => unused.retain(|allowed| allowed != found),
                None => broken.push(format!("{name}: {path}: {}", line.trim())),
            }
        }
        broken.extend(unused.iter().map(|path| format!("{name}: {path} needs no exception any more")));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Images are built from what `.dockerignore` lets through, and the deployment tests are not part of `make test`.
#[test]
fn every_package_is_in_the_images_context() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("the file is readable");
    let (workspace, ignored) = (read("Cargo.toml"), read(".dockerignore"));
    let members = workspace.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).expect("a workspace");
    let members = members.split('"').skip(1).step_by(2);
    let missing: Vec<&str> =
        members.filter(|member| !ignored.lines().any(|line| line == format!("!{member}"))).collect();
    assert!(missing.is_empty(), "{missing:?} must be in .dockerignore");
}
