//! Members come and go while the beats go on.

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
fn a_node_becomes_three_and_the_first_may_go() {
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
    wait_until("the second to listen", LIMIT, || second.get("/api/v1/status").is_some());
    let add = |via: &Program, node: &str, at: &str| {
        let body = json!({ "node": node, "address": at }).to_string();
        via.request(Method::POST, "/api/v1/members", &body, None).expect("it answers")
    };
    let (code, said) = add(&first, "n9", "nowhere");
    assert_eq!((code, said.contains("\\\"nowhere\\\" is not host:port")), (400, true), "{said}");
    wait_until("the second to take part", LIMIT, || status(&second)["role"] == "outsider");
    let (code, said) = add(&first, "n2", &second_at);
    assert_eq!(code, 200, "{said}");
    // By the follower, which passes it on.
    wait_until("the second to follow", LIMIT, || status(&second)["role"] == "follower");
    wait_until("the third to take part", LIMIT, || status(&third)["role"] == "outsider");
    let (code, said) = add(&second, "n3", &third_at);
    assert_eq!(code, 200, "{said}");
    let (code, said) = add(&second, "n3", &third_at);
    assert_eq!((code, said.contains("is a member already")), (409, true), "{said}");
    wait_until("three members", LIMIT, || status(&third)["members"].as_array().map(Vec::len) == Some(3));

    drop(first);
    let beats = cluster.frames().len();
    wait_until("beats without the first", LIMIT, || cluster.frames().len() > beats + 10);
    let remove =
        |node: &str| second.request(Method::DELETE, &format!("/api/v1/members/{node}"), "", None).expect("it answers");
    let (code, said) = remove("n7");
    assert_eq!((code, said.contains("n7 is no member; members are n1, n2, n3")), (409, true), "{said}");
    let (code, said) = remove("n1");
    assert_eq!(code, 200, "{said}");
    wait_until("two members", LIMIT, || status(&third)["members"].as_array().map(Vec::len) == Some(2));
    wait_until("both to be ready", LIMIT, || {
        [&second, &third].iter().all(|node| node.get("/ready").is_some_and(|(code, _)| code == 200))
    });
    // A follower that lives is told that it is no member any more; the leader goes on alone.
    let leads = |node: &Program| status(node)["role"] == "leader";
    wait_until("a leader", LIMIT, || leads(&second) || leads(&third));
    let (stays, goes, name) = if leads(&second) { (&second, &third, "n3") } else { (&third, &second, "n2") };
    let (code, said) = stays.request(Method::DELETE, &format!("/api/v1/members/{name}"), "", None).expect("it answers");
    assert_eq!(code, 200, "{said}");
    wait_until("it to know", LIMIT, || status(goes)["role"] == "outsider");
    let beats = cluster.frames().len();
    wait_until("beats of the last member", LIMIT, || cluster.frames().len() > beats + 10);
    check(&cluster.frames());
}
