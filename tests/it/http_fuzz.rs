//! Random requests to the services' HTTP servers, determined by a seed.

use backbeat_tests::{Cluster, Program};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reqwest::Method;
use serde_json::Value;

const REQUESTS: u32 = 400;

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::DELETE, Method::PUT, Method::HEAD];
const PATHS: [&str; 8] = [
    "/ready",
    "/api/v1/status",
    "/api/v1/windows",
    "/api/v1/windows/",
    "/api/v1/agents/agent-00001/claims",
    "/api/v1/tempo",
    "/api/v1/members/",
    "/",
];
const WORDS: [&str; 16] = [
    "tempo_bpm",
    "ramp",
    "bar_length",
    "node",
    "before",
    "limit",
    "=",
    "&",
    "-1",
    "1e999",
    "null",
    "%00",
    "{",
    "[",
    "\"",
    "é",
];

fn garbage(rng: &mut ChaCha8Rng, most: usize) -> String {
    let words = (0..rng.random_range(0..=most)).map(|_| {
        if rng.random_bool(0.7) {
            (*WORDS.choose(rng).expect("WORDS is not empty")).to_owned()
        } else {
            rng.random::<char>().to_string()
        }
    });
    words.collect()
}

/// Random JSON.
fn json(rng: &mut ChaCha8Rng, depth: u32) -> Value {
    match rng.random_range(0..if depth == 0 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => rng.random::<bool>().into(),
        2 => rng.random::<i64>().into(),
        3 => rng.random_range(-1e9..1e9).into(),
        4 => garbage(rng, 3).into(),
        5 => (0..3).map(|_| json(rng, depth - 1)).collect(),
        _ => (0..3).map(|_| (garbage(rng, 1), json(rng, depth - 1))).collect(),
    }
}

/// Asserts that `service` answers every request, errors with a reason in JSON, and stays ready.
fn fuzz(service: &Program, rng: &mut ChaCha8Rng) {
    service.wait_ready();
    for _ in 0..REQUESTS {
        let method = METHODS.choose(rng).expect("METHODS is not empty").clone();
        let query = if rng.random() { "?" } else { "" };
        let path =
            format!("{}{}{query}{}", PATHS.choose(rng).expect("PATHS is not empty"), garbage(rng, 1), garbage(rng, 4));
        // An HTTP client does not send these characters unchanged.
        let path = path.replace(['#', '\r', '\n', '\t', '\\'], "");
        let body = if rng.random() { json(rng, 3).to_string() } else { garbage(rng, 8) };
        let request = format!("{method} {path:?} with {body:?}");
        let (status, response) =
            service.request(method.clone(), &path, &body, None).unwrap_or_else(|| panic!("{request}: no answer"));
        assert!(status < 500 || status == 503, "{request}: {status} {response}");
        if status >= 400 && method != Method::HEAD && status != 405 {
            let reason: Value =
                serde_json::from_str(&response).unwrap_or_else(|_| panic!("{request}: {status} {response}"));
            assert!(reason["error"].is_string(), "{request}: {status} {response}");
        }
    }
    service.wait_ready();
}

#[test]
fn services_under_random_requests_stay_ready() {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    let reverb = cluster.serve("reverb", &["--cluster", "it"]);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    fuzz(&reverb, &mut rng);
    fuzz(&pulse, &mut rng);
}
