//! Raft's port: what a wiretap learns, what repeated calls do, and the replacement of secrets.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use backbeat_tests::{Cluster, PulseNodes, wait_for, wait_until};
use reqwest::Method;

use crate::frames::check;

const LIMIT: Duration = Duration::from_mins(1);
const SECRET: &str = "the-secret-of-the-nodes";
const TOKEN: &str = "the-token-of-the-operators";
const TEMPO: &str = "/api/v1/tempo";
const FORWARDED: &[u8] = b"POST /raft/passed-on";

/// The bytes that each connection carried to its node, and back.
pub(crate) type Recording = Arc<Mutex<Vec<Vec<u8>>>>;

/// Records all bytes of connections to `address`, and returns the address to connect to instead.
pub(crate) fn tap(address: &str, recording: &Recording) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let tapped = listener.local_addr().expect("an address").to_string();
    let (address, recording) = (address.to_owned(), Arc::clone(recording));
    // Ends with the test's process.
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("a connection");
            let Ok(node) = TcpStream::connect(&address) else { continue };
            let ends = |stream: &TcpStream| stream.try_clone().expect("a handle");
            for (from, to) in [(ends(&client), ends(&node)), (node, client)] {
                let recording = Arc::clone(&recording);
                thread::spawn(move || record(from, to, &recording));
            }
        }
    });
    tapped
}

