//! Changes of the tempo over HTTP and with `backbeat tempo`, on followers.

use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_schemas::BeatFrame;
use backbeat_tests::{Cluster, PulseNodes, wait_for, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

use crate::frames::check;

const LIMIT: Duration = Duration::from_mins(1);
const TEMPO: &str = "/api/v1/tempo";

/// Sends a request to `node` and returns the status and the body. Repeats it while it is answered with 503, because on
/// a loaded machine the leader may change at any time.
fn request(
    nodes: &PulseNodes<'_>,
    node: usize,
    method: &Method,
    path: &str,
    body: &Value,
    token: Option<&str>,
) -> (u16, Value) {
    wait_for("an answer other than 503", LIMIT, || {
        let response = request_once(nodes, node, method, path, body, token);
        (response.0 != 503).then_some(response)
    })
}

fn request_once(
    nodes: &PulseNodes<'_>,
    node: usize,
    method: &Method,
    path: &str,
    body: &Value,
    token: Option<&str>,
) -> (u16, Value) {
    let (status, body) =
        nodes.node(node).request(method.clone(), path, &body.to_string(), token).expect("the node answers");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn error(response: &(u16, Value)) -> &str {
    response.1["error"].as_str().unwrap_or_else(|| panic!("no error: {response:?}"))
}

/// Waits for a leader and returns a node that is not the leader.
fn follower(nodes: &PulseNodes<'_>) -> usize {
    let leader = nodes.wait_for_leader();
    (leader + 1) % 3
}

#[test]
fn tempo_limits_hold_for_requests_to_a_follower() {
    let cluster = Cluster::new(1);
    let nodes = PulseNodes::start(&cluster, 3, &["--cluster", "it", "--bar", "4"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let node = follower(&nodes);
    let change = |body: &Value| request(&nodes, node, &Method::POST, TEMPO, body, None);

    let fast = change(&json!({ "tempo_bpm": 25 }));
    assert_eq!((fast.0, error(&fast)), (400, "tempo 25 BPM is out of bounds; must be 1 to 24 BPM"));
    let far = change(&json!({ "tempo_bpm": 1.2 }));
    assert_eq!(far.0, 400);
    assert!(error(&far).contains("must be 0.9 to 1.1 BPM without a ramp"), "{far:?}");
    for wrong in [json!({ "tempo_bpm": "fast" }), json!({ "bpm": 2 }), json!({ "tempo_bpm": -1 }), json!([]), json!({})]
    {
        let response = change(&wrong);
        assert_eq!(response.0, 400, "{wrong}: {response:?}");
        assert!(!error(&response).is_empty());
    }
    let nothing_pending = request(&nodes, node, &Method::DELETE, TEMPO, &Value::Null, None);
    assert_eq!((nothing_pending.0, error(&nothing_pending)), (409, "no change is pending"));

    let accepted = change(&json!({ "tempo_bpm": 24, "ramp": true }));
    assert_eq!(accepted, (200, json!({ "from_beat": 4, "tempo_bpm": 24, "bar_length": 4 })));
    let second = change(&json!({ "tempo_bpm": 1.05 }));
    assert_eq!(second.0, 409);
    assert!(error(&second).contains("is pending, now at 1 BPM"), "{second:?}");
    wait_until("the pending change in the follower's status", LIMIT, || {
        nodes.node(node).get_json("/api/v1/status")["pending"]["ramp"] == json!(true)
    });
    assert_eq!(request(&nodes, node, &Method::DELETE, TEMPO, &Value::Null, None).0, 200);

    // The same with the `backbeat` CLI.
    let url = nodes.node(node).url().expect("the node listens");
    let backbeat = |args: &[&str]| {
        let output = cluster.backbeat(&[&["tempo", "--url", &url], args].concat());
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    };
    let (ok, printed) = backbeat(&["1.2"]);
    assert!(!ok && printed.contains("must be 0.9 to 1.1 BPM"), "{printed}");
    let (ok, printed) = backbeat(&["24", "--ramp"]);
    assert!(ok && printed.contains("24 BPM in bars of 4, from beat 4"), "{printed}");
    let (ok, printed) = backbeat(&[]);
    assert!(ok && printed.contains("1 BPM in bars of 4, changing to 24 BPM"), "{printed}");
    let (ok, printed) = backbeat(&["--cancel"]);
    assert!(ok, "{printed}");
}

/// The ramp is to 24 times the first tempo, like one from 1 to 24 BPM, but runs a hundred times as fast. The leader is
/// killed during the ramp.
#[test]
fn ramp_continues_after_a_failover() {
    let cluster = Cluster::new(1);
    let flags = ["--cluster", "it", "--bpm", "100", "--max-bpm", "2400", "--bar", "1"];
    let mut nodes = PulseNodes::start(&cluster, 3, &flags);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let node = follower(&nodes);
    let accepted = request(&nodes, node, &Method::POST, TEMPO, &json!({ "tempo_bpm": 2400, "ramp": true }), None);
    assert_eq!(accepted.0, 200, "{accepted:?}");
    let mut frames = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    let mut wait_for_tempo = |bpm: f64| {
        wait_for("a frame with the higher tempo", LIMIT, || {
            let last = frames.last().expect("Kafka answers")?.record;
            (last.tempo_bpm.bpm() >= bpm).then_some(last)
        })
    };
    let halfway = wait_for_tempo(300.0);
    assert!(halfway.tempo_bpm.bpm() < 2400.0, "the ramp ended before the leader could be killed: {halfway:?}");
    let leader = PulseNodes::index_of(&halfway.node);
    nodes.kill(leader);
    wait_for_tempo(2400.0);
    wait_until("a beat of another node", LIMIT, || {
        cluster.frames().last().is_some_and(|frame| frame.node != halfway.node)
    });
    let all = cluster.frames();
    check(&all);
    let mut tempos: Vec<f64> = all.iter().map(|frame| frame.tempo_bpm.bpm()).collect();
    tempos.dedup();
    assert_eq!(tempos.len(), 35, "the ramp must take 34 steps of 10 %: {tempos:?}");
}

#[test]
fn tempo_change_without_a_quorum_is_refused() {
    let cluster = Cluster::new(1);
    let mut nodes = PulseNodes::start(&cluster, 3, &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    let leader = nodes.wait_for_leader();
    (0..3).filter(|node| *node != leader).for_each(|node| nodes.kill(node));
    let program = nodes.node(leader);
    wait_until("degraded mode", LIMIT, || program.metric("backbeat_pulse_degraded") == Some(1.0));
    let refused = request_once(&nodes, leader, &Method::POST, TEMPO, &json!({ "tempo_bpm": 590 }), None);
    assert_eq!((refused.0, error(&refused)), (503, "there is no quorum: the tempo is frozen"));
    let (status, body) = program.get("/ready").expect("the program answers");
    assert_eq!((status, body.contains("raft has no leader")), (503, true), "{body}");
    wait_until("a degraded beat", LIMIT, || cluster.frames().last().is_some_and(|frame| frame.degraded));
    assert!(program.metric("backbeat_pulse_degraded_beats_total").is_some_and(|beats| beats > 0.0));
}

#[test]
fn requests_without_the_admin_token_or_the_raft_secret_are_refused() {
    let cluster = Cluster::new(1);
    let (token, secret) = (cluster.dir().join("token"), cluster.dir().join("secret"));
    std::fs::write(&token, "admin-token\n").expect("the file is written");
    std::fs::write(&secret, "raft-secret\n").expect("the file is written");
    let path = |path: &std::path::Path| path.to_str().expect("the path is UTF-8").to_owned();
    let flags = ["--cluster", "it", "--admin-token-file", &path(&token), "--raft-secret-file", &path(&secret)];
    let nodes = PulseNodes::start(&cluster, 3, &flags);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let node = follower(&nodes);
    let body = json!({ "tempo_bpm": 1.1 });
    for wrong in [None, Some("wrong-token")] {
        let refused = request(&nodes, node, &Method::POST, TEMPO, &body, wrong);
        assert_eq!(refused.0, 401, "{refused:?}");
        let refused = request(&nodes, node, &Method::DELETE, "/api/v1/members/n0", &Value::Null, wrong);
        assert_eq!(refused.0, 401, "{refused:?}");
    }
    assert_eq!(request(&nodes, node, &Method::POST, TEMPO, &body, Some("admin-token")).0, 200);

    let raft = nodes.raft_address(node);
    let post = reqwest::blocking::Client::new().post(format!("http://{raft}/raft/vote")).body("{}");
    let unsigned = post.header("x-backbeat-cluster", "it").header("x-backbeat-signature", "00").send();
    assert_eq!(unsigned.expect("the node answers").status().as_u16(), 401);
}
