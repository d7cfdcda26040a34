//! Nodes join pulse's Raft cluster and leave it while beats are published. The HTTP path `/api/v1/members` means nodes;
//! elsewhere a member is one of reverb's consumer group.

use std::time::Duration;

use backbeat_devstack::free_port;
use backbeat_tests::{Cluster, Program, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

use crate::frames::check;

const LIMIT: Duration = Duration::from_mins(1);

fn status(program: &Program) -> Value {
    program.get_json("/api/v1/status")
}

#[test]
fn cluster_grown_to_three_nodes_and_shrunk_to_one_keeps_publishing_beats() {
    let cluster = Cluster::new(1);
    let fast = ["--cluster", "it", "--bpm", "600", "--max-bpm", "600"];
    let address = || format!("127.0.0.1:{}", free_port().expect("a free port"));
    let (first_at, second_at, third_at) = (address(), address(), address());
    let start = |name: &str, at: &str, more: &[&str]| {
        cluster.serve("pulse", &[&fast[..], &["--node", name, "--raft-bind", at], more].concat())
    };
    let first = start("n1", &first_at, &[]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let second = start("n2", &second_at, &["--join"]);
    let third = start("n3", &third_at, &["--join"]);
    wait_until("n2 to answer", LIMIT, || second.get("/api/v1/status").is_some());
    let add = |via: &Program, node: &str, at: &str| {
        let body = json!({ "node": node, "address": at }).to_string();
        via.request(Method::POST, "/api/v1/members", &body, None).expect("the program answers")
    };
    let (code, body) = add(&first, "n9", "nowhere");
    assert_eq!((code, body.contains("\\\"nowhere\\\" is not host:port")), (400, true), "{body}");
    wait_until("n2 to be a non-member", LIMIT, || status(&second)["role"] == "outsider");
    let (code, body) = add(&first, "n2", &second_at);
    assert_eq!(code, 200, "{body}");
    // From here on, requests go to the follower n2, which forwards them to the leader.
    wait_until("n2 to be a follower", LIMIT, || status(&second)["role"] == "follower");
    wait_until("n3 to be a non-member", LIMIT, || status(&third)["role"] == "outsider");
    let (code, body) = add(&second, "n3", &third_at);
    assert_eq!(code, 200, "{body}");
    let (code, body) = add(&second, "n3", &third_at);
    assert_eq!((code, body.contains("is already in the cluster")), (409, true), "{body}");
    wait_until("three voters", LIMIT, || status(&third)["members"].as_array().map(Vec::len) == Some(3));

    drop(first);
    let beats = cluster.frames().len();
    wait_until("beats without n1", LIMIT, || cluster.frames().len() > beats + 10);
    let remove = |node: &str| {
        second.request(Method::DELETE, &format!("/api/v1/members/{node}"), "", None).expect("the program answers")
    };
    let (code, body) = remove("n7");
    assert_eq!((code, body.contains("n7 is not in the cluster; its nodes are n1, n2, n3")), (409, true), "{body}");
    let (code, body) = remove("n1");
    assert_eq!(code, 200, "{body}");
    wait_until("two voters", LIMIT, || status(&third)["members"].as_array().map(Vec::len) == Some(2));
    wait_until("n2 and n3 to be ready", LIMIT, || {
        [&second, &third].iter().all(|node| node.get("/ready").is_some_and(|(code, _)| code == 200))
    });
    // A running follower that is removed learns that it is a non-member; the leader continues alone.
    let leads = |node: &Program| status(node)["role"] == "leader";
    wait_until("a leader", LIMIT, || leads(&second) || leads(&third));
    let (leader, follower, follower_name) =
        if leads(&second) { (&second, &third, "n3") } else { (&third, &second, "n2") };
    let removed = leader.request(Method::DELETE, &format!("/api/v1/members/{follower_name}"), "", None);
    let (code, body) = removed.expect("the leader answers");
    assert_eq!(code, 200, "{body}");
    wait_until("the removed node to be a non-member", LIMIT, || status(follower)["role"] == "outsider");
    let beats = cluster.frames().len();
    wait_until("beats of the last voter", LIMIT, || cluster.frames().len() > beats + 10);
    check(&cluster.frames());
}