fn record(mut from: TcpStream, mut to: TcpStream, recording: &Recording) {
    let connection = {
        let mut recording = recording.lock().expect("no thread panicked");
        recording.push(Vec::new());
        recording.len() - 1
    };
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        recording.lock().expect("no thread panicked")[connection].extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

pub(crate) fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Returns the first whole request in the recording that begins with `start`.
fn request_in(recording: &Recording, start: &[u8]) -> Option<Vec<u8>> {
    recording.lock().expect("no thread panicked").iter().find_map(|bytes| {
        let bytes = &bytes[find(bytes, start)?..];
        let head = find(bytes, b"\r\n\r\n")? + 4;
        let text = str::from_utf8(&bytes[..head]).ok()?;
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
        bytes.get(..head + length).map(<[u8]>::to_vec)
    })
}

/// Sends the bytes and returns the response's first bytes.
fn send(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("the node listens");
    stream.write_all(request).expect("the request is sent");
    let mut response = vec![0; 4 * 1024];
    let length = stream.read(&mut response).expect("the node answers");
    String::from_utf8_lossy(&response[..length]).into_owned()
}

/// Changes the tempo at a node and returns the status. Repeats it while the answer is 503: leaders change on a busy machine.
fn change_tempo(nodes: &PulseNodes<'_>, node: usize, bpm: f64, token: &str) -> u16 {
    let body = format!("{{\"tempo_bpm\": {bpm}}}");
    wait_for("an answer other than 503", LIMIT, || {
        let (status, _) = nodes.node(node).request(Method::POST, TEMPO, &body, Some(token)).expect("the node answers");
        (status != 503).then_some(status)
    })
}

fn write(path: &str, content: &str) {
    // Atomically: a node could read half a file otherwise.
    let temporary = format!("{path}.new");
    fs::write(&temporary, content).expect("the file is written");
    fs::rename(&temporary, path).expect("the file is renamed");
}

#[test]
fn wiretap_learns_no_secret_and_cannot_repeat_calls() {
    let cluster = Cluster::new(1);
    let path = |name: &str| cluster.dir().join(name).to_str().expect("the path is UTF-8").to_owned();
    let (secret, token) = (path("secret"), path("token"));
    write(&secret, SECRET);
    write(&token, TOKEN);
    let recording = Recording::default();
    let flags = ["--cluster", "it", "--raft-secret-file", &secret, "--admin-token-file", &token];
    let nodes = PulseNodes::start_behind(&cluster, 3, &flags, |address| tap(address, &recording));
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let forwarded = wait_for("a forwarded command", LIMIT, || {
        let follower = (nodes.wait_for_leader() + 1) % 3;
        // Refused with 409 if the one before has been accepted.
        assert!([200, 409].contains(&change_tempo(&nodes, follower, 1.1, TOKEN)));
        request_in(&recording, FORWARDED)
    });
    let text = String::from_utf8_lossy(&forwarded).into_owned();
    let target = text.lines().find_map(|line| line.strip_prefix("x-backbeat-target: ")).expect("the call has a target");
    let target = PulseNodes::index_of(target);

    let repeated = send(nodes.raft_address(target), &forwarded);
    assert!(repeated.starts_with("HTTP/1.1 401 ") && repeated.contains("received before"), "{repeated}");
    let elsewhere = send(nodes.raft_address((target + 1) % 3), &forwarded);
    assert!(elsewhere.starts_with("HTTP/1.1 400 ") && elsewhere.contains("check the nodes' addresses"), "{elsewhere}");
    let changed = text.replace("1.1", "1.2");
    assert_ne!(changed.matches("1.2").count(), 0);
    let changed = send(nodes.raft_address(target), changed.replacen("HTTP/1.2", "HTTP/1.1", 1).as_bytes());
    assert!(changed.starts_with("HTTP/1.1 401 ") && changed.contains("signature is missing or wrong"), "{changed}");
    let from_a_page = text.replacen("x-backbeat-node", "origin: http://localhost\r\nx-backbeat-node", 1);
    let from_a_page = send(nodes.raft_address(target), from_a_page.as_bytes());
    assert!(from_a_page.starts_with("HTTP/1.1 403 "), "{from_a_page}");

    let recording = recording.lock().expect("no thread panicked").concat();
    assert!(find(&recording, b"POST /raft/append").is_some() && find(&recording, b"POST /raft/vote").is_some());
    for secret in [SECRET, TOKEN] {
        assert_eq!(find(&recording, secret.as_bytes()), None, "{secret} travelled between nodes");
    }
}

/// The order of docs/security.md: both are accepted everywhere before the new one is used, and it is used everywhere before
/// the old one is refused.
#[test]
fn secrets_are_replaced_without_a_missed_beat() {
    let cluster = Cluster::new(1);
    let path = |name: &str| cluster.dir().join(name).to_str().expect("the path is UTF-8").to_owned();
    let set = |node: &str, secret: &str, token: &str| {
        write(&path(&format!("secret-{node}")), secret);
        write(&path(&format!("token-{node}")), token);
    };
    let nodes = ["n0", "n1", "n2"];
    for node in nodes {
        set(node, SECRET, TOKEN);
    }
    let (secret, token) = (path("secret-{node}"), path("token-{node}"));
    let tempo = ["--cluster", "it", "--bpm", "600", "--max-bpm", "660"];
    let flags = [&tempo[..], &["--raft-secret-file", &secret, "--admin-token-file", &token]].concat();
    let pulse = PulseNodes::start(&cluster, 3, &flags);
    pulse.wait_until_ready();
    let _agents = cluster.start("agent-sim", &["--agents", "200"]);
    wait_until("beats", LIMIT, || cluster.frames().len() > 10);
    let (new_secret, new_token) = ("a-new-secret-of-the-nodes", "a-new-token-of-the-operators");
    let steps = [
        ([SECRET, new_secret].join("\n"), [TOKEN, new_token].join("\n")),
        ([new_secret, SECRET].join("\n"), [new_token, TOKEN].join("\n")),
        (new_secret.to_owned(), new_token.to_owned()),
    ];
    for (changes, (secrets, tokens)) in (1..).zip(&steps) {
        for (index, node) in nodes.iter().enumerate() {
            let beats = cluster.frames().len();
            set(node, secrets, tokens);
            let log = || pulse.node(index).log();
            wait_until("both files to be reloaded", LIMIT, || {
                log().matches("a secret has changed").count() >= 2 * changes
            });
            wait_until("more beats", LIMIT, || cluster.frames().len() > beats + 5);
        }
    }
    let frames = cluster.frames();
    check(&frames);
    // Not that the leader stayed: on a busy machine it changes without any cause.
    let refused = pulse.logs().matches("refused a call of another node").count();
    assert_eq!(refused, 0, "{}", pulse.logs());

    let follower = (pulse.wait_for_leader() + 1) % 3;
    assert_eq!(change_tempo(&pulse, follower, 630.0, TOKEN), 401);
    assert_eq!(change_tempo(&pulse, follower, 630.0, new_token), 200);
}
